package launch

import (
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

// A run's end comes along with it, and goes again when the run has gone on there.
func TestTheEndIsFetched(t *testing.T) {
	far, here := t.TempDir(), t.TempDir()
	put := func(name, text string) {
		path := filepath.Join(far, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	}
	put(runConfig, `{"started":"2026-11-27T00:00:00Z"}`)
	put("metrics.jsonl", "{}\n")
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
