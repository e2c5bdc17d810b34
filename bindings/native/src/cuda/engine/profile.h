// profile.h - where a trainer's time goes on its device. With CFT_CUDA_PROFILE set, the host waits after each piece of work and adds
// up its time by name; the sums go to standard error when the trainer is freed. Without, it costs nothing.
#pragma once

#include "runtime.h"

#include <map>
#include <string>

namespace cft::cuda {

class profile {
  public:
    profile();
    ~profile();
    // Ends the piece of work that began at the mark before.
    void mark(const char *name, const stream &s) {
        if (on_) {
            add(name, s);
        }
    }

  private:
    struct total {
        double  seconds = 0;
        int64_t times   = 0;
    };
    void add(const char *name, const stream &s);

    bool                         on_;
    double                       last_ = 0;
    std::map<std::string, total> totals_;
};

} // namespace cft::cuda
