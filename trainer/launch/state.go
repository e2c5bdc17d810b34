package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// Phases of a run on a target.
const (
	PhaseNew      = "new"      // not started yet
	PhasePending  = "pending"  // waits in a queue
	PhaseRunning  = "running"  // trains
	PhaseRetrying = "retrying" // failed, and waits to be started again
	PhaseRequeued = "requeued" // its time was up; it waits for another turn
	PhaseEnding   = "ending"   // interrupted with a checkpoint; whether Slurm runs it again shows when it has cleared up
	PhaseDone     = "done"
	PhaseFailed   = "failed"
	PhaseStopped  = "stopped" // interrupted with a checkpoint
	PhaseLost     = "lost"    // nothing runs, and nobody wrote down why
)

// State is what the supervisor writes down about a run.
type State struct {
	Phase string `json:"phase"`
	// Message tells people more.
	Message string `json:"message,omitempty"`
	// ExitCode is that of the last attempt that ended; -1 after a signal.
	ExitCode int `json:"exit_code"`
	// StepsLeft says of a run that is done that a limit ended it (limits.max_time): it goes on if it is resumed by name.
	StepsLeft bool      `json:"steps_left,omitempty"`
	Attempts  []Attempt `json:"attempts"`
	Updated   time.Time `json:"updated"`

	// The supervisor, known beyond a reused process number by when it began and on which boot of which host.
	Host  string `json:"host"`
	Pid   int    `json:"pid"`
	Began string `json:"began"` // ticks since boot, or on macOS seconds
	Boot  string `json:"boot"`
	// SlurmJob is the job that it runs in.
	SlurmJob string `json:"slurm_job,omitempty"`

	// Parts are those of a study that is made in several, if this is its state; that one is written down nowhere.
	Parts []State `json:"parts,omitempty"`
}

// Attempt is one start of the program.
type Attempt struct {
	Started time.Time `json:"started"`
	Ended   time.Time `json:"ended,omitzero"`
	Code    int       `json:"code"`
	Signal  string    `json:"signal,omitempty"`
}

// Over reports whether nothing more happens without another start.
func Over(phase string) bool {
	switch phase {
	case PhasePending, PhaseRunning, PhaseRetrying, PhaseRequeued, PhaseEnding:
		return false
	}
	return true
}

// Resumable reports whether nothing happens, and more can be had by another start.
func (s State) Resumable() bool { return startable(s) || s.Phase == PhaseDone && s.StepsLeft }

func parseState(text []byte) (State, error) {
	var s State
	if err := json.Unmarshal(text, &s); err != nil {
		return s, fmt.Errorf("%s: %w", stateName, err)
	}
	return s, nil
}

// readState returns the state in a job folder of this machine; without one it is new.
func readState(dir string) (State, error) {
	text, err := regular.ReadFile(filepath.Join(dir, stateName))
	if errors.Is(err, fs.ErrNotExist) {
		return State{Phase: PhaseNew}, nil
	}
	if err != nil {
		return State{}, err
	}
	return parseState(text)
}

func writeState(dir string, s State) error {
	s.Updated = time.Now().UTC()
	text, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return err
	}
	_, err = durable.ReplaceFile(durable.OS, filepath.Join(dir, stateName), func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
	return err
}

// identify fills in which process this is.
func (s *State) identify() error {
	var err error
	if s.Host, err = os.Hostname(); err != nil {
		return err
	}
	s.Pid, s.Boot = os.Getpid(), bootID()
	s.Began = processBegan(s.Pid)
	return nil
}

// alive reports whether the supervisor runs, on this machine.
func (s *State) alive() bool {
	return s.Pid > 0 && s.Boot == bootID() && s.Began != "" && s.Began == processBegan(s.Pid)
}
