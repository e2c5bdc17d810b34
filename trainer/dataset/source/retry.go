package source

import (
	"context"
	"errors"
	"io"
	"net"
	"net/url"
	"time"

	"gocloud.dev/gcerrors"

	"cftune/trainer/internal/bucket"
)

// patience says how failures of the network are met.
type patience struct {
	attempts int // without a byte of progress
	bucket.Backoff
	stall time.Duration // without a byte, after which a connection counts as lost
}

var defaultPatience = patience{6, bucket.Backoff{First: 500 * time.Millisecond, Longest: 15 * time.Second}, time.Minute}

// statusError is a web server's refusal.
type statusError struct {
	code int
	text string
}

func (e *statusError) Error() string { return e.text }

// settledError is not met with another attempt: the stores' own clients have made theirs, and where the first request
// fails it is mostly for want of credentials.
type settledError struct{ err error }

func (e *settledError) Error() string { return e.err.Error() }
func (e *settledError) Unwrap() error { return e.err }

// errStalled says that a connection gave no byte for patience.stall.
var errStalled = errors.New("the connection stalled")

// temporary reports whether an attempt that failed so may succeed later.
func temporary(err error) bool {
	var settled *settledError
	var status *statusError
	var dns *net.DNSError
	var network net.Error
	switch {
	case err == nil, errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded), errors.As(err, &settled):
		return false
	case errors.Is(err, errStalled), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return true
	case errors.As(err, &status):
		return status.code >= 500 && status.code != 501 || status.code == 429 || status.code == 408
	case errors.As(err, &dns):
		return !dns.IsNotFound
	case errors.As(err, &network): // resets, refusals, timeouts
		return true
	}
	switch gcerrors.Code(err) {
	case gcerrors.Internal, gcerrors.ResourceExhausted, gcerrors.DeadlineExceeded:
		return true
	}
	return false
}

// bareError drops the URL of net/http's errors, which may hold keys, as files are named already.
func bareError(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}
