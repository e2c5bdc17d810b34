// attention_tiles.cpp - the tile lists of the CPU engine's mask, laid out for the device.
#include "kernels.h"

#include "../cpu/attention_kernels.h"

#include <algorithm>
#include <numeric>

namespace cft::cuda {

static_assert(attention_tile == cpu::attention_tile_queries && attention_tile == cpu::attention_tile_keys, "one list for both engines");

namespace {

int64_t tiles_of(int64_t n) { return (n + attention_tile - 1) / attention_tile; }

std::vector<int32_t> copy(const int32_t *from, int64_t n) { return from ? std::vector<int32_t>(from, from + n) : std::vector<int32_t>(); }

std::vector<int32_t> entries(const cpu::attention_tiles::tile *tiles, int64_t n) {
    std::vector<int32_t> words;
    for (int64_t i = 0; i < n; i++) {
        words.push_back(2 * tiles[i].index + (tiles[i].whole ? 1 : 0));
    }
    return words;
}

// For each entry of query_tiles, its pair's index in key_tiles. Both are ascending, so the tiles of keys come to each tile of queries in the
// order of its list.
std::vector<int32_t> pairs_of(const cpu::attention_tiles &t) {
    std::vector<int32_t> next(t.key_tiles_start, t.key_tiles_start + t.n_query_tiles), places;
    for (int64_t i = 0; i < t.query_tiles_start[t.n_key_tiles]; i++) {
        places.push_back(next[size_t(t.query_tiles[i].index)]++);
    }
    return places;
}

// The lists' numbers, longest list first; of equals the last, which on the diagonal has most to do.
std::vector<int32_t> longest_first(const int32_t *start, int64_t n) {
    std::vector<int32_t> order(static_cast<size_t>(n), 0);
    std::iota(order.rbegin(), order.rend(), 0);
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return start[a + 1] - start[a] > start[b + 1] - start[b]; });
    return order;
}

} // namespace

attention_lists::attention_lists(const int32_t *visible_until, int64_t n_tokens, const int32_t *query_tokens, int64_t n_queries,
                                 const int32_t *positions, int32_t window, bool with_places)
    : n_tokens_(n_tokens), n_queries_(n_queries), has_places_(with_places) {
    const cpu::attention_mask  mask(visible_until, size_t(n_tokens), query_tokens, size_t(n_queries), positions, window);
    const cpu::attention_tiles tiles(mask);
    tree_window_ = tiles.window_starts != nullptr;
    // n_queries 0 with no tokens given means all of them nowhere: the mask has none.
    visible_until_     = put(copy(tiles.visible_until, n_tokens));
    query_tokens_      = put(copy(tiles.query_tokens, n_queries));
    key_positions_     = put(copy(tiles.key_positions, n_tokens));
    window_starts_     = put(copy(tiles.window_starts, n_queries));
    key_tiles_start_   = put(copy(tiles.key_tiles_start, tiles.n_query_tiles + 1));
    key_tiles_         = put(entries(tiles.key_tiles, tiles.key_tiles_start[tiles.n_query_tiles]));
    query_tiles_start_ = put(copy(tiles.query_tiles_start, tiles.n_key_tiles + 1));
    query_tiles_       = put(entries(tiles.query_tiles, tiles.query_tiles_start[tiles.n_key_tiles]));
    query_order_       = put(longest_first(tiles.key_tiles_start, tiles.n_query_tiles));
    key_order_         = put(longest_first(tiles.query_tiles_start, tiles.n_key_tiles));
    places_            = put(with_places ? pairs_of(tiles) : std::vector<int32_t>());
    n_pairs_           = tiles.query_tiles_start[tiles.n_key_tiles];
    for (int64_t i = 0; i < tiles.n_key_tiles; i++) {
        longest_ = std::max(longest_, int64_t(tiles.query_tiles_start[i + 1] - tiles.query_tiles_start[i]));
    }
}

size_t attention_lists::put(const std::vector<int32_t> &values) {
    const size_t at = words_.size();
    words_.insert(words_.end(), values.begin(), values.end());
    return at;
}

size_t attention_lists::max_words(int64_t n_tokens, int64_t n_queries, bool with_places) {
    const int64_t q = tiles_of(n_queries), k = tiles_of(n_tokens);
    return size_t(2 * n_tokens + 2 * n_queries + 2 * (q + 1 + k + 1) + (with_places ? 3 : 2) * q * k);
}

attention_view::attention_view(const attention_lists &lists, const int32_t *words)
    : n_tokens(lists.n_tokens_), n_queries(lists.n_queries_), visible_until(words + lists.visible_until_),
      query_tokens(words + lists.query_tokens_), key_positions(lists.tree_window_ ? words + lists.key_positions_ : nullptr),
      window_starts(lists.tree_window_ ? words + lists.window_starts_ : nullptr), key_tiles_start(words + lists.key_tiles_start_),
      key_tiles(words + lists.key_tiles_), query_tiles_start(words + lists.query_tiles_start_), query_tiles(words + lists.query_tiles_),
      query_order(words + lists.query_order_), key_order(words + lists.key_order_), places(lists.has_places_ ? words + lists.places_ : nullptr),
      n_pairs(lists.n_pairs_), longest(lists.longest_) {}

// ---- gradients of scores that are stored

size_t stored_score_bytes(const cpu::attention_shape &shape, const attention_view &view) {
    return size_t(view.n_pairs) * size_t(shape.n_head / shape.n_head_kv) * attention_tile * attention_tile * sizeof(bf16);
}

int heads_to_store(const cpu::attention_shape &shape, const attention_view &view, size_t bytes) {
    // Blocks of the first kernel that a large device has under way (two on each of 132 multiprocessors). A constant, so that
    // what is done, and so the bits, depend on no device.
    constexpr int64_t blocks = 264;
    const size_t      each   = stored_score_bytes(shape, view);
    if (!view.places || each == 0 || bytes < each) {
        return 0;
    }
    const int64_t most = int64_t(bytes / each), n = shape.n_head_kv, times = (n + most - 1) / most, heads = (n + times - 1) / times;
    // A launch takes as long as its longest block; what all together have to do should fill nine tenths of that.
    return times > 1 && 10 * heads * view.n_pairs < 9 * blocks * view.longest ? 0 : int(heads);
}

} // namespace cft::cuda
