// engine_adapter.cpp - the adapter's tensors on the device and on the host, and the optimizer, which is the host's.
#include "engine.h"

#include "../cpu/rows.h"
#include "../failure.h"

#include <algorithm>
#include <array>

namespace cft::portable {

const trained &engine::place(int layer, int module, adapter_tensor kind, int64_t ne0, int64_t ne1) {
    trained_.push_back({layer, module, kind, values_.tensor(GGML_TYPE_F32, ne0, ne1), gradients_.tensor(GGML_TYPE_F32, ne0, ne1), n_values_});
    n_values_ += trained_.back().n();
    return trained_.back();
}

void engine::place_adapters() {
    for (int layer = 0; layer < hp_.n_layer; layer++) {
        for (int m = 0; m < n_target_modules; m++) {
            const adapter_module &mine = shape_.of(layer, m);
            if (mine.rank == 0) {
                continue;
            }
            const ggml_tensor *const w = layers_[size_t(layer)].modules[size_t(m)];
            adapted &x = layers_[size_t(layer)].adapters[size_t(m)];
            x.scale    = mine.scale;
            const trained &a = place(layer, m, matrix_a, w->ne[0], mine.rank);
            x.a = a.value, x.da = a.gradient;
            const trained &b = place(layer, m, matrix_b, mine.rank, w->ne[1]);
            x.b = b.value, x.db = b.gradient;
            if (shape_.dora()) {
                const trained &length = place(layer, m, magnitude, w->ne[1], 1);
                x.magnitude = length.value, x.d_magnitude = length.gradient;
                x.norm = lengths_.tensor(GGML_TYPE_F32, w->ne[1]);
                x.gain = lengths_.tensor(GGML_TYPE_F32, w->ne[1]);
            }
        }
    }
    place_ends();
}

// Adapters of the embedding and of the head.
void engine::place_ends() {
    const auto pair = [&](adapted &x, int module, float scale, std::array<int64_t, 2> a_size, std::array<int64_t, 2> b_size) {
        x.scale          = scale;
        const trained &a = place(-1, module, matrix_a, a_size[0], a_size[1]);
        x.a = a.value, x.da = a.gradient;
        const trained &b = place(-1, module, matrix_b, b_size[0], b_size[1]);
        x.b = b.value, x.db = b.gradient;
    };
    if (const adapter_module &m = shape_.token_embd(); m.rank > 0) {
        pair(embedding_, module_token_embd, m.scale * hp_.embedding_scale, {m.rank, hp_.n_vocab}, {m.rank, hp_.n_embd});
    }
    if (const adapter_module &m = shape_.output(); m.rank > 0) {
        pair(head_, module_output, m.scale, {hp_.n_embd, m.rank}, {m.rank, hp_.n_vocab});
    }
}

// The lengths of the rows of W + scale B A, some rows at a time, and what magnitudes are over them.
void engine::refresh_gains(ggml_tensor *w, const adapted &x) {
    const int64_t out = w->ne[1], step = rows_within(widened_bytes, w->ne[0], out);
    graph         g(64 + 32 * ((out + step - 1) / step));
    ggml_context *const c = g.ctx();
    ggml_tensor  *const at = transposed(c, x.a);
    for (int64_t row = 0; row < out; row += step) {
        const int64_t      n      = std::min(step, out - row);
        ggml_tensor *const length = row_lengths(c, widen(c, w, iota_, row, n), at, slice(c, x.b, row, n), x.scale);
        const auto part = [&](ggml_tensor *of) { return ggml_view_1d(c, of, n, size_t(row) * sizeof(float)); };
        g.add(ggml_cpy(c, length, part(x.norm)));
        g.add(ggml_cpy(c, ggml_div(c, part(x.magnitude), length), part(x.gain)));
    }
    machine_.run(g);
}

void engine::refresh_gains() {
    if (!shape_.dora() || !gains_stale_) {
        return;
    }
    for (const layer_tensors &l : layers_) {
        for (size_t m = 0; m < n_target_modules; m++) {
            if (l.adapters[m].a) {
                refresh_gains(l.modules[m], l.adapters[m]);
            }
        }
    }
    gains_stale_ = !computes();
}

void engine::fetch_gradient() {
    if (gradient_fetched_) {
        return;
    }
    for (const trained &t : trained_) {
        ggml_backend_tensor_get(t.gradient, gradient_.data() + t.at, 0, ggml_nbytes(t.gradient));
    }
    gradient_fetched_ = true;
}

double engine::sum_of_squares() {
    fetch_gradient();
    return cpu::rows().sum_of_squares(gradient_.data(), n_values_);
}

void engine::adamw(const adamw_step &s) {
    fetch_gradient();
    for (const trained &t : trained_) {
        const float lr = learning_rate(params_, t.kind, t.module, s.lr);
        cpu::rows().adamw(value_.data() + t.at, gradient_.data() + t.at, moment1_.data() + t.at, moment2_.data() + t.at, t.n(), s.gradient_scale, lr, s.beta1,
                          s.beta2, s.eps, s.weight_decay, s.correction1, s.correction2);
        ggml_backend_tensor_set(t.value, value_.data() + t.at, 0, ggml_nbytes(t.value));
    }
    gains_stale_ = true;
}

void engine::discard() {
    gradients_.clear();
    std::fill(gradient_.begin(), gradient_.end(), 0.0f);
    gradient_fetched_ = true;
}

const trained &engine::trained_at(int layer, int module, adapter_tensor kind) const {
    for (const trained &t : trained_) {
        if (t.layer == layer && t.module == module && t.kind == kind) {
            return t;
        }
    }
    throw failure(CFT_ERR_INTERNAL, "the device has no such tensor");
}

void engine::read(int layer, int module, adapter_tensor kind, cft_slot slot, float *out) {
    const trained &t = trained_at(layer, module, kind);
    if (slot == CFT_SLOT_GRADIENT) {
        fetch_gradient();
    }
    const std::vector<float> *const slots[] = {&value_, &gradient_, &moment1_, &moment2_};
    std::copy_n(slots[slot]->data() + t.at, t.n(), out);
}

void engine::write(int layer, int module, adapter_tensor kind, cft_slot slot, const float *data) {
    const trained &t = trained_at(layer, module, kind);
    if (slot == CFT_SLOT_GRADIENT) {
        fetch_gradient();
    }
    std::vector<float> *const slots[] = {&value_, &gradient_, &moment1_, &moment2_};
    std::copy_n(data, t.n(), slots[slot]->data() + t.at);
    gains_stale_ = gains_stale_ || slot == CFT_SLOT_VALUE;
    if (slot == CFT_SLOT_VALUE || slot == CFT_SLOT_GRADIENT) {
        ggml_backend_tensor_set(slot == CFT_SLOT_VALUE ? t.value : t.gradient, data, 0, ggml_nbytes(t.value));
    }
}

} // namespace cft::portable
