// test_shim.cpp - the shim sees what a device or its libraries would refuse: grids and blocks that are too large, addresses that vectors and
// copies are not aligned to, products whose rows are not.
#include "checks.h"
#include "cuda/engine/gemm.h"
#include "cuda/tensor_core.h"

#include <functional>
#include <sys/wait.h>
#include <unistd.h>

using namespace checks;
using namespace cft::cuda;

namespace {

void nothing(int) {}

bool refused(const std::function<void()> &what) {
    try {
        what();
    } catch (const cft::failure &f) {
        return f.status == CFT_ERR_INTERNAL;
    }
    return false;
}

void test_launches() {
    where = "launches";
    const auto starts = [](dim3 grid, int threads, size_t shared) { return !refused([&] { launch("nothing", nothing, grid, threads, shared, nullptr, 0); }); };
    CHECK(starts(1, 32, shared_everywhere) && !starts(1, 32, shared_everywhere + 1));
    CHECK(starts(dim3(1, 65535), 32, 0) && !starts(dim3(1, 65536), 32, 0) && !starts(dim3(1, 1, 65536), 32, 0));
    CHECK(starts(1, 1024, 0) && !starts(1, 1056, 0) && !starts(1, 48, 0));
}

// Whether a block of one warp ends its process, which is a child here.
bool ends(void (*kernel)(bf16 *, int), int offset) {
    const pid_t child = fork();
    if (child == 0) {
        if (!std::freopen("/dev/null", "w", stderr)) { // of its words
            std::_Exit(1);
        }
        alignas(16) static bf16 memory[64];
        launch("misaligned", kernel, 1, lanes, 1024, nullptr, memory, offset);
        std::_Exit(0);
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child);
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT;
}

void test_addresses() {
    where = "addresses";
    const std::pair<const char *, void (*)(bf16 *, int)> kernels[] = {
        {"load", [](bf16 *x, int at) { (void)load8(x + at); }},
        {"store", [](bf16 *x, int at) { store8(x + at, eight{}); }},
        {"copy to", [](bf16 *x, int at) { copy_async(shared_array<bf16>() + at, x, true); }},
        {"copy from", [](bf16 *x, int at) { copy_async(shared_array<bf16>(), x + at, true); }},
        {"copy of nothing", [](bf16 *x, int at) { copy_async(shared_array<bf16>(), x + at, false); }},
        {"matrices", [](bf16 *, int at) {
             uint32_t r[4];
             load_matrices<false>(r, shared_array<bf16>() + at);
         }},
    };
    for (const auto &[name, kernel] : kernels) {
        where = std::string("addresses: ") + name;
        CHECK(!ends(kernel, 8) && ends(kernel, 4));
    }
}

void test_products() {
    where = "products";
    alignas(16) static bf16  a[16 * 16], b[16 * 16];
    alignas(16) static float c[16 * 16];
    const auto               multiply = make_products(nullptr, 0);
    const product            good     = {8, 8, 8, a, 16, false, b, 16, false, c, 16, true};
    const auto               with     = [&](const std::function<void(product &)> &change) {
        product p = good;
        change(p);
        return !refused([&] { multiply->run(p, nullptr); });
    };
    CHECK(with([](product &) {}));
    CHECK(!with([](product &p) { p.a += 4; }) && !with([](product &p) { p.b += 4; }) && !with([](product &p) { p.c = static_cast<float *>(p.c) + 2; }));
    CHECK(!with([](product &p) { p.ld_a = 12; }) && !with([](product &p) { p.ld_b = 12; }) && !with([](product &p) { p.ld_c = 10; }));
    CHECK(with([](product &p) { p.ld_c = 12; })); // F32
    CHECK(!with([](product &p) { p.k = 24; }) && !with([](product &p) { p.k = 0; }) && with([](product &p) { p.m = 0, p.k = 0; }));
}

} // namespace

int main() {
    test_launches();
    test_addresses();
    test_products();
    return finish("test_shim");
}
