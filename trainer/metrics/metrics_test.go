package metrics

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vbauerster/mpb/v8"
	"go.uber.org/goleak"

	"cftune/internal/testlimit"
	"cftune/trainer/internal/crashpoint"
	"cftune/trainer/internal/durable"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func writeSteps(t *testing.T, path string, steps int) {
	t.Helper()
	log, err := OpenLog(durable.OS, path)
	require.NoError(t, err)
	require.NoError(t, log.Write(Validation{Step: 0, Loss: 3}))
	for i := range steps {
		require.NoError(t, log.Write(Step{Step: i + 1, Loss: 2 - 0.1*float64(i), Objective: map[string]int{"cft": 4}}))
	}
	require.NoError(t, log.Write(Validation{Step: steps, Loss: 1}))
	require.NoError(t, log.Sync())
	require.NoError(t, log.Close())
}

func TestRecordsHaveTheKeysThatOthersRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.jsonl")
	writeSteps(t, path, 1)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	lines := strings.Split(strings.TrimSpace(string(text)), "\n")
	require.Len(t, lines, 3)
	for i, keys := range [][]string{
		{"step", "validation_loss", "validation_targets"},
		{"step", "epoch", "loss", "targets", "tokens", "lr", "grad_norm", "objective", "tokens_per_s", "target_tokens_per_s", "memory_bytes", "time", "seconds"},
	} {
		var record map[string]any
		require.NoError(t, json.Unmarshal([]byte(lines[i]), &record))
		for _, key := range keys {
			assert.Contains(t, record, key)
		}
	}
}

func TestRewind(t *testing.T) {
	for _, tt := range []struct {
		name            string
		step, validated int
		torn            string
		lines           int
	}{
		{"nothing to take off", 5, 5, "", 7},
		{"torn last line", 5, 5, `{"step": 6, "lo`, 7},
		{"a validation that no checkpoint knows", 5, 0, "", 6},
		{"later steps", 2, 0, "", 3},
		{"later steps and a torn line", 2, 0, `{"step`, 3},
		{"all steps, but not the validation before them", 0, 0, "", 1},
		{"everything", 0, -1, "", 0},
	} {
		t.Run(tt.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "metrics.jsonl")
			writeSteps(t, path, 5)
			whole, err := os.ReadFile(path)
			require.NoError(t, err)
			require.NoError(t, os.WriteFile(path, append(bytes.Clone(whole), tt.torn...), 0o600))
			require.NoError(t, Rewind(durable.OS, path, Place{Step: tt.step, Validated: tt.validated}))
			got, err := os.ReadFile(path)
			require.NoError(t, err)
			assert.True(t, bytes.HasPrefix(whole, got))
			assert.Equal(t, tt.lines, bytes.Count(got, []byte("\n")))
		})
	}
	assert.NoError(t, Rewind(durable.OS, filepath.Join(t.TempDir(), "none"), Place{Step: 3}))
}

// Whatever operation fails, the file is the old one or the rewound one.
func TestRewindSurvivesCrashes(t *testing.T) {
	for at := 1; ; at++ {
		path := filepath.Join(t.TempDir(), "metrics.jsonl")
		writeSteps(t, path, 5)
		fs := &crashpoint.FS{At: at}
		err := Rewind(fs, path, Place{Step: 2})
		require.NoError(t, fs.Lose())
		summary, checkErr := Check(path)
		require.NoError(t, checkErr)
		require.False(t, summary.Torn)
		require.Contains(t, []int{2, 5}, summary.LastStep, "crash at operation %d", at)
		if !fs.Crashed() {
			require.NoError(t, err)
			require.Equal(t, 2, summary.LastStep)
			break
		}
	}
}

func TestCheck(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.jsonl")
	writeSteps(t, path, 4)
	summary, err := Check(path)
	require.NoError(t, err)
	assert.Equal(t, 4, summary.LastStep)
	assert.InDelta(t, 1.7, summary.LastLoss, 1e-9)

	for name, text := range map[string]string{
		"a gap":          `{"step":1,"loss":1}` + "\n" + `{"step":3,"loss":1}` + "\n",
		"twice":          `{"step":1,"loss":1}` + "\n" + `{"step":1,"loss":1}` + "\n",
		"no JSON within": `{"step":1,"loss":1}` + "\n" + `{"st` + "\n" + `{"step":2,"loss":1}` + "\n",
		"without a step": `{"loss":1}` + "\n",
	} {
		t.Run(name, func(t *testing.T) {
			require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
			_, err := Check(path)
			assert.ErrorIs(t, err, ErrCorrupt)
		})
	}
}

var sample = Step{Step: 3, Loss: 1.23456, LR: 2e-4, GradNorm: 0.5, TokensPerS: 812, TargetTokensPerS: 203, Seconds: 2, Time: time.Unix(100, 0)}

func TestLines(t *testing.T) {
	var out bytes.Buffer
	p := NewLines(&out, 13)
	p.Note("hello")
	p.Step(sample)
	p.Validation(Validation{Step: 3, Loss: 1.5, Targets: 40})
	p.Validation(Validation{Step: 3, Loss: 1.5, Targets: 20, Objective: "cft"})
	p.Close()
	assert.Equal(t, `hello
step 3/13: loss 1.2346, lr 0.0002, grad norm 0.5, 812 tokens/s, 203 targets/s, ETA 20s
step 3: validation loss 1.5000 over 40 targets
step 3: validation loss of cft 1.5000 over 20 targets
`, out.String())
}

// A clock that is set back on the way takes no time off.
func TestTimeLeftWithAClockThatIsSetBack(t *testing.T) {
	p := pace{total: 13}
	s := sample
	require.Equal(t, 20*time.Second, p.left(s))
	s.Time = s.Time.Add(-time.Hour)
	assert.Equal(t, 20*time.Second, p.left(s))
}

func TestBarShowsWhatALineDoes(t *testing.T) {
	for name, total := range map[string]int{"in the middle": 13, "at the end": 3} {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			b := newBar(&out, 2, total, mpb.WithAutoRefresh(), mpb.WithWidth(79))
			b.Note("hello")
			b.Step(sample)
			b.Close() // ends with a run that has not reached its last step, too
			for _, want := range []string{"hello", "step 3/", "loss 1.2346", "lr 2.0e-04", "812 tok/s", "203 targets/s", "ETA "} {
				assert.Contains(t, out.String(), want)
			}
		})
	}
}

func TestRead(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.jsonl")
	records, torn := readAll(t, path)
	assert.Empty(t, records)
	assert.False(t, torn)

	log, err := OpenLog(durable.OS, path)
	require.NoError(t, err)
	want := []Record{
		Validation{Step: 0, Loss: 3, Targets: 4, Objective: "cft", Time: time.Unix(1, 0).UTC()}, sample,
		Skip{Step: 4, Skipped: 1, Reason: "a spike", Examples: []string{"a:1"}, Time: time.Unix(2, 0).UTC()},
	}
	for _, r := range want {
		require.NoError(t, log.Write(r))
	}
	require.NoError(t, log.Close())
	records, torn = readAll(t, path)
	require.Len(t, records, 3)
	assert.False(t, torn)
	step := records[1].(Step)
	assert.True(t, step.Time.Equal(sample.Time))
	step.Time = sample.Time
	assert.Equal(t, want, []Record{records[0], step, records[2]})

	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, text[:len(text)-9], 0o600))
	records, torn = readAll(t, path)
	assert.Len(t, records, 2)
	assert.True(t, torn)
	for _, line := range []string{"{]", `{"loss": 1}`, `{"step": 1, "loss": 1, "objective": 7}`} {
		require.NoError(t, os.WriteFile(path, []byte(line+"\n"), 0o600))
		_, err := Read(path, func(Record) { t.Error("a damaged line was read") })
		assert.ErrorIs(t, err, ErrCorrupt, line)
	}
}

func readAll(t *testing.T, path string) (records []Record, torn bool) {
	t.Helper()
	torn, err := Read(path, func(r Record) { records = append(records, r) })
	require.NoError(t, err)
	return records, torn
}

func FuzzMetrics(f *testing.F) {
	f.Add([]byte(`{"step": 1, "loss": 2.5}`+"\n"+`{"step": 1, "validation_loss": 2}`+"\n"+`{"step": 2, "skipped": 1, "reason": "a spike"}`+"\n"), 1)
	f.Add([]byte(`{"step": 1}`), 0)
	f.Fuzz(func(t *testing.T, text []byte, step int) {
		if len(text) > testlimit.SmallFile {
			t.Skip("no small file")
		}
		path := filepath.Join(t.TempDir(), "metrics.jsonl")
		require.NoError(t, os.WriteFile(path, text, 0o600))
		testlimit.Bound(t, func() {
			if _, err := Check(path); err != nil {
				require.ErrorIs(t, err, ErrCorrupt)
			}
			if err := Rewind(durable.OS, path, Place{Step: step, Validated: step}); err != nil {
				require.ErrorIs(t, err, ErrCorrupt)
				return
			}
			after, err := os.ReadFile(path)
			require.NoError(t, err)
			require.True(t, bytes.HasPrefix(text, after), "it only takes off")
			_, err = Losses(path, 4)
			require.NoError(t, err, "what is kept can be read")
			if _, err := Read(path, func(Record) {}); err != nil {
				require.ErrorIs(t, err, ErrCorrupt)
			}
		})
	})
}
