package critic

import (
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A server that comes back on another port is the same teacher; another model is not.
func TestATeacherMayMove(t *testing.T) {
	plan := paperPlan(t, problems(3), Teacher{Name: "t", Backend: &blocking{}, Concurrency: 1})
	o := testOptions(t.TempDir())
	var notes []string
	o.Note = func(text string) { notes = append(notes, text) }
	settings := func(url, model string) Settings {
		return Settings{Fixed: map[string]any{"teachers": map[string]any{"gpt-4.1": map[string]any{"url": url, "model": model, "stream": true}}}}
	}
	for _, url := range []string{"http://a/v1", "http://b/v1", "http://a/v1"} {
		r, err := Open(plan, o, settings(url, "m"))
		require.NoError(t, err)
		require.NoError(t, r.Close())
	}
	assert.Equal(t, []string{`the teacher is reached otherwise: teachers.gpt-4.1.url: has "http://a/v1", not "http://b/v1"`}, notes)
	_, err := Open(plan, o, settings("http://b/v1", "n"))
	differ, ok := errors.AsType[*SettingsError](err)
	require.True(t, ok, err)
	assert.Equal(t, []string{`teachers.gpt-4.1.model: has "m", not "n"`}, differ.Differences)
}

// A trial on some rows is a beginning.
func TestMoreRowsOfTheSameData(t *testing.T) {
	dir := t.TempDir()
	open := func(rows int, digest string) (*Run, error) {
		plan := paperPlan(t, problems(rows), Teacher{Name: "t", Backend: &gone{}, Concurrency: 1})
		return Open(plan, testOptions(dir), Settings{Fixed: map[string]any{"data": map[string]any{"records": rows, "sha256": digest}}})
	}
	for _, step := range []struct {
		rows    int
		digest  string
		refused string
	}{
		{rows: 3, digest: "a"}, {rows: 8, digest: "a"}, {rows: 5, digest: "a", refused: "data.records: has 8, not 5"},
		{rows: 9, digest: "b", refused: `data.sha256: has "a", not "b"`}, {rows: 8, digest: "a"},
	} {
		r, err := open(step.rows, step.digest)
		if step.refused != "" {
			require.ErrorContains(t, err, step.refused)
			continue
		}
		require.NoError(t, err)
		result, err := r.Work(t.Context())
		require.NoError(t, err)
		_, err = r.WriteCritiques()
		require.NoError(t, err)
		require.NoError(t, r.Close())
		require.True(t, result.Complete())
		assert.Equal(t, step.rows, result.Tally.Requests, "nothing is asked twice")
		assert.Len(t, readRows(t, dir), step.rows)
	}
}
