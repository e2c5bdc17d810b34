package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cftune/internal/spell"
	"cftune/trainer/config"
)

// Request is what is to be launched.
type Request struct {
	Name string
	Run  config.Run
	// Study is launched instead of a run, if it is not nil.
	Study *Study
}

// Output is where what was made will be here.
func (r Request) Output() string {
	if r.Study != nil {
		return r.Study.Output
	}
	return r.Run.Output
}

// Options say how.
type Options struct {
	// Say tells people what is done.
	Say func(format string, args ...any)
	// Getenv is where the values of secrets come from.
	Getenv func(string) string
	// Executable is the program whose build is sent, unless the target names another build.
	Executable string
}

// Plan is what a launch will do. Nothing is written before Send.
type Plan struct {
	config  TargetConfig
	target  Target
	options Options
	build   *Build
	shipped []*shipped
	jobs    []Placed
	secrets map[string]string
	// states are how the runs stand already.
	states []State
	// missing are the files that are not there yet, toSend their bytes.
	missing []upload
	toSend  int64
	program string // where the build will be
}

// Prepare looks at what is there and decides what must be done.
func Prepare(ctx context.Context, t TargetConfig, target Target, requests []Request, o Options) (*Plan, error) {
	p := &Plan{config: t, target: target, options: o}
	var err error
	if p.secrets, err = t.secretValues(o.Getenv); err != nil {
		return nil, err
	}
	if p.build, err = OpenBuild(expandHome(t.Build), o.Executable); err != nil {
		return nil, err
	}
	p.program = path.Join(target.Root(), "builds", p.build.Digest[:digestPrefix], programName)
	here := t.Host == ""
	for _, r := range requests {
		if err := p.add(ctx, r, here); err != nil {
			return nil, fmt.Errorf("%s: %w", r.Name, err)
		}
	}
	return p, p.findMissing()
}

func (p *Plan) add(ctx context.Context, r Request, here bool) error {
	if err := CheckName(r.Name); err != nil {
		return &UsageError{err}
	}
	if r.Study != nil {
		return p.addStudy(ctx, r, here)
	}
	output := path.Join(JobDir(p.target, r.Name), runName)
	if here {
		var err error
		if output, err = filepath.Abs(r.Run.Output); err != nil {
			return err
		}
	}
	s, err := shipConfig(r.Run, p.config, p.target.Root(), output, here)
	if err != nil {
		return err
	}
	return p.addJob(ctx, r.Name, nil, output, s)
}

// addJob adds a run, or a part of a study.
func (p *Plan) addJob(ctx context.Context, name string, part *Part, output string, s *shipped) error {
	dir, format := JobDir(p.target, name), JobFormat
	if part != nil {
		format = partFormat
	}
	before, err := readJobOf(p.target.Host(), dir)
	if err != nil {
		return err
	}
	state := State{Phase: PhaseNew}
	if before != nil {
		if before.Digest != s.digest {
			return usage("a run of this name is there with another configuration; --name begins another, cftune launch remove %s forgets it", name)
		}
		if state, err = p.target.Status(ctx, dir); err != nil {
			return err
		}
	}
	p.shipped, p.states = append(p.shipped, s), append(p.states, state)
	p.jobs = append(p.jobs, Placed{Dir: dir, Job: Job{
		Format: format, Name: name, Part: part, Program: p.program, Launcher: p.config.launcher(), Run: output, Digest: s.digest, Made: time.Now().UTC(),
		Retries: p.config.retries(), Backoff: p.config.backoff(), Env: p.config.Env, Secrets: p.config.Secrets,
		Requeue: p.config.Kind == KindSlurm && p.config.Slurm.requeue(),
	}})
	return nil
}

// readJobOf returns the job in a folder of a host, nil if there is none.
func readJobOf(h Host, dir string) (*Job, error) {
	text, err := readSmall(h, path.Join(dir, jobName), maxJobBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	j, err := parseJob(text)
	return &j, err
}

// findMissing finds the files that must be sent. Their folders are named by their contents, so a file of the right size
// under its final name is the one.
func (p *Plan) findMissing() error {
	var all []upload
	for _, f := range p.build.Files {
		if f.link == "" {
			all = append(all, upload{key: "build", local: f.local, remote: p.buildPath(f), written: f.written})
		}
	}
	for _, s := range p.shipped {
		all = append(all, s.uploads...)
	}
	seen := map[string]bool{}
	for _, u := range all {
		if seen[u.remote] {
			continue
		}
		seen[u.remote] = true
		info, err := p.target.Host().Stat(u.remote)
		switch {
		case err == nil && info.Size() == u.written.Bytes:
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return err
		default:
			p.missing = append(p.missing, u)
			p.toSend += u.written.Bytes
		}
	}
	return nil
}

func (p *Plan) buildPath(f buildFile) string {
	return path.Join(path.Dir(path.Dir(p.program)), f.name)
}

// Running reports how a single run, or a study, stands that needs no start: one that runs, waits or is done.
func (p *Plan) Running() (State, bool) {
	if len(p.states) != 1 && p.jobs[0].Job.Part == nil || slices.ContainsFunc(p.states, startable) {
		return State{}, false
	}
	return together(p.states), true
}

// First are the findings that need nothing there.
func (p *Plan) First(ctx context.Context) ([]Finding, error) { return p.first(ctx) }

// Second are those of the program, after Send. They end with what the target's kind adds.
func (p *Plan) Second(ctx context.Context) []Finding {
	return append(p.second(ctx), p.target.Check(ctx, p.jobs)...)
}

// Failed is an error where any of the findings is one.
func (p *Plan) Failed(findings []Finding) error {
	return Failed(p.config, findings)
}

// Failed is an error where any of the findings about a target is one.
func Failed(t TargetConfig, findings []Finding) error {
	if failed(findings) {
		return &PreflightError{Target: t.name, Findings: findings}
	}
	return nil
}

// Send sends build, files and job folders.
func (p *Plan) Send(ctx context.Context) error {
	p.leaveOut()
	h := p.target.Host()
	if err := h.MkdirAll(p.target.Root()); err != nil {
		return err
	}
	modes := map[string]fs.FileMode{}
	for _, f := range p.build.Files {
		modes[p.buildPath(f)] = f.mode
	}
	for i, u := range p.missing {
		p.options.Say("sending %d of %d: %s (%s)", i+1, len(p.missing), u.local, spell.Size(uint64(u.written.Bytes)))
		mode, isBuild := modes[u.remote]
		if !isBuild {
			mode = privateFile
		}
		if err := put(ctx, h, u.local, u.remote, u.written, mode); err != nil {
			return err
		}
	}
	for _, f := range p.build.Files {
		if f.link == "" {
			continue
		}
		if err := h.Symlink(f.link, p.buildPath(f)); err != nil {
			if _, statErr := h.Stat(p.buildPath(f)); statErr != nil { // else it is there
				return fmt.Errorf("link %s: %w", f.name, err)
			}
		}
	}
	for i, j := range p.jobs {
		if err := p.place(h, j, p.shipped[i]); err != nil {
			return err
		}
	}
	return nil
}

// place writes a job folder, with job.json last: what has it is whole.
func (p *Plan) place(h Host, j Placed, s *shipped) error {
	if err := h.MkdirAll(j.Dir); err != nil {
		return err
	}
	if err := putText(h, path.Join(j.Dir, configName), s.text, privateFile); err != nil {
		return err
	}
	text, err := json.MarshalIndent(j.Job, "", "  ")
	if err != nil {
		return err
	}
	if script, err := p.target.Script(p.jobs); err != nil {
		return err
	} else if script != "" && j.Dir == p.jobs[0].Dir {
		if err := putText(h, path.Join(j.Dir, scriptName), []byte(script), privateFile); err != nil {
			return err
		}
	}
	return putText(h, path.Join(j.Dir, jobName), append(text, '\n'), privateFile)
}

// Begin starts what was sent.
func (p *Plan) Begin(ctx context.Context) error { return p.target.Start(ctx, p.jobs, p.secrets) }

// Describe prints what Send and Begin would do.
func (p *Plan) Describe(w io.Writer) error {
	var b strings.Builder
	fmt.Fprintf(&b, "target %s (%s) on %s, folder %s\n", p.config.name, p.config.Kind, p.target.Host().Name(), p.target.Root())
	fmt.Fprintf(&b, "build %s for %s: %s\n", p.build.Digest[:digestPrefix], p.build.Arch, p.program)
	fmt.Fprintf(&b, "\nto send: %d files, %s\n", len(p.missing), spell.Size(uint64(p.toSend)))
	for _, u := range p.missing {
		fmt.Fprintf(&b, "  %s: %s -> %s (%s, sha256 %.12s)\n", u.key, u.local, u.remote, spell.Size(uint64(u.written.Bytes)), u.written.SHA256)
	}
	for i, j := range p.jobs {
		fmt.Fprintf(&b, "\nrun %s, now %s: %s\n", j.Job.Name, p.states[i].Phase, j.Dir)
		fmt.Fprintf(&b, "writes there: %s, %s; its run directory: %s\n", configName, jobName, j.Job.Run)
		fmt.Fprintf(&b, "command: %s\n", quoteAll(j.Job.command(path.Join(j.Dir, configName), orResume)...))
		fmt.Fprintf(&b, "retries %d, first after %v; variables: %s; secrets, by name: %s\n", j.Job.Retries, j.Job.Backoff,
			orNone(sortedKeys(j.Job.Env)), orNone(j.Job.Secrets))
		if i == 0 || p.shipped[i] != p.shipped[i-1] {
			fmt.Fprintf(&b, "%s:\n%s", configName, p.shipped[i].text)
		}
	}
	script, err := p.target.Script(p.jobs)
	if err != nil {
		return err
	}
	if script != "" {
		fmt.Fprintf(&b, "\nsubmits %s:\n%s", scriptName, script)
	} else {
		fmt.Fprintf(&b, "\nstarts: %s\n", quoteAll(p.program, "launch", "job", p.jobs[0].Dir))
	}
	_, err = io.WriteString(w, b.String())
	return err
}

func orNone(names []string) string {
	if len(names) == 0 {
		return "none"
	}
	return strings.Join(names, ", ")
}

// Jobs are the runs of the plan.
func (p *Plan) Jobs() []Placed { return p.jobs }
