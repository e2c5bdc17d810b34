// cuda_shim.cpp - blocks of fibers; see cuda_shim.h.
#if defined(__APPLE__)
#define _XOPEN_SOURCE 600 // or <ucontext.h> declares nothing
#define _DARWIN_C_SOURCE
#endif
#include "cuda_shim.h"

#include <algorithm>
#include <cstdio>
#include <exception>
#include <vector>

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace cft::cuda::shim {
namespace {

constexpr size_t        stack_bytes = 128 << 10;
constexpr size_t        guard_bytes = 64;
constexpr unsigned char guard_byte  = 0xA5, fresh_byte = 0xFF; // fresh shared memory reads as NaN

#if defined(__x86_64__)
// Saves what a call must keep, changes stacks, and goes on where the other stack left off. ucontext's functions would save
// the signal mask too: two system calls for each switch. It jumps rather than returns, which processors would foresee wrongly.
extern "C" void cft_shim_switch(void **save, void *to);
asm(R"(
.text
.globl cft_shim_switch
.type cft_shim_switch, @function
cft_shim_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    popq %rcx
    jmp *%rcx
.size cft_shim_switch, .-cft_shim_switch
)");
#endif

struct barrier {
    int      alive = 0, arrived = 0;
    unsigned round = 0;

    void release() {
        if (alive > 0 && arrived == alive) {
            arrived = 0;
            round++;
        }
    }
};

struct later_copy {
    void       *to;
    const void *from; // NULL: zeros
    size_t      bytes;
};

struct fiber {
#if !defined(__x86_64__)
    ucontext_t context;
#endif
    void      *stack_top  = nullptr;
    char      *stack      = nullptr;
    barrier   *waits_for  = nullptr;
    unsigned   round      = 0;
    bool       done       = false;
    unsigned   index      = 0;

    std::vector<later_copy> copies;                 // not waited for yet, in groups that end at:
    std::vector<size_t>     group_ends;
};

struct warp {
    barrier     all;
    warp_values values[2]; // used in turns: a thread can be one exchange ahead of the slowest, not two
    unsigned    turn[warp_size];
};

struct block {
    std::vector<fiber>           fibers;
    std::vector<warp>            warps;
    barrier                      all;
    fiber                       *current       = nullptr;
    void                        *scheduler_top = nullptr;
#if !defined(__x86_64__)
    ucontext_t                   scheduler;
#endif
    const std::function<void()> *body = nullptr;
    std::vector<char>            stacks;
};

block       b;
const char *running = ""; // the kernel

[[noreturn]] void stop(const char *name, const char *what) {
    std::fprintf(stderr, "cuda_shim: kernel %s, block (%u, %u, %u): %s\n", name, block_index.x, block_index.y, block_index.z, what);
    std::abort();
}

// Leaves the current fiber for the scheduler. AddressSanitizer is not told, which would be most of the time: the stacks are memory of the heap, kernels
// have no shadow stacks and throw nothing, and what it finds in a kernel it names in full.
void leave() {
    fiber &f = *b.current;
#if defined(__x86_64__)
    cft_shim_switch(&f.stack_top, b.scheduler_top);
#else
    swapcontext(&f.context, &b.scheduler);
#endif
}

void wait(barrier &at) {
    fiber         &f     = *b.current;
    const unsigned round = at.round;
    at.arrived++;
    at.release();
    if (at.round == round) {
        f.waits_for = &at;
        f.round     = round;
        leave();
    }
}

void fiber_main() {
    fiber &f = *b.current;
    (*b.body)();
    f.done     = true;
    barrier &w = b.warps[f.index / warp_size].all;
    w.alive--;
    w.release();
    b.all.alive--;
    b.all.release();
    leave();
    std::abort(); // a fiber that is done is not entered again
}

void prepare(fiber &f) {
#if defined(__x86_64__)
    void **top = reinterpret_cast<void **>(f.stack + stack_bytes);
    *--top     = nullptr; // keeps the stack aligned as after a call
    *--top     = reinterpret_cast<void *>(&fiber_main);
    for (int i = 0; i < 6; i++) {
        *--top = nullptr;
    }
    f.stack_top = top;
#else
    getcontext(&f.context);
    f.context.uc_stack.ss_sp   = f.stack;
    f.context.uc_stack.ss_size = stack_bytes;
    f.context.uc_link          = nullptr;
    makecontext(&f.context, fiber_main, 0);
#endif
}

void enter(fiber &f) {
    b.current = &f;
#if defined(__x86_64__)
    cft_shim_switch(&b.scheduler_top, f.stack_top);
#else
    swapcontext(&b.scheduler, &f.context);
#endif
}

// Runs a warp's threads until all of them wait or are done; gives whether any moved, and takes those that are done off left.
bool run_warp(unsigned warp_index, dim3 size, unsigned &left) {
    const unsigned begin = warp_index * warp_size, end = std::min<unsigned>(begin + warp_size, unsigned(b.fibers.size()));
    bool           any   = false;
    for (bool moved = true; moved;) {
        moved = false;
        for (unsigned k = 0; k < end - begin; k++) {
            const unsigned i = descending ? end - 1 - k : begin + k;
            fiber         &f = b.fibers[i];
            if (f.done || (f.waits_for && f.waits_for->round == f.round)) {
                continue;
            }
            f.waits_for  = nullptr;
            current_lane = int(i - begin);
            thread_index = dim3(i % size.x, i / size.x % size.y, i / size.x / size.y);
            enter(f);
            any = moved = true;
            left -= f.done;
        }
    }
    return any;
}

void run_block(const char *name, dim3 size, char *shared, size_t shared_bytes) {
    const unsigned n = size.x * size.y * size.z;
    b.fibers.resize(n);
    b.warps.resize((n + warp_size - 1) / warp_size);
    for (warp &w : b.warps) {
        w.all = barrier();
        std::memset(w.turn, 0, sizeof w.turn);
    }
    b.all       = barrier();
    b.all.alive = int(n);
    if (b.stacks.size() < n * stack_bytes) {
        b.stacks.resize(n * stack_bytes);
    }
    for (unsigned i = 0; i < n; i++) {
        fiber &f    = b.fibers[i];
        f.index     = i;
        f.stack     = b.stacks.data() + i * stack_bytes;
        f.waits_for = nullptr;
        f.done      = false;
        f.copies.clear();
        f.group_ends.clear();
        prepare(f);
        b.warps[i / warp_size].all.alive++;
    }
    std::memset(shared, fresh_byte, shared_bytes);
    std::memset(shared + shared_bytes, guard_byte, guard_bytes);
    // One warp goes as far as it can before the next moves: what is missing between warps then shows.
    const unsigned n_warps = unsigned(b.warps.size());
    for (unsigned left = n; left > 0;) {
        bool moved = false;
        for (unsigned k = 0; k < n_warps; k++) {
            const bool     ran = run_warp(descending ? n_warps - 1 - k : k, size, left);
            moved              = moved || ran;
        }
        if (!moved) {
            stop(name, "its threads wait for one another forever");
        }
    }
    for (size_t i = 0; i < guard_bytes; i++) {
        if (static_cast<unsigned char>(shared[shared_bytes + i]) != guard_byte) {
            stop(name, "wrote past its shared memory");
        }
    }
}

} // namespace

void run(const char *name, dim3 grid, dim3 size, size_t shared_bytes, const std::function<void()> &body) {
    constexpr size_t  alignment = 1024; // what kernels ask for at most
    std::vector<char> shared(shared_bytes + guard_bytes + alignment);
    char *const       aligned = reinterpret_cast<char *>((reinterpret_cast<uintptr_t>(shared.data()) + alignment - 1) & ~uintptr_t(alignment - 1));
    shared_memory             = aligned;
    block_size                = size;
    grid_size                 = grid;
    b.body                    = &body;
    running                   = name;
    launches[name]++;
    const unsigned n          = grid.x * grid.y * grid.z;
    for (unsigned k = 0; k < n; k++) {
        const unsigned i = descending ? n - 1 - k : k;
        block_index      = dim3(i % grid.x, i / grid.x % grid.y, i / grid.x / grid.y);
        run_block(name, size, aligned, shared_bytes);
    }
}

void misaligned(const void *p, size_t bytes) {
    std::fprintf(stderr, "cuda_shim: kernel %s, block (%u, %u, %u): takes %zu bytes at %p, which is no multiple of them\n", running, block_index.x,
                 block_index.y, block_index.z, bytes, p);
    std::abort();
}

void block_barrier() {
    wait(b.all);
}

namespace {

void make(const later_copy &c) { c.from ? (void)std::memcpy(c.to, c.from, c.bytes) : (void)std::memset(c.to, 0, c.bytes); }

} // namespace

void copy_later(void *to, const void *from, size_t bytes) {
    if (descending) {
        make({to, from, bytes});
    } else {
        b.current->copies.push_back({to, from, bytes});
    }
}

void end_copy_group() { b.current->group_ends.push_back(b.current->copies.size()); }

void finish_copies(size_t pending) {
    fiber &f = *b.current;
    if (f.group_ends.size() <= pending) {
        return;
    }
    const size_t groups = f.group_ends.size() - pending, n = f.group_ends[groups - 1];
    for (size_t i = 0; i < n; i++) {
        make(f.copies[i]);
    }
    f.copies.erase(f.copies.begin(), f.copies.begin() + std::ptrdiff_t(n));
    f.group_ends.erase(f.group_ends.begin(), f.group_ends.begin() + std::ptrdiff_t(groups));
    for (size_t &end : f.group_ends) {
        end -= n;
    }
}

warp_values &next_values() {
    warp &w = b.warps[b.current->index / warp_size];
    return w.values[w.turn[lane()]++ % 2];
}

void wait_for_warp() { wait(b.warps[b.current->index / warp_size].all); }

} // namespace cft::cuda::shim
