// bench_cuda_products.cpp - measures cuBLASLt's products as a training step has them, in the shapes of published models, and says what the distance of
// rows, the inner width that adapters add to, the number of rows of logits at a time, and a second stream are worth. Ways of one product take turns, so
// that the device's clock meets all alike, and buffers take turns as well, so that nothing is found in the cache that a step would not find there.
// Prints one JSON line for each way.
//
// usage: bench_cuda_products --shape qwen3-8b --tokens 8192 --rank 16 --repeat 4 --rounds 9 --pool 2048
// --pool: MiB of each of the three buffers that matrices are taken from in turns.
#include "bench_options.h"
#include "cuda/engine/gemm.h"
#include "cuda/engine/runtime.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <string>
#include <vector>

using namespace cft::cuda;

namespace {

struct shape {
    int64_t n_embd, n_ff, q, kv, n_vocab;
};
const std::map<std::string, shape> shapes = {{"qwen3-0.6b", {1024, 3072, 2048, 1024, 151936}}, {"qwen3-1.7b", {2048, 6144, 2048, 1024, 151936}}, {"qwen3-8b", {4096, 12288, 4096, 1024, 151936}}, {"tiny", {128, 264, 128, 64, 512}}};
bench_options options = {{{"shape", "qwen3-8b"}, {"tokens", "8192"}, {"rank", "16"}, {"repeat", "4"}, {"rounds", "9"}, {"pool", "2048"}}};

[[noreturn]] void fail(const std::string &what) {
    std::fprintf(stderr, "bench_cuda_products: %s\n", what.c_str());
    std::exit(1);
}
int64_t number(const char *name) { return options.number(name); }
double  now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }
int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }

// pool is device memory with normal random bf16 numbers, of which matrices are taken in turns.
class pool {
  public:
    pool(size_t bytes, float spread, const stream &s) : memory_(bytes) {
        std::mt19937                    bits{1};
        std::normal_distribution<float> normal(0, spread);
        std::vector<bf16>               values(4000037);
        for (bf16 &v : values) {
            const float f = normal(bits);
            uint32_t    word;
            std::memcpy(&word, &f, sizeof word);
            v = bf16{uint16_t(word >> 16)};
        }
        for (size_t at = 0; at < bytes; at += values.size() * sizeof(bf16)) {
            to_device(memory_.data() + at, values.data(), std::min(bytes - at, values.size() * sizeof(bf16)), s.get());
        }
        s.wait();
    }
    bf16 *take(size_t bytes) {
        bytes = (bytes + 1023) / 1024 * 1024;
        if (bytes > memory_.size()) {
            fail("a matrix is larger than its pool");
        }
        at_ = at_ + bytes > memory_.size() ? 0 : at_;
        at_ += bytes;
        return reinterpret_cast<bf16 *>(memory_.data() + at_ - bytes);
    }

  private:
    memory memory_;
    size_t at_ = 0;
};

struct way {
    std::string           name;
    double                flops, bytes; // of one call
    std::function<void()> call;
};

class bench {
  public:
    bench() : x_(size_t(number("pool")) << 20, 1.0f, work), w_(size_t(number("pool")) << 20, 0.02f, work), y_(size_t(number("pool")) << 20, 1.0f, work) {}

    void compare(const std::string &what, const std::vector<way> &ways) {
        std::vector<std::vector<double>> us(ways.size());
        for (int64_t round = -1; round < number("rounds"); round++) { // the first finds algorithms
            for (size_t i = 0; i < ways.size(); i++) {
                const double begin = now();
                for (int64_t k = 0; k < number("repeat"); k++) {
                    ways[i].call();
                }
                work.wait();
                side.wait();
                if (round >= 0) {
                    us[i].push_back((now() - begin) / double(number("repeat")) * 1e6);
                }
            }
        }
        for (size_t i = 0; i < ways.size(); i++) {
            std::sort(us[i].begin(), us[i].end());
            const double middle = us[i][us[i].size() / 2];
            std::printf("{\"tool\":\"products\",\"what\":\"%s\",\"way\":\"%s\",\"us\":%.1f,\"tflop_s\":%.0f,\"gb_s\":%.0f}\n", what.c_str(), ways[i].name.c_str(), middle, ways[i].flops / middle * 1e-6,
                        ways[i].bytes / middle * 1e-3);
        }
        std::fflush(stdout);
    }

    // y [m][n] = x [m][k] wᵀ, w [n][k]
    way forward(const std::string &name, int64_t m, int64_t n, int64_t k, int64_t ld, bool f32 = false, int64_t ld_y = 0) {
        ld_y = ld_y > 0 ? ld_y : n;
        return {name, 2.0 * double(m) * double(n) * double(k), 2.0 * double(m * k + n * k + m * n), [=] {
                    products_->run({m, n, k, x_.take(size_t(m * ld) * 2), ld, false, w_.take(size_t(n * ld) * 2), ld, true, y_.take(size_t(m * ld_y) * (f32 ? 4 : 2)), ld_y, f32}, work.get());
                }};
    }
    // dx [m][n] = dy [m][k] w, w [k][n]
    way backward(const std::string &name, int64_t m, int64_t n, int64_t k, int64_t ld_dy, int64_t ld_w, bool f32 = false, float beta = 0) {
        return {name, 2.0 * double(m) * double(n) * double(k), 2.0 * double(m * k + n * k + m * n), [=] {
                    products_->run({m, n, k, x_.take(size_t(m * ld_dy) * 2), ld_dy, false, w_.take(size_t(k * ld_w) * 2), ld_w, false, y_.take(size_t(m * n) * (f32 ? 4 : 2)), n, f32, 1, beta}, work.get());
                }};
    }
    // g [r][c] += uᵀ x: u [t][r] of ld_u, x [t][c] of ld
    way gradient(const std::string &name, int64_t r, int64_t c, int64_t t, int64_t ld_u, int64_t ld, bool beside = false) {
        return {name, 2.0 * double(r) * double(c) * double(t), 2.0 * double(t * c), [=] {
                    (beside ? side_products_ : products_)->run({r, c, t, x_.take(size_t(t * ld_u) * 2), ld_u, true, w_.take(size_t(t * ld) * 2), ld, false, y_.take(size_t(r * c) * 4), c, true, 1, 1}, (beside ? side : work).get());
                }};
    }
    static way both(const std::string &name, const way &a, const way &b) {
        return {name, a.flops + b.flops, a.bytes + b.bytes, [=] { a.call(), b.call(); }};
    }

    stream work{stream_use::work}, side{stream_use::side};

  private:
    memory                    space_{products_workspace_bytes}, side_space_{side_workspace_bytes};
    std::unique_ptr<products> products_ = make_products(space_.data(), space_.size()), side_products_ = make_products(side_space_.data(), side_space_.size());
    pool                      x_, w_, y_;
};

void group(bench &b, const std::string &name, int64_t inputs, int64_t outputs, int64_t parts) {
    const int64_t m = number("tokens"), r = number("rank") * parts, k = inputs + r, o = outputs + r;
    b.compare(name, {b.forward("rows end to end", m, outputs, k, k), b.forward("rows at multiples of 64", m, outputs, k, up(k, 64)), b.forward("inner width a multiple of 64", m, outputs, up(k, 64), up(k, 64)),
                     b.forward("without adapters", m, outputs, inputs, inputs), b.forward("without adapters, rows end to end with them", m, outputs, inputs, k)});
    b.compare(name + ", back", {b.backward("rows end to end", m, inputs, o, o, k), b.backward("rows at multiples of 64", m, inputs, o, up(o, 64), up(k, 64)),
                                b.backward("inner width a multiple of 64", m, inputs, up(o, 64), up(o, 64), up(k, 64)), b.backward("without adapters", m, inputs, outputs, outputs, inputs),
                                b.backward("without adapters, rows end to end with them", m, inputs, outputs, o, k)});
    b.compare(name + ", h", {b.forward("rows end to end", m, r, inputs, k, false, k), b.forward("rows at multiples of 64", m, r, inputs, up(k, 64), false, up(k, 64)), b.forward("64 columns", m, 64, inputs, up(k, 64), false, up(k, 64))});
    b.compare(name + ", gradient of A", {b.gradient("rows end to end", r, inputs, m, o, k), b.gradient("rows at multiples of 64", r, inputs, m, up(o, 64), up(k, 64)), b.gradient("64 columns", 64, inputs, m, up(o, 64), up(k, 64))});
    b.compare(name + ", back and gradient of A", {bench::both("one after the other", b.backward("", m, inputs, o, o, k), b.gradient("", r, inputs, m, o, k)),
                                                  bench::both("on two streams", b.backward("", m, inputs, o, o, k), b.gradient("", r, inputs, m, o, k, true))});
}

void head(bench &b, const shape &s) {
    const int64_t v = s.n_vocab, tile = std::min<int64_t>(16384, v);
    std::vector<way> forward, backward;
    for (const int64_t m : {883, 896, 1024, 2048}) {
        for (const int64_t n : {tile, v}) {
            if (m * v * 4 <= int64_t(1) << 30 || n < v) {
                const std::string name = std::to_string(m) + " rows, " + std::to_string(n) + " columns";
                forward.push_back(b.forward(name, m, n, s.n_embd, s.n_embd, true));
                backward.push_back(b.backward(name, m, s.n_embd, n, n, s.n_embd, true, n < v ? 1.0f : 0.0f));
            }
        }
    }
    b.compare("head", forward);
    b.compare("head, back", backward);
}

} // namespace

int main(int argc, char **argv) {
    if (const std::string wrong = options.read(argc, argv); !wrong.empty()) {
        fail(wrong);
    }
    if (!shapes.count(options.at("shape"))) {
        fail("--shape is qwen3-0.6b, qwen3-1.7b, qwen3-8b or tiny");
    }
    try {
        const shape s = shapes.at(options.at("shape"));
        bench       b;
        group(b, "gate and up", s.n_embd, 2 * s.n_ff, 2);
        group(b, "down", s.n_ff, s.n_embd, 1);
        group(b, "qkv", s.n_embd, s.q + 2 * s.kv, 3);
        group(b, "output", s.q, s.n_embd, 1);
        head(b, s);
    } catch (const std::exception &e) {
        fail(e.what());
    }
}
