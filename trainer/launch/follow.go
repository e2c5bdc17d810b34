package launch

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"time"
)

// Follower shows what happens to a run, over as many connections as it takes.
type Follower struct {
	// Open connects anew.
	Open func(ctx context.Context) (Target, error)
	Name string
	// Log gets the run's log as it grows, from its beginning or, with Tail, from its last lines on.
	Log  io.Writer
	Tail bool
	Say  func(format string, args ...any)
	// Poll is the pause between two looks; 0 means a second.
	Poll time.Duration

	offset int64
	began  bool
	phase  string
}

const (
	reconnectFirst = time.Second
	reconnectMost  = 30 * time.Second
	// tailBytes is how much of a log is shown to who comes later.
	tailBytes = 4 << 10
)

// Follow shows the log until the run is over, and returns how it then stands. Ending it, by the context, does nothing to
// the run. A connection that is lost is made again.
func (f *Follower) Follow(ctx context.Context) (State, error) {
	if f.Poll == 0 {
		f.Poll = pollSlow
	}
	pause := reconnectFirst
	for {
		before := f.offset
		state, err := f.connected(ctx)
		if err == nil || ctx.Err() != nil || !mayReconnect(err) {
			return state, err
		}
		if f.offset != before {
			pause = reconnectFirst
		}
		f.Say("the connection is lost (%v); the run does not need it; again in %v", err, pause)
		select {
		case <-ctx.Done():
			return state, ctx.Err()
		case <-time.After(pause):
		}
		pause = min(2*pause, reconnectMost)
	}
}

// mayReconnect tells a network's faults from what another connection would meet as well.
func mayReconnect(err error) bool {
	var key *HostKeyError
	var wrong *UsageError
	var exit *ExitError
	return !errors.As(err, &key) && !errors.As(err, &wrong) && !errors.As(err, &exit) && !errors.Is(err, fs.ErrPermission)
}

// connected follows over one connection.
func (f *Follower) connected(ctx context.Context) (State, error) {
	t, err := f.Open(ctx)
	if err != nil {
		return State{}, err
	}
	defer t.Close()
	dir := JobDir(t, f.Name)
	for {
		// The state first: what the log has after a run is over is all.
		state, err := t.Status(ctx, dir)
		if err != nil {
			return state, err
		}
		if state.Phase == PhaseNew {
			if job, err := readJobOf(t.Host(), dir); err != nil || job == nil {
				return state, errors.Join(err, usage("there is no run %s on %s", f.Name, t.Host().Name()))
			}
		}
		if err := f.showLog(ctx, t.Host(), path.Join(dir, logName)); err != nil {
			return state, err
		}
		if said := state.Phase + ": " + state.Message; said != f.phase {
			f.phase = said
			f.Say("%s is %s", f.Name, trimColon(said))
		}
		if Over(state.Phase) {
			return state, nil
		}
		select {
		case <-ctx.Done():
			return state, ctx.Err()
		case <-time.After(f.Poll):
		}
	}
}

func trimColon(text string) string {
	if n := len(text); n > 2 && text[n-2:] == ": " {
		return text[:n-2]
	}
	return text
}

// showLog copies what the log has gained.
func (f *Follower) showLog(ctx context.Context, h Host, path string) error {
	file, err := h.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if !f.began {
		f.began = true
		if f.Tail {
			size, err := file.Seek(0, io.SeekEnd)
			if err != nil {
				return err
			}
			f.offset = max(0, size-tailBytes)
		}
	}
	if _, err := file.Seek(f.offset, io.SeekStart); err != nil {
		return err
	}
	n, err := io.Copy(f.Log, &contextReader{ctx, file})
	f.offset += n
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}
