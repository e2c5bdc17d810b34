// tensors.cpp - a trainer's tensors: where each lies in the buffers of values, gradients and moments, its first values, and the
// gains of DoRA, which are computed anew when values have changed.
#include "failure.h"
#include "trainer.h"

#include "cpu/random.h"

#include <algorithm>
#include <cmath>

using namespace cft;

namespace {

constexpr double pi = 3.14159265358979323846;

// The parts of each group_id.
const std::vector<linear_part layer_weights::*> group_parts[group_count] = {
    {&layer_weights::q}, {&layer_weights::k, &layer_weights::v}, {&layer_weights::q, &layer_weights::k, &layer_weights::v},
    {&layer_weights::output}, {&layer_weights::gate, &layer_weights::up}, {&layer_weights::down},
};

// Modules of one input, for laying out tensors: within each set the A's lie together, so that one product serves them.
const std::vector<int> placed_modules[] = {
    {module_q, module_k, module_v, module_qkv}, {module_attn_output}, {module_gate, module_up}, {module_down}};

// Adds a module with an adapter to a group whose other modules' A's lie before its own, or are the same.
void add_adapter(linear_group &g, linear_group::module &m) {
    m.shares_a = g.a && g.modules.back().a == m.a;
    if (!g.a) {
        g.a  = m.a;
        g.da = m.da;
    }
    if (!m.shares_a) {
        g.h_columns += m.rank;
    }
    m.column = g.h_columns - m.rank;
}

} // namespace

size_t cft_trainer::place_tensor(int layer, int module, adapter_tensor kind, int64_t rows, int64_t cols) {
    constexpr const char *suffixes[] = {".lora_a", ".lora_b", ".lora_magnitude"};
    const std::string     prefix     = layer < 0 ? "" : "blk." + std::to_string(layer) + ".";
    tensors.push_back({prefix + module_name(module) + ".weight" + suffixes[kind], size_t(rows), size_t(cols), next_offset_, layer, module, kind});
    next_offset_ += size_t(rows * cols);
    return tensors.back().offset;
}

void cft_trainer::place_tensors() {
    for (int layer = 0; layer < model.hp.n_layer; layer++) {
        place places[n_target_modules];
        place_layer(layer, places);
        if (!plan.on_device) { // it has groups of its own
            build_groups(layer, places);
        }
    }
    place_ends();
    if (next_offset_ != plan.n_params || next_gain_ != plan.n_magnitudes) {
        throw failure(CFT_ERR_INTERNAL, "the adapter's tensors are not what was planned");
    }
}

void cft_trainer::place_layer(int layer, place *places) {
    for (const std::vector<int> &modules : placed_modules) {
        for (adapter_tensor kind : {matrix_a, matrix_b, magnitude}) {
            for (int id : modules) {
                const int rank = adapter.of(layer, id).rank;
                if (rank == 0 || (kind == magnitude && !adapter.dora())) {
                    continue;
                }
                const weight &w = model.layers[size_t(layer)].modules[id];
                place        &p = places[id];
                switch (kind) {
                case matrix_a: p.a = place_tensor(layer, id, kind, rank, w.cols); break;
                case matrix_b: p.b = place_tensor(layer, id, kind, w.rows, rank); break;
                case magnitude:
                    p.magnitude = place_tensor(layer, id, kind, w.rows, 1);
                    p.gain      = next_gain_;
                    next_gain_ += size_t(w.rows);
                    magnitudes_.push_back(p);
                }
            }
        }
    }
}

void cft_trainer::build_groups(int layer, const place *places) {
    groups_.emplace_back();
    for (int g = 0; g < group_count; g++) {
        linear_group &group = groups_.back().of[g];
        for (const auto member : group_parts[g]) {
            const linear_part    &part = model.layers[size_t(layer)].*member;
            const adapter_module &mine = adapter.of(layer, part.module);
            linear_group::module  m;
            m.id = part.module;
            m.w  = &part.w;
            if (part.w.data && mine.rank > 0) {
                const place &p   = places[m.id];
                const size_t row = size_t(part.first_row);
                m.rank           = mine.rank;
                m.scale          = mine.scale;
                m.a              = value.data() + p.a;
                m.b              = value.data() + p.b + row * size_t(m.rank);
                m.da             = gradient.data() + p.a;
                m.db             = gradient.data() + p.b + row * size_t(m.rank);
                if (adapter.dora()) {
                    m.norm        = norms_.data() + p.gain + row;
                    m.gain        = gains_.data() + p.gain + row;
                    m.d_magnitude = gradient.data() + p.magnitude + row;
                }
                add_adapter(group, m);
            }
            group.modules.push_back(m);
        }
    }
}

// The embedding and the head.
void cft_trainer::place_ends() {
    if (const adapter_module &e = adapter.token_embd(); e.rank > 0) {
        const size_t a = place_tensor(-1, module_token_embd, matrix_a, model.token_embd.rows, e.rank);
        const size_t b = place_tensor(-1, module_token_embd, matrix_b, model.token_embd.cols, e.rank);
        embedding_     = {value.data() + a, value.data() + b, gradient.data() + a, gradient.data() + b,
                          e.rank, e.scale * model.hp.embedding_scale, model.token_embd.cols};
    }
    linear_group::module m;
    m.id = 0; // of the layer after the last, to dropout
    m.w  = &model.output;
    if (const adapter_module &o = adapter.output(); o.rank > 0) {
        const size_t a = place_tensor(-1, module_output, matrix_a, o.rank, model.output.cols);
        const size_t b = place_tensor(-1, module_output, matrix_b, model.output.rows, o.rank);
        m.rank  = o.rank;
        m.scale = o.scale;
        m.a     = value.data() + a;
        m.b     = value.data() + b;
        m.da    = gradient.data() + a;
        m.db    = gradient.data() + b;
        add_adapter(head_, m);
    }
    head_.modules.push_back(m);
}

void cft_trainer::init_values() {
    for (const buffer *b : {&value, &gradient, &moment1, &moment2}) {
        ops_->zero(b->data(), int64_t(b->size()));
    }
    for (const tensor &t : tensors) {
        // Of the embedding it is A, one row for each token, that is zero at first, as in PEFT.
        const bool embedding = t.module == module_token_embd;
        if (t.kind != (embedding ? matrix_b : matrix_a)) {
            continue;
        }
        const float          bound   = 1.0f / std::sqrt(float(t.cols));
        float *const         to      = value.data() + t.offset;
        const int            layer   = t.layer < 0 ? model.hp.n_layer : t.layer;
        cpu::philox_counter  counter = cpu::init_counter(layer, t.layer < 0 ? t.module - n_target_modules : t.module);
        for (size_t i = 0; i < t.rows * t.cols; i += 4, counter.x[0]++) {
            const cpu::philox_counter random = cpu::philox(params.seed, counter);
            for (size_t j = i; j < std::min(i + 4, t.rows * t.cols); j++) {
                const float u = cpu::uniform(random.x[j - i]);
                if (!embedding) {
                    to[j] = (2.0f * u - 1.0f) * bound;
                    continue;
                }
                // Box and Muller: of each pair of words one makes the radius, the other the angle.
                const size_t pair   = (j - i) / 2 * 2;
                const double radius = std::sqrt(-2.0 * std::log(1.0 - double(cpu::uniform(random.x[pair]))));
                const double angle  = 2.0 * pi * double(cpu::uniform(random.x[pair + 1]));
                to[j]               = float(radius * (j - i == pair ? std::cos(angle) : std::sin(angle)));
            }
        }
    }
}

// The lengths of one module's rows: as its magnitudes, or as norms, with the gains.
void cft_trainer::row_norms(const tensor &t, const place &p, bool init) {
    const adapter_module &m    = adapter.of(t.layer, t.module);
    float *const          own  = value.data() + t.offset;
    float *const          norm = init ? own : norms_.data() + p.gain;
    ops_->row_norms(model.layers[size_t(t.layer)].modules[t.module], value.data() + p.a, value.data() + p.b, m.rank, m.scale, own, norm,
                    init ? nullptr : gains_.data() + p.gain);
}

void cft_trainer::init_magnitudes() {
    size_t i = 0;
    for (const tensor &t : tensors) {
        if (t.kind != magnitude) {
            continue;
        }
        row_norms(t, magnitudes_[i++], true);
        const float *const first = value.data() + t.offset, *const zero = std::find(first, first + t.rows, 0.0f);
        if (zero != first + t.rows) {
            throw failure(CFT_ERR_INVALID_ARGUMENT, t.name + ": row " + std::to_string(zero - first) +
                                                        " of the weight is zero, and has no direction that dora could keep; leave the module out or set dora to false");
        }
    }
}

void cft_trainer::refresh_gains() {
    if (!gains_stale) {
        return;
    }
    size_t i = 0;
    for (const tensor &t : tensors) {
        if (t.kind == magnitude) {
            row_norms(t, magnitudes_[i++], false);
        }
    }
    gains_stale = false;
}
