// test_device_adapter_pass.cpp - products of adapters that read dy in one pass over it, and with gated units (CFT_CUDA_ADAPTERS), on a CUDA device against
// the CPU engine. What test_device.cpp says of the library under test holds here.
#include "device_cuda.h"
#include "device_plans.h"
#include "family_file.h"

using namespace checks;
using namespace tiny;

namespace {

constexpr const char *variable = "CFT_CUDA_ADAPTERS";

using modules_list = std::vector<cft_module>;

// Ranks that are padded and ranks that are not, modules left out here and there.
const modules_list uneven = {{0, CFT_TARGET_ATTN_Q, 17, 30},   {0, CFT_TARGET_ATTN_V, 3, 2}, {0, CFT_TARGET_FFN_DOWN, 12, 6}, {1, CFT_TARGET_ATTN_K, 0, 0},
                             {1, CFT_TARGET_FFN_GATE, 33, 2}, {1, CFT_TARGET_ATTN_OUTPUT, 0, 0}, {2, CFT_TARGET_ATTN_Q, 0, 0}, {2, CFT_TARGET_FFN_UP, 0, 0}};

// As near to the CPU as products of their own, and the same bits whatever is kept, wherever weights are, whatever is late.
void test_as(const std::string &how, const std::string &wide, const std::string &path) {
    const options      o = device_sizes();
    const batch        b = segments(o.n_vocab), other = tree(o.n_vocab);
    cft_trainer_params p = device_params();
    where                = "one pass, " + how;
    compare(wide, other, p);
    where = "one pass, uneven ranks, " + how;
    compare(path, b, p, uneven);
    compare(path, other, p, uneven);
    compare_steps(path, p, 1e-3f, b, other, uneven);
    where     = "one pass, dropout, " + how;
    p.dropout = 0.3f;
    compare(path, b, p, uneven);
    where     = "one pass, dora, " + how;
    p.dropout = 0, p.dora = 1;
    compare(path, other, p, uneven);
    if (how == "gated") { // units of either kind
        compare_families("cuda", 96, 64, device_params(), near);
    }
    options packed = o;
    packed.type = GGML_TYPE_Q8_0, packed.n_layer = 6;
    const model m(packed, "device-pass-plans.gguf");
    for (const modules_list &modules : {uneven, modules_list{}}) {
        where              = "one pass, plans, " + how;
        const plans_seen s = every_plan(m.path, b, device_params(), 150 << 10, false, modules);
        CHECK(s.n >= 4 && s.n_whole >= 1 && s.n_between + s.n_layers >= 2 && s.n_streamed >= 1);
    }
    where = "one pass, " + how;
    compare_streams(m.path, b, other, product_bytes_of(packed));
}

// What was asked for is what is done, up to the ranks that it takes.
void test_ranks() {
    options o = device_sizes();
    o.n_ff = 2112, o.n_layer = 2; // more than a strip
    const model        wide(o, "device-pass-wide.gguf");
    const batch        b = segments(o.n_vocab);
    cft_trainer_params p = device_params();
    const auto         gradient = [&](const char *how, int rank) {
        setenv(variable, how, 1);
        p.rank = rank;
        random_bits.seed(1);
        const opened on_device(wide.path, "cuda");
        trainer      t(on_device.handle, p);
        t.write(CFT_SLOT_VALUE, some_values(t));
        const double loss = t.accumulate(b);
        return std::make_pair(loss, t.read(CFT_SLOT_GRADIENT));
    };
    for (const int rank : {16, 40, 64, 72}) { // no kernel takes the last
        where = "one pass, rank " + std::to_string(rank);
        const auto apart = gradient("", rank), pass = gradient("pass", rank), gated = gradient("gated", rank);
        CHECK(pass.first == apart.first && gated.first == apart.first);
        // Asked for, and done: sums in another order. What they round to may be the same on a device, whose products go by the same tensor cores.
        const double by_pass = worst_tensor(pass.second, apart.second), by_gated = worst_tensor(gated.second, apart.second);
        CHECK(rank > 64 ? by_pass == 0 && by_gated == 0 : !locked_on_shim() || (by_pass > 0 && by_gated > 0));
        CHECK(worst_tensor(pass.second, apart.second) < 1e-2 && worst_tensor(gated.second, apart.second) < 1e-2);
    }
    // DoRA's gains come between gated units and products on the way back; forward, down's h is made in the pass as ever.
    where  = "one pass, gains between";
    p.dora = 1;
    CHECK(worst_tensor(gradient("gated", 16).second, gradient("pass", 16).second) < 1e-2);
    unsetenv(variable);
}

void test_as(const char *how) {
    options o = device_sizes();
    o.n_ff = 2112, o.n_layer = 2;
    const model wide(o, "device-pass-wide.gguf"), m(device_sizes(), "device-pass.gguf");
    random_bits.seed(1);
    setenv(variable, how, 1);
    test_as(how, wide.path, m.path);
    unsetenv(variable);
}
void test_pass() { test_as("pass"); }
void test_gated() { test_as("gated"); }

} // namespace

int main(int argc, char **argv) {
    return run_cases("test_device_adapter_pass", argc, argv, {{"ranks", test_ranks}, {"pass", test_pass}, {"gated", test_gated}});
}
