// ops.h - the operations of ../ops.h on the CPU: a thread pool, product kernels and row kernels. Work is divided by
// thread number alone.
#pragma once

#include "../buffer.h"
#include "../ops.h"
#include "../pool.h"
#include "linear.h"
#include "product.h"
#include "rows.h"

namespace cft::cpu {

class cpu_ops final : public ops {
  public:
    // For packs of up to max_tokens tokens.
    cpu_ops(int n_threads, const attention_shape &shape, int64_t max_tokens);

    // Bytes of scratch that an object made with the same arguments holds.
    static size_t scratch_bytes(int n_threads, const attention_shape &shape, int64_t max_tokens);

    void embed(const weight &table, const int32_t *tokens, int64_t n, float scale, float *x) override;
    void rope_table(const int32_t *positions, int64_t n, const rope_set &set, float *table) override;
    void copy(const float *from, int64_t n_floats, float *to) override;
    void zero(float *x, int64_t n_floats) override;
    void gather(const float *from, const std::vector<int32_t> &rows, int64_t columns, float *to) override;
    void scatter_add(const float *from, const std::vector<int32_t> &rows, int64_t columns, float *to) override;
    void add(const float *x, int64_t n_floats, float *y) override;
    void add_bias(const std::vector<float> &bias, int64_t n, float *y) override;
    void rmsnorm(const float *x, const std::vector<float> &w, int64_t n, float eps, float *y) override;
    void rmsnorm_backward(const float *dy, const float *x, const std::vector<float> &w, int64_t n, float eps, float *dx) override;
    void rope(float *x, int64_t n, const int32_t *rows, int n_head, int head_dim, int n_rot, bool halves, const float *table,
              int direction) override;
    void gated(bool gelu, const float *gate, const float *up, int64_t n_floats, float *act) override;
    void gated_backward(bool gelu, const float *d_act, const float *gate, const float *up, int64_t n_floats, float *d_gate, float *d_up) override;
    void linear(const linear_group &g, const dropout &drop, const float *x, int64_t t, float *const *y, bool add, float *h) override;
    void linear_backward(const linear_group &g, const dropout &drop, const float *x, int64_t t, const float *const *dy, const float *h,
                         float *u, float *dx, bool add) override;
    void scale_columns(const float *x, const float *s, int64_t n, int64_t columns, bool add, float *y) override;
    void column_dots(const float *x, const float *y, const float *by, int64_t n, int64_t columns, float *sums) override;
    void row_norms(const weight &w, const float *a, const float *b, int rank, float scale, const float *magnitude, float *norm, float *gain) override;
    void embed_adapter(const embedding_adapter &e, const int32_t *tokens, int64_t n, float *x, float *h) override;
    void embed_adapter_backward(const embedding_adapter &e, const int32_t *tokens, int64_t n, const float *dx, float *h) override;
    void attention(const attention_shape &shape, const attention_mask &mask, const attention_forward_args &args) override;
    void attention_backward(const attention_shape &shape, const attention_mask &mask, const attention_backward_args &args) override;
    void logits(const weight &w, const float *x, int64_t n, float *out, int64_t stride) override;
    void soft_cap(float *x, int64_t n, int64_t n_vocab, int64_t stride, float cap) override;
    void cross_entropy(float *logits, int64_t n, int64_t n_vocab, int64_t stride, const int32_t *targets, const float *weights, float cap,
                       bool gradient, double *losses) override;
    void logits_backward(const weight &w, const float *d_logits, int64_t stride, int64_t n, float *dx) override;
    void softmax(float *probabilities, int64_t n, int64_t n_expert) override;
    void choose(const float *probabilities, int64_t n, int64_t n_expert, int n_used, expert_choice &choice) override;
    void choose_backward(const expert_choice &choice, const std::vector<float> &d_share, int64_t n, int64_t n_expert, float *d_logits) override;
    void scatter_add_scaled(const float *from, const std::vector<int32_t> &rows, const std::vector<float> &scales, int64_t columns,
                            float *to) override;
    void dot_and_scale(float *x, const float *y, const std::vector<float> &scales, int64_t columns, float *products) override;
    double sum_of_squares(const float *x, int64_t n_floats) override;
    void   adamw(const adamw_step &step, float *value, const float *gradient, float *moment1, float *moment2, int64_t n_floats) override;

  private:
    // Runs body(begin, end) on each thread's share of [0, n), in multiples of step.
    template <typename Body> void divide(int64_t n, int64_t step, const Body &body) {
        pool_.run([&](int ith, int nth) {
            const range part = share(n, step, ith, nth);
            if (part.size() > 0) {
                body(part.begin, part.end);
            }
        });
    }
    scratch  scratch_of(int ith) const;
    products products_of(int ith) const { return products(product_, scratch_of(ith).panels); }

    void adapter_inputs(const linear_group &g, const dropout &drop, const float *x, int64_t t, float *h);
    void adapter_gradients(const linear_group &g, const float *x, int64_t t, const float *const *dy, const float *h, const float *u,
                           bool with_a, int ith, int nth);
    void dropped_gradients(const linear_group &g, const dropout &drop, const float *x, int64_t t, const float *u, float *dx);

    const row_kernels     &kernels_;
    const product_kernels &product_;
    buffer                 scratch_, attention_;
    thread_pool            pool_;
};

} // namespace cft::cpu
