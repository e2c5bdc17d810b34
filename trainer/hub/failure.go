package hub

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"
)

// Errors that callers tell apart.
var (
	// ErrName: a name that is none.
	ErrName = errors.New("no name of a model")
	// ErrNotFound: no such repository, revision or file, here or there.
	ErrNotFound = errors.New("not found")
	// ErrDenied: the hub wants a token, or that its terms are accepted.
	ErrDenied = errors.New("denied")
	// ErrUnreachable: the hub did not answer, or not in a way that helps.
	ErrUnreachable = errors.New("the hub cannot be reached")
	// ErrDigest: what arrived, or lies there, is not what was announced.
	ErrDigest = errors.New("it is not the file that was announced")
)

// busyError is an answer after which another attempt may succeed.
type busyError struct {
	status string
	after  time.Duration // that the hub asks to wait
}

func (e *busyError) Error() string { return "the server says " + e.status }

// refusal is the error that an answer of the hub means.
func (s *Store) refusal(r Reference, response *http.Response) error {
	code, status := response.StatusCode, response.Status
	switch {
	case code == http.StatusUnauthorized && s.Token == "":
		return fmt.Errorf("%w: there is no such repository, or it wants a token, and HF_TOKEN is not set", ErrDenied)
	case code == http.StatusUnauthorized && !mayCarryToken(response.Request.URL):
		return fmt.Errorf("%w: it wants a token, which is not sent over plain http", ErrDenied)
	case code == http.StatusUnauthorized:
		return fmt.Errorf("%w: the hub does not know the token, or it may not read %s/%s", ErrDenied, r.Owner, r.Repo)
	case code == http.StatusForbidden:
		return fmt.Errorf("%w: the hub forbids it; where its owner asks for consent to terms, give it on the model's page and use a token of that account", ErrDenied)
	case code == http.StatusNotFound:
		what := map[string]string{
			"RepoNotFound": "repository " + r.Owner + "/" + r.Repo, "RevisionNotFound": "revision " + r.Revision, "EntryNotFound": "file " + r.File,
		}[response.Header.Get("X-Error-Code")]
		if what == "" {
			what = "such file, or no such repository"
		}
		return fmt.Errorf("%w: the hub has no %s", ErrNotFound, what)
	case code == http.StatusTooManyRequests || code == http.StatusRequestTimeout || code >= 500 && code != http.StatusNotImplemented:
		wait, _ := strconv.Atoi(response.Header.Get("Retry-After"))
		return &busyError{status, time.Duration(wait) * time.Second}
	}
	return fmt.Errorf("the hub says %s", status)
}

// Patience says how failures of the network are met.
type Patience struct {
	Attempts       int           // without progress
	First, Longest time.Duration // between attempts, doubling
	Stall          time.Duration // without a byte, after which a connection counts as lost
}

var defaultPatience = Patience{6, time.Second, 30 * time.Second, time.Minute}

var errStalled = errors.New("the connection stalled")

// patiently calls attempt until it succeeds, fails for good, or has failed too often without progress, which it reports.
func (s *Store) patiently(ctx context.Context, attempt func() (progress bool, err error)) error {
	wait, failed := s.Patience.First, 0
	for {
		progress, err := attempt()
		if err == nil || ctx.Err() != nil {
			return errors.Join(err, ctx.Err())
		}
		if !temporary(err) {
			if away(err) { // a name that no server knows
				return fmt.Errorf("%w: %w", ErrUnreachable, err)
			}
			return err
		}
		if progress {
			wait, failed = s.Patience.First, 0
		}
		if failed++; failed >= s.Patience.Attempts {
			return fmt.Errorf("%w: %d attempts: %w", ErrUnreachable, failed, err)
		}
		pause := wait
		if busy, ok := errors.AsType[*busyError](err); ok && busy.after > pause {
			pause = min(busy.after, s.Patience.Longest)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(pause):
		}
		wait = min(2*wait, s.Patience.Longest)
	}
}

// temporary reports whether an attempt that failed so may succeed later.
func temporary(err error) bool {
	var busy *busyError
	var network net.Error
	var dns *net.DNSError
	switch {
	case errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return false
	case errors.As(err, &busy), errors.Is(err, errStalled), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return true
	case errors.As(err, &dns):
		return !dns.IsNotFound
	}
	return errors.As(err, &network) // resets, refusals, timeouts
}

// away reports whether an error means that there is no way to the hub, so that what is cached is all there is.
func away(err error) bool {
	var network net.Error
	return errors.Is(err, ErrUnreachable) || errors.As(err, &network)
}
