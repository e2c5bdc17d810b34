// test_experts.cpp - the router's choice and its gradient against double precision and finite differences, and moving rows to
// experts and back.
#include "checks.h"
#include "cpu/ops.h"

#include <numeric>

using namespace cft;
using namespace cft::cpu;
using namespace checks;

namespace {

constexpr double float_tolerance = 1e-6, difference_tolerance = 1e-5, difference_step = 1e-5;

const attention_shape any_shape = {1, 1, 8, 1.0f};
constexpr int64_t     n = 7, n_expert = 9;
constexpr int         n_used = 3;

// The shares of the n_used largest logits of one row, 0 for the others.
std::vector<double> shares_of(const std::vector<double> &logits) {
    std::vector<size_t> order(logits.size());
    std::iota(order.begin(), order.end(), 0);
    std::sort(order.begin(), order.end(), [&](size_t a, size_t b) { return logits[a] > logits[b]; });
    std::vector<double> shares(logits.size(), 0.0);
    double              sum = 0;
    for (int k = 0; k < n_used; k++) {
        sum += shares[order[size_t(k)]] = std::exp(logits[order[size_t(k)]]);
    }
    for (double &s : shares) {
        s /= sum;
    }
    return shares;
}

void test_choice(int n_threads) {
    where = "choice, " + std::to_string(n_threads) + " threads";
    cpu_ops            o(n_threads, any_shape, n);
    const auto         logits = random_floats(size_t(n * n_expert), 2.0f);
    const auto         d_share = random_floats(size_t(n * n_used));
    std::vector<float> probabilities = logits, d_logits(logits.size(), NAN);
    expert_choice      choice;
    o.softmax(probabilities.data(), n, n_expert);
    o.choose(probabilities.data(), n, n_expert, n_used, choice);
    o.choose_backward(choice, d_share, n, n_expert, d_logits.data());
    for (size_t i = 0; i < size_t(n); i++) {
        const std::vector<double> row(logits.begin() + long(i * n_expert), logits.begin() + long((i + 1) * n_expert));
        const auto                shares = shares_of(row);
        std::vector<double>       d_all(row.size(), 0.0);
        double                    sum = 0;
        for (size_t k = 0; k < n_used; k++) {
            const size_t at = i * n_used + k, e = size_t(choice.expert[at]);
            CHECK_NEAR(double(choice.share[at]), shares[e], 1, float_tolerance);
            CHECK(shares[e] > 0 && d_all[e] == 0.0);
            d_all[e] = double(d_share[at]);
            sum += double(choice.share[at]);
        }
        CHECK_NEAR(sum, 1.0, 1, float_tolerance);
        for (size_t e = 0; e < row.size(); e++) {
            auto up = row, down = row;
            up[e] += difference_step;
            down[e] -= difference_step;
            const double slope = (dot(shares_of(up), d_all) - dot(shares_of(down), d_all)) / (2 * difference_step);
            CHECK_NEAR(double(d_logits[i * n_expert + e]), slope, 1, difference_tolerance);
        }
    }
    // Equal experts: the lower ones.
    std::vector<float> equal(n_expert, 1.0f / n_expert);
    o.choose(equal.data(), 1, n_expert, n_used, choice);
    CHECK((choice.expert == std::vector<int32_t>{0, 1, 2}));
}

void test_rows() {
    where = "weighted rows";
    cpu_ops                    o(3, any_shape, n);
    const std::vector<int32_t> rows = {0, 2, 5};
    const std::vector<float>   scales = {0.5f, -2.0f, 3.0f};
    const auto                 from = random_floats(3 * 10), before = random_floats(size_t(n) * 10), y = random_floats(3 * 10);
    auto                       to = before, x = from;
    std::vector<float>         products(3);
    o.scatter_add_scaled(from.data(), rows, scales, 10, to.data());
    o.dot_and_scale(x.data(), y.data(), scales, 10, products.data());
    for (size_t i = 0; i < 3; i++) {
        double product = 0;
        for (size_t j = 0; j < 10; j++) {
            const size_t at = size_t(rows[i]) * 10 + j;
            CHECK_NEAR(double(to[at]), double(before[at]) + double(scales[i]) * double(from[i * 10 + j]), 10, float_tolerance);
            CHECK(x[i * 10 + j] == from[i * 10 + j] * scales[i]);
            product += double(from[i * 10 + j]) * double(y[i * 10 + j]);
            to[at] = before[at];
        }
        CHECK_NEAR(double(products[i]), product, 10, float_tolerance);
    }
    CHECK(to == before); // no other row
    auto sum = before;
    o.add(y.data(), 30, sum.data());
    o.add_bias(std::vector<float>(y.begin(), y.begin() + 10), 2, sum.data() + 30);
    for (size_t i = 0; i < 50; i++) {
        CHECK(sum[i] == before[i] + (i < 30 ? y[i] : y[i % 10]));
    }
}

} // namespace

int main() {
    for (int n_threads : {1, 2, 5}) {
        test_choice(n_threads);
    }
    test_rows();
    return finish("test_experts");
}
