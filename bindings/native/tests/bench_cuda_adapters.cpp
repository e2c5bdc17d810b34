// bench_cuda_adapters.cpp - measures what reads the gradient at adapted maps' outputs on the way back, in the shapes of published models: two narrow
// products each (cuBLASLt's), as linear.cpp has them, beside one pass of our own (adapter_product.h); of gate and up also with the gated unit's way
// back, which comes before. Prints one JSON line and ends with an error where products and pass differ. Buffers take turns, so that nothing is found in
// the cache that a step would not find there.
//
// usage: bench_cuda_adapters --shape qwen3-8b --tokens 8192 --rank 16 --repeat 20
#include "bench_options.h"
#include "cuda/adapter_product.h"
#include "cuda/engine/gemm.h"
#include "cuda/engine/runtime.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <tuple>
#include <vector>

using namespace cft::cuda;

namespace {

struct shape {
    int64_t n_embd, n_ff, q, kv;
};
const std::map<std::string, shape> shapes = {
    {"qwen3-0.6b", {1024, 3072, 2048, 1024}}, {"qwen3-1.7b", {2048, 6144, 2048, 1024}}, {"qwen3-8b", {4096, 12288, 4096, 1024}}, {"tiny", {128, 264, 128, 64}}};
bench_options options = {{{"shape", "qwen3-8b"}, {"tokens", "8192"}, {"rank", "16"}, {"repeat", "20"}}};

constexpr size_t  more_than_caches = size_t(256) << 20;
constexpr int64_t most_turns       = 8;
constexpr double  tolerance        = 1e-2; // of bf16, over whole matrices
constexpr float   scale            = 2;

[[noreturn]] void fail(const std::string &what) {
    std::fprintf(stderr, "bench_cuda_adapters: %s\n", what.c_str());
    std::exit(1);
}
int64_t number(const char *name) { return options.number(name); }
double  now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Random numbers between -spread and spread, some million again and again.
void fill(bf16 *to, int64_t n, float spread, uint32_t seed, const stream &s) {
    std::vector<bf16> values(1000003);
    for (bf16 &v : values) {
        seed = seed * 1664525u + 1013904223u;
        const float f = spread * (float(seed >> 8) / float(1 << 23) - 1);
        uint32_t    bits;
        std::memcpy(&bits, &f, sizeof bits);
        v = bf16{uint16_t(bits >> 16)};
    }
    for (int64_t at = 0; at < n; at += int64_t(values.size())) {
        to_device(to + at, values.data(), size_t(std::min(n - at, int64_t(values.size()))) * sizeof(bf16), s.get());
    }
    s.wait();
}

// group is one dy and its maps; their A and B would have a rank of their own each.
class group {
  public:
    group(std::string name_, int64_t inputs, std::vector<int64_t> outputs)
        : name(std::move(name_)), n_(number("tokens")), rank_(number("rank")), inputs_(inputs), outputs_(std::move(outputs)), columns_(rank_ * int64_t(outputs_.size())) {
        for (const int64_t o : outputs_) {
            width += o;
        }
        turns_ = std::clamp(int64_t(more_than_caches / bytes()) + 1, int64_t(2), most_turns);
        dy_    = std::make_unique<memory>(size_t(turns_ * n_ * ld_dy()) * sizeof(bf16));
        x_     = std::make_unique<memory>(size_t(n_ * ld()) * sizeof(bf16));
        w_     = std::make_unique<memory>(size_t(width * ld()) * sizeof(bf16));
        d_b_   = std::make_unique<memory>(size_t(width * rank_) * sizeof(float));
        space_ = std::make_unique<memory>(products_workspace_bytes);
        fill(at<bf16>(dy_), turns_ * n_ * ld_dy(), 1, 1, stream_);
        fill(at<bf16>(x_), n_ * ld(), 1, 2, stream_);
        fill(at<bf16>(w_), width * ld(), 0.02f, 3, stream_);
        clear_w();
        products_ = make_products(space_->data(), products_workspace_bytes);
    }

    // What a step does now.
    void two_products(int64_t turn) {
        bf16 *const dy = dy_of(turn);
        products_->run({n_, columns_, width, dy, ld_dy(), false, at<bf16>(w_) + inputs_, ld(), false, dy + width, ld_dy(), false}, stream_.get());
        each([&](int64_t row, int64_t rows, int64_t column) {
            products_->run({rows, rank_, n_, dy + row, ld_dy(), true, at<bf16>(x_) + inputs_ + column, ld(), false, at<float>(d_b_) + row * rank_, rank_, true, scale, 1},
                           stream_.get());
        });
    }
    void one_pass(int64_t turn, int blocks) { multiply_adapters(pass(turn), space_->data(), space_->size(), stream_.get(), blocks); }

    // The gated unit's way back, which leaves gates' and ups' gradients in dy; alone, and with the pass.
    void gated_unit(int64_t turn) {
        bf16 *const gate = dy_of(turn), *const up = gate + width / 2;
        gated_backward(false, d_act(), width / 2, gate, ld_dy(), up, ld_dy(), n_, width / 2, gate, ld_dy(), up, ld_dy(), nullptr, 0, stream_.get());
    }
    void gated_pass(int64_t turn) {
        gated_backward_adapters({false, d_act(), width / 2, dy_of(turn), nullptr, 0}, pass(turn), space_->data(), space_->size(), stream_.get());
    }

    // Of one call, in µs, from the middle of three.
    template <typename F> double time(F &&f) {
        const int64_t       repeat = number("repeat");
        std::vector<double> us;
        f(0);
        stream_.wait();
        for (int i = 0; i < 3; i++) {
            const double begin = now();
            for (int64_t k = 0; k < repeat; k++) {
                f(k % turns_);
            }
            stream_.wait();
            us.push_back((now() - begin) / double(repeat) * 1e6);
        }
        std::sort(us.begin(), us.end());
        return us[1];
    }

    void check() {
        two_products(0);
        const auto u = u_of(0), d_b = d_b_now();
        zero(d_b_->data(), d_b_->size(), stream_.get());
        one_pass(0, adapter_product_blocks);
        const double u_error = difference(u_of(0), u), b_error = difference(d_b_now(), d_b);
        if (!(u_error < tolerance) || !(b_error < tolerance)) {
            fail(name + ": one pass and two products differ by " + std::to_string(u_error) + " and " + std::to_string(b_error));
        }
    }

    double bytes() const { return double(n_) * double(width) * sizeof(bf16); } // of dy

    const std::string name;
    int64_t           width = 0;

  private:
    adapter_product pass(int64_t turn) {
        bf16 *const     dy = dy_of(turn);
        adapter_product p{};
        p.n = n_, p.dy = dy, p.ld_dy = ld_dy(), p.ld_b = p.ld_h = ld();
        each([&](int64_t row, int64_t rows, int64_t column) {
            p.maps[p.n_maps++] = {row, rows, rank_, scale, at<bf16>(w_) + row * ld() + inputs_ + column, at<bf16>(x_) + inputs_ + column, dy + width + column,
                                  at<float>(d_b_) + row * rank_};
        });
        return p;
    }
    bf16 *d_act() {
        if (!d_act_) {
            d_act_ = std::make_unique<memory>(size_t(n_ * width / 2) * sizeof(bf16));
            fill(at<bf16>(d_act_), n_ * width / 2, 1, 4, stream_);
        }
        return at<bf16>(d_act_);
    }
    int64_t ld() const { return inputs_ + columns_; }
    int64_t ld_dy() const { return width + columns_; }
    bf16   *dy_of(int64_t turn) { return at<bf16>(dy_) + turn * n_ * ld_dy(); }
    template <typename T> static T *at(const std::unique_ptr<memory> &m) { return reinterpret_cast<T *>(m->data()); }
    template <typename F> void each(F &&f) {
        int64_t row = 0, column = 0;
        for (const int64_t rows : outputs_) {
            f(row, rows, column);
            row += rows, column += rank_;
        }
    }
    // A map has nothing in the columns of others. And the gradient begins at 0.
    void clear_w() {
        const std::vector<bf16> zeros(static_cast<size_t>(columns_), bf16{0});
        each([&](int64_t row, int64_t rows, int64_t column) {
            for (int64_t r = row; r < row + rows; r++) {
                bf16 *const to = at<bf16>(w_) + r * ld() + inputs_;
                to_device(to, zeros.data(), size_t(column) * sizeof(bf16), stream_.get());
                to_device(to + column + rank_, zeros.data(), size_t(columns_ - column - rank_) * sizeof(bf16), stream_.get());
            }
        });
        zero(d_b_->data(), d_b_->size(), stream_.get());
        stream_.wait();
    }
    std::vector<float> u_of(int64_t turn) {
        std::vector<uint16_t> bits(static_cast<size_t>(n_ * columns_));
        const size_t          bytes = size_t(columns_) * sizeof(bf16);
        to_host_rows(bits.data(), bytes, dy_of(turn) + width, size_t(ld_dy()) * sizeof(bf16), bytes, size_t(n_), stream_.get());
        stream_.wait();
        std::vector<float> values(bits.size());
        for (size_t i = 0; i < bits.size(); i++) {
            const uint32_t word = uint32_t(bits[i]) << 16;
            std::memcpy(&values[i], &word, sizeof word);
        }
        return values;
    }
    std::vector<float> d_b_now() {
        std::vector<float> values(static_cast<size_t>(width * rank_));
        to_host(values.data(), d_b_->data(), values.size() * sizeof(float), stream_.get());
        stream_.wait();
        return values;
    }
    static double difference(const std::vector<float> &a, const std::vector<float> &b) {
        double d = 0, size = 1e-30;
        for (size_t i = 0; i < a.size(); i++) {
            d += (double(a[i]) - double(b[i])) * (double(a[i]) - double(b[i])), size += double(b[i]) * double(b[i]);
        }
        return std::sqrt(d / size);
    }

    int64_t                   n_, rank_, inputs_;
    std::vector<int64_t>      outputs_;
    int64_t                   columns_, turns_ = 0;
    stream                    stream_{stream_use::work};
    std::unique_ptr<memory>   dy_, x_, w_, d_b_, d_act_, space_;
    std::unique_ptr<products> products_;
};

void measure(const shape &s) {
    const std::tuple<const char *, int64_t, std::vector<int64_t>> groups[] = {
        {"qkv", s.n_embd, {s.q, s.kv, s.kv}}, {"output", s.q, {s.n_embd}}, {"gate_up", s.n_embd, {s.n_ff, s.n_ff}}, {"down", s.n_ff, {s.n_embd}}};
    const int   blocks[] = {adapter_product_blocks / 2, adapter_product_blocks, 2 * adapter_product_blocks};
    double      two = 0, one = 0;
    std::string maps;
    for (const auto &[name, inputs, outputs] : groups) {
        group g(name, inputs, outputs);
        g.check();
        const double apart = g.time([&](int64_t turn) { g.two_products(turn); });
        double       fused[3];
        for (int i = 0; i < 3; i++) {
            fused[i] = g.time([&](int64_t turn) { g.one_pass(turn, blocks[i]); });
        }
        two += apart, one += fused[1];
        char gated[200] = "", line[600];
        if (std::strcmp(name, "gate_up") == 0) {
            const double by_products = g.time([&](int64_t turn) { g.gated_unit(turn), g.two_products(turn); });
            const double by_pass     = g.time([&](int64_t turn) { g.gated_unit(turn), g.one_pass(turn, adapter_product_blocks); });
            const double together    = g.time([&](int64_t turn) { g.gated_pass(turn); });
            std::snprintf(gated, sizeof gated, ",\"gated_then_two_products_us\":%.1f,\"gated_then_one_pass_us\":%.1f,\"gated_in_one_pass_us\":%.1f", by_products, by_pass,
                          together);
        }
        std::snprintf(line, sizeof line, "%s{\"group\":\"%s\",\"outputs\":%lld,\"two_products_us\":%.1f,\"one_pass_us\":%.1f,\"one_pass_us_half_the_blocks\":%.1f,\"one_pass_us_twice_the_blocks\":%.1f,\"one_pass_gb_s\":%.0f%s}",
                      maps.empty() ? "" : ",", name, static_cast<long long>(g.width), apart, fused[1], fused[0], fused[2], g.bytes() / fused[1] / 1e3, gated);
        maps += line;
    }
    std::printf("{\"tool\":\"adapters\",\"shape\":\"%s\",\"tokens\":%lld,\"rank\":%lld,\"two_products_us\":%.1f,\"one_pass_us\":%.1f,\"groups\":[%s]}\n", options.at("shape").c_str(),
                static_cast<long long>(number("tokens")), static_cast<long long>(number("rank")), two, one, maps.c_str());
}

} // namespace

int main(int argc, char **argv) {
    if (const std::string wrong = options.read(argc, argv); !wrong.empty()) {
        fail(wrong);
    }
    const int64_t rank = number("rank");
    if (!shapes.count(options.at("shape"))) {
        fail("--shape is qwen3-0.6b, qwen3-1.7b, qwen3-8b or tiny");
    }
    if (number("tokens") < 1 || number("repeat") < 1 || rank < 8 || rank % 8 != 0 || rank > widest_adapter_product) {
        fail("--tokens and --repeat are at least 1, --rank a multiple of 8 up to 64");
    }
    try {
        measure(shapes.at(options.at("shape")));
    } catch (const std::exception &e) {
        fail(e.what());
    }
}
