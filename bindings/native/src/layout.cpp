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

layout::layout(const cft_model &model, const cft_trainer_params &p, const adapter_shape &adapter, bool keep) {
    const auto  &hp     = model.hp;
    const size_t layers = size_t(hp.n_layer);
    keep_all    = keep;
    threads     = resolve_threads(p.n_threads);
    max_tokens  = p.max_tokens;
    max_targets = p.max_targets > 0 ? p.max_targets : p.max_tokens;
    const size_t         t = size_t(max_tokens), d = size_t(hp.n_embd);
    const adapter_widths widths = adapter.widths(model);
    n_params     = adapter.n_params(model);
    n_magnitudes = adapter.n_magnitudes(model);
    carver input(nullptr), rest(nullptr), space(nullptr);
    input.take(t * d);
    inputs = input.used();
    cft::activations(hp, widths, t, rest);
    kept = rest.used();
    // Every layer's input, the last layer's output, and every layer's rest or one for all.
    activations = inputs * (layers + 1) + kept * (keep ? layers : 1);
    cft::workspace(hp, widths, t, space);
    space.take(t * d); // the gradient on its way down
    workspace = space.used();
    loss_stride = widths.head > 0 ? hp.n_vocab : odd_lines(hp.n_vocab); // linear maps with adapters have rows without gaps
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
    e.adapter          = (n_params + 2 * n_magnitudes) * sizeof(float);
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

layout device_layout(const cft_model &model, const cft_trainer_params &p, const adapter_shape &adapter, bool must_fit) {
    layout l(model, p, adapter, false);
    l.on_device   = true;
    l.device      = model.device->estimate(model, p, adapter, model.device_index, must_fit, {});
    l.keep_all    = l.device.keep_activations == CFT_KEEP_ALL;
    l.activations = l.workspace = l.loss = l.inputs = l.kept = l.scratch_bytes = 0;
    l.threads     = adapter.dora() ? l.threads : 1; // the CPU makes first values only; DoRA's are lengths of all rows
    return l;
}

} // namespace

layout layout_beyond_memory(const cft_model &model, const cft_trainer_params &p, const adapter_shape &adapter) {
    return model.device ? device_layout(model, p, adapter, false) : layout(model, p, adapter, p.keep_activations == CFT_KEEP_ALL);
}

layout choose_layout(const cft_model &model, const cft_trainer_params &p, const adapter_shape &adapter) {
    if (model.device) {
        return device_layout(model, p, adapter, true);
    }
    const uint64_t limit = p.memory_limit ? p.memory_limit : uint64_t(double(host_memory().free) * usable_memory);
    // The limit is for buffers: mapped weights can be dropped and read again.
    const auto needs = [&](const layout &l) { return l.estimate(model).total - model.weight_bytes; };
    layout all(model, p, adapter, true), layers(model, p, adapter, false);
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
