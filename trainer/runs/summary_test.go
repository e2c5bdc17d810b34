package runs

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
)

func TestStandings(t *testing.T) {
	long := time.Now().Add(-time.Hour)
	four := Progress{Steps: 10, Checkpoints: []int{2, 4}, Written: long}
	all := Progress{Steps: 10, Checkpoints: []int{10}, Written: long}
	young := Progress{Steps: 10, Checkpoints: []int{4}, Written: time.Now()}
	for _, tt := range []struct {
		name   string
		p      Progress
		end    string // end.json; none where empty
		holder string
		want   string
	}{
		{"of a version that said nothing, or killed", four, "", "", "stopped"},
		{"by patience", four, ending(4, trainer.EndPatience), "", "ended: patience"},
		{"at its time", four, ending(4, trainer.EndMaxTime), "", "stopped: max_time"},
		{"after so many steps", four, ending(4, trainer.EndStopAfter), "", "stopped: stop_after"},
		{"from outside", four, ending(4, trainer.EndInterrupted), "", "stopped: interrupted"},
		{"by a failure", four, ending(4, trainer.EndError), "", "stopped: error"},
		{"the records made fewer steps than were planned", four, ending(4, trainer.EndFinished), "", "done"},
		{"the end of another training", four, ending(2, trainer.EndPatience), "", "stopped"},
		{"fetched without checkpoints", Progress{Steps: 10, Written: long}, ending(4, trainer.EndPatience), "", "ended: patience"},
		{"an end that cannot be read", four, "{", "", "stopped"},
		{"done, whatever else is said", all, ending(10, trainer.EndPatience), "", "done"},
		{"done", all, "", "", "done"},
		{"elsewhere, just now", young, "", "pid 5 on another-machine\n", "running"},
		{"elsewhere, and it said that it has ended", young, ending(4, trainer.EndMaxTime), "pid 5 on another-machine\n", "stopped: max_time"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dir := t.TempDir()
			if tt.end != "" {
				require.NoError(t, os.WriteFile(filepath.Join(dir, checkpoint.EndName), []byte(tt.end), 0o644))
			}
			if tt.holder != "" {
				require.NoError(t, os.WriteFile(filepath.Join(dir, checkpoint.LockName), []byte(tt.holder), 0o644))
				step := fmt.Sprintf("{\"step\":4,\"loss\":1,\"time\":%q}\n", time.Now().UTC().Format(time.RFC3339))
				require.NoError(t, os.WriteFile(filepath.Join(dir, checkpoint.MetricsName), []byte(step), 0o644))
			}
			got := Stand(dir, tt.p)
			assert.Equal(t, tt.want, got.String())
			assert.Equal(t, tt.want == "stopped: error", got.Error != "")
		})
	}
}

func ending(checkpoint int, reason string) string {
	e := trainer.End{Step: checkpoint, Checkpoint: checkpoint, Reason: reason}
	if reason == trainer.EndError {
		e.Error = "no space left on device"
	}
	text, _ := json.Marshal(e)
	return string(text)
}
