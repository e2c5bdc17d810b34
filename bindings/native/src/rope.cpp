// rope.cpp - see rope.h. Scaling is what ggml's rope and llama.cpp's context set-up do: linear interpolation; YaRN (Peng et al.,
// "YaRN: Efficient Context Window Extension of Large Language Models"); factors for each pair (Llama 3); and two such sets for
// short and long contexts (LongRoPE, Phi-3).
#include "rope.h"

#include "family.h"
#include "model_file.h"

#include <algorithm>
#include <cmath>

namespace cft {
namespace {

// ggml's defaults, in turns over the original context. llama.cpp knows keys for other values but does not read them for
// the families here.
constexpr float  yarn_beta_fast = 32.0f, yarn_beta_slow = 1.0f;
constexpr double two_pi = 6.283185307179586;

std::vector<float> read_factors(model_file &in, const std::string &name, int n) {
    std::vector<float> factors = in.vector(name, n);
    for (float f : factors) {
        if (!(f > 0) || !std::isfinite(f)) {
            in.damaged("tensor " + name + " holds " + std::to_string(f) + ", not a positive number");
        }
    }
    return factors;
}

void expect(model_file &in, const std::string &key, float known) {
    if (in.real(key, known) != known) {
        in.unsupported("metadata key " + in.full(key) + " is not " + std::to_string(known) + ": llama.cpp does not apply it to " +
                       in.architecture() + ", so what was trained would not be what runs");
    }
}

// What the scaling keys say.
struct scaling {
    bool   yarn   = false;
    double factor = 1; // contexts are this much longer than the original
    double attention_factor = 1;
    int    original_context = 0;
};

scaling read_scaling(model_file &in, const hyperparameters &hp) {
    scaling s;
    // A factor without a type is linear, and "none" ignores the factor.
    const std::string type = in.text("rope.scaling.type", "linear");
    const bool        one_of_ours = type == "linear" || type == "none" || (type == "yarn" && !hp.fam->has(long_rope)) ||
                             (type == "longrope" && hp.fam->has(long_rope));
    if (!one_of_ours) {
        in.unsupported(in.full("rope.scaling.type") + " = " + type + " is not trained for " + in.architecture());
    }
    const double factor = double(in.real("rope.scaling.factor", in.real("rope.scale_linear", 1.0f)));
    if (hp.fam->has(long_rope) && factor != 1) {
        in.unsupported(in.full("rope.scaling.factor") + " does not go with the factors of " + in.architecture());
    }
    s.yarn             = type == "yarn";
    s.factor           = type == "none" ? 1 : factor;
    s.attention_factor = double(in.real("rope.scaling.attn_factor", 1.0f));
    s.original_context = in.number("rope.scaling.original_context_length", int64_t(1) << 30, hp.n_ctx_train);
    expect(in, "rope.scaling.yarn_ext_factor", 1.0f);
    expect(in, "rope.scaling.yarn_attn_factor", 1.0f);
    expect(in, "rope.scaling.yarn_beta_fast", yarn_beta_fast);
    expect(in, "rope.scaling.yarn_beta_slow", yarn_beta_slow);
    return s;
}

// The pair that turns `turns` times over the original context.
double pair_of_turns(const hyperparameters &hp, const scaling &s, double turns) {
    return hp.n_rot * std::log(s.original_context / (turns * two_pi)) / (2 * std::log(double(hp.rope_freq_base)));
}

rope_set make_set(const hyperparameters &hp, const scaling &s, double base, const std::vector<float> &factors) {
    rope_set     set;
    const double low  = std::max(0.0, std::floor(pair_of_turns(hp, s, yarn_beta_fast)));
    const double high = std::min(hp.n_rot - 1.0, std::ceil(pair_of_turns(hp, s, yarn_beta_slow)));
    for (int i = 0; i < hp.n_rot / 2; i++) {
        const double plain = std::pow(base, -2.0 * i / hp.n_rot) / (factors.empty() ? 1.0 : double(factors[size_t(i)]));
        // YaRN leaves fast pairs as they are and interpolates slow ones, with a ramp between.
        const double kept = s.yarn ? 1 - std::clamp((i - low) / std::max(0.001, high - low), 0.0, 1.0) : 0;
        set.frequencies.push_back(float(plain * (kept + (1 - kept) / s.factor)));
    }
    set.amplitude = float(s.attention_factor * (s.yarn && s.factor > 1 ? 1 + 0.1 * std::log(s.factor) : 1));
    return set;
}

} // namespace

rope_sets read_rope(model_file &in, const hyperparameters &hp) {
    const scaling      s    = read_scaling(in, hp);
    const double       base = double(hp.rope_freq_base);
    const int          n    = hp.n_rot / 2;
    rope_sets          sets;
    std::vector<float> factors;
    if (hp.fam->has(rope_factors) && in.has("rope_freqs.weight")) {
        factors = read_factors(in, "rope_freqs.weight", n);
    }
    sets.original_context = s.original_context;
    if (hp.fam->has(long_rope) && (in.has("rope_factors_short.weight") || in.has("rope_factors_long.weight"))) {
        factors           = read_factors(in, "rope_factors_short.weight", n);
        sets.long_context = make_set(hp, s, base, read_factors(in, "rope_factors_long.weight", n));
    }
    sets.global = make_set(hp, s, base, factors);
    if (hp.window > 0 && hp.fam->local_rope_base > 0) {
        sets.local = make_set(hp, scaling(), double(in.real("rope.freq_base_swa", hp.fam->local_rope_base)), {});
    }
    return sets;
}

} // namespace cft
