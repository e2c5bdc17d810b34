// test_cuda_gated_product.cpp - gated units' way back in one pass with what its results add to adapters: the former beside gated_backward, which has a
// reference of its own (test_cuda_rows), the latter against double precision; all ranks, sizes that are no multiples of a tile, more rows than
// scratch has room for; the same bits in either order and from run to run.
#include "cuda/gated_product.h"
#include "cuda_fixture.h"

using namespace cft::cuda;
using namespace checks;

namespace {

// A step of bf16's, should a compiler have fused what it had not elsewhere; and what is small beside the largest.
constexpr double rounding = 1.0 / 128, least = 1e-3;
constexpr double f32_tolerance = 1e-5, bf16_tolerance = 1.0 / 256;

struct wanted {
    bool act = false, over_d_act = false; // in d_act's place
};

struct results {
    std::vector<bf16>  dy, act;
    std::vector<float> d_b;
};

// unit is gates and ups side by side, each with an adapter, on the device. What nobody may read is NaN.
class unit {
  public:
    unit(bool gelu, int64_t n, int64_t columns, int64_t gate_rank, int64_t up_rank)
        : gelu_(gelu), n_(n), columns_(columns), ranks_{gate_rank, up_rank}, ld_dy_(2 * columns + gate_rank + up_rank + 8), ld_d_(columns + 16),
          ld_b_(gate_rank + up_rank + 16), ld_h_(gate_rank + up_rank + 24) {
        dy_ = rows(n, ld_dy_, 2 * columns), d_act_ = rows(n, ld_d_, columns), h_ = rows(n, ld_h_, gate_rank + up_rank);
        b_  = std::vector<float>(size_t(2 * columns * ld_b_), NAN);
        for (int64_t row = 0; row < 2 * columns; row++) {
            const int64_t of = row / columns;
            const auto    values = random_rounded(size_t(ranks_[of]));
            std::copy(values.begin(), values.end(), b_.begin() + row * ld_b_ + of * gate_rank);
        }
        d_b_ = random_floats(size_t(columns * (gate_rank + up_rank)));
    }

    results run(wanted want, int blocks, size_t scratch_bytes) const {
        on_device<bf16>  dy(all_to<bf16>(dy_)), d_act(all_to<bf16>(d_act_)), act(size_t(n_ * ld_d_)), b(all_to<bf16>(b_)), h(all_to<bf16>(h_));
        on_device<float> d_b(d_b_);
        bf16 *const      to = !want.act ? nullptr : want.over_d_act ? d_act.data() : act.data();
        gated_gradient   g{gelu_, n_, columns_, d_act.data(), ld_d_, dy.data(), ld_dy_, to, ld_d_, {}, ld_b_, ld_h_};
        each([&](size_t i, int64_t rank) {
            g.adapters[i] = {ranks_[i], scales[i], b.data() + int64_t(i) * columns_ * ld_b_ + rank, h.data() + rank, dy.data() + 2 * columns_ + rank,
                             d_b.data() + columns_ * rank};
        });
        const size_t     enough = gated_scratch(g, blocks), bytes = scratch_bytes > 0 ? scratch_bytes : enough;
        on_device<float> scratch(bytes / sizeof(float));
        CHECK(scratch_bytes < enough);
        gated_backward_adapters(g, scratch.data(), bytes, nullptr, blocks);
        return {dy.host(), want.over_d_act ? d_act.host() : act.host(), d_b.host()};
    }

    void check(const results &got, wanted w) const {
        on_device<bf16> dy(all_to<bf16>(dy_)), d_act(all_to<bf16>(d_act_)), act(size_t(n_ * ld_d_));
        bf16 *const     gate = dy.data(), *const up = gate + columns_;
        gated_backward(gelu_, d_act.data(), ld_d_, gate, ld_dy_, up, ld_dy_, n_, columns_, gate, ld_dy_, up, ld_dy_, act.data(), ld_d_, nullptr);
        const auto want = dy.host();
        CHECK_NEAR(worst_of(got.dy, want, ld_dy_, 0, 2 * columns_), 0, 1, rounding);
        if (w.act) {
            CHECK_NEAR(worst_of(got.act, act.host(), ld_d_, 0, columns_), 0, 1, rounding);
        }
        bool same = true; // what lies behind
        for (int64_t i = 0; i < n_; i++) {
            for (int64_t c = 2 * columns_ + ranks_[0] + ranks_[1]; c < ld_dy_; c++) {
                same = same && got.dy[size_t(i * ld_dy_ + c)].bits == to_bf16(dy_[size_t(i * ld_dy_ + c)]).bits;
            }
        }
        CHECK(same);
#if !defined(__CUDACC__)
        for (int64_t i = 0; i < n_; i++) { // one compiler, which fuses nothing: the same bits
            same = same && std::memcmp(&got.dy[size_t(i * ld_dy_)], &want[size_t(i * ld_dy_)], size_t(2 * columns_) * sizeof(bf16)) == 0;
        }
        CHECK(same);
#endif
        check_adapters(got);
    }

  private:
    static constexpr float scales[2] = {0.375f, 1.375f};

    template <typename F> void each(F &&f) const {
        for (size_t i = 0; i < 2; i++) {
            f(i, i == 0 ? 0 : ranks_[0]);
        }
    }
    static std::vector<float> rows(int64_t n, int64_t ld, int64_t columns) {
        std::vector<float> all = random_rounded(size_t(n * ld));
        for (int64_t i = 0; i < n; i++) {
            std::fill(all.begin() + i * ld + columns, all.begin() + (i + 1) * ld, NAN);
        }
        return all;
    }

    // u and d_b of the gradients that the pass has left.
    void check_adapters(const results &r) const {
        const auto dy = all_to_float(r.dy);
        double     worst_u = 0, worst_b = 0;
        const auto worse = [](double &worst, double error, double allowed) { worst = std::isnan(error) ? INFINITY : std::max(worst, error / (allowed + 1e-30)); };
        each([&](size_t of, int64_t rank) {
            const int64_t first = int64_t(of) * columns_;
            for (int64_t j = 0; j < ranks_[of]; j++) {
                for (int64_t i = 0; i < n_; i++) {
                    double want = 0, size = 0;
                    for (int64_t c = first; c < first + columns_; c++) {
                        const double x = double(dy[size_t(i * ld_dy_ + c)]) * double(b_[size_t(c * ld_b_ + rank + j)]);
                        want += x, size += std::fabs(x);
                    }
                    worse(worst_u, std::fabs(double(dy[size_t(i * ld_dy_ + 2 * columns_ + rank + j)]) - want), bf16_tolerance * std::fabs(want) + f32_tolerance * size);
                }
                for (int64_t c = 0; c < columns_; c++) {
                    double want = 0, size = 0;
                    for (int64_t i = 0; i < n_; i++) {
                        const double x = double(scales[of]) * double(dy[size_t(i * ld_dy_ + first + c)]) * double(h_[size_t(i * ld_h_ + rank + j)]);
                        want += x, size += std::fabs(x);
                    }
                    const size_t to = size_t(columns_ * rank + c * ranks_[of] + j);
                    worse(worst_b, std::fabs(double(r.d_b[to]) - double(d_b_[to]) - want), f32_tolerance * (size + std::fabs(double(d_b_[to]))));
                }
            }
        });
        CHECK_NEAR(worst_u, 0, 1, 1);
        CHECK_NEAR(worst_b, 0, 1, 1);
    }
    // Differences over what the two are in size, of columns [begin, end).
    double worst_of(const std::vector<bf16> &a, const std::vector<bf16> &b, int64_t ld, int64_t begin, int64_t end) const {
        double worst = 0, size = 0;
        for (int64_t i = 0; i < n_; i++) {
            for (int64_t c = begin; c < end; c++) {
                size = std::max(size, std::fabs(double(to_float(b[size_t(i * ld + c)]))));
            }
        }
        for (int64_t i = 0; i < n_; i++) {
            for (int64_t c = begin; c < end; c++) {
                const double x = double(to_float(a[size_t(i * ld + c)])), y = double(to_float(b[size_t(i * ld + c)])), d = std::fabs(x - y) / (std::fabs(y) + least * size);
                worst = std::isnan(d) ? INFINITY : std::max(worst, d);
            }
        }
        return worst;
    }

    bool               gelu_;
    int64_t            n_, columns_, ranks_[2], ld_dy_, ld_d_, ld_b_, ld_h_;
    std::vector<float> dy_, d_act_, b_, h_, d_b_;
};

void test(const std::string &name, bool gelu, int64_t n, int64_t columns, int64_t gate_rank, int64_t up_rank, int blocks = gated_product_blocks, size_t scratch_bytes = 0) {
    std::vector<results> seen; // of both orders
    in_both_orders("gated units and adapters: " + name, [&] {
        const unit x(gelu, n, columns, gate_rank, up_rank);
        for (const wanted w : {wanted{}, wanted{true, false}, wanted{true, true}}) {
            const results got = x.run(w, blocks, scratch_bytes);
            x.check(got, w);
            CHECK(seen.empty() || (same_bytes(got.dy, seen[0].dy) && same_bytes(got.d_b, seen[0].d_b)));
            seen.push_back(got);
        }
        if (blocks != gated_product_blocks || scratch_bytes > 0) { // of u, rows know nothing of one another
            CHECK(same_bytes(seen[0].dy, x.run({}, gated_product_blocks, 0).dy));
        }
    });
}

} // namespace

int main() {
    for (const bool gelu : {false, true}) {
        test(gelu ? "GELU" : "SiLU", gelu, 37, 72, 16, 16);
    }
    test("ranks that differ", false, 20, 264, 16, 8);
    test("one row, one column's width", false, 1, 8, 8, 8);
    test("a row and a column less than tiles", true, 63, 248, 8, 8);
    test("a row and a column more", false, 65, 264, 16, 8);
    test("more strips, slices", false, 300, 520, 16, 8);
    test("two slices", true, 300, 264, 8, 16, 4);
    // Room for 48 rows of two maps' two strips, and for all of d_b's sums: 300 rows in seven turns.
    test("little scratch", false, 300, 264, 16, 16, 2, (3 * 4 * 256 + 4 * 256 * 16) * sizeof(float));
    return finish("test_cuda_gated_product");
}
