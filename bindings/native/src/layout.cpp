// layout.cpp - sizes of a trainer's buffers, and the choice of what is kept.
#include "cpu/ops.h"
#include "failure.h"
#include "library.h"
#include "processors.h"
#include "trainer.h"

#include <algorithm>
#include <cmath>

namespace cft {
namespace {

constexpr size_t loss_chunk_bytes = size_t(64) << 20;
constexpr double usable_memory   = 0.9; // of what the machine has free, when no limit is set

// Rows an odd number of cache lines long: a product reads a dozen rows side by side, and those of a vocabulary of, say,
// 2^14 * 3 words would all fall on the same set of the cache.
int64_t odd_lines(int64_t n_floats) {
    constexpr int64_t line = 16;
    return ((n_floats + line - 1) / line | 1) * line;
}

} // namespace

int resolve_threads(int32_t n_threads) {
    return n_threads > 0 ? n_threads : available_processors();
}

void check_params(const cft_trainer_params &p) {
    const auto refuse = [](const std::string &what) { throw failure(CFT_ERR_INVALID_ARGUMENT, what); };
    if (p.rank < 1 || p.rank > 4096) {
        refuse("rank must be within 1..4096, got " + std::to_string(p.rank));
    }
    if (!std::isfinite(p.alpha) || p.alpha <= 0) {
        refuse("alpha must be a positive number");
    }
    if (!(p.dropout >= 0 && p.dropout < 1)) {
        refuse("dropout must be within [0, 1)");
    }
    if ((p.targets & CFT_TARGET_ALL_LINEAR) == 0 || (p.targets & ~uint32_t(CFT_TARGET_ALL_LINEAR)) != 0) {
        refuse("targets must be a non-empty set of CFT_TARGET_ bits");
    }
    if (p.keep_activations < CFT_KEEP_AUTO || p.keep_activations > CFT_KEEP_LAYERS) {
        refuse("keep_activations must be auto, all or layers");
    }
    if (p.max_tokens < 1 || p.max_tokens > (1 << 24)) {
        refuse("max_tokens must be within 1..16777216, got " + std::to_string(p.max_tokens));
    }
    if (p.max_targets < 0 || p.max_targets > p.max_tokens) {
        refuse("max_targets must be within 0..max_tokens");
    }
    if (p.n_threads < 0 || p.n_threads > 1024) {
        refuse("n_threads must be within 0..1024");
    }
    if (!(p.beta1 >= 0 && p.beta1 < 1 && p.beta2 >= 0 && p.beta2 < 1 && p.eps > 0 && p.weight_decay >= 0) ||
        !std::isfinite(p.eps) || !std::isfinite(p.weight_decay)) {
        refuse("beta1 and beta2 must be within [0, 1), eps above 0, weight_decay at least 0");
    }
}

layout::layout(const cft_model &model, const cft_trainer_params &p, bool keep) {
    const auto  &hp     = model.hp;
    const size_t layers = size_t(hp.n_layer), r = size_t(p.rank);
    keep_all    = keep;
    threads     = resolve_threads(p.n_threads);
    max_tokens  = p.max_tokens;
    max_targets = p.max_targets > 0 ? p.max_targets : p.max_tokens;
    const size_t   t = size_t(max_tokens), d = size_t(hp.n_embd);
    const uint32_t targets = model.targets(p.targets);
    for (int m = 0; m < n_target_modules; m++) {
        if (targets >> m & 1) {
            const weight &w = model.layers[0].modules[m];
            n_params += layers * r * size_t(w.rows + w.cols);
        }
    }
    carver input(nullptr), rest(nullptr), space(nullptr);
    input.take(t * d);
    inputs = input.used();
    cft::activations(hp, p.rank, t, rest);
    kept = rest.used();
    // Every layer's input, the last layer's output, and every layer's rest or one for all.
    activations = inputs * (layers + 1) + kept * (keep ? layers : 1);
    cft::workspace(hp, p.rank, t, space);
    space.take(t * d); // the gradient on its way down
    workspace = space.used();
    loss_stride = odd_lines(hp.n_vocab);
    loss_rows   = std::max<int64_t>(threads, int64_t(loss_chunk_bytes / sizeof(float)) / loss_stride);
    loss_rows   = std::min<int64_t>(loss_rows, max_targets);
    loss        = size_t(loss_rows) * size_t(loss_stride);

    scratch_bytes = cpu::cpu_ops::scratch_bytes(threads, hp.attention(), max_tokens);
}

cft_memory_estimate layout::estimate(const cft_model &model) const {
    cft_memory_estimate e{};
    if (on_device) {
        e = device;
        return e;
    }
    e.weights          = model.weight_bytes;
    e.adapter          = n_params * sizeof(float);
    e.gradients        = n_params * sizeof(float);
    e.moments          = 2 * n_params * sizeof(float);
    e.activations      = activations * sizeof(float);
    e.workspace        = workspace * sizeof(float) + scratch_bytes;
    e.loss             = loss * sizeof(float);
    e.total            = e.weights + e.adapter + e.gradients + e.moments + e.activations + e.workspace + e.loss;
    e.keep_activations = keep_all ? CFT_KEEP_ALL : CFT_KEEP_LAYERS;
    return e;
}

namespace {

layout device_layout(const cft_model &model, const cft_trainer_params &p, bool must_fit) {
    layout l(model, p, false);
    l.on_device   = true;
    l.device      = model.device->estimate(model, p, model.targets(p.targets), model.device_index, must_fit);
    l.keep_all    = l.device.keep_activations == CFT_KEEP_ALL;
    l.activations = l.workspace = l.loss = l.inputs = l.kept = l.scratch_bytes = 0;
    l.threads     = 1; // the CPU makes first values only
    return l;
}

} // namespace

layout layout_beyond_memory(const cft_model &model, const cft_trainer_params &p) {
    return model.device ? device_layout(model, p, false) : layout(model, p, p.keep_activations == CFT_KEEP_ALL);
}

layout choose_layout(const cft_model &model, const cft_trainer_params &p) {
    check_params(p);
    if (model.device) {
        return device_layout(model, p, true);
    }
    const uint64_t limit = p.memory_limit ? p.memory_limit : uint64_t(double(host_memory().free) * usable_memory);
    // The limit is for buffers: mapped weights can be dropped and read again.
    const auto needs = [&](const layout &l) { return l.estimate(model).total - model.weight_bytes; };
    layout all(model, p, true), layers(model, p, false);
    if (p.keep_activations == CFT_KEEP_ALL || (p.keep_activations == CFT_KEEP_AUTO && needs(all) <= limit)) {
        layers = all;
    }
    if (needs(layers) > limit) {
        throw failure(CFT_ERR_NO_MEMORY, "training needs " + std::to_string(needs(layers) >> 20) + " MiB of buffers, the limit is " +
                                             std::to_string(limit >> 20) + " MiB");
    }
    return layers;
}

} // namespace cft
