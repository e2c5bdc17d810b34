// stacks.cpp - where every thread of the process stands, for the record of a run that makes no progress.
#include "cft.h"

#include <algorithm>
#include <cstring>
#include <string>

#ifdef __linux__

#include <dirent.h>
#include <execinfo.h>
#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <mutex>
#include <thread>

namespace {

constexpr int  max_frames = 64;
constexpr auto patience   = std::chrono::milliseconds(200); // for a thread to answer

// The signal is the profiler's: no thread of the pool blocks it, and nobody else's meaning is lost for longer than this.
constexpr int question = SIGPROF;

void            *frames[max_frames];
std::atomic<int> n_frames{-1}; // -1: no answer yet

extern "C" void answer(int) {
    const int n = backtrace(frames, max_frames);
    int       expected = -1;
    n_frames.compare_exchange_strong(expected, n);
}

std::string name_of(int tid) {
    const std::string path = "/proc/self/task/" + std::to_string(tid) + "/comm";
    std::string       name;
    if (FILE *f = std::fopen(path.c_str(), "r")) {
        char      text[64];
        const size_t n = std::fread(text, 1, sizeof text, f);
        std::fclose(f);
        name.assign(text, n);
    }
    return name.substr(0, name.find('\n'));
}

std::string ask(int tid) {
    n_frames = -1;
    if (syscall(SYS_tgkill, getpid(), tid, question) != 0) {
        return "  it has ended\n";
    }
    const auto until = std::chrono::steady_clock::now() + patience;
    while (n_frames < 0 && std::chrono::steady_clock::now() < until) {
        std::this_thread::sleep_for(std::chrono::milliseconds(1));
    }
    int none = -1;
    if (n_frames.compare_exchange_strong(none, 0)) { // a late answer finds its place taken
        return "  no answer: it blocks signals or hangs in the kernel\n";
    }
    const int   n       = n_frames;
    char      **symbols = backtrace_symbols(frames, n);
    std::string text;
    for (int i = 2; symbols && i < n; i++) { // without the handler and the kernel's return from it
        text += "  ";
        text += symbols[i];
        text += '\n';
    }
    std::free(symbols);
    return text;
}

std::string stacks() {
    static std::mutex           one_at_a_time;
    const std::lock_guard<std::mutex> lock(one_at_a_time);
    void *loaded[1];
    backtrace(loaded, 1); // loads libgcc now, not in a signal handler
    struct sigaction mine = {}, before = {};
    mine.sa_handler = answer;
    mine.sa_flags   = SA_ONSTACK | SA_RESTART; // on the stack that the Go runtime gives its threads for signals
    sigfillset(&mine.sa_mask);
    if (sigaction(question, &mine, &before) != 0) {
        return "the threads cannot be asked\n";
    }
    std::string text;
    if (DIR *tasks = opendir("/proc/self/task")) {
        while (const dirent *entry = readdir(tasks)) {
            const int tid = std::atoi(entry->d_name);
            if (tid > 0) {
                text += "thread " + std::to_string(tid) + " (" + name_of(tid) + ")\n" + ask(tid);
            }
        }
        closedir(tasks);
    }
    sigaction(question, &before, nullptr);
    return text;
}

} // namespace

#else

namespace {

std::string stacks() { return "not available on this system\n"; }

} // namespace

#endif

size_t cft_stacks(char *buf, size_t capacity) {
    if (!buf || capacity == 0) {
        return 0;
    }
    try {
        const std::string text = stacks();
        const size_t      n    = std::min(text.size(), capacity);
        std::memcpy(buf, text.data(), n);
        return n;
    } catch (...) { // no memory: there is nothing to tell it with
        return 0;
    }
}
