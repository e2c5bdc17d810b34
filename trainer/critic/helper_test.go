package critic

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/faultteacher"
	"cftune/trainer/dataset"
)

// problems are records that no file has: so many questions with answers, some of them wrong.
type problems int

func (p problems) Len() int { return int(p) }

func (p problems) Record(i int) (dataset.Record, error) {
	r := dataset.Record{ID: fmt.Sprintf("problems:%d", i+1), RowID: fmt.Sprintf("p%d", i), Query: fmt.Sprintf("What is %d + 1?", i), Gold: fmt.Sprint(i + 1), Weight: 1}
	r.Response, r.Label = fmt.Sprint(i+1), "right"
	if i%3 == 0 {
		r.Response, r.Label = fmt.Sprint(i+2), "wrong"
	}
	return r, nil
}

// Rest is what only a record's owner knows.
func (p problems) Rest(i int) (map[string]json.RawMessage, error) {
	return map[string]json.RawMessage{
		"topic": json.RawMessage(fmt.Sprintf(`["sums", {"digits": %d}]`, len(fmt.Sprint(i)))), "source": json.RawMessage(`{"book": "A < B"}`),
		"verdict": json.RawMessage(`"old"`),
	}, nil
}

// testPrice has digits that would show a rounding.
var testPrice = Price{In: 2_500_000_001, Out: 10_000_000_007}

func endpoint(t testing.TB, url, key string, change func(*EndpointOptions)) *Endpoint {
	t.Helper()
	o := EndpointOptions{URL: url, Model: "teacher-1", Key: key, Stream: true, Timeout: 10 * time.Second, Idle: 1500 * time.Millisecond, Connections: 32}
	if change != nil {
		change(&o)
	}
	e, err := NewEndpoint(o)
	require.NoError(t, err)
	return e
}

func paperPlan(t testing.TB, records Records, teachers ...Teacher) Plan {
	t.Helper()
	prompt, err := LoadPrompt("paper")
	require.NoError(t, err)
	return Plan{Records: records, Messages: prompt.Messages, Teachers: teachers, PerRow: 1, Seed: 7, MaxTokens: 100, Temperature: 0.3, TopP: 0.95}
}

func testOptions(dir string) Options {
	return Options{Dir: dir, Attempts: 12, Backoff: Backoff{time.Millisecond, 20 * time.Millisecond}, Drain: time.Second}
}

func openRun(t testing.TB, plan Plan, o Options) *Run {
	t.Helper()
	r, err := Open(plan, o, Settings{Fixed: map[string]any{"plan": "test", "rows": plan.Records.Len()}})
	require.NoError(t, err)
	return r
}

// work opens a run, works on it, writes the critiques, and closes it.
func work(t testing.TB, ctx context.Context, plan Plan, o Options) Result {
	t.Helper()
	r := openRun(t, plan, o)
	defer func() { require.NoError(t, r.Close()) }()
	result, err := r.Work(ctx)
	require.NoError(t, err)
	_, err = r.WriteCritiques()
	require.NoError(t, err)
	return result
}

// readRows returns the critiques in a folder.
func readRows(t testing.TB, dir string) []Row {
	t.Helper()
	return readFile(t, filepath.Join(dir, CritiquesName))
}

func readFile(t testing.TB, path string) []Row {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	var rows []Row
	for line := range strings.Lines(string(text)) {
		var row Row
		require.NoError(t, json.Unmarshal([]byte(line), &row))
		rows = append(rows, row)
	}
	return rows
}

// requireOnce checks that every record has each of its critiques exactly once, in order, and that it is about it.
func requireOnce(t testing.TB, rows []Row, records, each int) {
	t.Helper()
	require.Len(t, rows, records*each)
	for i, row := range rows {
		require.Equal(t, fmt.Sprintf("p%d", i/each), row.ID)
		require.Contains(t, row.Critique, fmt.Sprintf("What is %d + 1?", i/each))
		require.Equal(t, i, row.Source.Request)
	}
}

// requireAddsUp compares a tally with what the server would bill.
func requireAddsUp(t testing.TB, tally Tally, s *faultteacher.Server) {
	t.Helper()
	charged, _ := s.Charged()
	assert.Equal(t, charged.In, tally.TokensIn)
	assert.Equal(t, charged.Out, tally.TokensOut)
	exact := testPrice.Of(charged.In, charged.Out)
	assert.InDelta(t, float64(exact), float64(tally.Spent), float64(tally.Answered)+1, "each answer is rounded up to a billionth")
}
