// lora.cpp - linear maps with adapters, forward and backward.
//
// Without dropout: h = x Aᵀ for all modules of a group in one product; y = x Wᵀ + scale h Bᵀ tile by tile. Backward, with
// u = scale dy B: dB += scale dyᵀ h, dA += uᵀ x, dx = dy W + u A. Every element of dA, dB and dx is summed over rows by one
// thread. With dropout each module sees its own mask of x, so h and dA are made module by module from masked copies of a
// few rows, held in the thread's tile; dx += mask * (u A).
#include "ops.h"

#include <algorithm>

namespace cft::cpu {

namespace {

constexpr int64_t by_vector = 16; // floats: the widest vector

// masks makes rows of one module's dropout mask.
class masks {
  public:
    masks(const row_kernels &kernels, const dropout &drop, int module)
        : kernels_(kernels), drop_(drop), module_(module), threshold_(dropout_threshold(drop.probability)),
          keep_(1.0f / (1.0f - drop.probability)) {}

    void fill(int64_t row, range columns, float *mask) const {
        kernels_.dropout_mask(drop_.seed, dropout_counter(drop_.micro_batch, drop_.layer, module_, uint32_t(row)), threshold_, keep_,
                              size_t(columns.begin), size_t(columns.size()), mask);
    }

  private:
    const row_kernels &kernels_;
    const dropout     &drop_;
    int                module_;
    uint32_t           threshold_;
    float              keep_;
};

} // namespace

void cpu_ops::adapter_inputs(const linear_group &g, const dropout &drop, const float *x, int64_t t, float *h) {
    const int64_t in = g.inputs(), ld = g.h_columns;
    pool_.run([&](int ith, int nth) {
        const range part = share(t, 1, ith, nth);
        if (drop.probability <= 0) {
            gemm(false, true, part.size(), ld, in, 1, x + part.begin * in, in, g.a, in, 0, h + part.begin * ld, ld);
            return;
        }
        // The tile holds a strip of columns of some rows; strips are added up in order.
        const int64_t width = std::min<int64_t>(in, int64_t(tile_floats)), rows = int64_t(tile_floats) / width;
        float *const  masked = tile(ith);
        int64_t       column = 0;
        for (const auto &m : g.modules) {
            if (!m.a) {
                continue;
            }
            const masks mask(kernels_, drop, m.id);
            for (int64_t r = part.begin; r < part.end; r += rows) {
                const int64_t n = std::min(rows, part.end - r);
                for (int64_t c = 0; c < in; c += width) {
                    const range columns = {c, std::min(in, c + width)};
                    for (int64_t i = 0; i < n; i++) {
                        float *const row = masked + i * columns.size();
                        mask.fill(r + i, columns, row);
                        kernels_.multiply(x + (r + i) * in + c, row, row, size_t(columns.size()));
                    }
                    gemm(false, true, n, g.rank, columns.size(), 1, masked, columns.size(), m.a + c, in, c == 0 ? 0.0f : 1.0f,
                         h + r * ld + column, ld);
                }
            }
            column += g.rank;
        }
    });
}

void cpu_ops::linear(const linear_group &g, const dropout &drop, const float *x, int64_t t, float *const *y, bool add, float *h) {
    if (g.h_columns > 0) {
        adapter_inputs(g, drop, x, t, h);
    }
    if (!y) {
        return;
    }
    pool_.run([&](int ith, int nth) {
        int64_t column = 0;
        for (size_t i = 0; i < g.modules.size(); i++) {
            const auto &m = g.modules[i];
            low_rank    extra;
            if (m.a) {
                extra = {h + column, m.b, g.h_columns, g.rank, g.scale};
                column += g.rank;
            }
            frozen_forward(*m.w, x, share_product(t, m.w->rows, by_vector, ith, nth), add ? 1.0f : 0.0f, extra, y[i], tile(ith));
        }
    });
}

// One thread's part of dB, and of dA if with_a.
void cpu_ops::adapter_gradients(const linear_group &g, const float *x, int64_t t, const float *const *dy, const float *h, const float *u,
                                bool with_a, int ith, int nth) {
    const int64_t in = g.inputs(), ld = g.h_columns;
    int64_t       column = 0;
    for (size_t i = 0; i < g.modules.size(); i++) {
        const auto &m = g.modules[i];
        if (m.a) {
            const range out = share(m.w->rows, by_vector, ith, nth);
            gemm(true, false, out.size(), g.rank, t, g.scale, dy[i] + out.begin, m.w->rows, h + column, ld, 1, m.db + out.begin * g.rank, g.rank);
            column += g.rank;
        }
    }
    if (with_a && ld > 0) {
        const range columns = share(in, by_vector, ith, nth);
        gemm(true, false, ld, columns.size(), t, 1, u, ld, x + columns.begin, in, 1, g.da + columns.begin, in);
    }
}

void cpu_ops::linear_backward(const linear_group &g, const dropout &drop, const float *x, int64_t t, const float *const *dy,
                              const float *h, float *u, float *dx, bool add) {
    const int64_t in = g.inputs(), ld = g.h_columns;
    const bool    masked = drop.probability > 0;
    if (ld > 0) {
        pool_.run([&](int ith, int nth) {
            const range part   = share(t, 1, ith, nth);
            int64_t     column = 0;
            for (size_t i = 0; i < g.modules.size(); i++) {
                const auto &m = g.modules[i];
                if (m.a) {
                    gemm(false, false, part.size(), g.rank, m.w->rows, g.scale, dy[i] + part.begin * m.w->rows, m.w->rows, m.b, g.rank, 0,
                         u + part.begin * ld + column, ld);
                    column += g.rank;
                }
            }
        });
    }
    int64_t step = by_vector;
    for (const auto &m : g.modules) {
        step = std::max(step, m.w->block());
    }
    pool_.run([&](int ith, int nth) {
        if (dx) {
            const block_range part = share_product(t, in, step, ith, nth);
            bool              first = !add;
            for (size_t i = 0; i < g.modules.size(); i++) {
                frozen_backward(*g.modules[i].w, dy[i], part, first ? 0.0f : 1.0f, dx, tile(ith));
                first = false;
            }
            if (ld > 0 && !masked) {
                gemm(false, false, part.rows.size(), part.columns.size(), ld, 1, u + part.rows.begin * ld, ld, g.a + part.columns.begin, in,
                     1, dx + part.rows.begin * in + part.columns.begin, in);
            }
        }
        adapter_gradients(g, x, t, dy, h, u, !masked, ith, nth);
    });
    if (ld > 0 && masked) {
        dropped_gradients(g, drop, x, t, u, dx);
    }
}

void cpu_ops::dropped_gradients(const linear_group &g, const dropout &drop, const float *x, int64_t t, const float *u, float *dx) {
    const int64_t in = g.inputs(), ld = g.h_columns;
    pool_.run([&](int ith, int nth) {
        const range all = share(in, by_vector, ith, nth);
        if (all.size() == 0) {
            return;
        }
        // The tile holds two matrices of some rows and a strip of columns: the mask, and x or u A under it.
        const int64_t half = int64_t(tile_floats) / 2, width = std::min(all.size(), half), rows = half / width;
        float *const  mask = tile(ith), *const masked = mask + half;
        int64_t       column = 0;
        for (const auto &m : g.modules) {
            if (!m.a) {
                continue;
            }
            const masks source(kernels_, drop, m.id);
            float      *da = g.da + column * in;
            for (int64_t c = all.begin; c < all.end; c += width) {
                const range   columns = {c, std::min(all.end, c + width)};
                const int64_t w       = columns.size();
                for (int64_t r = 0; r < t; r += rows) {
                    const int64_t n = std::min(rows, t - r);
                    for (int64_t i = 0; i < n; i++) {
                        source.fill(r + i, columns, mask + i * w);
                        kernels_.multiply(x + (r + i) * in + c, mask + i * w, masked + i * w, size_t(w));
                    }
                    gemm(true, false, g.rank, w, n, 1, u + r * ld + column, ld, masked, w, 1, da + c, in);
                    if (dx) {
                        gemm(false, false, n, w, g.rank, 1, u + r * ld + column, ld, m.a + c, in, 0, masked, w);
                        for (int64_t i = 0; i < n; i++) {
                            kernels_.multiply_add(masked + i * w, mask + i * w, dx + (r + i) * in + c, size_t(w));
                        }
                    }
                }
            }
            column += g.rank;
        }
    });
}

} // namespace cft::cpu
