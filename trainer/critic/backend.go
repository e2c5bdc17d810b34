package critic

import (
	"context"
	"fmt"
	"time"

	"cftune/trainer/dataset"
)

// Request is what a backend is asked.
type Request struct {
	Messages    []dataset.Message
	MaxTokens   int
	Temperature float64
	TopP        float64
	Stop        []string
	Seed        uint64
	Job         int    // the request's number
	Key         string // the same for each attempt: an endpoint that knows it answers only once
}

// Reply is a model's answer.
type Reply struct {
	Text   string
	Finish string // stop, length, or another word of the endpoint's
	Model  string // as the endpoint names it
	In     int    // tokens; with Out 0 they were not told
	Out    int
}

// Backend answers requests, several at a time. Its errors are *Fault where it knows more.
type Backend interface {
	Complete(ctx context.Context, r Request) (Reply, error)
}

// The kinds of faults.
const (
	FaultRateLimit = "rate_limit"
	FaultServer    = "server_error"
	FaultRefused   = "refused"     // the endpoint does not take this request, now or later
	FaultDenied    = "denied"      // the endpoint takes no request: wrong key, unknown model, no money left
	FaultConnect   = "no_connect"  // the request did not leave
	FaultTimeout   = "timeout"     // no answer in time
	FaultCut       = "cut_off"     // the answer ended before its end
	FaultMalformed = "malformed"   // the answer cannot be read
	FaultInterrupt = "interrupted" // this process was told to stop
)

// Fault is a request's failure and what follows from it.
type Fault struct {
	Kind       string
	Status     int           // of HTTP; 0 = there was none
	RetryAfter time.Duration // what the endpoint asked for; 0 = nothing
	MayBePaid  bool          // an answer may have been made
	Err        error
}

func (f *Fault) Error() string {
	if f.Status != 0 {
		return fmt.Sprintf("%s (HTTP %d): %v", f.Kind, f.Status, f.Err)
	}
	return fmt.Sprintf("%s: %v", f.Kind, f.Err)
}

func (f *Fault) Unwrap() error { return f.Err }

// passing says that the same request may succeed later.
func (f *Fault) passing() bool {
	switch f.Kind {
	case FaultRefused, FaultDenied, FaultInterrupt:
		return false
	}
	return true
}

// Bounds of what is read from an endpoint.
const maxReplyBytes = 8 << 20

// worstTokens bounds the tokens of a prompt from above: no tokenizer makes more tokens than there are bytes, and chat
// templates add some for each turn.
func worstTokens(messages []dataset.Message) int {
	const perTurn = 32
	n := perTurn
	for _, m := range messages {
		n += len(m.Content) + perTurn
	}
	return n
}

// likelyTokens is an estimate for rate limits, and for costs where an endpoint tells no usage: four bytes to a token.
func likelyTokens(bytes int) int { return (bytes + 3) / 4 }
