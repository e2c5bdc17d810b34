package dashboard

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"time"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/metrics"
	"cftune/trainer/mirror"
	"cftune/trainer/objective"
	"cftune/trainer/runs"
)

// run is a run directory as it was at the last look.
type run struct {
	id, dir, name string
	version       int // another one whenever something changed

	series   series
	follower *metrics.Follower

	files files // of which small was read
	small found // without what changes from look to look
	found
}

// found is what a look at a run's small files finds.
type found struct {
	record      *trainer.Record // nil if it cannot be read
	standing    runs.Standing
	holder      string
	problems    []string // damage, in words
	changes     []objective.Change
	torn        []string // files whose last line is cut off
	mirror      *mirror.Report
	checkpoints []runs.Checkpoint
	best        *checkpoint.Best
	chosen      *checkpoint.Choice
	reports     []string // files that tell of failed steps and stalls
}

// files are the small files' identities: what has not changed is not read again.
type files struct{ config, journal, mirror, chosen fileID }

type fileID struct {
	size     int64
	modified time.Time
}

func identify(path string) fileID {
	info, err := os.Stat(path)
	if err != nil {
		return fileID{}
	}
	return fileID{info.Size(), info.ModTime()}
}

func newRun(dir, name string) *run {
	absolute, err := filepath.Abs(dir)
	if err != nil {
		absolute = dir
	}
	sum := sha256.Sum256([]byte(absolute))
	return &run{
		id: hex.EncodeToString(sum[:5]), dir: dir, name: name, series: series{spikeFactor: usualSpike},
		follower: metrics.Follow(filepath.Join(dir, checkpoint.MetricsName)),
	}
}

// refresh looks at the run's files and counts its version up if anything has changed.
func (r *run) refresh() {
	before := r.found
	now := files{
		config:  identify(filepath.Join(r.dir, checkpoint.ConfigName)),
		journal: identify(filepath.Join(r.dir, checkpoint.JournalName)),
		mirror:  identify(filepath.Join(r.dir, trainer.MirrorStateName)),
		chosen:  identify(filepath.Join(r.dir, checkpoint.ChosenName)),
	}
	if r.version == 0 || now != r.files || len(r.small.problems) > 0 {
		r.files = now
		r.small = r.readSmall()
	}
	fresh := r.small
	fresh.problems, fresh.torn = slices.Clone(fresh.problems), slices.Clone(fresh.torn)
	if fresh.record != nil && fresh.record.Config.Health.LossSpike > 0 {
		r.series.spikeFactor = fresh.record.Config.Health.LossSpike
	}
	changed, err := r.follower.Read(&r.series)
	if err != nil {
		fresh.problems = append(fresh.problems, err.Error())
	}
	r.lookAtCheckpoints(&fresh, before)
	r.decideState(&fresh)
	if changed || r.version == 0 || !reflect.DeepEqual(before, fresh) {
		r.version++
	}
	r.found = fresh
}

// maxSmallBytes bounds what is read whole.
const maxSmallBytes = 32 << 20

// readSmall reads configuration, journal and what else is small.
func (r *run) readSmall() found {
	var f found
	note := func(err error) {
		if err != nil {
			f.problems = append(f.problems, err.Error())
		}
	}
	for _, id := range []fileID{r.files.config, r.files.journal, r.files.mirror, r.files.chosen} {
		if id.size > maxSmallBytes {
			note(fmt.Errorf("%s: a file of %d bytes is none that a run writes", r.dir, id.size))
			return f
		}
	}
	if record, err := trainer.ReadRecord(r.dir); err == nil {
		f.record = &record
	} else {
		note(err)
	}
	changes, torn, err := trainer.ReadJournal(r.dir)
	note(err)
	f.changes = changes
	if torn {
		f.torn = append(f.torn, checkpoint.JournalName)
	}
	f.mirror, err = trainer.ReadMirrorState(r.dir)
	note(err)
	if chosen, is, err := checkpoint.Chosen(r.dir); is {
		f.chosen = &chosen
	} else {
		note(err)
	}
	return f
}

// lookAtCheckpoints reads the manifests of checkpoints that are new; those that were read do not change.
func (r *run) lookAtCheckpoints(f *found, before found) {
	steps, err := checkpoint.List(r.dir)
	if err != nil && !errors.Is(err, checkpoint.ErrNotFound) {
		f.problems = append(f.problems, err.Error())
	}
	f.best = nil
	for _, step := range steps {
		known := slices.IndexFunc(before.checkpoints, func(c runs.Checkpoint) bool { return c.Step == step && c.Problem == "" })
		if known >= 0 && step != steps[len(steps)-1] {
			f.checkpoints = append(f.checkpoints, before.checkpoints[known])
			continue
		}
		c, best := runs.ReadCheckpoint(r.dir, step)
		if c.Problem != "" && !isThere(r.dir, step) {
			continue // it was removed just now
		}
		f.checkpoints = append(f.checkpoints, c)
		if c.Problem != "" {
			f.problems = append(f.problems, c.Problem)
		} else {
			f.best = best
		}
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return
	}
	for _, entry := range entries {
		name := entry.Name()
		if (strings.HasPrefix(name, "failed-step-") || strings.HasPrefix(name, "stall-")) && len(f.reports) < maxEvents {
			f.reports = append(f.reports, name)
		}
	}
}

func isThere(dir string, step int) bool {
	_, err := os.Stat(checkpoint.StepDir(dir, step))
	return err == nil
}

func (r *run) decideState(f *found) {
	p := runs.Progress{Skipped: r.series.skipped, Written: r.follower.Modified()}
	if f.record != nil {
		p.Steps = f.record.Plan.Steps
	}
	for _, c := range f.checkpoints {
		p.Checkpoints = append(p.Checkpoints, c.Step)
	}
	if lines, problem := r.follower.Damaged(); lines > 0 {
		f.problems = append(f.problems, fmt.Sprintf("%s: %s: %s", checkpoint.MetricsName, counted(int64(lines), "damaged line", "damaged lines, the first is"), problem))
	}
	f.standing = runs.Stand(r.dir, p)
	if f.standing.State == runs.Running {
		f.holder, _ = checkpoint.Holder(r.dir)
		if f.holder == "" {
			f.holder = checkpoint.LastHolder(r.dir)
		}
		return // the last lines are being written
	}
	if r.follower.Torn() {
		f.torn = append(f.torn, checkpoint.MetricsName)
	}
	if len(f.problems) > 0 {
		f.standing = runs.Standing{State: runs.Damaged}
	}
}

// steps is how many steps the run is to have; 0 if that is unknown.
func (r *run) steps() int {
	if r.record == nil {
		return 0
	}
	return r.record.Plan.Steps
}

// left is the time to the last step; 0 if it is unknown or the run does not train.
func (r *run) left() time.Duration {
	perStep := r.follower.SecondsPerStep()
	if r.standing.State != runs.Running || perStep == 0 || r.steps() <= r.series.last.Step {
		return 0
	}
	return time.Duration(perStep * float64(r.steps()-r.series.last.Step) * float64(time.Second)).Round(time.Second)
}

// written is when the run was last written to.
func (r *run) written() time.Time {
	if t := r.follower.Modified(); !t.IsZero() {
		return t
	}
	return r.files.config.modified
}
