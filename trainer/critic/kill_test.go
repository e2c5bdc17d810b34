package critic

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/faultteacher"
)

// child tells a process of the test binary to work on a run instead of testing.
type child struct {
	Dir, URL string
	Rows     int
	Batch    bool
}

const childVariable = "CFTUNE_TEST_CRITIC"

func TestMain(m *testing.M) {
	if text := os.Getenv(childVariable); text != "" {
		var c child
		if err := json.Unmarshal([]byte(text), &c); err != nil {
			panic(err)
		}
		if err := c.work(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func (c child) plan(t testing.TB) Plan {
	teacher := Teacher{Name: "t", Backend: endpoint(t, c.URL, "", nil), Price: testPrice, Concurrency: 32}
	if c.Batch {
		teacher.Concurrency, teacher.Batch = 3, &BatchOptions{Requests: 40, Poll: 5 * time.Millisecond}
	}
	return paperPlan(t, problems(c.Rows), teacher)
}

// work ends when everything is answered, and tells how its memory grew.
func (c child) work() error {
	var t panics
	o := testOptions(c.Dir)
	var early uint64
	o.Observe = func(p Progress) {
		if early == 0 && p.Tally.Answered > p.Jobs/4 {
			early = residentPeak()
		}
	}
	r, err := Open(c.plan(&t), o, Settings{Fixed: map[string]any{"plan": "test", "rows": c.Rows}})
	if err != nil {
		return err
	}
	result, err := r.Work(context.Background())
	if err != nil {
		return err
	}
	if !result.Complete() {
		return fmt.Errorf("%d of %d, stopped: %v", result.Tally.Answered, result.Jobs, result.Stopped)
	}
	if _, err := r.WriteCritiques(); err != nil {
		return err
	}
	fmt.Printf("memory %d %d\n", early, residentPeak())
	return r.Close()
}

// panics is a testing.TB for helpers outside of tests.
type panics struct{ testing.T }

func (*panics) Helper()                           {}
func (*panics) Errorf(format string, args ...any) { panic(fmt.Sprintf(format, args...)) }
func (*panics) FailNow()                          { panic("failed") }

var peak = regexp.MustCompile(`VmHWM:\s+(\d+) kB`)

// residentPeak is the most memory that the process has had, in bytes; 0 where the system does not tell.
func residentPeak() uint64 {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0
	}
	m := peak.FindSubmatch(text)
	if m == nil {
		return 0
	}
	kib, err := strconv.ParseUint(string(m[1]), 10, 64)
	if err != nil {
		return 0
	}
	return kib << 10
}

// killed runs a child and kills it so many times, at seeded moments of its work, then lets one end. It returns the last
// one's output.
func (c child) killed(t *testing.T, kills int, rng *rand.Rand) []byte {
	t.Helper()
	settings, err := json.Marshal(c)
	require.NoError(t, err)
	start := func(out *bytes.Buffer) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+string(settings))
		cmd.Stdout, cmd.Stderr = out, out
		require.NoError(t, cmd.Start())
		return cmd
	}
	answered := func() int {
		n := 0
		_, err := ScanJournal(filepath.Join(c.Dir, JournalName), func(_ int64, e Entry) error {
			if e.Kind == kindAnswer {
				n++
			}
			return nil
		})
		require.NoError(t, err)
		return n
	}
	for k := range kills {
		// The k-th kill comes when about k+1 of kills+1 parts of the work are done, and a little later.
		goal := c.Rows * (k + 1) / (kills + 1)
		var out bytes.Buffer
		cmd := start(&out)
		ended := make(chan error, 1)
		go func() { ended <- cmd.Wait() }()
		for answered() < goal {
			select {
			case err := <-ended:
				require.FailNow(t, "the process ended before it was killed", "%v: %s", err, out.String())
			case <-time.After(5 * time.Millisecond):
			}
		}
		time.Sleep(time.Duration(rng.IntN(30)) * time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		<-ended
	}
	var out bytes.Buffer
	require.NoError(t, start(&out).Wait(), "%s", &out)
	return out.Bytes()
}

// TestKilledAndGoneOnWith is what the journal promises. CFTUNE_TEACHER_FAULTS=full makes it 5,000 requests and 20 kills.
func TestKilledAndGoneOnWith(t *testing.T) {
	rows, kills := 400, 3
	if os.Getenv("CFTUNE_TEACHER_FAULTS") == "full" {
		rows, kills = 5000, 20
	}
	for _, honour := range []bool{true, false} {
		t.Run(fmt.Sprintf("idempotency keys honoured %v", honour), func(t *testing.T) {
			s := faultteacher.New(faultteacher.Options{Seed: 11, Faults: allFaults, Honour: honour, Latency: 5 * time.Millisecond})
			defer s.Close()
			c := child{Dir: t.TempDir(), URL: s.URL, Rows: rows}
			began := time.Now()
			out := c.killed(t, kills, rand.New(rand.NewPCG(1, 2)))
			took := time.Since(began)
			requireOnce(t, readRows(t, c.Dir), rows, 1)

			r := openRun(t, c.plan(t), testOptions(c.Dir))
			tally := r.Tally()
			require.NoError(t, r.Close())
			charged, paid := s.Charged()
			twice := 0
			for _, n := range paid {
				twice += n - 1
			}
			assert.Len(t, paid, rows)
			if honour {
				assert.Zero(t, twice, "paid twice")
				requireAddsUp(t, tally, s)
			} else {
				// Whatever was charged beyond one answer each is among those that the journal says may have been paid.
				assert.LessOrEqual(t, twice, tally.Unknown+tally.Lost)
				assert.LessOrEqual(t, testPrice.Of(charged.In, charged.Out), tally.Spent+tally.Possible)
				assert.GreaterOrEqual(t, charged.Answers, tally.Answered)
			}
			assert.Positive(t, tally.Unknown, "no request was on its way at any kill: the test shows nothing about those")
			early, last := memory(t, out)
			t.Logf("%d requests, %d kills, %s: %d requests sent, faults %v, %d unknown after kills, %d answers lost; paid for %d answers, %d of them twice; "+
				"journal: %d answers, %s spent, at most %s beside; peak memory of the last process %.1f MiB, %.1f MiB early on; %s",
				rows, kills, took.Round(100*time.Millisecond), tally.Requests, tally.Faults, tally.Unknown, tally.Lost, charged.Answers, twice,
				tally.Answered, tally.Spent, tally.Possible, float64(last)/(1<<20), float64(early)/(1<<20), runtime.GOOS)
		})
	}
}

func memory(t *testing.T, out []byte) (early, last uint64) {
	t.Helper()
	m := regexp.MustCompile(`memory (\d+) (\d+)`).FindSubmatch(out)
	require.NotNil(t, m, "%s", out)
	early, err := strconv.ParseUint(string(m[1]), 10, 64)
	require.NoError(t, err)
	last, err = strconv.ParseUint(string(m[2]), 10, 64)
	require.NoError(t, err)
	return early, last
}

// TestMemoryIsFlat lets one process do all: what it has at a quarter of the requests is about what it has at the end.
func TestMemoryIsFlat(t *testing.T) {
	if residentPeak() == 0 {
		t.Skip("this system does not tell a process's memory")
	}
	if raceDetector {
		t.Skip("the race detector's own memory grows with the work; the test without it measures the program's")
	}
	rows := 4000
	if os.Getenv("CFTUNE_TEACHER_FAULTS") == "full" {
		rows = 10_000
	}
	s := faultteacher.New(faultteacher.Options{Answer: func(string) string { return string(bytes.Repeat([]byte("long "), 2000)) + "What is " }})
	defer s.Close()
	c := child{Dir: t.TempDir(), URL: s.URL, Rows: rows}
	early, last := memory(t, c.killed(t, 0, nil))
	t.Logf("%d answers of 10 kB: peak memory %.1f MiB at a quarter, %.1f MiB at the end", rows, float64(early)/(1<<20), float64(last)/(1<<20))
	// All texts together are rows * 10 kB: 40 MB for 4,000, a quarter of them early on. The collector alone makes 5 MB of difference at times.
	assert.Less(t, last, early+uint64(rows)*10_000/4)
}

func TestBatches(t *testing.T) {
	rows, kills := 200, 3
	s := faultteacher.New(faultteacher.Options{
		Seed: 4, BatchPolls: 6, Faults: faultteacher.Faults{Internal: 0.1, Cut: 0.2, Hang: 0.1, BatchRowMissing: 0.05},
	})
	defer s.Close()
	c := child{Dir: t.TempDir(), URL: s.URL, Rows: rows, Batch: true}
	settings, err := json.Marshal(c)
	require.NoError(t, err)
	rng := rand.New(rand.NewPCG(5, 6))
	for range kills {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), childVariable+"="+string(settings))
		require.NoError(t, cmd.Start())
		time.Sleep(time.Duration(20+rng.IntN(60)) * time.Millisecond)
		require.NoError(t, cmd.Process.Kill())
		_ = cmd.Wait() // it was killed
	}
	c.killed(t, 0, rng)
	requireOnce(t, readRows(t, c.Dir), rows, 1)
	r := openRun(t, c.plan(t), testOptions(c.Dir))
	tally := r.Tally()
	require.NoError(t, r.Close())
	requireAddsUp(t, tally, s)
	_, paid := s.Charged()
	assert.Len(t, paid, rows)
	for key, n := range paid {
		assert.Equal(t, 1, n, key)
	}
	counts := s.Counts()
	t.Logf("server: %v", counts)
	for _, what := range []string{"batches", "batch API 500", "batch made, answer lost", "batch answers cut off", "batch row missing"} {
		assert.Positive(t, counts[what], what)
	}
}

// A refused row is asked once by a process, not in each of its rounds, which may take a day; what is malformed may be paid.
func TestBatchesWithRowsThatAreRefused(t *testing.T) {
	s := faultteacher.New(faultteacher.Options{Seed: 4, Faults: faultteacher.Faults{Refuse: 0.3, Malformed: 0.3}})
	defer s.Close()
	teacher := Teacher{
		Name: "t", Backend: endpoint(t, s.URL, "", nil), Price: testPrice, Concurrency: 2, Batch: &BatchOptions{Requests: 20, Poll: time.Millisecond},
	}
	plan := paperPlan(t, problems(60), teacher)
	tally := work(t, t.Context(), plan, testOptions(t.TempDir())).Tally
	counts := s.Counts()
	require.Positive(t, counts["batch row refused"])
	require.Positive(t, counts["batch row malformed"])
	assert.Equal(t, counts["batch row refused"], tally.Failed)
	assert.Equal(t, 60-tally.Failed, tally.Answered)
	assert.Equal(t, counts["batch row malformed"], tally.Lost)
	request, err := plan.request(0, "r")
	require.NoError(t, err)
	each := testPrice.Of(worstTokens(request.Messages), plan.MaxTokens)
	assert.InDelta(t, float64(each)*float64(tally.Lost), float64(tally.Possible), 0.1*float64(tally.Possible), "at most as much as they can have cost")
	assert.Equal(t, 60+tally.Lost, tally.Requests)
}
