// test_cuda_attention.cpp - the CUDA kernels of attention, forward and backward, against a plain double-precision reference:
// head sizes, grouped heads, packs of segments and prefix trees, subsets of queries, strides, windows, soft caps.
#include "cuda_fixture.h"

#include <limits>
#include <numeric>

using namespace checks;
namespace cuda = cft::cuda;
using cft::cpu::attention_shape;

namespace {

// Largest error over largest value, against sums of the same rounded inputs. Outputs are rounded to bf16 (2^-9), and so are
// probabilities before they meet the values; seen: 3e-3.
constexpr double forward_tolerance = 8e-3;
constexpr double lse_tolerance     = 1e-5; // F32 all the way
// Gradients: also the score's gradient is rounded, and out, from which delta is made, is. Seen: 6e-3.
constexpr double backward_tolerance = 1.5e-2;
constexpr double least_value        = 0.1; // errors are seen against no less; inputs are of size 1

// ---- packs

std::vector<int32_t> segments(const std::vector<int> &lengths) {
    std::vector<int32_t> until;
    for (int length : lengths) {
        until.insert(until.end(), size_t(length), int32_t(until.size()) + length);
    }
    return until;
}

// A prefix, then branches that do not see each other, in [begin, end).
void grow_tree(std::vector<int32_t> &until, int begin, int end) {
    const int prefix = random_int(1, std::max(1, (end - begin) / 2)), middle = end - begin < 6 ? end : begin + prefix;
    std::fill(until.begin() + begin, until.begin() + middle, end);
    for (int at = middle; at < end;) {
        const int next = std::min(end, at + random_int(1, std::max(1, end - middle)));
        grow_tree(until, at, next);
        at = next;
    }
}

std::vector<int32_t> tree(int n) {
    std::vector<int32_t> until(static_cast<size_t>(n));
    grow_tree(until, 0, n);
    return until;
}

// How deep each token lies: the number of tokens before it that it sees.
std::vector<int32_t> depths(const std::vector<int32_t> &until) {
    std::vector<int32_t> depth(until.size());
    for (size_t i = 0; i < until.size(); i++) {
        for (size_t j = 0; j < i; j++) {
            depth[i] += until[j] > int32_t(i);
        }
    }
    return depth;
}

std::vector<int32_t> every(size_t n, size_t step, size_t from = 0) {
    std::vector<int32_t> chosen;
    for (size_t i = from; i < n; i += step) {
        chosen.push_back(int32_t(i));
    }
    return chosen;
}

struct attention_case {
    attention_shape      shape;
    std::vector<int32_t> until, queries;
    int32_t              window = 0;
    int64_t              padding = 0; // of all rows

    std::vector<int32_t> positions() const { return depths(until); }
    int64_t              n_tokens() const { return int64_t(until.size()); }
    int64_t              n_queries() const { return int64_t(queries.size()); }
    int64_t              ld_q() const { return int64_t(shape.n_head) * shape.head_dim + padding; }
    int64_t              ld_k() const { return int64_t(shape.n_head_kv) * shape.head_dim + 2 * padding; }
};

struct arrays {
    std::vector<float> q, k, v, dout;
};

struct results {
    std::vector<double> out, lse, dq, dk, dv; // in the matrices' layout with their strides
};

// The reference: every pair, in double, from the rounded inputs.
results reference(const attention_case &c, const arrays &in) {
    const int64_t d = c.shape.head_dim, group = c.shape.n_head / c.shape.n_head_kv, nq = c.n_queries(), nk = c.n_tokens();
    const auto    position = c.positions();
    results       r;
    r.out.assign(size_t(nq * c.ld_q()), 0);
    r.dq = r.out;
    r.dk.assign(size_t(nk * c.ld_k()), 0);
    r.dv = r.dk;
    r.lse.assign(size_t(c.shape.n_head * nq), 0);
    std::vector<double> p(static_cast<size_t>(nk)), slope(static_cast<size_t>(nk));
    for (int64_t h = 0; h < c.shape.n_head; h++) {
        for (int64_t i = 0; i < nq; i++) {
            const int32_t token = c.queries[size_t(i)];
            const float  *q = &in.q[size_t(i * c.ld_q() + h * d)], *g = &in.dout[size_t(i * c.ld_q() + h * d)];
            double       *out = &r.out[size_t(i * c.ld_q() + h * d)], *dq = &r.dq[size_t(i * c.ld_q() + h * d)];
            double        sum = 0;
            for (int64_t j = 0; j < nk; j++) {
                p[size_t(j)] = 0;
                const bool seen = j <= token && token < c.until[size_t(j)] &&
                                  (c.window == 0 || position[size_t(token)] - position[size_t(j)] < c.window);
                if (!seen) {
                    continue;
                }
                const float *k = &in.k[size_t(j * c.ld_k() + h / group * d)];
                double       s = 0;
                for (int64_t e = 0; e < d; e++) {
                    s += double(q[e]) * double(k[e]);
                }
                s *= double(c.shape.scale);
                slope[size_t(j)] = double(c.shape.scale);
                if (c.shape.soft_cap > 0) {
                    const double t = std::tanh(s / double(c.shape.soft_cap));
                    s              = double(c.shape.soft_cap) * t;
                    slope[size_t(j)] *= 1 - t * t;
                }
                p[size_t(j)] = std::exp(s);
                sum += p[size_t(j)];
            }
            r.lse[size_t(h * nq + i)] = std::log(sum);
            double delta              = 0;
            for (int64_t j = 0; j < nk; j++) {
                p[size_t(j)] /= sum;
                for (int64_t e = 0; e < d && p[size_t(j)] > 0; e++) {
                    out[e] += p[size_t(j)] * double(in.v[size_t(j * c.ld_k() + h / group * d + e)]);
                }
            }
            for (int64_t e = 0; e < d; e++) {
                delta += out[e] * double(g[e]);
            }
            for (int64_t j = 0; j < nk; j++) {
                if (p[size_t(j)] == 0) {
                    continue;
                }
                const size_t at = size_t(j * c.ld_k() + h / group * d);
                double       dp = 0;
                for (size_t e = 0; e < size_t(d); e++) {
                    dp += double(g[e]) * double(in.v[at + e]);
                    r.dv[at + e] += p[size_t(j)] * double(g[e]);
                }
                const double ds = p[size_t(j)] * (dp - delta) * slope[size_t(j)];
                for (size_t e = 0; e < size_t(d); e++) {
                    dq[e] += ds * double(in.k[at + e]);
                    r.dk[at + e] += ds * double(q[e]);
                }
            }
        }
    }
    return r;
}

// Columns beyond a matrix's own keep what they held (NaN): those are not compared but looked at.
double compare(const std::vector<bf16> &got, const std::vector<double> &want, int64_t ld, int64_t width) {
    std::vector<double> a, b;
    for (size_t i = 0; i < got.size(); i++) {
        if (int64_t(i) % ld < width) {
            a.push_back(double(to_float(got[i])));
            b.push_back(want[i]);
        } else {
            CHECK(std::isnan(to_float(got[i])));
        }
    }
    // Of a token that sees itself only, the gradient is 0 but for rounding.
    const double largest = norm(b) > 0 ? std::fabs(*std::max_element(b.begin(), b.end(), [](double x, double y) { return std::fabs(x) < std::fabs(y); })) : 0;
    return worst(a, b) * std::max(largest, 1e-30) / std::max(largest, least_value);
}

double worst_forward = 0, worst_backward = 0, worst_lse = 0; // of all cases, printed at the end
int    n_pairs = 0, n_pairs_equal = 0; // forward passes with heads in pairs, and those with the bits of heads one by one
int    n_turned = 0, n_turned_equal = 0; // passes that turn heads or turn them back, and those with the bits of one that leaves that to a pass of its own
int    n_stored = 0, n_equal = 0;      // backward passes with stored gradients of scores, and those with the bits of one that computes them again

constexpr bool on_shim() {
#if defined(__CUDACC__)
    return false;
#else
    return true;
#endif
}

// With gradients of scores stored, of as many heads at a time: as near to the reference, and the same bits as without, where a compiler does not round
// scores otherwise in two kernels.
void run_stored(const attention_case &c, const cuda::attention_view &view, cuda::attention_gradient m, const results &want, int heads_at_a_time,
                const std::vector<std::vector<bf16>> &again) {
    const auto    &s = c.shape;
    const size_t   each = cuda::stored_score_bytes(s, view);
    on_device<bf16> scores(each / sizeof(bf16) * size_t(heads_at_a_time)), dq(again[0].size()), dk(again[1].size()), dv(again[2].size());
    m.dq = dq.data(), m.dk = dk.data(), m.dv = dv.data(), m.scores = scores.data(), m.heads_at_a_time = heads_at_a_time;
    cuda::attention_backward(s, view, m, nullptr);
    const int64_t width_k = int64_t(s.n_head_kv) * s.head_dim;
    const double  error   = larger(larger(compare(dq.host(), want.dq, c.ld_q(), int64_t(s.n_head) * s.head_dim), compare(dk.host(), want.dk, c.ld_k(), width_k)),
                                   compare(dv.host(), want.dv, c.ld_k(), width_k));
    CHECK(error <= backward_tolerance);
    const bool equal = same_bytes(dq.host(), again[0]) && same_bytes(dk.host(), again[1]) && same_bytes(dv.host(), again[2]);
    CHECK(equal || !on_shim());
    n_stored++;
    n_equal += equal;
    worst_backward = larger(worst_backward, error);
    const auto written = scores.host(); // each pair of the lists, and nothing is missing
    CHECK(std::none_of(written.begin(), written.end(), [](bf16 x) { return x.bits == 0xffff; }));
}

// Queries that are made on the way are what turn_heads makes, for the way back too, and outputs are those of such queries.
void run_with_queries(const attention_case &c, const cuda::attention_view &view, const bf16 *k, const bf16 *v) {
    const auto  &s = c.shape;
    static int   n_cases = 0;
    const int    which = n_cases++, n_rot = which % 3 == 0 ? s.head_dim : which % 3 == 1 ? s.head_dim / 32 * 16 : 0;
    const size_t size = size_t(c.n_queries() * c.ld_q()), heads = size_t(c.n_queries() * s.n_head);
    std::vector<int32_t> table_rows(c.queries.rbegin(), c.queries.rend());
    on_device<int32_t>   rows(table_rows);
    on_device<float>     w(random_floats(size_t(s.head_dim))), table(random_floats(size_t(c.n_tokens() * std::max(n_rot, 1))));
    on_device<bf16>      x(all_to<bf16>(random_floats(size)));
    std::vector<std::vector<bf16>>  q_seen, out_seen;
    std::vector<std::vector<float>> lse_seen, rstd_seen;
    for (const int way : {0, 1, 2}) { // turned before; by attention, which has a pass for it; inside
        on_device<bf16>          q(all_to<bf16>(std::vector<float>(size, NAN))), out(size);
        on_device<float>         lse(heads), rstd(heads);
        const cuda::head_source  queries = {{s.n_head, s.head_dim, which % 4 != 3 ? w.data() : nullptr, 1e-5f, rstd.data(), n_rot, which % 2 == 0, table.data(), rows.data()},
                                            x.data(), c.ld_q()};
        cuda::attention_ways how = {true};
        if (way == 0) {
            cuda::turn_heads(queries.map, x.data(), c.ld_q(), c.n_queries(), q.data(), c.ld_q(), nullptr);
        } else {
            how.queries = &queries, how.inside = way == 2;
        }
        cuda::attention(s, view, q.data(), c.ld_q(), k, c.ld_k(), v, c.ld_k(), out.data(), c.ld_q(), lse.data(), nullptr, how);
        q_seen.push_back(q.host()), out_seen.push_back(out.host()), lse_seen.push_back(lse.host()), rstd_seen.push_back(rstd.host());
    }
    for (const size_t way : {size_t(1), size_t(2)}) {
        const bool equal = same_bytes(q_seen[way], q_seen[0]) && same_bytes(out_seen[way], out_seen[0]) && same_bytes(lse_seen[way], lse_seen[0]) &&
                           same_bytes(rstd_seen[way], rstd_seen[0]);
        CHECK(equal || !on_shim());
        n_turned++;
        n_turned_equal += equal;
        const auto as_doubles = [](const std::vector<bf16> &b) {
            const std::vector<float> f = all_to_float(b);
            return std::vector<double>(f.begin(), f.end());
        };
        const int64_t width = int64_t(s.n_head) * s.head_dim;
        CHECK(compare(q_seen[way], as_doubles(q_seen[0]), c.ld_q(), width) <= forward_tolerance);
        CHECK(compare(out_seen[way], as_doubles(out_seen[0]), c.ld_q(), width) <= forward_tolerance);
    }
}

// Gradients that go back through rotations and norms of heads before they are written have the bits that they have by a pass of its own.
void run_turned(const attention_case &c, const cuda::attention_view &view, cuda::attention_gradient m, const std::vector<std::vector<bf16>> &again) {
    const auto         &s = c.shape;
    static int          n_cases = 0;
    const int           which = n_cases++, n_rot = which % 3 == 0 ? s.head_dim : which % 3 == 1 ? s.head_dim / 32 * 16 : 0;
    const bool          normed = which % 4 != 3, halves = which % 2 == 0, stored = which / 2 % 2 == 0;
    const int64_t       n_q = c.n_queries(), n_k = c.n_tokens();
    const auto          positive = [](size_t n) {
        std::vector<float> v = random_floats(n);
        std::transform(v.begin(), v.end(), v.begin(), [](float x) { return 0.5f + std::fabs(x); });
        return v;
    };
    std::vector<int32_t> table_rows(c.queries.rbegin(), c.queries.rend()); // any
    on_device<int32_t>   rows(table_rows);
    on_device<float>     w(random_floats(size_t(s.head_dim))), table(random_floats(size_t(n_k * std::max(n_rot, 1)))), rstd_q(positive(size_t(n_q * s.n_head))),
        rstd_k(positive(size_t(n_k * s.n_head_kv)));
    on_device<bf16>      x_q(all_to<bf16>(random_floats(size_t(n_q * c.ld_q())))), x_k(all_to<bf16>(random_floats(size_t(n_k * c.ld_k())))), dq(again[0]), dk(again[1]);
    const cuda::head_map of_q = {s.n_head, s.head_dim, normed ? w.data() : nullptr, 0, rstd_q.data(), n_rot, halves, table.data(), rows.data()};
    const cuda::head_map of_k = {s.n_head_kv, s.head_dim, normed ? w.data() : nullptr, 0, rstd_k.data(), n_rot, halves, table.data(), nullptr};
    const bf16 *const    source_q = normed ? x_q.data() : nullptr, *const source_k = normed ? x_k.data() : nullptr;
    cuda::turn_heads_backward(of_q, dq.data(), c.ld_q(), source_q, c.ld_q(), n_q, dq.data(), c.ld_q(), nullptr);
    cuda::turn_heads_backward(of_k, dk.data(), c.ld_k(), source_k, c.ld_k(), n_k, dk.data(), c.ld_k(), nullptr);

    const size_t    each = cuda::stored_score_bytes(s, view) / sizeof(bf16);
    on_device<bf16> scores(stored ? each * size_t(s.n_head_kv) : 1), dv(again[2].size());
    m.dv = dv.data(), m.turned = true, m.queries = {of_q, source_q, c.ld_q()}, m.keys = {of_k, source_k, c.ld_k()};
    if (stored) {
        m.scores = scores.data(), m.heads_at_a_time = s.n_head_kv;
    }
    for (const bool inside : {true, false}) {
        on_device<bf16> q(again[0].size()), k(again[1].size());
        m.dq = q.data(), m.dk = k.data(), m.inside = inside;
        cuda::attention_backward(s, view, m, nullptr);
        const bool equal = same_bytes(q.host(), dq.host()) && same_bytes(k.host(), dk.host()) && same_bytes(dv.host(), again[2]);
        CHECK(equal || !on_shim());
        n_turned++;
        n_turned_equal += equal;
        const auto near = [](const std::vector<bf16> &got, const std::vector<bf16> &want, int64_t ld, int64_t width) {
            const std::vector<float> w_ = all_to_float(want);
            return compare(got, std::vector<double>(w_.begin(), w_.end()), ld, width) <= backward_tolerance;
        };
        CHECK(near(q.host(), dq.host(), c.ld_q(), int64_t(s.n_head) * s.head_dim) && near(k.host(), dk.host(), c.ld_k(), int64_t(s.n_head_kv) * s.head_dim));
    }
}

void run(const attention_case &c) {
    const auto &s = c.shape;
    arrays      in;
    in.q    = random_rounded(size_t(c.n_queries() * c.ld_q()));
    in.k    = random_rounded(size_t(c.n_tokens() * c.ld_k()));
    in.v    = random_rounded(size_t(c.n_tokens() * c.ld_k()));
    in.dout = random_rounded(size_t(c.n_queries() * c.ld_q()));
    const results want = reference(c, in);

    const auto                  positions = c.positions();
    const cuda::attention_lists lists(c.until.data(), c.n_tokens(), c.queries.data(), c.n_queries(), positions.data(), c.window, true);
    CHECK(lists.words().size() <= cuda::attention_lists::max_words(c.n_tokens(), c.n_queries(), true));
    on_device<int32_t>         words(lists.words());
    const cuda::attention_view view(lists, words.data());

    on_device<bf16>  q(all_to<bf16>(in.q)), k(all_to<bf16>(in.k)), v(all_to<bf16>(in.v)), dout(all_to<bf16>(in.dout));
    on_device<bf16>  out(in.q.size()), dq(in.q.size()), dk(in.k.size()), dv(in.k.size());
    on_device<float> lse(want.lse.size()), delta(want.lse.size());
    cuda::attention(s, view, q.data(), c.ld_q(), k.data(), c.ld_k(), v.data(), c.ld_k(), out.data(), c.ld_q(), lse.data(), nullptr);
    const int64_t width_q = int64_t(s.n_head) * s.head_dim, width_k = int64_t(s.n_head_kv) * s.head_dim;
    const double  forward = compare(out.host(), want.out, c.ld_q(), width_q), of_lse = worst(lse.host(), want.lse);
    CHECK(forward <= forward_tolerance);
    CHECK(of_lse <= lse_tolerance);

    if (s.n_head / s.n_head_kv % 2 == 0) { // heads in pairs, where there are such kernels
        on_device<bf16>  out_of_pairs(in.q.size());
        on_device<float> lse_of_pairs(want.lse.size());
        cuda::attention(s, view, q.data(), c.ld_q(), k.data(), c.ld_k(), v.data(), c.ld_k(), out_of_pairs.data(), c.ld_q(), lse_of_pairs.data(), nullptr, {true});
        CHECK(compare(out_of_pairs.host(), want.out, c.ld_q(), width_q) <= forward_tolerance && worst(lse_of_pairs.host(), want.lse) <= lse_tolerance);
        const bool equal = same_bytes(out_of_pairs.host(), out.host()) && same_bytes(lse_of_pairs.host(), lse.host());
        CHECK(equal || !on_shim());
        n_pairs++;
        n_pairs_equal += equal;
    }
    const cuda::attention_gradient m = {q.data(), k.data(),  v.data(), out.data(), dout.data(), lse.data(), delta.data(), dq.data(), dk.data(),
                                        dv.data(), c.ld_q(), c.ld_k(), c.ld_k(),   c.ld_q(),    c.ld_q(),   c.ld_q(),     c.ld_k(),  c.ld_k()};
    cuda::attention_backward(s, view, m, nullptr);
    double backward = compare(dq.host(), want.dq, c.ld_q(), width_q);
    backward        = larger(backward, compare(dk.host(), want.dk, c.ld_k(), width_k));
    backward        = larger(backward, compare(dv.host(), want.dv, c.ld_k(), width_k));
    CHECK(backward <= backward_tolerance);
    if (!(forward <= forward_tolerance && of_lse <= lse_tolerance && backward <= backward_tolerance)) {
        std::fprintf(stderr, "%s: forward %.2g, lse %.2g, dq %.2g, dk %.2g, dv %.2g\n", where.c_str(), forward, of_lse,
                     compare(dq.host(), want.dq, c.ld_q(), width_q), compare(dk.host(), want.dk, c.ld_k(), width_k),
                     compare(dv.host(), want.dv, c.ld_k(), width_k));
    }
    worst_forward  = larger(worst_forward, forward);
    worst_lse      = larger(worst_lse, of_lse);
    worst_backward = larger(worst_backward, backward);

    const std::vector<std::vector<bf16>> again = {dq.host(), dk.host(), dv.host()};
    for (int heads = s.n_head_kv; heads > 0; heads = heads == 1 ? 0 : heads == 2 ? 1 : 2) { // all at once, and the last fewer than those before
        run_stored(c, view, m, want, heads, again);
    }
    if (static int n_cases = 0; n_cases++ % 3 == 0) { // every third case does: of each kernel, and of each order of blocks
        run_turned(c, view, m, again);
        run_with_queries(c, view, k.data(), v.data());
    }
}

attention_shape shape_of(int n_head, int n_head_kv, int head_dim, float cap = 0) {
    return {n_head, n_head_kv, head_dim, 1.0f / std::sqrt(float(head_dim)), cap};
}

void test_shapes() {
    for (int head_dim : {64, 80, 96, 128, 256}) {
        CHECK(cuda::can_attend(head_dim));
        in_both_orders("heads of " + std::to_string(head_dim), [&] {
            const auto until = segments({70, 3, 100});
            run({shape_of(2, 1, head_dim), until, every(until.size(), 1), 0, 16});
        });
    }
    for (const auto &[n_head, n_head_kv] : std::vector<std::pair<int, int>>{{3, 1}, {3, 3}, {8, 2}, {6, 3}}) {
        in_both_orders(std::to_string(n_head) + " heads, " + std::to_string(n_head_kv) + " of keys", [&, h = n_head, kv = n_head_kv] {
            const auto until = segments({66, 64});
            run({shape_of(h, kv, 128), until, every(until.size(), 1), 0, 8});
        });
    }
    where = "unknown heads";
    CHECK(!cuda::can_attend(72) && !cuda::can_attend(32));
}

void test_masks() {
    const std::vector<std::pair<std::string, std::vector<int32_t>>> packs = {
        {"one token", segments({1})},
        {"one segment", segments({200})},
        {"whole tiles", segments({128, 64})},
        {"short segments", segments({5, 1, 1, 17, 40, 9, 63, 30})},
    };
    for (const auto &[name, until] : packs) {
        in_both_orders(name, [&, u = until] { run({shape_of(1, 1, 64), u, every(u.size(), 1)}); });
        in_both_orders(name + ", some queries", [&, u = until] { run({shape_of(2, 2, 64), u, every(u.size(), 3, u.size() > 1 ? 1 : 0)}); });
        in_both_orders(name + ", window", [&, u = until] { run({shape_of(1, 1, 64), u, every(u.size(), 1), 37}); });
    }
    in_both_orders("keys that no query sees", [&] {
        const auto until = segments({100, 100});
        run({shape_of(2, 1, 64), until, every(until.size(), 1, 150)});
        run({shape_of(2, 1, 64), until, {}}); // gradients are 0 all the same
    });
    in_both_orders("tree", [&] {
        const auto until = tree(250);
        run({shape_of(4, 2, 64), until, every(until.size(), 1)});
    });
    in_both_orders("tree, window, some queries", [&] {
        const auto until = tree(250);
        run({shape_of(2, 1, 64), until, every(until.size(), 2), 20, 8});
    });
    in_both_orders("soft cap", [&] {
        const auto until = segments({90, 41});
        auto       shape = shape_of(2, 1, 64, 2.0f); // small enough to bend these scores
        run({shape, until, every(until.size(), 1)});
        shape.head_dim = 256;
        run({shape, until, every(until.size(), 1)});
        shape.head_dim = 128;
        run({shape, until, every(until.size(), 2)});
    });
}

// The number of heads that are stored at a time: what there is room for, evenly, where so many fill a large device.
void test_heads_to_store() {
    where = "heads to store";
    const auto heads = [](const std::vector<int32_t> &until, int n_head, int n_head_kv, size_t tiles, bool with_places = true) {
        const cuda::attention_lists lists(until.data(), int64_t(until.size()), nullptr, int64_t(until.size()), nullptr, 0, with_places);
        const cuda::attention_view  view(lists, lists.words().data());
        const attention_shape       shape = shape_of(n_head, n_head_kv, 128);
        CHECK(cuda::stored_score_bytes(shape, view) == size_t(view.n_pairs) * size_t(n_head / n_head_kv) * 8192);
        return cuda::heads_to_store(shape, view, tiles * 8192);
    };
    const auto four = segments({2048, 2048, 2048, 2048}), one = segments({8192}), short_ones = segments(std::vector<int>(64, 128));
    const size_t pairs = 4 * 528;
    CHECK(heads(four, 32, 8, 8 * 4 * pairs) == 8);
    CHECK(heads(four, 32, 8, 8 * 4 * pairs - 1) == 4); // 7 fit: 4 and 4
    CHECK(heads(four, 32, 8, 4 * 4 * pairs) == 4);
    CHECK(heads(four, 32, 8, 4 * 4 * pairs - 1) == 0); // 3 would leave a third of the device idle
    CHECK(heads(four, 32, 8, pairs) == 0);
    CHECK(heads(four, 32, 8, 8 * 4 * pairs, false) == 0); // lists without places
    const size_t of_one = 128 * 129 / 2;
    CHECK(heads(one, 32, 8, 8 * 4 * of_one) == 8 && heads(one, 32, 8, 2 * 4 * of_one) == 0);
    CHECK(heads(short_ones, 16, 8, 8 * 2 * 192) == 8 && heads(short_ones, 16, 8, 3 * 2 * 192) == 3);
    CHECK(heads(segments({5}), 1, 1, 1) == 1 && heads(segments({5}), 2, 1, 1) == 0);
}

// Two runs give the same bits, also where blocks and threads go the other way round.
void test_same_bits() {
    std::vector<std::vector<bf16>> seen;
    in_both_orders("same bits", [&] {
        const auto                  until = tree(200);
        const cuda::attention_lists lists(until.data(), 200, nullptr, 200);
        on_device<int32_t>          words(lists.words());
        const cuda::attention_view  view(lists, words.data());
        const attention_shape       shape = shape_of(4, 2, 64);
        on_device<bf16>             q(all_to<bf16>(random_floats(200 * 256))), k(all_to<bf16>(random_floats(200 * 128))),
            v(all_to<bf16>(random_floats(200 * 128))), dout(all_to<bf16>(random_floats(200 * 256))), out(200 * 256), dq(200 * 256), dk(200 * 128),
            dv(200 * 128);
        on_device<float> lse(4 * 200), delta(4 * 200);
        cuda::attention(shape, view, q.data(), 256, k.data(), 128, v.data(), 128, out.data(), 256, lse.data(), nullptr);
        cuda::attention_backward(shape, view,
                                 {q.data(), k.data(), v.data(), out.data(), dout.data(), lse.data(), delta.data(), dq.data(), dk.data(), dv.data(),
                                  256, 128, 128, 256, 256, 256, 128, 128},
                                 nullptr);
        for (const auto *x : {&out, &dq, &dk, &dv}) {
            seen.push_back(x->host());
        }
    });
    for (size_t i = 0; i < 4; i++) {
        CHECK(same_bytes(seen[i], seen[i + 4]));
    }
}

} // namespace

int main() {
    test_heads_to_store();
    for (const bool warpgroups : {false, true}) {
        cuda::use_warpgroups(warpgroups);
        test_shapes();
        test_masks();
        test_same_bits();
    }
    std::printf("largest errors over largest values: out %.2g, log-sum-exp %.2g, gradients %.2g\n", worst_forward, worst_lse, worst_backward);
    std::printf("heads in pairs: %d of %d have the bits of heads one by one\n", n_pairs_equal, n_pairs);
    std::printf("gradients from stored gradients of scores: %d of %d have the bits of those that are computed again\n", n_equal, n_stored);
    std::printf("heads that are turned, and back: %d of %d have the bits of a pass of its own\n", n_turned_equal, n_turned);
    return finish("test_cuda_attention");
}
