// offload.h - products of gate and up that wait in the host's memory from the forward pass to the backward pass. On the device there are two
// places for all of them, taken in turns: while one layer's product is on its way, work goes on in the other layers.
#pragma once

#include "plan.h"
#include "runtime.h"

namespace cft::cuda {

class offload {
  public:
    // of: where each layer's product lies on the device; of offloaded layers, in turns the two places.
    offload(const plan &p, const std::vector<activations> &of);
    ~offload();

    // Other layers than the plan's offloaded ones are left alone. n are the rows of the pack.
    // Forward: before the product is written, and when all that reads it there is on the stream. The last two stay where they are.
    void enter(int layer, const stream &work);
    void leave(int layer, int64_t n, const stream &work);
    // Backward: before the product is read, and when all that uses its place is on the stream; then one that waits begins to come.
    void await(int layer, const stream &work);
    void release(int layer, int64_t n, const stream &work);

  private:
    struct entry {
        char  *device, *host; // host: NULL of the last two
        size_t row_bytes;
    };
    struct place {
        event used, moved;
    };
    place &place_of(int i) { return places_[i % 2]; }

    pinned             memory_;
    std::vector<int>   index_; // of each layer among the offloaded ones, or -1
    std::vector<entry> entries_;
    place              places_[2];
    stream             copies_{stream_use::copies};
};

} // namespace cft::cuda
