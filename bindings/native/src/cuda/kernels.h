// kernels.h - what a CUDA device computes, as host functions that launch kernels; the layer loop is built from them.
//
// Every function puts its work on the given stream and returns: none allocates, none waits, none keeps state. Buffers are
// device memory that the caller owns. A launch that the driver refuses throws failure(CFT_ERR_DEVICE).
//
// Matrices are row-major. A matrix argument x comes with ld_x, the distance of its rows in elements, so that it may be a
// range of columns of a wider one. Pointers of bf16 matrices are 16-byte aligned and their ld multiples of 8; head sizes,
// widths and n_rot / 2 are multiples of 8 unless a function says less. Offsets are 64-bit. Storage is bf16 or F32 (functions
// that take either are templates, instantiated for the types named); all arithmetic and sums are F32, or double where said.
//
// Results are the same bits from run to run: nothing is added in an order that timing decides, and no atomics are used.
//
// The sources compile with nvcc, or with a C++ compiler over shim/cuda_shim.h, which runs them on the CPU for tests.
#pragma once

#include "../ops.h"

#include "ggml.h"

#include <cstddef>
#include <cstdint>
#include <vector>

struct CUstream_st;
typedef CUstream_st *cudaStream_t;

namespace cft::cuda {

// bf16 is the upper half of an F32. Arithmetic is done after widening.
struct bf16 {
    uint16_t bits;
};

// ---- weights (dequantize.cu)

bool can_dequantize(ggml_type type); // every type of a GGUF's weights, F32 included

// to[i] = row i of a weight of n rows and `columns` columns (a multiple of the type's block), row_bytes apart: ggml's value,
// rounded to T. T: bf16, float. ld_to need be no multiple of anything, though 16-byte stores need 8.
template <typename T>
void dequantize(ggml_type type, const void *from, size_t row_bytes, int64_t n, int64_t columns, T *to, int64_t ld_to, cudaStream_t stream);

// to[i] = scale * row rows[i] (NULL: i) of a weight: the embedding. T: bf16, float.
template <typename T>
void embed(ggml_type type, const void *from, size_t row_bytes, const int32_t *rows, int64_t n, int64_t columns, float scale, T *to,
           int64_t ld_to, cudaStream_t stream);

// ---- rows (rows.cu)

// addends is a sum that is not stored: x + a + b, [n][d] each, ld d; a and b may be NULL. Rounded to T after each of them.
template <typename T> struct addends {
    const T    *x;
    const bf16 *a = nullptr, *b = nullptr;
};

constexpr int64_t widest_norm = 16384; // columns

// sum (NULL: not wanted; may be x.x and, for equal types, x.a) = x. normed = x * rstd * w with rstd[i] = 1 / sqrt(mean(x²) + eps);
// normed or rstd may be NULL. sum: [n][d], ld d. T: bf16, float (the residual stream's type).
template <typename T>
void add_rmsnorm(const addends<T> &x, T *sum, const float *w, int64_t n, int64_t d, float eps, bf16 *normed, int64_t ld_normed, float *rstd,
                 cudaStream_t stream);

// split_rows are F32 numbers in two halves: high is each of them as bf16 (nearest, ties away from 0), what products read, and low the other 16 bits, so
// that both together are the number to the bit (a NaN: a NaN). It moves as much memory as F32 alone.
struct split_rows {
    bf16     *high; // [n], ld apart
    int64_t   ld;
    uint16_t *low; // [n][d]
};

// norm_output is what a norm has left, which is all that its way back reads: x rstd is y / w. So no weight may be 0 (weights.cpp).
struct norm_output {
    const bf16  *y; // [n], ld apart
    int64_t      ld;
    const float *w, *rstd;
};
// dx = the gradient at a norm's input for the gradient dy at y, with add added to what dx is; copy (NULL: not wanted) is dx in bf16 once more. n rows of
// d columns. Weights are frozen: no gradient for w.
void rmsnorm_backward(const bf16 *dy, int64_t ld_dy, const norm_output &y, int64_t n, int64_t d, bool add, const split_rows &dx, bf16 *copy,
                      int64_t ld_copy, cudaStream_t stream);
void rmsnorm_backward(const split_rows &dy, const norm_output &y, int64_t n, int64_t d, bf16 *dx, int64_t ld_dx, cudaStream_t stream);

// table [n][2 * half]: cosines of positions[i] * frequencies[j], then sines, times amplitude; see rope.h for the frequencies.
void rope_table(const int32_t *positions, int64_t n, const float *frequencies, int half, float amplitude, float *table, cudaStream_t stream);

// What is done to the heads of queries or keys before attention: a norm of each head, then a rotation.
struct head_map {
    int            n_head, head_dim;
    const float   *w;    // [head_dim], the norm's; NULL: no norm
    float          eps;
    float         *rstd; // [n][n_head]; NULL in turn_heads: not wanted
    int            n_rot; // elements that are rotated; 0: none. With halves, a multiple of 16
    bool           halves; // pairs are n_rot / 2 apart, else neighbours
    const float   *table; // rope_table's
    const int32_t *rows;  // row i has row rows[i] of the table; NULL: row i
};
// y = rotation(norm(x)), x and y [n][n_head * head_dim]; y may be x. Backward: dx may be dy; x is not read without a norm.
void turn_heads(const head_map &m, const bf16 *x, int64_t ld_x, int64_t n, bf16 *y, int64_t ld_y, cudaStream_t stream);
void turn_heads_backward(const head_map &m, const bf16 *dy, int64_t ld_dy, const bf16 *x, int64_t ld_x, int64_t n, bf16 *dx, int64_t ld_dx,
                         cudaStream_t stream);

// act = silu(gate) * up or, with gelu, gelu(gate) * up (tanh form); [n][columns]. act may be gate or up.
void gated(bool gelu, const bf16 *gate, int64_t ld_gate, const bf16 *up, int64_t ld_up, int64_t n, int64_t columns, bf16 *act,
           int64_t ld_act, cudaStream_t stream);
// d_gate and d_up for d_act; d_gate may be gate or d_act, d_up may be up. act (NULL: not wanted; may be d_act) is computed
// once more.
void gated_backward(bool gelu, const bf16 *d_act, int64_t ld_d_act, const bf16 *gate, int64_t ld_gate, const bf16 *up, int64_t ld_up,
                    int64_t n, int64_t columns, bf16 *d_gate, int64_t ld_d_gate, bf16 *d_up, int64_t ld_d_up, bf16 *act, int64_t ld_act,
                    cudaStream_t stream);

// y += bias in each of n rows. bias [columns] F32.
void add_bias(const float *bias, int64_t n, int64_t columns, bf16 *y, int64_t ld_y, cudaStream_t stream);

// Elements one by one, n of them, contiguous. T, U: bf16, float.
template <typename T, typename U> void add(const T *x, int64_t n, U *y, cudaStream_t stream);              // y += x
template <typename T, typename U> void cast(const T *x, float scale, int64_t n, U *y, cudaStream_t stream); // y = scale * x
template <typename T> void soft_cap(T *x, int64_t n, float cap, cudaStream_t stream); // x = cap * tanh(x / cap)
void zero(void *x, size_t bytes, cudaStream_t stream);

// to[i] = from[rows[i]], to[rows[i]] = from[i] (other rows stay), to[rows[i]] += from[i]; no row twice, rows NULL: i. T, U: bf16, float.
template <typename T, typename U>
void gather(const T *from, int64_t ld_from, const int32_t *rows, int64_t n, int64_t columns, U *to, int64_t ld_to, cudaStream_t stream);
template <typename T, typename U> // also uint16_t both
void scatter(const T *from, int64_t ld_from, const int32_t *rows, int64_t n, int64_t columns, U *to, int64_t ld_to, cudaStream_t stream);
template <typename T, typename U>
void scatter_add(const T *from, int64_t ld_from, const int32_t *rows, int64_t n, int64_t columns, U *to, int64_t ld_to, cudaStream_t stream);

// ---- loss (loss.cu)

// losses[i] = weights[i] * -log softmax(soft_cap(logits[i]))[targets[i]] over n_vocab columns; cap 0 is none. With gradient
// (NULL: not wanted), its rows become the gradient of losses at the uncapped logits, and columns [n_vocab, n_padded) 0.
// A row whose target is negative has loss and gradient 0 (padding). T: bf16, float. gradient may be the logits' own memory:
// for bf16 with ld_gradient = ld_logits; for float with ld_gradient = 2 * ld_logits (rows begin at the same bytes).
template <typename T>
void cross_entropy(const T *logits, int64_t ld_logits, int64_t n, int64_t n_vocab, int64_t n_padded, const int32_t *targets,
                   const float *weights, float cap, float *losses, bf16 *gradient, int64_t ld_gradient, cudaStream_t stream);

// *sum = (add ? *sum : 0) + the sum of x, in double and in a fixed order. One block: for some 100,000 floats at most.
void sum(const float *x, int64_t n, bool add, double *sum, cudaStream_t stream);

// ---- attention (attention.cu; tile lists: attention_tiles.cpp)

constexpr int attention_tile = 64; // queries and keys of a tile

// attention_lists is what the kernels must know of one pack and one set of queries: which tiles hold visible pairs. Made on
// the host, once per pack, for all layers of one kind; its words are one array to be copied to the device.
// Key j is visible to the query at token i when j <= i, i < visible_until[j] and, with a window, positions[i] - positions[j]
// < window.
class attention_lists {
  public:
    // As cpu::attention_mask's: query_tokens ascending, NULL: all tokens. Throws failure for what is refused there. with_places: also what
    // gradients of scores need to be stored.
    attention_lists(const int32_t *visible_until, int64_t n_tokens, const int32_t *query_tokens, int64_t n_queries,
                    const int32_t *positions = nullptr, int32_t window = 0, bool with_places = false);

    // No pack of up to so many tokens, with up to so many queries, needs more words.
    static size_t max_words(int64_t n_tokens, int64_t n_queries, bool with_places = false);

    const std::vector<int32_t> &words() const { return words_; }
    int64_t                     n_tokens() const { return n_tokens_; }
    int64_t                     n_queries() const { return n_queries_; }

  private:
    friend struct attention_view;
    size_t put(const std::vector<int32_t> &values);

    int64_t              n_tokens_, n_queries_, n_pairs_ = 0, longest_ = 0;
    std::vector<int32_t> words_;
    // Where in words_ each array begins.
    size_t visible_until_ = 0, query_tokens_ = 0, key_positions_ = 0, window_starts_ = 0, key_tiles_start_ = 0, key_tiles_ = 0,
           query_tiles_start_ = 0, query_tiles_ = 0, query_order_ = 0, key_order_ = 0, places_ = 0;
    bool tree_window_ = false, has_places_ = false;
};

// attention_view is attention_lists with its words at a device address. Passed to kernels by value.
struct attention_view {
    attention_view(const attention_lists &lists, const int32_t *device_words);

    int64_t        n_tokens, n_queries;
    const int32_t *visible_until; // [n_tokens]; a window has shortened it
    const int32_t *query_tokens;  // [n_queries]
    const int32_t *key_positions; // [n_tokens] and
    const int32_t *window_starts; // [n_queries], with a window over a tree; else NULL
    // Lists of tiles, ascending: entries of tile i are [start[i], start[i + 1]), each 2 * tile + (1 if all pairs are visible).
    const int32_t *key_tiles_start, *key_tiles;     // for each tile of queries
    const int32_t *query_tiles_start, *query_tiles; // for each tile of keys
    const int32_t *query_order, *key_order;         // tiles with the longest lists first
    const int32_t *places;                          // for each entry of query_tiles, which one of key_tiles is the same pair; or NULL
    int64_t        n_pairs, longest;                // of tiles: entries of either list, and the most that a tile of keys has
};

bool can_attend(int head_dim); // 64, 80, 96, 128, 256

// Whether attention uses products of warpgroups where it can (compute capability 9.0, heads of 64 and 128, no soft cap). It does, unless
// CFT_CUDA_WARPGROUPS=0; on the shim only where a test asks for it.
void use_warpgroups(bool use);

// head_source is what turn_heads has had.
struct head_source {
    head_map    map;
    const bf16 *x;
    int64_t     ld;
};
// attention_ways are ways to the same bits.
struct attention_ways {
    bool               in_pairs = false;  // two heads of the same keys together, where warpgroups' products are used and heads of keys have an even number of heads
    const head_source *queries  = nullptr; // q is written: what turn_heads makes of these
    bool               inside   = true;    // by the kernel that needs it, where heads of 128 go in pairs; otherwise by a pass of its own
};
// q, out: [n_queries][n_head * head_dim]; k, v: [n_tokens][n_head_kv * head_dim]; lse: [n_head][n_queries], natural log.
void attention(const cpu::attention_shape &shape, const attention_view &view, bf16 *q, int64_t ld_q, const bf16 *k, int64_t ld_k, const bf16 *v, int64_t ld_v,
               bf16 *out, int64_t ld_out, float *lse, cudaStream_t stream, const attention_ways &how = {});

// dq, dk, dv are overwritten, every row of them. delta: [n_head][n_queries], scratch. With `scores`, gradients of scores are stored there on their
// way to dk, bf16, for the heads of `heads_at_a_time` heads of keys, and dq is made from them; otherwise they are computed for both. The list must
// have places.
// With `turned`, q and k are what turn_heads has made of `queries` and `keys`, and dq and dk become the gradients at these; the same as by
// turn_heads_backward afterwards, which is what happens but where warpgroups' products are used and `inside` is not false.
struct attention_gradient {
    const bf16  *q, *k, *v, *out, *dout;
    const float *lse;
    float       *delta;
    bf16        *dq, *dk, *dv;
    int64_t      ld_q, ld_k, ld_v, ld_out, ld_dout, ld_dq, ld_dk, ld_dv;
    bf16        *scores          = nullptr; // 16-byte aligned, stored_score_bytes for each head of keys
    int          heads_at_a_time = 0;
    bool         turned = false, inside = true;
    head_source  queries = {}, keys = {};
};
// What stored gradients of scores take of memory, for one head of keys.
size_t stored_score_bytes(const cpu::attention_shape &shape, const attention_view &view);
// How many heads of keys to take at a time with so much room for gradients of scores; 0: none, they had better be computed again. So where there
// is no room for one head, and where so few heads have too few tiles of keys to fill a large device.
int heads_to_store(const cpu::attention_shape &shape, const attention_view &view, size_t bytes);
void attention_backward(const cpu::attention_shape &shape, const attention_view &view, const attention_gradient &args, cudaStream_t stream);

// ---- adapters and optimizer (adapters.cu)

// One copy of a part of the F32 adapter values as bf16, for the products: to[r][c] = scale * values[from + r * columns + c], or 0 where from
// is negative.
struct adapter_copy {
    int64_t from;
    int64_t rows, columns;
    bf16   *to;
    int64_t ld_to;
    float   scale;
};
// copies: n of them, in device memory; max_elements: the most rows * columns of one.
void copy_adapters(const float *values, const adapter_copy *copies, int n, int64_t max_elements, cudaStream_t stream);

// y = mask * x, or y += mask * x with add; the mask is that of the CPU engine (cpu/random.h) for the module, bit for bit: 0 or
// 1 / (1 - probability). Row i is token first_row + i of the pack; with rows (NULL: none), token rows[i]. y may be x. T: bf16, float is y's.
template <typename T>
void dropout(const cft::dropout &drop, int module, const bf16 *x, int64_t ld_x, const int32_t *rows, int64_t n, int64_t columns, bool add,
             T *y, int64_t ld_y, cudaStream_t stream);

// What rows of a table get where rows are used more than once: to[tokens[i]] += the sum of from[order[j]], j within [starts[i], starts[i + 1]),
// in that order; n tokens, none twice.
void add_by_token(const float *from, int64_t ld_from, const int32_t *tokens, const int32_t *starts, const int32_t *order, int64_t n, int64_t columns,
                  float *to, int64_t ld_to, cudaStream_t stream);

// AdamW over all adapter values at once, as cpu_ops::adamw. gradient_scale_on_device (NULL: none) multiplies
// step.gradient_scale.
void adamw(const adamw_step &step, const float *gradient_scale_on_device, float *value, const float *gradient, float *moment1,
           float *moment2, int64_t n, cudaStream_t stream);

// ---- DoRA (gains.cu)

// y = x * gains, column by column; x [n][columns], ld columns. (Of bf16 it would be lost: a gain within 2^-9 of 1 changes no bf16 number.)
void scale_columns(const float *x, const float *gains, int64_t n, int64_t columns, bf16 *y, int64_t ld_y, cudaStream_t stream);

// For outputs y before their gains: d_magnitudes[j] += the sum over rows of dy[i][j] * y[i][j], divided by norms[j]; then dy *= gains. partials:
// gain_slices * columns floats, sums of fixed parts of the rows.
constexpr int gain_slices = 16;
void gain_backward(const bf16 *y, int64_t ld_y, const float *gains, const float *norms, int64_t n, int64_t columns, bf16 *dy, int64_t ld_dy,
                   float *partials, float *d_magnitudes, cudaStream_t stream);

// gain_source is what the lengths of the rows of W + scale B A come from: |w|² + 2 scale b (A w) + scale² b (A Aᵀ) bᵀ, in double.
struct gain_source {
    const float *weight_norms, *magnitudes; // [n] |w|
    const float *b, *w_at, *a_at;           // [n][rank], W Aᵀ [n][rank], A Aᵀ [rank][rank]
    int64_t      rank;
    float        scale;
};
// norms[j] = the length of row j, gains[j] = magnitudes[j] / norms[j].
void row_gains(const gain_source &s, int64_t n, float *norms, float *gains, cudaStream_t stream);

// ---- the gradient as a whole (adapters.cu)

// *sum = the sum of x², in double: partial sums of fixed parts, then their sum in order. partials: norm_partials doubles.
constexpr int norm_partials = 1024;
void sum_of_squares(const float *x, int64_t n, double *partials, double *sum, cudaStream_t stream);

// *flag = 1 if any of x is infinite or NaN; else it stays. T: bf16, float.
template <typename T> void find_non_finite(const T *x, int64_t n, int32_t *flag, cudaStream_t stream);

} // namespace cft::cuda
