package critic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
)

// errIdle says that nothing came for too long.
var errIdle = errors.New("nothing came")

// guarded is a transport whose responses end with an error when they are silent for too long or larger than they may be.
type guarded struct {
	next http.RoundTripper
	idle time.Duration
	most int64
}

func (g guarded) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx, cancel := context.WithCancelCause(r.Context())
	timer := time.AfterFunc(g.idle, func() { cancel(fmt.Errorf("%w for %s", errIdle, g.idle)) })
	sent := r.WithContext(ctx)
	// With GetBody, net/http sends a request that has an idempotency key again by itself when its connection breaks: behind
	// the journal's back, and paid again where the endpoint does not know such keys.
	sent.GetBody = nil
	response, err := g.next.RoundTrip(sent)
	if err != nil {
		timer.Stop()
		if cause := context.Cause(ctx); errors.Is(cause, errIdle) {
			err = cause
		}
		cancel(nil)
		return nil, err
	}
	timer.Reset(g.idle)
	response.Body = &guardedBody{ReadCloser: response.Body, ctx: ctx, cancel: cancel, timer: timer, idle: g.idle, left: g.most}
	return response, nil
}

type guardedBody struct {
	io.ReadCloser
	ctx    context.Context
	cancel context.CancelCauseFunc
	timer  *time.Timer
	idle   time.Duration
	left   int64
	once   sync.Once
}

func (b *guardedBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if n > 0 {
		b.timer.Reset(b.idle)
	}
	if b.left -= int64(n); b.left < 0 {
		return n, errors.New("the response is larger than any answer may be")
	}
	if cause := context.Cause(b.ctx); err != nil && errors.Is(cause, errIdle) {
		err = cause
	}
	return n, err
}

func (b *guardedBody) Close() error {
	b.once.Do(func() {
		b.timer.Stop()
		b.cancel(nil)
	})
	return b.ReadCloser.Close()
}
