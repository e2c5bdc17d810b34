// infer_sample.cpp - see infer_sample.h.
#include "infer_sample.h"

#include "failure.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <string>
#include <vector>

namespace cft {
namespace {

struct candidate {
    float   logit;
    int32_t id;
};

// better orders candidates without ties, so that every order of work gives the same list.
bool better(const candidate &a, const candidate &b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }
bool worse(const candidate &a, const candidate &b) { return better(b, a); }

// mix is the finalizer of SplitMix64 (Steele, Lea, Flood 2014).
uint64_t mix(uint64_t z) {
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
}

int32_t best_token(const float *logits, size_t n) {
    size_t best = 0;
    for (size_t i = 1; i < n; i++) {
        if (logits[i] > logits[best]) {
            best = i;
        }
    }
    return int32_t(best);
}

void check_logits(const float *logits, size_t n) {
    bool any = false;
    for (size_t i = 0; i < n; i++) {
        if (std::isnan(logits[i]) || logits[i] == std::numeric_limits<float>::infinity()) {
            throw failure(CFT_ERR_NON_FINITE, "logit of token " + std::to_string(i) + " is " + (std::isnan(logits[i]) ? "NaN" : "infinite"));
        }
        any = any || std::isfinite(logits[i]);
    }
    if (!any) {
        throw failure(CFT_ERR_NON_FINITE, "no token has a finite logit");
    }
}

// nucleus keeps the fewest best candidates whose probabilities reach top_p. A heap finds them without sorting all.
void nucleus(std::vector<candidate> &c, float top_p, float max_logit) {
    double total = 0;
    for (const candidate &x : c) {
        total += std::exp(double(x.logit) - max_logit);
    }
    std::make_heap(c.begin(), c.end(), worse);
    std::vector<candidate> kept;
    double                 sum = 0;
    while (!c.empty() && (kept.empty() || sum < double(top_p) * total)) {
        std::pop_heap(c.begin(), c.end(), worse);
        kept.push_back(c.back());
        c.pop_back();
        sum += std::exp(double(kept.back().logit) - max_logit);
    }
    c.swap(kept);
}

} // namespace

void check_sampling(const cft_sampling &s) {
    auto refuse = [](const char *name, float value, const char *range) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, std::string(name) + " is " + std::to_string(value) + ", must be " + range);
    };
    if (!(s.temperature >= 0) || !std::isfinite(s.temperature)) {
        refuse("temperature", s.temperature, "0 or more");
    }
    if (s.top_k < 0) {
        refuse("top_k", float(s.top_k), "0 or more");
    }
    if (!(s.top_p > 0 && s.top_p <= 1)) {
        refuse("top_p", s.top_p, "above 0 and at most 1");
    }
    if (!(s.min_p >= 0 && s.min_p <= 1)) {
        refuse("min_p", s.min_p, "from 0 to 1");
    }
}

double uniform(uint64_t seed, uint64_t counter) {
    // Both words go through the mixer, so that neighbouring seeds or counters have nothing in common.
    const uint64_t bits = mix(mix(seed + 0x9e3779b97f4a7c15u) + counter * 0x9e3779b97f4a7c15u);
    return double(bits >> 11) * 0x1p-53;
}

int32_t sample_token(const float *logits, size_t n, const cft_sampling &s) {
    check_sampling(s);
    check_logits(logits, n);
    const int32_t best = best_token(logits, n);
    if (s.temperature == 0) {
        return best;
    }
    const float            max_logit = logits[best];
    std::vector<candidate> c;
    c.reserve(n);
    // min-p is a bound on the logit alone, so it may come first: it removes the worst, as the other filters do.
    const double lowest = s.min_p > 0 ? double(max_logit) + std::log(double(s.min_p)) : -std::numeric_limits<double>::infinity();
    const bool   nested = s.top_p < 1; // top-p's share is of all that top-k left
    for (size_t i = 0; i < n; i++) {
        if (std::isfinite(logits[i]) && (nested || logits[i] >= lowest)) {
            c.push_back({logits[i], int32_t(i)});
        }
    }
    if (s.top_k > 0 && size_t(s.top_k) < c.size()) {
        std::nth_element(c.begin(), c.begin() + s.top_k, c.end(), better);
        c.resize(size_t(s.top_k));
    }
    if (nested) {
        nucleus(c, s.top_p, max_logit);
        c.erase(std::remove_if(c.begin(), c.end(), [&](const candidate &x) { return x.logit < lowest; }), c.end());
    }
    std::sort(c.begin(), c.end(), [](const candidate &a, const candidate &b) { return a.id < b.id; });

    std::vector<double> cumulative(c.size());
    double              total = 0;
    for (size_t i = 0; i < c.size(); i++) {
        total += std::exp((double(c[i].logit) - max_logit) / s.temperature);
        cumulative[i] = total;
    }
    const double point = uniform(s.seed, s.counter) * total;
    const size_t at    = size_t(std::upper_bound(cumulative.begin(), cumulative.end(), point) - cumulative.begin());
    return c[std::min(at, c.size() - 1)].id;
}

} // namespace cft
