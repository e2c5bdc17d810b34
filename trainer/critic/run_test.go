package critic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/faultteacher"
	"cftune/trainer/dataset"
)

var allFaults = faultteacher.Faults{
	TooMany: 0.03, TooManySeconds: 0.02, TooManyDate: 0.02, Internal: 0.03, Unavailable: 0.03, Hang: 0.02, Cut: 0.04, Malformed: 0.03,
	Drip: 0.03, NoVerdict: 0.05,
}

func TestFaultsOfEveryKind(t *testing.T) {
	// Keys, and with them the schedule, differ from run to run: shares at which no kind can well be missing among 300 requests.
	faults := faultteacher.Faults{
		TooMany: 0.06, TooManySeconds: 0.06, TooManyDate: 0.06, Internal: 0.06, Unavailable: 0.06, Hang: 0.06, Cut: 0.06, Malformed: 0.06,
		Drip: 0.06, NoVerdict: 0.06,
	}
	for _, stream := range []bool{true, false} {
		s := faultteacher.New(faultteacher.Options{Seed: 1, Faults: faults, Honour: true})
		dir := t.TempDir()
		teacher := Teacher{Name: "t", Backend: endpoint(t, s.URL, "", func(o *EndpointOptions) { o.Stream = stream }), Price: testPrice, Concurrency: 32}
		o := testOptions(dir)
		o.Attempts = 40 // of which nearly a half fail: with 12 attempts one run in twenty would give a request up
		result := work(t, t.Context(), paperPlan(t, problems(300), teacher), o)
		require.NoError(t, result.Stopped)
		require.True(t, result.Complete())
		requireOnce(t, readRows(t, dir), 300, 1)
		requireAddsUp(t, result.Tally, s)
		_, paid := s.Charged()
		assert.Len(t, paid, 300)
		for key, n := range paid {
			assert.Equal(t, 1, n, key)
		}
		counts, faults := s.Counts(), result.Tally.Faults
		assert.Equal(t, counts["429"]+counts["429 seconds"]+counts["429 date"], faults[FaultRateLimit])
		assert.Equal(t, counts["500"]+counts["503"], faults[FaultServer])
		assert.Equal(t, counts["hang"]+counts["cut"]+counts["malformed"], result.Tally.Lost)
		for _, kind := range []string{"429", "429 seconds", "429 date", "500", "503", "hang", "cut", "malformed", "drip", "no verdict"} {
			assert.Positive(t, counts[kind], "the schedule has no %s: the test shows nothing about it", kind)
		}
		assert.Positive(t, faults[FaultTimeout])
		assert.Positive(t, faults[FaultCut])
		assert.Positive(t, faults[FaultMalformed])
		s.Close()
	}
}

func TestSeveralTeachersAndRepetitions(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{})
	defer s.Close()
	dir := t.TempDir()
	a := Teacher{Name: "a", Backend: endpoint(t, s.URL, "", nil), Price: testPrice, Concurrency: 3}
	b := a
	b.Name = "b"
	plan := paperPlan(t, problems(5), a, b)
	plan.PerRow = 3
	result := work(t, t.Context(), plan, testOptions(dir))
	require.True(t, result.Complete())
	rows := readRows(t, dir)
	requireOnce(t, rows, 5, 6)
	for i, row := range rows {
		assert.Equal(t, []string{"a", "b"}[i/3%2], row.Source.Teacher)
		assert.Equal(t, i%3, row.Source.Number)
	}
	seeds := map[uint64]bool{}
	for _, row := range rows {
		seeds[row.Source.Seed] = true
	}
	assert.Len(t, seeds, len(rows), "each request has a seed of its own")
}

func TestABudgetIsNeverExceeded(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{Seed: 3, Faults: faultteacher.Faults{Cut: 0.1, Internal: 0.1}})
	defer s.Close()
	dir := t.TempDir()
	plan := paperPlan(t, problems(200), Teacher{Name: "t", Backend: endpoint(t, s.URL, "", nil), Price: testPrice, Concurrency: 16})
	o := testOptions(dir)
	last := 0
	for _, budget := range []Money{50_000_000, 80_000_000} {
		o.Budget = budget
		result := work(t, t.Context(), plan, o)
		require.ErrorIs(t, result.Stopped, ErrBudget)
		assert.Less(t, result.Tally.Answered, 200)
		assert.Greater(t, result.Tally.Answered, last, "a higher budget goes on where the lower one stopped")
		last = result.Tally.Answered
		charged, _ := s.Charged()
		assert.LessOrEqual(t, testPrice.Of(charged.In, charged.Out), budget, "what the server bills, lost answers included")
		assert.LessOrEqual(t, result.Tally.Spent+result.Tally.Possible, budget)
		assert.Len(t, readRows(t, dir), result.Tally.Answered)
	}
	o.Budget = 0
	result := work(t, t.Context(), plan, o)
	require.True(t, result.Complete())
	requireOnce(t, readRows(t, dir), 200, 1)
}

func TestAnEndpointThatTakesNothingEndsTheRun(t *testing.T) {
	const key = "sk-secret-of-the-test"
	s := faultteacher.New(faultteacher.Options{Key: "another"})
	defer s.Close()
	dir := t.TempDir()
	plan := paperPlan(t, problems(50), Teacher{Name: "t", Backend: endpoint(t, s.URL, key, nil), Concurrency: 4})
	result := work(t, t.Context(), plan, testOptions(dir))
	var fault *Fault
	require.ErrorAs(t, result.Stopped, &fault)
	assert.Equal(t, FaultDenied, fault.Kind)
	assert.Equal(t, 401, fault.Status)
	assert.ErrorContains(t, result.Stopped, "teacher t: denied (HTTP 401): Incorrect API key provided: [key]")
	assert.LessOrEqual(t, s.Counts()["unauthorized"], 4)
	requireNowhere(t, dir, key)
}

func requireNowhere(t *testing.T, dir, secret string) {
	t.Helper()
	files := 0
	require.NoError(t, filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		files++
		text, err := os.ReadFile(path)
		require.NoError(t, err)
		assert.NotContains(t, string(text), secret, path)
		return nil
	}))
	require.Positive(t, files)
}

func TestRefusedRequestsAreGivenUpAndTheRestGoesOn(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{Seed: 5, Faults: faultteacher.Faults{Refuse: 0.2}})
	defer s.Close()
	dir := t.TempDir()
	plan := paperPlan(t, problems(60), Teacher{Name: "t", Backend: endpoint(t, s.URL, "", nil), Concurrency: 4})
	result := work(t, t.Context(), plan, testOptions(dir))
	require.NoError(t, result.Stopped)
	assert.Positive(t, result.Tally.Failed)
	assert.Equal(t, 60, result.Tally.Failed+result.Tally.Answered)
	assert.Equal(t, result.Tally.Failed, s.Counts()["refuse"], "each is asked once")
	assert.Len(t, readRows(t, dir), result.Tally.Answered)
	again := work(t, t.Context(), plan, testOptions(dir))
	assert.Equal(t, result.Tally.Failed, again.Tally.Failed)
	assert.Equal(t, 2*result.Tally.Failed, s.Counts()["refuse"], "the next run tries them again")
}

// blocking answers when it is let.
type blocking struct {
	let     chan struct{}
	running atomic.Int32
}

func (b *blocking) Complete(ctx context.Context, _ Request) (Reply, error) {
	b.running.Add(1)
	select {
	case <-b.let:
		return Reply{Text: "Conclusion: right", Finish: "stop", In: 1, Out: 1}, nil
	case <-ctx.Done():
		return Reply{}, ctx.Err()
	}
}

func TestAnInterruptWaitsForWhatIsOnItsWay(t *testing.T) {
	for _, late := range []bool{false, true} {
		b := &blocking{let: make(chan struct{})}
		plan := paperPlan(t, problems(40), Teacher{Name: "t", Backend: b, Price: testPrice, Concurrency: 8})
		o := testOptions(t.TempDir())
		o.Drain = 10 * time.Second
		if late {
			o.Drain = time.Millisecond
		}
		told := make(chan string, 1)
		o.Note = func(text string) { told <- text }
		ctx, stop := context.WithCancel(t.Context())
		go func() {
			for b.running.Load() < 8 {
				time.Sleep(time.Millisecond)
			}
			stop()
			if !late {
				close(b.let)
			}
		}()
		result := work(t, ctx, plan, o)
		assert.ErrorIs(t, result.Stopped, context.Canceled)
		assert.EqualValues(t, 8, b.running.Load(), "no request leaves after the interrupt")
		if late {
			assert.Contains(t, <-told, "told to stop: 8 answers are on their way, and have 1ms to arrive")
			assert.Zero(t, result.Tally.Answered)
			assert.Equal(t, 8, result.Tally.Faults[FaultInterrupt])
		} else {
			assert.Equal(t, 8, result.Tally.Answered)
		}
	}
}

func TestAnotherPlanIsRefused(t *testing.T) {
	dir := t.TempDir()
	s := faultteacher.New(faultteacher.Options{})
	defer s.Close()
	plan := paperPlan(t, problems(3), Teacher{Name: "t", Backend: endpoint(t, s.URL, "", nil), Concurrency: 1})
	fixed := map[string]any{"prompt": map[string]any{"name": "paper"}, "seed": 7}
	r, err := Open(plan, testOptions(dir), Settings{Fixed: fixed})
	require.NoError(t, err)
	_, err = Open(plan, testOptions(dir), Settings{Fixed: fixed})
	require.ErrorContains(t, err, "is held by pid", "two processes cannot work on a run")
	require.NoError(t, r.Close())
	_, err = Open(plan, testOptions(dir), Settings{Fixed: map[string]any{"prompt": map[string]any{"name": "oneshot"}, "seed": 8}})
	var differ *SettingsError
	require.ErrorAs(t, err, &differ)
	assert.Equal(t, []string{`prompt.name: has "paper", not "oneshot"`, `seed: has 7, not 8`}, differ.Differences)
	require.NoError(t, os.Remove(filepath.Join(dir, RecordName)))
	_, err = Open(plan, testOptions(dir), Settings{Fixed: fixed})
	assert.ErrorIs(t, err, ErrCorrupt)
}

func TestPlansThatCannotBe(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{})
	defer s.Close()
	good := Teacher{Name: "t", Backend: endpoint(t, s.URL, "", nil), Concurrency: 1}
	for want, change := range map[string]func(*Plan){
		"there are no records":                 func(p *Plan) { p.Records = problems(0) },
		"there is no teacher":                  func(p *Plan) { p.Teachers = nil },
		"requests per record":                  func(p *Plan) { p.PerRow = 0 },
		"max tokens":                           func(p *Plan) { p.MaxTokens = 0 },
		`teacher "t": each needs a name`:       func(p *Plan) { p.Teachers = []Teacher{good, good} },
		"teacher t: concurrency":               func(p *Plan) { p.Teachers[0].Concurrency = 0 },
		"teacher t: only an endpoint has a ba": func(p *Plan) { p.Teachers[0].Backend, p.Teachers[0].Batch = &blocking{}, &BatchOptions{} },
	} {
		plan := paperPlan(t, problems(3), good)
		change(&plan)
		_, err := Open(plan, testOptions(t.TempDir()), Settings{})
		assert.ErrorContains(t, err, want)
	}
}

// failing is a source whose third record cannot be read.
type failing struct{ problems }

func (f failing) Record(i int) (dataset.Record, error) {
	if i == 2 {
		return dataset.Record{}, &dataset.Error{File: "d.jsonl", Line: 3, Err: errors.New("the row is broken")}
	}
	return f.problems.Record(i)
}

func TestAFaultOfTheDataIsTheCallersError(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{})
	defer s.Close()
	plan := paperPlan(t, failing{5}, Teacher{Name: "t", Backend: endpoint(t, s.URL, "", nil), Concurrency: 1})
	r := openRun(t, plan, testOptions(t.TempDir()))
	_, err := r.Work(t.Context())
	assert.EqualError(t, err, "d.jsonl:3: the row is broken")
	require.NoError(t, r.Close())
}

// In a bubble of its own time: what waits takes no time, and lets none pass but what it waits for.
func TestRateLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		took := func() float64 { return time.Since(began).Seconds() }
		b := newBucket(600) // ten a second, sixty at once
		for range 60 {
			require.NoError(t, b.take(t.Context(), 1))
		}
		assert.Zero(t, took())
		for range 50 {
			require.NoError(t, b.take(t.Context(), 1))
		}
		assert.InDelta(t, 5, took(), 0.1)
		b.giveBack(20)
		require.NoError(t, b.take(t.Context(), 20))
		assert.InDelta(t, 5, took(), 0.1, "what was taken too much can be taken again")

		began = time.Now()
		large := newBucket(600)
		require.NoError(t, large.take(t.Context(), 1000), "more than fits passes when the bucket is full")
		assert.Zero(t, took())
		require.NoError(t, large.take(t.Context(), 1))
		assert.InDelta(t, 94.1, took(), 0.2, "and leaves a debt")

		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		assert.ErrorIs(t, large.take(ctx, 60), context.DeadlineExceeded)
		free := newBucket(0)
		require.NoError(t, free.take(t.Context(), 1e9))

		began = time.Now()
		var p pause
		p.extend(3 * time.Second)
		p.extend(time.Second)
		require.NoError(t, p.wait(t.Context()))
		assert.InDelta(t, 3, took(), 0.01, "the longest pause counts")
	})
}

func TestBackoff(t *testing.T) {
	b := Backoff{time.Second, time.Minute}
	for attempt, want := range map[int]time.Duration{1: time.Second, 2: 2 * time.Second, 5: 16 * time.Second, 7: time.Minute, 80: time.Minute} {
		seen := map[time.Duration]bool{}
		for range 50 {
			d := b.delay(attempt)
			assert.GreaterOrEqual(t, d, want/2)
			assert.LessOrEqual(t, d, want)
			seen[d] = true
		}
		assert.Greater(t, len(seen), 10, "attempts that failed together do not come again together")
	}
}

func TestRetryAfter(t *testing.T) {
	now := time.Date(2026, 11, 26, 12, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		"": 0, "7": 7 * time.Second, "0.5": 500 * time.Millisecond, "Thu, 26 Nov 2026 12:01:30 GMT": 90 * time.Second,
		"Thu, 26 Nov 2026 11:00:00 GMT": 0, "-3": 0, "soon": 0, "1e300": longestRetryAfter, "99999": longestRetryAfter,
	} {
		h := http.Header{}
		h.Set("Retry-After", text)
		assert.Equal(t, want, RetryAfter(h, now), text)
	}
	h := http.Header{}
	h.Set("Retry-After", "Thu, 26 Nov 2026 13:00:02 GMT")
	h.Set("Date", "Thu, 26 Nov 2026 13:00:00 GMT")
	assert.Equal(t, 2*time.Second, RetryAfter(h, now), "the endpoint's clock is an hour ahead: it asks for two seconds all the same")
	assert.Equal(t, 2*time.Second, RetryAfter(h, now.Add(3*time.Hour)), "or behind")
	for text, want := range map[string]time.Duration{"120": 120 * time.Millisecond, "1e12": longestRetryAfter, "-1": 2 * time.Second, "NaN": 2 * time.Second} {
		h.Set("Retry-After-Ms", text)
		assert.Equal(t, want, RetryAfter(h, now), "milliseconds: %s", text)
	}
}

// gone counts what it is asked, and answers from some request on.
type gone struct {
	asked, answersFrom int64
	jobs               []int
}

func (g *gone) Complete(_ context.Context, r Request) (Reply, error) {
	g.asked++
	g.jobs = append(g.jobs, r.Job)
	if g.asked < g.answersFrom {
		return Reply{}, &Fault{Kind: FaultConnect, Err: errors.New("connection refused")}
	}
	return Reply{Text: "Conclusion: right [END]", Finish: "stop", In: 1, Out: 1}, nil
}

func TestATeacherThatIsGoneEndsTheRun(t *testing.T) {
	g := &gone{answersFrom: 1 << 30}
	plan := paperPlan(t, problems(1000), Teacher{Name: "t", Backend: g, Concurrency: 1})
	dir := t.TempDir()
	o := testOptions(dir)
	o.Attempts = 2
	o.Backoff = Backoff{time.Microsecond, time.Microsecond}
	notes := 0
	o.Note = func(string) { notes++ }
	result := work(t, t.Context(), plan, o)
	require.EqualError(t, result.Stopped, "teacher t: 32 requests in a row are given up, the last one as no_connect: connection refused")
	assert.EqualValues(t, 32*2, g.asked)
	assert.Equal(t, 32, result.Tally.Failed)
	assert.Equal(t, mostTold+1, notes)

	g.asked, g.answersFrom, g.jobs = 0, 0, nil
	result = work(t, t.Context(), plan, o)
	require.True(t, result.Complete())
	assert.Equal(t, 32, g.jobs[0], "what was given up before comes last")
	assert.Equal(t, 31, g.jobs[len(g.jobs)-1])
	assert.Len(t, readRows(t, dir), 1000)
}

func TestAFolderThatHasOtherFilesIsLeftAlone(t *testing.T) {
	plan := paperPlan(t, problems(3), Teacher{Name: "t", Backend: &blocking{}, Concurrency: 1})
	for _, name := range []string{CritiquesName, SamplesName, ReportName} {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte("mine"), 0o600))
		_, err := Open(plan, testOptions(dir), Settings{})
		require.ErrorIs(t, err, ErrForeign)
		require.ErrorContains(t, err, name)
		assert.NoFileExists(t, filepath.Join(dir, RecordName))
	}
}

func TestSamplesAreGradedAndChosen(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{Answer: func(prompt string) string {
		if strings.Contains(prompt, "4 +") {
			return "five"
		}
		return "the answer is 3"
	}})
	defer s.Close()
	dir := t.TempDir()
	plan := paperPlan(t, problems(6), Teacher{Name: "t", Backend: endpoint(t, s.URL, "", nil), Concurrency: 2})
	plan.PerRow = 2
	r := openRun(t, plan, testOptions(dir))
	defer func() { require.NoError(t, r.Close()) }()
	_, err := r.Work(t.Context())
	require.NoError(t, err)
	grade := func(answer, gold string) bool { return strings.HasSuffix(answer, gold) }
	for _, tt := range []struct {
		name string
		keep Keep
		want SampleCounts
	}{
		{"all", Keep{Right: true, Wrong: true, Ungraded: true}, SampleCounts{Answered: 12, Right: 2, Wrong: 10, Repeated: 6, Written: 12}},
		{"wrong", Keep{Wrong: true}, SampleCounts{Answered: 12, Right: 2, Wrong: 10, Repeated: 6, Written: 10, LeftOut: 2}},
		{"right and distinct", Keep{Right: true, Distinct: true}, SampleCounts{Answered: 12, Right: 2, Wrong: 10, Repeated: 6, Written: 1, LeftOut: 5}},
		{"half and half", Keep{Some: true, Mix: 0.5}, SampleCounts{Answered: 12, Right: 2, Wrong: 10, Repeated: 6, Written: 4, LeftOut: 8}},
		{"three quarters wrong", Keep{Some: true, Mix: 0.75}, SampleCounts{Answered: 12, Right: 2, Wrong: 10, Repeated: 6, Written: 8, LeftOut: 4}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			counts, err := r.WriteSamples(tt.keep, grade)
			require.NoError(t, err)
			assert.Equal(t, tt.want, counts)
			rows := readFile(t, filepath.Join(dir, SamplesName))
			assert.Len(t, rows, counts.Written)
			for _, row := range rows {
				assert.Equal(t, grade(row.Response, row.Gold), row.Label == "right")
				assert.True(t, strings.HasPrefix(row.ID, "p"))
			}
		})
	}
}

// net/http takes requests with an idempotency key for safe to send again when a connection breaks. Each must be in the journal.
func TestOneAttemptIsOneRequest(t *testing.T) {
	var arrived atomic.Int32
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		if arrived.Add(1) > 1 {
			panic(http.ErrAbortHandler)
		}
		w.WriteHeader(http.StatusInternalServerError) // leaves a connection to use again
	}))
	defer s.Close()
	e := endpoint(t, s.URL+"/v1", "", nil)
	request := Request{Messages: []dataset.Message{{Role: "user", Content: "q"}}, MaxTokens: 1, Key: "k"}
	for n := range 4 {
		_, err := e.Complete(t.Context(), request)
		require.Error(t, err)
		require.EqualValues(t, n+1, arrived.Load())
	}
}

func TestThoughtsAreLeftOutUnlessTheyAreWanted(t *testing.T) {
	answers := []string{
		"<think>Conclusion: wrong</think>\nFine.\nConclusion: right [END]", // whole
		"hm</think>Conclusion: right [END]",                                // begun by the prompt
		"<think>it goes on and on. Conclusion: wrong",                      // cut off
		"Conclusion: wrong [END] \xff",
	}
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text, _ := io.ReadAll(r.Body)
		var n int
		_, _ = fmt.Sscanf(string(text[strings.Index(string(text), "What is "):]), "What is %d", &n)
		finish := "stop"
		if n == 2 {
			finish = "length"
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"choices": []any{map[string]any{"finish_reason": finish, "message": map[string]any{"content": answers[n]}}}})
	}))
	defer s.Close()
	dir := t.TempDir()
	plan := paperPlan(t, problems(4), Teacher{Name: "t", Backend: endpoint(t, s.URL+"/v1", "", nil), Concurrency: 1})
	for _, keep := range []bool{false, true} {
		o := testOptions(dir)
		o.KeepThoughts = keep
		r := openRun(t, plan, o)
		_, err := r.Work(t.Context())
		require.NoError(t, err)
		critiques, err := r.WriteCritiques()
		require.NoError(t, err)
		samples, err := r.WriteSamples(Keep{Right: true, Wrong: true}, func(_, _ string) bool { return true })
		require.NoError(t, err)
		require.NoError(t, r.Close())
		var written []string
		for _, row := range readRows(t, dir) {
			written = append(written, row.Critique+" = "+row.Verdict)
		}
		if keep {
			assert.Equal(t, []string{answers[0] + " = right", answers[1] + " = right", answers[2] + " = ", "Conclusion: wrong [END] \uFFFD = wrong"}, written)
			assert.Equal(t, FormCounts{Unreadable: 1}, critiques["t"].FormCounts)
			assert.Equal(t, 4, samples.Written)
			continue
		}
		assert.Equal(t, []string{"Fine.\nConclusion: right [END] = right", "Conclusion: right [END] = right", "Conclusion: wrong [END] \uFFFD = wrong"}, written)
		assert.Equal(t, FormCounts{Thoughts: 3, EmptyCutOff: 1, Unreadable: 1}, critiques["t"].FormCounts)
		assert.Equal(t, 1, critiques["t"].Empty)
		assert.Equal(t, SampleCounts{Answered: 4, Right: 3, Empty: 1, Written: 3, FormCounts: critiques["t"].FormCounts}, samples)
	}
}
