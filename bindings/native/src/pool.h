// pool.h - a fixed team of threads that run one job at a time, for kernels with static work division.
//
// run(job) calls job(ith, nth) once on each of nth threads, the caller being thread 0, and returns when all are done. The
// division of work depends only on (ith, nth), so results are the same every time for a given thread count.
// An exception in a job is rethrown to the caller. Waiting threads spin briefly, then sleep.
#pragma once

#include <functional>
#include <memory>

namespace cft {

class thread_pool {
  public:
    explicit thread_pool(int n_threads); // n_threads >= 1
    ~thread_pool();
    thread_pool(const thread_pool &)            = delete;
    thread_pool &operator=(const thread_pool &) = delete;

    int  size() const;
    void run(const std::function<void(int ith, int nth)> &job);

  private:
    struct state;
    std::unique_ptr<state> state_;
};

} // namespace cft
