// stage.h - layers' weights that stay in the host's memory, on their way to the device. There are two places, for a layer and for the one
// that comes after it: that one is copied, on a stream of its own, while work goes on with the first.
#pragma once

#include "page_locks.h"
#include "plan.h"
#include "runtime.h"

#include <memory>

namespace cft::cuda {

// matrix is a weight as the file has it, on the device or, where layers stay there, on the host.
struct matrix {
    ggml_type   type;
    const char *data = nullptr;
    int64_t     rows = 0, columns = 0;
    size_t      row_bytes = 0;
};

class stage {
  public:
    // sources: each layer's matrices on the host, group by group. places: device memory of p.stage_bytes each.
    stage(const plan &p, char *const places[2]);

    ~stage();

    void add(size_t layer, const matrix &source); // in order
    // After the last matrix: locks all of them in the host's memory, if they are at most so many bytes.
    void               lock(uint64_t lockable);
    const std::string &not_locked() const { return locks_->refusal(); } // why, or ""

    // Begins to copy a layer, if it is not there. Where weights are not locked the host waits until it is there, so work on the layer
    // before should be on its stream already.
    void fetch(int layer);
    // Where the layer's matrix i is, for work that is put on the stream from now on; until release.
    const char *await(int layer, size_t i, const stream &work);
    void        release(int layer, const stream &work);

  private:
    struct entry {
        matrix source;
        size_t at; // in the place
    };
    struct place {
        char *data;
        int   layer = -1;
        event arrived, released;
    };
    place &place_of(int layer) { return places_[layer % 2]; }

    std::vector<std::vector<entry>> layers_;
    std::unique_ptr<page_locks>     locks_;
    place                           places_[2];
    stream                          copies_{stream_use::copies};
};

} // namespace cft::cuda
