//go:build linux

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// study writes a study's file with the given output: three models, each of so many steps.
func (p *place) study(output string, steps int) string {
	name := filepath.Base(output) + ".yaml"
	p.write(name, fmt.Sprintf(`name: tiny
model: tiny.gguf
output: %s
threads: 1
seeds: [1, 2]
budget: {steps: %d}
sets:
  - name: sums
    train: {path: train.jsonl, format: cft}
    test: {path: test.jsonl, format: cft}
    answer_tokens: 4
    critique_tokens: 4
arms:
  - {name: base}
  - {name: cft, stages: [{mix: {cft: 1}}]}
claims:
  - {text: critiques help, set: sums, kind: better, arm: cft, than: base, measure: answers}
adapter: {rank: 4, alpha: 8}
train: {seq_len: 256, global_batch: {examples: 1}}
checkpoint: {every_steps: 20}
scoring: {parallel: 2, self_critique: false}
`, output, steps))
	p.write("test.jsonl", `{"query": "What is 70 + 1?", "response": "71", "gold": "71", "label": "right"}
{"query": "What is 80 + 1?", "response": "80", "gold": "81", "label": "wrong"}
`)
	return name
}

// sameReports wants two studies to say the same, but for times.
func (p *place) sameReports(one, other string) {
	p.t.Helper()
	a, err := timelessReports(filepath.Join(p.dir, one))
	require.NoError(p.t, err)
	b, err := timelessReports(filepath.Join(p.dir, other))
	require.NoError(p.t, err)
	assert.Equal(p.t, a, b)
}

func TestLaunchAStudyHere(t *testing.T) {
	p := newPlace(t)
	p.write("hosts.yaml", "targets: {here: {kind: local, retries: 0}}\n")
	file := p.study("alone/tiny", 20)
	p.must("study", file)

	r := p.must("launch", "--study", file, "--set", "output=here/tiny", "--on", "here")
	assert.Contains(t, r.err, "2 runs, 4 texts of each of 3 models")
	assert.Contains(t, r.err, "tiny is done")
	p.sameReports("alone/tiny", "here/tiny")
	assert.Contains(t, p.must("launch", "fetch", "tiny").err, "here/tiny: 3 of 3 models are here, verified")
	assert.Contains(t, p.must("launch", "--study", file, "--set", "output=here/tiny", "--on", "here").err, "tiny is done already")
	p.must("study", file, "--set", "output=here/tiny")

	for _, bad := range []struct{ want, args string }{
		{"--config or --study, not both", "--study alone.yaml -c a.yaml"},
		{"--shards is of a --study", "-c a.yaml --shards 2"},
		{"--shards must be 1 to 3, the number of the study's models, got 4", "--study tiny.yaml --shards 4"},
		{"a study in several parts needs a scheduler", "--study tiny.yaml --shards 3"},
		{"with another configuration", "--study tiny.yaml --set output=here/tiny --set budget.steps=21"},
	} {
		r := p.run(append([]string{"launch", "--on", "here"}, strings.Fields(bad.args)...)...)
		assert.Equal(t, codeUsage, r.code, bad.args)
		assert.Contains(t, r.err, bad.want)
	}
	p.must("launch", "remove", "tiny")
	assert.DirExists(t, filepath.Join(p.dir, "here", "tiny"), "what was made here stays")
}

// A study as an array of jobs on two nodes, behind a login host that has nothing of it, says what one process's says. A part
// that is killed is started again alone.
func TestLaunchAStudyOnSlurm(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	login := startServer(t, "SetEnv SLURM_CONF="+c.conf)
	p := newPlace(t)
	folder := filepath.Join(p.dir, `far $(touch pwned) 'q'`)
	p.write("hosts.yaml", strings.Replace(login.target(login.known(t, "host_key"), folder, "slurm: {partition: p, cpus: 1}\n    env: {CFTUNE_CACHE: "+filepath.Join(p.dir, "cache")+"}"),
		"kind: ssh", "kind: slurm", 1))
	const steps = 400
	file := p.study("alone/tiny", steps)
	p.must("study", file)
	first := filepath.Join(folder, "runs", "tiny-1-of-3", "run", "tiny")
	t.Cleanup(func() {
		for i := 1; t.Failed() && i <= 3; i++ {
			if text, err := os.ReadFile(filepath.Join(folder, "runs", fmt.Sprintf("tiny-%d-of-3", i), "log.txt")); err == nil {
				t.Logf("part %d:\n%s", i, text)
			}
		}
	})

	started := []string{"launch", "--study", file, "--set", "output=here/tiny", "--shards", "3", "--on", "far"}
	r := p.must(append(started, "--dry-run")...)
	assert.Contains(t, r.out, "#SBATCH --array=0-2")
	assert.Equal(t, 1, strings.Count(r.out, `"budget"`), "the file is shown once")
	assert.NoDirExists(t, folder)
	p.must(append(started, "--detach")...)
	p.await(filepath.Join(first, "runs", "cft-s1", "metrics.jsonl"), 25)
	require.NoError(t, syscall.Kill(processOf(t, "\x00study\x00", filepath.Join(folder, "runs", "tiny-2-of-3")), syscall.SIGKILL))
	r = p.run("launch", "follow", "tiny")
	assert.Equal(t, codeOther, r.code)
	assert.Contains(t, r.err, "[2/3] ")
	assert.Contains(t, r.err, "of its parts 1 failed, 2 done; part 2: ")
	assert.Contains(t, r.err, "cftune launch resume tiny starts it again")
	assert.NoFileExists(t, filepath.Join(first, "report.md"))
	assert.Contains(t, p.must("launch", "fetch", "tiny").err, "here/tiny: 2 of 3 models are here, verified")
	assert.Contains(t, readText(t, filepath.Join(p.dir, "here", "tiny", "report.md")), "Partial: not trained or scored are cft-s1.")

	r = p.must("launch", "resume", "tiny")
	assert.Contains(t, r.err, "tiny-2-of-3 is done")
	far, err := filepath.Rel(p.dir, first)
	require.NoError(t, err)
	p.sameReports("alone/tiny", far)
	assert.Contains(t, p.must("launch", "fetch", "tiny", "--all").err, "here/tiny: 3 of 3 models are here, verified")
	p.sameReports("alone/tiny", "here/tiny")
	for _, run := range []string{"cft-s1", "cft-s2"} {
		assert.Equal(t, p.manifest("alone/tiny/runs/"+run, steps), p.manifest("here/tiny/runs/"+run, steps), "to the same bits")
	}
	assert.Contains(t, p.run("launch", "--study", file, "--set", "output=here/tiny", "--shards", "2", "--on", "far").err, "is there in 3 parts, not in 2")
	assertPrivate(t, folder)
	p.must("launch", "remove", "tiny")
	assert.NoDirExists(t, filepath.Join(folder, "runs", "tiny-1-of-3"))
	assert.NoDirExists(t, filepath.Join(folder, "runs", "tiny-2-of-3"))
	assert.NoFileExists(t, filepath.Join(p.dir, "pwned"))
}
