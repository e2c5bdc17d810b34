//go:build linux

package main

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testfiles"
)

// cluster is a real Slurm on loopback: munged, slurmctld, and two slurmd that play nodes n1 and n2.
type cluster struct {
	t    *testing.T
	dir  string
	conf string
}

func findServer(t *testing.T, name string) string {
	t.Helper()
	for _, path := range []string{"/usr/sbin/" + name, "/usr/bin/" + name, "/usr/local/sbin/" + name} {
		if _, err := os.Stat(path); err == nil {
			return path
		}
	}
	t.Skipf("no %s on this machine (scripts/install-deps --servers)", name)
	return ""
}

// startCluster starts one and ends it with the test.
func startCluster(t *testing.T) *cluster {
	t.Helper()
	munged, ctld, slurmd := findServer(t, "munged"), findServer(t, "slurmctld"), findServer(t, "slurmd")
	findServer(t, "sbatch")
	if os.Geteuid() != 0 {
		t.Skip("Slurm's servers are started as root only")
	}
	// munge insists on folders that nobody else can write to.
	dir, err := os.MkdirTemp("/run", "cftune-slurm-")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	require.NoError(t, os.Chmod(dir, 0o755))
	c := &cluster{t: t, dir: dir, conf: filepath.Join(dir, "slurm.conf")}
	key := make([]byte, 128)
	_, err = rand.Read(key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "munge.key"), key, 0o400))
	host, err := os.Hostname()
	require.NoError(t, err)
	conf := strings.NewReplacer("DIR", dir, "HOST", host, "CTLPORT", fmt.Sprint(freePort(t)), "PORT1", fmt.Sprint(freePort(t)), "PORT2", fmt.Sprint(freePort(t))).Replace(slurmConf)
	require.NoError(t, os.WriteFile(c.conf, []byte(conf), 0o644))
	gres := "NodeName=n[1-2] Name=gpu File=/dev/null\n" // a device to be asked for; nothing computes on it
	require.NoError(t, os.WriteFile(filepath.Join(dir, "gres.conf"), []byte(gres), 0o644))
	for _, sub := range []string{"state", "tmp.n1", "tmp.n2"} { // nodes have a /tmp of their own each
		require.NoError(t, os.MkdirAll(filepath.Join(dir, sub), 0o700))
	}
	c.serve(munged, "--foreground", "--force", "--key-file="+dir+"/munge.key", "--socket="+dir+"/munge.socket", "--pid-file="+dir+"/munge.pid",
		"--log-file="+dir+"/munge.log", "--seed-file="+dir+"/munge.seed")
	require.Eventually(t, func() bool { _, err := os.Stat(dir + "/munge.socket"); return err == nil }, 20*time.Second, 20*time.Millisecond, "munged")
	c.serve(ctld, "-D", "-f", c.conf)
	for _, node := range []string{"n1", "n2"} {
		c.serve(slurmd, "-D", "-f", c.conf, "-N", node)
	}
	require.Eventually(t, func() bool {
		out, err := c.try("sinfo", "--noheader", "--format=%D %t")
		return err == nil && strings.TrimSpace(out) == "2 idle"
	}, time.Minute, 100*time.Millisecond, "the nodes are not idle")
	t.Cleanup(func() { // nothing is left running, whatever failed
		_, _ = c.try("scancel", "--state=PENDING", "--user=root")
		_, _ = c.try("scancel", "--signal=KILL", "--full", "--user=root")
		assert.Eventually(t, func() bool {
			out, err := c.try("squeue", "--noheader", "--states=RUNNING,COMPLETING")
			return err == nil && out == ""
		}, time.Minute, 100*time.Millisecond, "jobs are left")
	})
	return c
}

// slurmConf: work is tracked by process, nothing is accounted, a job that is queued again waits for seconds only. Jobs of the
// partition "urgent" take the nodes of others.
const slurmConf = `ClusterName=t
SlurmctldHost=HOST(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=DIR/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation=DIR/state
SlurmdSpoolDir=DIR/spool.%n
TmpFS=DIR/tmp.%n
SlurmctldLogFile=DIR/ctld.log
SlurmdLogFile=DIR/d.%n.log
SlurmctldPidFile=DIR/ctld.pid
SlurmdPidFile=DIR/d.%n.pid
SlurmctldPort=CTLPORT
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
MpiDefault=none
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
MailProg=/bin/true
NodeName=n1 NodeHostname=HOST NodeAddr=127.0.0.1 Port=PORT1 CPUs=1 RealMemory=1000 Gres=gpu:1 State=UNKNOWN
NodeName=n2 NodeHostname=HOST NodeAddr=127.0.0.1 Port=PORT2 CPUs=1 RealMemory=1000 Gres=gpu:1 State=UNKNOWN
PartitionName=p Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10
`

// serve starts a server that the test's end ends.
func (c *cluster) serve(program string, args ...string) {
	c.t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "SLURM_CONF="+c.conf)
	log, err := os.CreateTemp(c.dir, "*.out")
	require.NoError(c.t, err)
	cmd.Stdout, cmd.Stderr = log, log
	require.NoError(c.t, cmd.Start())
	c.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		log.Close()
		if text, err := os.ReadFile(log.Name()); err == nil && c.t.Failed() {
			c.t.Logf("%s:\n%s", program, lastPart(string(text)))
		}
	})
}

func lastPart(text string) string { return text[max(0, len(text)-3000):] }

func (c *cluster) try(program string, args ...string) (string, error) {
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), "SLURM_CONF="+c.conf)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

func (c *cluster) must(program string, args ...string) string {
	c.t.Helper()
	out, err := c.try(program, args...)
	require.NoError(c.t, err, "%s %v: %s", program, args, out)
	return out
}

// slurmPlace is a place whose target "cluster" is the cluster; its folder has a name that a shell would run.
func slurmPlace(t *testing.T, c *cluster, more string) (p *place, folder string) {
	p = newPlace(t)
	p.env = append(p.env, "SLURM_CONF="+c.conf, "TOKEN_OF_TEST="+rand.Text())
	folder = filepath.Join(p.dir, "shared $(touch pwned) 'q'")
	p.write("hosts.yaml", fmt.Sprintf(`targets:
  cluster:
    kind: slurm
    folder: "%s"
    retries: 0
    secrets: [TOKEN_OF_TEST]
    env: {CFTUNE_CACHE: %s}
    slurm: {partition: p, cpus: 1, requeue: true%s}
`, folder, filepath.Join(p.dir, "cache"), more))
	return p, folder
}

// becomes waits until a run is in one of the phases.
func (p *place) becomes(name string, phases ...string) string {
	p.t.Helper()
	var phase string
	require.Eventually(p.t, func() bool {
		phase, _ = p.phase(name)
		for _, want := range phases {
			if phase == want {
				return true
			}
		}
		return false
	}, launchTimeout, 200*time.Millisecond, "%s never became %v, it is %s\n%s", name, phases, phase, p.must("launch", "status", name).out)
	return phase
}

// jobOf returns the number of a run's job.
func (p *place) jobOf(name string) string {
	p.t.Helper()
	var s struct {
		SlurmJob string `json:"slurm_job"`
	}
	require.NoError(p.t, json.Unmarshal([]byte(p.must("launch", "status", name, "--json").out), &s))
	require.NotEmpty(p.t, s.SlurmJob)
	return s.SlurmJob
}

func TestLaunchOnSlurm(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	p, folder := slurmPlace(t, c, "")
	const epochs, steps = 120, 2880 // a quick machine takes some seconds for them
	p.config("straight", epochs)
	p.config("long", epochs)
	p.must("train", "--config", "straight.yaml")
	secret := p.env[len(p.env)-1][len("TOKEN_OF_TEST="):]
	metrics := filepath.Join(p.dir, "runs", "long", "metrics.jsonl")
	turn := func(why string, attempts int, disturb ...string) {
		t.Helper()
		lines := strings.Count(readText(t, metrics), "\n")
		p.await(metrics, lines+20)
		c.must(disturb[0], disturb[1:]...)
		require.Eventually(t, func() bool { _, n := p.phase("long"); return n > attempts }, launchTimeout, 200*time.Millisecond, why)
	}

	// The nodes are others': the run waits, is taken out, and comes back.
	for range 2 {
		c.must("sbatch", "--job-name=other", "--output=/dev/null", "--wrap=sleep 600")
	}
	r := p.must("launch", "-c", "long.yaml", "--on", "cluster", "--detach")
	assert.Contains(t, r.err, "ok    Slurm")
	p.becomes("long", "pending")
	assert.Contains(t, p.must("launch", "-c", "long.yaml", "--on", "cluster", "--detach").err, "long is pending already")
	assert.Contains(t, p.must("launch", "stop", "long").out, "cancelled")
	c.must("scancel", "--name=other")
	p.must("launch", "resume", "long", "--detach")
	p.becomes("long", "running")
	p.await(metrics, 20)
	assertSecretKept(t, secret, "TOKEN_OF_TEST")

	// Preempted by Slurm; then its time is up; then it is stopped. Each time it goes on from where it was.
	turn("preempted", 1, "sbatch", "--partition=urgent", "--nodes=2", "--ntasks=2", "--job-name=urgent", "--output=/dev/null", "--wrap=sleep 1")
	turn("its time was up", 2, "scancel", "--batch", "--signal=USR1", p.jobOf("long"))
	p.await(metrics, strings.Count(readText(t, metrics), "\n")+20)
	assert.Contains(t, p.must("launch", "stop", "long").out, "stopped")
	phase, _ := p.phase("long")
	require.Equal(t, "stopped", phase)
	r = p.must("launch", "-c", "long.yaml", "--on", "cluster")
	assert.Contains(t, r.err, "long is done")
	_, attempts := p.phase("long")
	assert.Equal(t, 4, attempts)
	require.Equal(t, p.manifest("runs/straight", steps), p.manifest("runs/long", steps), "to the same bits")
	assert.Contains(t, p.must("launch", "-c", "long.yaml", "--on", "cluster").err, "long is done already")

	assertPrivate(t, folder)
	testfiles.AssertNowhere(t, secret, folder, filepath.Join(p.dir, "home"), filepath.Join(p.dir, "state"), filepath.Join(p.dir, "runs"))
	p.must("launch", "remove", "long")
	assert.NoDirExists(t, filepath.Join(folder, "runs", "long"))
	assert.NoFileExists(t, filepath.Join(p.dir, "pwned"))
}

func readText(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	return string(text)
}

func TestLaunchArrayOnSlurm(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	p, _ := slurmPlace(t, c, ", array_limit: 2")
	p.config("straight", 2)
	p.must("train", "--config", "straight.yaml")
	args := []string{"launch", "--on", "cluster"}
	names := []string{"rate-1", "rate-2", "rate-3"}
	for _, name := range names {
		args = append(args, "-c", p.config(name, 2))
	}
	r := p.must(args...)
	assert.Equal(t, strings.Join(names, "\n")+"\n", r.out)
	for _, name := range names {
		assert.Equal(t, "done", p.becomes(name, "done", "failed", "lost", "stopped"))
		assert.Equal(t, p.manifest("runs/straight", 48), p.manifest("runs/"+name, 48))
	}
	assert.Equal(t, 2, p.run(args...).code, "what is done is left out by name")

	// What is no resource of the cluster is refused before anything is queued.
	p.config("other", 1)
	text := strings.Replace(readText(t, filepath.Join(p.dir, "hosts.yaml")), "cpus: 1", "cpus: 64", 1)
	p.write("hosts.yaml", text)
	r = p.run("launch", "-c", "other.yaml", "--on", "cluster")
	assert.Equal(t, 5, r.code)
	assert.Contains(t, r.err, "cluster cannot take the run: Slurm: ")
	assert.Equal(t, "", c.must("squeue", "--noheader"))
}

// Processes on two nodes, found by srun, train what mpirun's would; they save when they are stopped or lose their nodes, and go on.
func TestLaunchSeveralProcessesOnSlurm(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	p, _ := slurmPlace(t, c, ", nodes: 2, gpus: 2, mem: 200M")
	hosts := readText(t, filepath.Join(p.dir, "hosts.yaml"))
	p.write("hosts.yaml", strings.Replace(hosts, "kind: slurm", "kind: slurm\n    processes: 2", 1))
	const epochs, steps = 40, 480
	for _, name := range []string{"straight", "long"} {
		p.config(name, epochs)
		p.write(name+".yaml", strings.Replace(readText(t, filepath.Join(p.dir, name+".yaml")), "examples: 1", "packs: 2", 1))
	}
	p.must("train", "--config", "straight.yaml", "--processes", "2")
	metrics := filepath.Join(p.dir, "runs", "long", "metrics.jsonl")
	p.must("launch", "-c", "long.yaml", "--on", "cluster", "--detach")
	p.await(metrics, 20)
	assert.Equal(t, "n[1-2]", strings.TrimSpace(c.must("squeue", "--noheader", "--Format=NodeList", "--states=RUNNING")))
	assert.Contains(t, c.must("scontrol", "show", "job", p.jobOf("long")), "TresPerJob=gres:gpu:2")
	assert.Contains(t, p.must("launch", "stop", "long").out, "stopped")
	said := readText(t, filepath.Join(p.dir, "shared $(touch pwned) 'q'", "runs", "long", "log.txt"))
	assert.Contains(t, said, "2 processes train together")
	assert.Contains(t, said, "interrupted: saving step")

	p.must("launch", "resume", "long", "--detach")
	p.await(metrics, strings.Count(readText(t, metrics), "\n")+20)
	c.must("sbatch", "--partition=urgent", "--nodes=2", "--ntasks=2", "--job-name=urgent", "--output=/dev/null", "--wrap=sleep 1")
	assert.Contains(t, p.must("launch", "follow", "long").err, "long is done")
	_, attempts := p.phase("long")
	assert.Equal(t, 3, attempts)
	require.Equal(t, p.manifest("runs/straight", steps), p.manifest("runs/long", steps), "to the same bits")
}

// The cluster is reached through its login host: what is sent there by ssh is what the nodes run.
func TestLaunchOnSlurmThroughALoginHost(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	s := startServer(t, "SetEnv SLURM_CONF="+c.conf)
	p := newPlace(t)
	const epochs, steps = 120, 2880
	p.config("straight", epochs)
	p.config("far", epochs)
	p.must("train", "--config", "straight.yaml")
	secret := rand.Text()
	p.env = append(p.env, "TOKEN_OF_TEST="+secret)
	folder := filepath.Join(p.dir, "shared $(touch pwned) 'q'")
	hosts := s.target(s.known(t, "host_key"), folder, fmt.Sprintf("secrets: [TOKEN_OF_TEST]\n    env: {CFTUNE_CACHE: %s}\n    slurm: {partition: p, cpus: 1}", filepath.Join(p.dir, "cache")))
	p.write("hosts.yaml", strings.Replace(hosts, "kind: ssh", "kind: slurm", 1))
	r := p.must("launch", "-c", "far.yaml", "--on", "far", "--detach")
	assert.Contains(t, r.err, "ok    Slurm")
	metrics := filepath.Join(folder, "runs", "far", "run", "metrics.jsonl")
	p.await(metrics, 20)
	assertSecretKept(t, secret, "TOKEN_OF_TEST")
	assert.Contains(t, p.must("launch", "stop", "far").out, "stopped")
	assert.Contains(t, p.must("launch", "resume", "far").err, "far is done")
	assert.Contains(t, p.must("launch", "fetch", "far").err, "verified")
	require.Equal(t, p.manifest("runs/straight", steps), p.manifest("runs/far", steps), "to the same bits")
	assertPrivate(t, folder)
	testfiles.AssertNowhere(t, secret, folder, filepath.Join(p.dir, "home"), filepath.Join(p.dir, "state"), filepath.Join(p.dir, "runs"))
	p.must("launch", "remove", "far")
	assert.NoFileExists(t, filepath.Join(p.dir, "pwned"))
}

// Slurm's own clock: a run saves before its time is up and takes another turn, and one that could not save is told as such. Slurm counts in
// minutes, so this takes some.
func TestSlurmsTimeIsUp(t *testing.T) {
	t.Parallel()
	if os.Getenv("SOAK_SLURM") == "" {
		t.Skip("SOAK_SLURM is not set: this takes minutes, and make soak runs it")
	}
	c := startCluster(t)
	p, folder := slurmPlace(t, c, `, time: "1", stop_before: 30`)
	p.config("long", 20_000)
	metrics := filepath.Join(p.dir, "runs", "long", "metrics.jsonl")
	p.must("launch", "-c", "long.yaml", "--on", "cluster", "--detach")
	require.Eventually(t, func() bool { _, n := p.phase("long"); return n == 2 }, launchTimeout, time.Second, "another turn")
	log := filepath.Join(folder, "runs", "long", "log.txt")
	assert.Contains(t, readText(t, log), "interrupted: saving step")
	assert.Contains(t, readText(t, log), "the time was up; the run is saved and waits for another turn")
	p.await(metrics, strings.Count(readText(t, metrics), "\n")+20)

	// One that stands still, though Slurm wakes what is stopped, can neither save nor answer: Slurm kills it, and says why.
	pid := trainingOf(t, filepath.Join(folder, "runs", "long"))
	thawed := make(chan struct{})
	go func() {
		defer close(thawed)
		for syscall.Kill(pid, syscall.SIGSTOP) == nil {
			time.Sleep(time.Millisecond)
		}
	}()
	assert.Equal(t, "failed", p.becomes("long", "failed", "lost", "stopped", "done"))
	<-thawed
	r := p.run("launch", "follow", "long")
	assert.Equal(t, 1, r.code)
	assert.Contains(t, r.err, "the time was up before the run had saved and ended: raise slurm.stop_before or slurm.time")
	assert.Contains(t, r.err, "the last lines of its log there:")
	p.must("check", "runs/long")
}

// A job that Slurm kills before the run can save is told with the end of its log, and goes on when asked.
func TestLaunchTellsWhatHappenedOnSlurm(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	p, _ := slurmPlace(t, c, "")
	p.config("straight", 120)
	p.config("killed", 120)
	p.must("train", "--config", "straight.yaml")
	p.must("launch", "-c", "killed.yaml", "--on", "cluster", "--detach")
	metrics := filepath.Join(p.dir, "runs", "killed", "metrics.jsonl")
	p.await(metrics, 20)
	c.must("scancel", "--batch", "--signal=KILL", p.jobOf("killed"))
	p.becomes("killed", "failed", "lost", "stopped")
	r := p.run("launch", "follow", "killed")
	assert.Equal(t, 1, r.code)
	assert.Contains(t, r.err, "the last lines of its log there:")
	assert.Contains(t, r.err, "cftune launch resume killed starts it again")
	require.Eventually(t, func() bool { return p.run("launch", "resume", "killed").code == 0 }, launchTimeout, time.Second)
	require.Equal(t, p.manifest("runs/straight", 2880), p.manifest("runs/killed", 2880))
}
