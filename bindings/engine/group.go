package engine

// #include "cft_group.h"
import "C"

import (
	"runtime"
	"unsafe"
)

// Group is several processes that train together over MPI. All of them make the same calls in the same order, from one
// goroutine at a time. A process that dies takes the others with it: its launcher (mpirun, srun) ends them.
type Group struct {
	c          *C.cft_group
	rank, size int
}

// JoinGroup makes this process part of the group that its launcher started. Once per process.
func JoinGroup() (*Group, error) {
	var (
		g          Group
		rank, size C.int32_t
		ce         C.cft_error
	)
	if err := check("group_join", C.cft_group_join(&g.c, &rank, &size, &ce), &ce); err != nil {
		return nil, err
	}
	g.rank, g.size = int(rank), int(size)
	return &g, nil
}

// Rank is this process's number, from 0.
func (g *Group) Rank() int { return g.rank }

// Size is the number of processes.
func (g *Group) Size() int { return g.size }

// Leave ends the group, when all have come so far.
func (g *Group) Leave() error {
	c := g.c
	g.c = nil
	var ce C.cft_error
	return check("group_leave", C.cft_group_leave(c, &ce), &ce)
}

// Abort ends all processes of the group at once.
func (g *Group) Abort(exitCode int) { C.cft_group_abort(g.c, C.int32_t(exitCode)) }

// Broadcast copies rank 0's data to everybody's, which is as long.
func (g *Group) Broadcast(data []byte) error {
	var ce C.cft_error
	st := C.cft_group_broadcast(g.c, unsafe.Pointer(unsafe.SliceData(data)), C.size_t(len(data)), &ce)
	runtime.KeepAlive(data)
	return check("group_broadcast", st, &ce)
}

// Gather returns everybody's data, by rank; all are as long as mine.
func (g *Group) Gather(mine []byte) ([]byte, error) {
	all := make([]byte, g.size*len(mine))
	var ce C.cft_error
	st := C.cft_group_gather(g.c, unsafe.Pointer(unsafe.SliceData(mine)), C.size_t(len(mine)), unsafe.Pointer(unsafe.SliceData(all)), &ce)
	runtime.KeepAlive(mine)
	return all, check("group_gather", st, &ce)
}

// Sum replaces data, which all have as much of, by the sums over all ranks: the same bits on every rank and in every run.
func (g *Group) Sum(data []float32) error {
	var ce C.cft_error
	st := C.cft_group_sum(g.c, floats(data), C.size_t(len(data)), &ce)
	runtime.KeepAlive(data)
	return check("group_sum", st, &ce)
}
