// engine_embedding.cpp - the embedding and its adapter: x = scale * (E[token] + s B A[token]), with a row of A for each token.
#include "journey.h"

#include <map>

namespace cft::portable {

void engine::embed(const journey &j) {
    graph              g(64);
    ggml_context      *c = g.ctx();
    ggml_tensor *const tokens = slice(c, tokens_, 0, j.t);
    ggml_tensor       *x = ggml_get_rows(c, token_embd_, tokens);
    if (hp_.embedding_scale != 1.0f) {
        x = ggml_scale(c, x, hp_.embedding_scale);
    }
    if (embedding_.a) {
        x = ggml_add(c, x, ggml_scale(c, product(c, embedding_.b, ggml_get_rows(c, embedding_.a, tokens)), embedding_.scale));
    }
    g.add(ggml_cpy(c, x, slice(c, x_[0], 0, j.t)));
    machine_.run(g);
}

// Tokens repeat, and SET_ROWS of a row twice would keep one of the two: the host adds up what each token's row of A gets, which is little.
void engine::embed_backward(const journey &j) {
    {
        graph              g(64);
        ggml_context      *c = g.ctx();
        ggml_tensor *const d = slice(c, d_, 0, j.t), *const h = ggml_get_rows(c, embedding_.a, slice(c, tokens_, 0, j.t));
        g.add(ggml_add_inplace(c, embedding_.db, ggml_scale(c, product_over_rows(c, h, d), embedding_.scale)));
        g.add(ggml_cpy(c, ggml_scale(c, product(c, transposed(c, embedding_.b), d), embedding_.scale), slice(c, embedding_u_, 0, j.t)));
        machine_.run(g);
    }
    int64_t n = j.t; // without computing as many as there may be
    if (computes()) {
        const size_t       rank = size_t(embedding_u_->ne[0]);
        std::vector<float> u(size_t(j.t) * rank);
        ggml_backend_tensor_get(embedding_u_, u.data(), 0, u.size() * sizeof(float));
        std::map<int32_t, std::vector<float>> sums;
        for (size_t i = 0; i < j.tokens.size(); i++) {
            std::vector<float> &sum = sums[j.tokens[i]];
            sum.resize(rank);
            for (size_t k = 0; k < rank; k++) {
                sum[k] += u[i * rank + k];
            }
        }
        std::vector<int32_t> distinct;
        u.clear();
        for (const auto &[token, sum] : sums) {
            distinct.push_back(token);
            u.insert(u.end(), sum.begin(), sum.end());
        }
        n = int64_t(distinct.size());
        set(distinct_, distinct.data(), distinct.size() * sizeof(int32_t));
        set(embedding_u_, u.data(), u.size() * sizeof(float));
    }
    graph              g(64);
    ggml_context      *c = g.ctx();
    g.add(add_to_rows(c, embedding_.da, slice(c, distinct_, 0, n), slice(c, embedding_u_, 0, n)));
    machine_.run(g);
}

} // namespace cft::portable
