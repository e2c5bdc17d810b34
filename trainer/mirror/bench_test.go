package mirror

import (
	"testing"

	"github.com/stretchr/testify/require"

	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/durable"
)

// BenchmarkTake is what a mirror takes of a run's own time at each checkpoint.
func BenchmarkTake(b *testing.B) {
	dir := b.TempDir()
	r, err := checkpoint.Create(durable.OS, dir)
	require.NoError(b, err)
	defer r.Close()
	require.NoError(b, r.WriteConfig([]byte(`{"started": "2026-01-02T03:04:05Z"}`)))
	require.NoError(b, appendText(dir, "{\"step\": 1}\n"))
	_, err = r.Write(checkpoint.Manifest{Step: 1}, []checkpoint.Content{{Name: "adapter.gguf", Write: written("a")}, {Name: "optimizer.bin", Write: written("b")}})
	require.NoError(b, err)
	for b.Loop() {
		s, err := Take(dir, 1, keepTwo)
		require.NoError(b, err)
		s.Close()
	}
}
