// test_portable_ops.cpp - the composed operations of the portable path on one of ggml's devices against the CPU engine's kernels, which
// are tested against finite differences themselves. CFT_PORTABLE_DEVICE names the device (see test_portable.cpp).
#include "checks.h"
#include "cpu/attention.h"
#include "cpu/ops.h"
#include "cpu/rows.h"
#include "failure.h"
#include "pool.h"
#include "portable/compose.h"
#include "portable/device.h"
#include "portable/graph.h"
#include "portable/products.h"

#include <cmath>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>

using namespace cft;
using namespace cft::portable;
using namespace checks;

namespace {

// F32 sums of up to some hundred terms in another order, and the backend's exponentials, of the largest value.
constexpr double tolerance = 1e-5;

using floats = std::vector<float>;

ggml_backend_dev_t device() {
    const char *const name  = std::getenv("CFT_PORTABLE_DEVICE");
    int               index = 0;
    return find_device(name && *name ? name : "ggml-cpu", &index);
}

// bench runs one graph: inputs are placed, then build makes outputs of them, which are read.
class bench {
  public:
    ggml_tensor *put(const void *data, ggml_type type, int64_t ne0, int64_t ne1 = 1) {
        ggml_tensor *const t = inputs_.tensor(type, ne0, ne1);
        waiting_.push_back({t, data});
        return t;
    }
    ggml_tensor *put(const floats &v, int64_t ne0) { return put(v.data(), GGML_TYPE_F32, ne0, int64_t(v.size()) / ne0); }
    ggml_tensor *put(const std::vector<int32_t> &v) { return put(v.data(), GGML_TYPE_I32, int64_t(v.size())); }

    std::vector<floats> run(const std::function<std::vector<ggml_tensor *>(ggml_context *)> &build) {
        inputs_.allocate(device(), false, "a test");
        for (const auto &[t, data] : waiting_) {
            ggml_backend_tensor_set(t, data, 0, ggml_nbytes(t));
        }
        graph                      g(2048);
        ops = g.ops();
        std::vector<ggml_tensor *> results = build(g.ctx());
        for (ggml_tensor *&t : results) {
            t = g.result(ggml_cont(g.ctx(), t));
        }
        machine_.run(g);
        std::vector<floats> out;
        for (ggml_tensor *t : results) {
            out.emplace_back(size_t(ggml_nelements(t)));
            ggml_backend_tensor_get(t, out.back().data(), 0, ggml_nbytes(t));
        }
        return out;
    }

    ggml_cgraph *ops = nullptr; // of the graph that is being built

  private:
    store                                             inputs_{32};
    std::vector<std::pair<ggml_tensor *, const void *>> waiting_;
    machine                                           machine_{device(), 1, false};
};

void near(const floats &got, const floats &want, double bound = tolerance) {
    CHECK(got.size() == want.size());
    const double w = got.size() == want.size() ? worst(got, want) : INFINITY;
    if (!(w < bound)) {
        std::fprintf(stderr, "%s: %.3g of the largest value\n", where.c_str(), w);
    }
    CHECK(w < bound);
}

std::vector<int32_t> first_numbers(int n) {
    std::vector<int32_t> v;
    for (int32_t i = 0; i < n; i++) {
        v.push_back(i);
    }
    return v;
}

void test_rmsnorm() {
    where = "rmsnorm";
    constexpr float eps = 0.1f; // large enough to be seen
    for (int64_t d : {16, 576}) {
        const size_t n = 7;
        const auto   x = random_floats(n * size_t(d)), w = random_floats(size_t(d)), dy = random_floats(n * size_t(d));
        floats       y(x.size()), dx(x.size());
        cpu::rows().rmsnorm(x.data(), w.data(), y.data(), n, size_t(d), eps);
        cpu::rows().rmsnorm_backward(dy.data(), x.data(), w.data(), dx.data(), n, size_t(d), eps);
        bench b;
        ggml_tensor *const tx = b.put(x, d), *const tw = b.put(w, d), *const tdy = b.put(dy, d);
        const auto out = b.run([&](ggml_context *c) { return std::vector{rmsnorm(c, tx, tw, eps), rmsnorm_backward(c, tdy, tx, tw, eps)}; });
        near(out[0], y);
        near(out[1], dx);
    }
}

void test_gated() {
    for (bool gelu : {false, true}) {
        where = gelu ? "gelu" : "silu";
        const size_t n = 48 * 20; // more than 512: some shaders do a first part only
        const auto   gate = random_floats(n, 2), up = random_floats(n), d_act = random_floats(n);
        floats       act(n), d_gate(n), d_up(n);
        (gelu ? cpu::rows().geglu : cpu::rows().swiglu)(gate.data(), up.data(), act.data(), n);
        (gelu ? cpu::rows().geglu_backward : cpu::rows().swiglu_backward)(d_act.data(), gate.data(), up.data(), d_gate.data(), d_up.data(), n);
        bench b;
        ggml_tensor *const tg = b.put(gate, 48), *const tu = b.put(up, 48), *const td = b.put(d_act, 48);
        const auto out = b.run([&](ggml_context *c) {
            ggml_tensor *dg, *du;
            gated_backward(c, gelu, td, tg, tu, &dg, &du);
            return std::vector{gated(c, gelu, tg, tu), dg, du};
        });
        near(out[0], act), near(out[1], d_gate), near(out[2], d_up);
    }
}

// Against angles in double precision; and backward is the transpose: turning there and back multiplies by the amplitude squared.
void test_rotate() {
    for (bool halves : {false, true}) {
        where = halves ? "rope, halves" : "rope, pairs";
        constexpr int   hd = 24, heads = 3, n = 50, n_rot = 16;
        constexpr float base = 10000, amplitude = 1.25f;
        const auto           x = random_floats(hd * heads * n);
        std::vector<int32_t> at, back;
        for (int i = 0; i < n; i++) {
            at.push_back(i * 7 % 300), back.push_back(-at.back());
        }
        floats factors, want = x;
        for (int j = 0; j < n_rot / 2; j++) {
            factors.push_back(1 + 0.3f * float(j));
        }
        for (int i = 0; i < n * heads; i++) {
            for (int j = 0; j < n_rot / 2; j++) {
                const double angle = at[size_t(i / heads)] * std::pow(double(base), -2.0 * j / n_rot) / double(factors[size_t(j)]);
                const int    one = i * hd + (halves ? j : 2 * j), two = i * hd + (halves ? j + n_rot / 2 : 2 * j + 1);
                const double a = x[size_t(one)], b = x[size_t(two)], cosine = std::cos(angle) * amplitude, sine = std::sin(angle) * amplitude;
                want[size_t(one)] = float(a * cosine - b * sine);
                want[size_t(two)] = float(a * sine + b * cosine);
            }
        }
        bench b;
        ggml_tensor *const tx = b.put(x, hd), *const tf = b.put(factors, n_rot / 2), *const ta = b.put(at), *const tb = b.put(back);
        const auto out = b.run([&](ggml_context *c) {
            ggml_tensor *const there = rotate(c, ggml_reshape_3d(c, tx, hd, heads, n), {ta, tf, n_rot, halves, base, amplitude});
            return std::vector{there, rotate(c, there, {tb, tf, n_rot, halves, base, 1 / amplitude})};
        });
        near(out[0], want, 1e-4); // angles of some hundred radians in F32
        near(out[1], x, 1e-4);
    }
}

// Packs of segments and trees, tiles of any number of queries, shared key heads, caps, windows, and target rows alone.
struct attention_case {
    cpu::attention_shape shape;
    bool                 tree;
    int                  window;
    size_t               budget;
};

void compare_attention(const attention_case &a, const std::vector<int32_t> &positions, const std::vector<int32_t> &until,
                       const std::vector<int32_t> &queries, bool all, const pack_tiles &tiles, const floats &k, const floats &v) {
    const size_t t = until.size(), n = queries.size(), q_width = size_t(a.shape.n_head * a.shape.head_dim), kv_width = size_t(a.shape.n_head_kv * a.shape.head_dim);
    const auto   q = random_floats(n * q_width), d_out = random_floats(n * q_width);
    floats       out(q.size()), lse(n * size_t(a.shape.n_head)), dq(q.size()), dk(k.size()), dv(v.size());
    thread_pool  pool(1);
    std::vector<char>         space(cpu::attention_workspace_bytes(a.shape, t, n, 1));
    const cpu::attention_mask mask(until.data(), t, queries.data(), n, positions.data(), a.window);
    cpu::attention_forward(a.shape, mask, {q.data(), k.data(), v.data(), out.data(), lse.data(), q_width, kv_width, kv_width, q_width}, space.data(), pool);
    cpu::attention_backward(a.shape, mask, {q.data(), k.data(), v.data(), out.data(), lse.data(), d_out.data(), dq.data(), dk.data(), dv.data(), q_width,
                                            kv_width, kv_width, q_width, q_width, q_width, kv_width, kv_width}, space.data(), pool);
    bench b;
    ggml_tensor *const tq = b.put(q, a.shape.head_dim), *const tk = b.put(k, a.shape.head_dim), *const tv = b.put(v, a.shape.head_dim);
    ggml_tensor *const td = b.put(d_out, int64_t(q_width)), *const tm = b.put(tiles.masks.data(), GGML_TYPE_F16, int64_t(tiles.masks.size()));
    const auto         iota = first_numbers(int(t));
    ggml_tensor *const ti   = b.put(iota);
    const auto got = b.run([&](ggml_context *c) {
        const portable::attention_view view{all ? tiles.all : tiles.rows, tm, ti, a.window > 0, b.ops};
        const auto heads = [&](ggml_tensor *x, int count) { return ggml_reshape_3d(c, x, a.shape.head_dim, count, x->ne[1] / count); };
        ggml_tensor *const hq = heads(tq, a.shape.n_head), *const hk = heads(tk, a.shape.n_head_kv), *const hv = heads(tv, a.shape.n_head_kv);
        const auto g = portable::attention_backward(c, a.shape, view, hq, hk, hv, td);
        return std::vector{portable::attention(c, a.shape, view, hq, hk, hv), g.q, g.k, g.v};
    });
    near(got[0], out), near(got[1], dq), near(got[2], dk), near(got[3], dv);
}

void test_attention() {
    const attention_case cases[] = {
        {{4, 2, 16, 0.25f, 0}, false, 0, size_t(1) << 20}, // a tile for each segment
        {{4, 2, 16, 0.25f, 0}, false, 0, 1},               // as many tiles as there can be
        {{4, 4, 8, 0.35f, 0}, true, 0, 1},
        {{6, 2, 24, 0.2f, 3.0f}, true, 7, 1},
        {{4, 1, 32, 0.2f, 0}, false, 5, size_t(1) << 20},
    };
    int number = 0;
    for (const attention_case &a : cases) {
        std::vector<int32_t> positions, until, rows;
        for (int length : {37, 1, 75}) {
            const int begin = int(until.size());
            for (int i = 0; i < length; i++) {
                positions.push_back(i), until.push_back(begin + length);
            }
        }
        if (a.tree) { // the last segment: a stem of 15 and branches of 20
            for (int i = 38 + 15; i < 113; i++) {
                const int branch = (i - 53) / 20;
                positions[size_t(i)] = 15 + (i - 53) % 20, until[size_t(i)] = 53 + 20 * (branch + 1);
            }
        }
        for (int i = 40; i < 110; i += 3) { // none of the first segment, nor of the second
            rows.push_back(i);
        }
        const int        t = int(until.size());
        const pack_tiles tiles(positions.data(), until.data(), t, rows, a.window, a.shape.n_head, a.budget);
        CHECK(a.budget > 1 ? tiles.all.size() == 3 && tiles.rows.size() == 1 : tiles.all.size() == 3 + 1 + 5 && tiles.rows.size() == 2);
        const auto k = random_floats(size_t(t * a.shape.n_head_kv * a.shape.head_dim)), v = random_floats(k.size());
        where = "attention " + std::to_string(number) + ", all tokens";
        compare_attention(a, positions, until, first_numbers(t), true, tiles, k, v);
        where = "attention " + std::to_string(number++) + ", rows";
        compare_attention(a, positions, until, rows, false, tiles, k, v);
    }
}

void test_cross_entropy() {
    for (float cap : {0.0f, 5.0f}) {
        where = cap > 0 ? "cross entropy, capped" : "cross entropy";
        constexpr size_t v = 701, n = 9;
        const auto       logits = random_floats(v * n, 3);
        std::vector<int32_t> at;
        floats               weights, want = logits, losses;
        for (size_t i = 0; i < n; i++) {
            const size_t target = size_t(random_int(0, int(v) - 1));
            at.push_back(int32_t(i * v + target));
            weights.push_back(0.5f + float(i));
            float *const row = want.data() + i * v;
            if (cap > 0) {
                cpu::rows().soft_cap(row, v, cap);
                losses.push_back(float(cpu::rows().cross_entropy_capped(row, v, target, weights.back(), cap)));
            } else {
                losses.push_back(float(cpu::rows().cross_entropy(row, v, target, weights.back())));
            }
        }
        bench b;
        ggml_tensor *const tl = b.put(logits, v), *const ta = b.put(at), *const tw = b.put(weights, 1);
        auto out = b.run([&](ggml_context *c) {
            const loss_parts parts = cross_entropy(c, tl, ta, tw, cap, true);
            return std::vector{ggml_cont(c, parts.probabilities), parts.d_logits};
        });
        for (float &p : out[0]) {
            p = -std::log(p);
        }
        near(out[0], losses), near(out[1], want);
    }
}

void test_spread() {
    where = "spread";
    constexpr size_t d = 40, t = 60;
    const std::vector<int32_t> rows = {3, 4, 17, 59};
    const auto                 x = random_floats(d * rows.size()), like = random_floats(d * t);
    floats                     want(d * t, 0.0f);
    for (size_t i = 0; i < rows.size(); i++) {
        std::copy_n(x.begin() + long(i * d), d, want.begin() + long(size_t(rows[i]) * d));
    }
    bench b;
    ggml_tensor *const tx = b.put(x, d), *const tl = b.put(like, d), *const tr = b.put(rows);
    CHECK(b.run([&](ggml_context *c) { return std::vector{spread(c, tx, tr, tl)}; })[0] == want);
}

// W and its transpose, widened from every type, some rows of it: F32 that equal ggml's own dequantizing; and the products.
void test_widen() {
    constexpr int64_t columns = 256, rows = 130, first = 64, n = 40;
    for (ggml_type type : {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16, GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0,
                           GGML_TYPE_Q2_K, GGML_TYPE_Q3_K, GGML_TYPE_Q4_K, GGML_TYPE_Q5_K, GGML_TYPE_Q6_K, GGML_TYPE_IQ4_NL, GGML_TYPE_IQ4_XS}) {
        where = std::string("widen ") + ggml_type_name(type);
        const auto        w = random_floats(size_t(columns * rows));
        std::vector<char> packed(ggml_row_size(type, columns) * rows);
        floats            wide(w.size());
        if (type == GGML_TYPE_F32) {
            std::memcpy(packed.data(), w.data(), packed.size());
            wide = w;
        } else {
            ggml_quantize_chunk(type, w.data(), packed.data(), 0, rows, columns, nullptr);
            ggml_get_type_traits(type)->to_float(packed.data(), wide.data(), columns * rows);
        }
        const floats part(wide.begin() + first * columns, wide.begin() + (first + n) * columns);
        const auto   x = random_floats(columns * 6), dy = random_floats(n * 6);
        floats       turned(part.size()), y(n * 6), dx(columns * 6);
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < columns; j++) {
                turned[size_t(j * n + i)] = part[size_t(i * columns + j)];
            }
        }
        for (int64_t s = 0; s < 6; s++) {
            for (int64_t i = 0; i < n; i++) {
                double sum = 0;
                for (int64_t j = 0; j < columns; j++) {
                    sum += double(part[size_t(i * columns + j)]) * double(x[size_t(s * columns + j)]);
                    dx[size_t(s * columns + j)] += part[size_t(i * columns + j)] * dy[size_t(s * n + i)];
                }
                y[size_t(s * n + i)] = float(sum);
            }
        }
        bench b;
        const auto         iota = first_numbers(rows);
        ggml_tensor *const tw = b.put(packed.data(), type, columns, rows), *const ti = b.put(iota), *const tx = b.put(x, columns), *const td = b.put(dy, n);
        const auto out = b.run([&](ggml_context *c) {
            ggml_tensor *const part_w = widen(c, tw, ti, first, n), *const back = transposed(c, widen(c, tw, ti, first, n));
            return std::vector{part_w, back, product(c, part_w, tx), product(c, back, td)};
        });
        near(out[0], part, 1e-6), near(out[1], turned, 1e-6), near(out[2], y), near(out[3], dx);
    }
}

// Products of all small shapes: backends have kernels of their own for few columns, and read several values at once.
void test_small_products() {
    for (int64_t k : {1, 2, 3, 4, 7, 8, 9, 37, 75}) {
        for (int64_t n : {1, 2, 4, 8, 9, 16}) {
            for (int64_t m : {1, 8, 33}) {
                where = "product of [" + std::to_string(k) + "," + std::to_string(m) + "] and [" + std::to_string(k) + "," + std::to_string(n) + "]";
                const auto a = random_floats(size_t(k * m)), x = random_floats(size_t(k * n));
                floats     want(size_t(m * n));
                for (int64_t i = 0; i < n; i++) {
                    for (int64_t j = 0; j < m; j++) {
                        want[size_t(i * m + j)] = float(dot(floats(a.begin() + j * k, a.begin() + (j + 1) * k), floats(x.begin() + i * k, x.begin() + (i + 1) * k)));
                    }
                }
                bench b;
                ggml_tensor *const ta = b.put(a, k), *const tx = b.put(x, k);
                near(b.run([&](ggml_context *c) { return std::vector{product(c, ta, tx)}; })[0], want);
            }
        }
    }
}

void test_product_over_rows() {
    where = "product over rows";
    constexpr int64_t t = 33, m = 5, n = 48;
    const auto a = random_floats(t * m), c0 = random_floats(t * n);
    floats     want(m * n);
    for (int64_t r = 0; r < t; r++) {
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < m; j++) {
                want[size_t(i * m + j)] += a[size_t(r * m + j)] * c0[size_t(r * n + i)];
            }
        }
    }
    bench b;
    ggml_tensor *const ta = b.put(a, m), *const tc = b.put(c0, n);
    near(b.run([&](ggml_context *c) { return std::vector{product_over_rows(c, ta, tc)}; })[0], want);
}

// DoRA's lengths and the sums in its gradients, against the CPU engine's operations.
void test_lengths() {
    where = "lengths of rows";
    constexpr int64_t          in = 96, out = 70, rank = 5, t = 33;
    constexpr float            scale = 1.5f;
    const cpu::attention_shape any{1, 1, 8, 1.0f};
    cpu::cpu_ops               host(1, any, t);
    const auto w = random_floats(in * out), a = random_floats(in * rank), low = random_floats(out * rank), x = random_floats(out * t), y = random_floats(out * t);
    weight     frozen;
    frozen.data = reinterpret_cast<const char *>(w.data()), frozen.rows = out, frozen.cols = in, frozen.row_bytes = in * sizeof(float);
    floats lengths(out), sums(out), ones(out, 1.0f);
    host.row_norms(frozen, a.data(), low.data(), rank, scale, lengths.data(), lengths.data(), nullptr);
    host.column_dots(x.data(), y.data(), ones.data(), t, out, sums.data());
    bench b;
    ggml_tensor *const tw = b.put(w, in), *const ta = b.put(a, in), *const tb = b.put(low, rank), *const tx = b.put(x, out), *const ty = b.put(y, out);
    const auto got = b.run([&](ggml_context *c) { return std::vector{row_lengths(c, tw, transposed(c, ta), tb, scale), column_dots(c, tx, ty)}; });
    near(got[0], lengths);
    near(got[1], sums);
}

void test_add_to_rows() {
    where = "added to rows";
    constexpr int64_t          width = 40, n = 90;
    const auto                 x = random_floats(width * n), more = random_floats(3 * width);
    const std::vector<int32_t> rows = {7, 0, 89};
    floats                     want = x;
    for (size_t i = 0; i < rows.size() * width; i++) {
        want[size_t(rows[i / width]) * width + i % width] += more[i];
    }
    bench b;
    ggml_tensor *const tx = b.put(x, width), *const tmore = b.put(more, width), *const trows = b.put(rows);
    const auto got = b.run([&](ggml_context *c) { return std::vector{add_to_rows(c, tx, trows, tmore)}; });
    CHECK(got[0] == want);
}

// The device that tests run on keeps F32 products; one that rounds operands is found out.
void test_operands_kept() {
    where = "operands kept";
    check_products(device());
    const auto to_half = [](float x) { return ggml_fp16_to_fp32(ggml_fp32_to_fp16(x)); };
    const auto to_bf16 = [](float x) { return ggml_bf16_to_fp32(ggml_fp32_to_bf16(x)); };
    const auto to_tf32 = [](float x) {
        uint32_t bits;
        std::memcpy(&bits, &x, sizeof x);
        bits = (bits + 0x1000u) & ~0x1fffu;
        std::memcpy(&x, &bits, sizeof x);
        return x;
    };
    const product_probe probe(4);
    const auto          error_rounded = [&](const std::function<float(float)> &left, const std::function<float(float)> &right) {
        floats y(size_t(probe.n * probe.m));
        for (int64_t column = 0; column < probe.n; column++) {
            for (int64_t row = 0; row < probe.m; row++) {
                float &sum = y[size_t(column * probe.m + row)];
                for (int64_t i = 0; i < probe.k; i++) {
                    sum += left(probe.a[size_t(row * probe.k + i)]) * right(probe.b[size_t(column * probe.k + i)]);
                }
            }
        }
        return error_of(probe, y.data());
    };
    const std::function<float(float)> as_is = [](float x) { return x; };
    CHECK(error_rounded(as_is, as_is) < 2e-6);
    for (const std::function<float(float)> &rounded : {std::function<float(float)>(to_half), std::function<float(float)>(to_bf16), std::function<float(float)>(to_tf32)}) {
        CHECK(error_rounded(rounded, as_is) > 2e-4);
        CHECK(error_rounded(as_is, rounded) > 2e-4);
    }
}

} // namespace

int main(int argc, char **argv) {
    const char *const folder = std::getenv("CFT_BACKEND_DIR");
    OK(cft_init(folder, folder ? std::strlen(folder) : 0, &err));
    try {
        device();
    } catch (const failure &f) {
        std::printf("test_portable_ops: SKIP: %s\n", f.what());
        return 77;
    }
    const struct {
        const char *name;
        void (*run)();
    } tests[] = {{"rmsnorm", test_rmsnorm}, {"gated", test_gated}, {"rotate", test_rotate}, {"attention", test_attention}, {"loss", test_cross_entropy},
                 {"spread", test_spread}, {"widen", test_widen}, {"over_rows", test_product_over_rows}, {"lengths", test_lengths}, {"add", test_add_to_rows},
                 {"products", test_small_products}, {"kept", test_operands_kept}};
    for (const auto &t : tests) {
        if (argc < 2 || std::string(argv[1]) == t.name) {
            t.run();
        }
    }
    return finish("test_portable_ops");
}
