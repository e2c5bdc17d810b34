package launch

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"

	"cftune/trainer/internal/durable"
)

// farRequest is what is asked of the program on a target, by standard input: no quoting, nothing for others to see.
type farRequest struct {
	Do  string `json:"do"` // start, status, stop, remove
	Dir string `json:"dir"`
}

// farAnswer is what it answers.
type farAnswer struct {
	Started bool  `json:"started,omitempty"`
	Exists  bool  `json:"exists"` // the job folder
	State   State `json:"state"`
}

const (
	startTimeout = 20 * time.Second
	stopTimeout  = 10 * time.Minute
	pollEvery    = 50 * time.Millisecond
)

// Far serves one request on the target: it reads it from in and writes the answer to out. program is this very program.
func Far(in io.Reader, out io.Writer, program string) error {
	var r farRequest
	if err := json.NewDecoder(io.LimitReader(in, maxOutput)).Decode(&r); err != nil {
		return fmt.Errorf("request: %w", err)
	}
	if !filepath.IsAbs(r.Dir) {
		return fmt.Errorf("request: %q is no absolute path", r.Dir)
	}
	var a farAnswer
	var err error
	switch r.Do {
	case "start":
		a, err = farStart(r.Dir, program)
	case "status":
		a, err = farStatus(r.Dir)
	case "stop":
		a, err = farStop(r.Dir)
	case "remove":
		a, err = farRemove(r.Dir)
	default:
		err = fmt.Errorf("request: unknown: %q", r.Do)
	}
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(a)
}

// farStatus reads the state; a supervisor that should be alive and is not makes the run a lost one.
func farStatus(dir string) (farAnswer, error) {
	var a farAnswer
	if _, err := os.Stat(filepath.Join(dir, jobName)); errors.Is(err, os.ErrNotExist) {
		return a, nil
	}
	a.Exists = true
	var err error
	if a.State, err = readState(dir); err != nil {
		return a, err
	}
	if !Over(a.State.Phase) && !a.State.alive() {
		a.State.Message = fmt.Sprintf("it was %s when it was last heard of (%s); its supervisor, pid %d, is gone without a word: the host was restarted, or it was killed",
			a.State.Phase, a.State.Updated.Format(time.RFC3339), a.State.Pid)
		a.State.Phase = PhaseLost
	}
	return a, nil
}

func farStart(dir, program string) (farAnswer, error) {
	a, err := farStatus(dir)
	if err != nil || a.Exists && !a.State.Resumable() {
		return a, err
	}
	if !a.Exists {
		return a, fmt.Errorf("%s holds no job", dir)
	}
	errs, err := os.CreateTemp(dir, "start-*.tmp")
	if err != nil {
		return a, err
	}
	defer os.Remove(errs.Name())
	defer errs.Close()
	cmd := exec.Command(program, "launch", "job", dir)
	cmd.Dir, cmd.SysProcAttr = dir, detached()
	cmd.Stdout, cmd.Stderr = errs, errs
	if err := cmd.Start(); err != nil {
		return a, err
	}
	pid := cmd.Process.Pid
	began := processBegan(pid) // the state of an earlier supervisor may have the same number
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.After(startTimeout)
	for {
		if now, err := readState(dir); err == nil && now.Pid == pid && now.Began == began && now.Phase != PhaseNew {
			return farAnswer{Started: true, Exists: true, State: now}, nil
		}
		select {
		case err := <-ended:
			// It may have been quick; or another supervisor was quicker.
			if a, statusErr := farStatus(dir); statusErr == nil && (a.State.Pid == pid || !Over(a.State.Phase)) {
				a.Started = a.State.Pid == pid
				return a, nil
			}
			return a, fmt.Errorf("the supervisor did not begin (%v): %s", err, tail(errs, 5))
		case <-deadline:
			return a, errors.Join(fmt.Errorf("the supervisor wrote no state in %v: it is ended", startTimeout), cmd.Process.Kill())
		case <-time.After(pollEvery):
		}
	}
}

func farStop(dir string) (farAnswer, error) {
	a, err := farStatus(dir)
	if err != nil || Over(a.State.Phase) {
		return a, err
	}
	p, err := os.FindProcess(a.State.Pid)
	if err == nil {
		err = p.Signal(syscall.SIGTERM)
	}
	if err != nil && !errors.Is(err, os.ErrProcessDone) {
		return a, fmt.Errorf("stop pid %d: %w", a.State.Pid, err)
	}
	for deadline := time.Now().Add(stopTimeout); a.State.alive(); time.Sleep(pollEvery) {
		if time.Now().After(deadline) {
			return a, fmt.Errorf("pid %d was told to end %v ago and has not: cftune launch stop, given again, ends it without another checkpoint", a.State.Pid, stopTimeout)
		}
	}
	return farStatus(dir)
}

func farRemove(dir string) (farAnswer, error) {
	a, err := farStatus(dir)
	if err != nil || !a.Exists {
		return a, err
	}
	if !Over(a.State.Phase) {
		return a, fmt.Errorf("it is %s: cftune launch stop ends it first", a.State.Phase)
	}
	// Nobody starts it meanwhile.
	lock, err := durable.Acquire(filepath.Join(dir, lockName))
	if err != nil {
		return a, err
	}
	return a, errors.Join(os.RemoveAll(dir), lock.Release())
}
