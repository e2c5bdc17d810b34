package checkpoint

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"cftune/trainer/internal/durable"
)

// createMeanwhile begins to create a run beside its caller; where that comes off, it does with the run what is said, and closes it.
func createMeanwhile(dir string, with func(*Run) error) <-chan error {
	result, begun := make(chan error), make(chan struct{})
	go func() {
		close(begun)
		r, err := Create(durable.OS, dir)
		if err == nil {
			err = errors.Join(with(r), r.Close())
		}
		result <- err
	}()
	<-begun
	return result
}

// Two processes begin a run in one folder at once, and the first is done before the second has given up waiting.
func TestARunThatWasMadeWhileAnotherWaited(t *testing.T) {
	for range 50 {
		dir := filepath.Join(t.TempDir(), "run")
		first, err := Create(durable.OS, dir)
		require.NoError(t, err)
		second := createMeanwhile(dir, func(*Run) error { return errors.New("it was made twice") })
		require.NoError(t, first.WriteConfig([]byte("{}")))
		require.NoError(t, first.Close())
		require.ErrorIs(t, <-second, ErrExists)
	}
}

// One gives up while another comes: the folder that it takes away is made again.
func TestAFolderThatIsGivenUpIsTaken(t *testing.T) {
	for range 50 {
		dir := filepath.Join(t.TempDir(), "runs", "run")
		first, err := Create(durable.OS, dir)
		require.NoError(t, err)
		second := createMeanwhile(dir, func(r *Run) error { return r.WriteConfig([]byte("{}")) })
		first.Abandon()
		require.NoError(t, <-second)
		_, err = ReadConfig(dir)
		require.NoError(t, err)
	}
}
