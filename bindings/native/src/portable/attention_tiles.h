// attention_tiles.h - attention of one pack, cut so that a tile's scores fit a bounded number of bytes.
//
// Packed examples do not see each other, so a pack falls into segments: no token sees a key of an earlier segment. A tile is some
// queries of one segment and the keys that they may see, from the segment's first to the last query's own.
#pragma once

#include "../ops.h"

#include "ggml.h"

#include <cstdint>
#include <vector>

namespace cft::portable {

struct attention_tile {
    int64_t key, n_keys;      // first key
    int64_t query, n_queries; // first of the list of queries
    size_t  mask, local_mask; // where in masks [n_queries][n_keys] begins; of layers with a window
};

// pack_tiles are the tiles of all tokens as queries, and of the target rows, with their masks.
struct pack_tiles {
    std::vector<attention_tile> all, rows;
    std::vector<ggml_fp16_t>    masks; // 0, or minus infinity where a key is not seen
    size_t                      n_masks = 0;

    // window 0: none. budget: bytes of a tile's scores of all heads. Without fill, masks are only counted.
    pack_tiles(const int32_t *positions, const int32_t *visible_until, int64_t t, const std::vector<int32_t> &target_rows, int window, int n_head,
               size_t budget, bool fill = true);
};

} // namespace cft::portable
