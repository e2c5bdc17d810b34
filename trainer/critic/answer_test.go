package critic

import (
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/dataset"
	"cftune/trainer/internal/durable"
)

const (
	testUsage = `"usage":{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}`
	testWhole = `{"model":"m","choices":[{"index":0,"finish_reason":"stop","message":{"role":"assistant","content":"fine é😀"}}],` + testUsage + `}`
	testEvent = `data: {"model":"m","choices":[{"index":0,"delta":{"content":"fine é😀"}}]}` + "\n\n"
	testEnd   = `data: {"model":"m","choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}` + "\n\n"
	testCount = `data: {"choices":[],` + testUsage + "}\n\ndata: [DONE]\n\n"
)

// What is paid and whole is taken in whatever form it comes: asking again would pay it again.
func TestAnswersOfOtherShapes(t *testing.T) {
	whole := func(content, finish, usage string) string {
		return fmt.Sprintf(`{"model":"m","choices":[{"index":0,"finish_reason":%s,"message":{"role":"assistant","content":%s}}],"usage":%s}`, finish, content, usage)
	}
	const usage = `{"prompt_tokens":7,"completion_tokens":5,"total_tokens":12}`
	parts := `[{"type":"thinking","thinking":[{"type":"text","text":"hm"}]},{"type":"text","text":"fine "},{"type":"text","text":"é😀"}]`
	good := Reply{Text: "fine é😀", Finish: "stop", Model: "m", In: 7, Out: 5}
	uncounted := good
	uncounted.In, uncounted.Out = 0, 0
	for _, tt := range []struct {
		name, kind, body string
		cut              bool // the connection breaks behind the body
		want             Reply
		fault, says      string
	}{
		{name: "a stream", kind: "text/event-stream", body: testEvent + testEnd + testCount, want: good},
		{name: "a stream named JSON", kind: "application/json", body: "\n" + testEvent + testEnd + testCount, want: good},
		{name: "a stream cut before its end", kind: "text/event-stream", body: testEvent, cut: true, fault: FaultCut},
		{name: "a stream cut behind its end", kind: "text/event-stream", body: testEvent + testEnd, cut: true, want: uncounted},
		{name: "an endpoint that does not stream", kind: "application/json", body: testWhole, want: good},
		{name: "JSON under another name", kind: "text/plain", body: " \n" + testWhole, want: good},
		{name: "half of it", kind: "application/json", body: testWhole[:len(testWhole)/2], fault: FaultCut},
		{name: "half of it, and the connection breaks", kind: "application/json", body: testWhole[:len(testWhole)/2], cut: true, fault: FaultCut},
		{name: "no JSON", kind: "application/json", body: `{"choices": oops}`, fault: FaultMalformed, says: `the answer is no JSON: it begins with "{\"choices\": oops}"`},
		{name: "a login page", kind: "text/html", body: "<html>Please log in</html>", fault: FaultMalformed, says: "it begins with \"<html>Please log in"},
		{name: "an error", kind: "application/json", body: `{"error":{"message":"overloaded","code":503}}`, fault: FaultServer, says: "overloaded"},
		{name: "no choice", kind: "application/json", body: `{"choices":[]}`, fault: FaultMalformed, says: "the answer has no choice"},
		{name: "no finish reason", kind: "application/json", body: whole(`"a"`, "null", usage), fault: FaultCut, says: "it has no finish_reason"},
		{
			name: "a refusal", kind: "application/json", body: `{"choices":[{"finish_reason":"stop","message":{"content":null,"refusal":"no"}}]}`,
			want: Reply{Text: "no", Finish: finishRefusal},
		},
		{
			name: "a streamed refusal", kind: "text/event-stream", body: `data: {"choices":[{"index":0,"delta":{"refusal":"no"}}]}` + "\n\n" + testEnd,
			want: Reply{Text: "no", Finish: finishRefusal, Model: "m"},
		},
		{name: "parts", kind: "application/json", body: whole(parts, `"stop"`, usage), want: good},
		{name: "streamed parts", kind: "text/event-stream", body: `data: {"model":"m","choices":[{"index":0,"delta":{"content":` + parts + `}}]}` + "\n\n" + testEnd + testCount, want: good},
		{name: "a list of something else", kind: "application/json", body: whole(`[1]`, `"stop"`, usage), fault: FaultMalformed},
		{name: "counts that cannot be", kind: "application/json", body: whole(`"fine é😀"`, `"stop"`, `{"prompt_tokens":9e18,"completion_tokens":9e18}`), want: uncounted},
		{name: "counts below nothing", kind: "application/json", body: whole(`"fine é😀"`, `"stop"`, `{"prompt_tokens":-1,"completion_tokens":-2}`), want: uncounted},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", tt.kind)
			_, _ = w.Write([]byte(tt.body))
			if tt.cut {
				_ = http.NewResponseController(w).Flush()
				panic(http.ErrAbortHandler)
			}
		}))
		for _, stream := range []bool{true, false} {
			if !stream && tt.kind == "text/event-stream" || !stream && tt.name == "a stream named JSON" {
				continue
			}
			name := fmt.Sprintf("%s, stream %v", tt.name, stream)
			e := endpoint(t, s.URL+"/v1", "", func(o *EndpointOptions) { o.Stream = stream })
			reply, err := e.Complete(t.Context(), Request{Messages: []dataset.Message{{Role: "user", Content: "q"}}, MaxTokens: 1, Key: "k"})
			if tt.fault == "" {
				require.NoError(t, err, name)
				assert.Equal(t, tt.want, reply, name)
				continue
			}
			var f *Fault
			require.ErrorAs(t, err, &f, name)
			assert.Equal(t, tt.fault, f.Kind, name)
			assert.Equal(t, tt.fault != FaultServer, f.MayBePaid, name)
			assert.Contains(t, f.Error(), tt.says, name)
		}
		s.Close()
	}
}

// What the journal could not give back again would keep a run from ever writing its rows.
func TestAnswersThatAreTooLarge(t *testing.T) {
	whole := func(model, text string) string {
		return fmt.Sprintf(`{"model":%q,"choices":[{"index":0,"finish_reason":"stop","message":{"content":%q}}]}`, model, text)
	}
	for name, body := range map[string]string{
		"text": whole("m", strings.Repeat("x", maxReplyBytes+1)), "model": whole(strings.Repeat("m", 2000), "x"),
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, body) }))
		for _, stream := range []bool{true, false} {
			e := endpoint(t, s.URL+"/v1", "", func(o *EndpointOptions) { o.Stream = stream })
			_, err := e.Complete(t.Context(), Request{Messages: []dataset.Message{{Role: "user", Content: "q"}}, MaxTokens: 1, Key: "k"})
			require.ErrorContains(t, err, errLarge.Error(), name)
		}
		s.Close()
	}
	// The largest that is taken comes back.
	dir := t.TempDir()
	j, err := openJournal(durable.OS, dir, 1)
	require.NoError(t, err)
	want := strings.Repeat("\x01", maxReplyBytes)
	require.NoError(t, j.append(Entry{Kind: kindAnswer, Text: want}))
	require.NoError(t, j.answers(func(e Entry) error {
		assert.Equal(t, len(want), len(e.Text))
		return nil
	}))
	require.NoError(t, j.close())
}

func TestPricesOfManyTokensStayInRange(t *testing.T) {
	price := Price{In: 4_000_000_000 * moneyUnit, Out: 4_000_000_000 * moneyUnit}
	assert.Positive(t, price.Of(mostTokens, mostTokens)+price.Of(mostTokens, mostTokens))
}

// What fails before there is a connection has not left: it is no answer that may have been paid.
func TestARequestThatDidNotLeaveIsNotPaid(t *testing.T) {
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("it arrived") }))
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	s.StartTLS() // with a certificate that nobody trusts
	defer s.Close()
	for _, stream := range []bool{true, false} {
		e := endpoint(t, s.URL+"/v1", "", func(o *EndpointOptions) { o.Stream = stream })
		_, err := e.Complete(t.Context(), Request{Messages: []dataset.Message{{Role: "user", Content: "q"}}, MaxTokens: 1, Key: "k"})
		var f *Fault
		require.ErrorAs(t, err, &f)
		assert.Equal(t, FaultConnect, f.Kind)
		assert.False(t, f.MayBePaid)
		assert.ErrorContains(t, f, "certificate")
	}
}

// Some endpoints refuse a field in any value, and then every request.
func TestFieldsThatAreNotSent(t *testing.T) {
	for _, stream := range []bool{true, false} {
		for _, without := range [][]string{nil, OptionalFields()} {
			var sent map[string]any
			s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				assert.NoError(t, json.NewDecoder(r.Body).Decode(&sent))
				_, _ = io.WriteString(w, testWhole)
			}))
			e := endpoint(t, s.URL+"/v1", "", func(o *EndpointOptions) { o.Stream, o.Without = stream, without })
			_, err := e.Complete(t.Context(), Request{Messages: []dataset.Message{{Role: "user", Content: "q"}}, MaxTokens: 1, Key: "k", Temperature: 0, TopP: 1})
			require.NoError(t, err)
			for _, field := range OptionalFields() {
				_, there := sent[field]
				assert.Equal(t, without == nil && (stream || field != "stream_options"), there, field)
			}
			assert.Contains(t, sent, "max_tokens")
			s.Close()
		}
	}
}

// An address that leads elsewhere is a mistake in url, not an answer that was lost and may have been paid.
func TestAnEndpointThatIsElsewhere(t *testing.T) {
	for _, tt := range []struct {
		name   string
		status int
		to     string
		err    string // empty: it is followed
	}{
		{"moved, which forgets what was posted", http.StatusMovedPermanently, "/v2/chat/completions", "denied: HTTP 301 leads to http://HOST/v2/chat/completions: url must name the endpoint itself"},
		{"a login page", http.StatusFound, "/login", "denied: HTTP 302 leads to http://HOST/login"},
		{"another host", http.StatusTemporaryRedirect, "https://other.invalid/v1/chat/completions", "denied: HTTP 307 leads to https://other.invalid/v1/chat/completions"},
		{"the same host", http.StatusPermanentRedirect, "/v2/chat/completions", ""},
	} {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.HasPrefix(r.URL.Path, "/v2/") {
				assert.Equal(t, http.MethodPost, r.Method, tt.name)
				_, _ = io.WriteString(w, testWhole)
				return
			}
			http.Redirect(w, r, tt.to, tt.status)
		}))
		for _, stream := range []bool{true, false} {
			e := endpoint(t, s.URL+"/v1", "", func(o *EndpointOptions) { o.Stream = stream })
			_, err := e.Complete(t.Context(), Request{Messages: []dataset.Message{{Role: "user", Content: "q"}}, MaxTokens: 1, Key: "k"})
			if tt.err == "" {
				require.NoError(t, err, tt.name)
				continue
			}
			require.ErrorContains(t, err, strings.Replace(tt.err, "HOST", strings.TrimPrefix(s.URL, "http://"), 1), tt.name)
			var fault *Fault
			require.ErrorAs(t, err, &fault)
			assert.False(t, fault.MayBePaid, tt.name)
			e.Close()
		}
		s.Close()
	}
}
