// attention.cpp - division of attention among threads, and the choice of kernels.
//
// Forward: a tile of queries of one head is computed whole by one thread, so tiles are handed out heaviest first to
// whoever is free; the result does not depend on who that is. Backward: a tile of keys of one group of heads is one piece
// of work, and each thread takes a contiguous range of pieces of equal cost, fixed by the thread count. dK and dV of a
// piece are whole. dQ is summed over pieces in ascending order in place, except that a thread which starts in the middle
// of a group sums that group's share aside; those are added at the end, in order of threads.
#include "attention.h"

#include "attention_kernels.h"
#include "failure.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <numeric>
#include <string>

namespace cft::cpu {

namespace {

constexpr size_t alignment = 64; // bytes

size_t up_to(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

size_t padded_floats(size_t n) { return up_to(n, alignment / sizeof(float)); }

void check_shape(const attention_shape &shape) {
    const auto refuse = [](const std::string &cause) { throw failure(CFT_ERR_INVALID_ARGUMENT, "attention: " + cause); };
    if (shape.head_dim < 8 || shape.head_dim % 8 != 0 || shape.head_dim > attention_max_head_dim) {
        refuse("head_dim " + std::to_string(shape.head_dim) + ": must be a multiple of 8 up to " +
               std::to_string(attention_max_head_dim));
    }
    if (shape.n_head_kv < 1 || shape.n_head < 1 || shape.n_head % shape.n_head_kv != 0) {
        refuse(std::to_string(shape.n_head) + " heads with " + std::to_string(shape.n_head_kv) +
               " key-value heads: must be a positive multiple");
    }
}

// ---- kernels

bool cpu_runs(const attention_kernels &kernels) {
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    if (&kernels == &attention_kernels_avx2) {
        return avx2;
    }
    if (&kernels == &attention_kernels_avx512) {
        return avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512bw");
    }
#endif
    return &kernels == &attention_kernels_generic;
}

// Best first.
const attention_kernels *const all_kernels[] = {
#if defined(__x86_64__)
    &attention_kernels_avx512,
    &attention_kernels_avx2,
#endif
    &attention_kernels_generic,
};

const attention_kernels *best_kernels() {
    return *std::find_if(std::begin(all_kernels), std::end(all_kernels), [](const auto *k) { return cpu_runs(*k); });
}

std::atomic<const attention_kernels *> &kernels_in_use() {
    static std::atomic<const attention_kernels *> kernels{best_kernels()};
    return kernels;
}

// ---- work division

int key_tiles_of(size_t n_tokens) { return static_cast<int>((n_tokens + attention_tile_keys - 1) / attention_tile_keys); }

// Whether thread ith may start in the middle of a group: all groups cost the same, so the n_head_kv groups divide among
// nth threads at whole groups exactly where this division has no rest.
bool may_start_inside_group(int ith, int nth, int n_head_kv) { return static_cast<int64_t>(ith) * n_head_kv % nth != 0; }

int threads_with_share(int nth, int n_head_kv) {
    int n = 0;
    for (int ith = 0; ith < nth; ith++) {
        n += may_start_inside_group(ith, nth, n_head_kv);
    }
    return n;
}

// Where things lie in the workspace, in floats from its aligned start.
struct forward_layout {
    size_t keys_transposed = 0, scratch, end;

    forward_layout(const attention_shape &shape, size_t n_tokens, int n_threads) {
        scratch = static_cast<size_t>(shape.n_head_kv) * static_cast<size_t>(shape.head_dim) *
                  static_cast<size_t>(key_tiles_of(n_tokens)) * attention_tile_keys;
        end     = scratch + attention_scratch_floats(shape.head_dim) * static_cast<size_t>(n_threads);
    }
};

struct backward_layout {
    size_t row_products = 0, shares, share_size, scratch, end;

    backward_layout(const attention_shape &shape, size_t n_queries, int n_threads) {
        const size_t group_columns = static_cast<size_t>(shape.n_head / shape.n_head_kv * shape.head_dim);
        shares     = padded_floats(static_cast<size_t>(shape.n_head) * n_queries);
        share_size = padded_floats(n_queries * group_columns);
        scratch    = shares + share_size * static_cast<size_t>(threads_with_share(n_threads, shape.n_head_kv));
        end        = scratch + attention_scratch_floats(shape.head_dim) * static_cast<size_t>(n_threads);
    }
};

float *aligned_start(void *workspace) {
    return reinterpret_cast<float *>(up_to(reinterpret_cast<size_t>(workspace), alignment));
}

std::pair<int, int> even_part(int n, int ith, int nth) {
    const auto begin_of = [&](int i) { return static_cast<int>(static_cast<int64_t>(n) * i / nth); };
    return {begin_of(ith), begin_of(ith + 1)};
}

// Transposing K and V and writing dK and dV cost about as much as this many visible pairs per head.
constexpr int64_t cost_of_key_tile = 256;

// divide_backward gives the pieces [first[i], first[i + 1]) to thread i. Piece kv_head * n_key_tiles + key_tile.
std::vector<int> divide_backward(const attention_tiles &tiles, int n_head_kv, int nth) {
    std::vector<int64_t> cost_before(static_cast<size_t>(tiles.n_key_tiles) + 1, 0);
    for (int i = 0; i < tiles.n_key_tiles; i++) {
        const auto at       = static_cast<size_t>(i);
        cost_before[at + 1] = cost_before[at] + tiles.key_tile_pairs[i] + cost_of_key_tile;
    }
    const int64_t    per_head = cost_before.back(), total = per_head * n_head_kv;
    std::vector<int> first;
    int              piece = 0;
    for (int ith = 0; ith < nth; ith++) {
        // A piece belongs to the thread that its middle falls to; doubled to stay whole.
        const auto middle = [&](int p) {
            const auto at = static_cast<size_t>(p % tiles.n_key_tiles);
            return 2 * per_head * (p / tiles.n_key_tiles) + cost_before[at] + cost_before[at + 1];
        };
        while (piece < tiles.n_key_tiles * n_head_kv && middle(piece) * nth < 2 * total * ith) {
            piece++;
        }
        first.push_back(piece);
    }
    first.push_back(tiles.n_key_tiles * n_head_kv);
    return first;
}

// add_shares adds what threads summed aside to the rows [queries.first, queries.second) of dq.
void add_shares(const attention_backward_job &job, const std::vector<float *> &shares, const std::vector<int> &first,
                std::pair<int, int> queries) {
    const size_t columns = static_cast<size_t>(job.shape.n_head / job.shape.n_head_kv * job.shape.head_dim);
    for (size_t thread = 0; thread < shares.size(); thread++) {
        for (int query = queries.first; shares[thread] && query < queries.second; query++) {
            const auto   row     = static_cast<size_t>(query);
            const auto   kv_head = static_cast<size_t>(first[thread] / job.tiles.n_key_tiles);
            float       *dq      = job.args.dq + row * job.args.ld_dq + kv_head * columns;
            const float *share   = shares[thread] + row * columns;
            for (size_t t = 0; t < columns; t++) {
                dq[t] += share[t];
            }
        }
    }
}

} // namespace

attention_tiles::attention_tiles(const attention_mask &mask)
    : n_tokens(static_cast<int>(mask.n_tokens())), n_queries(static_cast<int>(mask.n_queries())),
      n_key_tiles(static_cast<int>(mask.key_tile_pairs_.size())), n_query_tiles(static_cast<int>(mask.query_tile_pairs_.size())),
      visible_until(mask.visible_until_.data()), query_tokens(mask.query_tokens_.data()), first_key(mask.first_key_.data()),
      first_query(mask.first_query_.data()), end_query(mask.end_query_.data()),
      key_positions(mask.key_positions_.empty() ? nullptr : mask.key_positions_.data()),
      window_starts(mask.window_starts_.empty() ? nullptr : mask.window_starts_.data()), key_tiles(mask.key_tiles_.data()),
      query_tiles(mask.query_tiles_.data()), key_tiles_start(mask.key_tiles_start_.data()),
      query_tiles_start(mask.query_tiles_start_.data()), key_tile_pairs(mask.key_tile_pairs_.data()),
      query_tile_pairs(mask.query_tile_pairs_.data()) {}

size_t attention_scratch_floats(int head_dim) {
    // Backward: two score tiles and eight tiles of rows. Forward needs less.
    const size_t row = up_to(static_cast<size_t>(head_dim), attention_widest_vector);
    return 2 * attention_tile_queries * attention_tile_keys + 8 * attention_tile_queries * row;
}

const attention_kernels *attention_kernels_named(const char *name) {
    for (const attention_kernels *kernels : all_kernels) {
        if (std::strcmp(kernels->name, name) == 0) {
            return cpu_runs(*kernels) ? kernels : nullptr;
        }
    }
    return nullptr;
}

bool attention_use_kernels(const char *name) {
    const attention_kernels *kernels = attention_kernels_named(name);
    if (kernels) {
        kernels_in_use() = kernels;
    }
    return kernels != nullptr;
}

size_t attention_workspace_bytes(const attention_shape &shape, size_t n_tokens, size_t n_queries, int n_threads) {
    check_shape(shape);
    const size_t floats = std::max(forward_layout(shape, n_tokens, n_threads).end, backward_layout(shape, n_queries, n_threads).end);
    return floats * sizeof(float) + alignment;
}

void attention_forward(const attention_shape &shape, const attention_mask &mask, const attention_forward_args &args,
                       void *workspace, thread_pool &pool) {
    check_shape(shape);
    const attention_kernels    &kernels = *kernels_in_use();
    const forward_layout        layout(shape, mask.n_tokens(), pool.size());
    float *const                start = aligned_start(workspace);
    const attention_tiles       tiles(mask);
    const attention_forward_job job{shape, tiles, args, start + layout.keys_transposed};

    pool.run([&](int ith, int nth) {
        const auto [begin, end] = even_part(tiles.n_key_tiles * shape.n_head_kv, ith, nth);
        for (int i = begin; i < end; i++) {
            kernels.transpose_keys(job, i / tiles.n_key_tiles, i % tiles.n_key_tiles);
        }
    });

    std::vector<int> heaviest_first(static_cast<size_t>(tiles.n_query_tiles));
    std::iota(heaviest_first.begin(), heaviest_first.end(), 0);
    std::stable_sort(heaviest_first.begin(), heaviest_first.end(),
                     [&](int a, int b) { return tiles.query_tile_pairs[a] > tiles.query_tile_pairs[b]; });
    std::atomic<int> next{0};
    pool.run([&](int ith, int) {
        float *const scratch = start + layout.scratch + attention_scratch_floats(shape.head_dim) * static_cast<size_t>(ith);
        const int    n       = tiles.n_query_tiles * shape.n_head;
        for (int i = next.fetch_add(1, std::memory_order_relaxed); i < n; i = next.fetch_add(1, std::memory_order_relaxed)) {
            kernels.forward(job, i % shape.n_head, heaviest_first[static_cast<size_t>(i / shape.n_head)], scratch);
        }
    });
}

void attention_backward(const attention_shape &shape, const attention_mask &mask, const attention_backward_args &args,
                        void *workspace, thread_pool &pool) {
    check_shape(shape);
    const attention_kernels     &kernels = *kernels_in_use();
    const int                    nth = pool.size(), group_columns = shape.n_head / shape.n_head_kv * shape.head_dim;
    const backward_layout        layout(shape, mask.n_queries(), nth);
    float *const                 start = aligned_start(workspace);
    const attention_tiles        tiles(mask);
    const attention_backward_job job{shape, tiles, args, start + layout.row_products};
    const std::vector<int>       first = divide_backward(tiles, shape.n_head_kv, nth);

    // The share of each thread that starts inside a group, or NULL.
    std::vector<float *> shares(static_cast<size_t>(nth), nullptr);
    float               *next_share = start + layout.shares;
    for (int ith = 0; ith < nth; ith++) {
        const auto at = static_cast<size_t>(ith);
        if (first[at] < first[at + 1] && first[at] % tiles.n_key_tiles != 0) {
            shares[at] = next_share;
            next_share += layout.share_size;
        }
    }

    pool.run([&](int ith, int) {
        const auto [begin, end] = even_part(tiles.n_queries, ith, nth);
        for (int query = begin; query < end; query++) {
            kernels.prepare_backward(job, query);
        }
    });
    pool.run([&](int ith, int) {
        const auto   at      = static_cast<size_t>(ith);
        float *const scratch = start + layout.scratch + attention_scratch_floats(shape.head_dim) * at;
        if (shares[at]) {
            std::memset(shares[at], 0, layout.share_size * sizeof(float));
        }
        for (int piece = first[at]; piece < first[at + 1]; piece++) {
            const int  kv_head = piece / tiles.n_key_tiles, key_tile = piece % tiles.n_key_tiles;
            const bool aside = shares[at] && kv_head == first[at] / tiles.n_key_tiles;
            kernels.backward(job, kv_head, key_tile, aside ? shares[at] : args.dq + kv_head * group_columns,
                             aside ? static_cast<size_t>(group_columns) : args.ld_dq, scratch);
        }
    });
    if (next_share != start + layout.shares) {
        pool.run([&](int ith, int) { add_shares(job, shares, first, even_part(tiles.n_queries, ith, nth)); });
    }
}

} // namespace cft::cpu
