// block_experts.cpp - the second half of a layer of a mixture of experts, see block.h: a router gives every row some experts and
// their shares; each expert is a feed-forward half of its own, frozen, for the rows that have it.
#include "block.h"

namespace cft {
namespace {

// One expert's rows, ascending, and where each stands in the choice.
struct expert_rows {
    std::vector<int32_t> rows;
    std::vector<size_t>  places;
    std::vector<float>   shares;
    int64_t              at = 0; // its first row in gate and up
};

std::vector<expert_rows> by_expert(const expert_choice &choice, int n_expert) {
    std::vector<expert_rows> all(static_cast<size_t>(n_expert));
    for (size_t i = 0; i < choice.expert.size(); i++) {
        expert_rows &e = all[size_t(choice.expert[i])];
        e.rows.push_back(int32_t(i / size_t(choice.n_used)));
        e.places.push_back(i);
        e.shares.push_back(choice.share[i]);
    }
    int64_t at = 0;
    for (expert_rows &e : all) {
        e.at = at;
        at += int64_t(e.rows.size());
    }
    return all;
}

linear_group frozen(std::initializer_list<const weight *> weights) {
    linear_group g;
    for (const weight *w : weights) {
        g.modules.emplace_back();
        g.modules.back().w = w;
    }
    return g;
}

} // namespace

// gate and up of one expert for its rows of w_.x_rows, kept from row `at` on, and the gated unit in w_.act.
void block::run_expert(int expert, const std::vector<int32_t> &rows, int64_t at) const {
    const int64_t n = int64_t(rows.size());
    const weight  gate = weights_.gates.slice(int64_t(expert) * hp_.n_ff, hp_.n_ff), up = weights_.ups.slice(int64_t(expert) * hp_.n_ff, hp_.n_ff);
    float *const  out[] = {a_.gate + at * hp_.n_ff, a_.up + at * hp_.n_ff};
    ops_.gather(w_.x_rows, rows, hp_.n_embd, w_.x_expert);
    ops_.linear(frozen({&gate, &up}), drop_, w_.x_expert, n, out, false, nullptr);
    ops_.gated(gelu_, out[0], out[1], n * hp_.n_ff, w_.act);
}

void block::feed_experts(float *x_next) const {
    ops_.rmsnorm(a_.x_mid, weights_.ffn_norm, n_, hp_.rms_eps, w_.x_rows);
    float *const router[] = {a_.router};
    ops_.linear(frozen({&weights_.router}), drop_, w_.x_rows, n_, router, false, nullptr);
    ops_.softmax(a_.router, n_, hp_.n_expert);
    expert_choice choice;
    ops_.choose(a_.router, n_, hp_.n_expert, hp_.n_expert_used, choice);
    if (x_next) {
        ops_.copy(a_.x_mid, n_ * hp_.n_embd, x_next);
    }
    const std::vector<expert_rows> all = by_expert(choice, hp_.n_expert);
    for (int e = 0; e < hp_.n_expert; e++) {
        const expert_rows &mine = all[size_t(e)];
        if (mine.rows.empty()) {
            continue;
        }
        run_expert(e, mine.rows, mine.at);
        if (x_next) {
            const weight down  = weights_.downs.slice(int64_t(e) * hp_.n_embd, hp_.n_embd);
            float *const out[] = {w_.y_expert};
            ops_.linear(frozen({&down}), drop_, w_.act, int64_t(mine.rows.size()), out, false, nullptr);
            ops_.scatter_add_scaled(w_.y_expert, mine.rows, mine.shares, hp_.n_embd, x_next);
        }
    }
}

// With y = sum of share_e * down_e(act_e): the gradient of a share is d . down_e(act_e) = (d down_e) . act_e, so that an expert's
// output need not be kept.
void block::feed_experts_backward(float *d) const {
    expert_choice choice;
    ops_.choose(a_.router, n_, hp_.n_expert, hp_.n_expert_used, choice);
    std::vector<float>             d_share(choice.share.size()), dots;
    const std::vector<expert_rows> all = by_expert(choice, hp_.n_expert);
    ops_.zero(w_.d_mid, n_ * hp_.n_embd);
    for (int e = 0; e < hp_.n_expert; e++) {
        const expert_rows &mine = all[size_t(e)];
        const int64_t      n    = int64_t(mine.rows.size());
        if (n == 0) {
            continue;
        }
        const weight gate = weights_.gates.slice(int64_t(e) * hp_.n_ff, hp_.n_ff), up = weights_.ups.slice(int64_t(e) * hp_.n_ff, hp_.n_ff);
        const weight down = weights_.downs.slice(int64_t(e) * hp_.n_embd, hp_.n_embd);
        const float *const gates = a_.gate + mine.at * hp_.n_ff, *const ups = a_.up + mine.at * hp_.n_ff;
        ops_.gather(d, mine.rows, hp_.n_embd, w_.y_expert);
        const float *const d_out[] = {w_.y_expert};
        ops_.linear_backward(frozen({&down}), drop_, w_.act, n, d_out, nullptr, nullptr, w_.d_act, false);
        ops_.gated(gelu_, gates, ups, n * hp_.n_ff, w_.act);
        dots.resize(size_t(n));
        ops_.dot_and_scale(w_.d_act, w_.act, mine.shares, hp_.n_ff, dots.data());
        for (size_t i = 0; i < mine.places.size(); i++) {
            d_share[mine.places[i]] = dots[i];
        }
        ops_.gated_backward(gelu_, w_.d_act, gates, ups, n * hp_.n_ff, w_.d_act, w_.d_up);
        const float *const d_gate_up[] = {w_.d_act, w_.d_up};
        ops_.linear_backward(frozen({&gate, &up}), drop_, w_.x_expert, n, d_gate_up, nullptr, nullptr, w_.x_expert, false);
        ops_.scatter_add(w_.x_expert, mine.rows, hp_.n_embd, w_.d_mid);
    }
    ops_.choose_backward(choice, d_share, n_, hp_.n_expert, w_.d_router);
    const float *const d_router[] = {w_.d_router};
    ops_.linear_backward(frozen({&weights_.router}), drop_, w_.x_rows, n_, d_router, nullptr, nullptr, w_.d_mid, true);
    ops_.rmsnorm_backward(w_.d_mid, a_.x_mid, weights_.ffn_norm, n_, hp_.rms_eps, d);
}

} // namespace cft
