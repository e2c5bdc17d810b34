package launch

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/spell"
)

// Which limit has ended a run is told with its being done.
func TestSupervisorTellsOfStepsLeft(t *testing.T) {
	run := t.TempDir()
	for reason, words := range map[string]string{"max_time": "steps left (max_time); cftune launch resume test goes on", "patience": "by patience", "finished": ""} {
		s, _ := supervised(t, `echo '{"reason":"`+reason+`"}' >`+spell.Quote(run+"/"+runEnd), Job{Run: run}, nil)
		assert.Equal(t, PhaseDone, s.Phase)
		assert.Contains(t, s.Message, words)
		assert.Equal(t, words == "", s.Message == "")
		assert.Equal(t, reason == "max_time", s.StepsLeft)
		assert.Equal(t, reason == "max_time", s.Resumable())
		assert.False(t, startable(s), "being launched again is not enough")
	}
}

// farRun makes the beginning of a run in a folder, and returns what puts more files there.
func farRun(t *testing.T, dir string) (put func(name, text string)) {
	t.Helper()
	put = func(name, text string) {
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	put(runConfig, `{"started":"2026-11-27T00:00:00Z"}`)
	put("metrics.jsonl", "{}\n")
	return put
}

// A run's end comes along with it, and goes again when the run has gone on there.
func TestTheEndIsFetched(t *testing.T) {
	far, here := t.TempDir(), t.TempDir()
	put := farRun(t, far)
	put("checkpoints/step-00000004/manifest.json", "{}")
	put(runEnd, `{"step":4,"checkpoint":4,"reason":"max_time"}`)
	fetch := func() {
		_, err := FetchRun(t.Context(), localHost{}, "run", far, here, false, func(string, ...any) {})
		require.NoError(t, err)
	}
	fetch()
	text, err := os.ReadFile(filepath.Join(here, runEnd))
	require.NoError(t, err)
	assert.Contains(t, string(text), "max_time")
	require.NoError(t, os.Remove(filepath.Join(far, runEnd)))
	fetch()
	assert.NoFileExists(t, filepath.Join(here, runEnd))
	fetch()
}

// pruningHost removes a checkpoint when its first file is opened, as a run that goes on may.
type pruningHost struct {
	localHost
	prune func(path string)
}

func (h pruningHost) Open(path string) (ReadFile, error) {
	h.prune(path)
	return h.localHost.Open(path)
}

// A run that goes on removes old checkpoints while they are fetched.
func TestACheckpointThatIsRemovedWhileItIsFetched(t *testing.T) {
	far, here := t.TempDir(), t.TempDir()
	put := farRun(t, far)
	put("checkpoints/step-00000004/adapter.gguf", "four")
	put("checkpoints/step-00000004/manifest.json", "{}")
	put("checkpoints/step-00000006/adapter.gguf", "six")
	h := pruningHost{prune: func(path string) {
		if filepath.Base(path) == "adapter.gguf" && filepath.Base(filepath.Dir(path)) == "step-00000006" {
			require.NoError(t, os.RemoveAll(filepath.Dir(path)))
			put("checkpoints/step-00000008/adapter.gguf", "eight")
		}
	}}
	for _, all := range []bool{false, true} {
		steps, err := FetchRun(t.Context(), h, "run", far, here, all, func(string, ...any) {})
		require.NoError(t, err)
		assert.Equal(t, "step-00000008", steps[len(steps)-1])
		assert.Equal(t, all, len(steps) == 2)
		put("checkpoints/step-00000006/adapter.gguf", "six")
	}
	left, err := filepath.Glob(filepath.Join(here, "checkpoints", "*"))
	require.NoError(t, err)
	assert.Equal(t, []string{filepath.Join(here, "checkpoints", "step-00000004"), filepath.Join(here, "checkpoints", "step-00000008")}, left)

	for _, step := range []string{"step-00000004", "step-00000006", "step-00000008"} {
		require.NoError(t, os.RemoveAll(filepath.Join(far, "checkpoints", step)))
	}
	next := 10
	put("checkpoints/step-00000010/adapter.gguf", "text")
	h.prune = func(path string) {
		if filepath.Base(path) == "adapter.gguf" {
			require.NoError(t, os.RemoveAll(filepath.Dir(path)))
			next++
			put(fmt.Sprintf("checkpoints/step-%08d/adapter.gguf", next), "text")
		}
	}
	_, err = FetchRun(t.Context(), h, "run", far, here, false, func(string, ...any) {})
	assert.ErrorContains(t, err, "the run removes its checkpoints before they are here")
}
