// test_simd.cpp - the vector functions of the kernels, in the width this file is compiled for.
#include "checks.h"
#include "cpu/simd.h"

#include <cmath>
#include <cstdio>
#include <limits>

namespace {

using namespace cft;

// Promised by simd.h; the fit gives 1.05e-7 and rounding the rest.
constexpr double exp_tolerance = 3e-7;

float exp_of(float x) { return simd::exp(simd::broadcast(x))[simd::width - 1]; }

double exp_is_accurate() {
    double worst = 0;
    for (double x = -87.32; x < 88.36; x += 1.3e-4) {
        const float argument = static_cast<float>(x);
        const double want    = std::exp(static_cast<double>(argument));
        worst                = std::fmax(worst, std::fabs(static_cast<double>(exp_of(argument)) / want - 1));
    }
    CHECK(worst <= exp_tolerance);
    return worst;
}

void exp_has_right_ends() {
    const float infinity = std::numeric_limits<float>::infinity();
    CHECK(exp_of(0.0f) == 1.0f);
    CHECK(exp_of(-0.0f) == 1.0f);
    CHECK(exp_of(-infinity) == 0.0f);
    CHECK(exp_of(-1e30f) == 0.0f);
    CHECK(exp_of(-88.0f) == 0.0f);
    CHECK(exp_of(89.0f) == infinity);
    CHECK(exp_of(1e30f) == infinity);
    CHECK(exp_of(infinity) == infinity);
    CHECK(std::isnan(exp_of(std::numeric_limits<float>::quiet_NaN())));
    CHECK(simd::sigmoid(simd::broadcast(-200.0f))[0] == 0.0f);
    CHECK(simd::sigmoid(simd::broadcast(0.0f))[0] == 0.5f);
    CHECK(simd::sigmoid(simd::broadcast(200.0f))[0] == 1.0f);
}

void lanes_are_where_they_belong() {
    constexpr int w         = simd::width;
    float         memory[w + 2], expected_sum = 0;
    for (int i = 0; i < w + 2; i++) {
        memory[i] = static_cast<float>(i * i);
    }
    const simd::vf v = simd::load(memory + 1); // unaligned
    for (int i = 0; i < w; i++) {
        CHECK(v[i] == memory[i + 1]);
        CHECK(simd::lane_numbers()[i] == i);
        expected_sum += v[i];
    }
    CHECK(simd::sum(v) == expected_sum);
    CHECK(simd::largest(v) == memory[w]);
    CHECK(simd::largest(-v) == -memory[1]);
    CHECK(simd::any_greater(v, simd::broadcast(memory[w] - 1)));
    CHECK(!simd::any_greater(v, simd::broadcast(memory[w])));
    for (int n = 0; n < w; n++) {
        const simd::vf part = simd::load_part(memory + 1, n);
        float          out[w + 1];
        for (float &x : out) {
            x = -1.0f;
        }
        simd::store_part(out, v, n);
        for (int i = 0; i < w; i++) {
            CHECK(part[i] == (i < n ? memory[i + 1] : 0.0f));
            CHECK(out[i] == (i < n ? memory[i + 1] : -1.0f));
        }
    }
}

} // namespace

int main() {
    const double worst = exp_is_accurate();
    exp_has_right_ends();
    lanes_are_where_they_belong();
    std::printf("simd: %d lanes; largest relative error of exp %.1e; %d failures\n", simd::width, worst, checks::failures);
    return checks::failures != 0;
}
