package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cftune/internal/regular"
	"cftune/internal/spell"
	"cftune/trainer/internal/durable"
)

// Names in run directories, as package checkpoint has them.
const (
	runConfig      = "config.json"
	runEnd         = "end.json"
	runCheckpoints = "checkpoints"
	stepPrefix     = "step-"
)

// runFiles are fetched beside the checkpoints, where they are.
var runFiles = []string{"metrics.jsonl", "journal.jsonl", "mirror-state.json", runEnd}

// Fetch brings a run directory from a target to dir: its record and metrics, and its newest checkpoint or all. What is here
// already is not fetched again; a folder of another run is refused. It returns the steps that are here then. The caller
// verifies the run as any other.
func Fetch(ctx context.Context, t Target, name, dir string, all bool, say func(format string, args ...any)) ([]string, error) {
	h := t.Host()
	job, err := readJobOf(h, JobDir(t, name))
	if err != nil {
		return nil, err
	}
	if job == nil {
		return nil, usage("there is no run %s on %s", name, h.Name())
	}
	if job.Part != nil {
		return nil, usage("%s is a part of the study %s, which is fetched as one", name, job.Part.Study)
	}
	if here, err := filepath.Abs(dir); err == nil && h == (localHost{}) && here == job.Run {
		return nil, nil // it was made there
	}
	return FetchRun(ctx, h, name, job.Run, dir, all, say)
}

// FetchRun brings the run directory run of a host to dir, as Fetch does.
func FetchRun(ctx context.Context, h Host, name, run, dir string, all bool, say func(format string, args ...any)) ([]string, error) {
	if err := sameRun(h, run, dir); err != nil {
		return nil, err
	}
	steps, err := fetchSteps(ctx, h, name, run, dir, all, say)
	if err != nil {
		return nil, err
	}
	// After the checkpoints: metrics may have more steps than they, never fewer.
	if err := fetchFiles(h, run, dir, true); err != nil {
		return nil, err
	}
	return steps, nil
}

// fetchTries is how often a newer checkpoint is fetched where the run, which goes on, has removed the one before it was here.
const fetchTries = 5

// fetchSteps brings the newest checkpoint, or all that stay there meanwhile.
func fetchSteps(ctx context.Context, h Host, name, run, dir string, all bool, say func(format string, args ...any)) ([]string, error) {
	var removed error
	for range fetchTries {
		steps, err := farSteps(h, run)
		if err != nil {
			return nil, err
		}
		if len(steps) == 0 {
			return nil, fmt.Errorf("fetch %s: the run has no checkpoint yet", name)
		}
		if !all {
			steps = steps[len(steps)-1:]
		}
		if err := os.MkdirAll(filepath.Join(dir, runCheckpoints), privateDir); err != nil {
			return nil, err
		}
		var here []string
		for _, step := range steps {
			err := fetchStep(ctx, h, run, dir, step, say)
			if err == nil {
				here = append(here, step)
				continue
			}
			if _, statErr := h.Stat(path.Join(run, runCheckpoints, step)); !errors.Is(statErr, fs.ErrNotExist) {
				return nil, err
			}
			removed = err
			say("%s was removed there before it was here: the run goes on", step)
			if err := os.RemoveAll(filepath.Join(dir, runCheckpoints, step+durable.TempSuffix)); err != nil {
				return nil, err
			}
		}
		if len(here) > 0 && here[len(here)-1] == steps[len(steps)-1] {
			return here, nil
		}
	}
	return nil, fmt.Errorf("fetch %s: the run removes its checkpoints before they are here (checkpoint.keep_last, every_steps); cftune launch stop %s ends that: %w", name, name, removed)
}

// fetchFiles brings what lies beside a run's checkpoints. Where the run has no end, since it has gone on, an earlier one goes here too.
func fetchFiles(h Host, run, dir string, begun bool) error {
	for _, file := range append([]string{runConfig}, runFiles...) {
		local := filepath.Join(dir, file)
		err := fetchInto(h, path.Join(run, file), local)
		missing := errors.Is(err, fs.ErrNotExist)
		if missing && file == runEnd {
			if err := os.Remove(local); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
		}
		if err != nil && (!missing || begun && file == runConfig) {
			return fmt.Errorf("fetch %s: %w", file, err)
		}
	}
	return nil
}

// sameRun refuses a folder that holds another run.
func sameRun(h Host, run, dir string) error {
	far, err := readSmall(h, path.Join(run, runConfig), maxOutput)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the run has not begun: %s on %s has no %s", run, h.Name(), runConfig)
	}
	if err != nil {
		return err
	}
	here, err := regular.ReadFile(filepath.Join(dir, runConfig))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	a, errA := startedOf(far)
	b, errB := startedOf(here)
	if err := errors.Join(errA, errB); err != nil {
		return err
	}
	if !a.Equal(b) {
		return usage("%s holds another run, which began at %s, not %s: --output names another folder", dir, b.Format(time.RFC3339), a.Format(time.RFC3339))
	}
	return nil
}

func startedOf(text []byte) (time.Time, error) {
	var record struct {
		Started time.Time `json:"started"`
	}
	if err := json.Unmarshal(text, &record); err != nil {
		return time.Time{}, fmt.Errorf("%s: %w", runConfig, err)
	}
	return record.Started, nil
}

// farSteps are the names of a run's checkpoints, oldest first.
func farSteps(h Host, run string) ([]string, error) {
	infos, err := h.ReadDir(path.Join(run, runCheckpoints))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var steps []string
	for _, info := range infos {
		if n := info.Name(); info.IsDir() && strings.HasPrefix(n, stepPrefix) && !strings.HasSuffix(n, durable.TempSuffix) {
			steps = append(steps, n)
		}
	}
	slices.Sort(steps) // numbers have leading zeros
	return steps, err
}

// fetchStep fetches a checkpoint, which appears whole.
func fetchStep(ctx context.Context, h Host, run, dir, step string, say func(format string, args ...any)) error {
	final := filepath.Join(dir, runCheckpoints, step)
	if _, err := os.Lstat(final); err == nil {
		return nil // it never changes
	}
	temp := final + durable.TempSuffix
	if err := os.MkdirAll(temp, privateDir); err != nil {
		return err
	}
	from := path.Join(run, runCheckpoints, step)
	infos, err := h.ReadDir(from)
	if err != nil {
		return fmt.Errorf("fetch %s: %w", step, err)
	}
	for _, info := range infos {
		if !info.Mode().IsRegular() {
			continue
		}
		say("fetching %s/%s (%s)", step, info.Name(), spell.Size(uint64(info.Size())))
		if err := get(ctx, h, path.Join(from, info.Name()), filepath.Join(temp, filepath.Base(info.Name()))); err != nil {
			return err
		}
	}
	return durable.Commit(durable.OS, temp, final)
}

// fetchGrowing fetches a small file that may grow meanwhile: whole lines as they are now.
func fetchGrowing(h Host, remote, local string) error {
	text, err := readSmall(h, remote, 1<<30)
	if err != nil {
		return err
	}
	if strings.HasSuffix(local, ".jsonl") {
		text = text[:strings.LastIndexByte(string(text), '\n')+1]
	}
	return putText(localHost{}, local, text, privateFile)
}
