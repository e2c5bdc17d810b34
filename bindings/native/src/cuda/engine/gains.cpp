// gains.cpp - DoRA of a group: gains of its outputs, made anew after each step of the optimizer, and their way back.
#include "engine.h"

#include <algorithm>

namespace cft::cuda {
namespace {

// span is outputs side by side that all have adapters; their magnitudes lie side by side as well.
struct span {
    int64_t begin, end, m;
};

// Those of rows [begin, end).
std::vector<span> adapted(const group &g, int64_t begin, int64_t end) {
    std::vector<span> all;
    for (const part &p : g.parts) {
        const int64_t from = std::max(begin, p.row), to = std::min(end, p.row + p.rows);
        if (from >= to) {
            continue;
        }
        if (!all.empty() && all.back().end == from) {
            all.back().end = to;
        } else {
            all.push_back({from, to, p.m + from - p.row});
        }
    }
    return all;
}

} // namespace

// Where the group's weights are at hand anyway: in the first forward pass after values have changed.
void engine::refresh_gains(int layer, int kind) {
    const group &g = plan_.layers[size_t(layer)].of[kind];
    if (!gains_stale_[size_t(layer * kind_count + kind)]) {
        return;
    }
    const int64_t     ld = g.ld();
    const bf16 *const w  = group_weights(layer, kind);
    for (const part &p : g.parts) {
        const bf16 *const a = w + (g.outputs + p.column) * ld;
        multiply({p.rows, p.rank8, g.inputs, w + p.row * ld, ld, false, a, ld, true, w_->w_at, p.rank8, true});
        multiply({p.rank8, p.rank8, g.inputs, a, ld, false, a, ld, true, w_->a_at, p.rank8, true});
        const int64_t at = g.gain + p.row;
        row_gains({w_->weight_norms + at, value_ + p.m, value_ + p.b, w_->w_at, w_->a_at, p.rank8, p.scale}, p.rows, w_->norms + at, w_->gains + at,
                  stream_.get());
    }
    gains_stale_[size_t(layer * kind_count + kind)] = false;
}

// Outputs are F32 until their gains have been applied: what a step changes of a gain is less than bf16 can tell apart.
void engine::forward_with_gains(const linear &l, bf16 *y, int64_t ld_y) {
    const group &g = plan_.layers[size_t(l.layer)].of[l.kind];
    refresh_gains(l.layer, l.kind);
    const bf16 *const w = group_weights(l.layer, l.kind);
    for (int64_t row = l.begin; row < l.end; row += gain_columns) {
        const int64_t columns = std::min(gain_columns, l.end - row);
        multiply({l.n, columns, g.ld(), l.x, g.ld(), false, w + row * g.ld(), g.ld(), true, w_->outputs, columns, true});
        scale_columns(w_->outputs, w_->gains + g.gain + row, l.n, columns, y + (row - l.begin), ld_y, stream_.get());
    }
}

// Adds to the gradients of magnitudes, and takes dy through the gains. The outputs before these are computed once more, from x and h.
void engine::gains_backward(const linear &l, bf16 *dy, int64_t ld_dy) {
    if (!plan_.dora) {
        return;
    }
    const group &g = plan_.layers[size_t(l.layer)].of[l.kind];
    for (const span &s : adapted(g, l.begin, l.end)) {
        for (int64_t row = s.begin; row < s.end; row += gain_columns) {
            const int64_t     columns = std::min(gain_columns, s.end - row);
            const bf16 *const w       = group_weights(l.layer, l.kind) + row * g.ld();
            bf16 *const       y       = reinterpret_cast<bf16 *>(w_->outputs);
            multiply({l.n, columns, g.ld(), l.x, g.ld(), false, w, g.ld(), true, y, columns, false});
            gain_backward(y, columns, w_->gains + g.gain + row, w_->norms + g.gain + row, l.n, columns, dy + (row - l.begin), ld_dy,
                          w_->gain_partials, gradient_ + s.m + (row - s.begin), stream_.get());
        }
    }
    mark("backward: gains");
}

} // namespace cft::cuda
