// test_cuda_gated_product.cpp - gated units' way back in one pass with what its results add to adapters, beside the kernels that do the same one after
// the other, which have references of their own: gated_backward (test_cuda_rows) and multiply_adapters (test_cuda_adapter_product).
#include "cuda/adapter_product.h"
#include "cuda_fixture.h"

using namespace cft::cuda;
using namespace checks;

namespace {

// A step of bf16's, should a compiler have fused what it had not elsewhere; and what is small beside the largest.
constexpr double rounding = 1.0 / 128, least = 1e-3;

struct wanted {
    bool act = false, over_d_act = false, d_b = true; // act in d_act's place
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
        const auto       p = product_of(dy, b, h, d_b, true, want.d_b);
        const size_t     bytes = scratch_bytes > 0 ? scratch_bytes : adapter_scratch(p, blocks);
        on_device<float> scratch(bytes / sizeof(float));
        bf16 *const      to = !want.act ? nullptr : want.over_d_act ? d_act.data() : act.data();
        gated_backward_adapters({gelu_, d_act.data(), ld_d_, dy.data(), to, ld_d_}, p, scratch.data(), bytes, nullptr, blocks);
        return {dy.host(), want.over_d_act ? d_act.host() : act.host(), d_b.host()};
    }

    // The same one after the other; from dy, where that is not empty, as gated_backward would have left it.
    results apart(const std::vector<bf16> &from, int blocks, size_t scratch_bytes) const {
        on_device<bf16>  dy(from.empty() ? all_to<bf16>(dy_) : from), d_act(all_to<bf16>(d_act_)), act(size_t(n_ * ld_d_)), b(all_to<bf16>(b_)), h(all_to<bf16>(h_));
        on_device<float> d_b(d_b_);
        bf16 *const      gate = dy.data(), *const up = gate + columns_;
        if (from.empty()) {
            gated_backward(gelu_, d_act.data(), ld_d_, gate, ld_dy_, up, ld_dy_, n_, columns_, gate, ld_dy_, up, ld_dy_, act.data(), ld_d_, nullptr);
        }
        const auto       p = product_of(dy, b, h, d_b, true, true);
        const size_t     bytes = scratch_bytes > 0 ? scratch_bytes : adapter_scratch(p, blocks);
        on_device<float> scratch(bytes / sizeof(float));
        multiply_adapters(p, scratch.data(), bytes, nullptr, blocks);
        return {dy.host(), act.host(), d_b.host()};
    }

    void check(const results &got, const results &want, wanted w) const {
        CHECK_NEAR(worst_of(got.dy, want.dy, ld_dy_, 0, 2 * columns_), 0, 1, rounding);
        CHECK_NEAR(worst_of(got.dy, want.dy, ld_dy_, 2 * columns_, 2 * columns_ + ranks_[0] + ranks_[1]), 0, 1, rounding);
        if (w.act) {
            CHECK_NEAR(worst_of(got.act, want.act, ld_d_, 0, columns_), 0, 1, rounding);
        }
        bool same = true; // what lies behind
        for (int64_t i = 0; i < n_; i++) {
            for (int64_t c = 0; c < ld_dy_; c++) {
                const size_t at = size_t(i * ld_dy_ + c);
                same = same && (c < 2 * columns_ + ranks_[0] + ranks_[1] || got.dy[at].bits == to_bf16(dy_[at]).bits);
            }
        }
        CHECK(same);
#if !defined(__CUDACC__)
        for (int64_t i = 0; i < n_; i++) { // one compiler, which fuses nothing: the same bits
            same = same && std::memcmp(&got.dy[size_t(i * ld_dy_)], &want.dy[size_t(i * ld_dy_)], size_t(2 * columns_) * sizeof(bf16)) == 0;
        }
        CHECK(same);
#endif
    }

    bool d_b_is_as_before(const results &r) const { return same_bytes(r.d_b, d_b_); }

  private:
    static std::vector<float> rows(int64_t n, int64_t ld, int64_t columns) {
        std::vector<float> all = random_rounded(size_t(n * ld));
        for (int64_t i = 0; i < n; i++) {
            std::fill(all.begin() + i * ld + columns, all.begin() + (i + 1) * ld, NAN);
        }
        return all;
    }
    adapter_product product_of(on_device<bf16> &dy, on_device<bf16> &b, on_device<bf16> &h, on_device<float> &d_b, bool u, bool with_d_b) const {
        adapter_product p{};
        p.n = n_, p.dy = dy.data(), p.ld_dy = ld_dy_, p.ld_b = ld_b_, p.ld_h = ld_h_;
        for (int64_t i = 0; i < 2; i++) {
            const int64_t rank = i * ranks_[0];
            p.maps[p.n_maps++] = {i * columns_, columns_, ranks_[i], 0.375f + float(i), b.data() + i * columns_ * ld_b_ + rank, with_d_b ? h.data() + rank : nullptr,
                                  u ? dy.data() + 2 * columns_ + rank : nullptr, d_b.data() + columns_ * rank};
        }
        return p;
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

void test(const std::string &name, bool gelu, int64_t n, int64_t columns, int64_t gate_rank, int64_t up_rank, int blocks = adapter_product_blocks, size_t scratch_bytes = 0) {
    std::vector<results> seen; // of both orders
    in_both_orders("gated units and adapters: " + name, [&] {
        const unit    x(gelu, n, columns, gate_rank, up_rank);
        const results want = x.apart({}, blocks, scratch_bytes);
        for (const wanted w : {wanted{}, wanted{true, false}, wanted{true, true}}) {
            const results got = x.run(w, blocks, scratch_bytes);
            x.check(got, want, w);
            CHECK(same_bytes(got.d_b, x.apart(got.dy, blocks, scratch_bytes).d_b)); // of the same dy, the same bits
            CHECK(seen.empty() || (same_bytes(got.dy, seen[0].dy) && same_bytes(got.d_b, seen[0].d_b)));
            seen.push_back(got);
        }
        const results u = x.run({false, false, false}, blocks, scratch_bytes);
        CHECK(same_bytes(u.dy, seen[0].dy) && x.d_b_is_as_before(u));
    });
}

} // namespace

int main() {
    for (const bool gelu : {false, true}) {
        test(gelu ? "GELU" : "SiLU", gelu, 37, 72, 16, 16);
    }
    test("ranks that differ", false, 20, 264, 16, 8);
    test("one row", false, 1, 8, 8, 8);
    test("more strips, slices", false, 300, 520, 16, 8);
    test("two slices", true, 300, 264, 8, 16, 4);
    test("little scratch", false, 300, 264, 16, 16, 2, (3 * 4 * 256 + 2 * 512 * 16) * sizeof(float));
    return finish("test_cuda_gated_product");
}
