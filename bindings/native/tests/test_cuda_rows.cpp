// test_cuda_rows.cpp - the CUDA kernels that go row by row: norms, rotary embeddings, gates, moves, casts, losses; against plain
// double-precision references, backward ones against finite differences of these.
#include "cuda_fixture.h"
#include "failure.h"

#include <functional>

using namespace checks;
namespace cuda = cft::cuda;

namespace {

// Largest error over largest value. F32 results differ by rounding of sums; bf16 ones by half a unit in the last place, 2^-9,
// of the element, and of what was rounded before.
constexpr double f32_tolerance = 1e-5, bf16_tolerance = 5e-3;
// Central differences in double with steps of 1e-4, against F32 or bf16 results.
constexpr double step = 1e-4;

template <typename T> double tolerance_of() { return std::is_same_v<T, float> ? f32_tolerance : bf16_tolerance; }

using vector = std::vector<double>;

vector doubles(const std::vector<float> &v) { return vector(v.begin(), v.end()); }

// d sum(g * f(x)) / dx by central differences.
vector differences(const std::function<vector(const vector &)> &f, const vector &x, const vector &g) {
    vector dx(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        vector up = x, down = x;
        up[i] += step;
        down[i] -= step;
        dx[i] = (dot(f(up), g) - dot(f(down), g)) / (2 * step);
    }
    return dx;
}

// The columns [0, width) of rows that are ld long; CHECKs that the others are as they were: NaN.
template <typename T> std::vector<float> inner(const std::vector<T> &v, int64_t ld, int64_t width) {
    std::vector<float> r;
    for (size_t i = 0; i < v.size(); i++) {
        if (int64_t(i) % ld < width) {
            r.push_back(to_float(v[i]));
        } else {
            CHECK(std::isnan(to_float(v[i])));
        }
    }
    return r;
}

// Puts rows of `width` into rows of ld, NaN between.
std::vector<float> spread(const std::vector<float> &v, int64_t ld, int64_t width) {
    std::vector<float> r(v.size() / size_t(width) * size_t(ld), NAN);
    for (size_t i = 0; i < v.size(); i++) {
        r[i / size_t(width) * size_t(ld) + i % size_t(width)] = v[i];
    }
    return r;
}

// ---- norms

constexpr float eps = 1e-5f;

vector norm_rows(const vector &x, const vector &w) {
    vector       y(x.size());
    const size_t d = w.size();
    for (size_t i = 0; i < x.size(); i += d) {
        double sum = 0;
        for (size_t j = 0; j < d; j++) {
            sum += x[i + j] * x[i + j];
        }
        for (size_t j = 0; j < d; j++) {
            y[i + j] = x[i + j] / std::sqrt(sum / double(d) + double(eps)) * w[j];
        }
    }
    return y;
}

template <typename T> void test_norm(int64_t n, int64_t d) {
    const int64_t            ld = d + 8;
    const std::vector<float> x = all_to_float(all_to<T>(random_floats(size_t(n * d)))), delta = random_rounded(size_t(n * d)), w = random_floats(size_t(d));
    std::vector<float>       added(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        added[i] = to_float(to<T>(x[i] + delta[i]));
    }
    on_device<T>     dx(all_to<T>(x)), sum(x.size());
    on_device<bf16>  dd(all_to<bf16>(delta)), normed(size_t(n * ld));
    on_device<float> dw(w), rstd(static_cast<size_t>(n));

    const cuda::addends<T> alone = {dx.data()}, with_delta = {dx.data(), dd.data()};
    cuda::add_rmsnorm(alone, static_cast<T *>(nullptr), dw.data(), n, d, eps, normed.data(), ld, rstd.data(), nullptr);
    CHECK(worst(inner(normed.host(), ld, d), norm_rows(doubles(x), doubles(w))) <= bf16_tolerance);

    cuda::add_rmsnorm(with_delta, sum.data(), dw.data(), n, d, eps, normed.data(), ld, rstd.data(), nullptr);
    CHECK(same_bytes(sum.host(), all_to<T>(added)));
    const vector want = norm_rows(doubles(added), doubles(w));
    CHECK(worst(inner(normed.host(), ld, d), want) <= bf16_tolerance);
    for (int64_t i = 0; i < n; i++) {
        double s = 0;
        for (int64_t j = 0; j < d; j++) {
            s += double(added[size_t(i * d + j)]) * double(added[size_t(i * d + j)]);
        }
        CHECK_NEAR(rstd.host()[size_t(i)], 1 / std::sqrt(s / double(d) + double(eps)), 1, f32_tolerance);
    }

    // The sum in place of x, or not stored; only the sum. All are the same.
    const std::vector<bf16> before = normed.host();
    on_device<bf16>         again(size_t(n * ld));
    cuda::add_rmsnorm(with_delta, static_cast<T *>(nullptr), dw.data(), n, d, eps, again.data(), ld, static_cast<float *>(nullptr), nullptr);
    CHECK(same_bytes(again.host(), before));
    // Three addends at once are the two, and then the third.
    on_device<T> twice(x.size());
    cuda::add_rmsnorm(cuda::addends<T>{dx.data(), dd.data(), dd.data()}, twice.data(), dw.data(), n, d, eps, again.data(), ld,
                      static_cast<float *>(nullptr), nullptr);
    cuda::add_rmsnorm(with_delta, dx.data(), dw.data(), n, d, eps, static_cast<bf16 *>(nullptr), 0, static_cast<float *>(nullptr), nullptr);
    CHECK(same_bytes(dx.host(), sum.host()));
    cuda::add_rmsnorm(with_delta, dx.data(), dw.data(), n, d, eps, normed.data(), ld, static_cast<float *>(nullptr), nullptr);
    CHECK(same_bytes(twice.host(), dx.host()) && same_bytes(again.host(), normed.host()));
}

// Numbers in halves, on the host: the upper one rounds to nearest and, in the middle, away from 0.
uint32_t bits_of(float v) {
    uint32_t u;
    std::memcpy(&u, &v, sizeof u);
    return u;
}
float from_bits(uint32_t u) {
    float v;
    std::memcpy(&v, &u, sizeof v);
    return v;
}
struct halves_on_device {
    int64_t             d, ld;
    on_device<bf16>     high;
    on_device<uint16_t> low;
    halves_on_device(const std::vector<float> &v, int64_t d_, int64_t ld_) : d(d_), ld(ld_), high(spread_high(v, d_, ld_)), low(lows(v)) {}
    static std::vector<uint16_t> lows(const std::vector<float> &v) {
        std::vector<uint16_t> l(v.size());
        std::transform(v.begin(), v.end(), l.begin(), [](float x) { return uint16_t(bits_of(x)); });
        return l;
    }
    static bf16              rounded(float x) { return bf16{uint16_t(bits_of(x) % 0x10000 < 0x8000 ? bits_of(x) / 0x10000 : bits_of(x) / 0x10000 + 1)}; }
    static std::vector<bf16> spread_high(const std::vector<float> &v, int64_t d, int64_t ld) {
        std::vector<bf16> r(v.size() / size_t(d) * size_t(ld), to<bf16>(NAN));
        for (size_t i = 0; i < v.size(); i++) {
            r[i / size_t(d) * size_t(ld) + i % size_t(d)] = rounded(v[i]);
        }
        return r;
    }
    cuda::split_rows rows() { return {high.data(), ld, low.data()}; }
    // The numbers; CHECKs that upper halves are what they should be.
    std::vector<float> joined() {
        const std::vector<bf16>     h = high.host();
        const std::vector<uint16_t> l = low.host();
        std::vector<float>          v(l.size());
        for (size_t i = 0; i < v.size(); i++) {
            const bf16 up = h[i / size_t(d) * size_t(ld) + i % size_t(d)];
            v[i]          = from_bits((uint32_t(up.bits) - (l[i] >= 0x8000 ? 1u : 0u)) * 0x10000u + l[i]);
            CHECK(std::isnan(v[i]) ? std::isnan(to_float(up)) : up.bits == rounded(v[i]).bits);
        }
        for (size_t i = 0; i < h.size(); i++) {
            CHECK(int64_t(i) % ld < d || std::isnan(to_float(h[i])));
        }
        return v;
    }
};

// The gradient at a norm's input, from what the norm has left.
vector norm_gradient(const vector &y, const vector &w, const vector &rstd, const vector &dy) {
    vector       dx(y.size());
    const size_t d = w.size();
    for (size_t i = 0; i < y.size(); i += d) {
        const double mean = dot(vector(y.begin() + std::ptrdiff_t(i), y.begin() + std::ptrdiff_t(i + d)),
                                vector(dy.begin() + std::ptrdiff_t(i), dy.begin() + std::ptrdiff_t(i + d))) / double(d);
        for (size_t j = 0; j < d; j++) {
            dx[i + j] = rstd[i / d] * (w[j] * dy[i + j] - y[i + j] / w[j] * mean);
        }
    }
    return dx;
}

void test_norm_backward(int64_t n, int64_t d) {
    const int64_t            ld = d + 8, ld_high = d + 16;
    const std::vector<float> x = random_floats(size_t(n * d)), w = random_floats(size_t(d)), dy = random_rounded(size_t(n * d)), before = random_floats(size_t(n * d));
    on_device<float>         dx(x), dw(w), rstd(static_cast<size_t>(n));
    on_device<bf16>          y(size_t(n * ld)), ddy(all_to<bf16>(spread(dy, ld, d))), copy(size_t(n * ld));
    cuda::add_rmsnorm(cuda::addends<float>{dx.data()}, static_cast<float *>(nullptr), dw.data(), n, d, eps, y.data(), ld, rstd.data(), nullptr);
    const cuda::norm_output output = {y.data(), ld, dw.data(), rstd.data()};
    const vector            from_y = norm_gradient(doubles(inner(y.host(), ld, d)), doubles(w), doubles(rstd.host()), doubles(dy));

    // Alone, over anything; then added to what is there, with a copy.
    halves_on_device to(std::vector<float>(x.size(), NAN), d, ld_high);
    cuda::rmsnorm_backward(ddy.data(), ld, output, n, d, false, to.rows(), nullptr, 0, nullptr);
    CHECK(worst(to.joined(), from_y) <= f32_tolerance);
    CHECK(worst(to.joined(), differences([&](const vector &v) { return norm_rows(v, doubles(w)); }, doubles(x), doubles(dy))) <= bf16_tolerance);
    halves_on_device sum(before, d, ld_high);
    cuda::rmsnorm_backward(ddy.data(), ld, output, n, d, true, sum.rows(), copy.data(), ld, nullptr);
    vector want = from_y;
    for (size_t i = 0; i < want.size(); i++) {
        want[i] += double(before[i]);
    }
    CHECK(worst(sum.joined(), want) <= f32_tolerance);
    CHECK(same_bytes(all_to<bf16>(inner(copy.host(), ld, d)), all_to<bf16>(sum.joined())));

    // From numbers in halves to bf16.
    halves_on_device from(before, d, ld_high);
    on_device<bf16>  out(size_t(n * ld));
    cuda::rmsnorm_backward(from.rows(), output, n, d, out.data(), ld, nullptr);
    CHECK(worst(inner(out.host(), ld, d), norm_gradient(doubles(inner(y.host(), ld, d)), doubles(w), doubles(rstd.host()), doubles(before))) <= bf16_tolerance);
}

// Whatever a number's bits are, the halves have all of them; of what is no number, that it is none.
void test_halves() {
    const std::vector<float> odd = {0, from_bits(0x3f808000), from_bits(0x3f818000), from_bits(0xbf808000), from_bits(0x3f807fff), from_bits(0x3f808001), from_bits(0x3fffffff),
                                    from_bits(0x7f7fffff), from_bits(0xff7fffff), from_bits(0x00000001), from_bits(0x80008000), from_bits(0x007fffff), INFINITY, -INFINITY, 3e-39f,
                                    -1.5f};
    std::vector<float>       v = random_floats(1024, 1e3f);
    std::copy(odd.begin(), odd.end(), v.begin());
    const int64_t    d = 520, n = 2, ld = 528;
    v.resize(size_t(n * d), 1.0f);
    const std::vector<float> nothing(v.size(), 0.0f);
    on_device<float>         w(std::vector<float>(size_t(d), 0.5f)), rstd(std::vector<float>{1, 2});
    on_device<bf16>          dy(all_to<bf16>(nothing)), y(all_to<bf16>(random_floats(v.size())));
    halves_on_device         to(v, d, ld);
    const cuda::norm_output  output = {y.data(), d, w.data(), rstd.data()};
    cuda::rmsnorm_backward(dy.data(), d, output, n, d, true, to.rows(), nullptr, 0, nullptr);
    CHECK(same_bytes(to.joined(), v));
    // Rows, as they lie, elsewhere.
    const std::vector<int32_t> rows = {1, 0};
    on_device<int32_t>         index(rows);
    halves_on_device           moved(nothing, d, ld);
    cuda::scatter(to.rows().high, ld, index.data(), n, d, moved.rows().high, ld, nullptr);
    cuda::scatter(to.rows().low, d, index.data(), n, d, moved.rows().low, d, nullptr);
    std::rotate(v.begin(), v.begin() + d, v.end());
    CHECK(same_bytes(moved.joined(), v));

    for (uint32_t nan : {0x7fffffffu, 0xffffffffu, 0x7fc00000u, 0x7f800001u, 0xff800001u, 0x7fff8000u}) {
        halves_on_device into(nothing, d, ld);
        on_device<float> spoilt(std::vector<float>{from_bits(nan), 1});
        cuda::rmsnorm_backward(dy.data(), d, {y.data(), d, w.data(), spoilt.data()}, n, d, true, into.rows(), nullptr, 0, nullptr);
        const std::vector<float> got = into.joined();
        CHECK(std::all_of(got.begin(), got.begin() + d, [](float g) { return std::isnan(g); }));
        CHECK(std::all_of(got.begin() + d, got.end(), [](float g) { return g == 0; }));
    }
}

void test_norms() {
    in_both_orders("norm", [] { // rows of each size of block, and what a thread has of them
        test_norm<float>(3, 576);
        test_norm<bf16>(3, 576);
        test_norm<bf16>(2, 8);
        test_norm<float>(2, 1928);
        test_norm<float>(2, 2560);
        test_norm<float>(2, 5120);
        test_norm<bf16>(1, cuda::widest_norm);
    });
    in_both_orders("norm backward", [] {
        test_norm_backward(2, 40);
        test_norm_backward(1, 1096);
        test_norm_backward(1, 2056);
    });
    in_both_orders("numbers in halves", [] { test_halves(); });
    in_both_orders("norms too wide", [] {
        on_device<float> x(8);
        try {
            cuda::add_rmsnorm(cuda::addends<float>{x.data()}, x.data(), x.data(), 1, cuda::widest_norm + 8, eps, static_cast<bf16 *>(nullptr), 0,
                              static_cast<float *>(nullptr), nullptr);
            CHECK(!"refused");
        } catch (const cft::failure &f) {
            CHECK(f.status == CFT_ERR_UNSUPPORTED);
        }
    });
    for (int head_dim : {64, 80, 256}) {
        in_both_orders("norm of heads of " + std::to_string(head_dim), [&] {
            const int64_t            n = 3, n_head = 3, width = n_head * head_dim, ld = width + 16;
            const std::vector<float> x = random_rounded(size_t(n * width)), w = random_floats(size_t(head_dim)), dy = random_rounded(size_t(n * width));
            on_device<bf16>          dx(all_to<bf16>(spread(x, ld, width))), y(size_t(n * ld)), g(all_to<bf16>(spread(dy, ld, width)));
            on_device<float>         dw(w), rstd(size_t(n * n_head));
            const cuda::head_map m = {int(n_head), head_dim, dw.data(), eps, rstd.data(), 0, false, nullptr, nullptr};
            cuda::turn_heads(m, dx.data(), ld, n, y.data(), ld, nullptr);
            CHECK(worst(inner(y.host(), ld, width), norm_rows(doubles(x), doubles(w))) <= bf16_tolerance);
            cuda::turn_heads_backward(m, g.data(), ld, dx.data(), ld, n, g.data(), ld, nullptr);
            const vector want = differences([&](const vector &v) { return norm_rows(v, doubles(w)); }, doubles(x), doubles(dy));
            CHECK(worst(inner(g.host(), ld, width), want) <= bf16_tolerance);
        });
    }
}

// ---- rotary embeddings

vector rotated(vector x, int64_t width, int n_head, int head_dim, int n_rot, bool halves, const std::vector<int32_t> &positions, const vector &f, double amplitude) {
    const int half = n_rot / 2;
    for (size_t i = 0; i < positions.size(); i++) {
        for (int h = 0; h < n_head; h++) {
            for (int j = 0; j < half; j++) {
                const size_t p = i * size_t(width) + size_t(h * head_dim + (halves ? j : 2 * j)), q = p + size_t(halves ? half : 1);
                const double c = std::cos(positions[i] * f[size_t(j)]) * amplitude, s = std::sin(positions[i] * f[size_t(j)]) * amplitude, a = x[p], b = x[q];
                x[p] = a * c - b * s;
                x[q] = a * s + b * c;
            }
        }
    }
    return x;
}

struct rope_case {
    int  head_dim, n_rot;
    bool halves;
};

void test_rope(const rope_case &c) {
    const int                  n_head = 3, half = c.n_rot / 2;
    const int64_t              width = n_head * c.head_dim, ld = width + 8;
    const std::vector<int32_t> positions = {0, 1, 77, 4095, 2};
    const int64_t              n = int64_t(positions.size());
    std::vector<float>         f;
    for (int j = 0; j < half; j++) {
        f.push_back(std::pow(10000.0f, -2.0f * float(j) / float(c.n_rot)));
    }
    const float              amplitude = 1.25f;
    const std::vector<float> x = random_rounded(size_t(n * width)), w = random_floats(size_t(c.head_dim)), dy = random_rounded(size_t(n * width));
    on_device<int32_t>       p(positions);
    on_device<float>         df(f), table(size_t(n * c.n_rot)), dw(w), rstd(size_t(n * n_head));
    on_device<bf16>          y(all_to<bf16>(spread(x, ld, width)));
    cuda::rope_table(p.data(), n, df.data(), half, amplitude, table.data(), nullptr);
    cuda::head_map m = {n_head, c.head_dim, nullptr, eps, nullptr, c.n_rot, c.halves, table.data(), nullptr};
    cuda::turn_heads(m, y.data(), ld, n, y.data(), ld, nullptr);
    const auto turned = [&](const vector &v) { return rotated(v, width, n_head, c.head_dim, c.n_rot, c.halves, positions, doubles(f), double(amplitude)); };
    CHECK(worst(inner(y.host(), ld, width), turned(doubles(x))) <= bf16_tolerance);

    // Some rows, turned back: the transposed rotation, which undoes it but for the amplitude.
    const std::vector<int32_t> rows = {3, 1};
    on_device<int32_t>         index(rows);
    on_device<bf16>            z(all_to<bf16>(std::vector<float>(x.begin(), x.begin() + 2 * width)));
    m.rows = index.data();
    cuda::turn_heads(m, z.data(), width, 2, z.data(), width, nullptr);
    cuda::turn_heads_backward(m, z.data(), width, nullptr, 0, 2, z.data(), width, nullptr);
    std::vector<float> back(x.begin(), x.begin() + 2 * width);
    for (size_t i = 0; i < back.size(); i++) {
        back[i] *= int(i) % c.head_dim < c.n_rot ? amplitude * amplitude : 1.0f;
    }
    CHECK(worst(all_to_float(z.host()), back) <= 2 * bf16_tolerance); // rounded twice

    // With the norm before it, both ways.
    const auto      both = [&](const vector &v) {
        vector normed;
        for (int64_t i = 0; i < n * n_head; i++) {
            const vector part = norm_rows(vector(v.begin() + i * c.head_dim, v.begin() + (i + 1) * c.head_dim), doubles(w));
            normed.insert(normed.end(), part.begin(), part.end());
        }
        return turned(normed);
    };
    on_device<bf16> in(all_to<bf16>(x)), out(x.size()), d(all_to<bf16>(dy));
    m.rows = nullptr;
    m.w    = dw.data();
    m.rstd = rstd.data();
    cuda::turn_heads(m, in.data(), width, n, out.data(), width, nullptr);
    CHECK(worst(all_to_float(out.host()), both(doubles(x))) <= bf16_tolerance);
    cuda::turn_heads_backward(m, d.data(), width, in.data(), width, n, d.data(), width, nullptr);
    CHECK(worst(all_to_float(d.host()), differences(both, doubles(x), doubles(dy))) <= bf16_tolerance);
}

void test_ropes() {
    for (const rope_case &c : {rope_case{64, 48, true}, {64, 48, false}, {128, 128, true}, {80, 80, true}, {96, 20, false}, {256, 64, true}}) {
        in_both_orders("rope of " + std::to_string(c.n_rot) + " of " + std::to_string(c.head_dim) + (c.halves ? ", halves" : ", neighbours"), [&] { test_rope(c); });
    }
}

// ---- gates

double gate_value(bool gelu, double g) {
    return gelu ? g / 2 * (1 + std::tanh(0.79788456080286535588 * (g + 0.044715 * g * g * g))) : g / (1 + std::exp(-g));
}

void test_gates() {
    for (const bool gelu : {false, true}) {
        in_both_orders(gelu ? "gelu" : "silu", [&] {
            const int64_t            n = 5, columns = 72, ld = columns + 8;
            const size_t             size = size_t(n * columns);
            const std::vector<float> gate = random_rounded(size, 3), up = random_rounded(size), d = random_rounded(size);
            vector                   act(size), d_gate(size), d_up(size);
            for (size_t i = 0; i < size; i++) {
                const double g = double(gate[i]);
                act[i]         = gate_value(gelu, g) * double(up[i]);
                d_up[i]        = gate_value(gelu, g) * double(d[i]);
                d_gate[i]      = (gate_value(gelu, g + step) - gate_value(gelu, g - step)) / (2 * step) * double(up[i]) * double(d[i]);
            }
            on_device<bf16> dg(all_to<bf16>(spread(gate, ld, columns))), du(all_to<bf16>(spread(up, ld, columns))),
                dd(all_to<bf16>(spread(d, ld, columns))), a(size_t(n * ld)), again(size_t(n * ld));
            cuda::gated(gelu, dg.data(), ld, du.data(), ld, n, columns, a.data(), ld, nullptr);
            CHECK(worst(inner(a.host(), ld, columns), act) <= bf16_tolerance);
            cuda::gated_backward(gelu, dd.data(), ld, dg.data(), ld, du.data(), ld, n, columns, dg.data(), ld, du.data(), ld, again.data(), ld, nullptr);
            CHECK(same_bytes(again.host(), a.host()));
            CHECK(worst(inner(dg.host(), ld, columns), d_gate) <= bf16_tolerance);
            CHECK(worst(inner(du.host(), ld, columns), d_up) <= bf16_tolerance);
        });
    }
}

// ---- elements and moves

template <typename T, typename U> void test_elements() {
    const size_t             n = 1001;
    const std::vector<float> x = all_to_float(all_to<T>(random_floats(n))), y = all_to_float(all_to<U>(random_floats(n)));
    std::vector<float>       sum(n), scaled(n);
    for (size_t i = 0; i < n; i++) {
        sum[i]    = to_float(to<U>(y[i] + x[i]));
        scaled[i] = to_float(to<U>(0.3f * x[i]));
    }
    on_device<T> dx(all_to<T>(x));
    on_device<U> dy(all_to<U>(y));
    cuda::add(dx.data(), int64_t(n), dy.data(), nullptr);
    CHECK(all_to_float(dy.host()) == sum);
    cuda::cast(dx.data(), 0.3f, int64_t(n), dy.data(), nullptr);
    CHECK(all_to_float(dy.host()) == scaled);

    const int64_t              columns = 24, ld_t = 32, ld_u = 40;
    const std::vector<int32_t> rows = {4, 0, 3};
    const std::vector<float>   a = all_to_float(all_to<T>(random_floats(5 * 32))), b = all_to_float(all_to<U>(random_floats(5 * 40)));
    on_device<int32_t>         index(rows);
    on_device<T>               da(all_to<T>(a));
    on_device<U>               gathered(all_to<U>(b)), scattered(all_to<U>(b)), added(all_to<U>(b));
    cuda::gather(da.data(), ld_t, index.data(), 3, columns, gathered.data(), ld_u, nullptr);
    cuda::scatter(da.data(), ld_t, index.data(), 3, columns, scattered.data(), ld_u, nullptr);
    cuda::scatter_add(da.data(), ld_t, index.data(), 3, columns, added.data(), ld_u, nullptr);
    std::vector<float> want_g = b, want_s = b, want_a = b;
    for (size_t i = 0; i < 3; i++) {
        const size_t r = size_t(rows[i]);
        for (size_t j = 0; j < size_t(columns); j++) {
            want_g[i * 40 + j] = a[r * 32 + j];
            want_s[r * 40 + j] = a[i * 32 + j];
            want_a[r * 40 + j] += a[i * 32 + j];
        }
    }
    CHECK(same_bytes(gathered.host(), all_to<U>(want_g)));
    CHECK(same_bytes(scattered.host(), all_to<U>(want_s)));
    CHECK(same_bytes(added.host(), all_to<U>(want_a)));
    on_device<U> in_order(all_to<U>(b)); // without a list, row by row
    cuda::gather(da.data(), ld_t, nullptr, 3, columns, in_order.data(), ld_u, nullptr);
    want_g = b;
    for (size_t i = 0; i < 3; i++) {
        std::copy_n(a.begin() + std::ptrdiff_t(i * 32), columns, want_g.begin() + std::ptrdiff_t(i * 40));
    }
    CHECK(same_bytes(in_order.host(), all_to<U>(want_g)));
}

void test_others() {
    in_both_orders("elements and moves", [] {
        test_elements<float, float>();
        test_elements<float, bf16>();
        test_elements<bf16, float>();
        test_elements<bf16, bf16>();
    });
    in_both_orders("bias, soft cap, zero", [] {
        const std::vector<float> bias = random_floats(40), y = random_rounded(3 * 48);
        on_device<float>         db(bias);
        on_device<bf16>          dy(all_to<bf16>(y));
        cuda::add_bias(db.data(), 3, 40, dy.data(), 48, nullptr);
        std::vector<float> want = y;
        for (size_t i = 0; i < want.size(); i++) {
            want[i] += i % 48 < 40 ? bias[i % 48] : 0.0f;
        }
        CHECK(same_bytes(dy.host(), all_to<bf16>(want)));

        const std::vector<float> x = random_floats(999, 20);
        on_device<float>         dx(x);
        cuda::soft_cap(dx.data(), 999, 30.0f, nullptr);
        vector capped(x.size());
        std::transform(x.begin(), x.end(), capped.begin(), [](float v) { return 30 * std::tanh(double(v) / 30); });
        CHECK(worst(dx.host(), capped) <= f32_tolerance);

        cuda::zero(dx.data(), 998 * sizeof(float), nullptr);
        const auto zeros = dx.host();
        CHECK(std::all_of(zeros.begin(), zeros.end() - 1, [](float v) { return v == 0; }) && zeros.back() != 0);
    });
}

// ---- losses

template <typename T> void test_loss(int64_t n_vocab, float cap, bool in_place) {
    const int64_t              n = 4, n_padded = (n_vocab + 7) / 8 * 8, ld = n_padded + 8;
    const std::vector<int32_t> targets = {0, int32_t(n_vocab - 1), -100, int32_t(n_vocab / 2)};
    const std::vector<float>   weights = {1, 0.5f, 1, 2}, x = all_to_float(all_to<T>(random_floats(size_t(n * ld), 4)));
    vector                     losses(static_cast<size_t>(n)), gradient(size_t(n * n_padded));
    for (int64_t i = 0; i < n; i++) {
        if (targets[size_t(i)] < 0) {
            continue;
        }
        const auto z = [&](int64_t j) {
            const double v = double(x[size_t(i * ld + j)]);
            return cap > 0 ? double(cap) * std::tanh(v / double(cap)) : v;
        };
        double sum = 0;
        for (int64_t j = 0; j < n_vocab; j++) {
            sum += std::exp(z(j));
        }
        const double w    = double(weights[size_t(i)]);
        losses[size_t(i)] = w * (std::log(sum) - z(targets[size_t(i)]));
        for (int64_t j = 0; j < n_vocab; j++) {
            const double slope = cap > 0 ? 1 - z(j) / double(cap) * z(j) / double(cap) : 1;
            gradient[size_t(i * n_padded + j)] = w * slope * (std::exp(z(j)) / sum - (j == targets[size_t(i)] ? 1 : 0));
        }
    }
    on_device<T>       logits(all_to<T>(x));
    on_device<int32_t> dt(targets);
    on_device<float>   dw(weights), dl(static_cast<size_t>(n));
    cuda::cross_entropy(logits.data(), ld, n, n_vocab, n_padded, dt.data(), dw.data(), cap, dl.data(), static_cast<bf16 *>(nullptr), 0, nullptr);
    CHECK(worst(dl.host(), losses) <= f32_tolerance);
    const std::vector<float> before = dl.host();
    CHECK(all_to_float(logits.host()) == x);

    on_device<bf16> apart(size_t(n * ld));
    bf16 *const     to = in_place ? reinterpret_cast<bf16 *>(logits.data()) : apart.data();
    const int64_t   ld_gradient = in_place ? ld * int64_t(sizeof(T)) / 2 : ld;
    cuda::cross_entropy(logits.data(), ld, n, n_vocab, n_padded, dt.data(), dw.data(), cap, dl.data(), to, ld_gradient, nullptr);
    CHECK(same_bytes(dl.host(), before));
    std::vector<float> got;
    if (in_place) {
        const std::vector<T> memory = logits.host();
        const bf16 *const    p      = reinterpret_cast<const bf16 *>(memory.data());
        for (int64_t i = 0; i < n; i++) {
            for (int64_t j = 0; j < n_padded; j++) {
                got.push_back(to_float(p[i * ld_gradient + j]));
            }
        }
    } else {
        got = inner(apart.host(), ld, n_padded);
    }
    CHECK(worst(got, gradient) <= bf16_tolerance);
    for (int64_t i = 0; i < n; i++) {
        for (int64_t j = targets[size_t(i)] < 0 ? 0 : n_vocab; j < n_padded; j++) {
            CHECK(got[size_t(i * n_padded + j)] == 0);
        }
    }
}

void test_losses() {
    for (const int64_t n_vocab : {3, 2048, 5001}) {
        for (const float cap : {0.0f, 5.0f}) {
            in_both_orders("cross entropy of " + std::to_string(n_vocab) + (cap > 0 ? ", capped" : ""), [&] {
                test_loss<float>(n_vocab, cap, false);
                test_loss<float>(n_vocab, cap, true);
                test_loss<bf16>(n_vocab, cap, true);
            });
        }
    }
    in_both_orders("cross entropy of large logits", [] {
        // Beyond the range of exp, and a row whose logits are mostly minus infinity.
        on_device<float>   logits(std::vector<float>{1000, 990, -1000, -INFINITY, -INFINITY, 3});
        on_device<int32_t> targets(std::vector<int32_t>{1, 2});
        on_device<float>   weights(std::vector<float>{1, 1}), losses(2);
        on_device<bf16>    gradient(6);
        cuda::cross_entropy(logits.data(), 3, 2, 3, 3, targets.data(), weights.data(), 0.0f, losses.data(), gradient.data(), 3, nullptr);
        CHECK_NEAR(losses.host()[0], 10, 10, 1e-5);
        CHECK_NEAR(losses.host()[1], 0, 1, 1e-6);
        const auto g = all_to_float(gradient.host());
        CHECK(std::all_of(g.begin(), g.end(), [](float v) { return std::isfinite(v); }));
    });
    in_both_orders("sum", [] {
        const std::vector<float> x = random_floats(5000);
        on_device<float>         dx(x);
        on_device<double>        sum(1);
        double                   want = 0;
        for (float v : x) {
            want += double(v);
        }
        cuda::sum(dx.data(), 5000, false, sum.data(), nullptr);
        CHECK_NEAR(sum.host()[0], want, 100, 1e-12);
        cuda::sum(dx.data(), 5000, true, sum.data(), nullptr);
        CHECK_NEAR(sum.host()[0], 2 * want, 100, 1e-12);
    });
}

} // namespace

int main() {
    test_norms();
    test_ropes();
    test_gates();
    test_others();
    test_losses();
    return finish("test_cuda_rows");
}
