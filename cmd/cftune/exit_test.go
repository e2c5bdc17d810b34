package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"

	"cftune/bindings/engine"
	"cftune/internal/regular"
	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/dashboard"
	"cftune/trainer/dataset"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
	"cftune/trainer/metrics"
	"cftune/trainer/mirror"
	"cftune/trainer/score"
)

func TestExitCodes(t *testing.T) {
	for _, tt := range []struct {
		err  error
		want int
	}{
		{nil, 0},
		{errors.New("something"), 1},
		{&checkpoint.SpaceError{Path: "disk"}, 1},
		{os.ErrPermission, 1},
		{codedError{errors.New("flag"), codeUsage}, 2},
		{&config.Problems{}, 2},
		{checkpoint.ErrExists, 2},
		{export.ErrExists, 2},
		{&checkpoint.OutputError{Dir: "x", Err: os.ErrPermission}, 2},
		{&checkpoint.ForeignError{Dir: "x", Err: os.ErrPermission}, 2},
		{&trainer.AdapterError{}, 2},
		{&trainer.DataError{}, 3},
		{&dataset.Error{Err: errors.New("line")}, 3},
		{gguf.ErrFormat, 3},
		{gguf.ErrChanged, 3},
		{engineError(engine.ErrFormat), 3},
		{engineError(engine.ErrUnsupported), 3},
		{engineError(engine.ErrIO), 3},
		{&trainer.MirrorError{Err: errors.New("no such bucket")}, 2},
		{&trainer.MirrorError{Err: mirror.ErrForeign}, 2},
		{&trainer.MirrorError{Err: mirror.ErrAhead}, 4},
		{&trainer.ListenError{Err: errors.New("address already in use")}, 2},
		{trainer.ErrEventsExist, 2},
		{&eventsHeldError{&checkpoint.HeldError{}}, 4},
		{&dashboard.ListenError{Err: errors.New("address already in use")}, 2},
		{&trainer.MismatchError{}, 4},
		{&checkpoint.HeldError{}, 4},
		{checkpoint.ErrNotFound, 4},
		{checkpoint.ErrNone, 4},
		{fmt.Errorf("read run: %w", regular.ErrNotRegular), 4},
		{engine.ErrHeaders, 1},
		{checkpoint.ErrIncompatible, 4},
		{fmt.Errorf("%w: %w", checkpoint.ErrCorrupt, gguf.ErrFormat), 4},
		{metrics.ErrCorrupt, 4},
		{fmt.Errorf("open scores: %w", score.ErrCorrupt), 4},
		{engineError(engine.ErrNoMemory), 5},
		{engineError(engine.ErrDevice), 5},
		{engineError(engine.ErrNonFinite), 6},
		{&trainer.StepError{Err: engineError(engine.ErrNonFinite)}, 6},
		{&trainer.StepError{Err: trainer.ErrNonFinite}, 6},
		{&mirrorBehindError{"run", mirror.Report{Wanted: 1}}, 7},
		{&trainer.Interrupted{Err: context.Canceled}, 130},
		{fmt.Errorf("while looking at the data: %w", context.Canceled), 130},
	} {
		assert.Equal(t, tt.want, exitCode(tt.err), "%v", tt.err)
		if tt.err != nil {
			assert.Equal(t, tt.want, exitCode(fmt.Errorf("operation: %w", tt.err)), "wrapped: %v", tt.err)
		}
	}
}

// The loop knows a loss that is not finite by its own name for it.
func TestEngineErrorsSayNonFiniteInTheLoopsWords(t *testing.T) {
	assert.ErrorIs(t, engineError(engine.ErrNonFinite), trainer.ErrNonFinite)
	assert.NotErrorIs(t, engineError(engine.ErrNoMemory), trainer.ErrNonFinite)
}

// A disk that takes no more says how to go on, whoever noticed.
func TestDisksThatFailHaveAHint(t *testing.T) {
	of := func(err error) error { return &os.PathError{Op: "write", Path: "run", Err: err} }
	for _, tt := range []struct {
		err  error
		hint string
	}{
		{&checkpoint.SpaceError{Path: "disk"}, "make room; "},
		{of(syscall.ENOSPC), "make room; "},
		{of(syscall.EROFS), "the file system takes no writes"},
		{&checkpoint.OutputError{Dir: "run", Err: of(syscall.EROFS)}, "the file system takes no writes"},
		{of(syscall.EIO), "the disk has failed, or the way to it"},
		{of(syscall.ESTALE), "the disk has failed, or the way to it"},
	} {
		hint := hintFor(fmt.Errorf("checkpoint: %w", tt.err))
		assert.Contains(t, hint, tt.hint, "%v", tt.err)
		assert.Contains(t, hint, "cftune resume goes on", "%v", tt.err)
	}
}

// A demo, study or evaluation goes on by itself; the run that it was at when it was told to stop is resumed with it.
func TestCommandsThatGoOnSaySo(t *testing.T) {
	for _, err := range []error{&trainer.Interrupted{Run: "demo/runs/CFT", Err: context.Canceled}, context.Canceled} {
		err = goesOn(fmt.Errorf("demo: %w", err))
		assert.Equal(t, "the same command goes on", hintFor(err))
		assert.Equal(t, codeInterrupted, exitCode(err))
	}
	assert.NoError(t, goesOn(nil))
	assert.Equal(t, codeData, exitCode(goesOn(&dataset.Error{Err: io.EOF})))
}

func TestReportsOfOthersAreNotWrittenOver(t *testing.T) {
	dir := t.TempDir()
	assert.NoError(t, ownFolder(filepath.Join(dir, "new"), "texts.jsonl", "report.md"))
	assert.NoError(t, ownFolder(dir, "texts.jsonl", "report.md"))
	assert.NoError(t, os.WriteFile(filepath.Join(dir, "report.md"), []byte("mine"), 0o600))
	err := ownFolder(dir, "texts.jsonl", "report.json", "report.md")
	assert.ErrorContains(t, err, "report.md is there already, and there is no texts.jsonl beside it")
	assert.Equal(t, codeUsage, exitCode(err))
	assert.NoError(t, os.WriteFile(filepath.Join(dir, "texts.jsonl"), nil, 0o600))
	assert.NoError(t, ownFolder(dir, "texts.jsonl", "report.md"))
}

// Every code that a rule gives is in --help and in the README.
func TestExitCodesAreDocumented(t *testing.T) {
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	codes := []int{0, codeOther, codeUsage, codeData, codeCheckpoint, codeDevice, codeNonFinite, codeMirror, codeShort, codeInterrupted}
	for _, r := range rules {
		assert.Contains(t, codes, r.code)
	}
	for _, code := range codes {
		assert.Contains(t, exitCodesHelp, "\n  "+strconv.Itoa(code)+strings.Repeat(" ", 5-len(strconv.Itoa(code))))
		assert.Contains(t, string(readme), "\n| "+strconv.Itoa(code)+" |")
	}
}
