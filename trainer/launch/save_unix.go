//go:build unix

package launch

import "syscall"

// SaveSignal asks the program to save and end, as SIGTERM does. mpirun and srun hand it on to all their processes; at SIGTERM mpirun
// kills them a second later and srun at once, before a checkpoint is written.
const SaveSignal = syscall.SIGUSR2
