// attention_tiles.cpp - see attention_tiles.h.
#include "attention_tiles.h"

#include <algorithm>
#include <limits>

namespace cft::portable {
namespace {

constexpr size_t  mask_line     = 128; // halves; backends want views of buffers to begin at multiples of 256 bytes
constexpr int64_t least_queries = 16, query_step = 32;

struct pack_of {
    const int32_t *positions, *until;
    int64_t        t;
    int            window, n_head;
    size_t         budget;
    bool           fill;
};

// Where the mask of a tile begins; it is appended to masks.
size_t place_mask(const pack_of &p, const std::vector<int32_t> &queries, const attention_tile &tile, int window, pack_tiles &to) {
    const ggml_fp16_t         seen = ggml_fp32_to_fp16(0.0f), unseen = ggml_fp32_to_fp16(-std::numeric_limits<float>::infinity());
    std::vector<ggml_fp16_t> &masks = to.masks;
    const size_t              at    = (to.n_masks + mask_line - 1) / mask_line * mask_line;
    to.n_masks                      = at + size_t(tile.n_queries * tile.n_keys);
    if (!p.fill) {
        return at;
    }
    masks.resize(to.n_masks, unseen);
    for (int64_t q = 0; q < tile.n_queries; q++) {
        const int32_t i = queries[size_t(tile.query + q)];
        for (int64_t k = 0; k < tile.n_keys; k++) {
            const int64_t j = tile.key + k;
            if (j <= i && i < p.until[j] && (window == 0 || p.positions[i] - p.positions[j] < window)) {
                masks[at + size_t(q * tile.n_keys + k)] = seen;
            }
        }
    }
    return at;
}

// The queries of one segment, which begins at key `begin`, from the index first to last.
void cut_segment(const pack_of &p, int64_t begin, int64_t first, int64_t last, const std::vector<int32_t> &queries,
                 std::vector<attention_tile> &tiles, pack_tiles &to) {
    if (first == last) {
        return;
    }
    const int64_t n_keys = queries[size_t(last - 1)] + 1 - begin;
    int64_t       step   = std::max(least_queries, int64_t(p.budget / (sizeof(float) * size_t(p.n_head) * size_t(n_keys))));
    if (step > query_step) {
        step = step / query_step * query_step;
    }
    for (int64_t q = first; q < last; q += step) {
        const int64_t  n = std::min(step, last - q);
        attention_tile tile{begin, queries[size_t(q + n - 1)] + 1 - begin, q, n, 0, 0};
        tile.mask       = place_mask(p, queries, tile, 0, to);
        tile.local_mask = p.window > 0 ? place_mask(p, queries, tile, p.window, to) : tile.mask;
        tiles.push_back(tile);
    }
}

std::vector<attention_tile> cut(const pack_of &p, const std::vector<int32_t> &queries, pack_tiles &to) {
    std::vector<attention_tile> tiles;
    int64_t                     begin = 0, first = 0, open_until = 0;
    for (int64_t i = 0; i <= p.t; i++) {
        if (i == p.t || (i > 0 && i >= open_until)) { // no key before i is seen from i on
            int64_t last = first;
            while (last < int64_t(queries.size()) && queries[size_t(last)] < i) {
                last++;
            }
            cut_segment(p, begin, first, last, queries, tiles, to);
            begin = i;
            first = last;
        }
        if (i < p.t) {
            open_until = std::max<int64_t>(open_until, p.until[i]);
        }
    }
    return tiles;
}

} // namespace

pack_tiles::pack_tiles(const int32_t *positions, const int32_t *visible_until, int64_t t, const std::vector<int32_t> &target_rows, int window,
                       int n_head, size_t budget, bool fill) {
    const bool           matters = window > 0 && *std::max_element(positions, positions + t) >= window;
    const pack_of        p{positions, visible_until, t, matters ? window : 0, n_head, budget, fill};
    std::vector<int32_t> every(static_cast<size_t>(t));
    for (size_t i = 0; i < every.size(); i++) {
        every[i] = int32_t(i);
    }
    all  = cut(p, every, *this);
    rows = cut(p, target_rows, *this);
}

} // namespace cft::portable
