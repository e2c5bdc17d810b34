// test_cuda_experts.cpp - the kernels of mixtures of experts: the choice exactly, where logits are apart or equal; lists exactly; sums and
// gradients against double precision and finite differences.
#include "cuda/experts.h"
#include "cuda_fixture.h"

#include <cmath>
#include <numeric>

using namespace cft::cuda;
using namespace checks;

namespace {

// bf16 rounds to 8 bits; slopes by differences are good to some 1e-7.
constexpr double f32_tolerance = 1e-5, f32_rounding = 2e-6, bf16_tolerance = 1.0 / 256, slope_step = 1e-4, least = 1e-3;

// Rounded to bf16 from what is as good as F32.
void check_rounded(float got, double want) { CHECK_NEAR(double(got), want, std::fabs(want) + least, bf16_tolerance); }

// A choice in device memory.
struct on_device_rows {
    on_device<int32_t> expert, place, row, count;
    on_device<float>   share, weight;
    expert_rows        e;

    on_device_rows(int64_t n, int n_expert, int n_used)
        : expert(size_t(n * n_used)), place(expert.size()), row(expert.size()), count(size_t(n_expert)), share(expert.size()),
          weight(expert.size()) {
        e = {n, n_expert, n_used, expert.data(), share.data(), place.data(), row.data(), weight.data(), count.data()};
    }
};

// Logits in steps that F32's exponentials tell apart, many of them equal.
std::vector<float> stepped_logits(int64_t n, int n_expert, int64_t ld) {
    std::vector<float> logits(size_t(n * ld), NAN); // behind the experts, what nobody may read
    for (int64_t i = 0; i < n; i++) {
        for (int e = 0; e < n_expert; e++) {
            logits[size_t(i * ld + e)] = 0.25f * float(random_int(-12, 12));
        }
    }
    return logits;
}

// The experts of a row, the likeliest first, of equals the lower; with their shares.
std::vector<std::pair<int32_t, double>> choice_of(const float *logits, int n_expert, int n_used) {
    std::vector<int32_t> order(size_t(n_expert), 0);
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return logits[a] > logits[b]; });
    double sum = 0;
    for (int k = 0; k < n_used; k++) {
        sum += std::exp(double(logits[order[size_t(k)]]));
    }
    std::vector<std::pair<int32_t, double>> chosen;
    for (int k = 0; k < n_used; k++) {
        chosen.emplace_back(order[size_t(k)], std::exp(double(logits[order[size_t(k)]])) / sum);
    }
    return chosen;
}

void test_choice(int64_t n, int n_expert, int n_used) {
    in_both_orders("choice of " + std::to_string(n_used) + " of " + std::to_string(n_expert), [&] {
        const int64_t    ld     = (n_expert + 7) / 8 * 8;
        const auto       logits = stepped_logits(n, n_expert, ld);
        on_device<float> at(logits);
        on_device_rows   r(n, n_expert, n_used);
        choose_experts(at.data(), ld, r.e, nullptr);
        const auto expert = r.expert.host();
        const auto share  = r.share.host();
        for (int64_t i = 0; i < n; i++) {
            const auto want = choice_of(logits.data() + i * ld, n_expert, n_used);
            for (int k = 0; k < n_used; k++) {
                CHECK(expert[size_t(i * n_used + k)] == want[size_t(k)].first);
                CHECK_NEAR(double(share[size_t(i * n_used + k)]), want[size_t(k)].second, 1, f32_tolerance);
            }
        }
    });
}

// Whatever a router says, each row gets experts that exist, none of them twice.
void test_any_logits() {
    in_both_orders("choice from what is no number", [&] {
        constexpr int    n_expert = 70, n_used = 5;
        const float      bad[] = {NAN, INFINITY, -INFINITY, 1e30f};
        std::vector<float> logits;
        for (int64_t i = 0; i < 12; i++) {
            for (int e = 0; e < n_expert; e++) {
                logits.push_back(i < 4 ? bad[i] : (e * 7 + i) % 3 == 0 ? bad[i % 4] : float(e));
            }
        }
        const int64_t    n = int64_t(logits.size()) / n_expert;
        on_device<float> at(logits);
        on_device_rows   r(n, n_expert, n_used);
        choose_experts(at.data(), n_expert, r.e, nullptr);
        const auto expert = r.expert.host();
        for (int64_t i = 0; i < n; i++) {
            std::vector<int32_t> mine(expert.begin() + long(i * n_used), expert.begin() + long((i + 1) * n_used));
            std::sort(mine.begin(), mine.end());
            CHECK(mine.front() >= 0 && mine.back() < n_expert && std::adjacent_find(mine.begin(), mine.end()) == mine.end());
        }
    });
}

// Any choice, listed.
void choose_somehow(on_device_rows &r, int popular) {
    std::vector<int32_t> expert;
    std::vector<int32_t> all(size_t(r.e.n_expert), 0);
    std::iota(all.begin(), all.end(), 0);
    for (int64_t i = 0; i < r.e.n; i++) {
        std::shuffle(all.begin(), all.end() - (popular < 0 ? 0 : 1), random_bits); // the last has no row, unless all are used
        if (popular >= 0) {
            std::iter_swap(all.begin(), std::find(all.begin(), all.end(), popular));
        }
        expert.insert(expert.end(), all.begin(), all.begin() + r.e.n_used);
    }
    auto share = random_floats(expert.size());
    for (float &s : share) {
        s = std::fabs(s) + 0.1f;
    }
    must(cudaMemcpy(r.e.expert, expert.data(), expert.size() * sizeof(int32_t), cudaMemcpyHostToDevice));
    must(cudaMemcpy(r.e.share, share.data(), share.size() * sizeof(float), cudaMemcpyHostToDevice));
    on_device<int32_t> parts(size_t(expert_part_words(r.e.places(), r.e.n_expert)));
    list_experts(r.e, parts.data(), nullptr);
}

void test_lists(int64_t n, int n_expert, int n_used, int popular) {
    in_both_orders("lists of " + std::to_string(n) + " rows, " + std::to_string(n_used) + " of " + std::to_string(n_expert), [&] {
        on_device_rows r(n, n_expert, n_used);
        choose_somehow(r, popular);
        const auto expert = r.expert.host(), place = r.place.host(), row = r.row.host(), count = r.count.host();
        const auto share = r.share.host(), weight = r.weight.host();
        int32_t    at = 0;
        for (int e = 0; e < n_expert; e++) {
            const int32_t begin = at;
            for (int64_t pair = 0; pair < r.e.places(); pair++) {
                if (expert[size_t(pair)] == e) {
                    CHECK(place[size_t(pair)] == at && row[size_t(at)] == int32_t(pair / n_used) && weight[size_t(at)] == share[size_t(pair)]);
                    at++;
                }
            }
            CHECK(count[size_t(e)] == at - begin);
        }
        CHECK(int64_t(at) == r.e.places());
    });
}

void test_sums() {
    in_both_orders("sums of experts", [&] {
        constexpr int64_t n = 37, columns = 72, ld = 80;
        on_device_rows    r(n, 9, 3);
        choose_somehow(r, -1);
        const auto       from = random_rounded(size_t(r.e.places() * columns)), before = random_rounded(size_t(n * ld));
        on_device<bf16>  source(all_to<bf16>(from));
        const auto       place = r.place.host();
        const auto       share = r.share.host();
        for (const bool shares : {false, true}) {
            for (const bool add : {false, true}) {
                on_device<bf16> to(all_to<bf16>(before));
                sum_experts(source.data(), r.e, shares, add, columns, to.data(), ld, nullptr);
                const auto got = all_to_float(to.host());
                for (int64_t i = 0; i < n; i++) {
                    for (int64_t c = 0; c < ld; c++) {
                        const size_t at   = size_t(i * ld + c);
                        double       want = add || c >= columns ? double(before[at]) : 0;
                        for (int k = 0; k < 3 && c < columns; k++) {
                            const size_t pair = size_t(i * 3 + k);
                            want += (shares ? double(share[pair]) : 1.0) * double(from[size_t(place[pair]) * columns + size_t(c)]);
                        }
                        check_rounded(got[at], want);
                        CHECK(c < columns || got[at] == before[at]);
                    }
                }
            }
        }
    });
}

double gate_of(bool gelu, double g) { return gelu ? 0.5 * g * (1 + std::tanh(0.79788456080286535588 * (g + 0.044715 * g * g * g))) : g / (1 + std::exp(-g)); }

void test_gated_backward(bool gelu) {
    in_both_orders(gelu ? "GELU of experts, back" : "SiLU of experts, back", [&] {
        constexpr int64_t  n = 21, columns = 264;
        const auto         d = random_rounded(size_t(n * columns)), gate_up = random_rounded(size_t(n * 2 * columns), 2.0f);
        const auto         weight = random_floats(size_t(n));
        on_device<bf16>    d_act(all_to<bf16>(d)), both(all_to<bf16>(gate_up));
        on_device<float>   shares(weight), d_weight{size_t(n)};
        gated_experts_backward(gelu, d_act.data(), shares.data(), n, columns, both.data(), d_weight.data(), nullptr);
        const auto got = all_to_float(both.host());
        const auto products = d_weight.host();
        for (int64_t i = 0; i < n; i++) {
            double product = 0, unsure = 0; // what falls to either side when it is rounded to bf16
            for (int64_t c = 0; c < columns; c++) {
                const size_t at = size_t(i * 2 * columns + c);
                const double g = double(gate_up[at]), u = double(gate_up[at + columns]), dy = double(d[size_t(i * columns + c)]), s = double(weight[size_t(i)]);
                const double slope = (gate_of(gelu, g + slope_step) - gate_of(gelu, g - slope_step)) / (2 * slope_step);
                check_rounded(got[at], s * dy * u * slope);
                check_rounded(got[at + columns], s * dy * gate_of(gelu, g));
                const double act = gate_of(gelu, g) * u;
                const auto   rounded = [&](double x) { return double(to_float(to_bf16(float(x)))); };
                product += dy * rounded(act);
                unsure += std::fabs(dy * (rounded(act * (1 + f32_rounding)) - rounded(act * (1 - f32_rounding))));
            }
            CHECK_NEAR(double(products[size_t(i)]), product, double(columns) + unsure / f32_tolerance, f32_tolerance);
        }
    });
}

// The gradient of shares' sum with d_weight, by differences of the logits.
void test_choice_backward(int n_expert, int n_used) {
    in_both_orders("choice of " + std::to_string(n_used) + " of " + std::to_string(n_expert) + ", back", [&] {
        constexpr int64_t   n = 19;
        const int64_t       padded = (n_expert + 7) / 8 * 8;
        const auto          logits = random_floats(size_t(n * padded), 2.0f);
        on_device<float>    at(logits);
        on_device_rows      r(n, n_expert, n_used);
        on_device<int32_t>  parts(size_t(expert_part_words(r.e.places(), n_expert)));
        choose_experts(at.data(), padded, r.e, nullptr);
        list_experts(r.e, parts.data(), nullptr);
        const auto       d_weight = random_floats(size_t(r.e.places()));
        on_device<float> d(d_weight);
        on_device<bf16>  d_logits(size_t(n * padded));
        choose_experts_backward(r.e, d.data(), padded, d_logits.data(), nullptr);
        const auto got = all_to_float(d_logits.host());
        const auto expert = r.expert.host(), place = r.place.host();
        for (int64_t i = 0; i < n; i++) {
            const auto value = [&](int64_t moved, double by) { // of the chosen ones, which stay the same
                std::vector<double> e;
                double              sum = 0, result = 0;
                for (int k = 0; k < n_used; k++) {
                    const int32_t x = expert[size_t(i * n_used + k)];
                    e.push_back(std::exp(double(logits[size_t(i * padded + x)]) + (x == moved ? by : 0)));
                    sum += e.back();
                }
                for (int k = 0; k < n_used; k++) {
                    result += e[size_t(k)] / sum * double(d_weight[size_t(place[size_t(i * n_used + k)])]);
                }
                return result;
            };
            for (int64_t x = 0; x < padded; x++) {
                const double slope = (value(x, slope_step) - value(x, -slope_step)) / (2 * slope_step);
                check_rounded(got[size_t(i * padded + x)], slope);
                CHECK(x < n_expert || got[size_t(i * padded + x)] == 0);
            }
        }
    });
}

} // namespace

int main() {
    test_choice(70, 5, 2);
    test_choice(33, 32, 8);
    test_choice(40, 128, 8);
    test_choice(9, 129, 1);
    test_choice(9, 512, 10);
    test_choice(3, 512, 512);
    test_choice(17, 8, 8);
    test_any_logits();
    test_lists(1, 4, 1, -1);
    test_lists(100, 8, 2, 3);   // all rows have one of them, none the last
    test_lists(1500, 9, 3, -1); // more than one part
    test_lists(700, 300, 8, 5); // more experts than threads
    test_sums();
    test_gated_backward(false);
    test_gated_backward(true);
    test_choice_backward(13, 3);
    test_choice_backward(128, 8);
    return finish("test_cuda_experts");
}
