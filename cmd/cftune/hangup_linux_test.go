package main

import (
	"context"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"cftune/internal/spell"
	"cftune/trainer/dataset/source"
)

// A terminal or a connection that goes away is an interrupt, unless nohup has it ignored.
func TestAHangupSaves(t *testing.T) {
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP) // the tests may run by nohup themselves; what is caught here is not ignored by what is started
	t.Cleanup(func() { signal.Stop(hangups) })
	p := newPlace(t)
	p.config("run", 3000)
	for _, begin := range []string{"exec ", "trap '' HUP; exec "} {
		name := map[bool]string{true: "plain", false: "nohup"}[begin == "exec "]
		output := filepath.Join(p.dir, "runs", name)
		cmd := exec.Command("sh", "-c", begin+spell.Quote(p.program)+" train --config run.yaml --output "+spell.Quote(output))
		cmd.Dir, cmd.Env = p.dir, p.env
		require.NoError(t, cmd.Start())
		metrics := filepath.Join(output, "metrics.jsonl")
		p.await(metrics, 10)
		require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
		if name == "nohup" {
			require.NoError(t, awaitLines(metrics, 400, nil), "it goes on")
			require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		}
		require.Error(t, cmd.Wait())
		assert.Equal(t, codeInterrupted, cmd.ProcessState.ExitCode(), name)
		p.must("check", output)
	}
}

// Who reads a run's messages may stop reading, or go. The run goes on, and saves when it is told to.
func TestARunWhoseMessagesNobodyReads(t *testing.T) {
	p := newPlace(t)
	p.config("run", 3000)
	for _, name := range []string{"stops", "goes"} {
		output := filepath.Join(p.dir, "runs", name)
		reader, writer, err := os.Pipe()
		require.NoError(t, err)
		_, err = unix.FcntlInt(writer.Fd(), unix.F_SETPIPE_SZ, 4096) // less than a hundred steps say
		require.NoError(t, err)
		cmd := exec.Command(p.program, "train", "--config", "run.yaml", "--output", output)
		cmd.Dir, cmd.Env, cmd.Stderr = p.dir, p.env, writer
		require.NoError(t, cmd.Start())
		require.NoError(t, writer.Close())
		if name == "goes" {
			require.NoError(t, reader.Close())
		}
		assert.NoError(t, awaitLines(filepath.Join(output, "metrics.jsonl"), 400, nil), "it goes on")
		require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
		require.Error(t, cmd.Wait())
		assert.Equal(t, codeInterrupted, cmd.ProcessState.ExitCode(), name)
		assert.Contains(t, p.must("check", output).out, "whole", name)
		if name == "stops" {
			require.NoError(t, reader.Close())
		}
	}
}

// A named pipe that nobody writes to is waited for until an interrupt comes.
func TestAnInterruptEndsTheWaitForAPipe(t *testing.T) {
	pipe := filepath.Join(t.TempDir(), "run.yaml")
	require.NoError(t, unix.Mkfifo(pipe, 0o600))
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for what, read := range map[string]func() error{
		"configuration": func() error { _, err := loadConfig(ended, pipe, nil); return err },
		"study":         func() error { _, err := loadStudy(ended, pipe, nil); return err },
		"data": func() error {
			files, err := source.Expand(t.Context(), pipe)
			require.NoError(t, err)
			for _, err := range files[0].Rows(ended) {
				return err
			}
			return nil
		},
	} {
		err := read()
		require.ErrorIs(t, err, context.Canceled, what)
		assert.Equal(t, codeInterrupted, exitCode(err), what)
		assert.ErrorContains(t, err, pipe, what)
		for { // let go of who still waits
			if f, err := os.OpenFile(pipe, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
				require.NoError(t, f.Close())
				break
			}
		}
	}
}
