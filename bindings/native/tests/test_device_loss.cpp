// test_device_loss.cpp - loss and head in several tiles on a CUDA device, against the CPU engine and against all at a time: with weights widened
// once, packed, and from the host. What test_device.cpp says of the library under test holds here.
#include "device_cuda.h"
#include "device_tiles.h"

using namespace checks;
using namespace tiny;

namespace {

// Sums come in another order, so that what is rounded to bf16 in between falls to the other side here and there.
constexpr nearness near_whole = {1 - 1e-4, 1 - 1e-3, 1e-3, 1e-5};

// Memory limits with which the layers' weights are widened, packed, and on the host.
std::vector<uint64_t> limits_of_places(const tiles_case &c, const cft::loss_tiles &tiles) {
    const opened              on_device(c.path, "cuda");
    const cft_model          &m = *on_device.handle;
    const cft::adapter_shape  shape(m, c.params, c.modules.data(), c.modules.size());
    cft_trainer_params        p        = c.params;
    const auto                estimate = [&] { return m.device->estimate(m, p, shape, m.device_index, false, tiles); };
    const cft_memory_estimate widened  = estimate();
    cft_memory_estimate       packed = widened, host = widened;
    for (int i = 0; host.streamed == 0 && i < 1000; i++) {
        packed         = host;
        p.memory_limit = host.total - 1;
        host           = estimate();
    }
    CHECK(widened.streamed == 0 && packed.weights < widened.weights && host.streamed > 0 && host.total <= p.memory_limit);
    return {0, packed.total, host.total};
}

void test_tiles() {
    const std::vector<tiles_case> cases = tiles_cases("device-loss", device_params());
    const cft::loss_tiles         all[] = {{5, 64}, {1, 128}, {11, 8}}; // the last tile full, and not
    for (size_t i = 0; i < cases.size(); i++) {
        const cft::loss_tiles &tiles  = all[i % std::size(all)];
        const auto             limits = limits_of_places(cases[i], tiles);
        for (size_t place = 0; place < limits.size(); place++) {
            where = "loss, " + cases[i].name + ", " + std::vector<std::string>{"widened", "packed", "from the host"}[place];
            compare_tiles("cuda", cases[i], {tiles, limits[place]}, near, logit_tolerance, near_whole);
        }
    }
}

// The same bits wherever weights are: the head's tiles decide the order of sums over the vocabulary, also where it is widened once. Of so many
// sums some would be rounded to another bf16 otherwise.
void test_places() {
    options o = device_sizes();
    o.n_vocab = 4000, o.n_layer = 6, o.type = GGML_TYPE_Q8_0, o.n_embd = 256, o.n_ff = 256;
    const model           m(o, "device-loss-places.gguf");
    const tiles_case      c{"places", m.path, device_params()};
    const cft::loss_tiles tiles = {16, 64};
    batch                 b;
    b.add_segment(60, o.n_vocab, 1);
    const opened on_device(c.path, "cuda");
    gradients    values, want;
    for (const uint64_t limit : limits_of_places(c, tiles)) {
        where = "the same bits, limit " + std::to_string(limit);
        trainer t(on_device.handle, c.params);
        in_tiles(t, {tiles, limit});
        values = values.empty() ? some_values(t) : values;
        t.write(CFT_SLOT_VALUE, values);
        const gradients g = t.gradient(b);
        want              = want.empty() ? g : want;
        CHECK(norm(flat(g)) > 0 && worst_tensor(g, want) == 0);
    }
}

} // namespace

int main(int argc, char **argv) { return run_cases("test_device_loss", argc, argv, {{"tiles", test_tiles}, {"places", test_places}}); }
