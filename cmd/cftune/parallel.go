package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"cftune/bindings/engine"
	"cftune/trainer"
	"cftune/trainer/config"
	"cftune/trainer/parallel"
)

// sizeVariables are those by which launchers tell how many processes they have started.
var sizeVariables = []string{"OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MPI_LOCALNRANKS"}

// tasksVariable is srun's, of the step.
const tasksVariable = "SLURM_STEP_NUM_TASKS"

// team is the processes that train together, as this one sees them; a nil team is a process by itself.
type team struct {
	group   *engine.Group
	started bool // rank 0 has told the others what to train
}

// joinTeam does what --parallel says.
func joinTeam(parallel string) (*team, error) {
	switch parallel {
	case "":
		for _, name := range sizeVariables {
			if n, err := strconv.Atoi(os.Getenv(name)); err == nil && n > 1 {
				return nil, codedError{fmt.Errorf("%s says that %d processes were started, which would all train the same run: --parallel mpi lets them train together", name, n), codeUsage}
			}
		}
		return nil, nil
	case "mpi":
		g, err := engine.JoinGroup()
		if err != nil {
			return nil, engineError(err)
		}
		if n, err := strconv.Atoi(os.Getenv(tasksVariable)); err == nil && n > 1 && g.Size() == 1 {
			return nil, errors.Join(codedError{fmt.Errorf("srun started %d processes, and MPI knows of this one only: srun --mpi=pmix (or what srun --mpi=list and this program's MPI have in common) lets them find each other", n), codeUsage}, g.Leave())
		}
		return &team{group: g}, nil
	}
	return nil, codedError{fmt.Errorf("--parallel: must be mpi, got %q", parallel), codeUsage}
}

// processes is how many there are; 0 for a process by itself.
func (t *team) processes() int {
	if t == nil {
		return 0
	}
	return t.group.Size()
}

// helps reports whether this process only does what rank 0 says.
func (t *team) helps() bool { return t != nil && t.group.Rank() > 0 }

// leave ends the team; the error is that of what it did. Ranks that wait to be told what to train are sent home.
func (t *team) leave(err error) error {
	if t == nil {
		return err
	}
	if !t.helps() && !t.started {
		err = errors.Join(err, parallel.Share(t.group, &start{}))
	}
	if t.helps() && err != nil {
		// Rank 0 may wait for this rank in the midst of a step.
		printError(os.Stderr, fmt.Errorf("rank %d: %w", t.group.Rank(), err))
		t.group.Abort(exitCode(err))
	}
	return errors.Join(err, t.group.Leave())
}

// start is what rank 0 tells the others: what to train. Nothing: it came to nothing.
type start struct {
	Run         *config.Run
	MaxSequence int
}

// help is what the other ranks do.
func (t *team) help(ctx context.Context) error {
	var s start
	if err := parallel.Share(t.group, &s); err != nil || s.Run == nil {
		return err
	}
	e, err := t.open(*s.Run, s.MaxSequence)
	if err != nil {
		return err
	}
	defer e.Close()
	// Rank 0 decides what an interrupt means, which launchers send to all.
	return parallel.Serve(context.WithoutCancel(ctx), t.group, e)
}

// localRanks are the variables in which launchers tell a process its number on its machine.
var localRanks = []string{"OMPI_COMM_WORLD_LOCAL_RANK", "MPI_LOCALRANKID", "SLURM_LOCALID"}

// deviceOfRank gives each process of a machine a CUDA device of its own, in turns, unless a certain one was named.
func deviceOfRank(device string, getenv func(string) string, cudaDevices func() int) string {
	if device != "auto" && device != "cuda" {
		return device
	}
	for _, name := range localRanks {
		if rank, err := strconv.Atoi(getenv(name)); err == nil && rank >= 0 {
			if n := cudaDevices(); n > 0 {
				return fmt.Sprintf("cuda:%d", rank%n)
			}
			return device
		}
	}
	return device
}

func cudaDevices() int {
	devices, err := engine.Devices()
	if err != nil {
		return 0 // opening the engine will say why
	}
	n := 0
	for _, d := range devices {
		if d.CanTrain && !d.Portable && strings.HasPrefix(d.Name, "CUDA") {
			n++
		}
	}
	return n
}

// open opens every rank's engine; where one fails, or they are not the same, all do.
func (t *team) open(run config.Run, maxSequence int) (*nativeEngine, error) {
	if t == nil {
		return openEngine(run, maxSequence)
	}
	if !t.helps() {
		t.started = true
		if err := parallel.Share(t.group, &start{&run, maxSequence}); err != nil {
			return nil, err
		}
	}
	run.Device = deviceOfRank(run.Device, os.Getenv, cudaDevices)
	e, err := openEngine(run, maxSequence)
	facts := map[string]string{"version": programVersion(), "instruction set": engine.CPUFeatures(), "engine": "opened"}
	if err == nil {
		facts["base model"], err = trainer.ModelDigest(run.Model)
	}
	if err != nil {
		facts["engine"] = err.Error()
	}
	if err = errors.Join(err, parallel.Agree(t.group, facts)); err != nil {
		if e != nil {
			e.Close()
		}
		return nil, err
	}
	return e, nil
}
