// rope.h - rotary position embedding of a model: how fast each pair turns, and how long the turned pairs become.
#pragma once

#include <vector>

namespace cft {

struct hyperparameters;
class model_file;

// A rotation table is made from positions and these.
struct rope_set {
    std::vector<float> frequencies;      // [n_rot / 2], radians per position
    float              amplitude = 1.0f; // of cosines and sines
};

// rope_sets are a model's: one for most models.
struct rope_sets {
    rope_set global;
    rope_set local;               // of layers with a window; empty: global
    rope_set long_context;        // replaces global where contexts are longer than original_context; empty: none
    int      original_context = 0;

    // max_tokens is the longest sequence that the trainer is made for: as llama.cpp, which goes by the context's size, so that
    // all sequences of a run, and all keys that a common prefix shares, are rotated alike.
    const rope_set &global_for(int max_tokens) const {
        return !long_context.frequencies.empty() && max_tokens > original_context ? long_context : global;
    }
};

rope_sets read_rope(model_file &in, const hyperparameters &hp);

} // namespace cft
