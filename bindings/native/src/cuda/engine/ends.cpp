// ends.cpp - adapters of the embedding and of the head.
//
// The head is one more group in plan.h's form, [W | s B] with A apart: its logits and the way back go through engine.cpp's products, whose rows
// are that much longer. The embedding's A has a row for each token: x += s h Bᵀ, h = rows of A.
#include "engine.h"

#include <algorithm>
#include <numeric>

namespace cft::cuda {

void engine::place_head_copies(std::vector<adapter_copy> &copies) {
    head_copies_ = int(copies.size());
    const end &h = plan_.head;
    if (h.rank == 0) {
        return;
    }
    const int64_t d = hp_.n_embd, ld = plan_.head_ld(), step = plan_.resident() ? hp_.n_vocab : plan_.head_rows;
    copies.push_back({h.a, h.rank8, d, w_->head_a, d, 1.0f});
    for (int64_t row = 0; row < hp_.n_vocab; row += step) {
        const int64_t rows = std::min(step, hp_.n_vocab - row);
        copies.push_back({h.b + row * h.rank8, rows, h.rank8, (plan_.resident() ? weights_.head : loss_->head) + d, ld, h.scale});
    }
}

void engine::refresh_ends() {
    const int64_t d = hp_.n_embd;
    if (const end &h = plan_.head; h.rank > 0) {
        copy_adapters(value_, w_->copies + head_copies_, 1, h.rank8 * d, stream_.get());
        if (plan_.resident()) {
            copy_adapters(value_, w_->copies + head_copies_ + 1, 1, hp_.n_vocab * h.rank8, stream_.get());
        }
    }
    if (const end &e = plan_.embedding; e.rank > 0) {
        cast<float, bf16>(value_ + e.b, 1, d * e.rank8, w_->embedding_b, stream_.get());
    }
}

// Positions in the order of their tokens, so that each row of A's gradient is one sum, in that order.
void engine::sort_tokens(const device_pack &pack, journey &j, const std::function<const int32_t *(const void *, size_t)> &put) {
    if (plan_.embedding.rank == 0) {
        return;
    }
    std::vector<int32_t> order(size_t(pack.t)), distinct, starts;
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return pack.tokens[a] < pack.tokens[b]; });
    for (size_t i = 0; i < order.size(); i++) {
        const int32_t token = pack.tokens[order[i]];
        if (distinct.empty() || distinct.back() != token) {
            distinct.push_back(token);
            starts.push_back(int32_t(i));
        }
    }
    starts.push_back(int32_t(order.size()));
    j.n_distinct = int64_t(distinct.size());
    j.distinct   = put(distinct.data(), distinct.size());
    j.starts     = put(starts.data(), starts.size());
    j.order      = put(order.data(), order.size());
}

void engine::embed_adapter(const journey &j) {
    const end    &e = plan_.embedding;
    const int64_t d = hp_.n_embd, r = e.rank8;
    if (e.rank == 0) {
        return;
    }
    gather<float, bf16>(value_ + e.a, r, j.tokens, j.t, r, w_->embedding_h, r, stream_.get());
    multiply({j.t, d, r, w_->embedding_h, r, false, w_->embedding_b, r, true, layers_[0].x, d, true, e.scale, 1});
    mark("embedding");
}

// For the gradient at the first layer's input, in d.
void engine::embed_adapter_backward(const journey &j) {
    const end    &e = plan_.embedding;
    const int64_t d = hp_.n_embd, r = e.rank8;
    if (e.rank == 0) {
        return;
    }
    const split_rows &dx = w_->d;
    multiply({d, r, j.t, dx.high, dx.ld, true, w_->embedding_h, r, false, gradient_ + e.b, r, true, e.scale, 1});
    multiply({j.t, r, d, dx.high, dx.ld, false, w_->embedding_b, r, false, w_->embedding_u, r, true, e.scale});
    add_by_token(w_->embedding_u, r, j.distinct, j.starts, j.order, j.n_distinct, r, gradient_ + e.a, r, stream_.get());
    mark("backward: embedding");
}

cft::dropout engine::head_dropout(const journey &j, int64_t begin) const {
    cft::dropout drop = j.drop;
    drop.layer        = hp_.n_layer;
    drop.first_row    = begin;
    return drop;
}

// n rows of what the head's A sees.
const bf16 *engine::head_masked(const journey &j, int64_t begin, int64_t n, int64_t &ld) {
    const bf16 *const x = w_->head_x + begin * plan_.head_ld();
    if (j.drop.probability <= 0) {
        ld = plan_.head_ld();
        return x;
    }
    ld = hp_.n_embd;
    dropout(head_dropout(j, begin), 0, x, plan_.head_ld(), nullptr, n, hp_.n_embd, false, w_->masked, ld, stream_.get());
    return w_->masked;
}

// h behind each row of head_x.
void engine::head_inputs(const journey &j) {
    if (plan_.head.rank > 0) {
        int64_t           ld = 0;
        const bf16 *const x  = head_masked(j, 0, j.n, ld);
        multiply({j.n, plan_.head.rank8, hp_.n_embd, x, ld, false, w_->head_a, hp_.n_embd, true, w_->head_x + hp_.n_embd, plan_.head_ld(), false});
    }
}

// From dh, the gradient at rows of [x | h], which for h is u: adds to those of A and B, and leaves that at x in d_norm.
void engine::head_gradient(const journey &j, int64_t begin, int64_t n) {
    const end        &h = plan_.head;
    const int64_t     d = hp_.n_embd, r = h.rank8, ld = plan_.head_ld();
    bf16 *const       u = w_->head_u;
    const bf16 *const d_logits = reinterpret_cast<const bf16 *>(loss_->logits);
    gather<float, bf16>(loss_->dh + d, ld, nullptr, n, r, u, r, stream_.get());
    int64_t           ld_x = 0;
    const bf16 *const x    = head_masked(j, begin, n, ld_x);
    multiply({r, d, n, u, r, true, x, ld_x, false, gradient_ + h.a, d, true, 1, 1});
    multiply({hp_.n_vocab, r, n, d_logits, 2 * plan_.vocab8, true, w_->head_x + begin * ld + d, ld, false, gradient_ + h.b, r, true, h.scale, 1});
    if (plan_.lowest == hp_.n_layer) {
        return;
    }
    if (j.drop.probability > 0) {
        multiply({n, d, r, u, r, false, w_->head_a, d, false, w_->masked_d, d, false});
        dropout(head_dropout(j, begin), 0, w_->masked_d, d, nullptr, n, d, true, loss_->dh, ld, stream_.get());
    } else {
        multiply({n, d, r, u, r, false, w_->head_a, d, false, loss_->dh, ld, true, 1, 1});
    }
    gather<float, bf16>(loss_->dh, ld, nullptr, n, d, w_->d_norm + begin * d, d, stream_.get());
}

} // namespace cft::cuda
