// rope.h - rotary position embedding of a model: how fast each pair turns, and how long the turned pairs become.
#pragma once

#include "cft.h"

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

    // The longest sequence that the trainer is made for decides, as with llama.cpp the size of the context does: all sequences of
    // a run, and all keys that a common prefix shares, are rotated alike. How many of them a pack holds does not matter.
    const rope_set &global_for(const cft_trainer_params &p) const {
        const int longest = p.max_sequence > 0 ? p.max_sequence : p.max_tokens;
        return !long_context.frequencies.empty() && longest > original_context ? long_context : global;
    }
};

rope_sets read_rope(model_file &in, const hyperparameters &hp);

} // namespace cft
