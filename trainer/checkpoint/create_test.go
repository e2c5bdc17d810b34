package checkpoint

import (
	"errors"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"cftune/trainer/internal/durable"
)

// Two processes begin a run in one folder at once, and the first is done before the second has given up waiting.
func TestARunThatWasMadeWhileAnotherWaited(t *testing.T) {
	for range 50 {
		dir := filepath.Join(t.TempDir(), "run")
		first, err := Create(durable.OS, dir)
		require.NoError(t, err)
		second := make(chan error)
		begun := make(chan struct{})
		go func() {
			close(begun)
			r, err := Create(durable.OS, dir)
			if err == nil {
				err = errors.Join(errors.New("it was made twice"), r.Close())
			}
			second <- err
		}()
		<-begun
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
		second := make(chan error)
		begun := make(chan struct{})
		go func() {
			close(begun)
			r, err := Create(durable.OS, dir)
			if err == nil {
				err = r.WriteConfig([]byte("{}"))
				err = errors.Join(err, r.Close())
			}
			second <- err
		}()
		<-begun
		first.Abandon()
		require.NoError(t, <-second)
		_, err = ReadConfig(dir)
		require.NoError(t, err)
	}
}
