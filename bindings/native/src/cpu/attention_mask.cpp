// attention_mask.cpp - which tiles of a pack hold visible pairs.
#include "attention_kernels.h"
#include "failure.h"

#include <algorithm>
#include <limits>
#include <string>

namespace cft::cpu {

namespace {

[[noreturn]] void refuse(const std::string &cause) { throw failure(CFT_ERR_INVALID_ARGUMENT, "attention mask: " + cause); }

std::string at(const char *array, size_t i, int32_t value) {
    return std::string(array) + "[" + std::to_string(i) + "] = " + std::to_string(value);
}

size_t tiles_of(size_t n, size_t per_tile) { return (n + per_tile - 1) / per_tile; }

} // namespace

attention_mask::attention_mask(const int32_t *visible_until, size_t n_tokens, const int32_t *query_tokens, size_t n_queries,
                               const int32_t *positions, int32_t window)
    : n_tokens_(n_tokens) {
    if (n_tokens > static_cast<size_t>(std::numeric_limits<int32_t>::max()) - attention_tile_keys) {
        refuse(std::to_string(n_tokens) + " tokens: too many");
    }
    if (!query_tokens && n_queries != n_tokens && n_queries != 0) {
        refuse(std::to_string(n_queries) + " queries without their tokens, of " + std::to_string(n_tokens) + " tokens");
    }
    for (size_t j = 0; j < n_tokens; j++) {
        if (visible_until[j] <= static_cast<int32_t>(j) || visible_until[j] > static_cast<int32_t>(n_tokens)) {
            refuse(at("visible_until", j, visible_until[j]) + ": must be above the index and at most " +
                   std::to_string(n_tokens));
        }
    }
    visible_until_.assign(tiles_of(n_tokens, attention_tile_keys) * attention_tile_keys, 0);
    std::copy(visible_until, visible_until + n_tokens, visible_until_.begin());
    query_tokens_.resize(n_queries);
    for (size_t i = 0; i < n_queries; i++) {
        const int32_t token = query_tokens ? query_tokens[i] : static_cast<int32_t>(i);
        if (token < 0 || token >= static_cast<int32_t>(n_tokens) || (i > 0 && token <= query_tokens_[i - 1])) {
            refuse(at("query_tokens", i, token) + ": must be ascending token indices below " + std::to_string(n_tokens));
        }
        query_tokens_[i] = token;
    }
    if (window > 0) {
        set_window(positions, window);
    }
    find_spans();
    list_tiles();
}

void attention_mask::set_window(const int32_t *positions, int32_t window) {
    // In a sequence positions grow with the index, so that the window ends at an index. A tree is where they do not while
    // something before still is visible.
    bool    tree  = false;
    int32_t reach = 0;
    for (size_t j = 0; j + 1 < n_tokens_; j++) {
        reach = std::max(reach, visible_until_[j]);
        tree |= reach > static_cast<int32_t>(j) + 1 && positions[j + 1] - positions[j] != 1;
    }
    for (size_t j = 0; j < n_tokens_; j++) {
        int32_t &until = visible_until_[j];
        if (!tree) {
            until = static_cast<int32_t>(std::min<int64_t>(until, static_cast<int64_t>(j) + window));
            continue;
        }
        while (positions[until - 1] - positions[j] >= window) { // ends at the key itself
            until--;
        }
    }
    if (!tree) {
        return;
    }
    key_positions_.assign(visible_until_.size(), 0);
    std::copy(positions, positions + n_tokens_, key_positions_.begin());
    for (int32_t token : query_tokens_) {
        window_starts_.push_back(positions[token] - window + 1);
    }
}

void attention_mask::find_spans() {
    const size_t n_queries = query_tokens_.size();
    first_key_.resize(n_queries);
    for (size_t i = 0, key = 0; i < n_queries; i++) {
        // Keys that ended before this query do not come back, so the first live one only moves forward.
        while (visible_until_[key] <= query_tokens_[i]) {
            key++;
        }
        first_key_[i] = static_cast<int32_t>(key);
    }

    // index_of[t] is the number of queries before token t.
    std::vector<int32_t> index_of(n_tokens_ + 1, 0);
    for (int32_t token : query_tokens_) {
        index_of[static_cast<size_t>(token) + 1] = 1;
    }
    for (size_t t = 0; t < n_tokens_; t++) {
        index_of[t + 1] += index_of[t];
    }
    first_query_.resize(n_tokens_);
    end_query_.resize(n_tokens_);
    for (size_t j = 0; j < n_tokens_; j++) {
        first_query_[j] = index_of[j];
        end_query_[j]   = index_of[static_cast<size_t>(visible_until_[j])];
    }
}

// Whether, in a tree, all keys of a whole tile lie in the windows of all queries of another.
bool attention_mask::in_window(size_t query_tile, size_t key_tile) const {
    if (window_starts_.empty()) {
        return true;
    }
    const auto key = key_positions_.begin() + static_cast<std::ptrdiff_t>(key_tile * attention_tile_keys);
    const auto query = window_starts_.begin() + static_cast<std::ptrdiff_t>(query_tile * attention_tile_queries);
    const auto n     = std::min<std::ptrdiff_t>(attention_tile_queries, window_starts_.end() - query);
    return *std::min_element(key, key + attention_tile_keys) >= *std::max_element(query, query + n);
}

void attention_mask::list_tiles() {
    const size_t n_queries     = query_tokens_.size();
    const size_t n_query_tiles = tiles_of(n_queries, attention_tile_queries);
    const size_t n_key_tiles   = tiles_of(n_tokens_, attention_tile_keys);

    key_tile_pairs_.assign(n_key_tiles, 0);
    query_tile_pairs_.assign(n_query_tiles, 0);
    query_tiles_start_.assign(1, 0);
    std::vector<std::vector<tile>> of_query_tile(n_query_tiles);
    // Keys of one tile that touch each query tile, and that cover it; as differences between neighbours.
    std::vector<int32_t> touch(n_query_tiles + 1), cover(n_query_tiles + 1);
    for (size_t kt = 0; kt < n_key_tiles; kt++) {
        std::fill(touch.begin(), touch.end(), 0);
        std::fill(cover.begin(), cover.end(), 0);
        const size_t first = kt * attention_tile_keys, end = std::min(first + attention_tile_keys, n_tokens_);
        for (size_t j = first; j < end; j++) {
            const size_t q0 = static_cast<size_t>(first_query_[j]), q1 = static_cast<size_t>(end_query_[j]);
            if (q0 == q1) {
                continue;
            }
            key_tile_pairs_[kt] += static_cast<int64_t>(q1 - q0);
            touch[q0 / attention_tile_queries]++;
            touch[(q1 - 1) / attention_tile_queries + 1]--;
            const size_t c0 = tiles_of(q0, attention_tile_queries);
            const size_t c1 = q1 == n_queries ? n_query_tiles : q1 / attention_tile_queries;
            if (c0 < c1) {
                cover[c0]++;
                cover[c1]--;
            }
        }
        int32_t touching = 0, covering = 0;
        for (size_t qt = 0; qt < n_query_tiles; qt++) {
            touching += touch[qt];
            covering += cover[qt];
            if (touching > 0) {
                const bool whole = covering == attention_tile_keys && in_window(qt, kt);
                query_tiles_.push_back({static_cast<int32_t>(qt), whole});
                of_query_tile[qt].push_back({static_cast<int32_t>(kt), whole});
            }
        }
        query_tiles_start_.push_back(static_cast<int32_t>(query_tiles_.size()));
        n_visible_pairs_ += key_tile_pairs_[kt];
    }

    key_tiles_start_.assign(1, 0);
    for (const std::vector<tile> &tiles : of_query_tile) {
        key_tiles_.insert(key_tiles_.end(), tiles.begin(), tiles.end());
        key_tiles_start_.push_back(static_cast<int32_t>(key_tiles_.size()));
    }
    // Keys that a query sees, as differences between neighbours.
    std::vector<int64_t> seen(n_queries + 1, 0);
    for (size_t j = 0; j < n_tokens_; j++) {
        seen[static_cast<size_t>(first_query_[j])]++;
        seen[static_cast<size_t>(end_query_[j])]--;
    }
    int64_t sees = 0;
    for (size_t i = 0; i < n_queries; i++) {
        sees += seen[i];
        query_tile_pairs_[i / attention_tile_queries] += sees;
    }
}

} // namespace cft::cpu
