// linear.cpp - linear maps with adapters; plan.h says how a group lies in memory.
#include "engine.h"

#include "../../failure.h"

#include <algorithm>

namespace cft::cuda {

// w of a group. Where weights are not widened once, one layer's groups of a kind are held widened at a time.
const bf16 *engine::group_weights(int layer, int kind) {
    const device_layer &d = weights_.layers[size_t(layer)];
    if (d.w[kind]) {
        return d.w[kind];
    }
    const group &g  = plan_.layers[size_t(layer)].of[kind];
    bf16 *const  to = w_->scratch[kind];
    if (held_[kind] != layer) {
        size_t i = 0; // in the layer
        for (int before = 0; before < kind; before++) {
            i += d.sources[before].size();
        }
        int64_t row = 0;
        for (const matrix &m : d.sources[kind]) {
            const char *const data = stage_ ? stage_->await(layer, i++, stream_) : m.data;
            dequantize(m.type, data, m.row_bytes, m.rows, m.columns, to + row * g.ld(), g.ld(), stream_.get());
            row += m.rows;
        }
        if (stage_) {
            stage_->release(layer, stream_);
        }
        if (d.n_copies[kind] > 0) {
            copy_adapters(value_, w_->copies + d.first_copy[kind], d.n_copies[kind], max_copy_, stream_.get());
        }
        held_[kind] = layer;
    }
    return to;
}

void engine::comes_next(int layer) {
    if (stage_ && layer >= 0 && layer < hp_.n_layer) {
        stage_->fetch(layer);
    }
}

// h = x Aᵀ behind each row of x. With dropout, each module has its own mask of x.
void engine::adapter_inputs(const linear &l, const cft::dropout &drop) {
    const group &g = plan_.layers[size_t(l.layer)].of[l.kind];
    if (g.columns == 0) {
        return;
    }
    const bf16 *const a = group_weights(l.layer, l.kind) + g.outputs * g.ld();
    if (drop.probability <= 0) {
        multiply({l.n, g.columns, g.inputs, l.x, g.ld(), false, a, g.ld(), true, l.x + g.inputs, g.ld(), false});
        return;
    }
    for (const part &p : g.parts) {
        dropout(drop, p.module, l.x, g.ld(), nullptr, l.n, g.inputs, false, w_->masked, g.inputs, stream_.get());
        multiply({l.n, p.rank8, g.inputs, w_->masked, g.inputs, false, a + p.column * g.ld(), g.ld(), true, l.x + g.inputs + p.column,
                  g.ld(), false});
    }
}

// Where a layer keeps h of down apart from act: to where it is kept, or back behind act, which will be made again.
void engine::move_h(const linear &down, bool aside) {
    if (bf16 *const kept = layers_[size_t(down.layer)].h) {
        const group &g = plan_.layers[size_t(down.layer)].of[kind_down];
        bf16 *const  behind = down.x + g.inputs;
        gather(aside ? behind : kept, aside ? g.ld() : g.columns, nullptr, down.n, g.columns, aside ? kept : behind, aside ? g.columns : g.ld(), stream_.get());
    }
}

void engine::linear_forward(const linear &l, const cft::dropout &drop, bf16 *y, int64_t ld_y, bool only_inputs) {
    adapter_inputs(l, drop);
    if (l.kind == kind_down) {
        move_h(l, true);
    }
    mark("adapters: h");
    if (!only_inputs) {
        linear_outputs(l, y, ld_y);
    }
}

// y from x, with h behind.
void engine::linear_outputs(const linear &l, bf16 *y, int64_t ld_y) {
    const group &g = plan_.layers[size_t(l.layer)].of[l.kind];
    if (plan_.dora && !g.parts.empty()) {
        forward_with_gains(l, y, ld_y);
    } else {
        multiply({l.n, l.end - l.begin, g.ld(), l.x, g.ld(), false, group_weights(l.layer, l.kind) + l.begin * g.ld(), g.ld(), true, y, ld_y, false});
    }
}

// u = dy s B behind each row of dy.
void engine::adapter_outputs(const linear &l, bf16 *dy, int64_t ld_dy) {
    const group  &g     = plan_.layers[size_t(l.layer)].of[l.kind];
    const int64_t width = l.end - l.begin;
    if (g.columns > 0) {
        const bf16 *const b = group_weights(l.layer, l.kind) + l.begin * g.ld() + g.inputs;
        multiply({l.n, g.columns, width, dy, ld_dy, false, b, g.ld(), false, dy + width, ld_dy, false});
    }
}

// Whether the pass that makes dy of gate and up takes their products along: both have adapters of ranks that it takes, and nothing (DoRA) comes between. Of
// all uses of the group, then, so that the bits do not depend on what is kept.
bool engine::gated_in_one_pass(const group &gate_up) const {
    const auto fits = [](const part &p) { return p.rank8 <= widest_gated_adapter; };
    return gated_pass_ && !plan_.dora && gate_up.parts.size() == 2 && std::all_of(gate_up.parts.begin(), gate_up.parts.end(), fits);
}

// Adds to the gradients of A, from x and u, and of B, from h and dy.
void engine::adapter_gradient(const linear &l, const cft::dropout &drop, const bf16 *dy, int64_t ld_dy, gradients_of of, const stream &on) {
    const group  &g  = plan_.layers[size_t(l.layer)].of[l.kind];
    const int64_t ld = g.ld();
    const bf16   *u  = dy + (l.end - l.begin);
    const auto    gradient_a = [&](int64_t column, int64_t columns, int64_t at, const bf16 *x, int64_t ld_x) {
        side_products_->run({columns, g.inputs, l.n, u + column, ld_dy, true, x, ld_x, false, gradient_ + at, g.inputs, true, 1, 1}, on.get());
    };
    // Columns of h that these outputs have a part in: neighbours.
    int64_t first = g.columns, last = 0;
    for (const part &p : g.parts) {
        const int64_t begin = std::max(l.begin, p.row), end = std::min(l.end, p.row + p.rows);
        if (begin >= end) {
            continue;
        }
        first = std::min(first, p.column);
        last  = std::max(last, p.column + p.rank8);
        if (of.b) {
            side_products_->run({end - begin, p.rank8, l.n, dy + (begin - l.begin), ld_dy, true, l.x + g.inputs + p.column, ld, false,
                                 gradient_ + p.b + (begin - p.row) * p.rank8, p.rank8, true, p.scale, 1}, on.get());
        }
        if (of.a && drop.probability > 0) {
            dropout(drop, p.module, l.x, ld, nullptr, l.n, g.inputs, false, w_->masked, g.inputs, on.get());
            gradient_a(p.column, p.rank8, p.a, w_->masked, g.inputs);
        }
    }
    if (of.a && first < last && drop.probability <= 0) {
        gradient_a(first, last - first, g.a + first * g.inputs, l.x, ld);
    }
}

// dx [n] rows, ld_dx apart; it may lie where x does.
void engine::input_gradient(const linear &l, const cft::dropout &drop, const bf16 *dy, int64_t ld_dy, bf16 *dx, int64_t ld_dx) {
    const group  &g     = plan_.layers[size_t(l.layer)].of[l.kind];
    const int64_t ld    = g.ld(), width = l.end - l.begin;
    const bool    whole = width == g.outputs, masked = drop.probability > 0;
    const bf16 *const w = group_weights(l.layer, l.kind), *const a = w + g.outputs * ld, *const u = dy + width;
    const int64_t     k = width + (whole && !masked ? g.columns : 0);
    multiply({l.n, g.inputs, k, dy, ld_dy, false, w + l.begin * ld, ld, false, dx, ld_dx, false});
    if (!whole && !masked && g.columns > 0) {
        multiply({l.n, g.inputs, g.columns, u, ld_dy, false, a, ld, false, dx, ld_dx, false, 1, 1});
    }
    for (const part &p : g.parts) {
        if (masked && p.row < l.end && p.row + p.rows > l.begin) {
            multiply({l.n, g.inputs, p.rank8, u + p.column, ld_dy, false, a + p.column * ld, ld, false, w_->masked_d, g.inputs, false});
            dropout(drop, p.module, w_->masked_d, g.inputs, nullptr, l.n, g.inputs, true, dx, ld_dx, stream_.get());
        }
    }
}

// What was put beside the product of dx is done before anything comes that writes what it reads: dy and x. Between two linear_backward, where that is waited for,
// nothing does: what the former reads is neither the stream's gradient nor what the next norm, gated unit or attention leaves.
void engine::join_side() {
    if (side_busy_) {
        stream_.wait_for(gradient_done_);
        side_busy_ = false;
    }
}

// A backward pass that failed may have left something under way.
void engine::settle_side() {
    if (side_busy_) {
        side_.wait_to_end();
        side_busy_ = false;
    }
}

void engine::linear_backward(const linear &l, const cft::dropout &drop, bf16 *dy, int64_t ld_dy, bf16 *dx, int64_t ld_dx, bool no_x,
                             const std::function<void()> &onward, bool passed) {
    join_side();
    gains_backward(l, dy, ld_dy);
    if (!passed) {
        adapter_outputs(l, dy, ld_dy);
    }
    mark("adapters: u");
    const gradients_of now = {!no_x, !passed};
    // Nothing that one writes is the other's: where dx goes over x, x is gone, and h lies behind it.
    const bool with_dx = beside_ && (now.a || now.b) && dx && (no_x || dx != l.x) && drop.probability <= 0;
    if (with_dx) {
        u_ready_.record(stream_);
        side_.wait_for(u_ready_);
    } else {
        adapter_gradient(l, drop, dy, ld_dy, now, stream_);
        mark("adapters: gradient");
    }
    if (dx) {
        input_gradient(l, drop, dy, ld_dy, dx, ld_dx);
    }
    if (with_dx) { // after the large product: what is bound by memory fills where that leaves multiprocessors idle
        side_busy_ = true;
        adapter_gradient(l, drop, dy, ld_dy, now, side_);
        gradient_done_.record(side_);
    }
    if (onward) {
        onward();
    }
    if (no_x) {
        join_side(); // whose workspace is the same
        adapter_gradient(l, drop, dy, ld_dy, {true, false}, stream_);
        mark("adapters: gradient");
    }
}

} // namespace cft::cuda
