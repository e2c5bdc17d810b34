// test_engine.cpp - losses and gradients of whole tiny models against double precision and its finite differences, and the
// ways to compute the same thing that must agree: packed and separate, shared and repeated prefixes, kept and recomputed.
#include "engine_fixture.h"

using namespace checks;
using namespace tiny;

namespace {

// Float losses and logits of a two-layer model against double.
constexpr double loss_tolerance = 2e-6, logits_tolerance = 2e-5;
// The same sums in another order.
constexpr double order_tolerance = 1e-5;

void test_against_reference(const options &o, const char *name, cft_trainer_params p) {
    where = name;
    const model     m(o);
    const loaded    l(m);
    trainer         t(l, p);
    const adapter   lora = t.randomize();
    const reference r(m, double(p.rslora ? p.alpha / std::sqrt(float(p.rank)) : p.alpha / float(p.rank)));
    const batch     b    = mixed_batch(o.n_vocab);
    const double    want = r.loss(lora, b);
    CHECK_NEAR(t.evaluate(b), want, want, loss_tolerance);
    CHECK_NEAR(t.accumulate(b), want, want, loss_tolerance);
    const gradients g = t.read(CFT_SLOT_GRADIENT);
    check_slopes(r, lora, b, g);
    const std::vector<int32_t> rows = {0, 3, int32_t(b.size()) - 1};
    std::vector<float>         logits(rows.size() * size_t(o.n_vocab));
    OK(cft_trainer_logits(t.handle, b.tokens.data(), b.positions.data(), b.visible_until.data(), b.size(), rows.data(), rows.size(), logits.data(), &err));
    const auto want_logits = r.logits(lora, b, rows);
    for (size_t i = 0; i < rows.size(); i++) {
        CHECK(worst(std::vector<float>(logits.begin() + long(i) * o.n_vocab, logits.begin() + long(i + 1) * o.n_vocab), want_logits[i]) < logits_tolerance);
    }
}

void test_shapes() {
    cft_trainer_params p = some_params();
    options            o;
    test_against_reference(o, "tied", p);
    o.tied = false, o.n_head_kv = 4;
    test_against_reference(o, "separate head, a key head for each query head", p);
    o.n_head_kv = 1, o.n_layer = 1, p.rslora = 1;
    test_against_reference(o, "one layer, one key head, rslora", p);
    o = {}, o.head_dim = 16, o.rope_factors = true, o.n_layer = 3, p.rslora = 0, p.n_threads = 3;
    test_against_reference(o, "wide heads, rope factors, three threads", p);
    o = {}, o.rope_scale = 4;
    test_against_reference(o, "linear rope scaling", p);
}

// What a set of modules gets is what they get among all.
void test_module_subsets() {
    const model        m((options()));
    const loaded       l(m);
    const batch        b = mixed_batch(m.o.n_vocab);
    cft_trainer_params p = some_params();
    trainer            all(l, p);
    for (uint32_t targets : {CFT_TARGET_ATTN_Q | CFT_TARGET_ATTN_V, CFT_TARGET_ATTN_K | CFT_TARGET_FFN_UP, +CFT_TARGET_FFN_DOWN, +CFT_TARGET_ATTN_OUTPUT}) {
        where     = "modules " + std::to_string(targets);
        p.targets = targets;
        trainer   some(l, p);
        gradients values = all.read(CFT_SLOT_VALUE), own = some.read(CFT_SLOT_VALUE);
        CHECK(own.size() == size_t(__builtin_popcount(targets)) * 2 * size_t(m.o.n_layer));
        for (auto &[name, v] : values) {
            const auto found = own.find(name);
            CHECK(found == own.end() || found->second == v); // first values do not depend on the other modules
            v = found == own.end() ? std::vector<float>(v.size(), 0.0f) : random_floats(v.size(), 0.15f);
        }
        all.write(CFT_SLOT_VALUE, values);
        some.write(CFT_SLOT_VALUE, values);
        const gradients whole = all.gradient(b), part = some.gradient(b);
        gradients       shared;
        for (const auto &[name, v] : part) {
            shared[name] = whole.at(name);
        }
        CHECK(worst_tensor(part, shared) < order_tolerance);
        all.write(CFT_SLOT_VALUE, trainer(l, some_params()).read(CFT_SLOT_VALUE));
    }
}

batch part_of(const batch &b, size_t begin, size_t end) {
    batch          p;
    const auto     cut = [&](const auto &from, auto &to) { to.assign(from.begin() + long(begin), from.begin() + long(end)); };
    cut(b.tokens, p.tokens), cut(b.targets, p.targets), cut(b.positions, p.positions), cut(b.weights, p.weights);
    p.visible_until.assign(end - begin, int32_t(end - begin));
    return p;
}

void test_packing() {
    where = "packed and separate";
    const model  m((options()));
    const loaded l(m);
    trainer      t(l, some_params());
    t.randomize();
    const batch     b      = mixed_batch(m.o.n_vocab);
    const double    loss   = t.evaluate(b);
    const gradients packed = t.gradient(b);
    cft_trainer_discard(t.handle);
    double sum = 0;
    for (const auto &[begin, end] : {std::pair<size_t, size_t>{0, 9}, {9, 23}, {23, 28}}) {
        sum += t.accumulate(part_of(b, begin, end));
    }
    CHECK_NEAR(loss, sum, sum, order_tolerance);
    CHECK(worst_tensor(packed, t.read(CFT_SLOT_GRADIENT)) < order_tolerance);
}

// A prefix with two continuations, the second of which has two of its own, against three rows that repeat what they share.
void test_prefix_tree() {
    where = "prefix tree and rows";
    const model  m((options()));
    const loaded l(m);
    trainer      t(l, some_params());
    t.randomize();
    const int n_vocab = m.o.n_vocab;
    batch     tree;
    const auto add = [&](int n, int position, int until) {
        for (int i = 0; i < n; i++) {
            tree.tokens.push_back(random_int(0, n_vocab - 1));
            tree.targets.push_back(random_int(0, 2) ? random_int(0, n_vocab - 1) : CFT_IGNORE_TARGET);
            tree.positions.push_back(position + i);
            tree.visible_until.push_back(until);
            tree.weights.push_back(1.0f);
        }
    };
    add(6, 0, 25);   // [0, 6)   the prefix
    add(5, 6, 11);   // [6, 11)  first continuation
    add(4, 6, 25);   // [11, 15) second
    add(7, 10, 22);  // [15, 22) its first
    add(3, 10, 25);  // [22, 25) its second
    // Targets of shared tokens count once: they stay in the first row that has them.
    const std::vector<std::vector<std::pair<int, int>>> paths = {{{0, 6}, {6, 11}}, {{0, 6}, {11, 15}, {15, 22}}, {{0, 6}, {11, 15}, {22, 25}}};
    std::vector<bool>                                   counted(25, false);
    const double                                        loss = t.evaluate(tree);
    const gradients                                     once = t.gradient(tree);
    cft_trainer_discard(t.handle);
    double sum = 0;
    for (const auto &path : paths) {
        batch row;
        for (const auto &[begin, end] : path) {
            for (int i = begin; i < end; i++) {
                const size_t at = size_t(i);
                row.tokens.push_back(tree.tokens[at]);
                row.targets.push_back(counted[at] ? CFT_IGNORE_TARGET : tree.targets[at]);
                row.positions.push_back(int32_t(row.positions.size()));
                row.weights.push_back(1.0f);
                CHECK(row.positions.back() == tree.positions[at]);
                counted[at] = true;
            }
        }
        row.visible_until.assign(row.tokens.size(), int32_t(row.tokens.size()));
        sum += t.accumulate(row);
    }
    CHECK_NEAR(loss, sum, sum, order_tolerance);
    CHECK(worst_tensor(once, t.read(CFT_SLOT_GRADIENT)) < order_tolerance);
}

void test_same_bits() {
    options o;
    o.n_layer = 4;
    const model  m(o);
    const loaded l(m);
    const batch  b = mixed_batch(o.n_vocab);
    for (float dropout : {0.0f, 0.25f}) {
        where                = "same bits, dropout " + std::to_string(dropout);
        cft_trainer_params p = some_params();
        p.dropout            = dropout;
        p.keep_activations   = CFT_KEEP_ALL;
        trainer all(l, p);
        p.keep_activations = CFT_KEEP_LAYERS;
        trainer layers(l, p);
        all.randomize();
        layers.write(CFT_SLOT_VALUE, all.read(CFT_SLOT_VALUE));
        const gradients kept = all.gradient(b);
        CHECK(layers.gradient(b) == kept);
        OK(cft_trainer_set_counters(all.handle, 0, 0, &err));
        CHECK(all.gradient(b) == kept); // once more
    }
}

void test_accumulation() {
    where = "accumulation";
    const model  m((options()));
    const loaded l(m);
    trainer      t(l, some_params());
    t.randomize();
    batch other;
    other.add_segment(17, m.o.n_vocab, 0.5);
    const batch     b = mixed_batch(m.o.n_vocab);
    const gradients first = t.gradient(b), second = t.gradient(other);
    cft_trainer_discard(t.handle);
    t.accumulate(b);
    t.accumulate(other);
    gradients sum = first;
    for (auto &[name, v] : sum) {
        std::transform(v.begin(), v.end(), second.at(name).begin(), v.begin(), std::plus<>());
    }
    CHECK(worst_tensor(t.read(CFT_SLOT_GRADIENT), sum) < order_tolerance);
    const gradients before = t.read(CFT_SLOT_GRADIENT);
    t.evaluate(b);
    CHECK(t.read(CFT_SLOT_GRADIENT) == before);
    // A pack without targets changes nothing but the count of micro-batches.
    uint64_t steps = 0, packs = 0;
    OK(cft_trainer_get_counters(t.handle, &steps, &packs, &err));
    batch none = b;
    std::fill(none.targets.begin(), none.targets.end(), CFT_IGNORE_TARGET);
    CHECK(t.accumulate(none) == 0.0);
    uint64_t packs_after = 0;
    OK(cft_trainer_get_counters(t.handle, &steps, &packs_after, &err));
    CHECK(t.read(CFT_SLOT_GRADIENT) == before && packs_after == packs + 1);
}

// The last layer leaves out rows without a target. With a target of weight 0 everywhere it computes them all.
void test_target_rows_only() {
    where = "target rows alone";
    const model  m((options()));
    const loaded l(m);
    trainer      t(l, some_params());
    t.randomize();
    const batch b   = mixed_batch(m.o.n_vocab);
    batch       all = b;
    for (size_t i = 0; i < b.size(); i++) {
        if (b.targets[i] == CFT_IGNORE_TARGET) {
            all.targets[i] = 1;
            all.weights[i] = 0.0f;
        }
    }
    CHECK(worst_tensor(t.gradient(b), t.gradient(all)) < order_tolerance);
    CHECK_NEAR(t.evaluate(b), t.evaluate(all), t.evaluate(b), order_tolerance);
}

// What follows the last target is as if it were not there.
void test_tail_without_targets() {
    where = "tail without targets";
    const model  m((options()));
    const loaded l(m);
    trainer      t(l, some_params());
    t.randomize();
    batch b = mixed_batch(m.o.n_vocab);
    std::fill(b.targets.begin() + 20, b.targets.end(), CFT_IGNORE_TARGET);
    batch shorter = part_of(b, 0, 20);
    for (size_t i = 0; i < 20; i++) {
        shorter.visible_until[i] = std::min(b.visible_until[i], 20);
    }
    CHECK(t.evaluate(b) == t.evaluate(shorter));
    CHECK(t.gradient(b) == t.gradient(shorter));
}

void test_many_rows_and_threads() {
    where = "several chunks of logits, other thread counts";
    options o;
    o.n_vocab = 50000; // 64 MiB hold 335 rows of logits
    const model  m(o);
    const loaded l(m);
    batch        b;
    b.add_segment(400, o.n_vocab, 1.0);
    cft_trainer_params p = some_params();
    p.max_tokens         = 400;
    p.n_threads          = 1;
    trainer one(l, p);
    p.n_threads = 4;
    trainer four(l, p);
    one.randomize();
    four.write(CFT_SLOT_VALUE, one.read(CFT_SLOT_VALUE));
    CHECK(worst_tensor(four.gradient(b), one.gradient(b)) < order_tolerance);
    // The same pack in two halves of targets: other chunks.
    batch first = b, second = b;
    for (size_t i = 0; i < b.size(); i++) {
        (i % 2 ? first : second).targets[i] = CFT_IGNORE_TARGET;
    }
    const gradients whole = one.gradient(b);
    cft_trainer_discard(one.handle);
    one.accumulate(first);
    one.accumulate(second);
    CHECK(worst_tensor(one.read(CFT_SLOT_GRADIENT), whole) < order_tolerance);
}

void test_dropout() {
    where = "dropout";
    const model        m((options()));
    const loaded       l(m);
    const batch        b = mixed_batch(m.o.n_vocab);
    cft_trainer_params p = some_params();
    p.dropout            = 0.3f;
    trainer t(l, p), plain(l, some_params());
    t.randomize();
    plain.write(CFT_SLOT_VALUE, t.read(CFT_SLOT_VALUE));
    CHECK(t.evaluate(b) == plain.evaluate(b));
    const double first = t.accumulate(b), second = t.accumulate(b);
    CHECK(first != second && first != t.evaluate(b)); // each micro-batch has its own masks
    // With the counter set back the loss of accumulate is a function of the values, and the gradient its slope.
    OK(cft_trainer_set_counters(t.handle, 0, 7, &err));
    const gradients g = t.gradient(b), values = t.read(CFT_SLOT_VALUE);
    for (const auto &[name, slope] : g) {
        constexpr float  step = 3e-3f; // float losses: rounding over step, and the third derivative
        constexpr double float_slope_tolerance = 5e-3;
        double           side[2];
        for (int s = 0; s < 2; s++) {
            gradients at = values;
            for (size_t i = 0; i < slope.size(); i++) {
                at[name][i] += (s == 0 ? step : -step) * slope[i] / float(norm(slope));
            }
            t.write(CFT_SLOT_VALUE, at);
            OK(cft_trainer_set_counters(t.handle, 0, 7, &err));
            side[s] = t.accumulate(b);
        }
        CHECK_NEAR((side[0] - side[1]) / (2 * double(step)), norm(slope), norm(slope), float_slope_tolerance);
        t.write(CFT_SLOT_VALUE, values);
    }
}

} // namespace

int main() {
    test_shapes();
    test_module_subsets();
    test_packing();
    test_prefix_tree();
    test_same_bits();
    test_accumulation();
    test_target_rows_only();
    test_tail_without_targets();
    test_many_rows_and_threads();
    test_dropout();
    return finish("test_engine");
}
