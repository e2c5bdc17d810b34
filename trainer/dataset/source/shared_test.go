package source

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// sharedData is where real data sets lie on machines that have them: beside the module, three folders up.
var sharedData = filepath.Join("..", "..", "..", "..", "shared", "data")

// Every row of the real sets is an object with the fields that the set has.
func TestRealDataSets(t *testing.T) {
	if _, err := os.Stat(sharedData); errors.Is(err, fs.ErrNotExist) {
		t.Skipf("no data sets in %s", sharedData)
	}
	for path, want := range map[string]struct {
		rows   int
		fields []string
	}{
		"gsm8k/train.jsonl":                         {7473, []string{"question", "answer"}},
		"gsm8k/test.jsonl":                          {1319, []string{"question", "answer"}},
		"svamp/SVAMP.json":                          {1000, []string{"ID", "Body", "Question", "Equation", "Answer", "Type"}},
		"svamp/mawps-asdiv-a_svamp.train.csv":       {3138, []string{"Question", "Numbers", "Equation", "Answer", "group_nums"}},
		"mr_gsm8k/Claude_eval_results.json":         {326, []string{"uuid", "question"}},
		"prometheus_eval/mt_bench_eval.json":        {320, []string{"instruction"}},
		"prometheus_eval/vicuna_eval.first160.json": {160, []string{"instruction"}},
		"derived/mwp_cft_train_2000.jsonl":          {2000, []string{"query"}},
		"derived/mwp_cft_svamp_test_500.jsonl":      {500, nil},
		"math500":                                   {500, []string{"problem", "answer"}},
	} {
		t.Run(path, func(t *testing.T) {
			files, err := Expand(t.Context(), filepath.Join(sharedData, path))
			require.NoError(t, err)
			n := 0
			for _, f := range files {
				for r, err := range f.Rows(t.Context()) {
					require.NoError(t, err)
					var fields map[string]json.RawMessage
					require.NoError(t, json.Unmarshal(r.Text, &fields), "%s:%d", f.Name, r.Line)
					for _, name := range want.fields {
						require.Contains(t, fields, name, "%s:%d", f.Name, r.Line)
					}
					n++
				}
			}
			assert.Equal(t, want.rows, n)
		})
	}
}
