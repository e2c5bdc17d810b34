// offload.cpp - see offload.h.
#include "offload.h"

namespace cft::cuda {

offload::offload(const plan &p, const std::vector<activations> &of) : memory_(p.offloaded_bytes), index_(p.layers.size(), -1) {
    size_t at = 0;
    for (size_t l = 0; l < p.layers.size(); l++) {
        if (!p.offloaded[l]) {
            continue;
        }
        index_[l]              = int(entries_.size());
        const size_t row_bytes = p.gate_up_row_bytes(l);
        const bool   stays     = index_[l] + 2 >= p.n_offloaded;
        entries_.push_back({reinterpret_cast<char *>(of[l].gate_up), stays ? nullptr : memory_.data() + at, row_bytes});
        at += stays ? 0 : row_bytes * size_t(p.t);
    }
}

offload::~offload() { copies_.wait_to_end(); } // to and from memory that is given back next

void offload::enter(int layer, const stream &work) {
    if (const int i = index_[size_t(layer)]; i >= 0) {
        work.wait_for(place_of(i).moved);
    }
}

void offload::leave(int layer, int64_t n, const stream &work) {
    const int i = index_[size_t(layer)];
    if (i < 0 || !entries_[size_t(i)].host) {
        return;
    }
    const entry &e = entries_[size_t(i)];
    place       &p = place_of(i);
    p.used.record(work);
    copies_.wait_for(p.used);
    to_host(e.host, e.device, e.row_bytes * size_t(n), copies_.get());
    p.moved.record(copies_);
}

void offload::await(int layer, const stream &work) { enter(layer, work); }

void offload::release(int layer, int64_t n, const stream &work) {
    const int i = index_[size_t(layer)];
    if (i < 2) {
        return;
    }
    const entry &e = entries_[size_t(i - 2)];
    place       &p = place_of(i);
    p.used.record(work);
    copies_.wait_for(p.used);
    to_device(e.device, e.host, e.row_bytes * size_t(n), copies_.get());
    p.moved.record(copies_);
}

} // namespace cft::cuda
