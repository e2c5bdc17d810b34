// engine.cpp - see engine.h: a trainer's buffers, a pack's way, the optimizer, and the adapter's tensors.
#include "engine.h"

#include "../../failure.h"

#include <algorithm>
#include <cstring>
#include <system_error>
#include <thread>

namespace cft::cuda {

engine::engine(const plan &p, int device, uint64_t lockable)
    : plan_(p), hp_(p.model->hp), weights_(plan_, stream_), memory_(arena_bytes()), staging_(plan_.staging_words * sizeof(int32_t) + plan_.embedding_bytes()), loss_sum_(sizeof(double)),
      expert_counts_(size_t(hp_.n_layer) * size_t(hp_.n_expert) * sizeof(int32_t)),
      heads_in_pairs_(!asks_for("CFT_CUDA_ATTENTION", "single")), turns_inside_(!asks_for("CFT_CUDA_ATTENTION", "apart")), gated_pass_(!asks_for("CFT_CUDA_ADAPTERS", "products")),
      beside_(!asks_for("CFT_CUDA_ADAPTERS", "alone")), device_(device) {
    carver from(memory_.data());
    layers_   = place_activations(plan_, from);
    w_        = std::make_unique<workspace>(plan_, from);
    loss_     = std::make_unique<loss_space>(plan_, from);
    float **const slots[] = {&value_, &gradient_, &moment1_, &moment2_};
    for (float **slot : slots) {
        *slot = from.take<float>(plan_.n_values);
        zero(*slot, size_t(plan_.n_values) * sizeof(float), stream_.get());
    }
    products_      = make_products(w_->products, products_workspace_bytes);
    side_products_ = make_products(w_->side_products, side_workspace_bytes);
    for (int kind = 0; kind < kind_count; kind++) {
        const group &g = plan_.widest.of[kind];
        held_[kind]    = -1;
        if (w_->scratch[kind]) { // what no copy of an adapter writes must be 0
            zero(w_->scratch[kind], size_t(g.outputs + g.columns) * size_t(g.ld()) * sizeof(bf16), stream_.get());
        }
    }
    place_copies();
    if (plan_.dora) { // of outputs without an adapter they stay 1
        const std::vector<float> ones(size_t(plan_.n_gains), 1.0f);
        to_device(w_->gains, ones.data(), ones.size() * sizeof(float), stream_.get());
        stream_.wait();
    }
    if (plan_.n_offloaded > 0) {
        offload_ = std::make_unique<offload>(plan_, layers_);
    }
    if (plan_.place == weight_place::host) {
        stage_ = std::make_unique<stage>(plan_, w_->stage);
        for (size_t l = 0; l < plan_.layers.size(); l++) {
            for (const std::vector<matrix> &group : weights_.layers[l].sources) {
                for (const matrix &m : group) {
                    stage_->add(l, m);
                }
            }
            for (const matrix *m : {&weights_.layers[l].gates, &weights_.layers[l].ups, &weights_.layers[l].downs}) {
                if (m->data) {
                    stage_->add(l, *m);
                }
            }
        }
        stage_->lock(lockable);
    }
    const rope_sets &rope   = p.model->rope;
    const rope_set  &global = *plan_.rope;
    to_device(w_->frequencies, global.frequencies.data(), global.frequencies.size() * sizeof(float), stream_.get());
    if (!rope.local.frequencies.empty()) {
        to_device(w_->frequencies_local, rope.local.frequencies.data(), rope.local.frequencies.size() * sizeof(float), stream_.get());
    }
    amplitude_       = global.amplitude;
    amplitude_local_ = rope.local.amplitude;
    stream_.wait();
}

// What it holds goes on its device, whichever thread lets it go.
engine::~engine() {
    try {
        use_device(device_);
    } catch (const failure &) { // a device that is lost has nothing to give back
    }
    side_.wait_to_end(), stream_.wait_to_end(); // after a failure work may be under way, to and from memory that is given back next
}

std::string engine::remark() const {
    return stage_ && !stage_->not_locked().empty() ? "the weights on the host are not locked in its memory, so that each copy waits for the host (" + stage_->not_locked() + ")" : "";
}

size_t engine::arena_bytes() const {
    carver counted(nullptr);
    place_activations(plan_, counted);
    workspace(plan_, counted);
    loss_space(plan_, counted);
    for (int i = 0; i < 4; i++) {
        counted.take<float>(plan_.n_values);
    }
    return counted.used();
}

// Which part of the F32 values goes where in w, layer by layer and group by group.
void engine::place_copies() {
    std::vector<adapter_copy> copies;
    for (size_t l = 0; l < plan_.layers.size(); l++) {
        for (int kind = 0; kind < kind_count; kind++) {
            const group  &g = plan_.layers[l].of[kind];
            device_layer &d = weights_.layers[l];
            bf16 *const   w = d.w[kind] ? d.w[kind] : w_->scratch[kind];
            d.first_copy[kind] = int(copies.size());
            if (g.columns > 0) {
                copies.push_back({g.a, g.columns, g.inputs, w + g.outputs * g.ld(), g.ld(), 1.0f});
            }
            for (const part &p : g.parts) {
                copies.push_back({p.b, p.rows, p.rank8, w + p.row * g.ld() + g.inputs + p.column, g.ld(), p.scale});
                if (!plan_.resident() && !plan_.alike[kind]) { // the layer that was there has left something above and below
                    const auto zeros = [&](int64_t row, int64_t rows) {
                        if (rows > 0) {
                            copies.push_back({-1, rows, p.rank8, w + row * g.ld() + g.inputs + p.column, g.ld(), 0});
                        }
                    };
                    zeros(0, p.row);
                    zeros(p.row + p.rows, g.outputs - p.row - p.rows);
                }
            }
            d.n_copies[kind] = int(copies.size()) - d.first_copy[kind];
        }
    }
    for (const adapter_copy &c : copies) {
        max_copy_ = std::max(max_copy_, c.rows * c.columns);
    }
    n_copies_ = int(copies.size());
    place_head_copies(copies);
    if (!copies.empty()) { // of an adapter of the embedding alone there are none
        to_device(w_->copies, copies.data(), copies.size() * sizeof(adapter_copy), stream_.get());
        stream_.wait();
    }
}

void engine::refresh_adapters() {
    if (!stale_) {
        return;
    }
    if (plan_.resident() && n_copies_ > 0) {
        copy_adapters(value_, w_->copies, n_copies_, max_copy_, stream_.get());
    }
    refresh_ends();
    std::fill(held_, held_ + kind_count, -1);
    gains_stale_.assign(plan_.dora ? plan_.layers.size() * kind_count : 0, true);
    stale_ = false;
}

void engine::stop_if(std::atomic<bool> &cancelled) {
    if (cancelled.exchange(false)) {
        join_side();
        stream_.wait();
        throw failure(CFT_ERR_CANCELLED, "cancelled");
    }
}

// ---- a pack

// Brings the pack's numbers to the device in one copy.
journey engine::begin(const device_pack &p, bool backward) {
    const int64_t t = p.t, n = int64_t(p.rows.size());
    if (t > plan_.t || n > plan_.n) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "the pack is longer, or has more rows, than the trainer was made for");
    }
    int32_t *const host = reinterpret_cast<int32_t *>(staging_.data());
    size_t         used = 0;
    const auto     put  = [&](const void *words, size_t count) {
        const size_t at = used;
        if (at + count > plan_.staging_words) {
            throw failure(CFT_ERR_INTERNAL, "a pack's numbers take more room than was planned");
        }
        if (count > 0) {
            std::memcpy(host + at, words, count * sizeof(int32_t));
        }
        used += (count + 3) / 4 * 4;
        return w_->numbers + at;
    };
    journey j{};
    j.t         = t;
    j.n         = n;
    j.backward  = backward;
    j.drop      = p.drop;
    j.tokens    = put(p.tokens, size_t(t));
    j.positions = put(p.positions, size_t(t));
    j.rows      = put(p.rows.data(), size_t(n));
    j.targets   = put(p.targets.data(), p.targets.size());
    j.weights   = reinterpret_cast<const float *>(put(p.weights.data(), p.weights.size()));
    sort_tokens(p, j, put);
    const auto view = [&](const int32_t *queries, int64_t n_queries, int window) {
        const attention_lists lists(p.visible_until, t, queries, n_queries, p.positions, window, plan_.stores_scores);
        j.views.emplace_back(lists, put(lists.words().data(), lists.words().size()));
    };
    view(nullptr, t, 0);
    view(p.rows.data(), n, 0);
    if (hp_.window > 0 && *std::max_element(p.positions, p.positions + t) >= hp_.window) {
        view(nullptr, t, hp_.window);
        view(p.rows.data(), n, hp_.window);
    }
    to_device(w_->numbers, host, used * sizeof(int32_t), stream_.get());
    bring_embedding(p);
    const int half = hp_.n_rot / 2;
    rope_table(j.positions, t, w_->frequencies, half, amplitude_, w_->rope, stream_.get());
    if (w_->rope_local != w_->rope) {
        rope_table(j.positions, t, w_->frequencies_local, half, amplitude_local_, w_->rope_local, stream_.get());
    }
    refresh_adapters();
    mark("a pack's beginning");
    return j;
}

// The pack's rows of a token embedding that stays on the host.
void engine::bring_embedding(const device_pack &p) {
    if (!plan_.embedding_stays) {
        return;
    }
    const matrix &e    = weights_.token_embd;
    char *const   rows = staging_.data() + plan_.staging_words * sizeof(int32_t);
    const auto    copy = [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; i++) {
            std::memcpy(rows + size_t(i) * e.row_bytes, e.data + size_t(p.tokens[i]) * e.row_bytes, e.row_bytes);
        }
    };
    // In a step's first pack the device waits meanwhile: one thread copies some 6 GB/s, so 4,096 rows of 8 KiB take it 5 ms.
    constexpr int64_t        at_least = int64_t(2) << 20; // bytes of a thread
    const int64_t            n_threads = std::clamp<int64_t>(p.t * int64_t(e.row_bytes) / at_least, 1, std::min(8u, std::max(1u, std::thread::hardware_concurrency())));
    std::vector<std::thread> threads;
    for (int64_t i = 1; i < n_threads; i++) {
        const int64_t begin = p.t * i / n_threads, end = p.t * (i + 1) / n_threads;
        try {
            threads.emplace_back(copy, begin, end);
        } catch (const std::system_error &) { // no more threads
            copy(begin, end);
        }
    }
    copy(0, p.t / n_threads);
    for (std::thread &t : threads) {
        t.join();
    }
    to_device(w_->embedding, rows, size_t(p.t) * e.row_bytes, stream_.get());
}

void engine::forward(const journey &j, std::atomic<bool> &cancelled) {
    const matrix &e = weights_.token_embd;
    const bool    brought = plan_.embedding_stays;
    embed<float>(e.type, brought ? w_->embedding : e.data, e.row_bytes, brought ? nullptr : j.tokens, j.t, e.columns, hp_.embedding_scale, layers_[0].x, e.columns, stream_.get());
    embed_adapter(j);
    for (int layer = 0; layer < hp_.n_layer; layer++) {
        stop_if(cancelled);
        layer_forward(j, layer, layer > 0, false);
        comes_next(layer + 1);
    }
    final_norm(j);
}

// The normed rows that the head sees, in head_x.
void engine::final_norm(const journey &j) {
    const activations &last = layers_.back();
    add_rmsnorm<float>({w_->rows_x, last.attn_add, ffn_add(last)}, nullptr, weights_.output_norm, j.n, hp_.n_embd, hp_.rms_eps, w_->head_x, plan_.head_ld(),
                       w_->final_rstd, stream_.get());
    head_inputs(j);
}

// Rows [row, row + n) of the head as bf16; those beyond the vocabulary are 0.
const bf16 *engine::head_rows(int64_t row, int64_t n) {
    if (weights_.head) {
        return weights_.head + row * plan_.head_ld();
    }
    const matrix &m    = weights_.output;
    const int64_t real = std::min(n, m.rows - row), ld = plan_.head_ld();
    dequantize(m.type, m.data + size_t(row) * m.row_bytes, m.row_bytes, real, m.columns, loss_->head, ld, stream_.get());
    zero(loss_->head + real * ld, size_t((n - real) * ld) * sizeof(bf16), stream_.get());
    if (plan_.head.rank > 0) {
        copy_adapters(value_, w_->copies + head_copies_ + 1 + row / plan_.head_rows, 1, real * plan_.head.rank8, stream_.get());
    }
    return loss_->head;
}

// Logits of n rows of head_x from `begin` on; with backward, their gradients' way back to those rows of d_norm.
void engine::head_products(const journey &j, int64_t begin, int64_t n, bool backward) {
    const int64_t     d = plan_.head_ld(), ld = plan_.vocab8;
    const bf16 *const x = w_->head_x + begin * d;
    for (int64_t row = 0; row < ld; row += plan_.head_rows) { // also where all of the head is there: the bits are the same
        const int64_t     rows = std::min(plan_.head_rows, ld - row);
        const bf16 *const w    = head_rows(row, rows);
        if (backward) {
            multiply({n, d, rows, reinterpret_cast<const bf16 *>(loss_->logits) + row, 2 * ld, false, w, d, false, loss_->dh, d, true, 1,
                      row > 0 ? 1.0f : 0.0f});
        } else {
            multiply({n, rows, d, x, d, false, w, d, true, loss_->logits + row, ld, true});
        }
    }
    if (backward && plan_.head.rank > 0) {
        head_gradient(j, begin, n);
    } else if (backward) {
        cast<float, bf16>(loss_->dh, 1, n * d, w_->d_norm + begin * d, stream_.get());
    }
}

// Leaves the sum in sums[0] and, for backward, in d the gradient at the last layer's output.
void engine::loss(const journey &j, bool backward, std::atomic<bool> &cancelled) {
    const int64_t ld = plan_.vocab8;
    for (int64_t begin = 0; begin < j.n; begin += plan_.loss_rows) {
        stop_if(cancelled);
        const int64_t n = std::min(plan_.loss_rows, j.n - begin);
        head_products(j, begin, n, false);
        mark("products head");
        cross_entropy<float>(loss_->logits, ld, n, hp_.n_vocab, ld, j.targets + begin, j.weights + begin, hp_.logit_cap, w_->losses + begin,
                             backward ? reinterpret_cast<bf16 *>(loss_->logits) : nullptr, 2 * ld, stream_.get());
        mark("cross entropy");
        if (backward) {
            head_products(j, begin, n, true);
            mark("backward: products head");
        }
    }
    sum(w_->losses, j.n, false, w_->sums, stream_.get());
    if (backward && plan_.lowest < hp_.n_layer) {
        into_stream({w_->head_x, plan_.head_ld(), weights_.output_norm, w_->final_rstd}, j.n, false);
    }
}

// The host waits for the loss, not for the way back: it prepares the next pack while the device is at that. staging_ is the host's again by then, and
// whatever needs the gradient comes later on the same stream.
double engine::run(const device_pack &pack, bool backward, std::atomic<bool> &cancelled) {
    use_device(device_);
    settle_side();
    profile_.begin(stream_);
    const journey j = begin(pack, backward);
    forward(j, cancelled);
    loss(j, backward, cancelled);
    double *const total = reinterpret_cast<double *>(loss_sum_.data());
    to_host(total, w_->sums, sizeof *total, stream_.get());
    loss_known_.record(stream_);
    if (backward) {
        for (int layer = hp_.n_layer - 1; layer >= plan_.lowest; layer--) {
            stop_if(cancelled);
            layer_backward(j, layer);
            if (layer > plan_.lowest) {
                comes_next(layer - 1);
            }
        }
        embed_adapter_backward(j);
        join_side();
    }
    loss_known_.wait();
    return *total;
}

void engine::logits(const device_pack &pack, float *out, std::atomic<bool> &cancelled) {
    use_device(device_);
    settle_side();
    const journey j = begin(pack, false);
    forward(j, cancelled);
    const size_t width = size_t(hp_.n_vocab) * sizeof(float);
    for (int64_t begin = 0; begin < j.n; begin += plan_.loss_rows) {
        const int64_t n = std::min(plan_.loss_rows, j.n - begin);
        head_products(j, begin, n, false);
        if (hp_.logit_cap > 0) {
            soft_cap<float>(loss_->logits, n * plan_.vocab8, hp_.logit_cap, stream_.get());
        }
        to_host_rows(out + begin * hp_.n_vocab, width, loss_->logits, size_t(plan_.vocab8) * sizeof(float), width, size_t(n), stream_.get());
    }
    stream_.wait();
}

// ---- optimizer and state

double engine::sum_of_squares() {
    use_device(device_);
    cft::cuda::sum_of_squares(gradient_, plan_.n_values, w_->partials, w_->sums, stream_.get());
    double total = 0;
    to_host(&total, w_->sums, sizeof total, stream_.get());
    stream_.wait();
    return total;
}

void engine::adamw(const adamw_step &step) {
    use_device(device_);
    const auto take = [&](const adamw_step &s, int64_t begin, int64_t end) {
        if (begin < end) {
            cft::cuda::adamw(s, nullptr, value_ + begin, gradient_ + begin, moment1_ + begin, moment2_ + begin, end - begin, stream_.get());
        }
    };
    adamw_step faster = step;
    faster.lr *= plan_.faster;
    take(step, 0, plan_.n_slow);
    take(faster, plan_.n_slow, plan_.n_values);
    stale_ = true;
    mark("optimizer"); // nobody waits: the host prepares the next pack meanwhile
}

void engine::discard() {
    use_device(device_);
    settle_side();
    zero(gradient_, size_t(plan_.n_values) * sizeof(float), stream_.get());
}

const part &engine::part_of(int layer, int module, const group **of) const {
    for (const group &g : plan_.layers[size_t(layer)].of) {
        for (const part &p : g.parts) {
            if (p.module == module) {
                *of = &g;
                return p;
            }
        }
    }
    throw failure(CFT_ERR_INTERNAL, "the device has no such tensor");
}

engine::place engine::place_of(int layer, int module, adapter_tensor kind, cft_slot slot) const {
    float *const slots[] = {value_, gradient_, moment1_, moment2_};
    if (layer < 0) {
        const bool embedding = module == module_token_embd;
        const end &e         = embedding ? plan_.embedding : plan_.head;
        float *const at      = slots[slot] + (kind == matrix_a ? e.a : e.b);
        if (kind == matrix_a && !embedding) {
            return {at, e.rank, hp_.n_embd, hp_.n_embd};
        }
        return {at, embedding && kind == matrix_b ? hp_.n_embd : hp_.n_vocab, e.rank, e.rank8};
    }
    const group *g       = nullptr;
    const part  &p       = part_of(layer, module, &g);
    float *const from    = slots[slot];
    switch (kind) {
    case matrix_a: return {from + p.a, p.rank, g->inputs, g->inputs};
    case matrix_b: return {from + p.b, p.rows, p.rank, p.rank8};
    case magnitude: return {from + p.m, 1, p.rows, p.rows};
    }
    throw failure(CFT_ERR_INTERNAL, "the device has no such tensor");
}

void engine::write_weight_norms(int layer, int module, const float *norms) {
    use_device(device_);
    const group *g = nullptr;
    const part  &p = part_of(layer, module, &g);
    to_device(w_->weight_norms + g->gain + p.row, norms, size_t(p.rows) * sizeof(float), stream_.get());
    stream_.wait();
}

void engine::read(int layer, int module, adapter_tensor kind, cft_slot slot, float *out) {
    use_device(device_);
    const place  p     = place_of(layer, module, kind, slot);
    const size_t width = size_t(p.columns) * sizeof(float);
    to_host_rows(out, width, p.at, size_t(p.pitch) * sizeof(float), width, size_t(p.rows), stream_.get());
    stream_.wait();
}

void engine::write(int layer, int module, adapter_tensor kind, cft_slot slot, const float *data) {
    use_device(device_);
    const place  p     = place_of(layer, module, kind, slot);
    const size_t width = size_t(p.columns) * sizeof(float);
    to_device_rows(p.at, size_t(p.pitch) * sizeof(float), data, width, width, size_t(p.rows), stream_.get());
    stream_.wait();
    stale_ = true;
}

} // namespace cft::cuda
