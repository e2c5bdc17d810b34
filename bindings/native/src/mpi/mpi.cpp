// mpi.cpp - libcftune-mpi: the group of processes over MPI (Open MPI, MPICH; MPI 3).
#include "../group.h"

#include <mpi.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#if defined(__linux__)
#include <sched.h>
#endif

namespace {

MPI_Comm world = MPI_COMM_NULL;
int      my_rank = 0, n_ranks = 1;

// MPI counts in int: longer arrays go in parts.
constexpr size_t most = size_t(1) << 30;

int told(int status, const char *what, char *why, size_t n_why) {
    if (status == MPI_SUCCESS) {
        return 0;
    }
    char text[MPI_MAX_ERROR_STRING] = "";
    int  length                     = 0;
    MPI_Error_string(status, text, &length);
    std::snprintf(why, n_why, "%s: %s", what, text);
    return 1;
}

// sharing counts the processes of this machine, this one among them, that may run on a processor of this one's.
int sharing(int *processes, char *why, size_t n_why) {
    MPI_Comm here = MPI_COMM_NULL;
    if (int failed = told(MPI_Comm_split_type(world, MPI_COMM_TYPE_SHARED, my_rank, MPI_INFO_NULL, &here), "MPI_Comm_split_type", why, n_why)) {
        return failed;
    }
    int n = 1;
    MPI_Comm_size(here, &n);
    *processes = n;
#if defined(__linux__)
    cpu_set_t              mine;
    std::vector<cpu_set_t> all(static_cast<size_t>(n));
    CPU_ZERO(&mine);
    sched_getaffinity(0, sizeof mine, &mine); // one that fails shares with nobody, and leaves the others theirs
    if (int failed = told(MPI_Allgather(&mine, int(sizeof mine), MPI_BYTE, all.data(), int(sizeof mine), MPI_BYTE, here), "MPI_Allgather", why, n_why)) {
        return failed;
    }
    *processes = int(std::count_if(all.begin(), all.end(), [&](const cpu_set_t &other) {
        cpu_set_t both;
        CPU_AND(&both, &mine, &other);
        return CPU_COUNT(&both) > 0;
    }));
#endif
    return told(MPI_Comm_free(&here), "MPI_Comm_free", why, n_why);
}

int join(int *rank, int *size, int *processes, char *why, size_t n_why) {
    int ready = 0, level = 0;
    MPI_Initialized(&ready);
    if (ready) {
        std::snprintf(why, n_why, "this process is in a group already");
        return 1;
    }
    // Calls come from any thread, one at a time.
    if (int failed = told(MPI_Init_thread(nullptr, nullptr, MPI_THREAD_SERIALIZED, &level), "MPI_Init_thread", why, n_why)) {
        return failed;
    }
    if (level < MPI_THREAD_SERIALIZED) {
        std::snprintf(why, n_why, "this MPI library does not take calls from several threads");
        return 1;
    }
    if (int failed = told(MPI_Comm_dup(MPI_COMM_WORLD, &world), "MPI_Comm_dup", why, n_why)) {
        return failed;
    }
    MPI_Comm_set_errhandler(world, MPI_ERRORS_RETURN);
    MPI_Comm_rank(world, &my_rank);
    MPI_Comm_size(world, &n_ranks);
    *rank = my_rank;
    *size = n_ranks;
    return sharing(processes, why, n_why);
}

int leave(char *why, size_t n_why) {
    MPI_Comm_free(&world);
    return told(MPI_Finalize(), "MPI_Finalize", why, n_why);
}

void abort_all(int exit_code) { MPI_Abort(MPI_COMM_WORLD, exit_code); }

int broadcast(void *data, size_t n, char *why, size_t n_why) {
    for (size_t at = 0; at < n; at += most) {
        char *part = static_cast<char *>(data) + at;
        if (int failed = told(MPI_Bcast(part, int(std::min(most, n - at)), MPI_BYTE, 0, world), "MPI_Bcast", why, n_why)) {
            return failed;
        }
    }
    return 0;
}

int gather(const void *mine, size_t n, void *all, char *why, size_t n_why) {
    if (n > most) {
        std::snprintf(why, n_why, "gather: %zu bytes are too many", n);
        return 1;
    }
    return told(MPI_Allgather(mine, int(n), MPI_BYTE, all, int(n), MPI_BYTE, world), "MPI_Allgather", why, n_why);
}

// Elements [begin(r), begin(r + 1)) are rank r's share.
int sum_part(float *data, size_t n, char *why, size_t n_why) {
    std::vector<int> counts(n_ranks), starts(n_ranks), mine(n_ranks), at(n_ranks);
    const auto       begin = [&](int r) { return size_t(r) * n / size_t(n_ranks); };
    const int        share = int(begin(my_rank + 1) - begin(my_rank));
    for (int r = 0; r < n_ranks; r++) {
        starts[r] = int(begin(r));
        counts[r] = int(begin(r + 1) - begin(r));
        mine[r]   = share;
        at[r]     = r * share;
    }
    std::vector<float> parts(size_t(share) * size_t(n_ranks)), total(share);
    if (int failed = told(MPI_Alltoallv(data, counts.data(), starts.data(), MPI_FLOAT, parts.data(), mine.data(), at.data(), MPI_FLOAT, world),
                          "MPI_Alltoallv", why, n_why)) {
        return failed;
    }
    for (int i = 0; i < share; i++) {
        double sum = 0;
        for (int r = 0; r < n_ranks; r++) {
            sum += double(parts[size_t(r) * size_t(share) + size_t(i)]);
        }
        total[size_t(i)] = float(sum);
    }
    return told(MPI_Allgatherv(total.data(), share, MPI_FLOAT, data, counts.data(), starts.data(), MPI_FLOAT, world), "MPI_Allgatherv", why,
                n_why);
}

int sum(float *data, size_t n, char *why, size_t n_why) {
    for (size_t at = 0; at < n; at += most) {
        if (int failed = sum_part(data + at, std::min(most, n - at), why, n_why)) {
            return failed;
        }
    }
    return 0;
}

} // namespace

extern "C" __attribute__((visibility("default"))) const cft::group_functions cft_mpi_functions_2 = {join, leave, abort_all, broadcast, gather, sum};
