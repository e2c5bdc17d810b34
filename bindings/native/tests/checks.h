// checks.h - what the engine's tests share: checks that count failures, and seeded random numbers.
#pragma once

#include "cft.h"

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <random>
#include <string>
#include <vector>

namespace checks {

inline int         failures = 0;
inline std::string where; // the case under test
inline cft_error   err;

inline void expect(bool condition, const char *file, int line, const char *words) {
    if (!condition) {
        std::fprintf(stderr, "%s:%d: %s: not so: %s\n", file, line, where.c_str(), words);
        failures++;
    }
}

// near: |a - b| <= tolerance * scale.
inline void expect_near(double a, double b, double scale, double tolerance, const char *file, int line, const char *words) {
    if (!(std::fabs(a - b) <= tolerance * scale)) {
        std::fprintf(stderr, "%s:%d: %s: %s: %.9g and %.9g differ by %.2g of %.3g, more than %.1g\n", file, line, where.c_str(), words, a, b,
                     std::fabs(a - b) / scale, scale, tolerance);
        failures++;
    }
}

inline void expect_status(cft_status got, cft_status want, const char *words, const char *file, int line) {
    if (got != want || (want != CFT_OK && std::string(err.message).find(words) == std::string::npos)) {
        std::fprintf(stderr, "%s:%d: %s: status %d, want %d with '%s'; message: %s\n", file, line, where.c_str(), got, want, words, err.message);
        failures++;
    }
}

#define CHECK(condition) checks::expect((condition), __FILE__, __LINE__, #condition)
#define CHECK_NEAR(a, b, scale, tolerance) checks::expect_near((a), (b), (scale), (tolerance), __FILE__, __LINE__, #a " and " #b)
#define OK(call) (checks::err = {}, checks::expect_status((call), CFT_OK, "", __FILE__, __LINE__))
#define REFUSED(call, status, words) (checks::err = {}, checks::expect_status((call), (status), (words), __FILE__, __LINE__))

inline std::mt19937 random_bits(1);

inline std::vector<float> random_floats(size_t n, float spread = 1.0f) {
    std::normal_distribution<float> normal(0.0f, spread);
    std::vector<float>              v(n);
    std::generate(v.begin(), v.end(), [&] { return normal(random_bits); });
    return v;
}

inline int random_int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_bits); }

template <typename V> double dot(const V &a, const V &b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); i++) {
        sum += double(a[i]) * double(b[i]);
    }
    return sum;
}

template <typename V> double norm(const V &a) { return std::sqrt(dot(a, a)); }

// The larger of two; what is not a number stays, which std::max would lose.
inline double larger(double a, double b) { return std::isnan(a) || a >= b ? a : b; }

// The largest difference of two vectors over the largest value of the second.
template <typename A, typename B> double worst(const A &a, const B &b) {
    double difference = 0, largest = 1e-30;
    for (size_t i = 0; i < b.size(); i++) {
        difference     = larger(difference, std::fabs(double(a[i]) - double(b[i])));
        largest        = std::max(largest, std::fabs(double(b[i])));
    }
    return std::isnan(difference) ? INFINITY : difference / largest;
}

inline int finish(const char *name) {
    if (failures > 0) {
        std::fprintf(stderr, "%s: %d checks failed\n", name, failures);
        return 1;
    }
    std::printf("%s: ok\n", name);
    return 0;
}

} // namespace checks
