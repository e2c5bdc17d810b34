// test_cuda_adapter_product.cpp - both products of adapted maps in one pass over dy, against double precision: several maps in a dy, all ranks, sizes
// that are no multiples of a tile, more rows than scratch has room for; the same bits in either order and from run to run.
#include "cuda/adapter_product.h"
#include "cuda_fixture.h"

using namespace cft::cuda;
using namespace checks;

namespace {

constexpr double f32_tolerance = 1e-5, bf16_tolerance = 1.0 / 256;

struct map_sizes {
    int64_t gap, columns, rank; // columns without an adapter before it
};

struct results {
    std::vector<bf16>  dy;
    std::vector<float> d_b;
};

// products is dy, b, h and d_b of maps side by side, on the device. What nobody may read is NaN.
class products {
  public:
    products(int64_t n, const std::vector<map_sizes> &maps) : n_(n), maps_(maps) {
        for (const map_sizes &m : maps) {
            width_ += m.gap + m.columns, ranks_ += m.rank, n_d_b_ += m.columns * m.rank;
        }
        width_ += 16; // of which the last map is not the end
        ld_dy_ = width_ + ranks_ + 8, ld_b_ = ranks_ + 24, ld_h_ = ranks_ + 40;
        dy_.assign(size_t(n * ld_dy_), NAN), b_.assign(size_t(width_ * ld_b_), NAN), h_ = random_rounded(size_t(n * ld_h_));
        d_b_ = random_floats(size_t(n_d_b_));
        each([&](const map_sizes &m, int64_t column, int64_t rank, int64_t) {
            fill(dy_, ld_dy_, column, n, m.columns);
            fill(b_, ld_b_, column * ld_b_ + rank, m.columns, m.rank);
        });
        for (int64_t row = 0; row < n; row++) {
            std::fill(h_.begin() + row * ld_h_ + ranks_, h_.begin() + (row + 1) * ld_h_, NAN);
        }
    }

    results run(bool u, bool d_b, int blocks, size_t scratch_bytes) const {
        on_device<bf16>  dy(all_to<bf16>(dy_)), b(all_to<bf16>(b_)), h(all_to<bf16>(h_));
        on_device<float> sums(d_b_);
        adapter_product  p{};
        p.n = n_, p.dy = dy.data(), p.ld_dy = ld_dy_, p.ld_b = ld_b_, p.ld_h = ld_h_;
        each([&](const map_sizes &m, int64_t column, int64_t rank, int64_t at) {
            p.maps[p.n_maps++] = {column, m.columns, m.rank, scale, b.data() + column * ld_b_ + rank, d_b ? h.data() + rank : nullptr,
                                  u ? dy.data() + width_ + rank : nullptr, sums.data() + at};
        });
        const size_t     enough = adapter_scratch(p, blocks);
        on_device<float> scratch((scratch_bytes > 0 ? scratch_bytes : enough) / sizeof(float));
        CHECK(scratch_bytes < enough);
        multiply_adapters(p, scratch.data(), scratch.size() * sizeof(float), nullptr, blocks);
        return {dy.host(), sums.host()};
    }

    void check(const results &r) const {
        const auto after = all_to_float(r.dy), before = all_to_float(all_to<bf16>(dy_));
        double     worst_u = 0, worst_b = 0;
        std::vector<bool> is_u(size_t(ld_dy_), false);
        each([&](const map_sizes &m, int64_t column, int64_t rank, int64_t at) {
            for (int64_t i = 0; i < n_; i++) {
                for (int64_t j = 0; j < m.rank; j++) {
                    double want = 0, size = 0;
                    for (int64_t c = 0; c < m.columns; c++) {
                        const double x = double(dy_[size_t(i * ld_dy_ + column + c)]) * double(b_[size_t((column + c) * ld_b_ + rank + j)]);
                        want += x, size += std::fabs(x);
                    }
                    const double error = std::fabs(double(after[size_t(i * ld_dy_ + width_ + rank + j)]) - want);
                    worst_u = std::max(worst_u, std::isnan(error) ? INFINITY : error / (bf16_tolerance * std::fabs(want) + f32_tolerance * size + 1e-30));
                    is_u[size_t(width_ + rank + j)] = true;
                }
            }
            for (int64_t c = 0; c < m.columns; c++) {
                for (int64_t j = 0; j < m.rank; j++) {
                    double want = 0, size = 0;
                    for (int64_t i = 0; i < n_; i++) {
                        const double x = double(scale) * double(dy_[size_t(i * ld_dy_ + column + c)]) * double(h_[size_t(i * ld_h_ + rank + j)]);
                        want += x, size += std::fabs(x);
                    }
                    const size_t to    = size_t(at + c * m.rank + j);
                    const double error = std::fabs(double(r.d_b[to]) - double(d_b_[to]) - want);
                    worst_b = std::max(worst_b, std::isnan(error) ? INFINITY : error / (f32_tolerance * (size + std::fabs(double(d_b_[to])))));
                }
            }
        });
        CHECK_NEAR(worst_u, 0, 1, 1);
        CHECK_NEAR(worst_b, 0, 1, 1);
        bool same = true; // all that is not u
        for (size_t i = 0; i < r.dy.size(); i++) {
            same = same && (is_u[i % size_t(ld_dy_)] || r.dy[i].bits == to_bf16(dy_[i]).bits);
        }
        CHECK(same);
    }

    // Where dy has room for u, and nothing else.
    bool same_u(const results &a, const results &b) const {
        bool same = true;
        for (size_t i = 0; i < a.dy.size(); i++) {
            same = same && (int64_t(i) % ld_dy_ < width_ || a.dy[i].bits == b.dy[i].bits);
        }
        return same;
    }
    bool untouched(const results &r) const { return same_bytes(r.dy, all_to<bf16>(dy_)); }
    bool unchanged(const results &r) const { return same_bytes(r.d_b, d_b_); }

  private:
    static constexpr float scale = 0.375f;

    template <typename F> void each(F &&f) const {
        int64_t column = 0, rank = 0, at = 0;
        for (const map_sizes &m : maps_) {
            column += m.gap;
            f(m, column, rank, at);
            column += m.columns, rank += m.rank, at += m.columns * m.rank;
        }
    }
    static void fill(std::vector<float> &to, int64_t ld, int64_t at, int64_t rows, int64_t columns) {
        const auto values = random_rounded(size_t(rows * columns));
        for (int64_t i = 0; i < rows; i++) {
            std::copy(values.begin() + i * columns, values.begin() + (i + 1) * columns, to.begin() + at + i * ld);
        }
    }

    int64_t                n_, width_ = 0, ranks_ = 0, n_d_b_ = 0, ld_dy_, ld_b_, ld_h_;
    std::vector<map_sizes> maps_;
    std::vector<float>     dy_, b_, h_, d_b_;
};

bool same(const results &a, const results &b) { return same_bytes(a.dy, b.dy) && same_bytes(a.d_b, b.d_b); }

void test(const std::string &name, int64_t n, const std::vector<map_sizes> &maps, int blocks = adapter_product_blocks, size_t scratch_bytes = 0) {
    std::vector<results> seen; // of both orders
    in_both_orders("products of adapters: " + name, [&] {
        const products p(n, maps);
        const results  r = p.run(true, true, blocks, scratch_bytes);
        p.check(r);
        CHECK(same(r, p.run(true, true, blocks, scratch_bytes)));
        // Each of the two alone has the same bits, and leaves the other's place as it was.
        const results u = p.run(true, false, blocks, scratch_bytes), d_b = p.run(false, true, blocks, scratch_bytes);
        CHECK(same_bytes(u.dy, r.dy) && p.unchanged(u));
        CHECK(same_bytes(d_b.d_b, r.d_b) && p.untouched(d_b));
        if (blocks != adapter_product_blocks || scratch_bytes > 0) { // of u, rows know nothing of one another
            CHECK(p.same_u(r, p.run(true, true, adapter_product_blocks, 0)));
        }
        seen.push_back(r);
    });
    CHECK(same(seen[0], seen[1]));
}

} // namespace

int main() {
    for (const int64_t rank : {8, 16}) {
        test("rank " + std::to_string(rank), 37, {{0, 72, rank}});
    }
    test("one row, one column's width", 1, {{0, 8, 8}});
    test("a row less than tiles", 63, {{0, 512, 16}});
    test("a row more", 65, {{0, 520, 16}});
    test("more strips than one, slices", 300, {{0, 1048, 16}});
    test("the same in two slices", 300, {{0, 1048, 16}}, 6);
    test("q, k and v", 50, {{0, 560, 16}, {0, 64, 16}, {0, 64, 16}});
    test("q and v of other ranks, k between them without an adapter", 140, {{0, 520, 8}, {64, 64, 16}});
    test("a map that dy has no columns of", 20, {{16, 48, 16}, {0, 0, 8}, {0, 8, 16}});
    test("four maps", 33, {{0, 16, 8}, {8, 24, 8}, {0, 512, 8}, {0, 8, 8}});
    // Room for 32 rows of three half strips, and for all of d_b's sums: 300 rows in ten turns.
    test("little scratch", 300, {{0, 528, 16}}, 2, (2 * 3 * 256 + 2 * 512 * 16) * sizeof(float));
    return finish("test_cuda_adapter_product");
}
