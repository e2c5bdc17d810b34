package critic

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
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
	if to := elsewhere(r, response); to != nil {
		timer.Stop()
		cancel(nil)
		response.Body.Close()
		return nil, &redirectError{response.StatusCode, to.Redacted()}
	}
	timer.Reset(g.idle)
	response.Body = &guardedBody{ReadCloser: response.Body, ctx: ctx, cancel: cancel, timer: timer, idle: g.idle, left: g.most}
	return response, nil
}

// redirectError says that an endpoint is elsewhere.
type redirectError struct {
	status int
	to     string
}

func (e *redirectError) Error() string {
	return fmt.Sprintf("HTTP %d leads to %s: url must name the endpoint itself", e.status, e.to)
}

// elsewhere is where a request that was posted is to be sent instead, if that cannot be done: net/http would ask there with GET and without
// what was posted, and a key does not go to another host. nil where there is no such place.
func elsewhere(r *http.Request, response *http.Response) *url.URL {
	if r.Method != http.MethodPost || response.StatusCode < 300 || response.StatusCode > 399 {
		return nil
	}
	to, err := response.Location()
	if err != nil {
		return nil
	}
	switch response.StatusCode {
	case http.StatusTemporaryRedirect, http.StatusPermanentRedirect:
		if to.Scheme == r.URL.Scheme && to.Host == r.URL.Host {
			return nil
		}
	}
	return to
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
