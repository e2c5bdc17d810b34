// infer_sample.h - drawing a token from logits; a pure function of (logits, settings), so that runs can be repeated.
#pragma once

#include "cft_infer.h"

#include <cstddef>
#include <cstdint>

namespace cft {

// check_sampling throws CFT_ERR_INVALID_ARGUMENT where a setting is out of range.
void check_sampling(const cft_sampling &s);

// uniform returns number `counter` of the seed's random numbers, in [0, 1).
double uniform(uint64_t seed, uint64_t counter);

// sample_token draws from logits[n]. Temperature 0 takes the largest logit, the lowest id of equals. Otherwise the
// filters run in llama.cpp's order: top-k, top-p, min-p, all at temperature 1, then the temperature.
// A logit that is NaN or +infinity throws CFT_ERR_NON_FINITE; -infinity means never.
int32_t sample_token(const float *logits, size_t n, const cft_sampling &s);

} // namespace cft
