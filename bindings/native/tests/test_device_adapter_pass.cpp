// test_device_adapter_pass.cpp - adapters of gate and up whose products are made in the pass of the gated units' way back, and adapters' gradients beside the
// product of dx, on a CUDA device against the CPU engine and against a device without (CFT_CUDA_ADAPTERS turns them off). What test_device.cpp says of the library under test holds here.
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
    where                = "adapters, " + how;
    compare(wide, other, p);
    where = "adapters, uneven ranks, " + how;
    compare(path, b, p, uneven);
    compare(path, other, p, uneven);
    compare_steps(path, p, 1e-3f, b, other, uneven);
    where     = "adapters, dropout, " + how;
    p.dropout = 0.3f;
    compare(path, b, p, uneven);
    where     = "adapters, dora, " + how;
    p.dropout = 0, p.dora = 1;
    compare(path, other, p, uneven);
    compare_families("cuda", 96, 64, device_params(), near); // units of either kind
    options packed = o;
    packed.type = GGML_TYPE_Q8_0, packed.n_layer = 6;
    const model m(packed, "device-pass-plans.gguf");
    for (const modules_list &modules : {uneven, modules_list{}}) {
        where              = "adapters, plans, " + how;
        const plans_seen s = every_plan(m.path, b, device_params(), 150 << 10, false, modules);
        CHECK(s.n >= 4 && s.n_whole >= 1 && s.n_between + s.n_layers >= 2 && s.n_streamed >= 1);
    }
    setenv("CFT_SHIM_LATE", "side", 1); // what is beside, as late as the waits for it allow
    where                 = "adapters, plans, late, " + how;
    const plans_seen late = every_plan(m.path, b, device_params(), 150 << 10);
    CHECK(late.n >= 4 && late.n_between + late.n_layers >= 2);
    unsetenv("CFT_SHIM_LATE");
    where = "adapters, " + how;
    compare_streams(m.path, b, other, product_bytes_of(packed));
}

// What is asked for is what is done, up to the ranks that the pass takes.
void test_ranks() {
    options o = device_sizes();
    o.n_ff = 2112, o.n_layer = 4; // more than a strip; layers that have somebody's act to write over
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
    for (const int rank : {8, 16, 24}) { // the pass does not take the last
        where = "adapters in gated units' pass, rank " + std::to_string(rank);
        const auto apart = gradient("products", rank), gated = gradient("", rank), alone = gradient("alone", rank);
        CHECK(gated.first == apart.first && alone.first == apart.first && norm(flat(apart.second)) > 0);
        // Asked for, and done: sums in another order. What they round to may be the same on a device, whose products go by the same tensor cores.
        const double difference = worst_tensor(gated.second, apart.second);
        CHECK(rank > 16 ? difference == 0 : difference < 1e-2 && (!locked_on_shim() || difference > 0));
        CHECK(worst_tensor(alone.second, gated.second) == 0); // another stream, the same products
    }
    // DoRA's gains come between gated units and products: there is nothing to take along.
    where  = "adapters, gains between";
    p.dora = 1;
    CHECK(worst_tensor(gradient("", 16).second, gradient("products", 16).second) == 0);
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
void test_gated() { test_as(""); }
void test_products() { test_as("products,alone"); }

} // namespace

int main(int argc, char **argv) {
    return run_cases("test_device_adapter_pass", argc, argv, {{"ranks", test_ranks}, {"gated", test_gated}, {"products", test_products}});
}
