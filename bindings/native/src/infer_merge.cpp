// infer_merge.cpp - rows of a base weight with an adapter's product added, in F32.
#include "cft_infer.h"
#include "cpu/dequantize.h"
#include "failure.h"
#include "pool.h"
#include "processors.h"

#include "ggml.h"

#include <algorithm>
#include <cstring>
#include <string>

using namespace cft;

namespace {

// Columns added at a time: what is summed stays in the first-level cache while the rank's rows pass over it.
constexpr size_t strip = 2048;

void need(bool ok, const std::string &what) {
    if (!ok) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, what);
    }
}

ggml_type type_of(int32_t type) {
    need(type >= 0 && type < GGML_TYPE_COUNT && ggml_blck_size(ggml_type(type)) > 0, "ggml has no type " + std::to_string(type));
    return ggml_type(type);
}

void add_product(float *row, const float *b, const float *a, size_t cols, size_t rank, float scale) {
    for (size_t c = 0; c < cols; c += strip) {
        const size_t n = std::min(strip, cols - c);
        for (size_t r = 0; r < rank; r++) {
            const float  x  = scale * b[r];
            const float *ar = a + r * cols + c;
            for (size_t i = 0; i < n; i++) {
                row[c + i] += x * ar[i];
            }
        }
    }
}

} // namespace

cft_status cft_merge_rows(int32_t type, const void *raw, size_t raw_bytes, size_t n_rows, size_t cols, const float *b, const float *a,
                          size_t rank, float scale, int32_t n_threads, float *out, cft_error *err) {
    return guard(err, [&] {
        const ggml_type t = type_of(type);
        need(raw && out && (rank == 0 || (a && b)), "raw, out, a or b is NULL");
        need(cols > 0 && n_rows > 0 && n_threads >= 0 && n_threads <= 1024, "no rows, no columns, or an odd number of threads");
        need(cols % size_t(ggml_blck_size(t)) == 0, "rows of " + std::to_string(cols) + " are not made of blocks of " + std::to_string(ggml_blck_size(t)));
        const size_t row_bytes = ggml_row_size(t, int64_t(cols));
        need(raw_bytes / row_bytes == n_rows && raw_bytes % row_bytes == 0,
             std::to_string(raw_bytes) + " bytes for " + std::to_string(n_rows) + " rows of " + std::to_string(row_bytes));
        const cpu::dequantize_function widen = t == GGML_TYPE_F32 ? nullptr : cpu::dequantizer(t);
        if (t != GGML_TYPE_F32 && !widen) {
            throw failure(CFT_ERR_UNSUPPORTED, std::string("ggml cannot widen type ") + ggml_type_name(t));
        }
        thread_pool pool(n_threads > 0 ? n_threads : available_processors());
        pool.run([&](int ith, int nth) {
            for (size_t i = n_rows * size_t(ith) / size_t(nth); i < n_rows * size_t(ith + 1) / size_t(nth); i++) {
                const char *src = static_cast<const char *>(raw) + i * row_bytes;
                float      *row = out + i * cols;
                if (widen) {
                    widen(src, row, int64_t(cols));
                } else {
                    std::memcpy(row, src, row_bytes);
                }
                add_product(row, b ? b + i * rank : nullptr, a, cols, rank, scale);
            }
        });
    });
}
