// group.h - what libcftune-mpi offers to libcftune: plain functions over one communicator. They return 0, or put words into
// `why` and return another number.
#pragma once

#include <cstddef>

namespace cft {

struct group_functions {
    // sharing: so many processes of the group, this one among them, may run on this one's processors.
    int (*join)(int *rank, int *size, int *sharing, char *why, size_t n_why);
    int (*leave)(char *why, size_t n_why);
    void (*abort)(int exit_code);
    int (*broadcast)(void *data, size_t n, char *why, size_t n_why);
    int (*gather)(const void *mine, size_t n, void *all, char *why, size_t n_why);
    int (*sum)(float *data, size_t n, char *why, size_t n_why);
};

// The name under which the library exports them, as `const group_functions`.
constexpr const char *group_symbol = "cft_mpi_functions_2";

} // namespace cft
