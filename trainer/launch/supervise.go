package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/durable"
)

// Ask is what a signal asks the supervisor for.
type Ask int

// What can be asked for.
const (
	AskStop    Ask = iota // save, end, and do not come back
	AskRequeue            // the time is nearly up: save, end, and take another turn
)

// The exit codes of the program that decide what is done next.
const (
	exitDone        = 0
	exitOther       = 1
	exitCheckpoint  = 4
	exitDevice      = 5
	exitMirror      = 7
	exitInterrupted = 130
)

// maxBackoff bounds the pause between attempts.
const maxBackoff = 30 * time.Minute

// Supervise runs the job in a folder to its end: it starts the program, starts it again where a failure may pass, and writes
// all of that down. It returns the exit code for its own process. asks is never closed. Another supervisor of the same job is
// an error, a *durable.HeldError.
func Supervise(dir string, asks <-chan Ask) (int, error) { return supervise(dir, asks, patience) }

// patience is how long a program that was asked to end is left to save. Being asked again sooner changes nothing, since people and schedulers
// repeat themselves; later, it ends a program that hangs.
const patience = time.Minute

func supervise(dir string, asks <-chan Ask, patience time.Duration) (int, error) {
	job, err := ReadJob(dir)
	if err != nil {
		return exitOther, err
	}
	lock, err := durable.Acquire(filepath.Join(dir, lockName))
	if err != nil {
		return exitOther, err
	}
	defer lock.Release() // the process ends anyway
	log, err := regular.OpenFile(filepath.Join(dir, logName), os.O_WRONLY|os.O_CREATE|os.O_APPEND, privateFile)
	if err != nil {
		return exitOther, err
	}
	defer log.Close()
	s := &supervisor{dir: dir, job: job, log: log, asks: asks, patience: patience}
	if s.state, err = readState(dir); err != nil {
		return exitOther, err
	}
	if err := s.state.identify(); err != nil {
		return exitOther, err
	}
	s.state.SlurmJob = slurmJobID(os.Getenv)
	code, err := s.run()
	if err != nil {
		s.say("supervisor: %v", err)
		s.state.Phase, s.state.Message, s.state.ExitCode = PhaseFailed, err.Error(), exitOther
		return exitOther, errors.Join(err, writeState(dir, s.state))
	}
	return code, nil
}

type supervisor struct {
	dir   string
	job   Job
	log   *os.File
	asks  <-chan Ask
	state State

	patience time.Duration
}

// say writes a line of the supervisor's own into the log.
func (s *supervisor) say(format string, args ...any) {
	// Where the log cannot be written, the state says how it ended.
	_, _ = fmt.Fprintf(s.log, "launch: %s: %s\n", time.Now().UTC().Format(time.RFC3339), fmt.Sprintf(format, args...))
}

func (s *supervisor) set(phase, format string, args ...any) error {
	s.state.Phase, s.state.Message = phase, fmt.Sprintf(format, args...)
	s.say("%s", strings.TrimSuffix(phase+": "+s.state.Message, ": "))
	return writeState(s.dir, s.state)
}

func (s *supervisor) run() (int, error) {
	for _, name := range s.job.Secrets {
		if os.Getenv(name) == "" {
			return 0, fmt.Errorf("the secret %s did not come with the start: its variable was empty", name)
		}
	}
	pause := s.job.Backoff
	for failures := 0; ; failures++ {
		before, err := s.job.saved()
		if err != nil {
			return 0, err
		}
		asked, wasAsked, err := s.attempt()
		if err != nil {
			return 0, err
		}
		code := s.state.ExitCode
		switch {
		case code == exitDone:
			var words string
			words, s.state.StepsLeft = s.job.stepsLeft()
			return code, s.set(PhaseDone, "%s", words)
		case wasAsked && asked == AskRequeue && s.job.Requeue && code == exitInterrupted:
			if now, err := s.job.saved(); err != nil || now == before {
				return code, errors.Join(err, s.set(PhaseStopped, "the time was up before a step of this turn was saved, and another turn would end so: raise slurm.time"))
			}
			return s.requeue()
		case wasAsked:
			return code, s.set(PhaseStopped, "stopped when asked, with exit code %d", code)
		case !s.job.mayPass(code):
			return code, s.set(PhaseFailed, "%s; such a failure does not pass by itself", s.how())
		case failures >= s.job.Retries:
			return code, s.set(PhaseFailed, "%s, after %d attempts", s.how(), failures+1)
		}
		if err := s.set(PhaseRetrying, "%s; attempt %d of %d begins in %v", s.how(), failures+2, s.job.Retries+1, pause); err != nil {
			return 0, err
		}
		select {
		case <-time.After(pause):
		case <-s.asks:
			return code, s.set(PhaseStopped, "stopped when asked, before another attempt")
		}
		pause = min(2*pause, maxBackoff)
	}
}

// saved tells apart what a job has saved before a turn and after it.
func (j Job) saved() (string, error) {
	if j.Part != nil {
		return savedOfStudy(j.Run)
	}
	step, err := newestStep(j.Run)
	return strconv.Itoa(step), err
}

// newestStep is that of a run's newest checkpoint, 0 if it has none.
func newestStep(run string) (int, error) {
	steps, err := checkpoint.List(run)
	if errors.Is(err, checkpoint.ErrNotFound) || err == nil && len(steps) == 0 {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	return steps[len(steps)-1], nil
}

// mayPass reports whether what ended so is worth another attempt: signals of others, devices, and what has no better name.
// Wrong configurations, data and checkpoints stay wrong. A part of a study may find its models held by a process whose node is
// gone, for as long as a file server believes in that.
func (j Job) mayPass(code int) bool {
	switch code {
	case exitOther, exitDevice, exitMirror, exitInterrupted, -1:
		return true
	case exitCheckpoint:
		return j.Part != nil
	}
	return code > 128 // a shell's word for a signal
}

// how says how the last attempt ended.
func (s *supervisor) how() string {
	if last := s.state.Attempts[len(s.state.Attempts)-1]; last.Signal != "" {
		return "ended by signal: " + last.Signal
	}
	return fmt.Sprintf("ended with exit code %d", s.state.ExitCode)
}

// stepsLeft says, of a run that ended well before its last step, at which limit it did, and whether it can go on from there.
func (j Job) stepsLeft() (words string, resumable bool) {
	text, err := regular.ReadFile(filepath.Join(j.Run, runEnd))
	if err != nil {
		return "", false // a study, or a program that writes none
	}
	var end struct{ Reason string }
	if err := json.Unmarshal(text, &end); err != nil {
		return "", false
	}
	switch end.Reason {
	case "max_time", "stop_after":
		return fmt.Sprintf("it ended with steps left (%s); cftune launch resume %s goes on", end.Reason, j.Name), true
	case "patience":
		return "it ended by patience (data.validation.patience)", false
	}
	return "", false
}

// attempt runs the program once. It reports what was asked for meanwhile.
func (s *supervisor) attempt() (asked Ask, wasAsked bool, err error) {
	// The program is told when the thread that started it ends (parentDeath), which must therefore stay.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	words := s.job.command(filepath.Join(s.dir, configName), orResume)
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Dir = s.dir
	cmd.Stdout, cmd.Stderr = s.log, s.log
	cmd.Env = os.Environ()
	for _, k := range sortedKeys(s.job.Env) {
		cmd.Env = append(cmd.Env, k+"="+s.job.Env[k])
	}
	cmd.SysProcAttr = parentDeath()
	s.state.Attempts = append(s.state.Attempts, Attempt{Started: time.Now().UTC()})
	s.state.StepsLeft = false
	if err := cmd.Start(); err != nil {
		return 0, false, err
	}
	if err := s.set(PhaseRunning, "attempt %d, pid %d on %s", len(s.state.Attempts), cmd.Process.Pid, s.state.Host); err != nil {
		return 0, false, errors.Join(err, cmd.Process.Signal(syscall.SIGTERM), cmd.Wait())
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	var since time.Time
	for done := false; !done; {
		select {
		case err = <-ended:
			done = true
		case a := <-s.asks:
			if wasAsked {
				if time.Since(since) >= s.patience {
					s.say("asked again: what does not end is ended, and goes on from its newest checkpoint")
					_ = cmd.Process.Signal(syscall.SIGTERM)                                      // the second one: it ends at once, with the processes that it minds
					defer time.AfterFunc(s.patience/6, func() { _ = cmd.Process.Kill() }).Stop() // which takes at most killGrace
				}
				break
			}
			asked, wasAsked, since = a, true, time.Now()
			s.say("asked to end: the run saves a checkpoint")
			_ = cmd.Process.Signal(syscall.SIGTERM) // it may have ended
		}
	}
	last := &s.state.Attempts[len(s.state.Attempts)-1]
	last.Ended = time.Now().UTC()
	var exit *exec.ExitError
	switch {
	case err == nil:
	case errors.As(err, &exit):
		last.Code = exit.ExitCode()
		if status, ok := exit.Sys().(syscall.WaitStatus); ok && status.Signaled() {
			last.Signal = status.Signal().String()
		}
	default:
		return asked, wasAsked, err
	}
	s.state.ExitCode = last.Code
	return asked, wasAsked, nil
}

// requeueTimeout bounds the request for another turn.
const requeueTimeout = time.Minute

// requeue asks Slurm to run this job again, from its checkpoint.
func (s *supervisor) requeue() (int, error) {
	if err := s.set(PhaseRequeued, "the time was up; the run is saved and waits for another turn"); err != nil {
		return 0, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), requeueTimeout)
	defer cancel()
	out, err := exec.CommandContext(ctx, "scontrol", "requeue", s.state.SlurmJob).CombinedOutput()
	if err != nil {
		return exitInterrupted, s.set(PhaseStopped, "the time was up, and Slurm gives no other turn (scontrol requeue: %v: %s); cftune launch resume %s goes on",
			err, lastLines(string(out), 3), s.job.Name)
	}
	// Slurm ends this process now. Ending by itself first would make the job a finished one.
	time.Sleep(requeueTimeout)
	return exitInterrupted, nil
}

// slurmJobID is the job that this process runs in, empty if none; of an array, with the element.
func slurmJobID(getenv func(string) string) string {
	if array := getenv("SLURM_ARRAY_JOB_ID"); array != "" {
		return array + "_" + getenv("SLURM_ARRAY_TASK_ID")
	}
	return getenv("SLURM_JOB_ID")
}

// tail returns the last lines of a file.
func tail(f io.ReadSeeker, n int) string {
	const most = 16 << 10
	size, err := f.Seek(0, io.SeekEnd)
	if err != nil {
		return ""
	}
	if _, err := f.Seek(max(0, size-most), io.SeekStart); err != nil {
		return ""
	}
	text, err := io.ReadAll(io.LimitReader(f, most))
	if err != nil {
		return ""
	}
	return lastLines(string(text), n)
}
