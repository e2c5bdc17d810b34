// cft_group.h - several processes that train one adapter together, over MPI. The rules of cft.h hold. MPI is in a library of
// its own (libcftune-mpi.so, built where MPI is found), so that libcftune needs none.
#ifndef CFT_GROUP_H
#define CFT_GROUP_H

#include "cft.h"

#ifdef __cplusplus
extern "C" {
#endif

// A group has `size` processes with ranks from 0. All of them make the same calls in the same order, one at a time; a call
// returns when this process has its part. A process that dies takes the others with it: its launcher (mpirun, srun) ends them.
typedef struct cft_group cft_group;

// cft_group_join makes this process part of the group that its launcher started. Once per process.
CFT_API cft_status cft_group_join(cft_group **out, int32_t *rank, int32_t *size, cft_error *err);
// cft_group_leave ends it, when all have come so far. The handle is gone in any case.
CFT_API cft_status cft_group_leave(cft_group *group, cft_error *err);
// cft_group_abort ends all processes of the group at once; it does not return.
CFT_API void cft_group_abort(cft_group *group, int32_t exit_code);

// cft_group_broadcast copies rank 0's n bytes to all.
CFT_API cft_status cft_group_broadcast(cft_group *group, void *data, size_t n, cft_error *err);
// cft_group_gather copies everybody's n bytes to all: `all` is [size][n].
CFT_API cft_status cft_group_gather(cft_group *group, const void *mine, size_t n, void *all, cft_error *err);
// cft_group_sum replaces everybody's n floats by the sums over all ranks, added in double precision from rank 0 up: the same
// bits on every rank and in every run. Each rank adds up its share of the elements and hands it to the others.
CFT_API cft_status cft_group_sum(cft_group *group, float *data, size_t n, cft_error *err);

#ifdef __cplusplus
}
#endif
#endif
