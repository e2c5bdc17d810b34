// test_cuda_gains.cpp - the CUDA kernels of DoRA against plain loops in double precision.
#include "cuda_fixture.h"

using namespace checks;
namespace cuda = cft::cuda;

namespace {

constexpr double f32_tolerance = 1e-5;

void test_scale() {
    in_both_orders("scale columns", [] {
        const size_t             n = 7, columns = 88, ld = 96;
        const std::vector<float> x = random_floats(n * columns), y = random_rounded(n * ld), gains = random_floats(columns);
        on_device<bf16>          dy(all_to<bf16>(y));
        on_device<float>         dx(x), dg(gains);
        cuda::scale_columns(dx.data(), dg.data(), int64_t(n), int64_t(columns), dy.data(), int64_t(ld), nullptr);
        const auto got = dy.host();
        for (size_t i = 0; i < n * ld; i++) { // one rounding to bf16; what lies behind the columns stays
            const size_t column = i % ld;
            CHECK(got[i].bits == to_bf16(column < columns ? x[i / ld * columns + column] * gains[column] : y[i]).bits);
        }
    });
}

void test_backward() {
    // Rows: fewer than slices, so that some slices are empty; more than a block takes at once. Columns: not whole blocks of 64.
    for (const size_t n : {size_t(1), size_t(5), size_t(1203)}) {
        for (const size_t columns : {size_t(8), size_t(200)}) {
            in_both_orders("gains backward, " + std::to_string(n) + " by " + std::to_string(columns), [&] {
                const size_t             ld_y = columns + 8, ld_dy = columns + 24;
                const std::vector<float> y = random_rounded(n * ld_y), dy = random_rounded(n * ld_dy), gains = random_floats(columns), before = random_floats(columns);
                std::vector<float>       norms = random_floats(columns);
                for (float &x : norms) {
                    x = 0.5f + std::fabs(x);
                }
                on_device<bf16>  device_y(all_to<bf16>(y)), device_dy(all_to<bf16>(dy));
                on_device<float> device_gains(gains), device_norms(norms), partials(columns * cuda::gain_slices), sums(before);
                cuda::gain_backward(device_y.data(), int64_t(ld_y), device_gains.data(), device_norms.data(), int64_t(n), int64_t(columns), device_dy.data(),
                                    int64_t(ld_dy), partials.data(), sums.data(), nullptr);
                const auto scaled = device_dy.host();
                for (size_t i = 0; i < n * ld_dy; i++) {
                    CHECK(scaled[i].bits == to_bf16(i % ld_dy < columns ? dy[i] * gains[i % ld_dy] : dy[i]).bits);
                }
                const auto got = sums.host();
                for (size_t j = 0; j < columns; j++) {
                    double want = 0, size = 0;
                    for (size_t i = 0; i < n; i++) {
                        const double product = double(y[i * ld_y + j]) * double(dy[i * ld_dy + j]);
                        want += product, size += std::fabs(product);
                    }
                    CHECK_NEAR(got[j], double(before[j]) + want / double(norms[j]), std::fabs(double(before[j])) + size / double(norms[j]), f32_tolerance);
                }
            });
        }
    }
}

// From |W|, W Aᵀ and A Aᵀ it finds the lengths of rows of W + scale B A that are written out.
void test_rows() {
    for (const size_t rank : {size_t(8), size_t(40), size_t(72)}) {
        in_both_orders("lengths of rows, rank " + std::to_string(rank), [&] {
            const size_t             n = 37, inputs = 90;
            const double             scale = 1.75;
            const std::vector<float> w = random_floats(n * inputs), a = random_floats(rank * inputs), b = random_floats(n * rank, 0.2f), magnitudes = random_floats(n);
            const auto               along = [&](const std::vector<float> &x, size_t i, const std::vector<float> &y, size_t j) {
                double s = 0;
                for (size_t c = 0; c < inputs; c++) {
                    s += double(x[i * inputs + c]) * double(y[j * inputs + c]);
                }
                return s;
            };
            std::vector<float> lengths(n), w_at(n * rank), a_at(rank * rank);
            for (size_t i = 0; i < n; i++) {
                lengths[i] = float(std::sqrt(along(w, i, w, i)));
                for (size_t r = 0; r < rank; r++) {
                    w_at[i * rank + r] = float(along(w, i, a, r));
                }
            }
            for (size_t i = 0; i < rank * rank; i++) {
                a_at[i] = float(along(a, i / rank, a, i % rank));
            }
            on_device<float> dl(lengths), dm(magnitudes), db(b), dwa(w_at), daa(a_at), norms(n), gains(n);
            cuda::row_gains({dl.data(), dm.data(), db.data(), dwa.data(), daa.data(), int64_t(rank), float(scale)}, int64_t(n), norms.data(), gains.data(), nullptr);
            const auto got = norms.host(), factors = gains.host();
            for (size_t i = 0; i < n; i++) {
                double square = 0;
                for (size_t c = 0; c < inputs; c++) {
                    double x = double(w[i * inputs + c]);
                    for (size_t r = 0; r < rank; r++) {
                        x += scale * double(b[i * rank + r]) * double(a[r * inputs + c]);
                    }
                    square += x * x;
                }
                CHECK_NEAR(got[i], std::sqrt(square), std::sqrt(square), f32_tolerance);
                CHECK(factors[i] == magnitudes[i] / got[i]);
            }
        });
    }
    // Of a B of zeros it is the length that was given, to the bit.
    in_both_orders("lengths of rows, B zero", [] {
        const size_t             n = 9, rank = 8;
        const std::vector<float> lengths = random_floats(n, 3), w_at = random_floats(n * rank), a_at = random_floats(rank * rank);
        std::vector<float>       positive = lengths;
        for (float &x : positive) {
            x = std::fabs(x) + 0.1f;
        }
        on_device<float> dl(positive), db(std::vector<float>(n * rank, 0.0f)), dwa(w_at), daa(a_at), norms(n), gains(n);
        cuda::row_gains({dl.data(), dl.data(), db.data(), dwa.data(), daa.data(), int64_t(rank), 2}, int64_t(n), norms.data(), gains.data(), nullptr);
        CHECK(same_bytes(norms.host(), positive));
        CHECK(same_bytes(gains.host(), std::vector<float>(n, 1.0f)));
    });
}

} // namespace

int main() {
    test_scale();
    test_backward();
    test_rows();
    return finish("test_cuda_gains");
}
