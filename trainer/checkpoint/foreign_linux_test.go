package checkpoint

import (
	"os"
	"path/filepath"
	"runtime"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cftune/trainer/internal/durable"
)

// asAnyUser calls f with no more rights than the modes of files give their owner, also where the tests run as root.
func asAnyUser(t *testing.T, f func()) {
	t.Helper()
	done := make(chan error)
	go func() {
		defer close(done)
		runtime.LockOSThread() // and it ends with the goroutine
		none := [2]unix.CapUserData{}
		if err := unix.Capset(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &none[0]); err != nil {
			done <- err
			return
		}
		f()
	}()
	require.NoError(t, <-done)
}

// A run that somebody else writes is refused as a whole: not after the steps that come before the next checkpoint.
func TestARunThatCannotBeWrittenTo(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "run")
	r, err := Create(durable.OS, dir)
	require.NoError(t, err)
	require.NoError(t, r.WriteConfig([]byte("{}")))
	require.NoError(t, r.Close())
	require.NoError(t, os.Mkdir(filepath.Join(dir, checkpointsName), 0o700))
	for name, mode := range map[string]os.FileMode{"": 0o700, checkpointsName: 0o700, LockName: 0o600, MetricsName: 0o600} {
		path := filepath.Join(dir, name)
		if name == MetricsName {
			require.NoError(t, os.WriteFile(path, nil, mode))
		}
		require.NoError(t, os.Chmod(path, mode&^0o200))
		asAnyUser(t, func() {
			_, err := OpenRun(nil, dir)
			var foreign *ForeignError
			if assert.ErrorAs(t, err, &foreign, name) {
				assert.EqualError(t, err, "open run: "+dir+" cannot be written to: write to "+path+": permission denied")
			}
		})
		require.NoError(t, os.Chmod(path, mode))
	}
	asAnyUser(t, func() {
		r, err := OpenRun(nil, dir)
		if assert.NoError(t, err) {
			assert.NoError(t, r.Close())
		}
	})
}
