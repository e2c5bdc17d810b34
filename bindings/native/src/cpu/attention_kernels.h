// attention_kernels.h - between the drivers of attention.cpp and the kernels compiled per instruction set.
//
// The kernels work on one tile of queries or keys of one head and know nothing of threads. Only plain data crosses.
#pragma once

#include "attention.h"

namespace cft::cpu {

// Small enough that the score tiles and one operand share a 32 KiB first-level cache; a multiple of every vector width.
constexpr int attention_tile_queries  = 64;
constexpr int attention_tile_keys     = 64;
constexpr int attention_max_head_dim  = 256;
constexpr int attention_widest_vector = 16; // floats; rows of scratch are padded to it

// attention_tiles opens a mask to the kernels; see attention_mask for the arrays.
struct attention_tiles {
    using tile = attention_mask::tile;

    int            n_tokens, n_queries, n_key_tiles, n_query_tiles;
    const int32_t *visible_until, *query_tokens, *first_key, *first_query, *end_query;
    const int32_t *key_positions, *window_starts; // NULL without
    const tile    *key_tiles, *query_tiles;
    const int32_t *key_tiles_start, *query_tiles_start;
    const int64_t *key_tile_pairs, *query_tile_pairs;

    explicit attention_tiles(const attention_mask &mask);
};

struct attention_forward_job {
    attention_shape        shape;
    attention_tiles        tiles;
    attention_forward_args args;
    float                 *keys_transposed; // [n_head_kv][n_key_tiles][head_dim][tile_keys]
};

struct attention_backward_job {
    attention_shape         shape;
    attention_tiles         tiles;
    attention_backward_args args;
    float                  *row_products; // [n_head][n_queries]: D = sum of dout * out over the head's columns
};

struct attention_kernels {
    const char *name;

    // Fills one tile of job.keys_transposed; columns beyond the last token are 0.
    void (*transpose_keys)(const attention_forward_job &job, int kv_head, int key_tile);
    // Computes out and lse of one head for one tile of queries.
    void (*forward)(const attention_forward_job &job, int head, int query_tile, float *scratch);
    // Fills job.row_products of one query and zeroes its row of dq.
    void (*prepare_backward)(const attention_backward_job &job, int query);
    // Computes dk and dv of one tile of keys and adds its share to dq, whose first column is the group's first.
    void (*backward)(const attention_backward_job &job, int kv_head, int key_tile, float *dq, size_t ld_dq, float *scratch);
};

// Floats of scratch for one thread, aligned to 64 bytes, for either direction.
size_t attention_scratch_floats(int head_dim);

// The kernels of "generic", "avx2" or "avx512"; NULL if this CPU cannot run them.
const attention_kernels *attention_kernels_named(const char *name);

// Makes the process use the named kernels instead of the CPU's best ones; for tests and measurements. False if it cannot.
bool attention_use_kernels(const char *name);

extern const attention_kernels attention_kernels_generic, attention_kernels_avx2, attention_kernels_avx512;

} // namespace cft::cpu
