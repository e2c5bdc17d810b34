package launch

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"cftune/trainer/config"
)

// Study is a study that is to be launched. What its file says is its own business.
type Study struct {
	// Relocate returns the file with another output, and with paths that are what place makes of them.
	Relocate func(output string, place func(key, path string) (string, error)) ([]byte, error)
	Output   string
	Device   string
	// Shards is how many jobs make it together, each a part.
	Shards int
}

// Part says which part of a study a job makes. Each part has a job folder of its own; all write into one study's folder.
type Part struct {
	Study  string `json:"study"` // its name
	Number int    `json:"number"`
	Of     int    `json:"of"`
}

// partJob names the job of a part: the study's name where that is all of it.
func partJob(study string, number, of int) string {
	if of == 1 {
		return study
	}
	return fmt.Sprintf("%s-%d-of-%d", study, number, of)
}

func (p Part) String() string { return fmt.Sprintf("%d/%d", p.Number, p.Of) }

// command is that of the part. A study always goes on with what there is.
func (p Part) command(program, config string, more ...string) []string {
	words := []string{program, "study", config}
	if p.Of > 1 {
		words = append(words, "--shard", p.String())
	}
	for _, word := range more {
		if word != orResume {
			words = append(words, word)
		}
	}
	return words
}

// shipStudy does for a study what shipConfig does for a run.
func shipStudy(study *Study, t TargetConfig, root, output string, here bool) (*shipped, error) {
	s := &shipped{run: config.Run{Device: study.Device, Output: output}}
	var err error
	if s.text, err = study.Relocate(output, func(key, p string) (string, error) { return s.place(key, p, t, root, here) }); err != nil {
		return nil, &UsageError{err}
	}
	sum := sha256.Sum256(s.text)
	s.digest = hex.EncodeToString(sum[:])
	return s, nil
}

// addStudy plans a job for each part of a study.
func (p *Plan) addStudy(ctx context.Context, r Request, here bool) error {
	of := r.Study.Shards
	switch {
	case of > 1 && p.config.Kind != KindSlurm:
		return usage("target %s: a study in several parts needs a scheduler (kind slurm), got %d", p.config.name, of)
	case p.config.Processes > 1:
		return usage("target %s: the runs of a study train in one process each, and processes is %d; a target of its own says otherwise", p.config.name, p.config.Processes)
	}
	there, err := PartsOf(p.target, r.Name)
	if err != nil {
		return err
	}
	if n := len(there); n > 0 && there[0].Job.Part.Of != of {
		return usage("a study of this name is there in %d parts, not in %d; --name begins another, cftune launch remove %s forgets it", there[0].Job.Part.Of, of, r.Name)
	}
	// The folder is the first part's, and goes with it; its last name is the one here, which reports have.
	output := path.Join(JobDir(p.target, partJob(r.Name, 1, of)), runName, filepath.Base(filepath.Clean(r.Study.Output)))
	if err := checkPath(output); err != nil {
		return &UsageError{err}
	}
	if here {
		if output, err = filepath.Abs(r.Study.Output); err != nil {
			return err
		}
	}
	s, err := shipStudy(r.Study, p.config, p.target.Root(), output, here)
	if err != nil {
		return err
	}
	for number := 1; number <= of; number++ {
		if err := p.addJob(ctx, partJob(r.Name, number, of), &Part{r.Name, number, of}, output, s); err != nil {
			return err
		}
	}
	return nil
}

// leaveOut takes out of the plan what needs no start of a study in several parts.
func (p *Plan) leaveOut() {
	if len(p.jobs) < 2 || p.jobs[0].Job.Part == nil {
		return
	}
	var jobs []Placed
	var states []State
	var ships []*shipped
	for i, s := range p.states {
		if startable(s) {
			jobs, states, ships = append(jobs, p.jobs[i]), append(states, s), append(ships, p.shipped[i])
		}
	}
	p.jobs, p.states, p.shipped = jobs, states, ships
}

// startable reports whether a job is started by being launched again.
func startable(s State) bool { return Over(s.Phase) && s.Phase != PhaseDone }

var partFolder = regexp.MustCompile(`^(.+)-([0-9]+)-of-([0-9]+)$`)

// savedOfStudy tells apart what a study has saved: checkpoints of its runs, and texts. Those of other parts count too, so a part
// that gets nowhere may take turns as long as others get somewhere, and no longer.
func savedOfStudy(dir string) (string, error) {
	var saved strings.Builder
	runs, err := os.ReadDir(filepath.Join(dir, studyRuns))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	for _, run := range runs {
		step, err := newestStep(filepath.Join(dir, studyRuns, run.Name()))
		if err != nil {
			return "", err
		}
		fmt.Fprintln(&saved, run.Name(), step)
	}
	for _, folder := range studyFolders {
		files, err := localHost{}.ReadDir(filepath.Join(dir, folder))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
		for _, file := range files {
			fmt.Fprintln(&saved, folder, file.Name(), file.Size())
		}
	}
	return saved.String(), nil
}

// PartsOf finds the jobs of a study on a target, in their order; none if there is no study of that name.
func PartsOf(t Target, name string) ([]Placed, error) {
	job, err := readJobOf(t.Host(), JobDir(t, name))
	if err != nil {
		return nil, err
	}
	if job != nil {
		if job.Part == nil || job.Part.Of != 1 {
			return nil, nil
		}
		return []Placed{{Job: *job, Dir: JobDir(t, name)}}, nil
	}
	infos, err := t.Host().ReadDir(path.Dir(JobDir(t, name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var parts []Placed
	for _, info := range infos {
		words := partFolder.FindStringSubmatch(info.Name())
		if words == nil || words[1] != name {
			continue
		}
		dir := JobDir(t, info.Name())
		job, err := readJobOf(t.Host(), dir)
		if err != nil {
			return nil, err
		}
		if job != nil && job.Part != nil && job.Part.Study == name && strconv.Itoa(job.Part.Of) == words[3] {
			parts = append(parts, Placed{Job: *job, Dir: dir})
		}
	}
	slices.SortFunc(parts, func(a, b Placed) int { return a.Job.Part.Number - b.Job.Part.Number })
	return parts, nil
}

// StatusOf says how the parts of a study stand, and the study.
func StatusOf(ctx context.Context, t Target, parts []Placed) (State, error) {
	states := make([]State, len(parts))
	for i, p := range parts {
		var err error
		if states[i], err = t.Status(ctx, p.Dir); err != nil {
			return State{}, err
		}
	}
	return together(states), nil
}

// together is how a study stands whose parts stand so: it runs while one does, and is done when all are.
func together(parts []State) State {
	if len(parts) == 1 {
		return parts[0]
	}
	// The first of these that a part is in; what is not over comes first.
	order := []string{PhaseRunning, PhaseRetrying, PhaseEnding, PhaseRequeued, PhasePending, PhaseFailed, PhaseLost, PhaseStopped, PhaseNew, PhaseDone}
	s := State{Phase: PhaseNew, Parts: parts}
	var counts []string
	for _, phase := range slices.Backward(order) {
		n := 0
		for _, p := range parts {
			if p.Phase == phase {
				n++
			}
		}
		if n > 0 {
			s.Phase = phase
			counts = append(counts, fmt.Sprintf("%d %s", n, phase))
		}
	}
	slices.Reverse(counts)
	s.Message = "of its parts " + strings.Join(counts, ", ")
	for i, p := range parts {
		s.Updated = latest(s.Updated, p.Updated)
		if p.Phase == s.Phase && Over(s.Phase) && s.Phase != PhaseDone {
			s.Message += fmt.Sprintf("; part %d: %s", i+1, p.Message)
			s.ExitCode = p.ExitCode
			break
		}
	}
	return s
}

func latest(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// StopParts ends all parts of a study, each with a checkpoint. What waits is taken out first, so that nothing takes the
// place of what ends.
func StopParts(ctx context.Context, t Target, parts []Placed) (State, error) {
	for _, waits := range []bool{true, false} {
		for _, p := range parts {
			s, err := t.Status(ctx, p.Dir)
			if err != nil {
				return s, err
			}
			if Over(s.Phase) || (s.Phase == PhasePending) != waits {
				continue
			}
			if s, err := t.Stop(ctx, p.Dir); err != nil {
				return s, err
			}
		}
	}
	return StatusOf(ctx, t, parts)
}

// ResumeParts starts the parts of a study that are over and not done.
func ResumeParts(ctx context.Context, config TargetConfig, t Target, parts []Placed, getenv func(string) string) error {
	var left []Placed
	for _, p := range parts {
		s, err := t.Status(ctx, p.Dir)
		if err != nil {
			return err
		}
		if startable(s) {
			left = append(left, p)
		}
	}
	if len(left) == 0 {
		return nil
	}
	config.Secrets = left[0].Job.Secrets
	secrets, err := config.secretValues(getenv)
	if err != nil {
		return err
	}
	return t.Start(ctx, left, secrets)
}

// RemoveParts removes the job folders of a study, the first one with the study's folder last.
func RemoveParts(ctx context.Context, t Target, parts []Placed) error {
	s, err := StatusOf(ctx, t, parts)
	if err != nil {
		return err
	}
	if !Over(s.Phase) {
		return fmt.Errorf("it is %s: cftune launch stop ends it first", s.Phase)
	}
	for _, p := range slices.Backward(parts) {
		if err := t.Remove(ctx, p.Dir); err != nil {
			return err
		}
	}
	return nil
}

// OutcomeOf is an error where a study is over and did not end well; the log that it shows is that of the part to blame.
func OutcomeOf(t Target, name, target string, parts []Placed, s State) error {
	at := 0
	for i, p := range s.Parts {
		if p.Phase == s.Phase {
			at = i
			break
		}
	}
	err := Outcome(t, parts[at].Job.Name, target, s)
	if run, ok := errors.AsType[*RunError](err); ok {
		run.Name = name
	}
	return err
}
