// plan.cpp - see plan.h.
#include "plan.h"

#include "../../failure.h"
#include "gemm.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <optional>

namespace cft::cuda {
namespace {

constexpr size_t  logits_bytes = size_t(600) << 20; // of one chunk, at most
constexpr int64_t logits_tile  = 128;               // a chunk's rows are a multiple of these, if it has as many: products come in such tiles
constexpr int64_t scores_per_token = 2112;         // bytes of a head's stored gradients of scores, in segments of 2,048: 33 pairs of tiles of 8 KiB for two tiles of 64
constexpr int64_t head_tile    = 32768;             // rows of the head that are widened, or multiplied, at a time
constexpr int64_t mib          = int64_t(1) << 20;
// What a device multiplies while it moves a byte of its memory (H100: 680 TFLOP/s and 2.8 TB/s, seen; A100 and RTX 4090, by their data: 200,
// 165), and moves while a byte comes from the host. Only the choice between places of weights depends on these.
constexpr double flops_per_byte = 200, bytes_per_host_byte = 256;
// What it multiplies while a byte goes to pinned memory of the host or back. H100: 680 TFLOP/s and some 50 GB/s are 13,600; an A100 has 9,000, an
// RTX 4090 7,500 with the rates above and 22 GB/s. Copies of fewer bytes cost no time of their own.
constexpr double flops_per_pinned_byte = 15000;

int64_t padded(int64_t n) { return (n + 7) / 8 * 8; }

// Rows of logits at a time, of t tokens and n rows: half of them, so that short packs, which are for small devices, take less; but in their place
// gradients of scores are stored, and with small vocabularies those of all heads may want more.
int64_t rows_of_logits(int64_t t, int64_t n, int64_t vocab8, int64_t n_head) {
    const auto    tiles = [](int64_t rows) { return (rows + logits_tile - 1) / logits_tile * logits_tile; };
    const int64_t fit = int64_t(logits_bytes / sizeof(float)) / vocab8;
    const int64_t scores = t * n_head * scores_per_token / (int64_t(sizeof(float)) * vocab8) + 1;
    return std::min(fit < logits_tile ? fit : fit / logits_tile * logits_tile, std::max(tiles(n / 2), tiles(scores)));
}

// The modules of each group, in the order of its rows.
const std::vector<int> kind_modules[kind_count] = {
    {module_q, module_k, module_v, module_qkv}, {module_attn_output}, {module_gate, module_up}, {module_down}};

group make_group(const layer_weights &w, int kind, const adapter_shape &adapter, int layer) {
    group g;
    for (int id : kind_modules[kind]) {
        const weight &m = w.modules[id];
        if (!m.data) {
            continue;
        }
        if (const adapter_module &a = adapter.of(layer, id); a.rank > 0) {
            g.parts.push_back({id, g.outputs, m.rows, g.columns, a.rank, padded(a.rank), a.scale});
            g.columns += g.parts.back().rank8;
        }
        g.inputs = m.cols;
        g.outputs += m.rows;
    }
    if (!w.modules[module_down].data && (kind == kind_gate_up || kind == kind_down)) { // experts
        g.inputs = kind == kind_down ? w.downs.cols : w.gates.cols;
    }
    return g;
}

void place_a(group &g, int64_t &offset) {
    g.a = offset;
    for (part &p : g.parts) {
        p.a = offset;
        offset += p.rank8 * g.inputs;
    }
}

void place_b(group &g, bool dora, int64_t &offset) {
    for (part &p : g.parts) {
        p.b = offset;
        offset += p.rows * p.rank8;
    }
    for (part &p : g.parts) {
        p.m = offset;
        offset += dora ? p.rows : 0;
    }
}

// Whether two layers' w is zero in the same places.
bool same_shapes(const group &a, const group &b) {
    return std::equal(a.parts.begin(), a.parts.end(), b.parts.begin(), b.parts.end(), [](const part &x, const part &y) {
        return x.row == y.row && x.rows == y.rows && x.column == y.column && x.rank8 == y.rank8;
    });
}

size_t weights_of(const plan &p, size_t &largest, size_t &streamed) {
    const cft_model &m     = *p.model;
    size_t           bytes = p.embedding_stays ? 0 : m.token_embd.row_bytes * size_t(m.token_embd.rows);
    largest                = 0;
    streamed               = 0;
    // What is widened once passes through a buffer on the device tensor by tensor, what stays on the host layer by layer.
    size_t     layer  = 0;
    const auto matrix = [&](const weight &w, size_t as_bf16, bool stays) {
        const size_t raw = w.row_bytes * size_t(w.rows);
        layer            = staged(layer) + raw;
        largest          = std::max(largest, p.resident() ? raw : stays ? layer : 0);
        (stays ? streamed : bytes) += p.resident() ? as_bf16 : raw;
    };
    for (size_t l = 0; l < m.layers.size(); l++) {
        layer = 0;
        for (int kind = 0; kind < kind_count; kind++) {
            const group &g = p.layers[l].of[kind];
            for (int id : kind_modules[kind]) {
                if (m.layers[l].modules[id].data) {
                    matrix(m.layers[l].modules[id], 0, p.place == weight_place::host);
                }
            }
            bytes += p.resident() ? size_t(g.outputs + g.columns) * size_t(g.ld()) * sizeof(bf16) : 0;
        }
        for (const weight *w : {&m.layers[l].gates, &m.layers[l].ups, &m.layers[l].downs}) {
            if (w->data) {
                matrix(*w, 0, p.place == weight_place::host);
            }
        }
        bytes += router_bytes(p) + (p.resident() ? widened_expert_bytes(p) : 0);
        // Norms and biases.
        bytes += size_t(4 * m.hp.n_embd + 2 * m.hp.head_dim + m.hp.q_width() + 2 * m.hp.kv_width()) * sizeof(float) + 16 * 256;
    }
    if (p.resident()) {
        matrix(m.output, size_t(p.vocab8) * size_t(p.head_ld()) * sizeof(bf16), false);
    } else if (!m.hp.tied_output) {
        matrix(m.output, 0, false);
    }
    return bytes + size_t(m.hp.n_embd) * sizeof(float) + m.layers.size() * 16 * 256;
}

// How many layers' products must wait on the host so that a plan fits that does not; 0: it fits, or as many must not.
int enough_offloaded(const plan &p, size_t memory) {
    if (p.total() <= memory) {
        return 0;
    }
    const std::vector<size_t> may = p.may_offload();
    const size_t each = may.empty() ? 0 : p.gate_up_row_bytes(may[0]) * size_t(p.t);
    const size_t n    = each == 0 ? 0 : (p.total() - memory + each - 1) / each + 2; // two places take their room
    return n <= size_t(p.most_offloaded()) ? int(n) : 0;
}

// FLOPs of a token for the products that a level leaves out, attention not counted.
double products_of(const plan &p, const layer_groups &g, keep_level level) {
    const auto of = [&](int kind) { return 2.0 * double(g.of[kind].outputs) * double(g.of[kind].ld()); };
    return (level >= keep_narrow ? of(kind_gate_up) + expert_flops(p, true) : 0) +
           (level >= keep_inputs ? of(kind_qkv) + of(kind_output) + (p.model->hp.fam->has(post_norms) ? of(kind_down) : 0) : 0);
}

// What DoRA computes again of a layer for each token, whatever is kept: the outputs of adapted maps before their gains, for the magnitudes' gradients.
work gains_of(const plan &p, const layer_groups &l) {
    work w;
    for (const group &g : l.of) {
        for (const part &x : g.parts) {
            w.flops += p.dora ? 2.0 * double(x.rows) * double(g.ld()) : 0;
            w.bytes += p.dora ? 2.0 * sizeof(bf16) * double(x.rows) : 0; // written and read
        }
    }
    return w;
}

// What a token costs in a layer where all above a level is left out. Products are counted as 2 m n k, attention as over one segment of all
// tokens; bytes are those that are written and read because a thing is made again.
work again_of(const plan &p, const layer_groups &g, keep_level level) {
    const hyperparameters &hp = p.model->hp;
    const bool   mixture = hp.n_expert > 0;
    const double d = hp.n_embd, ff = mixture ? 0.0 : hp.n_ff, heads = hp.fam->has(head_norms) ? double(hp.q_width() + hp.kv_width()) : 0;
    work         w{products_of(p, g, level), 0, 0};
    if (level >= keep_products) {
        w.bytes += 4 * heads;
    }
    if (level >= keep_heads) {
        w.bytes += 2 * ff + 8.0 * double(g.of[kind_down].columns); // act; h aside and back
    }
    if (level >= keep_narrow) {
        w.bytes += 2 * d + 4 * ff; // the norm, read once more; the product
        w.bytes += mixture ? double(hp.n_expert_used) * (4 * d + 4 * hp.n_ff) : 0; // rows of experts, the product
    }
    if (level >= keep_inputs) {
        w.flops += 2.0 * double(hp.q_width()) * double(p.t);
        w.bytes += 14 * d + 4.0 * double(hp.q_width() + hp.kv_width()) + (hp.fam->has(post_norms) ? 8 : 2) * d; // norms, heads, attention and what it adds
    }
    return w;
}

} // namespace

bool asks_for(const char *variable, const char *word) {
    const char *const is = std::getenv(variable);
    return is && ("," + std::string(is) + ",").find("," + std::string(word) + ",") != std::string::npos;
}

plan::plan(const cft_model &m, const cft_trainer_params &params, const adapter_shape &adapter, int steps, placement at, loss_tiles tiles, int n_offloaded_)
    : model(&m), rope(&m.rope.global_for(params)), t(params.max_tokens), n(params.max_targets > 0 ? params.max_targets : params.max_tokens), lowest(std::max(adapter.lowest(), 0)),
      dropout(params.dropout > 0), dora(adapter.dora()), stores_scores(!asks_for("CFT_CUDA_ATTENTION", "twice")), place(at.layers), embedding_stays(at.embedding_stays), n_offloaded(n_offloaded_),
      faster(params.lora_plus_ratio > 0 ? params.lora_plus_ratio : 1.0f), vocab8(padded(m.hp.n_vocab)) {
    const int n_layer = int(m.layers.size()), n_trained = n_layer - lowest;
    for (int l = 0; l < n_layer; l++) {
        layers.emplace_back();
        for (int kind = 0; kind < kind_count; kind++) {
            layers.back().of[kind] = make_group(m.layers[size_t(l)], kind, adapter, l);
        }
        keep.push_back(l < lowest ? keep_everything : keep_level((steps + l - lowest) / n_trained));
    }
    const auto make_end = [](const adapter_module &a) { return a.rank > 0 ? end{a.rank, padded(a.rank), a.scale} : end{}; };
    embedding = make_end(adapter.token_embd());
    head      = make_end(adapter.output());
    embedding.scale *= m.hp.embedding_scale;
    place_values();
    find_widest();
    plan_experts(*this);
    choose_offloaded();
    loss_rows = std::clamp<int64_t>(tiles.rows > 0 ? tiles.rows : rows_of_logits(t, n, vocab8, m.hp.n_head), 1, n);
    head_rows = std::min(vocab8, tiles.head_rows > 0 ? tiles.head_rows : head_tile);
    // Tokens, positions, rows, targets, weights, and the lists of attention for up to two masks and two sets of queries.
    staging_words    = size_t((embedding.rank > 0 ? 5 : 2) * t + 3 * n) + (m.hp.window > 0 ? 2 : 1) * (attention_lists::max_words(t, t, stores_scores) + attention_lists::max_words(t, n, stores_scores)) + 256;
    weight_bytes     = weights_of(*this, stage_bytes, streamed_bytes);
    adapter_bytes    = (size_t(n_values) * sizeof(float) + 255) / 256 * 256;
    carver counted(nullptr), space(nullptr), loss(nullptr);
    place_activations(*this, counted);
    activation_bytes = counted.used();
    workspace(*this, space);
    workspace_bytes = space.used();
    loss_space(*this, loss);
    loss_bytes = loss.used();
    count_work();
}

// Group by group or, where B's have a rate of their own, all A's first.
void plan::place_values() {
    const auto each = [&](auto &&visit) {
        for (layer_groups &l : layers) {
            for (group &g : l.of) {
                visit(g);
            }
        }
    };
    each([&](group &g) {
        g.gain = n_gains;
        n_gains += dora && !g.parts.empty() ? g.outputs : 0;
    });
    const int64_t n_vocab = model->hp.n_vocab, d = model->hp.n_embd;
    const auto    take    = [&](int64_t floats) { return n_values += floats, n_values - floats; };
    const bool    together = faster == 1;
    each([&](group &g) {
        place_a(g, n_values);
        if (together) {
            place_b(g, dora, n_values);
        }
    });
    embedding.a = take(n_vocab * embedding.rank8);
    embedding.b = take(d * embedding.rank8);
    head.a      = take(d * head.rank8);
    n_slow      = n_values;
    if (!together) {
        each([&](group &g) { place_b(g, dora, n_values); });
    }
    head.b = take(n_vocab * head.rank8);
    n_slow = together ? n_values : n_slow;
}

void plan::find_widest() {
    widest = layers[0];
    for (int kind = 0; kind < kind_count; kind++) {
        alike[kind] = true;
        for (const layer_groups &l : layers) {
            widest.of[kind].columns = std::max(widest.of[kind].columns, l.of[kind].columns);
            alike[kind]             = alike[kind] && same_shapes(l.of[kind], layers[0].of[kind]);
        }
    }
}

// Layers whose product of gate and up can wait on the host. Experts' rows are counted on the device, so nobody knows how many to copy.
std::vector<size_t> plan::may_offload() const {
    std::vector<size_t> may;
    for (size_t l = size_t(lowest); l + 1 < layers.size() && model->hp.n_expert == 0; l++) {
        if (keep[l] < keep_narrow) {
            may.push_back(l);
        }
    }
    return may;
}

int plan::most_offloaded() const {
    const std::vector<size_t> may = may_offload();
    if (place == weight_place::host || may.empty()) { // the way from the host is taken
        return 0;
    }
    if (const char *most = std::getenv("CFT_CUDA_OFFLOAD")) {
        return std::clamp(std::atoi(most), 0, int(may.size()));
    }
    const double bytes = double(t) * double(gate_up_row_bytes(may[0]));
    return int(std::min(double(may.size()), forward_flops / flops_per_pinned_byte / bytes));
}

// What comes before a gated unit is still there, but h of down has its own product, which would read all of it again.
bool plan::keeps_h(size_t layer) const {
    const keep_level level = missing(layer);
    return layers[layer].of[kind_down].columns > 0 && level > keep_everything && level < keep_inputs;
}

// With norms after the halves it is the gradient before these; with DoRA gains come over it.
bool plan::separate_d() const { return dora || model->hp.fam->has(post_norms); }

void plan::choose_offloaded() {
    offloaded.assign(layers.size(), 0);
    const std::vector<size_t> may = may_offload();
    size_t                    all = 0, last_two = 0;
    for (int i = 0; i < n_offloaded; i++) {
        const size_t l = may[(2 * size_t(i) + 1) * may.size() / (2 * size_t(n_offloaded))];
        offloaded[l]   = 1;
        all += size_t(t) * gate_up_row_bytes(l);
        last_two += i + 2 >= n_offloaded ? size_t(t) * gate_up_row_bytes(l) : 0;
    }
    offloaded_bytes = all - last_two;
}

void plan::count_work() {
    const double tokens = double(t);
    const int    n_layer = int(layers.size());
    for (size_t l = 0; l < layers.size(); l++) {
        for (const work &w : {again_of(*this, layers[l], missing(l)), gains_of(*this, layers[l])}) {
            again.flops += tokens * w.flops;
            again.bytes += tokens * w.bytes;
        }
        for (int kind = 0; kind < kind_count; kind++) {
            const group &g = layers[l].of[kind];
            forward_flops += 2 * tokens * double(g.outputs) * double(g.ld());
            const double ways = int(l) < lowest ? 1 : 2; // widened for each
            again.bytes += resident() ? 0 : ways * double(sizeof(bf16)) * double(g.outputs) * double(g.inputs);
        }
        forward_flops += tokens * expert_flops(*this, false);
        again.bytes += resident() ? 0 : (int(l) < lowest ? 1 : 2) * double(widened_expert_bytes(*this));
    }
    again.bytes += 2 * double(offloaded_bytes);
    again.host_bytes = (1 + double(n_layer - lowest) / n_layer) * double(streamed_bytes) + double(embedding_bytes());
}

double plan::cost() const { return again.flops / flops_per_byte + again.bytes + again.host_bytes * bytes_per_host_byte; }

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
    e.computed_again   = float(products_again(false) + products_again(true));
    e.keep_activations = products_again(false) > 0 ? CFT_KEEP_LAYERS : CFT_KEEP_ALL;
    e.streamed         = streamed_bytes;
    e.offloaded        = offloaded_bytes;
    return e;
}

// The part of the forward pass's products that is done again: since they were not kept, and for DoRA.
double plan::products_again(bool for_dora) const {
    double flops = 0;
    for (size_t l = 0; l < layers.size(); l++) {
        flops += double(t) * (for_dora ? gains_of(*this, layers[l]).flops : products_of(*this, layers[l], missing(l)));
    }
    return flops / forward_flops;
}

std::vector<activations> place_activations(const plan &p, carver &from) {
    const hyperparameters &hp = p.model->hp;
    const int64_t t = p.t, d = hp.n_embd, q = hp.q_width(), kv = hp.kv_width();
    const bool    post = hp.fam->has(post_norms), head = hp.fam->has(head_norms), mixture = hp.n_expert > 0;
    bf16                  *places[2]; // of offloaded products
    for (bf16 *&at : places) {
        at = p.n_offloaded > 0 ? from.take<bf16>(t * (2 * hp.n_ff + p.widest.of[kind_gate_up].columns)) : nullptr;
    }
    int turn = 0;
    // What the levels of [first, end) leave out.
    const auto place = [&](activations &a, const layer_groups &g, int first, int end, bool offloaded) {
        const auto has = [&](keep_level level) { return first <= level && level < end; };
        if (has(keep_inputs)) {
            a.norm      = from.take<bf16>(t * g.of[kind_qkv].ld());
            a.mid_norm  = from.take<bf16>(t * g.of[kind_gate_up].ld());
            a.rstd      = from.take<float>(t);
            a.mid_rstd  = from.take<float>(t);
            a.qkv       = from.take<bf16>(t * (q + 2 * kv));
            a.q_rstd    = head ? from.take<float>(t * hp.n_head) : nullptr;
            a.k_rstd    = head ? from.take<float>(t * hp.n_head_kv) : nullptr;
            a.attn      = from.take<bf16>(t * g.of[kind_output].ld());
            a.lse       = from.take<float>(t * hp.n_head);
            a.attn_add  = post ? from.take<bf16>(t * d) : a.attn_add;
            a.ffn_add   = post ? from.take<bf16>(t * d) : nullptr;
            a.attn_rstd = post ? from.take<float>(t) : nullptr;
            a.ffn_rstd  = post ? from.take<float>(t) : nullptr;
        }
        if (has(keep_narrow)) {
            a.gate_up = offloaded ? places[turn++ % 2] : from.take<bf16>((mixture ? p.expert_places : t) * (2 * hp.n_ff + g.of[kind_gate_up].columns));
        }
        if (has(keep_products)) {
            a.q = head ? from.take<bf16>(t * q) : nullptr;
            a.k = head ? from.take<bf16>(t * kv) : nullptr;
        }
        if (has(keep_heads)) {
            a.act = mixture ? nullptr : from.take<bf16>(t * g.of[kind_down].ld());
        }
    };
    activations shared{};
    shared.x        = from.take<float>(t * d);
    shared.attn_add = post ? nullptr : from.take<bf16>(t * d);
    place(shared, p.widest, keep_everything, p.keep.back() + 1, false); // no layer leaves out more than the last
    const size_t             lowest = std::min(size_t(p.lowest), p.layers.size() - 1);
    std::vector<activations> all(p.layers.size(), shared);
    for (size_t l = lowest; l < all.size(); l++) {
        all[l].x       = p.missing(l) == keep_inputs ? from.take<float>(t * d) : shared.x;
        all[l].experts = place_experts(p, from);
        place(all[l], p.layers[l], p.keep[l] + 1, n_keep_levels, p.offloaded[l]);
        all[l].h = p.keeps_h(l) ? from.take<bf16>(t * p.layers[l].of[kind_down].columns) : nullptr;
    }
    std::fill(all.begin(), all.begin() + std::ptrdiff_t(lowest), all.back());
    return all;
}

workspace::workspace(const plan &p, carver &from) {
    const hyperparameters &hp = p.model->hp;
    const layer_groups    &g  = p.widest;
    const int64_t t = p.t, n = p.n, d = hp.n_embd, q_width = hp.q_width(), kv_width = hp.kv_width();
    rows_norm  = from.take<bf16>(n * g.of[kind_qkv].ld());
    delta      = from.take<bf16>(t * d);
    d_norm     = from.take<bf16>(t * d);
    ld_dy      = d + std::max(g.of[kind_output].columns, g.of[kind_down].columns);
    dy         = p.separate_d() ? from.take<bf16>(t * ld_dy) : nullptr;
    d_attn     = from.take<bf16>(t * q_width);
    d_qkv      = from.take<bf16>(t * (q_width + 2 * kv_width + g.of[kind_qkv].columns));
    d_q        = from.take<bf16>(n * (q_width + g.of[kind_qkv].columns));
    attn_delta = from.take<float>(t * hp.n_head);
    const int64_t widest = std::max({d, q_width, int64_t(hp.n_ff)});
    masked     = p.dropout ? from.take<bf16>(t * widest) : nullptr;
    masked_d   = p.dropout ? from.take<bf16>(t * widest) : nullptr;
    const auto split = [&] {
        const int64_t ld = p.separate_d() ? d : ld_dy;
        return split_rows{from.take<bf16>(t * ld), ld, from.take<uint16_t>(t * d)};
    };
    this->d    = split();
    d_other    = split();
    rows_x     = from.take<float>(n * d);
    final_rstd = from.take<float>(n);
    rope       = from.take<float>(t * hp.n_rot);
    rope_local = hp.window > 0 && hp.fam->local_rope_base > 0 ? from.take<float>(t * hp.n_rot) : rope;
    frequencies       = from.take<float>(hp.n_rot / 2);
    frequencies_local = from.take<float>(hp.n_rot / 2);
    embedding = p.embedding_stays ? from.take<char>(int64_t(p.embedding_bytes())) : nullptr;
    numbers   = from.take<int32_t>(int64_t(p.staging_words));
    losses    = from.take<float>(n);
    sums      = from.take<double>(2);
    partials  = from.take<double>(norm_partials);
    products  = from.take<char>(int64_t(products_workspace_bytes));
    side_products = from.take<char>(int64_t(side_workspace_bytes));
    int64_t copied = int64_t(p.layers.size()) * (kind_count + n_target_modules);
    for (int kind = 0; kind < kind_count; kind++) {
        for (const layer_groups &l : p.layers) {
            copied += p.alike[kind] ? 0 : 2 * int64_t(l.of[kind].parts.size()); // zeros
        }
    }
    copied += p.head.rank > 0 ? 1 + (p.vocab8 + p.head_rows - 1) / p.head_rows : 0;
    copies = from.take<adapter_copy>(copied);
    const int64_t embedding8 = p.embedding.rank8, head8 = p.head.rank8;
    head_x      = from.take<bf16>(n * p.head_ld());
    head_a      = head8 > 0 ? from.take<bf16>(head8 * d) : nullptr;
    head_u      = head8 > 0 ? from.take<bf16>(p.loss_rows * head8) : nullptr;
    embedding_h = embedding8 > 0 ? from.take<bf16>(t * embedding8) : nullptr;
    embedding_b = embedding8 > 0 ? from.take<bf16>(d * embedding8) : nullptr;
    embedding_u = embedding8 > 0 ? from.take<float>(t * embedding8) : nullptr;
    for (int kind = 0; kind < kind_count; kind++) {
        scratch[kind] = p.resident() ? nullptr : from.take<bf16>((g.of[kind].outputs + g.of[kind].columns) * g.of[kind].ld());
    }
    gains = norms = weight_norms = outputs = gain_partials = w_at = a_at = nullptr;
    if (p.dora) {
        int64_t widest_outputs = 0, w_at_floats = 0, a_at_floats = 0;
        for (const layer_groups &l : p.layers) {
            for (const group &of : l.of) {
                for (const part &x : of.parts) {
                    widest_outputs = std::max(widest_outputs, of.outputs);
                    w_at_floats    = std::max(w_at_floats, x.rows * x.rank8);
                    a_at_floats    = std::max(a_at_floats, x.rank8 * x.rank8);
                }
            }
        }
        const int64_t columns = std::min(widest_outputs, gain_columns);
        gains         = from.take<float>(p.n_gains);
        norms         = from.take<float>(p.n_gains);
        weight_norms  = from.take<float>(p.n_gains);
        outputs       = from.take<float>(t * columns);
        gain_partials = from.take<float>(gain_slices * columns);
        w_at          = from.take<float>(w_at_floats);
        a_at          = from.take<float>(a_at_floats);
    }
    if (hp.n_expert > 0) {
        experts.emplace(p, from);
    }
    for (char *&place : stage) {
        place = p.place == weight_place::host ? from.take<char>(int64_t(p.stage_bytes)) : nullptr;
    }
}

loss_space::loss_space(const plan &p, carver &from) {
    const int64_t d = p.head_ld();
    logits = from.take<float>(p.loss_rows * p.vocab8);
    dh     = from.take<float>(p.loss_rows * d);
    head   = p.resident() ? nullptr : from.take<bf16>(p.head_rows * d);
}

void check_model(const cft_model &model) {
    const hyperparameters &hp = model.hp;
    const auto refuse = [&](const std::string &what) { throw failure(CFT_ERR_UNSUPPORTED, "on a CUDA device " + what + "; device: cpu trains it"); };
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
        check_type(l.router), check_type(l.gates), check_type(l.ups), check_type(l.downs);
    }
}

plan choose_plan(const cft_model &model, const cft_trainer_params &params, const adapter_shape &adapter, size_t memory, size_t host_memory, bool must_fit,
                 const std::string &device, loss_tiles tiles) {
    check_model(model);
    const int n_layer = std::max(int(model.layers.size()) - std::max(adapter.lowest(), 0), 1); // that keep something
    const int first = params.keep_activations == CFT_KEEP_LAYERS ? keep_inputs * n_layer : 0;
    const int last  = (params.keep_activations == CFT_KEEP_ALL ? keep_products : keep_inputs) * n_layer;
    std::vector<placement> placements;
    for (const weight_place layers : {weight_place::widened, weight_place::packed, weight_place::host}) {
        placements.push_back({layers, false});
        if (layers == weight_place::widened || !model.hp.tied_output) { // else it is the head as well
            placements.push_back({layers, true});
        }
    }
    std::optional<plan> best;
    const auto          take = [&](plan &&p) {
        const bool fits = p.total() <= memory && p.offloaded_bytes <= host_memory;
        if (fits && (!best || p.cost() < best->cost())) {
            best.emplace(std::move(p));
        }
        return fits;
    };
    for (const placement &at : placements) {
        for (int steps = first; steps <= last; steps++) { // each takes less memory than the one before, and costs more
            plan p(model, params, adapter, steps, at, tiles);
            if (const int n = enough_offloaded(p, memory); n > 0) {
                take(plan(model, params, adapter, steps, at, tiles, n));
            }
            if (take(std::move(p))) {
                break;
            }
        }
    }
    if (best) {
        return std::move(*best);
    }
    plan least(model, params, adapter, last, placements.back(), tiles);
    if (!must_fit) {
        return least;
    }
    // The longest pack that fits, by halving.
    int32_t fits = 0;
    for (int32_t low = 1, high = params.max_tokens; low <= high;) {
        cft_trainer_params shorter = params;
        shorter.max_tokens         = low + (high - low) / 2;
        shorter.max_targets        = std::min(params.max_targets, shorter.max_tokens);
        if (plan(model, shorter, adapter, last, placements.back(), tiles).total() <= memory) {
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
    cft_trainer_params one = params;
    one.max_tokens = 1, one.max_targets = std::min(params.max_targets, 1);
    const plan shortest(model, one, adapter, last, placements.back(), tiles);
    throw failure(CFT_ERR_NO_MEMORY, needs + "; no pack fits: what does not depend on its length takes " +
                                             std::to_string(int64_t(shortest.total()) / mib) + " MiB (adapter.rank has a part in it)");
}

} // namespace cft::cuda
