package metrics

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// kept is what a visitor was told since the last restart.
type kept struct {
	steps       []Step
	validations []Validation
	skips       []Skip
	restarts    int
}

func (k *kept) Restart()                { *k = kept{restarts: k.restarts + 1} }
func (k *kept) Step(s Step)             { k.steps = append(k.steps, s) }
func (k *kept) Validation(v Validation) { k.validations = append(k.validations, v) }
func (k *kept) Skip(s Skip)             { k.skips = append(k.skips, s) }

func (k *kept) numbers() []int {
	var list []int
	for _, s := range k.steps {
		list = append(list, s.Step)
	}
	return list
}

func wholeStep(n int) Step {
	return Step{
		Step: n, Epoch: 0.25, Loss: 1.5 + float64(n), Targets: 9, Tokens: 20, Computed: 18, Examples: 3, Packs: 2, LR: 2.5e-5, GradNorm: 0.75,
		Objective: map[string]int{"cft": 2, "sft": 1}, Stage: 1, TokensPerS: 123.456, TargetTokensPerS: 55.5, MemoryBytes: 1 << 33,
		Time: time.Date(2026, 11, 1, 12, 0, n, 123, time.UTC), Seconds: 0.1625,
	}
}

func jsonLine(t *testing.T, record any) string {
	t.Helper()
	text, err := json.Marshal(record)
	require.NoError(t, err)
	return string(text) + "\n"
}

func appendText(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	require.NoError(t, err)
	_, err = f.WriteString(text)
	require.NoError(t, err)
	require.NoError(t, f.Close())
}

func TestFollowReadsWhatIsAdded(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.jsonl")
	f, k := Follow(path), &kept{}
	read := func() bool {
		changed, err := f.Read(k)
		require.NoError(t, err)
		return changed
	}
	assert.False(t, read(), "there is no file yet")

	validation := Validation{Step: 0, Loss: 3, Targets: 5, Objective: "cft", Time: time.Unix(5, 0).UTC(), Seconds: 2}
	appendText(t, path, jsonLine(t, validation)+jsonLine(t, wholeStep(1)))
	assert.True(t, read())
	assert.False(t, read(), "nothing was added")
	assert.Equal(t, []Validation{validation}, k.validations)

	second := jsonLine(t, wholeStep(2))
	appendText(t, path, second[:30])
	assert.True(t, read())
	assert.True(t, f.Torn(), "the second line is not whole")
	assert.Equal(t, []int{1}, k.numbers())
	appendText(t, path, second[30:])
	read()
	assert.False(t, f.Torn())
	assert.Equal(t, []Step{wholeStep(1), wholeStep(2)}, k.steps, "every field is read")

	skip := Skip{Step: 3, Skipped: 1, Reason: `a "loss" of NaN`, Examples: []string{"a:1", "b:2"}, Time: time.Unix(9, 0).UTC()}
	appendText(t, path, jsonLine(t, skip))
	read()
	assert.Equal(t, []Skip{skip}, k.skips)
	assert.Zero(t, k.restarts)
	lines, _ := f.Damaged()
	assert.Zero(t, lines)
}

func TestFollowNoticesRewinds(t *testing.T) {
	var lines []string
	for n := range 6 {
		lines = append(lines, jsonLine(t, wholeStep(n+1)))
	}
	other, alike := wholeStep(4), wholeStep(4)
	other.Loss, alike.Loss = 99, 9.5 // as a resume that went another way; the second one's line is as long as the first run's
	for name, change := range map[string]func(path string){
		"another file, shorter": func(path string) {
			require.NoError(t, os.WriteFile(path+".tmp", []byte(strings.Join(lines[:3], "")), 0o644))
			require.NoError(t, os.Rename(path+".tmp", path))
		},
		"another file that has grown": func(path string) {
			require.NoError(t, os.WriteFile(path+".tmp", []byte(strings.Join(lines[:3], "")+jsonLine(t, other)+lines[4]+lines[5]), 0o644))
			require.NoError(t, os.Rename(path+".tmp", path))
		},
		"another file that looks the same at the place": func(path string) {
			require.NoError(t, os.WriteFile(path+".tmp", []byte(strings.Join(lines[:3], "")+jsonLine(t, alike)+lines[4]+lines[5]), 0o644))
			require.NoError(t, os.Rename(path+".tmp", path))
		},
		"cut in place": func(path string) { require.NoError(t, os.Truncate(path, int64(len(lines[0])*3))) },
		"cut in place, grown to more": func(path string) {
			text := strings.Join(lines[:3], "") + jsonLine(t, other) + lines[4] + lines[5]
			require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		},
		"cut in place and gone on at a line's end": func(path string) {
			require.NoError(t, os.WriteFile(path, []byte(strings.Join(lines[:5], "")+lines[3]+lines[4]), 0o644))
		},
		"gone": func(path string) { require.NoError(t, os.Remove(path)) },
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "metrics.jsonl")
			appendText(t, path, strings.Join(lines[:5], ""))
			f, k := Follow(path), &kept{}
			_, err := f.Read(k)
			require.NoError(t, err)
			require.Equal(t, []int{1, 2, 3, 4, 5}, k.numbers())
			change(path)
			_, err = f.Read(k)
			require.NoError(t, err)
			assert.Equal(t, 1, k.restarts)
			fresh := &kept{}
			_, err = Follow(path).Read(fresh)
			require.NoError(t, err)
			assert.Equal(t, fresh.steps, k.steps, "the same as for one that has just come")
		})
	}
}

func TestFollowGoesOnAfterDamage(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.jsonl")
	appendText(t, path, jsonLine(t, wholeStep(1))+"not json\n"+`{"loss":1}`+"\n"+`{"step":2}`+"\n"+jsonLine(t, wholeStep(2))+jsonLine(t, wholeStep(2))+jsonLine(t, wholeStep(9)))
	appendText(t, path, strings.Repeat("x", maxLineBytes+readBytes)+"\n"+jsonLine(t, wholeStep(10)))
	f, k := Follow(path), &kept{}
	_, err := f.Read(k)
	require.NoError(t, err)
	assert.Equal(t, []int{1, 2, 9, 10}, k.numbers())
	lines, problem := f.Damaged()
	assert.Equal(t, 6, lines)
	assert.Contains(t, problem, "line 2: ")
}

func TestFollowDoesNotCountPauses(t *testing.T) {
	path := filepath.Join(t.TempDir(), "metrics.jsonl")
	first, second := wholeStep(1), wholeStep(2)
	first.Seconds, second.Seconds = 2, 2
	second.Time = first.Time.Add(10 * time.Hour) // it was resumed the next day
	appendText(t, path, jsonLine(t, first)+jsonLine(t, second))
	f := Follow(path)
	_, err := f.Read(&kept{})
	require.NoError(t, err)
	assert.InDelta(t, 2, f.SecondsPerStep(), 0.01)
}

// The quick way to read a line must not take anything that the thorough one refuses, nor read it otherwise.
func TestPlainLinesAreReadAsJSON(t *testing.T) {
	plain := 0
	for _, text := range append(oddLines(), strings.TrimSpace(jsonLine(t, wholeStep(7)))) {
		var quick, thorough Step
		if !parsePlain([]byte(text), &quick) {
			continue
		}
		plain++
		require.NoError(t, json.Unmarshal([]byte(text), &thorough), text)
		assert.Equal(t, thorough, quick, text)
	}
	assert.Equal(t, 4, plain, "of the lines those that are plain")
}

func oddLines() []string {
	lines := []string{`{"step":1,"loss":-1.5e-3}`, `{"step":1,"loss":0,"objective":{}}`, `{"step":1,"loss":2,"lr":1E+2}`}
	for _, number := range []string{"01", "+1", "1.", ".5", "0x1p3", "Inf", "NaN", "1e999", "1_0", "--1", "-", "1e", "", "null", `"1"`} {
		lines = append(lines, fmt.Sprintf(`{"step":1,"loss":%s}`, number))
	}
	return append(lines, `{"step":1.5,"loss":1}`, `{"step":1,"loss":1,"loss":2}`, `{"step":1,"loss":1}x`, `{"step":1}`, `{"step":1,"loss":1,}`,
		`{"step":1,"loss":1,"objective":{"a\u0041":1}}`, `{"step":1,"loss":1,"time":"yesterday"}`, `{"step":1,"loss":1,"other":2}`, `{}`, ``)
}

func FuzzParseRecord(f *testing.F) {
	for _, text := range oddLines() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var quick, thorough Step
		if record, err := parseRecord([]byte(text)); (record == nil) == (err == nil) {
			t.Fatalf("%q: %v and %v", text, record, err)
		}
		if parsePlain([]byte(text), &quick) {
			if err := json.Unmarshal([]byte(text), &thorough); err != nil {
				t.Fatalf("%q was taken, but %v", text, err)
			}
			assert.Equal(t, thorough, quick)
		}
	})
}
