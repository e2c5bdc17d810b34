// stage.cpp - see stage.h.
#include "stage.h"

namespace cft::cuda {

stage::stage(const plan &p, char *const places[2]) : layers_(p.layers.size()) {
    places_[0].data = places[0];
    places_[1].data = places[1];
}

void stage::add(size_t layer, const matrix &source) {
    std::vector<entry> &all = layers_[layer];
    const size_t        end = all.empty() ? 0 : all.back().at + all.back().source.row_bytes * size_t(all.back().source.rows);
    all.push_back({source, staged(end)});
}

void stage::lock(uint64_t lockable) {
    std::vector<page_locks::range> ranges;
    for (const auto &layer : layers_) {
        for (const entry &e : layer) {
            ranges.push_back({e.source.data, e.source.data + e.source.row_bytes * size_t(e.source.rows)});
        }
    }
    locks_ = std::make_unique<page_locks>(ranges, lockable);
}

stage::~stage() { copies_.wait_to_end(); } // from pages that are unlocked next

void stage::fetch(int layer) {
    place &p = place_of(layer);
    if (p.layer == layer) {
        return;
    }
    copies_.wait_for(p.released); // the work that read the layer which is there
    for (const entry &e : layers_[size_t(layer)]) {
        const auto copy = locks_->held() ? to_device_from_locked : to_device_from_file;
        copy(p.data + e.at, e.source.data, e.source.row_bytes * size_t(e.source.rows), copies_.get());
    }
    p.arrived.record(copies_);
    p.layer = layer;
}

const char *stage::await(int layer, size_t i, const stream &work) {
    fetch(layer);
    place &p = place_of(layer);
    work.wait_for(p.arrived);
    return p.data + layers_[size_t(layer)][i].at;
}

void stage::release(int layer, const stream &work) { place_of(layer).released.record(work); }

} // namespace cft::cuda
