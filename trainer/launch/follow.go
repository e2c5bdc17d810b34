package launch

import (
	"bytes"
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
	// Parts are the jobs of a study that is made in several; their lines are marked with their numbers.
	Parts []string
	// Log gets the run's log as it grows, from its beginning or, with Tail, from its last lines on.
	Log  io.Writer
	Tail bool
	Say  func(format string, args ...any)
	// Poll is the pause between two looks; 0 means a second.
	Poll time.Duration

	shown []*shown
}

// shown is what was shown of one job.
type shown struct {
	name   string
	log    io.Writer
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
	f.shown = nil
	for i, name := range f.Parts {
		f.shown = append(f.shown, &shown{name: name, log: &markedLines{out: f.Log, mark: fmt.Sprintf("[%d/%d] ", i+1, len(f.Parts))}})
	}
	if len(f.shown) == 0 {
		f.shown = []*shown{{name: f.Name, log: f.Log}}
	}
	pause := reconnectFirst
	for {
		before := f.offset()
		state, err := f.connected(ctx)
		if err == nil || ctx.Err() != nil || !mayReconnect(err) {
			return state, err
		}
		if f.offset() != before {
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

// offset is how much was shown of all logs.
func (f *Follower) offset() (n int64) {
	for _, s := range f.shown {
		n += s.offset
	}
	return n
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
	for {
		states := make([]State, len(f.shown))
		for i, s := range f.shown {
			if states[i], err = f.look(ctx, t, s); err != nil {
				return states[i], err
			}
		}
		if state := together(states); Over(state.Phase) {
			return state, nil
		}
		select {
		case <-ctx.Done():
			return together(states), ctx.Err()
		case <-time.After(f.Poll):
		}
	}
}

// look shows what is new of one job.
func (f *Follower) look(ctx context.Context, t Target, s *shown) (State, error) {
	dir := JobDir(t, s.name)
	// The state first: what the log has after a run is over is all.
	state, err := t.Status(ctx, dir)
	if err != nil {
		return state, err
	}
	if state.Phase == PhaseNew {
		if job, err := readJobOf(t.Host(), dir); err != nil || job == nil {
			return state, errors.Join(err, usage("there is no run %s on %s", s.name, t.Host().Name()))
		}
	}
	if err := s.showLog(ctx, t.Host(), path.Join(dir, logName), f.Tail); err != nil {
		return state, err
	}
	if said := state.Phase + ": " + state.Message; said != s.phase {
		s.phase = said
		f.Say("%s is %s", s.name, trimColon(said))
	}
	return state, nil
}

// markedLines writes whole lines with a mark before each.
type markedLines struct {
	out  io.Writer
	mark string
	rest []byte // of a line that has not ended
}

func (m *markedLines) Write(p []byte) (int, error) {
	m.rest = append(m.rest, p...)
	end := bytes.LastIndexByte(m.rest, '\n') + 1
	for line := range bytes.Lines(m.rest[:end]) {
		if _, err := fmt.Fprintf(m.out, "%s%s", m.mark, line); err != nil {
			return 0, err
		}
	}
	m.rest = append([]byte{}, m.rest[end:]...)
	return len(p), nil
}

func trimColon(text string) string {
	if n := len(text); n > 2 && text[n-2:] == ": " {
		return text[:n-2]
	}
	return text
}

// showLog copies what the log has gained.
func (s *shown) showLog(ctx context.Context, h Host, path string, tail bool) error {
	file, err := h.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer file.Close()
	if !s.began {
		s.began = true
		if tail {
			size, err := file.Seek(0, io.SeekEnd)
			if err != nil {
				return err
			}
			s.offset = max(0, size-tailBytes)
		}
	}
	if _, err := file.Seek(s.offset, io.SeekStart); err != nil {
		return err
	}
	n, err := io.Copy(s.log, &contextReader{ctx, file, 0})
	s.offset += n
	if err != nil {
		return fmt.Errorf("read the log: %w", err)
	}
	return nil
}
