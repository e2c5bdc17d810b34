// test_ops_linear.cpp - dequantizing, products with frozen weights of every GGUF type in both directions, adapters with and
// without dropout, and the operations of cpu_ops that move rows.
#include "checks.h"
#include "cpu/ops.h"

#include <cstring>
#include <functional>
#include <memory>

using namespace cft;
using namespace cft::cpu;
using namespace checks;

namespace {

// Float products against double: sums of up to 1,536 terms, relative to the largest result.
constexpr double product_tolerance = 5e-6;
// Central differences of a float forward that is linear along the direction: rounding over step.
constexpr double difference_tolerance = 2e-3;

const attention_shape any_shape = {1, 1, 8, 1.0f};
constexpr int64_t     max_rows  = 64;

// Types whose quantizer first builds tables for seconds.
bool is_grid(ggml_type type) { return type == GGML_TYPE_IQ3_XXS || type == GGML_TYPE_IQ3_S || type == GGML_TYPE_IQ2_S || type == GGML_TYPE_IQ1_M; }

// matrix is a weight of some type with its values, as ggml dequantizes them.
struct matrix {
    std::vector<char>  bytes;
    std::vector<float> values;
    weight             w;

    matrix(ggml_type type, int64_t rows, int64_t cols) {
        values = random_floats(size_t(rows * cols), 0.1f);
        bytes.resize(ggml_row_size(type, cols) * size_t(rows));
        if (ggml_quantize_requires_imatrix(type) || is_grid(type)) {
            fill_blocks(type);
        } else {
            ggml_quantize_chunk(type, values.data(), bytes.data(), 0, rows, cols, nullptr);
        }
        if (type != GGML_TYPE_F32) {
            ggml_get_type_traits(type)->to_float(bytes.data(), values.data(), rows * cols);
        }
        w = {bytes.data(), type, rows, cols, ggml_row_size(type, cols), dequantizer(type)};
    }

    // Random bytes are blocks of these types, if the scale among them is of a usual size.
    void fill_blocks(ggml_type type) {
        constexpr float    usual = 4.0f;
        const size_t       size  = ggml_type_size(type);
        std::vector<float> block(size_t(ggml_blck_size(type)));
        for (size_t at = 0; at < bytes.size(); at += size) {
            do {
                std::generate_n(bytes.begin() + long(at), size, [] { return char(random_bits()); });
                ggml_get_type_traits(type)->to_float(bytes.data() + at, block.data(), ggml_blck_size(type));
            } while (!std::all_of(block.begin(), block.end(), [](float v) { return std::fabs(v) < usual; }));
        }
    }
};

// Types that ggml can write and read back.
std::vector<ggml_type> trainable_types() {
    std::vector<ggml_type> types = {GGML_TYPE_F32, GGML_TYPE_F16, GGML_TYPE_BF16};
    for (int i = 0; i < GGML_TYPE_COUNT; i++) {
        const ggml_type type = ggml_type(i);
        if (ggml_is_quantized(type) && ggml_get_type_traits(type)->to_float && ggml_get_type_traits(type)->from_float_ref) {
            types.push_back(type);
        }
    }
    for (ggml_type type : {GGML_TYPE_IQ2_XXS, GGML_TYPE_IQ2_XS, GGML_TYPE_IQ2_S, GGML_TYPE_IQ3_XXS, GGML_TYPE_IQ3_S, GGML_TYPE_IQ1_S, GGML_TYPE_IQ1_M}) {
        if (std::find(types.begin(), types.end(), type) == types.end()) {
            types.push_back(type);
        }
    }
    return types;
}

void test_dequantize() {
    for (isa set : {isa::generic, isa::avx2, isa::avx512}) {
        const dequantize_kernels *kernels = dequantize_kernels_of(set);
        if (!kernels) {
            continue;
        }
        for (ggml_type type : {GGML_TYPE_Q4_0, GGML_TYPE_Q4_1, GGML_TYPE_Q5_0, GGML_TYPE_Q5_1, GGML_TYPE_Q8_0, GGML_TYPE_Q6_K, GGML_TYPE_F16}) {
            where               = std::string("dequantize ") + ggml_type_name(type) + " with instruction set " + std::to_string(int(set));
            constexpr int64_t n = 256 * 9;
            const matrix      m(type, 1, n);
            std::vector<float> got(size_t(n), -1.0f);
            dequantizer(type, *kernels)(m.bytes.data(), got.data(), n);
            CHECK(std::memcmp(got.data(), m.values.data(), size_t(n) * sizeof(float)) == 0);
        }
    }
    where           = "odd length";
    const matrix m(GGML_TYPE_F16, 1, 37);
    std::vector<float> got(37);
    m.w.dequantize(0, 0, 37, got.data());
    CHECK(got == m.values);
}

void test_frozen(ggml_type type, int64_t rows, int64_t cols, int64_t t, int n_threads) {
    where = std::string(ggml_type_name(type)) + ", " + std::to_string(rows) + " x " + std::to_string(cols) + ", " + std::to_string(n_threads) + " threads";
    const matrix         m(type, rows, cols);
    const auto           x = random_floats(size_t(t * cols)), dy = random_floats(size_t(t * rows));
    std::vector<float>   y(size_t(t * rows), NAN), dx(size_t(t * cols), NAN);
    std::vector<double>  y_want(y.size(), 0.0), dx_want(dx.size(), 0.0);
    for (int64_t i = 0; i < t; i++) {
        for (int64_t r = 0; r < rows; r++) {
            for (int64_t c = 0; c < cols; c++) {
                const double w = double(m.values[size_t(r * cols + c)]);
                y_want[size_t(i * rows + r)] += double(x[size_t(i * cols + c)]) * w;
                dx_want[size_t(i * cols + c)] += double(dy[size_t(i * rows + r)]) * w;
            }
        }
    }
    cpu_ops o(n_threads, any_shape, max_rows);
    o.logits(m.w, x.data(), t, y.data(), rows);
    o.logits_backward(m.w, dy.data(), rows, t, dx.data());
    CHECK(worst(y, y_want) < product_tolerance);
    CHECK(worst(dx, dx_want) < product_tolerance);
}

// ---- a group of two adapted modules and a bare one

struct group_case {
    static constexpr int64_t in = 96, out[3] = {48, 64, 32}, t = 21;
    static constexpr int     rank = 5;
    std::vector<std::unique_ptr<matrix>> weights;
    std::vector<float>                   a, b[3], da, db[3];
    linear_group                         g;
    dropout                              drop;

    // shared: the two adapted modules have one A, as parts of one fused tensor.
    group_case(float probability, bool shared) {
        drop = {probability, 42, 3, 6};
        a    = random_floats(2 * rank * in, 0.2f);
        da.resize(a.size());
        const bool adapted[] = {true, false, true};
        for (int i = 0, at = 0; i < 3; i++) {
            weights.push_back(std::make_unique<matrix>(GGML_TYPE_Q8_0, out[i], in));
            linear_group::module m;
            m.id = i + 3;
            m.w  = &weights.back()->w;
            if (adapted[i]) {
                b[i] = random_floats(size_t(out[i] * rank), 0.2f);
                db[i].resize(b[i].size());
                m.rank  = int(rank);
                m.scale = 1.5f;
                m.a  = a.data() + at * rank * in;
                m.da = da.data() + at * rank * in;
                m.column = at * rank;
                m.b  = b[i].data();
                m.db = db[i].data();
                if (shared && at == 0 && i > 0) {
                    m.id       = g.modules[0].id;
                    m.shares_a = true;
                }
                at += shared ? 0 : 1;
            }
            g.modules.push_back(m);
        }
        g.a         = a.data();
        g.da        = da.data();
        g.h_columns = (shared ? 1 : 2) * rank;
    }

    // The three outputs one after the other.
    std::vector<float> forward(cpu_ops &o, const std::vector<float> &x, std::vector<float> &h) {
        std::vector<float> y(size_t(t * (out[0] + out[1] + out[2])), NAN);
        float *const       parts[] = {y.data(), y.data() + t * out[0], y.data() + t * (out[0] + out[1])};
        h.assign(size_t(t * g.h_columns), NAN);
        o.linear(g, drop, x.data(), t, parts, false, h.data());
        return y;
    }
};

// The adapter's values against the formula, with masks made word by word.
void test_adapter_forward(float probability, int n_threads, bool shared) {
    where = "adapter forward, dropout " + std::to_string(probability) + ", " + std::to_string(n_threads) + " threads" + (shared ? ", one A" : "");
    group_case         c(probability, shared);
    cpu_ops            o(n_threads, any_shape, max_rows);
    const auto         x = random_floats(size_t(c.t * c.in));
    std::vector<float> h;
    const auto         y    = c.forward(o, x, h);
    size_t             base = 0;
    for (int i = 0; i < 3; i++) {
        std::vector<double> want(size_t(c.t * c.out[i]), 0.0);
        for (int64_t row = 0; row < c.t; row++) {
            std::vector<double> hidden(size_t(c.rank), 0.0);
            for (int64_t k = 0; k < c.in; k++) {
                philox_counter counter = dropout_counter(c.drop.micro_batch, c.drop.layer, c.g.modules[size_t(i)].id, uint32_t(row));
                counter.x[0]           = uint32_t(k / 4);
                const bool   dropped = probability > 0 && philox(c.drop.seed, counter).x[k % 4] < dropout_threshold(probability);
                const double value   = dropped ? 0.0 : double(x[size_t(row * c.in + k)]) / (1.0 - double(probability));
                for (int64_t r = 0; r < c.rank && c.g.modules[size_t(i)].a; r++) {
                    hidden[size_t(r)] += value * double(c.g.modules[size_t(i)].a[r * c.in + k]);
                }
                for (int64_t j = 0; j < c.out[i]; j++) {
                    want[size_t(row * c.out[i] + j)] += double(x[size_t(row * c.in + k)]) * double(c.weights[size_t(i)]->values[size_t(j * c.in + k)]);
                }
            }
            for (int64_t j = 0; j < c.out[i] && c.g.modules[size_t(i)].a; j++) {
                for (int64_t r = 0; r < c.rank; r++) {
                    want[size_t(row * c.out[i] + j)] += double(c.g.modules[size_t(i)].scale) * hidden[size_t(r)] * double(c.b[i][size_t(j * c.rank + r)]);
                }
            }
        }
        CHECK(worst(std::vector<float>(y.begin() + long(base), y.begin() + long(base + want.size())), want) < product_tolerance);
        base += want.size();
    }
}

// Gradients against differences of the forward along random directions; the forward is linear in each argument alone.
void test_adapter_backward(float probability, int n_threads, bool shared) {
    where = "adapter backward, dropout " + std::to_string(probability) + ", " + std::to_string(n_threads) + " threads" + (shared ? ", one A" : "");
    group_case         c(probability, shared);
    cpu_ops            o(n_threads, any_shape, max_rows);
    auto               x = random_floats(size_t(c.t * c.in));
    std::vector<float> h, u(size_t(c.t * c.g.h_columns)), dx(x.size(), NAN);
    const auto         y  = c.forward(o, x, h);
    const auto         dy = random_floats(y.size());
    const float *const parts[] = {dy.data(), dy.data() + c.t * c.out[0], dy.data() + c.t * (c.out[0] + c.out[1])};
    o.linear_backward(c.g, c.drop, x.data(), c.t, parts, h.data(), u.data(), dx.data(), false);

    const auto slope = [&](std::vector<float> &of, const std::vector<float> &direction) {
        constexpr float          step  = 0.5f; // exact for a linear function
        const std::vector<float> start = of;
        std::vector<float>       ignored;
        for (size_t i = 0; i < of.size(); i++) {
            of[i] = start[i] + step * direction[i];
        }
        const double up = dot(c.forward(o, x, ignored), dy);
        for (size_t i = 0; i < of.size(); i++) {
            of[i] = start[i] - step * direction[i];
        }
        const double down = dot(c.forward(o, x, ignored), dy);
        of                = start;
        return (up - down) / (2 * double(step));
    };
    for (int repeat = 0; repeat < 3; repeat++) {
        const auto in_x = random_floats(x.size()), in_a = random_floats(c.a.size());
        CHECK_NEAR(slope(x, in_x), dot(dx, in_x), norm(dx), difference_tolerance);
        CHECK_NEAR(slope(c.a, in_a), dot(c.da, in_a), norm(c.da), difference_tolerance);
        for (int i : {0, 2}) {
            const auto in_b = random_floats(c.b[i].size());
            CHECK_NEAR(slope(c.b[i], in_b), dot(c.db[i], in_b), norm(c.db[i]), difference_tolerance);
        }
    }
    // Once more: gradients of A and B add up, dx is set, or added to where that is asked for.
    const auto da = c.da, db = c.db[0], dx_once = dx;
    o.linear_backward(c.g, c.drop, x.data(), c.t, parts, h.data(), u.data(), dx.data(), false);
    CHECK(dx == dx_once);
    std::vector<float> twice = da;
    std::transform(da.begin(), da.end(), twice.begin(), [](float v) { return 2 * v; });
    CHECK(worst(c.da, twice) < product_tolerance);
    o.linear_backward(c.g, c.drop, x.data(), c.t, parts, h.data(), u.data(), dx.data(), true);
    std::vector<float> dx_twice(dx_once.size());
    std::transform(dx_once.begin(), dx_once.end(), dx_twice.begin(), [](float v) { return 2 * v; });
    CHECK(worst(dx, dx_twice) < product_tolerance);
    // Without dx the adapter's gradients are the same.
    std::fill(c.da.begin(), c.da.end(), 0.0f);
    o.linear_backward(c.g, c.drop, x.data(), c.t, parts, h.data(), u.data(), nullptr, false);
    CHECK(c.da == da);
    CHECK(worst(c.db[0], db) > 2); // the fourth sum of db
}

void test_forward_variants() {
    where = "linear: h alone, and adding to y";
    for (float probability : {0.0f, 0.4f}) {
        group_case         c(probability, false);
        cpu_ops            o(2, any_shape, max_rows);
        const auto         x = random_floats(size_t(c.t * c.in));
        std::vector<float> h, alone(size_t(c.t * c.g.h_columns));
        const auto         y = c.forward(o, x, h);
        o.linear(c.g, c.drop, x.data(), c.t, nullptr, false, alone.data());
        CHECK(alone == h);
        const auto         before = random_floats(y.size());
        std::vector<float> sum = before, want = before;
        float *const       parts[] = {sum.data(), sum.data() + c.t * c.out[0], sum.data() + c.t * (c.out[0] + c.out[1])};
        o.linear(c.g, c.drop, x.data(), c.t, parts, true, h.data());
        std::transform(y.begin(), y.end(), want.begin(), want.begin(), std::plus<>());
        CHECK(worst(sum, want) < product_tolerance);
    }
}

void test_rows_move() {
    where = "gather and scatter";
    cpu_ops                    o(3, any_shape, max_rows);
    const std::vector<int32_t> rows = {1, 4, 5};
    const auto                 from = random_floats(7 * 10);
    std::vector<float>         some(3 * 10), all(7 * 10, 1.0f);
    o.gather(from.data(), rows, 10, some.data());
    o.scatter_add(some.data(), rows, 10, all.data());
    for (int i = 0; i < 7; i++) {
        const bool chosen = std::find(rows.begin(), rows.end(), i) != rows.end();
        for (int j = 0; j < 10; j++) {
            const size_t at = size_t(i * 10 + j);
            CHECK(all[at] == (chosen ? from[at] + 1.0f : 1.0f));
        }
    }
    const auto big = random_floats(200000);
    CHECK_NEAR(o.sum_of_squares(big.data(), int64_t(big.size())), dot(big, big), dot(big, big), 1e-12);
    CHECK(o.sum_of_squares(big.data(), 70000) == cpu_ops(1, any_shape, max_rows).sum_of_squares(big.data(), 70000));
}

} // namespace

int main() {
    test_dequantize();
    int n_types = 0;
    for (ggml_type type : trainable_types()) {
        const int64_t cols = ggml_blck_size(type) == 256 ? 768 : 160;
        test_frozen(type, 50, cols, 19, 1 + n_types++ % 3);
    }
    CHECK(n_types >= 25); // the pinned ggml has that many
    test_frozen(GGML_TYPE_Q4_1, 1536, 576, 7, 2);
    test_frozen(GGML_TYPE_F16, 3, 200001, 2, 2);    // rows of weights longer than any tile
    test_frozen(GGML_TYPE_Q4_K, 600, 1280, 30, 1);  // several tiles both ways
    test_frozen(GGML_TYPE_F32, 37, 9001, 20, 3);
    for (float probability : {0.0f, 0.3f}) {
        for (int n_threads : {1, 2, 5}) {
            for (bool shared : {false, true}) {
                test_adapter_forward(probability, n_threads, shared);
                test_adapter_backward(probability, n_threads, shared);
            }
        }
    }
    test_forward_variants();
    test_rows_move();
    ggml_quantize_free();
    return finish("test_ops_linear");
}
