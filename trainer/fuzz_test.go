package trainer

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cftune/internal/testlimit"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/objective"
)

// inFile gives a run's file of that name the fuzzed text and returns the run's folder.
func inFile(t *testing.T, name string, text []byte) string {
	t.Helper()
	if len(text) > testlimit.SmallFile {
		t.Skip("no small file")
	}
	dir := t.TempDir()
	path := filepath.Join(dir, name)
	require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
	require.NoError(t, os.WriteFile(path, text, 0o600))
	return dir
}

func FuzzRecord(f *testing.F) {
	run, err := config.Parse([]byte("model: m.gguf\noutput: run\ndata: {sources: [{path: a.jsonl, format: cft}]}\n"), nil, nil)
	require.NoError(f, err)
	text, err := Record{
		Format: checkpoint.FormatVersion, Started: time.Unix(1, 0).UTC(), Config: run, WarmStart: &Origin{Path: "a.gguf"},
		Accepted: []Accepted{{Step: 1, Fields: []config.FieldDiff{{Key: "seed", A: "1", B: "2"}}}},
	}.encode()
	require.NoError(f, err)
	f.Add(text)
	f.Add([]byte(`{"format": 2}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := inFile(t, checkpoint.ConfigName, text)
		testlimit.Bound(t, func() {
			r, err := ReadRecord(dir)
			if err != nil {
				return
			}
			require.Equal(t, checkpoint.FormatVersion, r.Format)
			require.NoError(t, r.Config.Validate())
			_, err = r.encode()
			require.NoError(t, err, "what is read can be written")
		})
	})
}

func FuzzJournal(f *testing.F) {
	line, err := json.Marshal(journalEntry{objective.Change{Step: 3, Stages: []config.Stage{{Mix: map[string]float64{"sft": 1}}}}, time.Unix(1, 0).UTC()})
	require.NoError(f, err)
	f.Add(append(line, '\n'))
	f.Add(append(append(line, '\n'), line...)) // torn
	f.Fuzz(func(t *testing.T, text []byte) {
		dir := inFile(t, checkpoint.JournalName, text)
		testlimit.Bound(t, func() {
			changes, _, err := ReadJournal(dir)
			if err != nil {
				require.True(t, errors.Is(err, checkpoint.ErrCorrupt) || errors.Is(err, checkpoint.ErrIncompatible), "%v", err)
			}
			for _, c := range changes {
				require.Positive(t, c.Step)
				require.NoError(t, config.ValidateStages(c.Stages, true))
			}
		})
	})
}

func FuzzRequest(f *testing.F) {
	text, err := json.Marshal(request{[]config.Stage{{Mix: map[string]float64{"cft": 1}}}, time.Now().Add(time.Hour)})
	require.NoError(f, err)
	f.Add(text)
	f.Fuzz(func(t *testing.T, text []byte) {
		name := filepath.Join(checkpoint.ControlName, "a"+requestEnding)
		dir := inFile(t, name, text)
		testlimit.Bound(t, func() {
			_, err := takeRequest(dir)
			require.NoError(t, err)
			require.NoFileExists(t, filepath.Join(dir, name), "it is asked once")
		})
	})
}
