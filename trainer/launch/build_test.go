package launch

import (
	"debug/macho"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestABuildHasTheLibrariesOfDevices(t *testing.T) {
	self, err := os.Executable()
	require.NoError(t, err)
	dir := t.TempDir()
	write := func(name string) {
		t.Helper()
		path := filepath.Join(dir, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o700))
		require.NoError(t, os.WriteFile(path, []byte(name), 0o600))
	}
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "bin"), 0o700))
	require.NoError(t, os.Symlink(self, filepath.Join(dir, programName)))
	_, err = OpenBuild(dir, "")
	assert.ErrorContains(t, err, "make builds both")

	write("native/lib/libcftune.so")
	write("native/lib/notes.txt")
	plain, err := OpenBuild(dir, "")
	require.NoError(t, err)
	write("native/lib/devices/libggml-vulkan.so")
	b, err := OpenBuild(dir, "")
	require.NoError(t, err)
	var names []string
	for _, f := range b.Files {
		names = append(names, f.name)
	}
	assert.Equal(t, []string{"bin/cftune", "native/lib/libcftune.so", "native/lib/devices/libggml-vulkan.so"}, names)
	assert.NotEqual(t, plain.Digest, b.Digest)
	assert.Equal(t, plain.Bytes+int64(len("native/lib/devices/libggml-vulkan.so")), b.Bytes)
}

func TestABuildSaysWhatItIsFor(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cftune")
	for _, c := range []struct {
		cpu  macho.Cpu
		want string
	}{{macho.CpuArm64, "Darwin arm64"}, {macho.CpuAmd64, "Darwin x86_64"}} {
		header := make([]byte, 32)
		binary.LittleEndian.PutUint32(header, macho.Magic64)
		binary.LittleEndian.PutUint32(header[4:], uint32(c.cpu))
		binary.LittleEndian.PutUint32(header[12:], uint32(macho.TypeExec))
		require.NoError(t, os.WriteFile(path, header, 0o600))
		got, err := architecture(path)
		require.NoError(t, err)
		assert.Equal(t, c.want, got)
	}
	require.NoError(t, os.WriteFile(path, []byte("#!/bin/sh\necho neither of both, but long enough\n"), 0o600))
	_, err := architecture(path)
	assert.ErrorContains(t, err, "is no program")
}
