// trainer.cpp - see trainer.h. Its tensors are laid out in tensors.cpp; optimizer steps are in optimizer.cpp.
#include "trainer.h"

#include "cpu/ops.h"
#include "failure.h"
#include "library.h"

#include <algorithm>
#include <cmath>

using namespace cft;

namespace {

constexpr double lockable_memory = 0.8; // of what the machine has free, which what is cached of files counts to

[[noreturn]] void refuse(const std::string &what) { throw failure(CFT_ERR_INVALID_ARGUMENT, what); }

} // namespace

// journey is one pack on its way: its target rows and its place in the workspace. Tokens after the last row change nothing
// and are left out.
struct cft_trainer::journey {
    std::vector<int32_t> rows;    // positions with a target, ascending; at least one
    std::vector<int32_t> targets; // of those
    std::vector<float>   weights; // of those
    const int32_t       *tokens;
    int64_t              t;       // number of tokens
    std::vector<int32_t> visible_until;
    cpu::attention_mask  all, last;
    std::unique_ptr<cpu::attention_mask> all_local, last_local; // NULL where no window is shorter than what is seen
    carver               space;
    workspace            w;
    float               *d; // [t][n_embd] the gradient on its way down
    pack_view            view;

    journey(const cft_trainer &trainer, const pack &p, std::vector<int32_t> rows_, bool dropped)
        : rows(std::move(rows_)), tokens(p.tokens), t(rows.back() + 1), visible_until(p.visible_until, p.visible_until + t),
          all(clamp(visible_until), size_t(t), nullptr, size_t(t)), last(visible_until.data(), size_t(t), rows.data(), rows.size()),
          all_local(local(trainer, p.positions, nullptr, size_t(t))), last_local(local(trainer, p.positions, rows.data(), rows.size())),
          space(trainer.workspace_.data()), w(trainer.model.hp, trainer.adapter.widths(trainer.model), size_t(t), space),
          d(space.take(size_t(t) * size_t(trainer.model.hp.n_embd))),
          view{t, rows, all, last, all_local ? *all_local : all, last_local ? *last_local : last,
               dropout{dropped ? trainer.params.dropout : 0.0f, trainer.params.seed, trainer.n_micro_batches}, trainer.adapter.lowest()} {
        if (space.used() > trainer.workspace_.size()) {
            throw failure(CFT_ERR_INTERNAL, "workspace is smaller than its parts");
        }
        const rope_sets &rope = trainer.model.rope;
        trainer.ops_->rope_table(p.positions, t, rope.global_for(trainer.params), w.rope);
        if (w.rope_local != w.rope) {
            trainer.ops_->rope_table(p.positions, t, rope.local, w.rope_local);
        }
    }

    // A mask with the window of local layers, if positions go that far.
    std::unique_ptr<cpu::attention_mask> local(const cft_trainer &trainer, const int32_t *positions, const int32_t *queries, size_t n) const {
        const int window = trainer.model.hp.window;
        if (window == 0 || *std::max_element(positions, positions + t) < window) {
            return nullptr;
        }
        return std::make_unique<cpu::attention_mask>(visible_until.data(), size_t(t), queries, n, positions, window);
    }

    static const int32_t *clamp(std::vector<int32_t> &until) {
        for (int32_t &u : until) {
            u = std::min(u, int32_t(until.size()));
        }
        return until.data();
    }
};

cft_trainer::cft_trainer(const cft_model &m, const cft_trainer_params &p, const adapter_shape &shape)
    : model(m), params(p), adapter(shape), plan(choose_layout(m, p, shape)), value(plan.n_params), gradient(plan.on_device ? 0 : plan.n_params),
      moment1(gradient.size()), moment2(gradient.size()), norms_(plan.n_magnitudes), gains_(plan.n_magnitudes), activations_(plan.activations),
      workspace_(plan.workspace), loss_(plan.loss), ops_(std::make_unique<cpu::cpu_ops>(plan.threads, m.hp.attention(), plan.max_tokens)) {
    place_tensors();
    init_values();
    init_magnitudes();
    if (plan.on_device) {
        trainer_setup setup;
        setup.lockable = uint64_t(double(host_memory().free) * lockable_memory);
        device.reset(model.device->make(model, params, adapter, model.device_index, setup));
        for (const tensor &t : tensors) {
            const float *const first = value.data() + t.offset;
            device->write(t.layer, t.module, t.kind, CFT_SLOT_VALUE, first);
            if (t.kind == magnitude) { // of an adapter that adds nothing yet
                device->write_weight_norms(t.layer, t.module, first);
            }
        }
    }
}

void cft_trainer::stop_if_cancelled() {
    if (cancelled.exchange(false)) {
        throw failure(CFT_ERR_CANCELLED, "cancelled");
    }
}

void cft_trainer::check(const pack &p) const {
    if (p.n == 0 || p.n > size_t(plan.max_tokens)) {
        refuse("a pack has 1 to " + std::to_string(plan.max_tokens) + " tokens, got " + std::to_string(p.n));
    }
    const auto at        = [](size_t i) { return " at position " + std::to_string(i); };
    const int  n_vocab   = model.hp.n_vocab;
    size_t     n_targets = 0;
    for (size_t i = 0; i < p.n; i++) {
        if (p.tokens[i] < 0 || p.tokens[i] >= n_vocab) {
            refuse("token " + std::to_string(p.tokens[i]) + at(i) + " is outside the vocabulary of " + std::to_string(n_vocab));
        }
        if (p.positions[i] < 0) {
            refuse("rotary position " + std::to_string(p.positions[i]) + at(i) + " is negative");
        }
        if (p.visible_until[i] <= int64_t(i) || p.visible_until[i] > int64_t(p.n)) {
            refuse("visible_until " + std::to_string(p.visible_until[i]) + at(i) + " is outside the pack");
        }
        if (!p.targets || p.targets[i] == CFT_IGNORE_TARGET) {
            continue;
        }
        n_targets++;
        if (p.targets[i] < 0 || p.targets[i] >= n_vocab) {
            refuse("target " + std::to_string(p.targets[i]) + at(i) + " is outside the vocabulary of " + std::to_string(n_vocab));
        }
        if (p.weights && !(p.weights[i] >= 0 && std::isfinite(p.weights[i]))) {
            refuse("weight" + at(i) + " is not a finite number of at least 0");
        }
    }
    if (n_targets > size_t(plan.max_targets)) {
        refuse("the pack has " + std::to_string(n_targets) + " targets, the trainer was made for " + std::to_string(plan.max_targets));
    }
}

activations cft_trainer::layer_activations(int layer) const {
    const size_t first = plan.inputs * size_t(model.hp.n_layer + 1);
    carver       from(activations_.data() + first + (plan.keep_all ? size_t(layer) * plan.kept : 0));
    return activations(model.hp, adapter.widths(model), size_t(plan.max_tokens), from);
}

void cft_trainer::forward(journey &j) {
    refresh_gains();
    ops_->embed(model.token_embd, j.tokens, j.t, model.hp.embedding_scale, layer_input(0));
    if (embedding_.a) {
        ops_->embed_adapter(embedding_, j.tokens, j.t, layer_input(0), j.w.u);
    }
    for (int layer = 0; layer < model.hp.n_layer; layer++) {
        stop_if_cancelled();
        const activations a = layer_activations(layer);
        block(*ops_, model, layer, groups_[size_t(layer)], j.view, a, j.w).forward(layer_input(layer), layer_input(layer + 1));
    }
}

// n rows of logits, from target row first on. They are stride floats apart, which with an adapter is n_vocab.
void cft_trainer::head(journey &j, int64_t first, int64_t n, float *out, int64_t stride) {
    const float *const x = j.w.x_norm + first * model.hp.n_embd;
    if (head_.h_columns == 0) {
        ops_->logits(model.output, x, n, out, stride);
        return;
    }
    float *const y[] = {out};
    ops_->linear(head_, head_dropout(j, first), x, n, y, false, j.w.h_head);
}

// d_mid from row first on = the gradient at x of the n rows of logits whose gradient is in loss_.
void cft_trainer::head_backward(journey &j, int64_t first, int64_t n) {
    const int64_t d  = model.hp.n_embd;
    float *const  dx = adapter.lowest() == model.hp.n_layer ? nullptr : j.w.d_mid + first * d;
    if (head_.h_columns == 0) {
        ops_->logits_backward(model.output, loss_.data(), plan.loss_stride, n, j.w.d_mid + first * d);
        return;
    }
    const float *const dy[] = {loss_.data()};
    ops_->linear_backward(head_, head_dropout(j, first), j.w.x_norm + first * d, n, dy, j.w.h_head, j.w.u, dx, false);
}

dropout cft_trainer::head_dropout(const journey &j, int64_t first) const {
    dropout drop   = j.view.drop;
    drop.layer     = model.hp.n_layer;
    drop.first_row = first;
    return drop;
}

// loss returns the weighted sum over the target rows and, for backward, leaves in d [rows][n_embd] the gradient at the last
// layer's output. Logits exist for plan.loss_rows rows at a time.
double cft_trainer::loss(journey &j, bool backward) {
    const auto         &hp = model.hp;
    const int64_t       n = int64_t(j.rows.size()), d = hp.n_embd;
    const float        *x = layer_input(hp.n_layer);
    std::vector<double> losses(static_cast<size_t>(n), 0.0);
    ops_->rmsnorm(x, model.output_norm, n, hp.rms_eps, j.w.x_norm);
    for (int64_t begin = 0; begin < n; begin += plan.loss_rows) {
        stop_if_cancelled();
        const int64_t chunk = std::min(plan.loss_rows, n - begin);
        head(j, begin, chunk, loss_.data(), plan.loss_stride);
        ops_->cross_entropy(loss_.data(), chunk, hp.n_vocab, plan.loss_stride, j.targets.data() + begin, j.weights.data() + begin,
                            hp.logit_cap, backward, losses.data() + begin);
        if (backward) {
            head_backward(j, begin, chunk);
        }
    }
    if (backward && adapter.lowest() < hp.n_layer) {
        ops_->zero(j.d, n * d);
        ops_->rmsnorm_backward(j.w.d_mid, x, model.output_norm, n, hp.rms_eps, j.d);
    }
    double sum = 0;
    for (double l : losses) {
        sum += l;
    }
    return sum;
}

void cft_trainer::backward(journey &j) {
    for (int layer = model.hp.n_layer - 1; layer >= std::max(adapter.lowest(), 0); layer--) {
        stop_if_cancelled();
        const activations a = layer_activations(layer);
        const block       b(*ops_, model, layer, groups_[size_t(layer)], j.view, a, j.w);
        if (!plan.keep_all && layer < model.hp.n_layer - 1) {
            b.forward(layer_input(layer), nullptr);
        }
        b.backward(layer_input(layer), j.d);
    }
    if (embedding_.a) {
        ops_->embed_adapter_backward(embedding_, j.tokens, j.t, j.d, j.w.u);
    }
}

void cft_trainer::run(const pack &p, bool backward, double *loss_sum, size_t *n_targets) {
    check(p);
    std::vector<int32_t> rows;
    for (size_t i = 0; i < p.n; i++) {
        if (p.targets[i] != CFT_IGNORE_TARGET) {
            rows.push_back(int32_t(i));
        }
    }
    const size_t n   = rows.size();
    double       sum = 0;
    if (n > 0 && device) {
        sum = run_on_device(p, rows, backward);
    } else if (n > 0) {
        journey j(*this, p, std::move(rows), backward);
        for (int32_t i : j.rows) {
            j.targets.push_back(p.targets[i]);
            j.weights.push_back(p.weights ? p.weights[i] : 1.0f);
        }
        forward(j);
        sum = loss(j, backward);
        if (!std::isfinite(sum)) {
            throw failure(CFT_ERR_NON_FINITE, "the loss is not finite");
        }
        if (backward) {
            this->backward(j);
        }
    }
    if (backward) {
        n_micro_batches++;
    }
    *loss_sum  = sum;
    *n_targets = n;
}

// The pack's part that matters, as the device takes it.
double cft_trainer::run_on_device(const pack &p, const std::vector<int32_t> &rows, bool backward) {
    std::vector<int32_t> targets;
    std::vector<float>   weights;
    for (int32_t i : rows) {
        targets.push_back(p.targets[i]);
        weights.push_back(p.weights ? p.weights[i] : 1.0f);
    }
    const int64_t        t = rows.back() + 1;
    std::vector<int32_t> until(p.visible_until, p.visible_until + t);
    journey::clamp(until);
    const dropout drop{backward ? params.dropout : 0.0f, params.seed, n_micro_batches, 0};
    const double  sum = device->run({p.tokens, p.positions, until.data(), t, rows, targets, weights, drop}, backward, cancelled);
    if (!std::isfinite(sum)) {
        throw failure(CFT_ERR_NON_FINITE, "the loss is not finite");
    }
    return sum;
}

void cft_trainer::logits(const pack &p, const int32_t *rows, size_t n_rows, float *out) {
    check(p);
    if (n_rows == 0 || n_rows > p.n) {
        refuse("between 1 and " + std::to_string(p.n) + " rows can be asked for, not " + std::to_string(n_rows));
    }
    for (size_t i = 0; i < n_rows; i++) {
        if (rows[i] < 0 || size_t(rows[i]) >= p.n || (i > 0 && rows[i] <= rows[i - 1])) {
            refuse("rows must be ascending positions within the pack");
        }
    }
    if (device) {
        const std::vector<int32_t> wanted(rows, rows + n_rows);
        std::vector<int32_t>       until(p.visible_until, p.visible_until + wanted.back() + 1);
        journey::clamp(until);
        device->logits({p.tokens, p.positions, until.data(), wanted.back() + 1, wanted, {}, {}, dropout{}}, out, cancelled);
        return;
    }
    journey j(*this, p, std::vector<int32_t>(rows, rows + n_rows), false);
    forward(j);
    ops_->rmsnorm(layer_input(model.hp.n_layer), model.output_norm, int64_t(n_rows), model.hp.rms_eps, j.w.x_norm);
    head(j, 0, int64_t(n_rows), out, model.hp.n_vocab);
    if (model.hp.logit_cap > 0) {
        ops_->soft_cap(out, int64_t(n_rows), model.hp.n_vocab, model.hp.n_vocab, model.hp.logit_cap);
    }
}
