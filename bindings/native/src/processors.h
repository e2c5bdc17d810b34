// processors.h - how many processors this process may use.
#pragma once

#include <string>

namespace cft {

// available_processors is the number of threads that can run at a time: the processors of this process's affinity mask
// (taskset, cpusets), but no more than the CPU time that its control group is given (containers), rounded up. Threads
// beyond it would wait for each other at every barrier. Of what several processes share, its part. At least 1.
int available_processors();

// share_processors says how many processes, this one among them, share the processors of this one.
void share_processors(int processes);

// quota_of returns the processors that a cgroup's limit is worth, as "200000 100000" (cpu.max of version 2: microseconds
// in each period) is worth 2; 0 where the text says that there is no limit, or is no limit.
double quota_of(const std::string &cpu_max);

} // namespace cft
