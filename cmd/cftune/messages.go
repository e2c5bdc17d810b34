package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"syscall"
	"time"
)

// messages is standard error as the program writes to it. A reader that has gone (a tee that was killed, head) is no error and does not end the
// process; one that takes nothing more (a pager that nobody scrolls, a connection that hangs) holds nothing up, least of all a run that was
// told to save.
//
// Files and terminals are written to directly: the latter are asked for their size, and a key goes on with one that was stopped.
func messages() io.Writer {
	f := ownStderr()
	info, err := f.Stat()
	if err != nil || info.Mode()&(os.ModeNamedPipe|os.ModeSocket) == 0 {
		return f
	}
	return &patient{to: f, patience: time.Second, most: 1 << 20}
}

// inherited is what another process is given as its standard error for a writer: itself, with the rules of its own.
func inherited(w io.Writer) io.Writer {
	if p, ok := w.(*patient); ok {
		return p.to
	}
	return w
}

// patient writes to a reader that may stop reading. Each text waits until it is read; but once that has taken too long, all are held instead until the
// reader has caught up, and those beyond a bound are left out, which is said in their place.
type patient struct {
	to       io.Writer
	patience time.Duration
	most     int // bytes that are held

	mu      sync.Mutex
	held    []byte
	missing int           // lines that were left out since
	idle    chan struct{} // closed when all is written; nil: it is
	stuck   bool
	gone    bool // there is no reader any more
}

// Write never fails: nothing depends on messages.
func (p *patient) Write(text []byte) (int, error) {
	p.mu.Lock()
	switch {
	case p.gone:
		p.mu.Unlock()
		return len(text), nil
	case p.missing > 0 || len(p.held)+len(text) > p.most && p.stuck:
		p.missing += bytes.Count(text, []byte("\n"))
		p.mu.Unlock()
		return len(text), nil
	}
	p.held = append(p.held, text...)
	if p.idle == nil {
		p.idle = make(chan struct{})
		go p.pass()
	}
	idle, stuck := p.idle, p.stuck
	p.mu.Unlock()
	if !stuck && !closedWithin(idle, p.patience) {
		p.mu.Lock()
		p.stuck = p.idle == idle // or it has just caught up
		p.mu.Unlock()
	}
	return len(text), nil
}

// pass hands on what is held until there is nothing more.
func (p *patient) pass() {
	for {
		p.mu.Lock()
		if p.gone || len(p.held) == 0 && p.missing == 0 {
			p.held, p.missing, p.stuck = nil, 0, false
			close(p.idle)
			p.idle = nil
			p.mu.Unlock()
			return
		}
		text := p.held
		if p.missing > 0 {
			text = fmt.Appendf(text, "cftune: note: %d lines are left out here, which nobody read\n", p.missing)
		}
		p.held, p.missing = nil, 0
		p.mu.Unlock()
		if _, err := p.to.Write(text); err != nil {
			p.mu.Lock()
			p.gone = errors.Is(err, syscall.EPIPE) // of others the next text may know nothing
			p.mu.Unlock()
		}
	}
}

// lastPatience is how long the last words of a process that was told to end wait for their reader.
const lastPatience = time.Second

// flush returns when all is read or, once ctx has ended, a little later at most.
func (p *patient) flush(ctx context.Context) {
	p.mu.Lock()
	idle := p.idle
	p.mu.Unlock()
	if idle == nil {
		return
	}
	select {
	case <-idle:
		return
	case <-ctx.Done():
	}
	closedWithin(idle, lastPatience)
}

func closedWithin(done <-chan struct{}, patience time.Duration) bool {
	tooLong := time.NewTimer(patience)
	defer tooLong.Stop()
	select {
	case <-done:
		return true
	case <-tooLong.C:
		return false
	}
}
