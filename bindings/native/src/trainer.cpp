// trainer.cpp - a pack's way through the layers, forward and backward; see trainer.h.
#include "trainer.h"

#include "cpu/random.h"
#include "failure.h"

#include <cblas.h>
#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <new>

extern "C" void openblas_set_num_threads(int);

using namespace cft;

namespace cft {

buffer::buffer(size_t n_floats) : size_(n_floats) {
    if (n_floats == 0) {
        return;
    }
    constexpr size_t alignment = 64;
    const size_t     bytes     = (n_floats * sizeof(float) + alignment - 1) / alignment * alignment;
    void            *p         = std::aligned_alloc(alignment, bytes);
    if (!p) {
        throw std::bad_alloc();
    }
    madvise(p, bytes, MADV_HUGEPAGE); // advice only: failure costs speed, nothing else
    data_ = static_cast<float *>(p);
}

buffer::~buffer() { std::free(data_); }

} // namespace cft

// step is one pack on its way: sizes, target rows, and this pack's share of the workspace.
struct cft_trainer::step {
    const pack          &p;
    std::vector<int32_t> rows;         // positions with a target, ascending
    std::vector<int32_t> targets;      // of those
    std::vector<float>   weights;      // of those
    cpu::attention_mask  all, last;    // queries: all tokens; target rows only
    bool                 dropout;
    int64_t              t, r;         // tokens, target rows
    // workspace; capital letters are not used: t x or rows x, see layout
    float *xn, *xr, *d2, *norm_in, *d, *dxr, *act, *d_act, *d_up, *dq, *dattn, *dk, *dv, *u, *cos_sin;

    step(const pack &pack_, std::vector<int32_t> rows_, bool dropout_)
        : p(pack_), rows(std::move(rows_)), all(p.visible_until, p.n, nullptr, p.n),
          last(p.visible_until, p.n, rows.data(), rows.size()), dropout(dropout_), t(int64_t(p.n)), r(int64_t(rows.size())) {}

    void place(const cft_model &model, const cft_trainer_params &params, float *w, const float *end) {
        const auto &hp = model.hp;
        const auto  take = [&](int64_t n) {
            float *at = w;
            w += n;
            return at;
        };
        const int64_t q = int64_t(hp.n_head) * hp.head_dim, kv = int64_t(hp.n_head_kv) * hp.head_dim;
        xn      = take(t * hp.n_embd);
        xr      = take(t * hp.n_embd);
        d       = take(t * hp.n_embd);
        d2      = take(t * hp.n_embd);
        norm_in = take(t * hp.n_embd);
        dxr     = take(t * hp.n_embd);
        act     = take(t * hp.n_ff);
        d_act   = take(t * hp.n_ff);
        d_up    = take(t * hp.n_ff);
        dq      = take(t * q);
        dattn   = take(t * q);
        dk      = take(t * kv);
        dv      = take(t * kv);
        u       = take(t * 2 * params.rank);
        cos_sin = take(t * hp.n_rot);
        if (w > end) {
            throw failure(CFT_ERR_INTERNAL, "workspace is smaller than its parts");
        }
        const size_t half = model.rope_frequencies.size();
        for (int64_t i = 0; i < t; i++) {
            for (size_t j = 0; j < half; j++) {
                const float angle                                = float(p.positions[i]) * model.rope_frequencies[j];
                cos_sin[size_t(i) * size_t(hp.n_rot) + j]        = std::cos(angle);
                cos_sin[size_t(i) * size_t(hp.n_rot) + half + j] = std::sin(angle);
            }
        }
    }
};

namespace {

const char *const module_names[] = {"attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"};

float lora_scale(const cft_trainer_params &p) { return p.rslora ? p.alpha / std::sqrt(float(p.rank)) : p.alpha / float(p.rank); }

std::vector<std::vector<int>> group_modules() { return {{0}, {1, 2}, {3}, {4, 5}, {6}}; }

// gather copies rows of n floats.
void gather(const float *x, const std::vector<int32_t> &rows, int64_t n, float *out) {
    for (size_t i = 0; i < rows.size(); i++) {
        std::memcpy(out + int64_t(i) * n, x + int64_t(rows[i]) * n, size_t(n) * sizeof(float));
    }
}

constexpr int64_t row_step = 1; // token rows are shared out singly

} // namespace

cft_trainer::cft_trainer(const cft_model &m, const cft_trainer_params &p)
    : model(m), params(p), plan(choose_layout(m, p)), value(plan.n_params), gradient(plan.n_params), moment1(plan.n_params),
      moment2(plan.n_params), scale_(lora_scale(p)), activations_(plan.activations), workspace_(plan.workspace),
      tiles_(cpu::tile_floats * size_t(plan.threads)), loss_(plan.loss), attention_(plan.attention_bytes), pool_(plan.threads) {
    openblas_set_num_threads(1); // our pool is the only team; each of its threads calls the BLAS for its own part
    size_t offset = 0;
    for (int l = 0; l < model.hp.n_layer; l++) {
        const layer_weights &w = model.layers[size_t(l)];
        const weight *const  weights[] = {&w.attn_q, &w.attn_k, &w.attn_v, &w.attn_output, &w.ffn_gate, &w.ffn_up, &w.ffn_down};
        groups_.emplace_back();
        for (const auto &ids : group_modules()) {
            group g;
            for (int id : ids) {
                module mod;
                mod.bit    = id;
                mod.w      = weights[id];
                mod.active = (params.targets >> id) & 1;
                g.n_active += mod.active;
                g.modules.push_back(mod);
            }
            const auto place = [&](size_t &at, const char *part, const module &mod, int64_t rows, int64_t cols) {
                at = offset;
                tensors.push_back({"blk." + std::to_string(l) + "." + module_names[mod.bit] + ".weight." + part, size_t(rows), size_t(cols), offset});
                offset += size_t(rows * cols);
            };
            g.a = offset;
            for (module &mod : g.modules) {
                if (mod.active) {
                    place(mod.a, "lora_a", mod, params.rank, mod.w->cols);
                }
            }
            for (module &mod : g.modules) {
                if (mod.active) {
                    place(mod.b, "lora_b", mod, mod.w->rows, params.rank);
                }
            }
            groups_.back().push_back(std::move(g));
        }
    }
    init_adapter();
}

void cft_trainer::init_adapter() {
    for (buffer *b : {&value, &gradient, &moment1, &moment2}) {
        std::fill(b->data(), b->data() + b->size(), 0.0f);
    }
    for (size_t i = 0; i < tensors.size(); i++) {
        const tensor &t = tensors[i];
        if (t.name.compare(t.name.size() - 6, 6, "lora_a") != 0) {
            continue;
        }
        const float bound = 1.0f / std::sqrt(float(t.cols));
        for (size_t j = 0; j < t.rows * t.cols; j++) {
            const auto block         = cpu::philox(params.seed, uint32_t(j / 4), uint32_t(i), 0, 0x41u /* 'A': apart from dropout */);
            value.data()[t.offset + j] = (2.0f * cpu::uniform(block.x[j % 4]) - 1.0f) * bound;
        }
    }
}

void cft_trainer::stop_if_cancelled() {
    if (cancelled.exchange(false)) {
        throw failure(CFT_ERR_CANCELLED, "cancelled");
    }
}

void cft_trainer::check(const pack &p) const {
    const auto refuse = [](const std::string &what) { throw failure(CFT_ERR_INVALID_ARGUMENT, what); };
    if (p.n == 0 || p.n > size_t(plan.max_tokens)) {
        refuse("a pack has 1 to " + std::to_string(plan.max_tokens) + " tokens, got " + std::to_string(p.n));
    }
    size_t n_targets = 0;
    for (size_t i = 0; i < p.n; i++) {
        const std::string at = " at position " + std::to_string(i);
        if (p.tokens[i] < 0 || p.tokens[i] >= model.hp.n_vocab) {
            refuse("token " + std::to_string(p.tokens[i]) + at + " is outside the vocabulary of " + std::to_string(model.hp.n_vocab));
        }
        if (p.positions[i] < 0) {
            refuse("rotary position " + std::to_string(p.positions[i]) + at + " is negative");
        }
        if (p.visible_until[i] <= int64_t(i) || p.visible_until[i] > int64_t(p.n)) {
            refuse("visible_until " + std::to_string(p.visible_until[i]) + at + " is outside the pack");
        }
        if (p.targets && p.targets[i] != CFT_IGNORE_TARGET) {
            n_targets++;
            if (p.targets[i] < 0 || p.targets[i] >= model.hp.n_vocab) {
                refuse("target " + std::to_string(p.targets[i]) + at + " is outside the vocabulary of " + std::to_string(model.hp.n_vocab));
            }
            if (p.weights && !(p.weights[i] >= 0 && std::isfinite(p.weights[i]))) {
                refuse("weight" + at + " is not a finite number of at least 0");
            }
        }
    }
    if (n_targets > size_t(plan.max_targets)) {
        refuse("the pack has " + std::to_string(n_targets) + " targets, the trainer was made for " + std::to_string(plan.max_targets));
    }
}

activations cft_trainer::layer_activations(int layer) const {
    const auto   &hp = model.hp;
    const size_t  t = size_t(plan.max_tokens), d = size_t(hp.n_embd), q = size_t(hp.n_head) * size_t(hp.head_dim),
                 kv = size_t(hp.n_head_kv) * size_t(hp.head_dim), r = size_t(params.rank);
    activations   a;
    a.x      = activations_.data() + size_t(layer) * plan.inputs;
    float *at = activations_.data() + size_t(hp.n_layer) * plan.inputs + t * d + (plan.keep_all ? size_t(layer) * plan.rest : 0);
    const auto take = [&](size_t n) {
        float *here = at;
        at += t * n;
        return here;
    };
    a.q    = take(q);
    a.k    = take(kv);
    a.v    = take(kv);
    a.attn = take(q);
    a.lse  = take(size_t(hp.n_head));
    a.x2   = take(d);
    a.gate = take(size_t(hp.n_ff));
    a.up   = take(size_t(hp.n_ff));
    const size_t modules[group_count] = {1, 2, 1, 2, 1};
    for (int g = 0; g < group_count; g++) {
        a.h[g] = take(r * modules[g]);
    }
    return a;
}

// apply_dropout writes mask * x / (1 - p) of rows [begin, end) to out, for one module of one layer.
static void apply_dropout(const cft_trainer_params &p, uint64_t micro_batch, int layer, int bit, const float *x, int64_t cols,
                          int64_t begin, int64_t end, float *out) {
    const float keep = 1.0f / (1.0f - p.dropout);
    for (int64_t i = begin; i < end; i++) {
        for (int64_t j = 0; j < cols; j += 4) {
            const auto block = cpu::philox(p.seed ^ (micro_batch << 1 | 1) * 0x9E3779B97F4A7C15ull, uint32_t(j / 4), uint32_t(i),
                                           uint32_t(layer * 8 + bit), uint32_t(micro_batch));
            for (int64_t k = j; k < std::min(j + 4, cols); k++) {
                out[(i - begin) * cols + k] = cpu::uniform(block.x[k - j]) < p.dropout ? 0.0f : x[i * cols + k] * keep;
            }
        }
    }
}

constexpr int64_t dropout_rows = 64; // rows whose dropped-out input is held at a time

void cft_trainer::group_forward(step &s, int layer, group_id id, const float *x, int64_t t, float *const *y, float *h) {
    const group  &g    = groups_[size_t(layer)][id];
    const int64_t rank = params.rank, in = g.inputs(), ld_h = rank * g.n_active;
    if (g.n_active > 0) {
        pool_.run([&](int ith, int nth) {
            const auto part = cpu::share(t, row_step, ith, nth);
            if (!s.dropout) {
                cpu::gemm(false, true, part.size(), ld_h, in, 1, x + part.begin * in, in, value.data() + g.a, in, 0, h + part.begin * ld_h, ld_h);
                return;
            }
            std::vector<float> dropped(size_t(dropout_rows * in));
            int64_t            column = 0;
            for (const module &m : g.modules) {
                if (!m.active) {
                    continue;
                }
                for (int64_t i = part.begin; i < part.end; i += dropout_rows) {
                    const int64_t end = std::min(i + dropout_rows, part.end);
                    apply_dropout(params, n_micro_batches, layer, m.bit, x, in, i, end, dropped.data());
                    cpu::gemm(false, true, end - i, rank, in, 1, dropped.data(), in, value.data() + m.a, in, 0, h + i * ld_h + column, ld_h);
                }
                column += rank;
            }
        });
    }
    pool_.run([&](int ith, int nth) {
        float  *tile   = tiles_.data() + size_t(ith) * cpu::tile_floats;
        int64_t column = 0;
        for (size_t i = 0; i < g.modules.size(); i++) {
            const module &m    = g.modules[i];
            const auto    part = cpu::share(m.w->rows, 16, ith, nth);
            cpu::frozen_forward(*m.w, x, in, t, y[i], m.w->rows, part, tile);
            if (m.active) {
                cpu::gemm(false, true, t, part.size(), rank, scale_, h + column, ld_h, value.data() + m.b + part.begin * rank, rank, 1,
                          y[i] + part.begin, m.w->rows);
                column += rank;
            }
        }
    });
}

void cft_trainer::group_backward(step &s, int layer, group_id id, const float *x, int64_t t, const float *const *dy, const float *h,
                                 float *dx, bool add) {
    const group  &g    = groups_[size_t(layer)][id];
    const int64_t rank = params.rank, in = g.inputs(), ld_h = rank * g.n_active;
    float        *u    = s.u;
    if (g.n_active > 0) {
        pool_.run([&](int ith, int nth) {
            const auto part   = cpu::share(t, row_step, ith, nth);
            int64_t    column = 0;
            for (size_t i = 0; i < g.modules.size(); i++) {
                const module &m = g.modules[i];
                if (m.active) {
                    cpu::gemm(false, false, part.size(), rank, m.w->rows, scale_, dy[i] + part.begin * m.w->rows, m.w->rows,
                              value.data() + m.b, rank, 0, u + part.begin * ld_h + column, ld_h);
                    column += rank;
                }
            }
        });
    }
    int64_t block = 16;
    for (const module &m : g.modules) {
        block = std::max(block, m.w->block());
    }
    pool_.run([&](int ith, int nth) {
        float     *tile   = tiles_.data() + size_t(ith) * cpu::tile_floats;
        const auto cols   = cpu::share(in, block, ith, nth);
        int64_t    column = 0;
        bool       first  = !add;
        for (size_t i = 0; i < g.modules.size(); i++) {
            const module &m = g.modules[i];
            if (dx) {
                cpu::frozen_backward(*m.w, dy[i], m.w->rows, t, dx, in, cols, first ? 0.0f : 1.0f, tile);
                first = false;
            }
            if (m.active) {
                const auto out = cpu::share(m.w->rows, 16, ith, nth);
                cpu::gemm(true, false, out.size(), rank, t, scale_, dy[i] + out.begin, m.w->rows, h + column, ld_h, 1,
                          gradient.data() + m.b + out.begin * rank, rank);
                column += rank;
            }
        }
        if (g.n_active > 0 && !s.dropout && cols.size() > 0) {
            if (dx) {
                cpu::gemm(false, false, t, cols.size(), ld_h, 1, u, ld_h, value.data() + g.a + cols.begin, in, 1, dx + cols.begin, in);
            }
            cpu::gemm(true, false, ld_h, cols.size(), t, 1, u, ld_h, x + cols.begin, in, 1, gradient.data() + g.a + cols.begin, in);
        }
    });
    if (g.n_active == 0 || !s.dropout) {
        return;
    }
    // With dropout every module sees its own mask of x. Modules and row chunks in fixed order, columns shared out.
    int64_t            column = 0;
    std::vector<float> dropped(size_t(t * in)), back(dx ? size_t(t * in) : 0);
    for (const module &m : g.modules) {
        if (!m.active) {
            continue;
        }
        pool_.run([&](int ith, int nth) {
            const auto part = cpu::share(t, row_step, ith, nth);
            apply_dropout(params, n_micro_batches, layer, m.bit, x, in, part.begin, part.end, dropped.data() + part.begin * in);
            if (dx) {
                cpu::gemm(false, false, part.size(), in, rank, 1, u + part.begin * ld_h + column, ld_h, value.data() + m.a, in, 0,
                          back.data() + part.begin * in, in);
                apply_dropout(params, n_micro_batches, layer, m.bit, back.data(), in, part.begin, part.end, back.data() + part.begin * in);
                cpu::rows().add(dx + part.begin * in, back.data() + part.begin * in, size_t(part.size() * in));
            }
        });
        pool_.run([&](int ith, int nth) {
            const auto cols = cpu::share(in, 16, ith, nth);
            cpu::gemm(true, false, rank, cols.size(), t, 1, u + column, ld_h, dropped.data() + cols.begin, in, 1,
                      gradient.data() + m.a + cols.begin, in);
        });
        column += rank;
    }
}

void cft_trainer::forward_layer(step &s, int layer, activations &a, float *x_next) {
    const auto          &hp   = model.hp;
    const layer_weights &w    = model.layers[size_t(layer)];
    const bool           last = layer == hp.n_layer - 1;
    const int64_t        t = s.t, n = last ? s.r : s.t, d = hp.n_embd, q = int64_t(hp.n_head) * hp.head_dim, kv = int64_t(hp.n_head_kv) * hp.head_dim;
    const auto          &k = cpu::rows();

    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(t, row_step, ith, nth);
        k.rmsnorm(a.x + p.begin * d, w.attn_norm.data(), s.xn + p.begin * d, size_t(p.size()), size_t(d), hp.rms_eps);
    });
    const float *x_q = s.xn, *residual = a.x;
    if (last) {
        gather(s.xn, s.rows, d, s.xr);
        gather(a.x, s.rows, d, s.d2);
        x_q      = s.xr;
        residual = s.d2;
    }
    float *const q_out[] = {a.q}, *const kv_out[] = {a.k, a.v};
    group_forward(s, layer, group_q, x_q, n, q_out, a.h[group_q]);
    group_forward(s, layer, group_kv, s.xn, t, kv_out, a.h[group_kv]);
    pool_.run([&](int ith, int nth) {
        const auto pk = cpu::share(t, row_step, ith, nth), pq = cpu::share(n, row_step, ith, nth);
        k.rope(a.k + pk.begin * kv, size_t(pk.size()), size_t(hp.n_head_kv), size_t(hp.head_dim), size_t(hp.n_rot), s.cos_sin + pk.begin * hp.n_rot, 1);
        for (int64_t i = pq.begin; i < pq.end; i++) {
            const int64_t token = last ? s.rows[size_t(i)] : i;
            k.rope(a.q + i * q, 1, size_t(hp.n_head), size_t(hp.head_dim), size_t(hp.n_rot), s.cos_sin + token * hp.n_rot, 1);
        }
    });
    const cpu::attention_shape shape{hp.n_head, hp.n_head_kv, hp.head_dim, 1.0f / std::sqrt(float(hp.head_dim))};
    cpu::attention_forward(shape, last ? s.last : s.all, {a.q, a.k, a.v, a.attn, a.lse, size_t(q), size_t(kv), size_t(kv), size_t(q)},
                           attention_.data(), pool_);
    stop_if_cancelled();
    float *const o_out[] = {a.x2};
    group_forward(s, layer, group_output, a.attn, n, o_out, a.h[group_output]);
    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(n, row_step, ith, nth);
        k.add(a.x2 + p.begin * d, residual + p.begin * d, size_t(p.size() * d));
        k.rmsnorm(a.x2 + p.begin * d, w.ffn_norm.data(), s.xr + p.begin * d, size_t(p.size()), size_t(d), hp.rms_eps);
    });
    float *const gu_out[] = {a.gate, a.up};
    group_forward(s, layer, group_gate_up, s.xr, n, gu_out, a.h[group_gate_up]);
    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(n * hp.n_ff, 16, ith, nth);
        k.swiglu(a.gate + p.begin, a.up + p.begin, s.act + p.begin, size_t(p.size()));
    });
    float *const down_out[] = {x_next};
    group_forward(s, layer, group_down, s.act, n, down_out, a.h[group_down]);
    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(n, row_step, ith, nth);
        k.add(x_next + p.begin * d, a.x2 + p.begin * d, size_t(p.size() * d));
    });
    stop_if_cancelled();
}

// d is [rows][n_embd] at the layer's output on entry, [t][n_embd] at its input on return.
void cft_trainer::backward_layer(step &s, int layer, activations &a, float *d_io) {
    const auto          &hp   = model.hp;
    const layer_weights &w    = model.layers[size_t(layer)];
    const bool           last = layer == hp.n_layer - 1;
    const int64_t        t = s.t, n = last ? s.r : s.t, d = hp.n_embd, q = int64_t(hp.n_head) * hp.head_dim, kv = int64_t(hp.n_head_kv) * hp.head_dim;
    const auto          &k = cpu::rows();

    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(n * hp.n_ff, 16, ith, nth), r = cpu::share(n, row_step, ith, nth);
        k.swiglu(a.gate + p.begin, a.up + p.begin, s.act + p.begin, size_t(p.size()));
        k.rmsnorm(a.x2 + r.begin * d, w.ffn_norm.data(), s.xr + r.begin * d, size_t(r.size()), size_t(d), hp.rms_eps);
    });
    const float *const dy_down[] = {d_io};
    group_backward(s, layer, group_down, s.act, n, dy_down, a.h[group_down], s.d_act, false);
    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(n * hp.n_ff, 16, ith, nth);
        k.swiglu_backward(s.d_act + p.begin, a.gate + p.begin, a.up + p.begin, s.d_act + p.begin, s.d_up + p.begin, size_t(p.size()));
    });
    const float *const dy_gu[] = {s.d_act, s.d_up};
    group_backward(s, layer, group_gate_up, s.xr, n, dy_gu, a.h[group_gate_up], s.d2, false);
    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(n, row_step, ith, nth);
        k.rmsnorm_backward(s.d2 + p.begin * d, a.x2 + p.begin * d, w.ffn_norm.data(), d_io + p.begin * d, size_t(p.size()), size_t(d), hp.rms_eps);
    });
    stop_if_cancelled();
    const float *const dy_o[] = {d_io};
    group_backward(s, layer, group_output, a.attn, n, dy_o, a.h[group_output], s.dattn, false);
    const cpu::attention_shape shape{hp.n_head, hp.n_head_kv, hp.head_dim, 1.0f / std::sqrt(float(hp.head_dim))};
    cpu::attention_backward(shape, last ? s.last : s.all,
                            {a.q, a.k, a.v, a.attn, a.lse, s.dattn, s.dq, s.dk, s.dv, size_t(q), size_t(kv), size_t(kv), size_t(q), size_t(q),
                             size_t(q), size_t(kv), size_t(kv)},
                            attention_.data(), pool_);
    pool_.run([&](int ith, int nth) {
        const auto pk = cpu::share(t, row_step, ith, nth), pq = cpu::share(n, row_step, ith, nth);
        k.rope(s.dk + pk.begin * kv, size_t(pk.size()), size_t(hp.n_head_kv), size_t(hp.head_dim), size_t(hp.n_rot), s.cos_sin + pk.begin * hp.n_rot, -1);
        for (int64_t i = pq.begin; i < pq.end; i++) {
            const int64_t token = last ? s.rows[size_t(i)] : i;
            k.rope(s.dq + i * q, 1, size_t(hp.n_head), size_t(hp.head_dim), size_t(hp.n_rot), s.cos_sin + token * hp.n_rot, -1);
        }
        k.rmsnorm(a.x + pk.begin * d, w.attn_norm.data(), s.xn + pk.begin * d, size_t(pk.size()), size_t(d), hp.rms_eps);
    });
    const bool         below   = layer > 0; // nothing is trained below the first layer
    const float *const dy_q[]  = {s.dq};
    const float *const dy_kv[] = {s.dk, s.dv};
    group_backward(s, layer, group_kv, s.xn, t, dy_kv, a.h[group_kv], below ? s.d2 : nullptr, false);
    if (last) {
        gather(s.xn, s.rows, d, s.xr);
        group_backward(s, layer, group_q, s.xr, n, dy_q, a.h[group_q], below ? s.dxr : nullptr, false);
        if (below) {
            // Rows to their places, from the end: a row's place is never before its number.
            for (int64_t i = n - 1; i >= 0; i--) {
                const int64_t at = s.rows[size_t(i)];
                k.add(s.d2 + at * d, s.dxr + i * d, size_t(d));
                std::memcpy(s.dxr + i * d, d_io + i * d, size_t(d) * sizeof(float));
            }
            std::memset(d_io, 0, size_t(t * d) * sizeof(float));
            for (int64_t i = 0; i < n; i++) {
                std::memcpy(d_io + int64_t(s.rows[size_t(i)]) * d, s.dxr + i * d, size_t(d) * sizeof(float));
            }
        }
    } else {
        group_backward(s, layer, group_q, s.xn, t, dy_q, a.h[group_q], below ? s.d2 : nullptr, true);
    }
    if (below) {
        pool_.run([&](int ith, int nth) {
            const auto p = cpu::share(t, row_step, ith, nth);
            k.rmsnorm_backward(s.d2 + p.begin * d, a.x + p.begin * d, w.attn_norm.data(), d_io + p.begin * d, size_t(p.size()), size_t(d), hp.rms_eps);
        });
    }
    stop_if_cancelled();
}

void cft_trainer::forward_all(step &s, bool keep) {
    const auto &hp = model.hp;
    float      *x0 = activations_.data();
    for (int64_t i = 0; i < s.t; i++) {
        model.token_embd.dequantize(s.p.tokens[i], 0, hp.n_embd, x0 + i * hp.n_embd);
    }
    (void)keep;
    for (int l = 0; l < hp.n_layer; l++) {
        activations a = layer_activations(l);
        forward_layer(s, l, a, activations_.data() + size_t(l + 1) * plan.inputs);
    }
}

// head computes the summed loss of the target rows and, for backward, the gradient at the last layer's output [rows][n_embd].
double cft_trainer::head(step &s, bool backward, float *d_rows) {
    const auto   &hp = model.hp;
    const auto   &k  = cpu::rows();
    const int64_t d = hp.n_embd, v = hp.n_vocab;
    const float  *x_last = activations_.data() + size_t(hp.n_layer) * plan.inputs;
    std::vector<double> loss(size_t(s.r), 0.0);
    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(s.r, row_step, ith, nth);
        k.rmsnorm(x_last + p.begin * d, model.output_norm.data(), s.xn + p.begin * d, size_t(p.size()), size_t(d), hp.rms_eps);
    });
    for (int64_t c = 0; c < s.r; c += plan.loss_rows) {
        const int64_t n = std::min(plan.loss_rows, s.r - c);
        float        *logits = loss_.data();
        pool_.run([&](int ith, int nth) {
            cpu::frozen_forward(model.output, s.xn + c * d, d, n, logits, v, cpu::share(v, 16, ith, nth), tiles_.data() + size_t(ith) * cpu::tile_floats);
        });
        pool_.run([&](int ith, int nth) {
            const auto p = cpu::share(n, row_step, ith, nth);
            for (int64_t i = p.begin; i < p.end; i++) {
                const size_t row = size_t(c + i);
                const double nll = backward ? k.cross_entropy(logits + i * v, size_t(v), size_t(s.targets[row]), s.weights[row])
                                            : k.cross_entropy_loss(logits + i * v, size_t(v), size_t(s.targets[row]));
                loss[row] = double(s.weights[row]) * nll;
            }
        });
        if (backward) {
            pool_.run([&](int ith, int nth) {
                const auto cols = cpu::share(d, std::max<int64_t>(16, model.output.block()), ith, nth);
                cpu::frozen_backward(model.output, logits, v, n, s.d2 + c * d, d, cols, 0, tiles_.data() + size_t(ith) * cpu::tile_floats);
            });
        }
        stop_if_cancelled();
    }
    if (backward) {
        std::memset(d_rows, 0, size_t(s.r * d) * sizeof(float));
        pool_.run([&](int ith, int nth) {
            const auto p = cpu::share(s.r, row_step, ith, nth);
            k.rmsnorm_backward(s.d2 + p.begin * d, x_last + p.begin * d, model.output_norm.data(), d_rows + p.begin * d, size_t(p.size()), size_t(d), hp.rms_eps);
        });
    }
    double sum = 0;
    for (double l : loss) {
        sum += l;
    }
    return sum;
}

void cft_trainer::run(const pack &p, bool backward, double *loss_sum, size_t *n_targets) {
    check(p);
    std::vector<int32_t> rows;
    for (size_t i = 0; i < p.n; i++) {
        if (p.targets[i] != CFT_IGNORE_TARGET) {
            rows.push_back(int32_t(i));
        }
    }
    double sum = 0;
    size_t n   = rows.size();
    if (n > 0) {
        step s(p, std::move(rows), backward && params.dropout > 0);
        for (int32_t i : s.rows) {
            s.targets.push_back(p.targets[i]);
            s.weights.push_back(p.weights ? p.weights[i] : 1.0f);
        }
        s.place(model, params, workspace_.data(), workspace_.data() + workspace_.size());
        forward_all(s, backward);
        sum = head(s, backward, s.d);
        if (!std::isfinite(sum)) {
            throw failure(CFT_ERR_NON_FINITE, "the loss is not finite");
        }
        for (int l = model.hp.n_layer - 1; backward && l >= 0; l--) {
            activations a = layer_activations(l);
            if (!plan.keep_all && l < model.hp.n_layer - 1) {
                forward_layer(s, l, a, s.norm_in); // the layer's output is known already and goes nowhere
            }
            backward_layer(s, l, a, s.d);
        }
    }
    if (backward) {
        n_micro_batches++;
    }
    *loss_sum  = sum;
    *n_targets = n;
}

void cft_trainer::logits(const pack &p, const int32_t *rows, size_t n_rows, float *out) {
    check(p);
    std::vector<int32_t> wanted(rows, rows + n_rows);
    for (size_t i = 0; i < n_rows; i++) {
        if (rows[i] < 0 || size_t(rows[i]) >= p.n || (i > 0 && rows[i] <= rows[i - 1])) {
            throw failure(CFT_ERR_INVALID_ARGUMENT, "rows must be ascending positions within the pack");
        }
    }
    if (n_rows == 0 || n_rows > size_t(plan.max_tokens)) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "between 1 and max_tokens rows can be asked for");
    }
    step s(p, std::move(wanted), false);
    s.place(model, params, workspace_.data(), workspace_.data() + workspace_.size());
    forward_all(s, false);
    const int64_t d = model.hp.n_embd, v = model.hp.n_vocab;
    cpu::rows().rmsnorm(activations_.data() + size_t(model.hp.n_layer) * plan.inputs, model.output_norm.data(), s.xn, size_t(s.r), size_t(d), model.hp.rms_eps);
    pool_.run([&](int ith, int nth) {
        cpu::frozen_forward(model.output, s.xn, d, s.r, out, v, cpu::share(v, 16, ith, nth), tiles_.data() + size_t(ith) * cpu::tile_floats);
    });
}

void cft_trainer::discard() { std::fill(gradient.data(), gradient.data() + gradient.size(), 0.0f); }

void cft_trainer::apply(float lr, float max_grad_norm, double normalizer, double *grad_norm) {
    if (!(normalizer > 0) || !std::isfinite(normalizer)) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "the normalizer must be a positive number");
    }
    if (!std::isfinite(lr) || lr < 0 || !std::isfinite(max_grad_norm) || max_grad_norm < 0) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "lr and max_grad_norm must be finite and at least 0");
    }
    // Partial sums over fixed blocks, added in order: the norm does not depend on the number of threads.
    constexpr size_t    block = 1 << 16;
    const int64_t       n = int64_t(plan.n_params), blocks = int64_t((plan.n_params + block - 1) / block);
    std::vector<double> partial(size_t(blocks), 0.0);
    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(blocks, 1, ith, nth);
        for (int64_t b = p.begin; b < p.end; b++) {
            double sum = 0;
            for (int64_t i = b * int64_t(block); i < std::min(n, (b + 1) * int64_t(block)); i++) {
                sum += double(gradient.data()[i]) * double(gradient.data()[i]);
            }
            partial[size_t(b)] = sum;
        }
    });
    double sum = 0;
    for (double x : partial) {
        sum += x;
    }
    const double norm = std::sqrt(sum) / normalizer;
    if (!std::isfinite(norm)) {
        throw failure(CFT_ERR_NON_FINITE, "the gradient is not finite");
    }
    double scale = 1.0 / normalizer;
    if (max_grad_norm > 0 && norm + 1e-6 > double(max_grad_norm)) {
        scale *= double(max_grad_norm) / (norm + 1e-6);
    }
    const double t  = double(n_steps + 1);
    const float  c1 = float(1.0 - std::pow(double(params.beta1), t)), c2 = float(1.0 - std::pow(double(params.beta2), t));
    pool_.run([&](int ith, int nth) {
        const auto p = cpu::share(n, 16, ith, nth);
        cpu::rows().adamw(value.data() + p.begin, gradient.data() + p.begin, moment1.data() + p.begin, moment2.data() + p.begin,
                          size_t(p.size()), float(scale), lr, params.beta1, params.beta2, params.eps, params.weight_decay, c1, c2);
    });
    discard();
    n_steps++;
    *grad_norm = norm;
}
