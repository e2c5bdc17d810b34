// dora.h - linear maps with DoRA (Liu et al., "DoRA: Weight-Decomposed Low-Rank Adaptation", 2024) over those of ops:
//
//     y = gain * (x Wᵀ + scale h Bᵀ),  gain_j = magnitude_j / |row j of W + scale B A|,
//
// where the length is a constant of the backward pass, as the paper's section 4.3 proposes and PEFT does. Groups without gains
// pass straight through. v is scratch of [t][adapter_widths::dora].
#pragma once

#include "ops.h"

namespace cft {

void dora_linear(ops &o, const linear_group &g, const dropout &drop, const float *x, int64_t t, float *const *y, bool add, float *h, float *v);

void dora_linear_backward(ops &o, const linear_group &g, const dropout &drop, const float *x, int64_t t, const float *const *dy,
                          const float *h, float *u, float *dx, bool add, float *v);

} // namespace cft
