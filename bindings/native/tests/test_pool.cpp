// test_pool.cpp - the thread pool: every part runs once, exceptions come back, sleepers wake, shutdown is clean.
#include "checks.h"
#include "failure.h"
#include "pool.h"
#include "processors.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace {

// Longer than the pool spins, so that its threads sleep.
constexpr std::chrono::milliseconds past_the_spin{5};

void each_part_runs_once(int n_threads) {
    cft::thread_pool pool(n_threads);
    CHECK(pool.size() == n_threads);
    std::vector<int>             counts(static_cast<size_t>(n_threads), 0); // not atomic: a data race would show in TSan
    std::vector<std::thread::id> ids(static_cast<size_t>(n_threads));
    constexpr int                n_rounds = 2000;
    bool                         nth_right = true;
    for (int round = 0; round < n_rounds; round++) {
        pool.run([&](int ith, int nth) {
            counts[static_cast<size_t>(ith)]++;
            if (ith == 0) {
                nth_right = nth_right && nth == n_threads;
            }
            ids[static_cast<size_t>(ith)] = std::this_thread::get_id();
        });
    }
    CHECK(nth_right);
    for (int count : counts) {
        CHECK(count == n_rounds);
    }
    CHECK(ids[0] == std::this_thread::get_id());
}

void sleepers_wake() {
    cft::thread_pool pool(3);
    std::atomic<int> parts{0};
    for (int round = 0; round < 5; round++) {
        std::this_thread::sleep_for(past_the_spin); // the workers sleep
        pool.run([&](int ith, int) {
            if (ith == 2) {
                std::this_thread::sleep_for(past_the_spin); // the caller sleeps
            }
            parts++;
        });
        CHECK(parts == 3 * (round + 1));
    }
}

void exceptions_come_back(int n_threads) {
    cft::thread_pool pool(n_threads);
    std::atomic<int> finished{0};
    std::string      caught;
    try {
        pool.run([&](int ith, int nth) {
            if (ith == nth - 1 || ith == nth / 2) {
                throw std::runtime_error("part " + std::to_string(ith));
            }
            finished++;
        });
    } catch (const std::runtime_error &e) {
        caught = e.what();
    }
    CHECK(caught == "part " + std::to_string(n_threads / 2)); // the lowest of those that threw
    CHECK(finished == n_threads - (n_threads / 2 == n_threads - 1 ? 1 : 2));

    std::atomic<int> ran{0};
    pool.run([&](int, int) { ran++; }); // and the pool goes on working
    CHECK(ran == n_threads);
}

void refuses_misuse() {
    cft_status status = CFT_OK;
    try {
        cft::thread_pool pool(0);
    } catch (const cft::failure &f) {
        status = f.status;
    }
    CHECK(status == CFT_ERR_INVALID_ARGUMENT);

    cft::thread_pool pool(2);
    status = CFT_OK;
    try {
        pool.run([&](int ith, int) {
            if (ith == 0) {
                pool.run([](int, int) {}); // would wait for itself
            }
        });
    } catch (const cft::failure &f) {
        status = f.status;
    }
    CHECK(status == CFT_ERR_INTERNAL);
}

void starts_and_stops() {
    for (int i = 0; i < 50; i++) {
        cft::thread_pool pool(4);
        if (i % 3 == 0) {
            std::atomic<int> ran{0};
            pool.run([&](int, int) { ran++; });
            CHECK(ran == 4);
        }
        if (i % 10 == 0) {
            std::this_thread::sleep_for(past_the_spin);
        }
    }
}

void counts_processors() {
    CHECK(cft::quota_of("200000 100000\n") == 2);
    CHECK(cft::quota_of("50000 100000") == 0.5);
    CHECK(cft::quota_of("max 100000\n") == 0);
    CHECK(cft::quota_of("-1\n 100000\n") == 0);
    CHECK(cft::quota_of("") == 0);
    CHECK(cft::quota_of("100000") == 0);
    CHECK(cft::quota_of("100000 0") == 0);
    const int all = cft::available_processors();
    CHECK(all >= 1);
    cft::share_processors(2);
    CHECK(cft::available_processors() == std::max(1, all / 2));
    cft::share_processors(all + 1);
    CHECK(cft::available_processors() == 1);
    cft::share_processors(1);
    CHECK(cft::available_processors() == all);
#if defined(__linux__)
    cpu_set_t before, one;
    CHECK(sched_getaffinity(0, sizeof before, &before) == 0);
    CHECK(all <= CPU_COUNT(&before));
    int first = 0;
    while (!CPU_ISSET(first, &before)) {
        first++;
    }
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    CHECK(sched_setaffinity(0, sizeof one, &one) == 0);
    CHECK(cft::available_processors() == 1);
    CHECK(sched_setaffinity(0, sizeof before, &before) == 0);
#endif
}

} // namespace

int main() {
    counts_processors();
    for (int n_threads : {1, 2, 3, 7}) {
        each_part_runs_once(n_threads);
    }
    for (int n_threads : {1, 2, 5}) {
        exceptions_come_back(n_threads);
    }
    sleepers_wake();
    refuses_misuse();
    starts_and_stops();
    return checks::finish("pool");
}
