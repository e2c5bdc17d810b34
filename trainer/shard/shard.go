// Package shard divides rows among processes that know nothing of each other: every one takes the rows that fall to its number, so that
// together they take each row once, and a row is treated as it would be without shards.
package shard

import (
	"fmt"
	"strconv"
	"strings"
)

// Shard is one of Of equal parts, counted from 1. The zero value is all rows.
type Shard struct{ Number, Of int }

// Parse reads "2/4", the second of four, or "auto": what the process was started as by mpirun, srun or an indexed Job with
// CFTUNE_SHARDS. An empty text is all rows.
func Parse(text string, getenv func(string) string) (Shard, error) {
	switch text {
	case "":
		return Shard{}, nil
	case "auto":
		return fromEnvironment(getenv)
	}
	number, of, found := strings.Cut(text, "/")
	n, err1 := strconv.Atoi(number)
	m, err2 := strconv.Atoi(of)
	if !found || err1 != nil || err2 != nil || n < 1 || m < n {
		return Shard{}, fmt.Errorf("shard %q: must be NUMBER/OF, as 2/4 for the second of four, or auto", text)
	}
	return Shard{n, m}, nil
}

// launchers name the variables in which each tells a process its rank, from 0, and the number of processes.
var launchers = []struct{ rank, size string }{
	{"OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"}, // Open MPI's mpirun
	{"PMI_RANK", "PMI_SIZE"},                         // MPICH's, and srun --mpi=pmi2
	{"SLURM_PROCID", "SLURM_NTASKS"},                 // srun
	{"JOB_COMPLETION_INDEX", "CFTUNE_SHARDS"},        // an indexed Job of Kubernetes, which does not tell how many there are
	{"SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_COUNT"},
}

func fromEnvironment(getenv func(string) string) (Shard, error) {
	for _, l := range launchers {
		rank, err1 := strconv.Atoi(getenv(l.rank))
		size, err2 := strconv.Atoi(getenv(l.size))
		if err1 == nil && err2 == nil && size > 1 {
			if rank < 0 || rank >= size {
				return Shard{}, fmt.Errorf("shard auto: %s is %d, but there are %d (%s), counted from 0", l.rank, rank, size, l.size)
			}
			return Shard{rank + 1, size}, nil
		}
	}
	return Shard{}, fmt.Errorf("shard auto: no launcher says which process this is; NUMBER/OF does, as 2/4")
}

// All says whether every row is the shard's.
func (s Shard) All() bool { return s.Of == 0 }

// Len is how many of n rows are the shard's.
func (s Shard) Len(n int) int {
	if s.All() {
		return n
	}
	return (n - s.Number + s.Of) / s.Of
}

// Row is the number among all rows, from 0, of the shard's row i.
func (s Shard) Row(i int) int {
	if s.All() {
		return i
	}
	return s.Number - 1 + i*s.Of
}

// Folder is the name of a shard's folder.
func (s Shard) Folder() string { return fmt.Sprintf("shard-%d-of-%d", s.Number, s.Of) }

// Folders is the pattern of all shards' folders.
const Folders = "shard-*-of-*"
