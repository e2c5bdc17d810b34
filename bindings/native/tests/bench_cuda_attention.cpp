// bench_cuda_attention.cpp - measures attention's kernels in the shapes of published models: forward, heads one by one and in pairs, and the gradient with
// gradients of scores computed twice and stored; then both with norms and rotations of heads, by passes of their own and inside (CFT_CUDA_ATTENTION). Prints
// one JSON line and ends with an error where two ways come to different results.
//
// usage: bench_cuda_attention --shape qwen3-8b --tokens 8192 --segment 2048 --room 512 --repeat 20
// --room: MiB for what is stored, which an engine has where its logits were.
#include "bench_options.h"
#include "cuda/engine/runtime.h"
#include "cuda/kernels.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <exception>
#include <map>
#include <memory>
#include <string>
#include <vector>

using namespace cft::cuda;

namespace {

struct heads {
    int n_head, n_head_kv, head_dim;
};
const std::map<std::string, heads> shapes = {{"qwen3-0.6b", {16, 8, 128}}, {"qwen3-1.7b", {16, 8, 128}}, {"qwen3-8b", {32, 8, 128}}, {"llama-1b", {32, 8, 64}}, {"tiny", {4, 2, 64}}};
bench_options options = {{{"shape", "qwen3-8b"}, {"tokens", "8192"}, {"segment", "2048"}, {"room", "512"}, {"repeat", "20"}}};

constexpr double tolerance = 1e-2; // of bf16, over whole matrices

[[noreturn]] void fail(const std::string &what) {
    std::fprintf(stderr, "bench_cuda_attention: %s\n", what.c_str());
    std::exit(1);
}
int64_t number(const char *name) { return options.number(name); }
double  now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// array is a matrix of bf16 on the device, with random numbers between -1 and 1.
class array {
  public:
    array(int64_t n, uint32_t seed, const stream &s) : n_(n), memory_(size_t(n) * sizeof(bf16)) {
        std::vector<bf16> values(static_cast<size_t>(n));
        for (bf16 &v : values) {
            seed = seed * 1664525u + 1013904223u;
            const float f = float(seed >> 8) / float(1 << 23) - 1;
            uint32_t    bits;
            std::memcpy(&bits, &f, sizeof bits);
            v = bf16{uint16_t(bits >> 16)};
        }
        to_device(memory_.data(), values.data(), values.size() * sizeof(bf16), s.get());
        s.wait();
    }
    bf16              *data() { return reinterpret_cast<bf16 *>(memory_.data()); }
    std::vector<bf16>  host(const stream &s) {
        std::vector<bf16> values(static_cast<size_t>(n_));
        to_host(values.data(), memory_.data(), values.size() * sizeof(bf16), s.get());
        s.wait();
        return values;
    }

  private:
    int64_t n_;
    memory  memory_;
};

double widened(bf16 x) {
    const uint32_t bits = uint32_t(x.bits) << 16;
    float          f;
    std::memcpy(&f, &bits, sizeof f);
    return double(f);
}
double difference(const std::vector<bf16> &a, const std::vector<bf16> &b) {
    double d = 0, size = 1e-30;
    for (size_t i = 0; i < a.size(); i++) {
        const double x = widened(a[i]), y = widened(b[i]);
        d += (x - y) * (x - y), size += y * y;
    }
    return std::sqrt(d / size);
}

// Of one call, in µs, from the middle of three.
template <typename F> double time(const stream &s, F &&f) {
    std::vector<double> us;
    f();
    s.wait();
    for (int i = 0; i < 3; i++) {
        const double begin = now();
        for (int64_t k = 0; k < number("repeat"); k++) {
            f();
        }
        s.wait();
        us.push_back((now() - begin) / double(number("repeat")) * 1e6);
    }
    std::sort(us.begin(), us.end());
    return us[1];
}

void measure(const heads &h) {
    const int64_t        t = number("tokens"), q_width = int64_t(h.n_head) * h.head_dim, kv_width = int64_t(h.n_head_kv) * h.head_dim;
    std::vector<int32_t> until(static_cast<size_t>(t));
    for (int64_t i = 0; i < t; i++) {
        until[size_t(i)] = int32_t(std::min(t, (i / number("segment") + 1) * number("segment")));
    }
    const attention_lists lists(until.data(), t, nullptr, t, nullptr, 0, true);
    const stream          s(stream_use::work);
    memory                words(lists.words().size() * sizeof(int32_t)), lse(size_t(t * h.n_head) * sizeof(float)), delta(lse.size());
    memory                room(size_t(number("room")) << 20);
    to_device(words.data(), lists.words().data(), words.size(), s.get());
    s.wait();
    const attention_view            view(lists, reinterpret_cast<const int32_t *>(words.data()));
    const cft::cpu::attention_shape shape = {h.n_head, h.n_head_kv, h.head_dim, 1.0f / std::sqrt(float(h.head_dim)), 0};
    array q(t * q_width, 1, s), k(t * kv_width, 2, s), v(t * kv_width, 3, s), dout(t * q_width, 4, s), out(t * q_width, 5, s), dq(t * q_width, 6, s), dk(t * kv_width, 7, s), dv(t * kv_width, 8, s);

    const auto forward = [&](bool in_pairs) {
        attention(shape, view, q.data(), q_width, k.data(), kv_width, v.data(), kv_width, out.data(), q_width, reinterpret_cast<float *>(lse.data()), s.get(), {in_pairs});
    };
    attention_gradient m = {q.data(), k.data(), v.data(), out.data(), dout.data(), reinterpret_cast<float *>(lse.data()), reinterpret_cast<float *>(delta.data()), dq.data(), dk.data(),
                            dv.data(), q_width, kv_width, kv_width, q_width, q_width, q_width, kv_width, kv_width};
    const auto backward = [&] { attention_backward(shape, view, m, s.get()); };
    const double pairs_us = time(s, [&] { forward(true); });
    const auto   in_pairs = out.host(s);
    const double forward_us = time(s, [&] { forward(false); }), pairs_off = difference(in_pairs, out.host(s)), again_us = time(s, backward);
    const auto   dq_again = dq.host(s), dk_again = dk.host(s);
    m.scores              = reinterpret_cast<bf16 *>(room.data());
    m.heads_at_a_time     = heads_to_store(shape, view, room.size());
    const double stored_us = m.heads_at_a_time > 0 ? time(s, backward) : 0;
    const double dq_off = difference(dq.host(s), dq_again), dk_off = difference(dk.host(s), dk_again);
    if (!(dq_off < tolerance) || !(dk_off < tolerance)) {
        fail("stored gradients of scores come to other gradients: dq differs by " + std::to_string(dq_off) + ", dk by " + std::to_string(dk_off));
    }
    if (!(pairs_off < tolerance)) {
        fail("heads in pairs come to other outputs: they differ by " + std::to_string(pairs_off));
    }
    // What turn_heads had, and its way back: queries forward, queries and keys back. Norms and tables are any.
    array             x(t * (q_width + kv_width), 9, s);
    const std::vector<float> ones(size_t(t * std::max(h.head_dim, h.n_head)), 1.0f);
    memory            table(ones.size() * sizeof(float)), rstd(table.size()); // norms' weights are the table's first
    to_device(table.data(), ones.data(), table.size(), s.get());
    to_device(rstd.data(), ones.data(), table.size(), s.get());
    s.wait();
    const float *const any    = reinterpret_cast<float *>(table.data());
    const auto         source = [&](int n_head, const bf16 *from) {
        return head_source{{n_head, h.head_dim, any, 1e-6f, reinterpret_cast<float *>(rstd.data()), h.head_dim, true, any, nullptr}, from, q_width + kv_width};
    };
    const head_source queries = source(h.n_head, x.data());
    m.turned  = true;
    m.queries = queries;
    m.keys    = source(h.n_head_kv, x.data() + q_width);
    double                         turned_us[2], back_us[2];
    std::vector<std::vector<bf16>> turned, back;
    for (const bool inside : {false, true}) {
        turned_us[inside] = time(s, [&] {
            attention(shape, view, q.data(), q_width, k.data(), kv_width, v.data(), kv_width, out.data(), q_width, reinterpret_cast<float *>(lse.data()), s.get(), {true, &queries, inside});
        });
        turned.push_back(out.host(s));
        m.inside        = inside;
        back_us[inside] = time(s, backward);
        back.push_back(dq.host(s));
    }
    if (const double off = std::max(difference(turned[1], turned[0]), difference(back[1], back[0])); !(off < tolerance)) {
        fail("heads that are turned inside come to other results: they differ by " + std::to_string(off));
    }
    // Products of whole pairs of tiles; what the mask leaves out of them is counted, too.
    const double product = 2.0 * double(view.n_pairs) * h.n_head * attention_tile * attention_tile * h.head_dim;
    std::printf("{\"tool\":\"attention\",\"shape\":\"%s\",\"tokens\":%lld,\"segment\":%lld,\"heads_at_a_time\":%d,\"stored_mib\":%.0f,\"forward_us\":%.1f,\"forward_tflop_s\":%.0f,\"forward_pairs_us\":%.1f,\"forward_pairs_tflop_s\":%.0f,"
                "\"backward_us\":%.1f,\"backward_tflop_s_of_7\":%.0f,\"backward_stored_us\":%.1f,\"backward_stored_tflop_s_of_5\":%.0f,\"forward_turn_apart_us\":%.1f,\"forward_turn_inside_us\":%.1f,"
                "\"backward_turn_apart_us\":%.1f,\"backward_turn_inside_us\":%.1f,\"dq_off\":%.2g,\"dk_off\":%.2g,\"pairs_off\":%.2g}\n",
                options.at("shape").c_str(), static_cast<long long>(t), static_cast<long long>(number("segment")), m.heads_at_a_time,
                double(stored_score_bytes(shape, view)) * m.heads_at_a_time / 1048576, forward_us, 2 * product / forward_us / 1e6, pairs_us, 2 * product / pairs_us / 1e6, again_us, 7 * product / again_us / 1e6, stored_us,
                stored_us > 0 ? 5 * product / stored_us / 1e6 : 0, turned_us[0], turned_us[1], back_us[0], back_us[1], dq_off, dk_off, pairs_off);
}

} // namespace

int main(int argc, char **argv) {
    if (const std::string wrong = options.read(argc, argv); !wrong.empty()) {
        fail(wrong);
    }
    if (!shapes.count(options.at("shape"))) {
        fail("--shape is qwen3-0.6b, qwen3-1.7b, qwen3-8b, llama-1b or tiny");
    }
    if (number("tokens") < 1 || number("segment") < 1 || number("room") < 1 || number("repeat") < 1) {
        fail("--tokens, --segment, --room and --repeat are at least 1");
    }
    try {
        measure(shapes.at(options.at("shape")));
    } catch (const std::exception &e) {
        fail(e.what());
    }
}
