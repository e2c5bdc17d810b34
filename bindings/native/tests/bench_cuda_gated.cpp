// bench_cuda_gated.cpp - measures the way back through gated units with what their gradients add to the adapters of gate and up, in the shapes of
// published models: by the gated unit's kernel and two narrow products (cuBLASLt's), and all in one pass (gated_product.h). Prints one JSON line and
// ends with an error where they differ. Buffers take turns, so that nothing is found in the cache that a step would not find there.
//
// usage: bench_cuda_gated --shape qwen3-8b --tokens 8192 --rank 16 --repeat 20
#include "bench_options.h"
#include "cuda/engine/gemm.h"
#include "cuda/engine/runtime.h"
#include "cuda/gated_product.h"

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
#include <vector>

using namespace cft::cuda;

namespace {

struct shape {
    int64_t n_embd, n_ff;
};
const std::map<std::string, shape> shapes = {{"qwen3-0.6b", {1024, 3072}}, {"qwen3-1.7b", {2048, 6144}}, {"qwen3-8b", {4096, 12288}}, {"tiny", {128, 264}}};
bench_options options = {{{"shape", "qwen3-8b"}, {"tokens", "8192"}, {"rank", "16"}, {"repeat", "20"}}};

constexpr size_t  more_than_caches = size_t(256) << 20;
constexpr int64_t most_turns       = 8;
constexpr double  tolerance        = 1e-2; // of bf16, over whole matrices
constexpr float   scale            = 2;

[[noreturn]] void fail(const std::string &what) {
    std::fprintf(stderr, "bench_cuda_gated: %s\n", what.c_str());
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

// unit is gates and ups of some tokens, and both their adapters.
class unit {
  public:
    explicit unit(const shape &s) : n_(number("tokens")), rank_(number("rank")), inputs_(s.n_embd), ff_(s.n_ff) {
        turns_ = std::clamp(int64_t(more_than_caches / (size_t(n_ * 2 * ff_) * sizeof(bf16))) + 1, int64_t(2), most_turns);
        dy_    = std::make_unique<memory>(size_t(turns_ * n_ * ld_dy()) * sizeof(bf16));
        d_act_ = std::make_unique<memory>(size_t(n_ * ff_) * sizeof(bf16));
        x_     = std::make_unique<memory>(size_t(n_ * ld()) * sizeof(bf16));
        w_     = std::make_unique<memory>(size_t(2 * ff_ * ld()) * sizeof(bf16));
        d_b_   = std::make_unique<memory>(size_t(2 * ff_ * rank_) * sizeof(float));
        space_ = std::make_unique<memory>(products_workspace_bytes);
        fill(at<bf16>(d_act_), n_ * ff_, 1, 4, stream_);
        fill(at<bf16>(x_), n_ * ld(), 1, 2, stream_);
        fill(at<bf16>(w_), 2 * ff_ * ld(), 0.02f, 3, stream_);
        clear_w();
        begin();
        products_ = make_products(space_->data(), products_workspace_bytes);
    }

    void by_products(int64_t turn) {
        bf16 *const gate = dy_of(turn), *const up = gate + ff_;
        gated_backward(false, at<bf16>(d_act_), ff_, gate, ld_dy(), up, ld_dy(), n_, ff_, gate, ld_dy(), up, ld_dy(), nullptr, 0, stream_.get());
        products_->run({n_, 2 * rank_, 2 * ff_, gate, ld_dy(), false, at<bf16>(w_) + inputs_, ld(), false, gate + 2 * ff_, ld_dy(), false}, stream_.get());
        for (int64_t i = 0; i < 2; i++) {
            products_->run({ff_, rank_, n_, gate + i * ff_, ld_dy(), true, at<bf16>(x_) + inputs_ + i * rank_, ld(), false, at<float>(d_b_) + i * ff_ * rank_, rank_, true,
                            scale, 1}, stream_.get());
        }
    }
    void in_one_pass(int64_t turn, int blocks) {
        bf16 *const    dy = dy_of(turn);
        gated_gradient g{false, n_, ff_, at<bf16>(d_act_), ff_, dy, ld_dy(), nullptr, 0, {}, ld(), ld()};
        for (int64_t i = 0; i < 2; i++) {
            const int64_t behind = inputs_ + i * rank_;
            g.adapters[i] = {rank_, scale, at<bf16>(w_) + i * ff_ * ld() + behind, at<bf16>(x_) + behind, dy + 2 * ff_ + i * rank_, at<float>(d_b_) + i * ff_ * rank_};
        }
        gated_backward_adapters(g, space_->data(), space_->size(), stream_.get(), blocks);
    }

    // Of one call, in µs, from the middle of three.
    template <typename F> double time(F &&f) {
        const int64_t       repeat = number("repeat");
        std::vector<double> us;
        f(0);
        stream_.wait();
        for (int i = 0; i < 3; i++) {
            const double from = now();
            for (int64_t k = 0; k < repeat; k++) {
                f(k % turns_);
            }
            stream_.wait();
            us.push_back((now() - from) / double(repeat) * 1e6);
        }
        std::sort(us.begin(), us.end());
        return us[1];
    }

    void check() {
        by_products(0);
        const auto u = u_now(), d_b = d_b_now();
        begin();
        in_one_pass(0, gated_product_blocks);
        const double u_error = difference(u_now(), u), b_error = difference(d_b_now(), d_b);
        if (!(u_error < tolerance) || !(b_error < tolerance)) {
            fail("one pass and two products differ by " + std::to_string(u_error) + " and " + std::to_string(b_error));
        }
    }

  private:
    int64_t ld() const { return inputs_ + 2 * rank_; }
    int64_t ld_dy() const { return 2 * ff_ + 2 * rank_; }
    bf16   *dy_of(int64_t turn) { return at<bf16>(dy_) + turn * n_ * ld_dy(); }
    template <typename T> static T *at(const std::unique_ptr<memory> &m) { return reinterpret_cast<T *>(m->data()); }
    // Gates and ups, and a gradient of 0.
    void begin() {
        fill(at<bf16>(dy_), turns_ * n_ * ld_dy(), 1, 1, stream_);
        zero(d_b_->data(), d_b_->size(), stream_.get());
        stream_.wait();
    }
    // A map has nothing in the columns of the other.
    void clear_w() {
        const std::vector<bf16> zeros(static_cast<size_t>(rank_), bf16{0});
        for (int64_t row = 0; row < 2 * ff_; row++) {
            to_device(at<bf16>(w_) + row * ld() + inputs_ + (row < ff_ ? rank_ : 0), zeros.data(), zeros.size() * sizeof(bf16), stream_.get());
        }
        stream_.wait();
    }
    std::vector<float> u_now() {
        std::vector<uint16_t> bits(static_cast<size_t>(n_ * 2 * rank_));
        const size_t          bytes = size_t(2 * rank_) * sizeof(bf16);
        to_host_rows(bits.data(), bytes, dy_of(0) + 2 * ff_, size_t(ld_dy()) * sizeof(bf16), bytes, size_t(n_), stream_.get());
        stream_.wait();
        std::vector<float> values(bits.size());
        for (size_t i = 0; i < bits.size(); i++) {
            const uint32_t word = uint32_t(bits[i]) << 16;
            std::memcpy(&values[i], &word, sizeof word);
        }
        return values;
    }
    std::vector<float> d_b_now() {
        std::vector<float> values(static_cast<size_t>(2 * ff_ * rank_));
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

    int64_t                   n_, rank_, inputs_, ff_, turns_;
    stream                    stream_{stream_use::work};
    std::unique_ptr<memory>   dy_, d_act_, x_, w_, d_b_, space_;
    std::unique_ptr<products> products_;
};

void measure(const shape &s) {
    unit u(s);
    u.check();
    const double by_products = u.time([&](int64_t turn) { u.by_products(turn); });
    const auto   pass = [&](int blocks) { return u.time([&](int64_t turn) { u.in_one_pass(turn, blocks); }); };
    const double all = pass(gated_product_blocks), half = pass(gated_product_blocks / 2), twice = pass(2 * gated_product_blocks);
    std::printf("{\"tool\":\"gated\",\"shape\":\"%s\",\"tokens\":%lld,\"rank\":%lld,\"products_us\":%.1f,\"one_pass_us\":%.1f,\"half_the_blocks_us\":%.1f,"
                "\"twice_the_blocks_us\":%.1f}\n",
                options.at("shape").c_str(), static_cast<long long>(number("tokens")), static_cast<long long>(number("rank")), by_products, all, half, twice);
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
    if (number("tokens") < 1 || number("repeat") < 1 || rank < 8 || rank % 8 != 0 || rank > widest_gated_adapter) {
        fail("--tokens and --repeat are at least 1, --rank 8 or 16");
    }
    try {
        measure(shapes.at(options.at("shape")));
    } catch (const std::exception &e) {
        fail(e.what());
    }
}
