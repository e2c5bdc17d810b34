// engine_experts.cpp - the second half of a layer of a mixture of experts, see ../block_experts.cpp: a router gives every row some experts
// and their shares; each expert is a feed-forward half of its own, frozen, for the rows that have it.
//
// Which rows an expert has is known on the host only, so such a layer falls into graphs: one as far as the router, whose logits come
// over; one for each expert that has rows; and backward, one for the rest of the layer. No expert's graph takes more memory
// than that of one that has all rows, which is rehearsed.
#include "layer_graph.h"

#include "../cpu/ops.h"

namespace cft::portable {
namespace {

// routed is a layer's choice, expert by expert; the rows of each begin at a multiple of aligned_rows.
struct routed {
    struct part {
        int     expert;
        int64_t at, n;
    };
    std::vector<part>    parts; // of experts that have rows
    std::vector<int32_t> rows;
    std::vector<float>   shares;
    std::vector<size_t>  places; // of each pair of the choice

    routed(const expert_choice &choice, int n_expert) : places(choice.expert.size()) {
        std::vector<std::vector<size_t>> pairs(static_cast<size_t>(n_expert));
        for (size_t i = 0; i < choice.expert.size(); i++) {
            pairs[size_t(choice.expert[i])].push_back(i);
        }
        for (int e = 0; e < n_expert; e++) {
            const std::vector<size_t> &mine = pairs[size_t(e)];
            if (mine.empty()) {
                continue;
            }
            const size_t at = (rows.size() + aligned_rows - 1) / aligned_rows * aligned_rows;
            rows.resize(at), shares.resize(at);
            parts.push_back({e, int64_t(at), int64_t(mine.size())});
            for (size_t i : mine) {
                places[i] = rows.size();
                rows.push_back(int32_t(i / size_t(choice.n_used)));
                shares.push_back(choice.share[i]);
            }
        }
    }
};

enum expert_matrix { expert_gate, expert_up, expert_down };

} // namespace

// expert_graph is one expert's way for its rows, as far as the gated unit.
struct engine::expert_graph {
    engine                           &e;
    const std::array<ggml_tensor *, 3> &weights;
    const routed::part               &part;
    const bool                        gelu;
    graph                             g;
    ggml_context *const               c;
    ggml_tensor                      *rows, *shares, *w_gate, *w_up, *gate, *up, *act;

    expert_graph(engine &engine_, int layer, const routed::part &p)
        : e(engine_), weights(e.layers_[size_t(layer)].experts[size_t(p.expert)]), part(p), gelu(e.hp_.fam->has(cft::gelu)), g(128), c(g.ctx()) {
        rows   = e.slice(c, e.mixture_.rows, part.at, part.n);
        shares = of_part(e.mixture_.shares);
        ggml_tensor *const x = ggml_get_rows(c, e.mixture_.x, rows);
        w_gate = wide(expert_gate);
        w_up   = wide(expert_up);
        gate   = product(c, w_gate, x);
        up     = product(c, w_up, x);
        act    = gated(c, gelu, gate, up);
    }
    ggml_tensor *wide(expert_matrix m) const { return widen(c, weights[m], e.iota_, 0, weights[m]->ne[1]); }
    ggml_tensor *of_part(ggml_tensor *x) const { return ggml_view_2d(c, x, 1, part.n, x->nb[1], size_t(part.at) * x->nb[1]); }
    // Adds to the expert's rows of x, each of which it has once.
    void add_to(ggml_tensor *x, ggml_tensor *more) { g.add(add_to_rows(c, x, rows, more)); }

    void forward(ggml_tensor *x_next) { add_to(x_next, ggml_mul(c, product(c, wide(expert_down), act), shares)); }
    // With y = sum of share_e * down_e(act_e): the gradient of a share is d . down_e(act_e) = (d down_e) . act_e.
    void backward(ggml_tensor *d) {
        ggml_tensor *const d_act = product(c, transposed(c, wide(expert_down)), ggml_get_rows(c, d, rows));
        g.add(ggml_cpy(c, ggml_sum_rows(c, ggml_mul(c, d_act, act)), of_part(e.mixture_.d_shares)));
        ggml_tensor *d_gate, *d_up;
        gated_backward(c, gelu, ggml_mul(c, d_act, shares), gate, up, &d_gate, &d_up);
        add_to(e.mixture_.d_x, ggml_add(c, product(c, transposed(c, w_gate), d_gate), product(c, transposed(c, w_up), d_up)));
    }
};

void engine::place_experts(const layer_weights &w, layer_tensors &l) {
    l.router = place_matrix(w.router);
    for (int64_t i = 0; i < hp_.n_expert; i++) { // tensors of their own: each begins where the device likes them to
        l.experts.push_back({place_matrix(w.gates.slice(i * hp_.n_ff, hp_.n_ff)), place_matrix(w.ups.slice(i * hp_.n_ff, hp_.n_ff)),
                             place_matrix(w.downs.slice(i * hp_.n_embd, hp_.n_embd))});
    }
}

void engine::place_mixture() {
    if (hp_.n_expert == 0) {
        return;
    }
    const int64_t places = max_t_ * hp_.n_expert_used + aligned_rows * hp_.n_expert;
    mixture_.x        = experts_.tensor(GGML_TYPE_F32, hp_.n_embd, max_t_);
    mixture_.d_x      = experts_.tensor(GGML_TYPE_F32, hp_.n_embd, max_t_);
    mixture_.router   = experts_.tensor(GGML_TYPE_F32, hp_.n_expert, max_t_);
    mixture_.d_router = experts_.tensor(GGML_TYPE_F32, hp_.n_expert, max_t_);
    mixture_.rows     = experts_.tensor(GGML_TYPE_I32, places);
    mixture_.shares   = experts_.tensor(GGML_TYPE_F32, 1, places);
    mixture_.d_shares = experts_.tensor(GGML_TYPE_F32, 1, places);
    mixture_.choices.resize(size_t(hp_.n_layer));
    host_ = std::make_unique<cpu::cpu_ops>(1, hp_.attention(), 1);
}

// The choice of n rows, by the router's logits. Without computing, every row has the same experts: none can have more rows.
void engine::choose(int layer, int64_t n) {
    expert_choice &choice = mixture_.choices[size_t(layer)];
    if (!computes()) {
        choice = {hp_.n_expert_used, {}, std::vector<float>(size_t(n) * size_t(hp_.n_expert_used), 1.0f)};
        for (int64_t i = 0; i < n * hp_.n_expert_used; i++) {
            choice.expert.push_back(int32_t(i % hp_.n_expert_used));
        }
        return;
    }
    std::vector<float> router(size_t(n) * size_t(hp_.n_expert));
    ggml_backend_tensor_get(mixture_.router, router.data(), 0, router.size() * sizeof(float));
    host_->softmax(router.data(), n, hp_.n_expert);
    host_->choose(router.data(), n, hp_.n_expert, hp_.n_expert_used, choice);
}

// The layer as far as its experts: leaves what they see in mixture_.x. Forward, the router's logits as well, and in `next` the residual
// stream that experts add to; backward (NULL), mixture_.d_x of zeros.
void engine::to_the_experts(const journey &j, int layer, ggml_tensor *next) {
    layer_graph l(*this, j, layer);
    l.to_the_experts();
    if (next) {
        l.g.add(ggml_cpy(l.c, l.mid, slice(l.c, next, 0, l.n)));
        l.g.add(ggml_cpy(l.c, product(l.c, widen(l.c, l.on.router, iota_, 0, hp_.n_expert), l.in_gate_up.x), slice(l.c, mixture_.router, 0, l.n)));
    } else {
        l.g.add(ggml_cpy(l.c, zeros_like(l.c, l.in_gate_up.x), slice(l.c, mixture_.d_x, 0, l.n)));
    }
    l.g.add(ggml_cpy(l.c, l.in_gate_up.x, slice(l.c, mixture_.x, 0, l.n)));
    machine_.run(l.g);
}

void engine::experts_forward(const journey &j, int layer, std::atomic<bool> &cancelled) {
    ggml_tensor *const next = x_[size_t(layer) + 1];
    to_the_experts(j, layer, next);
    choose(layer, layer == hp_.n_layer - 1 ? j.n : j.t);
    const routed r(mixture_.choices[size_t(layer)], hp_.n_expert);
    set(mixture_.rows, r.rows.data(), r.rows.size() * sizeof(int32_t));
    set(mixture_.shares, r.shares.data(), r.shares.size() * sizeof(float));
    for (const routed::part &part : r.parts) {
        stop_if(cancelled);
        expert_graph expert(*this, layer, part);
        expert.forward(next);
        machine_.run(expert.g);
    }
}

// Leaves in mixture_.d_x the gradient at the normed rows by way of the experts, and in mixture_.d_router that at the router's logits; the
// layer's choice is that of the forward pass.
void engine::experts_backward(const journey &j, int layer, std::atomic<bool> &cancelled) {
    const expert_choice &choice = mixture_.choices[size_t(layer)];
    const int64_t        n      = layer == hp_.n_layer - 1 ? j.n : j.t;
    to_the_experts(j, layer, nullptr);
    const routed r(choice, hp_.n_expert);
    set(mixture_.rows, r.rows.data(), r.rows.size() * sizeof(int32_t));
    set(mixture_.shares, r.shares.data(), r.shares.size() * sizeof(float));
    for (const routed::part &part : r.parts) {
        stop_if(cancelled);
        expert_graph expert(*this, layer, part);
        expert.backward(d_);
        machine_.run(expert.g);
    }
    if (!computes()) {
        return;
    }
    std::vector<float> by_place(r.rows.size()), d_shares(choice.share.size()), d_router(size_t(n) * size_t(hp_.n_expert));
    ggml_backend_tensor_get(mixture_.d_shares, by_place.data(), 0, by_place.size() * sizeof(float));
    for (size_t i = 0; i < d_shares.size(); i++) {
        d_shares[i] = by_place[r.places[i]];
    }
    host_->choose_backward(choice, d_shares, n, hp_.n_expert, d_router.data());
    set(mixture_.d_router, d_router.data(), d_router.size() * sizeof(float));
}

} // namespace cft::portable
