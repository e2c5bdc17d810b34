// processors.cpp - see processors.h.
#include "processors.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <thread>

#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace cft {

namespace {

std::atomic<int> sharing{1};

std::string text_of(const std::string &path) {
    std::ifstream     file(path);
    std::stringstream text;
    text << file.rdbuf();
    return text.str();
}

// The least quota of this process's control group and those above it; 0: none.
double cgroup_quota() {
    const std::string root  = "/sys/fs/cgroup";
    double            least = 0;
    const auto        take  = [&](double quota) { least = quota > 0 && (least == 0 || quota < least) ? quota : least; };
    std::istringstream groups(text_of("/proc/self/cgroup"));
    for (std::string line; std::getline(groups, line);) {
        if (line.rfind("0::", 0) != 0) {
            continue;
        }
        for (std::string group = line.substr(3);; group.resize(group.rfind('/'))) {
            take(quota_of(text_of(root + group + "/cpu.max")));
            if (group.empty() || group.rfind('/') == std::string::npos) {
                break;
            }
        }
    }
    // Version 1 shows a container its own group here.
    const std::string one = root + "/cpu/cpu.cfs_";
    take(quota_of(text_of(one + "quota_us") + " " + text_of(one + "period_us")));
    return least;
}

int affinity() {
#if defined(__linux__)
    cpu_set_t set;
    if (sched_getaffinity(0, sizeof set, &set) == 0) {
        return CPU_COUNT(&set);
    }
#endif
#if defined(__APPLE__)
    // The fast ones: work is divided evenly, and all would wait for those that save power.
    int    fast = 0;
    size_t size = sizeof fast;
    if (sysctlbyname("hw.perflevel0.logicalcpu", &fast, &size, nullptr, 0) == 0 && fast > 0) {
        return fast;
    }
#endif
    return int(std::thread::hardware_concurrency());
}

} // namespace

double quota_of(const std::string &cpu_max) {
    std::istringstream in(cpu_max);
    double             quota = 0, period = 0;
    if (!(in >> quota >> period) || quota <= 0 || period <= 0) {
        return 0; // "max", or -1 in version 1
    }
    return quota / period;
}

int available_processors() {
    const double quota = cgroup_quota();
    const int    most  = affinity();
    return std::max(1, (quota > 0 ? std::min(most, int(std::ceil(quota))) : most) / sharing);
}

void share_processors(int processes) { sharing = std::max(1, processes); }

} // namespace cft
