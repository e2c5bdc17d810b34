// profile.h - where a trainer's time goes on its device. With CFT_CUDA_PROFILE set, the host waits after each piece of work and adds
// up its time by name; the sums go to standard error when the trainer is freed. The first pack is left out where another follows: each
// first use of a kernel loads it (cuBLASLt's take some 90 ms in all). Without the variable it costs nothing.
#pragma once

#include "runtime.h"

#include <map>
#include <string>

namespace cft::cuda {

class profile {
  public:
    profile();
    ~profile();
    // Begins a pack, which ends what lies between it and the one before.
    void begin(const stream &s) {
        if (on_) {
            begin_pack(s);
        }
    }
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
    void begin_pack(const stream &s);

    bool                         on_;
    double                       last_    = 0;
    int64_t                      n_packs_ = 0;
    std::map<std::string, total> totals_;
};

} // namespace cft::cuda
