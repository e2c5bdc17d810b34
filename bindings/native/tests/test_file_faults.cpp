// test_file_faults.cpp - pages of a mapped file that is cut off: read as zeros, told with the file's name, from several threads at once; and
// faults that are none of such a file's end the process as they would without the handler.
#include "checks.h"
#include "file_faults.h"

#include <cstdio>
#include <string>

#if defined(__linux__)

#include <fcntl.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstdlib>
#include <filesystem>
#include <thread>
#include <utility>
#include <vector>

namespace {

const size_t page = size_t(sysconf(_SC_PAGESIZE));

struct mapped {
    std::string    path;
    int            fd;
    size_t         size;
    volatile char *data;

    mapped(size_t pages, int protection, int flags) : size(pages * page) {
        path = (std::filesystem::temp_directory_path() / "cft-faults-XXXXXX").string();
        fd   = mkstemp(path.data());
        const std::vector<char> text(size, 'x');
        CHECK(write(fd, text.data(), size) == ssize_t(size));
        data = static_cast<volatile char *>(mmap(nullptr, size, protection, flags, fd, 0));
        CHECK(data != MAP_FAILED);
    }
    ~mapped() {
        munmap(const_cast<char *>(data), size);
        close(fd);
        unlink(path.c_str());
    }
    void cut(size_t bytes) { CHECK(ftruncate(fd, off_t(bytes)) == 0); }
};

// in_child runs body in a process of its own and returns how that ended, as waitpid has it.
template <typename Body> int in_child(Body &&body) {
    std::fflush(nullptr);
    const pid_t pid = fork();
    if (pid == 0) {
        rlimit none{0, 0};
        setrlimit(RLIMIT_CORE, &none);
        body();
        _exit(checks::failures > 0 ? 1 : 0);
    }
    int status = -1;
    CHECK(waitpid(pid, &status, 0) == pid);
    return status;
}

void a_file_that_is_cut_off() {
    const int status = in_child([] {
        mapped m(64, PROT_READ, MAP_SHARED);
        cft_error err{};
        int       ran = 0;
        CHECK(cft::guard_files(&err, [&] { ran++; }) == CFT_OK);
        char sum = 0;
        // A body that reads what is gone, and one that then says something else of it.
        CHECK(cft::guard_files(&err, [&] {
                  m.cut(3 * page + 7);
                  CHECK(m.data[3 * page] == 'x'); // the rest of its last page is zeros
                  for (size_t i = 0; i < m.size; i += page) {
                      sum = char(sum + m.data[i]);
                  }
                  throw cft::failure(CFT_ERR_NON_FINITE, "not finite");
              }) == CFT_ERR_IO);
        CHECK(sum == char(4 * 'x'));
        const std::string words = err.message;
        CHECK(words.find(m.path + " was cut off while it was in use: it has " + std::to_string(3 * page + 7) + " bytes now, and those from " +
                         std::to_string(4 * page) + " on are needed") != std::string::npos);
        CHECK(cft::guard_files(&err, [&] { ran++; }) == CFT_ERR_IO); // what was lost does not come back
        CHECK(ran == 1);
        m.cut(m.size);
        CHECK(cft::guard_files(&err, [&] { ran++; }) == CFT_ERR_IO);
        CHECK(std::string(err.message).find("could not be read at byte") != std::string::npos);
    });
    CHECK(status == 0);
}

void threads_that_fault_together() {
    const int status = in_child([] {
        cft::catch_file_faults();
        for (int round = 0; round < 50; round++) {
            mapped                   m(32, PROT_READ, MAP_SHARED);
            std::atomic<bool>        go{false};
            std::atomic<int>         zeros{0};
            std::vector<std::thread> threads;
            m.cut(0);
            for (int t = 0; t < 4; t++) {
                threads.emplace_back([&] {
                    while (!go) {
                    }
                    int mine = 0;
                    for (size_t i = m.size; i > 0; i -= page) { // from the end: each page is a fault of its own
                        mine += m.data[i - 1] == 0;
                    }
                    zeros += mine;
                });
            }
            go = true;
            for (std::thread &t : threads) {
                t.join();
            }
            CHECK(zeros == 4 * 32);
        }
    });
    CHECK(status == 0);
}

// A private mapping, as of a program's own code and data, or one that can be written to, is none of ours.
void other_faults() {
    for (const auto &[protection, flags] : {std::pair{PROT_READ, MAP_PRIVATE}, std::pair{PROT_READ | PROT_WRITE, MAP_SHARED}}) {
        const int status = in_child([&, protection = protection, flags = flags] {
            signal(SIGBUS, SIG_DFL); // not a sanitizer's
            cft::catch_file_faults();
            mapped m(2, protection, flags);
            m.cut(0);
            unlink(m.path.c_str()); // nobody will come back
            (void)m.data[page];
        });
        CHECK(WIFSIGNALED(status) && WTERMSIG(status) == SIGBUS);
    }
}

void the_host_is_asked() {
    const int status = in_child([] {
        struct sigaction host{};
        host.sa_sigaction = [](int, siginfo_t *info, void *) { _exit(info->si_code == BUS_ADRERR ? 17 : 18); };
        host.sa_flags     = SA_SIGINFO;
        sigaction(SIGBUS, &host, nullptr);
        cft::catch_file_faults();
        mapped m(2, PROT_READ, MAP_PRIVATE);
        m.cut(0);
        unlink(m.path.c_str());
        (void)m.data[page];
    });
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 17);
}

} // namespace

int main() {
    a_file_that_is_cut_off();
    threads_that_fault_together();
    other_faults();
    the_host_is_asked();
    return checks::finish("file faults");
}

#else

int main() {
    cft_error err{};
    int       ran = 0;
    CHECK(cft::guard_files(&err, [&] { ran++; }) == CFT_OK);
    CHECK(ran == 1);
    return checks::finish("file faults");
}

#endif
