// dora.cpp - see dora.h.
#include "dora.h"

#include "failure.h"

#include <algorithm>

namespace cft {
namespace {

bool has_gains(const linear_group &g) {
    return std::any_of(g.modules.begin(), g.modules.end(), [](const linear_group::module &m) { return m.gain != nullptr; });
}

// One module as a group of its own.
linear_group alone(const linear_group::module &m) {
    linear_group g;
    g.modules             = {m};
    g.modules[0].column   = 0;
    g.modules[0].shares_a = false;
    g.a                   = m.a;
    g.da                  = m.da;
    g.h_columns           = m.rank;
    return g;
}

} // namespace

void dora_linear(ops &o, const linear_group &g, const dropout &drop, const float *x, int64_t t, float *const *y, bool add, float *h, float *v) {
    if (!y || !has_gains(g)) {
        o.linear(g, drop, x, t, y, add, h);
        return;
    }
    if (add && g.modules.size() > 1) {
        throw failure(CFT_ERR_INTERNAL, "DoRA adds one module's output at a time");
    }
    float *const apart[] = {v};
    o.linear(g, drop, x, t, add ? apart : y, false, h);
    for (size_t i = 0; i < g.modules.size(); i++) {
        if (g.modules[i].gain) {
            o.scale_columns(add ? v : y[i], g.modules[i].gain, t, g.modules[i].w->rows, add, y[i]);
        }
    }
}

// The gradient of a magnitude is that of the gain over the norm: the sum over rows of dy times the map's output before its
// gain. That output is not kept: it is computed once more. Then dy times the gain goes the way of any adapter's.
void dora_linear_backward(ops &o, const linear_group &g, const dropout &drop, const float *x, int64_t t, const float *const *dy,
                          const float *h, float *u, float *dx, bool add, float *v) {
    if (!has_gains(g)) {
        o.linear_backward(g, drop, x, t, dy, h, u, dx, add);
        return;
    }
    std::vector<const float *> scaled;
    for (size_t i = 0; i < g.modules.size(); i++) {
        const linear_group::module &m = g.modules[i];
        if (!m.gain) {
            scaled.push_back(dy[i]);
            continue;
        }
        float *const out[] = {v};
        o.linear(alone(m), drop, x, t, out, false, u);
        o.column_dots(v, dy[i], m.norm, t, m.w->rows, m.d_magnitude);
        o.scale_columns(dy[i], m.gain, t, m.w->rows, false, v);
        scaled.push_back(v);
        v += t * m.w->rows;
    }
    o.linear_backward(g, drop, x, t, scaled.data(), h, u, dx, add);
}

} // namespace cft
