// bench_attention.cpp - times attention at the shapes of SmolLM2-135M (9 heads over 3, head_dim 64) for each instruction
// set and thread count: bench_attention [n_threads...]. Best of several runs; GFLOP/s count visible pairs only, 4 per
// pair, head and column forward and 10 backward.
#include "cpu/attention.h"
#include "cpu/attention_kernels.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <random>
#include <vector>

using namespace cft;
using namespace cft::cpu;

namespace {

constexpr int n_runs = 15;

template <typename Action> double best_seconds(const Action &action) {
    double best = 1e9;
    for (int i = 0; i < n_runs; i++) {
        const auto start = std::chrono::steady_clock::now();
        action();
        best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    return best;
}

void measure(const char *what, const attention_shape &shape, const std::vector<int32_t> &visible_until, thread_pool &pool) {
    const size_t       n = visible_until.size(), q_columns = static_cast<size_t>(shape.n_head * shape.head_dim),
                 k_columns = static_cast<size_t>(shape.n_head_kv * shape.head_dim);
    std::mt19937       bits(1);
    const auto         floats = [&](size_t size) {
        std::normal_distribution<float> normal;
        std::vector<float>              v(size);
        std::generate(v.begin(), v.end(), [&] { return normal(bits); });
        return v;
    };
    const std::vector<float> q = floats(n * q_columns), k = floats(n * k_columns), v = floats(n * k_columns),
                             dout = floats(n * q_columns);
    std::vector<float>      out(q.size()), lse(n * static_cast<size_t>(shape.n_head)), dq(q.size()), dk(k.size()), dv(v.size());
    std::vector<char>       workspace(attention_workspace_bytes(shape, n, n, pool.size()));
    const attention_mask    mask(visible_until.data(), n, nullptr, n);
    attention_forward_args  f{q.data(), k.data(), v.data(), out.data(), lse.data(), q_columns, k_columns, k_columns, q_columns};
    attention_backward_args b{q.data(),  k.data(),  v.data(),  out.data(), lse.data(), dout.data(), dq.data(),
                              dk.data(), dv.data(), q_columns, k_columns,  k_columns,  q_columns,   q_columns,
                              q_columns, k_columns, k_columns};
    const double forward  = best_seconds([&] { attention_forward(shape, mask, f, workspace.data(), pool); });
    const double backward = best_seconds([&] { attention_backward(shape, mask, b, workspace.data(), pool); });
    const double per_pair = static_cast<double>(mask.n_visible_pairs()) * static_cast<double>(q_columns) * 1e-9;
    std::printf("  %-20s forward %7.3f ms %6.1f GFLOP/s   backward %7.3f ms %6.1f GFLOP/s   sum %7.3f ms\n", what, forward * 1e3,
                4 * per_pair / forward, backward * 1e3, 10 * per_pair / backward, (forward + backward) * 1e3);
}

std::vector<int32_t> segments(int n, int length) {
    std::vector<int32_t> until;
    for (int i = 0; i < n * length; i++) {
        until.push_back((i / length + 1) * length);
    }
    return until;
}

// A prefix and branches of equal length.
std::vector<int32_t> tree(int prefix, int n, int length) {
    std::vector<int32_t> until(static_cast<size_t>(prefix), prefix + n * length);
    for (int32_t end : segments(n, length)) {
        until.push_back(prefix + end);
    }
    return until;
}

} // namespace

int main(int argc, char **argv) {
    std::vector<int> thread_counts;
    for (int i = 1; i < argc; i++) {
        thread_counts.push_back(std::atoi(argv[i]));
    }
    if (thread_counts.empty()) {
        thread_counts = {1, 2};
    }
    const attention_shape small{9, 3, 64, 1.0f / 8}, large{32, 8, 128, 1.0f / std::sqrt(128.0f)};
    for (const char *set : {"generic", "avx2", "avx512"}) {
        if (!attention_use_kernels(set)) {
            std::printf("%s: not on this CPU\n", set);
            continue;
        }
        for (int n_threads : thread_counts) {
            thread_pool pool(n_threads);
            std::printf("%s, %d threads\n", set, n_threads);
            measure("9/3x64, 512", small, segments(1, 512), pool);
            measure("9/3x64, 1024", small, segments(1, 1024), pool);
            measure("9/3x64, 8 x 128", small, segments(8, 128), pool);
            measure("9/3x64, 740+7x291", small, tree(740, 7, 291), pool);
            measure("32/8x128, 512", large, segments(1, 512), pool);
        }
    }
    return 0;
}
