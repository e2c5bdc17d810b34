#include "pool.h"

#include "failure.h"

#include <signal.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

namespace cft {

namespace {

// Kernels follow each other within microseconds, and waking a sleeping thread costs tens of them; spinning for longer than
// that only takes the core from others (the Go runtime, a second process).
constexpr std::chrono::microseconds spin_time{50};
constexpr int                       pauses_per_clock_read = 16;

inline void pause_core() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// spin_until returns whether ready() came true within spin_time.
template <typename Ready> bool spin_until(const Ready &ready) {
    if (ready()) {
        return true;
    }
    const auto deadline = std::chrono::steady_clock::now() + spin_time;
    do {
        for (int i = 0; i < pauses_per_clock_read; i++) {
            pause_core();
            if (ready()) {
                return true;
            }
        }
    } while (std::chrono::steady_clock::now() < deadline);
    return false;
}

// While one lives, new threads are born with asynchronous signals blocked: those belong to the host program's own threads
// (the Go runtime expects them there). Faults and the profiler's signal stay open, being sent to the thread they concern.
class blocked_signals {
  public:
    blocked_signals() {
        sigset_t blocked;
        sigfillset(&blocked);
        for (int open : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGPROF}) {
            sigdelset(&blocked, open);
        }
        pthread_sigmask(SIG_SETMASK, &blocked, &before_);
    }
    ~blocked_signals() { pthread_sigmask(SIG_SETMASK, &before_, nullptr); }
    blocked_signals(const blocked_signals &)            = delete;
    blocked_signals &operator=(const blocked_signals &) = delete;

  private:
    sigset_t before_;
};

} // namespace

struct thread_pool::state {
    using job_type = std::function<void(int, int)>;

    explicit state(int n) : errors(static_cast<size_t>(n)), n_threads(n) {}

    // Published to the workers by the increment of round.
    const job_type                 *job = nullptr;
    std::vector<std::exception_ptr> errors; // of thread i; read by the caller once pending is 0
    const int                       n_threads;
    bool                            stop = false;

    // Counters on lines of their own: workers spin on one while others write the other.
    alignas(64) std::atomic<uint32_t> round{0};   // number of jobs started
    alignas(64) std::atomic<int>      pending{0}; // workers that have not finished the current job
    alignas(64) std::atomic<bool>     running{false};

    // A sleeper announces itself before it looks at its counter for the last time, and a waker changes the counter before
    // it looks for sleepers; both in sequentially consistent order, so that one of them sees the other.
    std::mutex              mutex;
    std::condition_variable work, done;
    std::atomic<int>        sleeping_workers{0};
    std::atomic<bool>       caller_sleeps{false};

    std::vector<std::thread> workers;

    void run_part(int ith) {
        try {
            (*job)(ith, n_threads);
        } catch (...) {
            errors[static_cast<size_t>(ith)] = std::current_exception();
        }
    }

    void start_round() {
        round.fetch_add(1);
        if (sleeping_workers.load() > 0) {
            std::lock_guard<std::mutex> lock(mutex);
            work.notify_all();
        }
    }

    void wait_for_round_after(uint32_t seen) {
        const auto ready = [&] { return round.load() != seen; };
        if (spin_until(ready)) {
            return;
        }
        std::unique_lock<std::mutex> lock(mutex);
        sleeping_workers.fetch_add(1);
        work.wait(lock, ready);
        sleeping_workers.fetch_sub(1);
    }

    void finish_part() {
        if (pending.fetch_sub(1) == 1 && caller_sleeps.load()) {
            std::lock_guard<std::mutex> lock(mutex);
            done.notify_one();
        }
    }

    void wait_for_parts() {
        const auto ready = [&] { return pending.load() == 0; };
        if (spin_until(ready)) {
            return;
        }
        std::unique_lock<std::mutex> lock(mutex);
        caller_sleeps.store(true);
        done.wait(lock, ready);
        caller_sleeps.store(false);
    }

    void work_until_stopped(int ith) {
        for (uint32_t seen = 0;; seen++) {
            wait_for_round_after(seen);
            if (stop) {
                return;
            }
            run_part(ith);
            finish_part();
        }
    }

    void join_workers() {
        stop = true;
        start_round();
        for (std::thread &worker : workers) {
            worker.join();
        }
    }
};

thread_pool::thread_pool(int n_threads) {
    if (n_threads < 1) {
        throw failure(CFT_ERR_INVALID_ARGUMENT, "thread pool: " + std::to_string(n_threads) + " threads: must be at least 1");
    }
    state_ = std::make_unique<state>(n_threads);
    const blocked_signals guard;
    try {
        for (int ith = 1; ith < n_threads; ith++) {
            state_->workers.emplace_back([s = state_.get(), ith] { s->work_until_stopped(ith); });
        }
    } catch (const std::system_error &e) {
        state_->join_workers(); // those that did start
        throw failure(CFT_ERR_NO_MEMORY, "thread pool: start " + std::to_string(n_threads) + " threads: " + e.what());
    } catch (...) {
        state_->join_workers();
        throw;
    }
}

thread_pool::~thread_pool() { state_->join_workers(); }

int thread_pool::size() const { return state_->n_threads; }

void thread_pool::run(const std::function<void(int ith, int nth)> &job) {
    state &s = *state_;
    if (s.running.exchange(true)) {
        throw failure(CFT_ERR_INTERNAL, "thread pool: run: a job is running already");
    }
    s.job = &job;
    s.pending.store(s.n_threads - 1);
    if (s.n_threads > 1) {
        s.start_round();
    }
    s.run_part(0);
    if (s.n_threads > 1) {
        s.wait_for_parts();
    }
    std::exception_ptr first; // of the lowest thread, so that the report does not depend on timing
    for (std::exception_ptr &error : s.errors) {
        if (error && !first) {
            first = error;
        }
        error = nullptr;
    }
    s.job = nullptr;
    s.running.store(false);
    if (first) {
        std::rethrow_exception(first);
    }
}

} // namespace cft
