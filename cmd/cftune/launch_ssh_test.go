//go:build linux

package main

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/ssh"
	"golang.org/x/crypto/ssh/agent"

	"cftune/internal/testfiles"
)

// server is a real sshd on loopback, for this user, with keys of its own.
type server struct {
	port int
	pid  int
	dir  string
}

// startServer starts one and ends it with the test. more are lines of its configuration.
func startServer(t *testing.T, more ...string) *server {
	t.Helper()
	sshd, err := exec.LookPath("sshd")
	if err != nil {
		sshd = "/usr/sbin/sshd"
	}
	if _, err := os.Stat(sshd); err != nil {
		t.Skip("no sshd on this machine (scripts/install-deps installs openssh-server)")
	}
	if os.Geteuid() == 0 {
		require.NoError(t, os.MkdirAll("/run/sshd", 0o755)) // it insists, as root
	}
	s := &server{dir: t.TempDir()}
	for _, name := range []string{"host_key", "user_key"} {
		keygen(t, filepath.Join(s.dir, name), "")
	}
	keygen(t, filepath.Join(s.dir, "locked_key"), "passphrase")
	var authorized []byte
	for _, name := range []string{"user_key.pub", "locked_key.pub"} {
		text, err := os.ReadFile(filepath.Join(s.dir, name))
		require.NoError(t, err)
		authorized = append(authorized, text...)
	}
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "authorized"), authorized, 0o600))
	s.port = freePort(t)
	config := strings.Join(more, "\n") + fmt.Sprintf("\nPort %d\nListenAddress 127.0.0.1\nHostKey %s/host_key\nAuthorizedKeysFile %s/authorized\nStrictModes no\nUsePAM no\nPidFile none\nPasswordAuthentication no\nSubsystem sftp internal-sftp\n",
		s.port, s.dir, s.dir)
	require.NoError(t, os.WriteFile(filepath.Join(s.dir, "sshd_config"), []byte(config), 0o600))
	cmd := exec.Command(sshd, "-D", "-e", "-f", filepath.Join(s.dir, "sshd_config"))
	var log bytes.Buffer
	cmd.Stderr = &log
	require.NoError(t, cmd.Start())
	s.pid = cmd.Process.Pid
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
		if t.Failed() {
			t.Logf("sshd:\n%s", &log)
		}
	})
	awaitPort(t, s.port)
	return s
}

func keygen(t *testing.T, path, passphrase string) {
	t.Helper()
	out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", passphrase, "-f", path).CombinedOutput()
	require.NoError(t, err, "%s", out)
}

var givenPorts sync.Map // tests run side by side, and nobody listens yet at the ports that one was given

func freePort(t *testing.T) int {
	t.Helper()
	for {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port := l.Addr().(*net.TCPAddr).Port
		require.NoError(t, l.Close())
		if _, given := givenPorts.LoadOrStore(port, true); !given {
			return port
		}
	}
}

func awaitPort(t *testing.T, port int) {
	t.Helper()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
		if err == nil {
			c.Close()
		}
		return err == nil
	}, 20*time.Second, 20*time.Millisecond, "nothing listens on port %d", port)
}

// known writes a known_hosts file with the given key for the server.
func (s *server) known(t *testing.T, key string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "known_hosts")
	if key == "" {
		return path
	}
	text, err := os.ReadFile(filepath.Join(s.dir, key+".pub"))
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(path, []byte(fmt.Sprintf("[127.0.0.1]:%d %s", s.port, text)), 0o600))
	return path
}

// dropConnections ends the server's processes for connections, as a network that breaks would.
func (s *server) dropConnections(t *testing.T) int {
	t.Helper()
	dropped := 0
	for _, pid := range childrenOf(t, s.pid) {
		if syscall.Kill(pid, syscall.SIGKILL) == nil {
			dropped++
		}
	}
	return dropped
}

// target describes the server in a file of targets. folder may be any text.
func (s *server) target(known, folder, more string) string {
	return fmt.Sprintf(`targets:
  far:
    kind: ssh
    host: 127.0.0.1
    port: %d
    identity: [%s/user_key]
    known_hosts: %s
    ssh_config: /dev/null
    folder: '%s'
    retries: 0
    %s
`, s.port, s.dir, known, strings.ReplaceAll(folder, "'", "''"), more)
}

func TestLaunchRefusesUnknownHosts(t *testing.T) {
	s := startServer(t)
	p := newPlace(t)
	p.config("a", 1)
	folder := filepath.Join(p.dir, "far")
	fingerprint, err := exec.Command("ssh-keygen", "-l", "-f", filepath.Join(s.dir, "host_key.pub")).Output()
	require.NoError(t, err)
	want := strings.Fields(string(fingerprint))[1]

	p.write("hosts.yaml", s.target(s.known(t, ""), folder, ""))
	r := p.run("launch", "-c", "a.yaml", "--on", "far")
	assert.Equal(t, 1, r.code)
	assert.Contains(t, r.err, "is unknown")
	assert.Contains(t, r.err, want, "the key that was shown")
	assert.Contains(t, r.err, "ssh-keyscan -p "+strconv.Itoa(s.port))

	p.write("hosts.yaml", s.target(s.known(t, "user_key"), folder, ""))
	r = p.run("launch", "-c", "a.yaml", "--on", "far")
	assert.Equal(t, 1, r.code)
	assert.Contains(t, r.err, "has changed")
	assert.Contains(t, r.err, want)
	assert.NoDirExists(t, folder)
}

func TestLaunchKeysAndJumps(t *testing.T) {
	s := startServer(t)
	p := newPlace(t)
	p.config("a", 1)
	known, folder := s.known(t, "host_key"), filepath.Join(p.dir, "far")
	locked := strings.ReplaceAll(s.target(known, folder, ""), "user_key", "locked_key")
	p.write("hosts.yaml", locked)
	r := p.run("launch", "-c", "a.yaml", "--on", "far", "--dry-run")
	assert.NotZero(t, r.code)
	assert.Contains(t, r.err, "is encrypted: ssh-add")

	// The agent has the key, and the way leads through the server to itself.
	text, err := os.ReadFile(filepath.Join(s.dir, "locked_key"))
	require.NoError(t, err)
	key, err := ssh.ParseRawPrivateKeyWithPassphrase(text, []byte("passphrase"))
	require.NoError(t, err)
	ring := agent.NewKeyring()
	require.NoError(t, ring.Add(agent.AddedKey{PrivateKey: key}))
	socket := filepath.Join(t.TempDir(), "agent")
	l, err := net.Listen("unix", socket)
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for c, err := l.Accept(); err == nil; c, err = l.Accept() {
			go func() { _ = agent.ServeAgent(ring, c) }()
		}
	}()
	p.env = append(p.env, "SSH_AUTH_SOCK="+socket)
	p.write("ssh_config", fmt.Sprintf("Host gpu\n  HostName 127.0.0.1\n  Port %d\n  ProxyJump 127.0.0.1:%d\n", s.port, s.port))
	p.write("hosts.yaml", strings.NewReplacer("host: 127.0.0.1", "host: gpu", fmt.Sprintf("    port: %d\n", s.port), "", "/dev/null", filepath.Join(p.dir, "ssh_config")).Replace(locked))
	r = p.run("launch", "-c", "a.yaml", "--on", "far", "--dry-run")
	require.Zero(t, r.code, r.err)
	assert.Contains(t, r.out, "on gpu, folder "+folder)
}

// The folder's name is one that a shell would read as a command, and the run is disturbed in every way.
func TestLaunchOverSSH(t *testing.T) {
	t.Parallel()
	s := startServer(t)
	p := newPlace(t)
	const epochs, steps = 120, 2880
	p.config("straight", epochs)
	p.config("launched", epochs)
	p.must("train", "--config", "straight.yaml")
	secret := rand.Text()
	p.env = append(p.env, "TOKEN_OF_TEST="+secret)
	folder := filepath.Join(p.dir, `far $(touch pwned) 'q' "d" ; touch pwned`)
	p.write("hosts.yaml", s.target(s.known(t, "host_key"), folder, "secrets: [TOKEN_OF_TEST]\n    env: {CFTUNE_CACHE: "+filepath.Join(p.dir, "cache")+"}"))

	r := p.must("launch", "-c", "launched.yaml", "--on", "far", "--dry-run")
	assert.NoDirExists(t, folder)
	assert.NotContains(t, r.out+r.err, secret)
	r = p.must("launch", "-c", "launched.yaml", "--on", "far", "--detach")
	assert.Contains(t, r.err, fmt.Sprintf("%d steps over %d examples", steps, steps))
	said := r.out + r.err
	job := filepath.Join(folder, "runs", "launched")
	p.await(filepath.Join(job, "run", "metrics.jsonl"), 20)
	assertSecretKept(t, secret, "TOKEN_OF_TEST")
	signalTraining(t, job, syscall.SIGSTOP) // a quick machine would be done before it is disturbed

	// It is followed over a connection that breaks, then a second start finds it running.
	follow := exec.Command(p.program, "launch", "follow", "launched")
	follow.Dir, follow.Env = p.dir, p.env
	var followed lockedBuffer
	follow.Stderr = &followed
	require.NoError(t, follow.Start())
	followedLine := func(text string) {
		t.Helper()
		require.Eventually(t, func() bool { return strings.Contains(followed.String(), text) }, time.Minute, 20*time.Millisecond, "%q", text)
	}
	followedLine("launched is running")
	require.Positive(t, s.dropConnections(t))
	followedLine("the connection is lost")
	signalTraining(t, job, syscall.SIGCONT)
	r = p.must("launch", "stop", "launched")
	assert.Contains(t, r.out, "stopped")
	followedLine("launched is stopped")
	require.Error(t, follow.Wait())
	assert.Equal(t, 1, follow.ProcessState.ExitCode(), "a run that was stopped did not end well")
	assert.Contains(t, followed.String(), "the last lines of its log there")
	phase, attempts := p.phase("launched")
	require.Equal(t, "stopped", phase)
	require.Equal(t, 1, attempts)

	// It goes on to the very end of the undisturbed run, is fetched and verified.
	r = p.must("launch", "-c", "launched.yaml", "--on", "far")
	assert.Contains(t, r.err, "launched is done")
	r = p.must("launch", "fetch", "launched")
	assert.Equal(t, "runs/launched\n", r.out)
	assert.Contains(t, r.err, "verified")
	require.Equal(t, p.manifest("runs/straight", steps), p.manifest("runs/launched", steps))
	assert.NotContains(t, p.must("launch", "fetch", "launched").err, "fetching", "it is here already")
	p.must("check", "runs/launched")

	assertPrivate(t, folder)
	testfiles.AssertNowhere(t, secret, folder, filepath.Join(p.dir, "home"), filepath.Join(p.dir, "state"), filepath.Join(p.dir, "runs"))
	assert.NotContains(t, said, secret)
	for _, dir := range []string{p.dir, folder, job} {
		assert.NoFileExists(t, filepath.Join(dir, "pwned"))
	}
	p.must("launch", "remove", "launched")
	assert.NoDirExists(t, job)
	assert.Equal(t, 2, p.run("launch", "status", "launched").code, "it is forgotten")
}

// assertSecretKept wants the secret in no command line of the machine, and in the environment of a process that trains.
func assertSecretKept(t *testing.T, secret, name string) {
	t.Helper()
	trains := 0
	eachProcess(t, func(pid int, dir string) {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil {
			return // it has ended
		}
		assert.NotContains(t, string(line), secret, "the command line of %d", pid)
		if !bytes.Contains(line, []byte("--or-resume")) {
			return
		}
		if environ, err := os.ReadFile(filepath.Join(dir, "environ")); err == nil && bytes.Contains(environ, []byte(name+"="+secret)) {
			trains++
		}
	})
	assert.Equal(t, 1, trains, "processes that train with the secret")
}

// trainingOf finds the process that trains the run in a job's folder.
func trainingOf(t *testing.T, job string) int {
	t.Helper()
	return processOf(t, "--or-resume", job)
}

// processOf finds the process with a word and a job's folder in its command line.
func processOf(t *testing.T, word, job string) int {
	t.Helper()
	var found []int
	eachProcess(t, func(pid int, dir string) {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err == nil && bytes.Contains(line, []byte(word)) && bytes.Contains(line, []byte(job)) {
			found = append(found, pid)
		}
	})
	require.Len(t, found, 1, "processes at work in %s", job)
	return found[0]
}

func signalTraining(t *testing.T, job string, signal syscall.Signal) {
	t.Helper()
	require.NoError(t, syscall.Kill(trainingOf(t, job), signal))
}

// assertPrivate wants everything below a folder to be for its owner alone.
func assertPrivate(t *testing.T, folder string) {
	t.Helper()
	require.NoError(t, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := d.Info()
		if err == nil && d.Type()&fs.ModeSymlink == 0 {
			assert.Zero(t, info.Mode().Perm()&0o077, "%s has mode %v", path, info.Mode())
		}
		return err
	}))
}
