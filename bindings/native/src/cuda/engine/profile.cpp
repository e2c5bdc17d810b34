// profile.cpp - see profile.h.
#include "profile.h"

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <vector>

namespace cft::cuda {
namespace {

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

} // namespace

profile::profile() : on_(std::getenv("CFT_CUDA_PROFILE") != nullptr), last_(now()) {}

void profile::add(const char *name, const stream &s) {
    s.wait();
    const double t = now();
    total       &sum = totals_[name];
    sum.seconds += t - last_;
    sum.times++;
    last_ = t;
}

void profile::begin_pack(const stream &s) {
    add("between", s);
    if (n_packs_++ < 2) {
        totals_.clear(); // before the first: the trainer's making; before the second: the first pack
    }
}

profile::~profile() {
    std::vector<std::pair<std::string, total>> all(totals_.begin(), totals_.end());
    std::sort(all.begin(), all.end(), [](const auto &a, const auto &b) { return a.second.seconds > b.second.seconds; });
    for (const auto &[name, sum] : all) {
        std::fprintf(stderr, "profile: %-28s %10.3f ms %8lld times\n", name.c_str(), sum.seconds * 1e3, static_cast<long long>(sum.times));
    }
}

} // namespace cft::cuda
