// test_attention.cpp - attention against a plain double-precision reference, forward and backward, on every instruction
// set that this CPU has: head sizes, grouped heads, packs of segments and prefix trees, subsets of queries, strides, windows,
// soft caps.
#include "checks.h"
#include "cpu/attention.h"
#include "cpu/attention_kernels.h"
#include "failure.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <numeric>
#include <random>
#include <string>
#include <vector>

using namespace cft;
using namespace checks;
using namespace cft::cpu;

namespace {

// Largest error over largest value. Sums of up to 256 products and 300 probabilities in float; seen: 6e-7.
constexpr double forward_tolerance = 2e-6;
// A soft cap's hyperbolic tangent is some 1e-7 off whatever its value, which a cap of 50 makes of the score; seen: 3e-6.
constexpr double capped_tolerance = 1e-5;
// Gradients pass through two more sums and the difference dP - D; seen: 7e-6.
constexpr double backward_tolerance = 2e-5;
// Central differences of the float forward with steps of 1e-2: rounding over step.
constexpr double difference_tolerance = 2e-3;

// ---- packs

std::vector<int32_t> one_segment(int n) { return std::vector<int32_t>(static_cast<size_t>(n), n); }

std::vector<int32_t> segments(const std::vector<int> &lengths) {
    std::vector<int32_t> until;
    for (int length : lengths) {
        until.insert(until.end(), static_cast<size_t>(length), static_cast<int32_t>(until.size()) + length);
    }
    return until;
}

// Fills until[begin, end) with a subtree: a shared prefix, then branches that do not see each other.
void grow_tree(std::vector<int32_t> &until, int begin, int end) {
    const int prefix = random_int(1, std::max(1, (end - begin) / 2));
    const int middle = end - begin < 4 ? end : begin + prefix;
    std::fill(until.begin() + begin, until.begin() + middle, end);
    for (int at = middle; at < end;) {
        const int next = std::min(end, at + random_int(1, std::max(1, end - middle)));
        grow_tree(until, at, next);
        at = next;
    }
}

std::vector<int32_t> prefix_forest(int n) {
    std::vector<int32_t> until(static_cast<size_t>(n));
    for (int at = 0; at < n;) {
        const int next = std::min(n, at + random_int(1, n));
        grow_tree(until, at, next);
        at = next;
    }
    return until;
}

std::vector<int32_t> some_of(int n, double share) {
    std::vector<int32_t> chosen;
    for (int t = 0; t < n; t++) {
        if (std::uniform_real_distribution<double>()(random_bits) < share) {
            chosen.push_back(t);
        }
    }
    return chosen;
}

// ---- a case, its reference and its run

struct attention_case {
    attention_shape      shape;
    std::vector<int32_t> visible_until, queries;
    size_t               extra_columns; // of every matrix beyond its own, so that strides differ from widths
    std::vector<int32_t> positions; // with a window
    int32_t              window = 0;

    bool sees(int32_t query, size_t key) const {
        return visible_until[key] > query && (window == 0 || positions[static_cast<size_t>(query)] - positions[key] < window);
    }

    size_t n_tokens() const { return visible_until.size(); }
    size_t n_queries() const { return queries.size(); }
    size_t q_columns() const { return static_cast<size_t>(shape.n_head * shape.head_dim); }
    size_t k_columns() const { return static_cast<size_t>(shape.n_head_kv * shape.head_dim); }
    size_t ld_q() const { return q_columns() + extra_columns; }
    size_t ld_k() const { return k_columns() + 2 * extra_columns; }
};

struct inputs {
    std::vector<float> q, k, v, dout;

    explicit inputs(const attention_case &c)
        : q(random_floats(c.n_queries() * c.ld_q())), k(random_floats(c.n_tokens() * c.ld_k())),
          v(random_floats(c.n_tokens() * c.ld_k())), dout(random_floats(c.n_queries() * c.ld_q())) {}
};

template <typename Float> struct outputs {
    std::vector<Float> out, lse, dq, dk, dv;

    outputs(const attention_case &c, Float fill)
        : out(c.n_queries() * c.ld_q(), fill), lse(static_cast<size_t>(c.shape.n_head) * c.n_queries(), fill), dq(out),
          dk(c.n_tokens() * c.ld_k(), fill), dv(dk) {}
};

constexpr float untouched = 12345.0f; // in the columns that do not belong to the result

outputs<double> reference(const attention_case &c, const inputs &in) {
    outputs<double> r(c, 0.0);
    const size_t    d = static_cast<size_t>(c.shape.head_dim), group = static_cast<size_t>(c.shape.n_head / c.shape.n_head_kv);
    const auto      dot = [d](const auto *a, const auto *b) {
        double sum = 0;
        for (size_t t = 0; t < d; t++) {
            sum += static_cast<double>(a[t]) * static_cast<double>(b[t]);
        }
        return sum;
    };
    for (size_t h = 0; h < static_cast<size_t>(c.shape.n_head); h++) {
        for (size_t i = 0; i < c.n_queries(); i++) {
            const size_t        at = i * c.ld_q() + h * d, token = static_cast<size_t>(c.queries[i]);
            std::vector<size_t> keys;
            std::vector<double> p, slopes; // of the scores, capped, by q . k
            double              sum = 0;
            for (size_t j = 0; j <= token; j++) {
                if (c.sees(c.queries[i], j)) {
                    keys.push_back(j * c.ld_k() + h / group * d);
                    double score = dot(&in.q[at], &in.k[keys.back()]) * static_cast<double>(c.shape.scale);
                    slopes.push_back(static_cast<double>(c.shape.scale));
                    if (c.shape.soft_cap > 0) {
                        const double cap = static_cast<double>(c.shape.soft_cap), t = std::tanh(score / cap);
                        score = cap * t;
                        slopes.back() *= 1 - t * t;
                    }
                    p.push_back(score);
                }
            }
            const double top = *std::max_element(p.begin(), p.end());
            for (double &x : p) {
                x = std::exp(x - top);
                sum += x;
            }
            r.lse[h * c.n_queries() + i] = top + std::log(sum);
            for (size_t j = 0; j < keys.size(); j++) {
                p[j] /= sum;
                for (size_t t = 0; t < d; t++) {
                    r.out[at + t] += p[j] * static_cast<double>(in.v[keys[j] + t]);
                }
            }
            double product = 0;
            for (size_t t = 0; t < d; t++) {
                product += r.out[at + t] * static_cast<double>(in.dout[at + t]);
            }
            for (size_t j = 0; j < keys.size(); j++) {
                const double dp = dot(&in.dout[at], &in.v[keys[j]]);
                const double ds = p[j] * (dp - product) * slopes[j];
                for (size_t t = 0; t < d; t++) {
                    r.dq[at + t] += ds * static_cast<double>(in.k[keys[j] + t]);
                    r.dk[keys[j] + t] += ds * static_cast<double>(in.q[at + t]);
                    r.dv[keys[j] + t] += p[j] * static_cast<double>(in.dout[at + t]);
                }
            }
        }
    }
    return r;
}

outputs<float> run(const attention_case &c, const inputs &in, thread_pool &pool) {
    outputs<float>          r(c, untouched);
    const attention_mask    mask(c.visible_until.data(), c.n_tokens(), c.queries.data(), c.n_queries(), c.positions.data(), c.window);
    const size_t            bytes = attention_workspace_bytes(c.shape, c.n_tokens(), c.n_queries(), pool.size());
    std::vector<char>       workspace(bytes, '\x7f'); // what was there must not matter
    attention_forward_args  f{in.q.data(), in.k.data(), in.v.data(), r.out.data(), r.lse.data(),
                              c.ld_q(),    c.ld_k(),    c.ld_k(),    c.ld_q()};
    attention_forward(c.shape, mask, f, workspace.data(), pool);
    std::fill(workspace.begin(), workspace.end(), '\x7f');
    attention_backward_args b{in.q.data(), in.k.data(), in.v.data(), r.out.data(), r.lse.data(), in.dout.data(),
                              r.dq.data(), r.dk.data(), r.dv.data(), c.ld_q(),     c.ld_k(),     c.ld_k(),
                              c.ld_q(),    c.ld_q(),    c.ld_q(),    c.ld_k(),     c.ld_k()};
    attention_backward(c.shape, mask, b, workspace.data(), pool);
    return r;
}

// ---- comparisons

// Inputs are of size 1, so values below this are differences of larger ones: a token that sees only itself has dq = 0.
constexpr double smallest_largest = 0.1;

// The largest error of the columns that belong to the matrix over the largest value; NaN counts as infinite.
double error_of(const std::vector<float> &got, const std::vector<double> &want, size_t columns, size_t ld) {
    double error = 0, largest = smallest_largest;
    for (size_t i = 0; i < got.size(); i++) {
        if (i % ld < columns) {
            const double e = std::fabs(static_cast<double>(got[i]) - want[i]);
            error          = std::isnan(e) ? std::numeric_limits<double>::infinity() : std::max(error, e);
            largest        = std::max(largest, std::fabs(want[i]));
        }
    }
    return error / largest;
}

bool rest_untouched(const std::vector<float> &got, size_t columns, size_t ld) {
    for (size_t i = 0; i < got.size(); i++) {
        if (i % ld >= columns && got[i] != untouched) {
            return false;
        }
    }
    return true;
}

bool same_bits(const std::vector<float> &a, const std::vector<float> &b) {
    return a.size() == b.size() && (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0);
}

double worst_forward = 0, worst_backward = 0;

void compare(const attention_case &c, const outputs<float> &got, const outputs<double> &want) {
    const double forward = std::max(error_of(got.out, want.out, c.q_columns(), c.ld_q()),
                                    error_of(got.lse, want.lse, 1, 1));
    const double backward = std::max({error_of(got.dq, want.dq, c.q_columns(), c.ld_q()),
                                      error_of(got.dk, want.dk, c.k_columns(), c.ld_k()),
                                      error_of(got.dv, want.dv, c.k_columns(), c.ld_k())});
    CHECK(forward <= (c.shape.soft_cap > 0 ? capped_tolerance : forward_tolerance));
    CHECK(backward <= backward_tolerance);
    CHECK(rest_untouched(got.out, c.q_columns(), c.ld_q()) && rest_untouched(got.dq, c.q_columns(), c.ld_q()));
    CHECK(rest_untouched(got.dk, c.k_columns(), c.ld_k()) && rest_untouched(got.dv, c.k_columns(), c.ld_k()));
    worst_forward  = std::max(worst_forward, forward);
    worst_backward = std::max(worst_backward, backward);
}

const char *const all_names[] = {"generic", "avx2", "avx512"};

void on_every_instruction_set(const std::string &name, const attention_case &c) {
    const inputs          in(c);
    const outputs<double> want = reference(c, in);
    for (const char *set : all_names) {
        if (!attention_use_kernels(set)) {
            continue;
        }
        outputs<float> first(c, 0.0f);
        for (int n_threads : {1, 2, 5}) {
            where = name + ", " + set + ", " + std::to_string(n_threads) + " threads";
            thread_pool          pool(n_threads);
            const outputs<float> got = run(c, in, pool), again = run(c, in, pool);
            compare(c, got, want);
            CHECK(same_bits(got.out, again.out) && same_bits(got.lse, again.lse) && same_bits(got.dq, again.dq) &&
                  same_bits(got.dk, again.dk) && same_bits(got.dv, again.dv));
            if (n_threads == 1) {
                first = got;
            }
            // Only dq is summed in an order that depends on the thread count.
            CHECK(same_bits(got.out, first.out) && same_bits(got.lse, first.lse) && same_bits(got.dk, first.dk) &&
                  same_bits(got.dv, first.dv));
        }
    }
}

std::vector<int32_t> all_of(size_t n) {
    std::vector<int32_t> all(n);
    std::iota(all.begin(), all.end(), 0);
    return all;
}

attention_case make_case(int n_head, int n_head_kv, int head_dim, const std::vector<int32_t> &until,
                         const std::vector<int32_t> &queries, size_t extra_columns) {
    return {{n_head, n_head_kv, head_dim, 1.0f / std::sqrt(static_cast<float>(head_dim))}, until, queries, extra_columns, {}, 0};
}

// Depths in the forest: a token comes after the last one before it that it still sees.
std::vector<int32_t> depths(const std::vector<int32_t> &until) {
    std::vector<int32_t> depth(until.size(), 0);
    for (size_t i = 0; i < until.size(); i++) {
        for (size_t j = 0; j < i; j++) {
            if (until[j] > static_cast<int32_t>(i)) {
                depth[i] = depth[j] + 1;
            }
        }
    }
    return depth;
}

// ---- tests

void head_sizes() {
    for (int head_dim = 8; head_dim <= 256; head_dim += head_dim < 80 ? 8 : 48) {
        on_every_instruction_set("head_dim " + std::to_string(head_dim),
                                 make_case(2, 1, head_dim, one_segment(75), all_of(75), 0));
    }
    on_every_instruction_set("head_dim 96", make_case(2, 1, 96, one_segment(75), all_of(75), 0));
    on_every_instruction_set("head_dim 256", make_case(2, 1, 256, one_segment(130), all_of(130), 8));
    // Rows a multiple of 1024 bytes apart take a way of their own.
    on_every_instruction_set("crowded rows", make_case(4, 2, 128, one_segment(140), all_of(140), 0));
    on_every_instruction_set("crowded wide rows", make_case(2, 1, 256, one_segment(70), some_of(70, 0.5), 0));
}

void lengths() {
    for (int n : {1, 2, 3, 7, 15, 16, 17, 31, 63, 64, 65, 66, 127, 128, 129, 191, 200, 257, 300}) {
        on_every_instruction_set(std::to_string(n) + " tokens", make_case(3, 1, 16, one_segment(n), all_of(static_cast<size_t>(n)), 0));
    }
}

void groups() {
    const int heads[][2] = {{1, 1}, {3, 3}, {4, 2}, {6, 2}, {9, 3}, {8, 2}, {4, 1}, {5, 5}};
    for (const auto &h : heads) {
        const std::string name = std::to_string(h[0]) + " heads over " + std::to_string(h[1]);
        on_every_instruction_set(name, make_case(h[0], h[1], 24, one_segment(150), all_of(150), 5));
        on_every_instruction_set(name + ", a forest", make_case(h[0], h[1], 32, prefix_forest(170), all_of(170), 0));
    }
}

void packs() {
    on_every_instruction_set("segments", make_case(2, 1, 64, segments({5, 64, 1, 70, 3, 128}), all_of(271), 3));
    on_every_instruction_set("single tokens", make_case(2, 2, 8, segments(std::vector<int>(90, 1)), all_of(90), 0));
    on_every_instruction_set("whole tiles", make_case(2, 1, 64, segments({128, 128}), all_of(256), 0));
    for (int i = 0; i < 12; i++) {
        const int n = random_int(2, 300);
        on_every_instruction_set("forest " + std::to_string(i), make_case(4, 2, 16, prefix_forest(n), all_of(static_cast<size_t>(n)), 1));
    }
    // Not a forest: spans that cross. Any visible_until is defined by the formula alone.
    for (int i = 0; i < 4; i++) {
        std::vector<int32_t> until(180);
        for (int j = 0; j < 180; j++) {
            until[static_cast<size_t>(j)] = random_int(j + 1, 180);
        }
        on_every_instruction_set("crossing spans " + std::to_string(i), make_case(2, 1, 40, until, all_of(180), 0));
    }
}

void query_subsets() {
    for (double share : {0.02, 0.25, 0.6, 0.95}) {
        const std::string name = "queries " + std::to_string(share);
        on_every_instruction_set(name, make_case(3, 3, 64, one_segment(260), some_of(260, share), 0));
        on_every_instruction_set(name + " of a forest", make_case(4, 2, 24, prefix_forest(280), some_of(280, share), 7));
    }
    on_every_instruction_set("the last token only", make_case(2, 1, 32, one_segment(200), {199}, 0));
    on_every_instruction_set("the first token only", make_case(2, 1, 32, one_segment(200), {0}, 0));
    on_every_instruction_set("no queries", make_case(2, 1, 32, one_segment(100), {}, 0));
}

void large_scores() {
    attention_case c = make_case(2, 1, 64, one_segment(140), all_of(140), 0);
    c.shape.scale    = 3.0f; // scores of +-100: most probabilities vanish
    inputs                in(c);
    const outputs<double> want = reference(c, in);
    for (const char *set : all_names) {
        if (!attention_use_kernels(set)) {
            continue;
        }
        where = std::string("large scores, ") + set;
        thread_pool          pool(2);
        const outputs<float> got = run(c, in, pool);
        // A score of 100 is rounded to 4e-6, and so is its exponential, relatively.
        constexpr double large_score_tolerance = 1e-4;
        CHECK(error_of(got.out, want.out, c.q_columns(), c.ld_q()) <= large_score_tolerance);
        CHECK(error_of(got.dq, want.dq, c.q_columns(), c.ld_q()) <= large_score_tolerance);
        CHECK(error_of(got.dk, want.dk, c.k_columns(), c.ld_k()) <= large_score_tolerance);
        CHECK(error_of(got.dv, want.dv, c.k_columns(), c.ld_k()) <= large_score_tolerance);
    }
}

attention_case windowed(attention_case c, int32_t window) {
    c.positions = depths(c.visible_until);
    c.window    = window;
    return c;
}

void windows() {
    for (int32_t window : {1, 2, 20, 63, 64, 65, 128, 150, 1000, 1 << 30}) {
        const std::string name = "window " + std::to_string(window);
        on_every_instruction_set(name, windowed(make_case(4, 2, 16, one_segment(200), all_of(200), 0), window));
        on_every_instruction_set(name + ", segments", windowed(make_case(2, 1, 16, segments({5, 140, 1, 64, 90}), all_of(300), 0), window));
        on_every_instruction_set(name + ", a forest", windowed(make_case(2, 1, 24, prefix_forest(260), all_of(260), 3), window));
    }
    // Long branches under a long prefix: whole tiles inside and outside the window.
    std::vector<int32_t> tree(140, 420);
    tree.insert(tree.end(), 140, 280);
    tree.insert(tree.end(), 140, 420);
    for (int32_t window : {30, 100, 200, 280}) {
        const std::string name = "a tree, window " + std::to_string(window);
        on_every_instruction_set(name, windowed(make_case(2, 1, 16, tree, all_of(420), 0), window));
        on_every_instruction_set(name + ", some queries", windowed(make_case(2, 1, 16, tree, some_of(420, 0.3), 0), window));
    }
    where = "tiles beyond the window are left out";
    const std::vector<int32_t> until = one_segment(1000), positions = all_of(1000);
    const attention_mask       mask(until.data(), 1000, nullptr, 1000, positions.data(), 10);
    CHECK(mask.n_visible_pairs() == 10 * 1000 - 45);
}

void soft_caps() {
    for (float cap : {0.5f, 3.0f, 50.0f}) {
        attention_case c = make_case(4, 2, 256, one_segment(150), all_of(150), 0);
        c.shape.soft_cap = cap;
        on_every_instruction_set("soft cap " + std::to_string(cap), c);
        c                = windowed(make_case(2, 1, 40, prefix_forest(200), some_of(200, 0.6), 2), 30);
        c.shape.soft_cap = cap;
        on_every_instruction_set("soft cap " + std::to_string(cap) + ", a windowed forest", c);
    }
}

// A NaN must come out, not be hidden by a maximum or a mask; and must stay within what sees it.
void nan_shows() {
    const attention_case c = make_case(1, 1, 16, segments({70, 70}), all_of(140), 0);
    inputs               in(c);
    in.k[65 * c.ld_k() + 3] = std::numeric_limits<float>::quiet_NaN();
    for (const char *set : all_names) {
        if (!attention_use_kernels(set)) {
            continue;
        }
        where = std::string("NaN, ") + set;
        thread_pool          pool(1);
        const outputs<float> got = run(c, in, pool);
        CHECK(!std::isnan(got.out[64 * 16]) && !std::isnan(got.out[70 * 16]) && !std::isnan(got.lse[139]));
        CHECK(std::isnan(got.out[65 * 16]) && std::isnan(got.out[69 * 16]) && std::isnan(got.lse[69]));
        CHECK(std::isnan(got.dq[69 * 16]) && !std::isnan(got.dq[70 * 16]));
    }
}

// The gradient of sum(dout * out) by central differences of the forward pass itself.
void finite_differences() {
    const attention_case c = make_case(4, 2, 16, prefix_forest(80), some_of(80, 0.7), 0);
    inputs               in(c);
    thread_pool          pool(2);
    attention_use_kernels("generic");
    where = "finite differences";

    const outputs<float> got       = run(c, in, pool);
    const auto           objective = [&] {
        const outputs<float> r   = run(c, in, pool);
        double               sum = 0;
        for (size_t i = 0; i < r.out.size(); i++) {
            sum += static_cast<double>(r.out[i]) * static_cast<double>(in.dout[i]);
        }
        return sum;
    };
    const auto check = [&](std::vector<float> &x, const std::vector<float> &gradient) {
        constexpr float step = 1e-2f;
        for (int n = 0; n < 8; n++) {
            const size_t i      = static_cast<size_t>(random_int(0, static_cast<int>(x.size()) - 1));
            const float  before = x[i];
            x[i]                = before + step;
            const double up     = objective();
            x[i]                = before - step;
            const double down   = objective();
            x[i]                = before;
            const double slope  = (up - down) / (2 * static_cast<double>(step));
            CHECK(std::fabs(slope - static_cast<double>(gradient[i])) <= difference_tolerance);
        }
    };
    check(in.q, got.dq);
    check(in.k, got.dk);
    check(in.v, got.dv);
}

template <typename Action> bool refused(const std::string &words, Action &&action) {
    try {
        action();
    } catch (const failure &f) {
        return f.status == CFT_ERR_INVALID_ARGUMENT && std::string(f.what()).find(words) != std::string::npos;
    }
    return false;
}

void refusals() {
    where                    = "refusals";
    const int32_t until[]    = {3, 1, 3}, beyond[] = {3, 4, 3}, fine[] = {3, 3, 3};
    const int32_t twice[]    = {1, 1}, past[] = {0, 3}, negative[] = {-1};
    const auto    mask       = [](const int32_t *u, const int32_t *queries, size_t n) { attention_mask(u, 3, queries, n); };
    CHECK(refused("visible_until[1] = 1", [&] { mask(until, nullptr, 3); }));
    CHECK(refused("visible_until[1] = 4", [&] { mask(beyond, nullptr, 3); }));
    CHECK(refused("2 queries without their tokens", [&] { mask(fine, nullptr, 2); }));
    CHECK(refused("query_tokens[1] = 1", [&] { mask(fine, twice, 2); }));
    CHECK(refused("query_tokens[1] = 3", [&] { mask(fine, past, 2); }));
    CHECK(refused("query_tokens[0] = -1", [&] { mask(fine, negative, 1); }));
    CHECK(refused("head_dim 12", [] { attention_workspace_bytes({2, 1, 12, 1.0f}, 3, 3, 1); }));
    CHECK(refused("head_dim 264", [] { attention_workspace_bytes({2, 1, 264, 1.0f}, 3, 3, 1); }));
    CHECK(refused("3 heads with 2", [] { attention_workspace_bytes({3, 2, 64, 1.0f}, 3, 3, 1); }));
    CHECK(attention_mask(fine, 3, nullptr, 3).n_visible_pairs() == 6);
    CHECK(!attention_use_kernels("no such set"));
}

} // namespace

int main() {
    CHECK(attention_use_kernels("generic"));
    head_sizes();
    lengths();
    groups();
    packs();
    query_subsets();
    large_scores();
    windows();
    soft_caps();
    nan_shows();
    finite_differences();
    refusals();
    std::printf("attention: instruction sets");
    for (const char *set : all_names) {
        std::printf(" %s%s", set, attention_kernels_named(set) ? "" : " (not on this CPU)");
    }
    std::printf("; largest errors %.1e forward, %.1e backward; %d failures\n", worst_forward, worst_backward, failures);
    return failures != 0;
}
