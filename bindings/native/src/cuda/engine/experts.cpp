// experts.cpp - the second half of a layer of a mixture of experts on a device; block_experts.cpp has it for the CPU. A router gives every row
// some experts and their shares; each expert is a frozen feed-forward half for the rows that have it.
//
// Rows are gathered expert by expert, without room between them: an expert's products cover a multiple of expert_tile rows, and what they write
// behind its own is written again by the next expert's. So experts go in ascending order, and what a product reads it never writes.
#include "engine.h"

#include "../../failure.h"

#include <algorithm>
#include <numeric>

namespace cft::cuda {
namespace {

constexpr int64_t widenings = 8; // a layer's experts are widened in so many parts, where that is not done once

int64_t expert_elements(const hyperparameters &hp) { return int64_t(3) * hp.n_ff * hp.n_embd; }

} // namespace

// ---- memory

void plan_experts(plan &p) {
    const hyperparameters &hp = p.model->hp;
    if (hp.n_expert > 0) {
        p.expert_places     = p.t * hp.n_expert_used + expert_tile;
        p.experts8          = (hp.n_expert + 7) / 8 * 8;
        p.experts_at_a_time = p.resident() ? hp.n_expert : (hp.n_expert + widenings - 1) / widenings;
    }
}

expert_rows place_experts(const plan &p, carver &from) {
    const hyperparameters &hp = p.model->hp;
    expert_rows            e;
    if (hp.n_expert > 0) {
        const int64_t pairs = p.t * hp.n_expert_used;
        e.n_expert = hp.n_expert, e.n_used = hp.n_expert_used;
        e.expert = from.take<int32_t>(pairs);
        e.share  = from.take<float>(pairs);
        e.place  = from.take<int32_t>(pairs);
        e.row    = from.take<int32_t>(pairs);
        e.weight = from.take<float>(pairs);
        e.count  = from.take<int32_t>(hp.n_expert);
        e.n      = p.t;
    }
    return e;
}

expert_space::expert_space(const plan &p, carver &from) {
    const hyperparameters &hp = p.model->hp;
    rows     = from.take<bf16>(p.expert_places * hp.n_embd);
    act      = from.take<bf16>(p.expert_places * hp.n_ff);
    logits   = from.take<float>(p.t * p.experts8);
    d_logits = from.take<bf16>(p.t * p.experts8);
    d_weight = from.take<float>(p.expert_places);
    parts    = from.take<int32_t>(expert_part_words(p.t * hp.n_expert_used, hp.n_expert));
    const int64_t n = p.resident() ? 0 : p.experts_at_a_time * hp.n_ff * hp.n_embd;
    gate_up  = n > 0 ? from.take<bf16>(2 * n) : nullptr;
    down     = n > 0 ? from.take<bf16>(n) : nullptr;
}

size_t router_bytes(const plan &p) {
    return p.experts8 > 0 ? size_t(p.experts8 * p.model->hp.n_embd) * sizeof(bf16) + 256 : 0;
}

size_t widened_expert_bytes(const plan &p) { return size_t(p.model->hp.n_expert) * size_t(expert_elements(p.model->hp)) * sizeof(bf16); }

double expert_flops(const plan &p, bool gate_up_only) {
    const hyperparameters &hp = p.model->hp;
    return 2.0 * (gate_up_only ? 2 : 3) * double(hp.n_ff) * double(hp.n_embd) * double(hp.n_expert > 0 ? hp.n_expert_used : 0);
}

// An expert's rows of gates (or ups) are seen as one long row: half of what it has in `to`.
void widen_halves(const matrix &m, int64_t first, int64_t n, int64_t n_expert, bf16 *to, const stream &s) {
    const int64_t rows = m.rows / n_expert, columns = rows * m.columns;
    const size_t  bytes = m.row_bytes * size_t(rows);
    dequantize(m.type, m.data + size_t(first) * bytes, bytes, n, columns, to, 2 * columns, s.get());
}

// ---- a layer

// expert_run is neighbours whose weights are at hand, and their places.
struct engine::expert_run {
    int            first, end;
    int64_t        place, places;
    const int32_t *count;
    const bf16    *gate_up, *down; // of the first
};

// Who sees which row, from mid_norm. The host waits for the numbers.
void engine::choose(int layer, int64_t n) {
    const device_layer &w = weights_.layers[size_t(layer)];
    activations        &a = layers_[size_t(layer)];
    const int64_t       d = hp_.n_embd;
    a.experts.n           = n;
    multiply({n, plan_.experts8, d, a.mid_norm, d, false, w.router, d, true, w_->experts->logits, plan_.experts8, true});
    mark("products router");
    choose_experts(w_->experts->logits, plan_.experts8, a.experts, stream_.get());
    list_experts(a.experts, w_->experts->parts, stream_.get());
    int32_t *const counts = reinterpret_cast<int32_t *>(expert_counts_.data()) + int64_t(layer) * hp_.n_expert;
    to_host(counts, a.experts.count, size_t(hp_.n_expert) * sizeof(int32_t), stream_.get());
    stream_.wait();
    if (std::accumulate(counts, counts + hp_.n_expert, int64_t(0)) != a.experts.places()) { // they say how far products write
        throw failure(CFT_ERR_INTERNAL, "the experts of layer " + std::to_string(layer) + " have other numbers of rows than were chosen");
    }
    mark("choice of experts");
}

// Goes through the experts that have rows, as many at a time as can be widened.
void engine::each_run(int layer, const std::function<void(const expert_run &)> &body) {
    const int32_t *const counts = reinterpret_cast<const int32_t *>(expert_counts_.data()) + int64_t(layer) * hp_.n_expert;
    const device_layer  &w      = weights_.layers[size_t(layer)];
    expert_run           r{0, 0, 0, 0, counts, w.gate_up, w.down};
    while (r.end < hp_.n_expert) {
        r.first  = r.end;
        r.place += r.places;
        r.places = 0;
        while (r.end < hp_.n_expert && r.end - r.first < plan_.experts_at_a_time && (plan_.resident() || counts[r.end] > 0)) {
            r.places += counts[r.end++];
        }
        if (r.places == 0) {
            r.end = std::max(r.end, r.first + 1);
            continue;
        }
        if (!plan_.resident()) {
            widen_experts(layer, r);
        }
        body(r);
    }
}

void engine::widen_experts(int layer, expert_run &r) {
    const device_layer &w = weights_.layers[size_t(layer)];
    const int64_t       n = r.end - r.first;
    matrix              gates = w.gates, ups = w.ups, downs = w.downs;
    if (stage_) {
        size_t i = 0; // behind the groups'
        for (const std::vector<matrix> &group : w.sources) {
            i += group.size();
        }
        for (matrix *m : {&gates, &ups, &downs}) {
            m->data = stage_->await(layer, i++, stream_);
        }
    }
    expert_space &space = *w_->experts;
    widen_halves(gates, r.first, n, hp_.n_expert, space.gate_up, stream_);
    widen_halves(ups, r.first, n, hp_.n_expert, space.gate_up + int64_t(hp_.n_ff) * hp_.n_embd, stream_);
    dequantize(downs.type, downs.data + size_t(r.first) * size_t(hp_.n_embd) * downs.row_bytes, downs.row_bytes, n * hp_.n_embd, downs.columns, space.down,
               downs.columns, stream_.get());
    if (stage_) {
        stage_->release(layer, stream_);
    }
    r.gate_up = space.gate_up, r.down = space.down;
    mark("experts widened");
}

// A product of each expert's rows: `first` is that of the run's first, without rows; weights are `step` elements apart.
void engine::multiply_each(const expert_run &r, product first, int64_t step) {
    for (int e = r.first; e < r.end; e++) {
        const int64_t n = r.count[e];
        first.m         = (n + expert_tile - 1) / expert_tile * expert_tile;
        if (n > 0) {
            multiply(first);
        }
        first.a += n * first.ld_a;
        first.b += step;
        first.c = static_cast<bf16 *>(first.c) + n * first.ld_c;
    }
}

// Gates and ups of a run, from mid_norm.
void engine::gate_up_of_experts(int layer, const expert_run &r) {
    const activations &a = layers_[size_t(layer)];
    const int64_t      d = hp_.n_embd, ff = hp_.n_ff;
    bf16 *const        rows = w_->experts->rows + r.place * d;
    gather<bf16, bf16>(a.mid_norm, d, a.experts.row + r.place, r.places, d, rows, d, stream_.get());
    mark("rows of experts");
    multiply_each(r, {0, 2 * ff, d, rows, d, false, r.gate_up, d, true, a.gate_up + r.place * 2 * ff, 2 * ff, false}, 2 * ff * d);
    mark("products experts' gate_up");
}

void engine::feed_experts(int layer, int64_t n, bool again) {
    const activations &a = layers_[size_t(layer)];
    const int64_t      d = hp_.n_embd, ff = hp_.n_ff;
    const bool         gelu = hp_.fam->has(cft::gelu);
    if (!again) {
        choose(layer, n);
    }
    each_run(layer, [&](const expert_run &r) {
        gate_up_of_experts(layer, r);
        if (again) {
            return;
        }
        bf16 *const gates = a.gate_up + r.place * 2 * ff, *const act = w_->experts->act + r.place * ff;
        gated(gelu, gates, 2 * ff, gates + ff, 2 * ff, r.places, ff, act, ff, stream_.get());
        mark("gated");
        multiply_each(r, {0, d, ff, act, ff, false, r.down, ff, true, w_->experts->rows + r.place * d, d, false}, d * ff);
        mark("products experts' down");
    });
    if (!again) {
        sum_experts(w_->experts->rows, a.experts, true, false, d, w_->delta, d, stream_.get());
        mark("rows of experts");
    }
}

// With y = sum of share_e * down_e(act_e): the gradient of a share is d . down_e(act_e) = (d down_e) . act_e, so that an expert's output
// need not be kept.
void engine::feed_experts_backward(int layer, int64_t n, bool again) {
    const activations &a = layers_[size_t(layer)];
    expert_space      &space = *w_->experts;
    const int64_t      d = hp_.n_embd, ff = hp_.n_ff;
    each_run(layer, [&](const expert_run &r) {
        bf16 *const rows = space.rows + r.place * d, *const gates = a.gate_up + r.place * 2 * ff, *const d_act = space.act + r.place * ff;
        if (again) {
            gate_up_of_experts(layer, r);
        }
        gather<bf16, bf16>(dy(), w_->ld_dy, a.experts.row + r.place, r.places, d, rows, d, stream_.get());
        mark("backward: rows of experts");
        multiply_each(r, {0, ff, d, rows, d, false, r.down, ff, false, d_act, ff, false}, d * ff);
        mark("backward: products experts' down");
        gated_experts_backward(hp_.fam->has(cft::gelu), d_act, a.experts.weight + r.place, r.places, ff, gates, space.d_weight + r.place, stream_.get());
        mark("backward: gated");
        multiply_each(r, {0, d, 2 * ff, gates, 2 * ff, false, r.gate_up, d, false, rows, d, false}, 2 * ff * d);
        mark("backward: products experts' gate_up");
    });
    choose_experts_backward(a.experts, space.d_weight, plan_.experts8, space.d_logits, stream_.get());
    multiply({n, d, plan_.experts8, space.d_logits, plan_.experts8, false, weights_.layers[size_t(layer)].router, d, false, w_->d_norm, d, false});
    mark("backward: products router");
    sum_experts(space.rows, a.experts, false, true, d, w_->d_norm, d, stream_.get());
    mark("backward: rows of experts");
}

} // namespace cft::cuda
