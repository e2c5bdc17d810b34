package launch

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"path"
	"strconv"
	"strings"

	"cftune/internal/spell"
)

// Levels of findings.
const (
	LevelOK   = "ok"
	LevelWarn = "warn"
	LevelFail = "fail"
)

// Finding is one line of the table that is shown before a run is started.
type Finding struct {
	Level  string `json:"level"`
	What   string `json:"what"`
	Found  string `json:"found"`
	WayOut string `json:"way_out,omitempty"`
}

// PreflightError says that a target cannot take a run.
type PreflightError struct {
	Target   string
	Findings []Finding
}

func (e *PreflightError) Error() string {
	var words []string
	for _, f := range e.Findings {
		if f.Level == LevelFail {
			words = append(words, f.What+": "+f.Found)
		}
	}
	return fmt.Sprintf("%s cannot take the run: %s", e.Target, strings.Join(words, "; "))
}

func failed(findings []Finding) bool {
	for _, f := range findings {
		if f.Level == LevelFail {
			return true
		}
	}
	return false
}

// lookScript prints what a host is, one key a line. It changes nothing. $1 is the folder that is to be used; the nearest one
// that exists is measured.
const lookScript = `
echo "system=$(uname -s) $(uname -m)"
dir=$1
while [ ! -d "$dir" ] && [ "$dir" != / ]; do dir=$(dirname -- "$dir"); done
if [ -w "$dir" ]; then echo writable=yes; else echo "writable=no: $dir"; fi
echo "disk=$(df -Pk -- "$dir" | awk 'NR == 2 { print $4 }')"
[ -r /proc/meminfo ] && echo "memory=$(awk '/^MemAvailable/ { print $2 }' /proc/meminfo)"
echo "processors=$(getconf _NPROCESSORS_ONLN)"
if command -v nvidia-smi >/dev/null; then
  nvidia-smi --query-gpu=name,memory.free,driver_version --format=csv,noheader 2>&1 | sed 's/^/gpu=/'
  nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9.]*\).*/cuda=\1/p'
fi
exit 0
`

// look is what is known of a host before anything is sent.
type look map[string]string

func lookAt(ctx context.Context, h Host, root string) (look, error) {
	out, err := h.Run(ctx, "set -- "+spell.Quote(root)+"\n"+lookScript, nil, nil)
	if err != nil {
		return nil, fmt.Errorf("look at the host: %w", err)
	}
	l := look{}
	for line := range strings.Lines(string(out)) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			if l[key] != "" {
				value = l[key] + "; " + value
			}
			l[key] = value
		}
	}
	return l, nil
}

// spaceForRun is what a run may write beside what is sent: checkpoints, logs.
const spaceForRun = 1 << 30

// first are the findings that need nothing on the host.
func (p *Plan) first(ctx context.Context) ([]Finding, error) {
	l, err := lookAt(ctx, p.target.Host(), p.target.Root())
	if err != nil {
		return nil, err
	}
	var findings []Finding
	add := func(level, what, found, wayOut string) {
		findings = append(findings, Finding{level, what, found, wayOut})
	}
	if l["system"] == p.build.Arch {
		add(LevelOK, "system", l["system"], "")
	} else {
		add(LevelFail, "system", fmt.Sprintf("%s, and the build is for %s", l["system"], p.build.Arch),
			"build for it there (CFTUNE_PORTABLE=1 make), copy its build folder here, and name that in build of the target")
	}
	if l["writable"] == "yes" {
		add(LevelOK, "folder", p.target.Root(), "")
	} else {
		add(LevelFail, "folder", "not to be written to: "+strings.TrimPrefix(l["writable"], "no: "), "folder of the target names another")
	}
	findings = append(findings, p.space(l["disk"]))
	if kib, err := strconv.ParseUint(l["memory"], 10, 64); err == nil {
		add(LevelOK, "memory", fmt.Sprintf("%s free, %s processors", spell.Size(kib<<10), l["processors"]), "")
	} else {
		add(LevelWarn, "memory", "not told", "")
	}
	findings = append(findings, p.device(l))
	return findings, nil
}

func (p *Plan) space(kib string) Finding {
	f := Finding{Level: LevelOK, What: "disk"}
	free, err := strconv.ParseUint(kib, 10, 64)
	if err != nil {
		return Finding{LevelWarn, "disk", "free space is not told", ""}
	}
	free <<= 10
	need := uint64(p.toSend) + spaceForRun
	f.Found = fmt.Sprintf("%s free, %s to send", spell.Size(free), spell.Size(uint64(p.toSend)))
	switch {
	case free < uint64(p.toSend):
		f.Level, f.WayOut = LevelFail, "make room, or let folder of the target name another disk"
	case free < need:
		f.Level, f.WayOut = LevelWarn, "there is little left for checkpoints"
	}
	return f
}

func (p *Plan) device(l look) Finding {
	wanted := p.wantsCUDA()
	switch {
	case l["gpu"] != "":
		found := l["gpu"]
		if l["cuda"] != "" {
			found += "; CUDA " + l["cuda"]
		}
		if strings.Contains(l["gpu"], "fail") && wanted {
			return Finding{LevelFail, "GPU", found, "nvidia-smi must work there"}
		}
		if n := strings.Count(l["gpu"], "; ") + 1; n < p.config.Processes && p.config.Kind != KindSlurm {
			return Finding{LevelWarn, "GPU", fmt.Sprintf("%s: %d for %d processes, which will share them", found, n, p.config.Processes), "processes of the target: as many as devices"}
		}
		return Finding{LevelOK, "GPU", found, ""}
	case wanted && p.config.Kind == KindSlurm:
		return Finding{LevelWarn, "GPU", "none on the login host, which may be as it should", ""}
	case wanted:
		return Finding{LevelFail, "GPU", "no nvidia-smi there, and device asks for CUDA", "install the driver, or --set device=cpu"}
	}
	return Finding{LevelOK, "GPU", "none; the run does not ask for one", ""}
}

func (p *Plan) wantsCUDA() bool {
	for _, s := range p.shipped {
		if strings.HasPrefix(s.run.Device, "cuda") {
			return true
		}
	}
	return false
}

// second are the findings of the program itself, once it is there with all files.
func (p *Plan) second(ctx context.Context) []Finding {
	h := p.target.Host()
	var findings []Finding
	program := p.jobs[0].Job.Program
	out, err := h.Run(ctx, quoteAll(program, "version", "--json"), nil, nil)
	if err != nil {
		return append(findings, Finding{LevelFail, "program", oneLine(err), "a library that is not found must be installed there (OpenBLAS: libopenblas0); an illegal instruction needs a build with CFTUNE_PORTABLE=1"})
	}
	var version struct {
		Version, Revision, CPU string
	}
	if err := json.Unmarshal(out, &version); err != nil {
		return append(findings, Finding{LevelFail, "program", fmt.Sprintf("it answers %q", lastLines(string(out), 2)), ""})
	}
	findings = append(findings, Finding{LevelOK, "program", fmt.Sprintf("%s, CPU kernels for %s", strings.TrimSpace(fmt.Sprintf("%s %.12s", version.Version, version.Revision)), version.CPU), ""})
	if part := p.jobs[0].Job.Part; part != nil {
		return append(findings, Finding{LevelWarn, "fit", "not looked at: a study's runs are made one by one, where they are", ""}, p.plans(ctx, p.jobs[0]))
	}
	for _, j := range p.jobs {
		findings = append(findings, p.fits(ctx, program, j))
		findings = append(findings, p.reaches(ctx, j))
	}
	return findings
}

// doctorRun is what doctor says of a run, as far as it is asked for here.
type doctorRun struct {
	Buffers, Available uint64
	Limited            bool
	OnDevice           bool                          `json:"on_device"`
	WouldFit           []struct{ Settings []string } `json:"would_fit"`
}

func (p *Plan) fits(ctx context.Context, program string, j Placed) Finding {
	out, err := p.target.Host().Run(ctx, quoteAll(program, "doctor", "--json", "--config", path.Join(j.Dir, configName)), nil, nil)
	var report struct{ Run *doctorRun }
	if jsonErr := json.Unmarshal(out, &report); jsonErr != nil || report.Run == nil {
		return Finding{LevelFail, "fit", oneLine(errors.Join(err, jsonErr)), ""}
	}
	if p.config.Kind == KindSlurm {
		return p.fitsNode(*report.Run)
	}
	f := Finding{LevelOK, "fit", fmt.Sprintf("%s of buffers, available are %s", spell.Size(report.Run.Buffers), spell.Size(report.Run.Available)), ""}
	if err != nil {
		f.Level = LevelFail
		for _, w := range report.Run.WouldFit {
			f.WayOut += " --set " + strings.Join(w.Settings, " --set ") + ";"
		}
	}
	if n := uint64(p.config.Processes); n > 1 {
		f.Found += fmt.Sprintf(", for each of %d processes", n)
		if r := report.Run; !r.OnDevice && !r.Limited && f.Level == LevelOK && r.Buffers > r.Available/n {
			f.Level, f.WayOut = LevelFail, lessMemory
		}
	}
	return f
}

const lessMemory = "fewer processes on a machine, a smaller train.seq_len, or train.keep_activations: layers"

// fitsNode looks whether a node's processes fit into the memory that is asked for. The login host is not the node: what is free here says
// nothing, and what a node's device has is not known here.
func (p *Plan) fitsNode(run doctorRun) Finding {
	s := p.config.Slurm
	memory := s.memory()
	if run.OnDevice || s.GPUs > 0 || memory == 0 {
		return Finding{LevelWarn, "fit", fmt.Sprintf("%s of buffers; whether a node has them shows there (the login host is not the node)", spell.Size(run.Buffers)), ""}
	}
	nodes := max(1, s.Nodes)
	n := uint64((max(1, p.config.Processes) + nodes - 1) / nodes)
	f := Finding{LevelOK, "fit", fmt.Sprintf("%s of buffers for each of %d processes on a node, slurm.mem is %s", spell.Size(run.Buffers), n, spell.Size(memory)), ""}
	if run.Buffers > memory/n {
		f.Level, f.WayOut = LevelFail, "a larger slurm.mem, "+lessMemory
	}
	return f
}

// reaches looks at model and data with the program's own eyes, with the run's variables and secrets, and as many processes.
func (p *Plan) reaches(ctx context.Context, j Placed) Finding {
	if p.config.Kind == KindSlurm {
		j.Job.Launcher = nil // which starts processes on nodes
	}
	what := "model, data"
	if len(p.jobs) > 1 {
		what += " of " + j.Job.Name
	}
	var plan struct{ Steps, Examples, Tokens int }
	if problem := p.dryRun(ctx, j, &plan); problem != "" {
		return Finding{LevelFail, what, problem, ""}
	}
	return Finding{LevelOK, what, fmt.Sprintf("%d steps over %d examples of %d tokens", plan.Steps, plan.Examples, plan.Tokens), ""}
}

// plans looks at a study's model and data as reaches does.
func (p *Plan) plans(ctx context.Context, j Placed) Finding {
	const what = "model, data"
	var plan struct {
		Runs          []struct{}
		Models, Texts int
	}
	if problem := p.dryRun(ctx, j, &plan); problem != "" {
		return Finding{LevelFail, what, problem, ""}
	}
	return Finding{LevelOK, what, fmt.Sprintf("%d runs, %d texts of each of %d models", len(plan.Runs), plan.Texts, plan.Models), ""}
}

// dryRun has the program plan a job, into plan, and says what the matter is if it cannot.
func (p *Plan) dryRun(ctx context.Context, j Placed, plan any) (problem string) {
	env := maps.Clone(p.secrets)
	maps.Copy(env, j.Job.Env)
	out, err := p.target.Host().Run(ctx, quoteAll(j.Job.command(path.Join(j.Dir, configName), "--dry-run", "--json")...), nil, env)
	if err != nil {
		return oneLine(err)
	}
	if err := json.Unmarshal(out, plan); err != nil {
		return fmt.Sprintf("the program answers %q", lastLines(string(out), 2))
	}
	return ""
}

func oneLine(err error) string { return strings.Join(strings.Fields(fmt.Sprint(err)), " ") }
