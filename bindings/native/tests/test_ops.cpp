// test_ops.cpp - the row kernels on every instruction set of this CPU against double precision and finite differences, the
// random generator against its published values, and the division of work.
#include "checks.h"
#include "cpu/linear.h"
#include "cpu/rows.h"

#include <cmath>
#include <functional>
#include <limits>

using namespace cft::cpu;
using namespace checks;

namespace {

// Float kernels against double: sums of up to some hundred terms.
constexpr double float_tolerance = 2e-6;
// Central differences of a double function with step 1e-5, against float gradients.
constexpr double difference_tolerance = 1e-5;
constexpr double difference_step      = 1e-5;

using doubles = std::vector<double>;

doubles to_double(const std::vector<float> &v) { return doubles(v.begin(), v.end()); }

// numeric_gradient differentiates f at x by central differences.
doubles numeric_gradient(const std::function<double(const doubles &)> &f, doubles x) {
    doubles g(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        const double at = x[i];
        x[i]            = at + difference_step;
        const double up = f(x);
        x[i]            = at - difference_step;
        g[i]            = (up - f(x)) / (2 * difference_step);
        x[i]            = at;
    }
    return g;
}

doubles rmsnorm_of(const doubles &x, const doubles &w, double eps) {
    double sum = 0;
    for (double v : x) {
        sum += v * v;
    }
    doubles y(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        y[i] = x[i] / std::sqrt(sum / double(x.size()) + eps) * w[i];
    }
    return y;
}

void test_rmsnorm(const row_kernels &k) {
    constexpr float eps = 1e-5f;
    for (size_t d : {8u, 37u, 576u}) {
        const auto         x = random_floats(2 * d), w = random_floats(d), dy = random_floats(2 * d), before = random_floats(2 * d);
        std::vector<float> y(2 * d), dx = before;
        k.rmsnorm(x.data(), w.data(), y.data(), 2, d, eps);
        k.rmsnorm_backward(dy.data(), x.data(), w.data(), dx.data(), 2, d, eps);
        for (size_t row = 0; row < 2; row++) {
            const auto    part   = [&](const std::vector<float> &v) { return doubles(v.begin() + long(row * d), v.begin() + long((row + 1) * d)); };
            const doubles x_row  = part(x), dy_row = part(dy), w_row = to_double(w);
            CHECK(worst(part(y), rmsnorm_of(x_row, w_row, double(eps))) < float_tolerance);
            const doubles slope = numeric_gradient([&](const doubles &at) { return dot(rmsnorm_of(at, w_row, double(eps)), dy_row); }, x_row);
            doubles       want  = part(before);
            for (size_t i = 0; i < d; i++) {
                want[i] += slope[i];
            }
            CHECK(worst(part(dx), want) < difference_tolerance);
        }
    }
}

// halves: pairs are (j, j + n_rot / 2), otherwise (2j, 2j + 1).
void test_rope(const row_kernels &k, bool halves) {
    const auto rope = halves ? k.rope_halves : k.rope;
    constexpr size_t n = 3, heads = 2, head_dim = 16, n_rot = 12, half = n_rot / 2;
    std::vector<float> table(n * n_rot);
    for (size_t i = 0; i < n; i++) {
        for (size_t j = 0; j < half; j++) {
            const double angle          = double(i) * std::pow(100.0, -double(j) / double(half));
            table[i * n_rot + j]        = float(std::cos(angle));
            table[i * n_rot + half + j] = float(std::sin(angle));
        }
    }
    const auto         x = random_floats(n * heads * head_dim), y = random_floats(x.size());
    std::vector<float> turned = x, back, turned_back = y;
    rope(turned.data(), n, heads, head_dim, n_rot, table.data(), 1);
    doubles want = to_double(x);
    for (size_t i = 0; i < n * heads; i++) {
        for (size_t j = 0; j < half; j++) {
            const double angle = double(i / heads) * std::pow(100.0, -double(j) / double(half));
            const size_t at = i * head_dim + (halves ? j : 2 * j), other = at + (halves ? half : 1);
            want[at]        = double(x[at]) * std::cos(angle) - double(x[other]) * std::sin(angle);
            want[other]     = double(x[at]) * std::sin(angle) + double(x[other]) * std::cos(angle);
        }
    }
    CHECK(worst(turned, want) < float_tolerance);
    back = turned;
    rope(back.data(), n, heads, head_dim, n_rot, table.data(), -1);
    CHECK(worst(back, x) < float_tolerance);
    // The gradient of a rotation is the rotation back: <Rx, y> = <x, R⁻¹y>.
    rope(turned_back.data(), n, heads, head_dim, n_rot, table.data(), -1);
    CHECK_NEAR(dot(turned, y), dot(x, turned_back), norm(x) * norm(y), float_tolerance);
}

double silu(double x) { return x / (1 + std::exp(-x)); }
double gelu(double x) { return x / 2 * (1 + std::tanh(std::sqrt(2 / 3.14159265358979323846) * (x + 0.044715 * x * x * x))); }

void test_gated(const row_kernels &k, bool with_gelu) {
    const auto         forward = with_gelu ? k.geglu : k.swiglu;
    const auto         backward = with_gelu ? k.geglu_backward : k.swiglu_backward;
    const auto         of = with_gelu ? gelu : silu;
    constexpr size_t   n    = 83;
    auto               gate = random_floats(n, 4.0f);
    const auto         up = random_floats(n), d_act = random_floats(n);
    gate[0] = 100.0f, gate[1] = -100.0f, gate[2] = 0.0f; // beyond where e^x has a float value
    std::vector<float> act(n), d_gate(n), d_up(n), in_place = d_act;
    forward(gate.data(), up.data(), act.data(), n);
    backward(d_act.data(), gate.data(), up.data(), d_gate.data(), d_up.data(), n);
    backward(in_place.data(), gate.data(), up.data(), in_place.data(), d_up.data(), n);
    CHECK(in_place == d_gate);
    const auto loss = [&](const doubles &g, const doubles &u) {
        double sum = 0;
        for (size_t i = 0; i < n; i++) {
            sum += of(g[i]) * u[i] * double(d_act[i]);
        }
        return sum;
    };
    doubles want(n);
    for (size_t i = 0; i < n; i++) {
        want[i] = of(double(gate[i])) * double(up[i]);
    }
    CHECK(worst(act, want) < float_tolerance);
    const doubles g = to_double(gate), u = to_double(up);
    CHECK(worst(d_gate, numeric_gradient([&](const doubles &at) { return loss(at, u); }, g)) < difference_tolerance);
    CHECK(worst(d_up, numeric_gradient([&](const doubles &at) { return loss(g, at); }, u)) < difference_tolerance);
}

// The loss of capped logits, and its gradient before the cap.
void test_soft_cap(const row_kernels &k) {
    constexpr size_t v = 97, target = 40;
    constexpr float  weight = 0.75f;
    for (float cap : {2.0f, 30.0f}) {
        auto logits = random_floats(v, 10.0f);
        logits[0] = 1e4f, logits[1] = -1e4f;
        const auto capped_of = [&](doubles x) {
            for (double &xi : x) {
                xi = double(cap) * std::tanh(xi / double(cap));
            }
            return x;
        };
        const auto loss_of = [&](const doubles &x) {
            double sum = 0;
            for (double xi : capped_of(x)) {
                sum += std::exp(xi);
            }
            return std::log(sum) - capped_of(x)[target];
        };
        const doubles x = to_double(logits);
        k.soft_cap(logits.data(), v, cap);
        CHECK(worst(logits, capped_of(x)) < float_tolerance);
        CHECK_NEAR(k.cross_entropy_capped(logits.data(), v, target, weight, cap), loss_of(x), loss_of(x), float_tolerance);
        CHECK(worst(logits, numeric_gradient([&](const doubles &at) { return double(weight) * loss_of(at); }, x)) < difference_tolerance);
    }
}

void test_cross_entropy(const row_kernels &k) {
    const float weight = 0.75f;
    for (size_t v : {2u, 97u, 5000u}) {
        auto         logits = random_floats(v, 5.0f);
        const size_t target = v / 2;
        logits[v / 3] += 60.0f; // a sum without its maximum would overflow
        const auto loss_of = [&](const doubles &x) {
            const double m   = *std::max_element(x.begin(), x.end());
            double       sum = 0;
            for (double xi : x) {
                sum += std::exp(xi - m);
            }
            return m + std::log(sum) - x[target];
        };
        const doubles x    = to_double(logits);
        const double  want = loss_of(x);
        CHECK_NEAR(k.cross_entropy_loss(logits.data(), v, target), want, std::max(want, 1.0), float_tolerance);
        std::vector<float> gradient = logits;
        CHECK_NEAR(k.cross_entropy(gradient.data(), v, target, weight), want, std::max(want, 1.0), float_tolerance);
        const doubles slope = v > 100 ? doubles() : numeric_gradient([&](const doubles &at) { return double(weight) * loss_of(at); }, x);
        if (!slope.empty()) {
            CHECK(worst(gradient, slope) < difference_tolerance);
        }
        double sum = 0;
        for (float g : gradient) {
            sum += double(g);
        }
        CHECK_NEAR(sum, 0.0, double(weight), 1e-5); // softmax sums to 1: 5000 floats
    }
    // What is not finite is seen in the loss.
    for (float bad : {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
        for (size_t at : {0u, 40u, 96u}) {
            auto logits = random_floats(97);
            logits[at]  = bad;
            CHECK(!std::isfinite(k.cross_entropy_loss(logits.data(), 97, 5)));
            CHECK(!std::isfinite(k.cross_entropy(logits.data(), 97, 5, 1.0f)));
        }
    }
}

void test_adamw(const row_kernels &k) {
    constexpr size_t n = 41;
    constexpr int    steps = 5;
    constexpr double lr = 1e-2, beta1 = 0.9, beta2 = 0.99, eps = 1e-8, decay = 0.1, scale = 0.25;
    auto               p = random_floats(n);
    std::vector<float> m(n, 0.0f), v(n, 0.0f);
    doubles            pd = to_double(p), md(n, 0.0), vd(n, 0.0);
    for (int step = 1; step <= steps; step++) {
        const auto   g  = random_floats(n);
        const double c1 = 1 - std::pow(beta1, step), c2 = 1 - std::pow(beta2, step);
        k.adamw(p.data(), g.data(), m.data(), v.data(), n, float(scale), float(lr), float(beta1), float(beta2), float(eps), float(decay),
                float(c1), float(c2));
        for (size_t i = 0; i < n; i++) { // torch.optim.AdamW, line by line
            const double gi = double(g[i]) * scale;
            pd[i] *= 1 - lr * decay;
            md[i] = beta1 * md[i] + (1 - beta1) * gi;
            vd[i] = beta2 * vd[i] + (1 - beta2) * gi * gi;
            pd[i] -= lr / c1 * md[i] / (std::sqrt(vd[i]) / std::sqrt(c2) + eps);
        }
    }
    CHECK(worst(p, pd) < float_tolerance);
    CHECK(worst(m, md) < float_tolerance);
    CHECK(worst(v, vd) < 1e-5); // 1 - beta2 in float
}

void test_small_kernels(const row_kernels &k) {
    constexpr size_t n = 77;
    const auto       x = random_floats(n), y = random_floats(n), z = random_floats(n);
    auto             sum = x, sum_of_products = z;
    std::vector<float> product(n);
    k.add(sum.data(), y.data(), n);
    k.multiply(x.data(), y.data(), product.data(), n);
    k.multiply_add(x.data(), y.data(), sum_of_products.data(), n);
    for (size_t i = 0; i < n; i++) {
        CHECK(sum[i] == x[i] + y[i]);
        CHECK(product[i] == x[i] * y[i]);
        CHECK_NEAR(double(sum_of_products[i]), double(z[i]) + double(x[i]) * double(y[i]), 10, 1e-7);
    }
    CHECK_NEAR(k.sum_of_squares(x.data(), n), dot(x, x), dot(x, x), 1e-14);
    CHECK_NEAR(k.dot(x.data(), y.data(), n), dot(x, y), norm(x) * norm(y), float_tolerance);
    auto scaled = x, shifted = z;
    k.scale(scaled.data(), 0.3f, n);
    k.add_scaled(shifted.data(), x.data(), 0.3f, n);
    for (size_t i = 0; i < n; i++) {
        CHECK(scaled[i] == x[i] * 0.3f);
        CHECK_NEAR(double(shifted[i]), double(z[i]) + double(x[i]) * double(0.3f), 10, 1e-7);
    }
}

// Philox4x32-10, from the kat_vectors file of the Random123 distribution.
void test_philox() {
    struct {
        philox_counter counter;
        uint64_t       key;
        philox_counter want;
    } const cases[] = {
        {{{0, 0, 0, 0}}, 0, {{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}}},
        {{{~0u, ~0u, ~0u, ~0u}}, ~uint64_t(0), {{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd}}},
        {{{0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}}, 0x299f31d0a4093822, {{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}}},
    };
    for (const auto &c : cases) {
        const philox_counter got = philox(c.key, c.counter);
        for (int i = 0; i < 4; i++) {
            CHECK(got.x[i] == c.want.x[i]);
        }
    }
    // The uses of the generator never share a counter.
    CHECK(dropout_counter(0, 0, 0, 0).x[2] != init_counter(0, 0).x[2]);
    CHECK(dropout_counter(1, 2, 3, 4).x[2] != dropout_counter(1, 2, 4, 4).x[2]);
    CHECK(dropout_counter(uint64_t(1) << 32, 0, 0, 0).x[2] != dropout_counter(0, 0, 0, 0).x[2]);
}

void test_dropout_mask(const row_kernels &k) {
    const uint64_t       seed    = 0x123456789abcdefull;
    const philox_counter counter = dropout_counter(7, 3, 5, 11);
    const float          p = 0.3f, keep = 1 / (1 - p);
    for (size_t first : {0u, 4u, 60u}) {
        for (size_t n : {1u, 31u, 32u, 33u, 200u}) {
            std::vector<float> mask(n + 1, -1.0f);
            k.dropout_mask(seed, counter, dropout_threshold(p), keep, first, n, mask.data());
            bool same = mask[n] == -1.0f; // nothing beyond the end
            for (size_t i = 0; i < n; i++) {
                philox_counter at = counter;
                at.x[0] += uint32_t((first + i) / 4);
                const uint32_t word = philox(seed, at).x[(first + i) % 4];
                same                = same && mask[i] == (word < dropout_threshold(p) ? 0.0f : keep);
            }
            CHECK(same);
        }
    }
    constexpr size_t   many = 1 << 16;
    std::vector<float> mask(many);
    k.dropout_mask(seed, counter, dropout_threshold(p), keep, 0, many, mask.data());
    const double dropped = double(std::count(mask.begin(), mask.end(), 0.0f)) / double(many);
    CHECK_NEAR(dropped, double(p), 1, 5 * std::sqrt(0.3 * 0.7 / double(many))); // five standard deviations
}

// Every element of a divided result belongs to exactly one thread, and bounds keep to the step.
void test_division() {
    for (int nth : {1, 2, 3, 4, 7, 12, 16}) {
        for (int64_t rows : {1, 5, 512}) {
            for (int64_t columns : {1, 32, 100, 192, 576, 1536}) {
                for (int64_t step : {16, 32, 256}) {
                    std::vector<int> owners(size_t(rows * columns), 0);
                    bool             aligned = true;
                    for (int ith = 0; ith < nth; ith++) {
                        const block_range b = share_product(rows, columns, step, ith, nth);
                        aligned = aligned && b.columns.begin % step % columns == 0 && (b.columns.end % step == 0 || b.columns.end == columns);
                        for (int64_t r = b.rows.begin; r < b.rows.end; r++) {
                            for (int64_t c = b.columns.begin; c < b.columns.end; c++) {
                                owners[size_t(r * columns + c)]++;
                            }
                        }
                    }
                    CHECK(aligned);
                    CHECK(std::count(owners.begin(), owners.end(), 1) == int64_t(owners.size()));
                }
            }
        }
    }
}

} // namespace

int main() {
    test_philox();
    test_division();
    const std::pair<isa, const char *> sets[] = {{isa::generic, "generic"}, {isa::avx2, "avx2"}, {isa::avx512, "avx512"}};
    for (const auto &[set, name] : sets) {
        where = name;
        if (const row_kernels *k = rows_of(set)) {
            test_rmsnorm(*k);
            for (bool other : {false, true}) {
                test_rope(*k, other);
                test_gated(*k, other);
            }
            test_soft_cap(*k);
            test_cross_entropy(*k);
            test_adamw(*k);
            test_small_kernels(*k);
            test_dropout_mask(*k);
        } else {
            std::printf("%s: this CPU does not have it\n", name);
        }
    }
    return finish("test_ops");
}
