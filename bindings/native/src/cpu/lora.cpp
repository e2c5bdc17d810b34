// lora.cpp - linear maps with adapters, forward and backward.
//
// Without dropout: h = x Aᵀ for all modules of a group in one product; y = x Wᵀ + scale h Bᵀ tile by tile. Backward, with
// u = scale dy B: dB += scale dyᵀ h, dA += uᵀ x, dx = dy W + u A. Every element of dA, dB and dx is summed over rows by one
// thread. With dropout each module sees its own mask of x, so h and dA are made module by module from masked copies of a
// few rows, held in staging; dx += mask * (u A).
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
        kernels_.dropout_mask(drop_.seed, dropout_counter(drop_.micro_batch, drop_.layer, module_, uint32_t(drop_.first_row + row)), threshold_, keep_,
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
        const range    part    = share(t, 1, ith, nth);
        const products product = products_of(ith);
        if (part.size() == 0) {
            return;
        }
        if (drop.probability <= 0) {
            product.multiply_transposed(rows_of(x + part.begin * in, in), g.a, in, {h + part.begin * ld, ld}, part.size(), ld, in);
            return;
        }
        // Staging holds a strip of columns of some rows; strips are added up in order.
        const int64_t space = int64_t(scratch::staging_floats), width = std::min(in, space), rows = space / width;
        float *const  masked = scratch_of(ith).staging;
        for (const auto &m : g.modules) {
            if (!m.a || m.shares_a) {
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
                    product.multiply_transposed(rows_of(masked, columns.size()), m.a + c, in, {h + r * ld + m.column, ld, 1, c > 0}, n, m.rank,
                                                columns.size());
                }
            }
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
        for (size_t i = 0; i < g.modules.size(); i++) {
            const auto &m = g.modules[i];
            low_rank    extra;
            if (m.a) {
                extra = {h + m.column, m.b, g.h_columns, m.rank, m.scale};
            }
            frozen_forward(product_, *m.w, x, share_product(t, m.w->rows, product_.panel, ith, nth), add, extra, y[i], m.w->rows,
                           scratch_of(ith));
        }
    });
}

// One thread's part of dB, and of dA if with_a.
void cpu_ops::adapter_gradients(const linear_group &g, const float *x, int64_t t, const float *const *dy, const float *h, const float *u,
                                bool with_a, int ith, int nth) {
    const int64_t in = g.inputs(), ld = g.h_columns;
    const products product = products_of(ith);
    for (size_t i = 0; i < g.modules.size(); i++) {
        const auto &m = g.modules[i];
        if (m.a) {
            const range out = share(m.w->rows, by_vector, ith, nth);
            product.multiply(columns_of(dy[i] + out.begin, m.w->rows), h + m.column, ld, {m.db + out.begin * m.rank, m.rank, m.scale, true},
                             out.size(), m.rank, t);
        }
    }
    if (with_a && ld > 0) {
        const range columns = share(in, product_.panel, ith, nth);
        product.multiply(columns_of(u, ld), x + columns.begin, in, {g.da + columns.begin, in, 1, true}, ld, columns.size(), t);
    }
}

void cpu_ops::linear_backward(const linear_group &g, const dropout &drop, const float *x, int64_t t, const float *const *dy,
                              const float *h, float *u, float *dx, bool add) {
    const int64_t in = g.inputs(), ld = g.h_columns;
    const bool    masked = drop.probability > 0;
    if (ld > 0) {
        pool_.run([&](int ith, int nth) {
            const range part = share(t, 1, ith, nth);
            for (size_t i = 0; i < g.modules.size(); i++) {
                const auto &m = g.modules[i];
                if (m.a) {
                    products_of(ith).multiply(rows_of(dy[i] + part.begin * m.w->rows, m.w->rows), m.b, m.rank,
                                              {u + part.begin * ld + m.column, ld, m.scale, m.shares_a}, part.size(), m.rank, m.w->rows);
                }
            }
        });
    }
    int64_t step = product_.panel;
    for (const auto &m : g.modules) {
        step = std::max(step, m.w->block());
    }
    pool_.run([&](int ith, int nth) {
        if (dx) {
            const block_range part = share_product(t, in, step, ith, nth);
            bool              first = !add;
            for (size_t i = 0; i < g.modules.size(); i++) {
                frozen_backward(product_, *g.modules[i].w, dy[i], g.modules[i].w->rows, part, !first, dx, scratch_of(ith));
                first = false;
            }
            if (ld > 0 && !masked) {
                products_of(ith).multiply(rows_of(u + part.rows.begin * ld, ld), g.a + part.columns.begin, in,
                                          {dx + part.rows.begin * in + part.columns.begin, in, 1, true}, part.rows.size(),
                                          part.columns.size(), ld);
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
        // Staging holds two matrices of some rows and a strip of columns: the mask, and x or u A under it.
        const int64_t  half = int64_t(scratch::staging_floats) / 2, width = std::min(all.size(), half), rows = half / width;
        float *const   mask = scratch_of(ith).staging, *const masked = mask + half;
        const products product = products_of(ith);
        for (const auto &m : g.modules) {
            if (!m.a || m.shares_a) {
                continue;
            }
            const masks source(kernels_, drop, m.id);
            float      *da = g.da + m.column * in;
            for (int64_t c = all.begin; c < all.end; c += width) {
                const range   columns = {c, std::min(all.end, c + width)};
                const int64_t w       = columns.size();
                for (int64_t r = 0; r < t; r += rows) {
                    const int64_t n = std::min(rows, t - r);
                    for (int64_t i = 0; i < n; i++) {
                        source.fill(r + i, columns, mask + i * w);
                        kernels_.multiply(x + (r + i) * in + c, mask + i * w, masked + i * w, size_t(w));
                    }
                    product.multiply(columns_of(u + r * ld + m.column, ld), masked, w, {da + c, in, 1, true}, m.rank, w, n);
                    if (dx) {
                        product.multiply(rows_of(u + r * ld + m.column, ld), m.a + c, in, {masked, w}, n, w, m.rank);
                        for (int64_t i = 0; i < n; i++) {
                            kernels_.multiply_add(masked + i * w, mask + i * w, dx + (r + i) * in + c, size_t(w));
                        }
                    }
                }
            }
        }
    });
}

} // namespace cft::cpu
