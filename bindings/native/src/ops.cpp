// ops.cpp - what a device says to an operation that it does not have.
#include "ops.h"

#include "failure.h"

namespace cft {
namespace {

[[noreturn]] void refuse(const char *what) { throw failure(CFT_ERR_UNSUPPORTED, std::string(what) + " is not trained on this device; cpu trains it"); }

constexpr const char *dora = "dora", *embedding = "an adapter of token_embd";

} // namespace

void ops::scale_columns(const float *, const float *, int64_t, int64_t, bool, float *) { refuse(dora); }
void ops::column_dots(const float *, const float *, const float *, int64_t, int64_t, float *) { refuse(dora); }
void ops::row_norms(const weight &, const float *, const float *, int, float, const float *, float *, float *) { refuse(dora); }
void ops::embed_adapter(const embedding_adapter &, const int32_t *, int64_t, float *, float *) { refuse(embedding); }
void ops::embed_adapter_backward(const embedding_adapter &, const int32_t *, int64_t, const float *, float *) { refuse(embedding); }

} // namespace cft
