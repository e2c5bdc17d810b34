// plan.cpp - see plan.h.
#include "plan.h"

#include "../../failure.h"
#include "gemm.h"

#include <algorithm>
#include <cmath>

namespace cft::cuda {
namespace {

constexpr size_t  logits_bytes = size_t(512) << 20; // of one chunk, at most
constexpr int64_t head_tile    = 16384;             // rows of the head that are widened at a time
constexpr int64_t mib          = int64_t(1) << 20;

int64_t padded(int64_t n) { return (n + 7) / 8 * 8; }

// The modules of each group, in the order of its rows.
const std::vector<int> kind_modules[kind_count] = {
    {module_q, module_k, module_v, module_qkv}, {module_attn_output}, {module_gate, module_up}, {module_down}};

group make_group(const layer_weights &w, int kind, uint32_t targets, int64_t rank8, int64_t &offset) {
    group g;
    for (int id : kind_modules[kind]) {
        const weight &m = w.modules[id];
        if (!m.data) {
            continue;
        }
        if (targets >> id & 1) {
            g.parts.push_back({id, g.outputs, m.rows, g.columns, 0, 0});
            g.columns += rank8;
        }
        g.inputs = m.cols;
        g.outputs += m.rows;
    }
    g.a = offset;
    for (part &p : g.parts) {
        p.a = offset;
        offset += rank8 * g.inputs;
    }
    for (part &p : g.parts) {
        p.b = offset;
        offset += p.rows * rank8;
    }
    return g;
}

size_t weights_of(const plan &p, size_t &largest, size_t &streamed) {
    const cft_model &m     = *p.model;
    size_t           bytes = m.token_embd.row_bytes * size_t(m.token_embd.rows);
    largest                = 0;
    streamed               = 0;
    // What is widened once, and what stays on the host, passes through a buffer on the device.
    const auto matrix = [&](const weight &w, size_t as_bf16, bool stays) {
        const size_t raw = w.row_bytes * size_t(w.rows);
        largest          = p.resident() || stays ? std::max(largest, raw) : largest;
        (stays ? streamed : bytes) += p.resident() ? as_bf16 : raw;
    };
    for (size_t l = 0; l < m.layers.size(); l++) {
        for (int kind = 0; kind < kind_count; kind++) {
            const group &g = p.layers[l].of[kind];
            for (int id : kind_modules[kind]) {
                if (m.layers[l].modules[id].data) {
                    matrix(m.layers[l].modules[id], 0, p.place == weight_place::host);
                }
            }
            bytes += p.resident() ? size_t(g.outputs + g.columns) * size_t(g.ld()) * sizeof(bf16) : 0;
        }
        // Norms and biases.
        bytes += size_t(4 * m.hp.n_embd + 2 * m.hp.head_dim + m.hp.q_width() + 2 * m.hp.kv_width()) * sizeof(float) + 16 * 256;
    }
    if (p.resident()) {
        matrix(m.output, size_t(p.vocab8) * size_t(m.hp.n_embd) * sizeof(bf16), false);
    } else if (!m.hp.tied_output) {
        matrix(m.output, 0, false);
    }
    return bytes + size_t(m.hp.n_embd) * sizeof(float) + m.layers.size() * 16 * 256;
}

} // namespace

plan::plan(const cft_model &m, const cft_trainer_params &params, uint32_t targets, keep_level keep_, weight_place place_)
    : model(&m), rank(params.rank), rank8(padded(params.rank)), t(params.max_tokens),
      n(params.max_targets > 0 ? params.max_targets : params.max_tokens), dropout(params.dropout > 0), keep(keep_), place(place_),
      scale(params.rslora ? params.alpha / std::sqrt(float(params.rank)) : params.alpha / float(params.rank)), vocab8(padded(m.hp.n_vocab)) {
    for (const layer_weights &w : m.layers) {
        layers.emplace_back();
        for (int kind = 0; kind < kind_count; kind++) {
            layers.back().of[kind] = make_group(w, kind, targets, rank8, n_values);
        }
    }
    loss_rows = std::clamp<int64_t>(int64_t(logits_bytes / sizeof(float)) / vocab8, 1, n);
    head_rows = std::min(vocab8, head_tile);
    // Tokens, positions, rows, targets, weights, and the lists of attention for up to two masks and two sets of queries.
    staging_words    = size_t(2 * t + 3 * n) + (m.hp.window > 0 ? 2 : 1) * (attention_lists::max_words(t, t) + attention_lists::max_words(t, n)) + 256;
    weight_bytes     = weights_of(*this, stage_bytes, streamed_bytes);
    adapter_bytes    = (size_t(n_values) * sizeof(float) + 255) / 256 * 256;
    carver counted(nullptr), space(nullptr), loss(nullptr);
    place_activations(*this, counted);
    activation_bytes = counted.used();
    workspace(*this, space);
    workspace_bytes = space.used();
    loss_space(*this, loss);
    loss_bytes = loss.used();
}

cft_memory_estimate plan::estimate() const {
    cft_memory_estimate e{};
    e.weights          = weight_bytes;
    e.adapter          = adapter_bytes;
    e.gradients        = adapter_bytes;
    e.moments          = 2 * adapter_bytes;
    e.activations      = activation_bytes;
    e.workspace        = workspace_bytes;
    e.loss             = loss_bytes;
    e.total            = total();
    e.keep_activations = keep == keep_inputs ? CFT_KEEP_LAYERS : CFT_KEEP_ALL;
    e.streamed         = streamed_bytes;
    return e;
}

std::vector<activations> place_activations(const plan &p, carver &from) {
    const hyperparameters &hp = p.model->hp;
    const int64_t t = p.t, d = hp.n_embd, qkv = hp.q_width() + 2 * hp.kv_width();
    const bool    post = hp.fam->has(post_norms);
    std::vector<activations> all(p.layers.size());
    activations   shared{};
    const auto    products = [&](activations &a, const layer_groups &g) {
        a.rstd      = from.take<float>(t);
        a.mid_rstd  = from.take<float>(t);
        a.qkv       = from.take<bf16>(t * qkv);
        a.attn      = from.take<bf16>(t * g.of[kind_output].ld());
        a.lse       = from.take<float>(t * hp.n_head);
        a.mid       = from.take<float>(t * d);
        a.gate_up   = from.take<bf16>(t * 2 * hp.n_ff);
        a.attn_out  = post ? from.take<bf16>(t * d) : nullptr;
        a.ffn_out   = post ? from.take<bf16>(t * d) : nullptr;
        a.attn_rstd = post ? from.take<float>(t) : nullptr;
        a.ffn_rstd  = post ? from.take<float>(t) : nullptr;
    };
    const auto rest = [&](activations &a, const layer_groups &g) {
        a.norm     = from.take<bf16>(t * g.of[kind_qkv].ld());
        a.mid_norm = from.take<bf16>(t * g.of[kind_gate_up].ld());
        a.act      = from.take<bf16>(t * g.of[kind_down].ld());
    };
    if (p.keep == keep_inputs) {
        products(shared, p.layers[0]);
    }
    if (p.keep != keep_everything) {
        rest(shared, p.layers[0]);
    }
    for (size_t l = 0; l < all.size(); l++) {
        activations a = shared;
        a.x           = from.take<float>(t * d);
        if (p.keep != keep_inputs) {
            products(a, p.layers[l]);
        }
        if (p.keep == keep_everything) {
            rest(a, p.layers[l]);
        }
        all[l] = a;
    }
    return all;
}

workspace::workspace(const plan &p, carver &from) {
    const hyperparameters &hp = p.model->hp;
    const layer_groups    &g  = p.layers[0];
    const int64_t t = p.t, n = p.n, d = hp.n_embd, q_width = hp.q_width(), kv_width = hp.kv_width();
    const bool    norms = hp.fam->has(head_norms);
    rows_norm  = from.take<bf16>(n * g.of[kind_qkv].ld());
    delta      = from.take<bf16>(t * d);
    d_norm     = from.take<bf16>(t * d);
    dy         = from.take<bf16>(t * (d + std::max(g.of[kind_output].columns, g.of[kind_down].columns)));
    d_act      = from.take<bf16>(t * hp.n_ff);
    d_gate_up  = from.take<bf16>(t * (2 * hp.n_ff + g.of[kind_gate_up].columns));
    d_attn     = from.take<bf16>(t * q_width);
    d_qkv      = from.take<bf16>(t * (q_width + 2 * kv_width + g.of[kind_qkv].columns));
    d_q        = from.take<bf16>(n * (q_width + g.of[kind_qkv].columns));
    q          = norms ? from.take<bf16>(t * q_width) : nullptr;
    k          = norms ? from.take<bf16>(t * kv_width) : nullptr;
    q_rstd     = norms ? from.take<float>(t * hp.n_head) : nullptr;
    k_rstd     = norms ? from.take<float>(t * hp.n_head_kv) : nullptr;
    attn_delta = from.take<float>(t * hp.n_head);
    const int64_t widest = std::max({d, q_width, int64_t(hp.n_ff)});
    masked     = p.dropout ? from.take<bf16>(t * widest) : nullptr;
    masked_d   = p.dropout ? from.take<bf16>(t * widest) : nullptr;
    this->d    = from.take<float>(t * d);
    d_other    = from.take<float>(t * d);
    final_x    = from.take<float>(n * d);
    final_rstd = from.take<float>(n);
    rope       = from.take<float>(t * hp.n_rot);
    rope_local = hp.window > 0 && hp.fam->local_rope_base > 0 ? from.take<float>(t * hp.n_rot) : rope;
    frequencies       = from.take<float>(hp.n_rot / 2);
    frequencies_local = from.take<float>(hp.n_rot / 2);
    numbers   = from.take<int32_t>(int64_t(p.staging_words));
    every_row = from.take<int32_t>(t);
    losses    = from.take<float>(n);
    sums      = from.take<double>(2);
    partials  = from.take<double>(norm_partials);
    products  = from.take<char>(int64_t(products_workspace_bytes));
    copies    = from.take<adapter_copy>(int64_t(p.layers.size()) * (kind_count + n_target_modules));
    for (int kind = 0; kind < kind_count; kind++) {
        scratch[kind] = p.resident() ? nullptr : from.take<bf16>((g.of[kind].outputs + g.of[kind].columns) * g.of[kind].ld());
    }
    stage = p.place == weight_place::host ? from.take<char>(int64_t(p.stage_bytes)) : nullptr;
}

loss_space::loss_space(const plan &p, carver &from) {
    const int64_t d = p.model->hp.n_embd;
    logits = from.take<float>(p.loss_rows * p.vocab8);
    dh     = from.take<float>(p.loss_rows * d);
    head   = p.resident() ? nullptr : from.take<bf16>(p.head_rows * d);
}

void check_model(const cft_model &model) {
    const hyperparameters &hp = model.hp;
    const auto refuse = [&](const std::string &what) { throw failure(CFT_ERR_UNSUPPORTED, "on a CUDA device " + what + "; device: cpu trains it"); };
    if (hp.n_expert > 0) {
        refuse("mixtures of experts are not trained");
    }
    if (!can_attend(hp.head_dim)) {
        refuse("heads of size " + std::to_string(hp.head_dim) + " are not trained (64, 80, 96, 128 and 256 are)");
    }
    if (hp.n_embd % 8 != 0 || hp.n_ff % 8 != 0 || hp.n_rot % 16 != 0) {
        refuse("widths that are no multiples of 8 are not trained");
    }
    const auto check_type = [&](const weight &w) {
        if (w.data && !can_dequantize(w.type)) {
            refuse(std::string("weights of type ") + ggml_type_name(w.type) + " are not trained");
        }
    };
    check_type(model.token_embd), check_type(model.output);
    for (const layer_weights &l : model.layers) {
        for (const weight &w : l.modules) {
            check_type(w);
        }
    }
}

plan choose_plan(const cft_model &model, const cft_trainer_params &params, uint32_t targets, size_t memory, bool must_fit,
                 const std::string &device) {
    check_model(model);
    // From the fastest to the smallest. Widening weights costs less than computing products again, copying them from the host more.
    struct choice {
        keep_level   keep;
        weight_place place;
    };
    using at                      = weight_place;
    static const choice choices[] = {{keep_everything, at::widened}, {keep_products, at::widened}, {keep_everything, at::packed}, {keep_products, at::packed},
                                     {keep_inputs, at::widened},     {keep_inputs, at::packed},    {keep_products, at::host},     {keep_inputs, at::host}};
    const auto allowed = [&](const choice &c) {
        return params.keep_activations == CFT_KEEP_AUTO || (params.keep_activations == CFT_KEEP_LAYERS) == (c.keep == keep_inputs);
    };
    const choice *smallest = nullptr;
    for (const choice &c : choices) {
        if (allowed(c)) {
            plan p(model, params, targets, c.keep, c.place);
            if (p.total() <= memory) {
                return p;
            }
            smallest = &c;
        }
    }
    plan least(model, params, targets, smallest->keep, smallest->place);
    if (!must_fit) {
        return least;
    }
    // The longest pack that fits, by halving.
    int32_t fits = 0;
    for (int32_t low = 1, high = params.max_tokens; low <= high;) {
        cft_trainer_params shorter = params;
        shorter.max_tokens         = low + (high - low) / 2;
        shorter.max_targets        = std::min(params.max_targets, shorter.max_tokens);
        if (plan(model, shorter, targets, smallest->keep, smallest->place).total() <= memory) {
            fits = shorter.max_tokens;
            low  = shorter.max_tokens + 1;
        } else {
            high = shorter.max_tokens - 1;
        }
    }
    const std::string needs = "training needs " + std::to_string(int64_t(least.total()) / mib) + " MiB on " + device + ", usable are " +
                              std::to_string(int64_t(memory) / mib) + " MiB";
    if (fits > 0) {
        throw failure(CFT_ERR_NO_MEMORY, needs + "; packs of " + std::to_string(fits) + " tokens (train.seq_len) would fit" +
                                             (params.keep_activations == CFT_KEEP_ALL ? ", or train.keep_activations: auto" : ""));
    }
    throw failure(CFT_ERR_NO_MEMORY, needs + "; no pack fits: weights alone take " + std::to_string(int64_t(least.weight_bytes) / mib) + " MiB");
}

} // namespace cft::cuda
