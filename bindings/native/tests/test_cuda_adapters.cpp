// test_cuda_adapters.cpp - the CUDA kernels of adapters and optimizer against the CPU engine's: dropout and AdamW, bit for bit
// where both round step by step.
#include "cuda_fixture.h"

#include "cpu/random.h"
#include "cpu/rows.h"

using namespace checks;
namespace cuda = cft::cuda;
namespace cpu  = cft::cpu;

namespace {

void test_copies() {
    in_both_orders("copies", [] {
        const std::vector<float> values = random_floats(100);
        on_device<float>         v(values);
        on_device<bf16>          a(60), b(3 * 8), zeros(3 * 8);
        on_device<cuda::adapter_copy> list(std::vector<cuda::adapter_copy>{
            {0, 1, 60, a.data(), 60, 1.0f}, {70, 3, 5, b.data(), 8, 0.25f}, {-1, 3, 5, zeros.data(), 8, 0.0f}});
        cuda::copy_adapters(v.data(), list.data(), 3, 60, nullptr);
        CHECK(same_bytes(a.host(), all_to<bf16>(std::vector<float>(values.begin(), values.begin() + 60))));
        const auto got = b.host(), none = zeros.host();
        for (size_t i = 0; i < 24; i++) {
            const float want = i % 8 < 5 ? 0.25f * values[70 + i / 8 * 5 + i % 8] : NAN;
            CHECK(std::isnan(want) ? std::isnan(to_float(got[i])) : got[i].bits == to_bf16(want).bits);
            CHECK(std::isnan(want) ? std::isnan(to_float(none[i])) : none[i].bits == 0);
        }
    });
}

// The CPU engine's mask, times x.
std::vector<float> dropped(const cft::dropout &drop, int module, const std::vector<float> &x, const std::vector<int32_t> &tokens, int64_t columns) {
    std::vector<float> y(x.size()), mask(static_cast<size_t>(columns));
    for (size_t i = 0; i < tokens.size(); i++) {
        cpu::rows().dropout_mask(drop.seed, cpu::dropout_counter(drop.micro_batch, drop.layer, module, uint32_t(tokens[i])),
                                 cpu::dropout_threshold(drop.probability), 1.0f / (1.0f - drop.probability), 0, size_t(columns), mask.data());
        for (size_t j = 0; j < size_t(columns); j++) {
            y[i * size_t(columns) + j] = x[i * size_t(columns) + j] * mask[j];
        }
    }
    return y;
}

void test_dropout() {
    in_both_orders("dropout", [] {
        const int64_t            columns = 101, n = 6;
        const cft::dropout       drop    = {0.3f, 0x123456789abcdefull, 0x500000007ull, 21};
        const std::vector<float> x       = random_rounded(size_t(n * columns));
        std::vector<int32_t>     all     = {0, 1, 2, 3, 4, 5}, some = {7, 2, 900, 3, 4, 1000000};
        on_device<bf16>          dx(all_to<bf16>(x)), y(x.size());
        on_device<float>         z(x);
        on_device<int32_t>       rows(some);
        cuda::dropout(drop, 3, dx.data(), columns, nullptr, n, columns, false, y.data(), columns, nullptr);
        CHECK(same_bytes(y.host(), all_to<bf16>(dropped(drop, 3, x, all, columns))));
        cuda::dropout(drop, 5, dx.data(), columns, rows.data(), n, columns, true, z.data(), columns, nullptr);
        std::vector<float> want = dropped(drop, 5, x, some, columns);
        int                zeros = 0;
        for (size_t i = 0; i < want.size(); i++) {
            zeros += want[i] == 0;
            want[i] += x[i];
        }
        CHECK(same_bytes(z.host(), want));
        CHECK(zeros > 606 / 5 && zeros < 606 / 2);
        // Rows from the fourth on alone are those rows of all.
        const cft::dropout later = {drop.probability, drop.seed, drop.micro_batch, drop.layer, 4};
        on_device<bf16>    tail(size_t(2 * columns));
        cuda::dropout(later, 3, dx.data() + 4 * columns, columns, nullptr, 2, columns, false, tail.data(), columns, nullptr);
        const auto whole = y.host();
        CHECK(same_bytes(tail.host(), std::vector<bf16>(whole.begin() + 4 * columns, whole.end())));
    });
}

void test_add_by_token() {
    // A block's threads and more columns than these; a token with many rows, and one with one.
    for (const size_t columns : {size_t(8), size_t(264)}) {
        in_both_orders("add by token, " + std::to_string(columns), [&] {
            const size_t               t = 50, ld = columns + 8, vocab = 11;
            const std::vector<float>   from = random_floats(t * ld), before = random_floats(vocab * columns);
            const std::vector<int32_t> distinct = {2, 5, 10}, starts = {0, 1, 40, 50};
            std::vector<int32_t>       order(t);
            for (size_t i = 0; i < t; i++) {
                order[i] = int32_t(i * 7 % t);
            }
            on_device<float>   device_from(from), to(before);
            on_device<int32_t> device_distinct(distinct), device_starts(starts), device_order(order);
            cuda::add_by_token(device_from.data(), int64_t(ld), device_distinct.data(), device_starts.data(), device_order.data(), 3, int64_t(columns), to.data(),
                               int64_t(columns), nullptr);
            std::vector<double> want(before.begin(), before.end()), size(want.size(), 1e-30);
            for (size_t i = 0; i < distinct.size(); i++) {
                for (int32_t j = starts[i]; j < starts[i + 1]; j++) {
                    for (size_t c = 0; c < columns; c++) {
                        const double x = double(from[size_t(order[size_t(j)]) * ld + c]);
                        want[size_t(distinct[i]) * columns + c] += x, size[size_t(distinct[i]) * columns + c] += std::fabs(x);
                    }
                }
            }
            const auto got = to.host();
            for (size_t i = 0; i < got.size(); i++) {
                CHECK_NEAR(got[i], want[i], size[i] + std::fabs(want[i]), 1e-6);
            }
        });
    }
}

void test_adamw() {
    in_both_orders("AdamW", [] {
        const size_t             n = 1003;
        const std::vector<float> value = random_floats(n), gradient = random_floats(n, 3), m = random_floats(n, 0.1f);
        std::vector<float>       v = random_floats(n, 0.1f);
        for (float &x : v) {
            x *= x;
        }
        const cft::adamw_step s = {0.037f, 2e-4f, 0.9f, 0.999f, 1e-8f, 0.01f, 0.271f, 0.003f};
        auto                  p = value, m2 = m, v2 = v;
        // The generic kernels round step by step; other instruction sets fuse.
        cpu::rows_of(cpu::isa::generic)->adamw(p.data(), gradient.data(), m2.data(), v2.data(), n, s.gradient_scale, s.lr, s.beta1, s.beta2, s.eps, s.weight_decay,
                                    s.correction1, s.correction2);
        on_device<float> dp(value), dg(gradient), dm(m), dv(v), scale(std::vector<float>{0.5f});
        cuda::adamw(s, nullptr, dp.data(), dg.data(), dm.data(), dv.data(), int64_t(n), nullptr);
        CHECK(same_bytes(dm.host(), m2));
        CHECK(same_bytes(dv.host(), v2));
        // The device's root and quotient are rounded correctly, as the CPU's are.
        CHECK(same_bytes(dp.host(), p));
        CHECK(same_bytes(dg.host(), gradient));

        // A factor on the device is the same as one in the step.
        cft::adamw_step twice = s;
        twice.gradient_scale *= 2;
        on_device<float> ep(value), em(m), ev(v);
        cuda::adamw(twice, scale.data(), ep.data(), dg.data(), em.data(), ev.data(), int64_t(n), nullptr);
        CHECK(same_bytes(ep.host(), p));
    });
}

void test_norm() {
    for (const size_t n : {size_t(1), size_t(1000), size_t(70001)}) {
        in_both_orders("sum of squares of " + std::to_string(n), [&] {
            const std::vector<float> x = random_floats(n);
            on_device<float>         dx(x);
            on_device<double>        partials(cuda::norm_partials), sum(1);
            cuda::sum_of_squares(dx.data(), int64_t(n), partials.data(), sum.data(), nullptr);
            const double want = cpu::rows().sum_of_squares(x.data(), n);
            CHECK_NEAR(sum.host()[0], want, want, 1e-13);
        });
    }
}

template <typename T> void find(float bad) {
    std::vector<float> x = random_floats(777);
    on_device<int32_t> flag(std::vector<int32_t>{0});
    on_device<T>       good(all_to<T>(x));
    cuda::find_non_finite(good.data(), 777, flag.data(), nullptr);
    CHECK(flag.host()[0] == 0);
    x[776] = bad;
    on_device<T> dx(all_to<T>(x));
    cuda::find_non_finite(dx.data(), 777, flag.data(), nullptr);
    CHECK(flag.host()[0] == 1);
}

void test_non_finite() {
    in_both_orders("non-finite", [] {
        for (const float bad : {INFINITY, -INFINITY, NAN}) {
            find<float>(bad);
            find<bf16>(bad);
        }
    });
}

} // namespace

int main() {
    test_copies();
    test_dropout();
    test_add_by_token();
    test_adamw();
    test_norm();
    test_non_finite();
    return finish("test_cuda_adapters");
}
