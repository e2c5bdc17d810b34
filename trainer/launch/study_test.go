package launch

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestHowPartsStandTogether(t *testing.T) {
	for _, c := range []struct {
		parts         []string
		phase, counts string
	}{
		{[]string{PhaseDone, PhaseDone}, PhaseDone, "2 done"},
		{[]string{PhasePending, PhaseRunning, PhaseFailed}, PhaseRunning, "1 running, 1 pending, 1 failed"},
		{[]string{PhaseDone, PhaseRetrying, PhaseStopped}, PhaseRetrying, "1 retrying, 1 stopped, 1 done"},
		{[]string{PhaseDone, PhaseEnding}, PhaseEnding, "1 ending, 1 done"},
		{[]string{PhaseDone, PhaseRequeued, PhaseLost}, PhaseRequeued, "1 requeued, 1 lost, 1 done"},
		{[]string{PhaseDone, PhaseStopped, PhaseFailed}, PhaseFailed, "1 failed, 1 stopped, 1 done; part 3: its words"},
		{[]string{PhaseDone, PhaseLost}, PhaseLost, "1 lost, 1 done; part 2: its words"},
		{[]string{PhaseNew, PhaseNew}, PhaseNew, "2 new; part 1: its words"},
	} {
		var parts []State
		for _, phase := range c.parts {
			parts = append(parts, State{Phase: phase, Message: "its words"})
		}
		s := together(parts)
		assert.Equal(t, c.phase, s.Phase)
		assert.Equal(t, "of its parts "+c.counts, s.Message)
		assert.Len(t, s.Parts, len(parts))
	}
	one := State{Phase: PhaseRunning, Message: "words"}
	assert.Equal(t, one, together([]State{one}), "a study in one part stands as that")
}

func TestPartsAreFoundByTheStudysName(t *testing.T) {
	d := &direct{host: localHost{}, root: t.TempDir()}
	place := func(name string, part *Part) {
		t.Helper()
		format := JobFormat
		if part != nil {
			format = partFormat
		}
		text, err := json.Marshal(Job{Format: format, Name: name, Part: part})
		require.NoError(t, err)
		require.NoError(t, os.MkdirAll(JobDir(d, name), 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(JobDir(d, name), jobName), text, 0o600))
	}
	names := func(study string) (names []string) {
		t.Helper()
		parts, err := PartsOf(d, study)
		require.NoError(t, err)
		for _, p := range parts {
			names = append(names, p.Job.Name)
		}
		return names
	}
	assert.Empty(t, names("a"), "nothing was ever launched")
	for number := 12; number >= 1; number-- {
		place(partJob("a", number, 12), &Part{"a", number, 12})
	}
	place("a-1-of-2", nil) // a run that is called so
	place("b", &Part{"b", 1, 1})
	place("c", nil)
	place("x-a-1-of-12", nil)
	found := names("a")
	require.Len(t, found, 12)
	assert.Equal(t, []string{"a-1-of-12", "a-2-of-12", "a-3-of-12"}, found[:3], "in their order")
	assert.Equal(t, []string{"b"}, names("b"))
	assert.Empty(t, names("c"), "a run is no study")
	assert.Empty(t, names("x"))
}

func TestJobsOfStudies(t *testing.T) {
	j := Job{Program: "/b/cftune", Part: &Part{"s", 2, 3}}
	assert.Equal(t, []string{"/b/cftune", "study", "/j/run.json", "--shard", "2/3"}, j.command("/j/run.json", orResume))
	j.Part = &Part{"s", 1, 1}
	assert.Equal(t, []string{"/b/cftune", "study", "/j/run.json", "--dry-run", "--json"}, j.command("/j/run.json", "--dry-run", "--json"))

	assert.True(t, j.mayPass(exitCheckpoint), "held by a process that is gone")
	assert.False(t, Job{}.mayPass(exitCheckpoint))

	_, err := parseJob([]byte(`{"format": 2, "part": {"study": "s", "number": 1, "of": 1}}`))
	require.NoError(t, err)
	for _, bad := range []string{`{"format": 1, "part": {"study": "s", "number": 1, "of": 1}}`, `{"format": 2}`} {
		_, err = parseJob([]byte(bad))
		assert.ErrorContains(t, err, "format 2 has a part of a study, others have none", bad)
	}
	_, err = parseJob([]byte(`{"format": 3}`))
	assert.ErrorContains(t, err, "format 3 is not 1 or 2")
}

// Another turn on Slurm is worth it if the last one saved something.
func TestWhatAStudySavedIsToldApart(t *testing.T) {
	j := Job{Run: filepath.Join(t.TempDir(), "s"), Part: &Part{"s", 1, 1}}
	var before string
	changes := func(want bool, why string) {
		t.Helper()
		now, err := j.saved()
		require.NoError(t, err)
		assert.Equal(t, want, now != before, why)
		before = now
	}
	write := func(name string) {
		t.Helper()
		path := filepath.Join(j.Run, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		f, err := os.OpenFile(path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
		require.NoError(t, err)
		_, err = f.WriteString("x\n")
		require.NoError(t, err)
		require.NoError(t, f.Close())
	}
	changes(false, "nothing is there")
	write("runs/a-s1/config.json")
	changes(true, "a run has begun")
	write("runs/a-s1/metrics.jsonl")
	changes(false, "steps without a checkpoint are lost")
	require.NoError(t, os.MkdirAll(filepath.Join(j.Run, "runs", "a-s1", "checkpoints", "step-00000005"), 0o700))
	changes(true, "a checkpoint")
	write("scores/base.jsonl")
	changes(true, "a text")
	write("scores/base.jsonl")
	changes(true, "another")
	changes(false, "nothing new")
}

func TestLinesOfPartsAreMarked(t *testing.T) {
	var out bytes.Buffer
	m := &markedLines{out: &out, mark: "[2/3] "}
	for _, text := range []string{"one", " line\ntwo\nth", "", "ree\n", "rest"} {
		_, err := io.WriteString(m, text)
		require.NoError(t, err)
	}
	assert.Equal(t, "[2/3] one line\n[2/3] two\n[2/3] three\n", out.String())
}

// A study that is launched again starts the parts that are over and not done.
func TestWhatNeedsNoStartIsLeftOut(t *testing.T) {
	plan := func(study bool, phases ...string) *Plan {
		p := &Plan{}
		for i, phase := range phases {
			j := Job{Name: phase}
			if study {
				j.Part = &Part{"s", i + 1, len(phases)}
			}
			p.jobs, p.states, p.shipped = append(p.jobs, Placed{Job: j}), append(p.states, State{Phase: phase}), append(p.shipped, &shipped{})
		}
		return p
	}
	p := plan(true, PhaseDone, PhaseFailed, PhaseRunning, PhaseStopped)
	_, running := p.Running()
	assert.False(t, running)
	p.leaveOut()
	require.Len(t, p.jobs, 2)
	assert.Equal(t, []string{PhaseFailed, PhaseStopped}, []string{p.jobs[0].Job.Name, p.jobs[1].Job.Name})
	assert.Len(t, p.shipped, 2)

	for phase, phases := range map[string][]string{PhaseRunning: {PhaseDone, PhaseRunning}, PhaseDone: {PhaseDone, PhaseDone}, PhasePending: {PhasePending}} {
		state, running := plan(true, phases...).Running()
		assert.True(t, running, phase)
		assert.Equal(t, phase, state.Phase)
	}
	_, running = plan(false, PhaseDone, PhaseDone).Running()
	assert.False(t, running, "several runs are several")
	p = plan(false, PhaseDone, PhaseFailed)
	p.leaveOut()
	assert.Len(t, p.jobs, 2, "what is done is left out by who asks for the array")
}
