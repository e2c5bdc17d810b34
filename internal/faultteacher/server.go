// Package faultteacher is a teacher for tests: a server on the loopback interface that speaks OpenAI's protocol of chat
// completions, streamed or not, and of batches, and misbehaves on a schedule.
//
// What goes wrong is a function of the seed, a request's idempotency key and how often that key has come, whatever runs beside
// it. The server counts what it would charge: every answer that it makes, delivered or not. Where it honours
// idempotency keys, a key is charged once and gets the same answer again.
package faultteacher

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"time"
)

// Faults are the shares of requests that go wrong in each way; the rest is answered well.
type Faults struct {
	TooMany         float64 // 429 without a Retry-After
	TooManySeconds  float64 // 429 with one in seconds
	TooManyDate     float64 // 429 with one as a date
	Internal        float64 // 500
	Unavailable     float64 // 503, as HTML
	Hang            float64 // nothing comes
	Cut             float64 // the answer ends in its middle
	Malformed       float64 // no JSON, with status 200
	Drip            float64 // byte for byte, but whole
	NoVerdict       float64 // a good answer that concludes nothing
	NoUsage         float64 // a good answer without token counts
	Refuse          float64 // 400, always for the same keys
	BatchRowMissing float64 // a batch has no line for a request
}

// Options decide a server.
type Options struct {
	Seed   uint64
	Faults Faults
	// Honour: an idempotency key that was answered gets the same answer and is not charged again.
	Honour bool
	// Key, if set, is what must come as the bearer's; another gets 401 with the key in its text, as some servers do.
	Key string
	// Latency is of a good answer.
	Latency time.Duration
	// RetryAfter is what 429 asks for, in whole seconds; 0 is possible.
	RetryAfter int
	// Answer makes the text to a prompt; nil: Critique.
	Answer func(prompt string) string
	// BatchPolls is how often a batch is in progress when it is looked at.
	BatchPolls int
}

// Server is a running teacher.
type Server struct {
	URL  string // with /v1
	o    Options
	http *httptest.Server
	stop chan struct{} // ends what hangs

	mu       sync.Mutex
	arrivals map[string]int
	paid     map[string]int
	replies  map[string]reply // by key, where keys are honoured
	charged  Charge
	counts   map[string]int
	files    map[string][]byte
	batches  map[string]*batch
	order    []string // of the batches' ids
}

// Charge is what the server would bill.
type Charge struct{ Answers, In, Out int }

// New starts a server.
func New(o Options) *Server {
	s := &Server{
		o: o, stop: make(chan struct{}), arrivals: map[string]int{}, paid: map[string]int{}, replies: map[string]reply{}, counts: map[string]int{},
		files: map[string][]byte{}, batches: map[string]*batch{},
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /v1/chat/completions", s.guard(s.chat))
	mux.HandleFunc("POST /v1/files", s.guard(s.upload))
	mux.HandleFunc("GET /v1/files/{id}/content", s.guard(s.content))
	mux.HandleFunc("POST /v1/batches", s.guard(s.createBatch))
	mux.HandleFunc("GET /v1/batches", s.guard(s.listBatches))
	mux.HandleFunc("GET /v1/batches/{id}", s.guard(s.getBatch))
	s.http = httptest.NewServer(mux)
	s.URL = s.http.URL + "/v1"
	return s
}

// Close ends the server.
func (s *Server) Close() {
	close(s.stop)
	s.http.CloseClientConnections()
	s.http.Close()
}

// Charged is what was billed so far, and how often each key was.
func (s *Server) Charged() (Charge, map[string]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	paid := make(map[string]int, len(s.paid))
	for k, n := range s.paid {
		paid[k] = n
	}
	return s.charged, paid
}

// Counts is how often each fault happened.
func (s *Server) Counts() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	counts := make(map[string]int, len(s.counts))
	for k, n := range s.counts {
		counts[k] = n
	}
	return counts
}

func (s *Server) guard(next http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		got := strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")
		if s.o.Key != "" && got != s.o.Key {
			s.count("unauthorized")
			fail(w, http.StatusUnauthorized, "invalid_api_key", "Incorrect API key provided: "+got)
			return
		}
		next(w, r)
	}
}

func (s *Server) count(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.counts[what]++
}

func fail(w http.ResponseWriter, status int, code, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(map[string]any{"error": map[string]any{"message": message, "type": "error", "code": code, "param": nil}})
}

// question is a request's body, as far as it matters.
type question struct {
	Model    string `json:"model"`
	Stream   bool   `json:"stream"`
	Messages []struct {
		Role    string `json:"role"`
		Content string `json:"content"`
	} `json:"messages"`
}

func (q question) prompt() string {
	var parts []string
	for _, m := range q.Messages {
		parts = append(parts, m.Content)
	}
	return strings.Join(parts, "\n")
}

// draw is a number in [0, 1) of seed, key and arrival.
func (s *Server) draw(key string, arrival int, what string) float64 {
	h := sha256.Sum256(fmt.Appendf(nil, "%d %s %d %s", s.o.Seed, key, arrival, what))
	return float64(binary.LittleEndian.Uint64(h[:8])>>11) / (1 << 53)
}

// pick chooses what happens to a request.
func (s *Server) pick(key string, arrival int) string {
	f := s.o.Faults
	if s.draw(key, 0, "refuse") < f.Refuse {
		return "refuse"
	}
	u := s.draw(key, arrival, "fault")
	for _, c := range []struct {
		name  string
		share float64
	}{
		{"429", f.TooMany}, {"429 seconds", f.TooManySeconds}, {"429 date", f.TooManyDate}, {"500", f.Internal}, {"503", f.Unavailable},
		{"hang", f.Hang}, {"cut", f.Cut}, {"malformed", f.Malformed}, {"drip", f.Drip}, {"no verdict", f.NoVerdict}, {"no usage", f.NoUsage},
	} {
		if u < c.share {
			return c.name
		}
		u -= c.share
	}
	return "answer"
}

// reply is an answer that was made.
type reply struct {
	text    string
	in, out int
}

// make answers a prompt and charges for it.
func (s *Server) make(key string, q question, verdict bool) reply {
	prompt := q.prompt()
	text := Critique(prompt, verdict)
	if s.o.Answer != nil {
		text = s.o.Answer(prompt)
	}
	r := reply{text, len(prompt) / 5, len(text)/5 + 1}
	s.mu.Lock()
	defer s.mu.Unlock()
	if before, answered := s.replies[key]; answered && s.o.Honour {
		s.counts["answered again for nothing"]++
		return before
	}
	s.replies[key] = r
	s.paid[key]++
	s.charged.Answers++
	s.charged.In += r.in
	s.charged.Out += r.out
	return r
}

// Critique is the text that the server answers a prompt with: the prompt's last lines, so that it can be told what was
// asked, and a verdict.
func Critique(prompt string, verdict bool) string {
	h := fnv.New32a()
	_, _ = io.WriteString(h, prompt)
	text := "Let me see: " + strings.ReplaceAll(prompt[max(0, len(prompt)-200):], "\n", " ") + "\n"
	switch {
	case !verdict:
		return text + "I cannot say."
	case h.Sum32()%2 == 0:
		return text + "Conclusion: right [END]"
	}
	return text + "Conclusion: wrong [END]"
}

func (s *Server) chat(w http.ResponseWriter, r *http.Request) {
	var q question
	if err := json.NewDecoder(r.Body).Decode(&q); err != nil || len(q.Messages) == 0 {
		fail(w, http.StatusBadRequest, "bad_request", "no messages")
		return
	}
	key := r.Header.Get("Idempotency-Key")
	s.mu.Lock()
	s.arrivals[key]++
	arrival := s.arrivals[key]
	s.mu.Unlock()
	what := s.pick(key, arrival)
	s.count(what)
	switch what {
	case "429", "429 seconds", "429 date":
		switch what {
		case "429 seconds":
			w.Header().Set("Retry-After", fmt.Sprint(s.o.RetryAfter))
		case "429 date":
			w.Header().Set("Retry-After", time.Now().Add(time.Duration(s.o.RetryAfter)*time.Second).UTC().Format(http.TimeFormat))
		}
		fail(w, http.StatusTooManyRequests, "rate_limit_exceeded", "Rate limit reached")
		return
	case "500":
		fail(w, http.StatusInternalServerError, "server_error", "The server had an error")
		return
	case "503":
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, "<html>Service Unavailable</html>")
		return
	case "refuse":
		fail(w, http.StatusBadRequest, "content_policy", "This request is not taken")
		return
	}
	s.deliver(w, r, q, s.make(key, q, what != "no verdict"), what)
}

// deliver sends an answer, or a part of it.
func (s *Server) deliver(w http.ResponseWriter, r *http.Request, q question, a reply, what string) {
	wait := s.o.Latency
	if what == "hang" {
		wait = time.Hour
	}
	select {
	case <-time.After(wait):
	case <-s.stop:
	case <-r.Context().Done():
	}
	if what == "hang" {
		panic(http.ErrAbortHandler)
	}
	body, kind := whole(q, a, what != "no usage"), "application/json"
	if q.Stream {
		body, kind = streamed(q, a, what != "no usage"), "text/event-stream"
	}
	w.Header().Set("Content-Type", kind)
	switch what {
	case "malformed":
		text := `{"choices": oops}`
		if q.Stream {
			text = "data: " + text + "\n\n"
		}
		_, _ = io.WriteString(w, text)
	case "cut":
		_, _ = w.Write(body[:len(body)/2])
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	case "drip":
		for part := range len(body)/16 + 1 {
			_, _ = w.Write(body[part*16 : min(len(body), part*16+16)])
			_ = http.NewResponseController(w).Flush()
			time.Sleep(time.Millisecond)
		}
	default:
		_, _ = w.Write(body)
	}
}

func usage(a reply) map[string]any {
	return map[string]any{"prompt_tokens": a.in, "completion_tokens": a.out, "total_tokens": a.in + a.out}
}

func completion(q question, a reply, counted bool) map[string]any {
	c := map[string]any{
		"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": q.Model,
		"choices": []any{map[string]any{"index": 0, "finish_reason": "stop", "message": map[string]any{"role": "assistant", "content": a.text}}},
	}
	if counted {
		c["usage"] = usage(a)
	}
	return c
}

func whole(q question, a reply, counted bool) []byte {
	text, err := json.Marshal(completion(q, a, counted))
	if err != nil {
		panic(err) // maps of texts and numbers
	}
	return text
}

func streamed(q question, a reply, counted bool) []byte {
	var out strings.Builder
	event := func(choices []any, extra map[string]any) {
		c := map[string]any{"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": q.Model, "choices": choices}
		for k, v := range extra {
			c[k] = v
		}
		text, err := json.Marshal(c)
		if err != nil {
			panic(err) // as above
		}
		fmt.Fprintf(&out, "data: %s\n\n", text)
	}
	piece := max(40, len(a.text)/20)
	for from := 0; from < len(a.text); from += piece {
		part := a.text[from:min(len(a.text), from+piece)]
		event([]any{map[string]any{"index": 0, "delta": map[string]any{"content": part}, "finish_reason": nil}}, nil)
	}
	event([]any{map[string]any{"index": 0, "delta": map[string]any{}, "finish_reason": "stop"}}, nil)
	if counted {
		event([]any{}, map[string]any{"usage": usage(a)})
	}
	out.WriteString("data: [DONE]\n\n")
	return []byte(out.String())
}
