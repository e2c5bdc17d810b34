// layer_graph.h - one layer in one graph of a portable engine.
#pragma once

#include "journey.h"

#include <algorithm>
#include <initializer_list>
#include <map>

namespace cft::portable {

// layer_graph is one layer in one graph.
struct engine::layer_graph {
    engine              &e;
    const journey       &j;
    const int            layer;
    const layer_weights &w;
    const layer_tensors &on;
    const hyperparameters &hp;
    const bool           last, post_norms, head_norms, gelu;
    const int64_t        t, n; // tokens, rows that go on after attention
    const cpu::attention_shape shape;
    graph                g;
    ggml_context *const  c;
    const attention_view view;
    rotation             turn_q, turn_k;

    // What forward leaves for backward.
    struct linear_input {
        ggml_tensor                *x;
        std::map<int, ggml_tensor *> h; // by module: scale times x Aᵀ
        std::map<const linear_part *, ggml_tensor *> plain; // with DoRA, the map's output before its gain
    };
    ggml_tensor *x, *q, *k, *v, *q_turned, *k_turned, *attn_out, *mid, *gate, *up, *ffn_out;
    linear_input in_q, in_kv, in_output, in_gate_up, in_down;

    layer_graph(engine &engine_, const journey &j_, int layer_)
        : e(engine_), j(j_), layer(layer_), w(e.model_.layers[size_t(layer_)]), on(e.layers_[size_t(layer_)]), hp(e.hp_),
          last(layer_ == hp.n_layer - 1), post_norms(hp.fam->has(cft::post_norms)), head_norms(hp.fam->has(cft::head_norms)),
          gelu(hp.fam->has(cft::gelu)), t(j_.t), n(last ? j_.n : j_.t), shape(hp.attention()),
          g(1024 + 104 * int64_t((last ? j_.tiles.rows : j_.tiles.all).size()) + 20 * (hp.n_head * t / 65535)), c(g.ctx()),
          view{last ? j_.tiles.rows : j_.tiles.all, e.masks_, e.iota_, w.local, g.ops()} {
        const bool halves = hp.fam->has(rope_halves);
        ggml_tensor *const factors = w.local ? e.factors_local_ : e.factors_;
        const float amplitude = w.local ? e.amplitude_local_ : e.amplitude_;
        turn_q = {e.slice(c, last ? e.row_positions_ : e.positions_, 0, n), factors, hp.n_rot, halves, hp.rope_freq_base, amplitude};
        turn_k = {e.slice(c, e.positions_, 0, t), factors, hp.n_rot, halves, hp.rope_freq_base, amplitude};
    }
    rotation back(bool of_q) const {
        rotation r  = of_q ? turn_q : turn_k;
        r.positions = of_q ? e.slice(c, last ? e.row_back_ : e.back_, 0, n) : e.slice(c, e.back_, 0, t);
        return r;
    }

    ggml_tensor *linear(const linear_part &part, linear_input &in);
    ggml_tensor *linear_backward(const linear_part &part, const linear_input &in, ggml_tensor *dy, ggml_tensor *dx, bool wanted);
    // Goes into the graph at once, so that what it is made of need not be kept to the graph's end.
    void         gradient(ggml_tensor *to, ggml_tensor *what) { g.add(ggml_add_inplace(c, to, what)); }
    void         forward(bool to_the_end);
    void         to_the_experts(); // forward of a mixture's layer, as far as in_gate_up.x
    ggml_tensor *backward(ggml_tensor *d);

  private:
    void         project();
    void         attend();
    void         feed_forward(bool to_the_end);
    ggml_tensor *feed_forward_backward(ggml_tensor *d);
    ggml_tensor *experts_backward(ggml_tensor *d);
    ggml_tensor *attention_half_backward(ggml_tensor *d);
    // What an adapter sees of x, [in, rows]: with dropout, x times its factors, which the gradient is multiplied by as well.
    ggml_tensor *seen(int module, ggml_tensor *y) const { return j.drop.probability > 0 ? ggml_mul(c, y, e.slice(c, e.drawn_[size_t(module)], 0, y->ne[1])) : y; }
    ggml_tensor *part_of(const linear_part &part, ggml_tensor *b) const; // the part's rows of B, or of its gradient
    ggml_tensor *lengths_of(const linear_part &part, ggml_tensor *v) const; // of magnitudes, norms or gains
    ggml_tensor *heads(ggml_tensor *y, int n_heads) const { return ggml_reshape_3d(c, y, hp.head_dim, n_heads, y->ne[1]); }
    ggml_tensor *flat(ggml_tensor *y) const { return ggml_reshape_2d(c, y, y->ne[0] * y->ne[1], y->ne[2]); }
    ggml_tensor *biased(ggml_tensor *y, ggml_tensor *bias) const { return bias ? ggml_add(c, y, bias) : y; }
    bool         adapts(std::initializer_list<int> modules) const {
        return std::any_of(modules.begin(), modules.end(), [&](int m) { return on.adapters[size_t(m)].a != nullptr; });
    }
    ggml_tensor *rows_of(ggml_tensor *y) const { return last ? ggml_get_rows(c, y, e.slice(c, e.rows_, 0, n)) : y; }
    ggml_tensor *sum(ggml_tensor *a, ggml_tensor *b) const { return a ? ggml_add(c, a, b) : b; }
};

} // namespace cft::portable
