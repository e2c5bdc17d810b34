//go:build kubernetes

package kube

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/yaml"
)

// Accounts of the server: the owner of the cluster, and one who has the rights that docs/launch.md lists and no others.
const (
	ownerToken    = "owner-token-do-not-print"
	launcherToken = "launcher-token-do-not-print"
	namespaceHere = "training"
	serverTimeout = 3 * time.Minute // on a machine that is busy with other things
)

// servers are an etcd, a kube-apiserver and the controllers of jobs, on loopback.
type servers struct {
	t      *testing.T
	dir    string
	url    string
	config *rest.Config
	owner  dynamic.Interface
}

// program runs one until the test ends; what it says is kept in a file, and shown if the test fails.
func (s *servers) program(name, path string, env []string, args ...string) {
	s.t.Helper()
	log, err := os.Create(filepath.Join(s.dir, name+".log"))
	require.NoError(s.t, err)
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr, cmd.Dir, cmd.Env = log, log, s.dir, append(os.Environ(), env...)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	require.NoError(s.t, cmd.Start())
	ended := make(chan struct{})
	go func() { _ = cmd.Wait(); close(ended) }()
	s.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		if text, err := os.ReadFile(log.Name()); err == nil && s.t.Failed() {
			s.t.Logf("the end of %s.log:\n%s", name, text[max(0, len(text)-4000):])
		}
		log.Close()
	})
}

// freePorts finds ports of loopback that nobody has.
func freePorts(t *testing.T, n int) []int {
	t.Helper()
	var ports []int
	for range n {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		ports = append(ports, l.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

// startServers starts them, with a namespace and the launcher's account.
func startServers(t *testing.T) *servers {
	t.Helper()
	bin := os.Getenv("CFTUNE_KUBERNETES")
	if bin == "" {
		t.Skip("CFTUNE_KUBERNETES names no folder with kube-apiserver: scripts/test-kubernetes builds it")
	}
	s := &servers{t: t, dir: t.TempDir()}
	etcd := filepath.Join(bin, "etcd")
	if _, err := os.Stat(etcd); err != nil {
		etcd, err = exec.LookPath("etcd")
		require.NoError(t, err)
	}
	ports := freePorts(t, 3)
	client, peer := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	s.program("etcd", etcd, nil, "--data-dir", filepath.Join(s.dir, "etcd"), "--listen-client-urls", client, "--advertise-client-urls", client,
		"--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", "default="+peer)

	key, err := rsa.GenerateKey(rand.Reader, 2048)
	require.NoError(t, err)
	keyFile, tokens := filepath.Join(s.dir, "sa.key"), filepath.Join(s.dir, "tokens.csv")
	require.NoError(t, os.WriteFile(keyFile, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}), 0o600))
	require.NoError(t, os.WriteFile(tokens, fmt.Appendf(nil, "%s,owner,1,system:masters\n%s,launcher,2\n", ownerToken, launcherToken), 0o600))
	s.url = fmt.Sprintf("https://127.0.0.1:%d", ports[2])
	s.program("apiserver", filepath.Join(bin, "kube-apiserver"), nil,
		"--etcd-servers="+client, "--bind-address=127.0.0.1", "--advertise-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[2]),
		"--cert-dir="+filepath.Join(s.dir, "certs"), "--token-auth-file="+tokens, "--authorization-mode=RBAC",
		"--service-account-issuer=https://cftune.test", "--service-account-key-file="+keyFile, "--service-account-signing-key-file="+keyFile,
		"--service-cluster-ip-range=10.0.0.0/24", "--disable-admission-plugins=ServiceAccount", "--endpoint-reconciler-type=none",
		"--kubelet-preferred-address-types=InternalIP")
	ca := filepath.Join(s.dir, "certs", "apiserver.crt")
	s.config = &rest.Config{Host: s.url, BearerToken: ownerToken, TLSClientConfig: rest.TLSClientConfig{CAFile: ca}}
	s.until("the server answers", func() error {
		if _, err := os.Stat(ca); err != nil {
			return err
		}
		if s.owner, err = dynamic.NewForConfig(s.config); err != nil {
			return err
		}
		return s.create("v1", "namespaces", `{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "`+namespaceHere+`"}}`)
	})
	s.program("controllers", filepath.Join(bin, "controllers"), nil, s.kubeconfig("owner", ownerToken))
	s.rights()
	return s
}

// until waits for something to be so.
func (s *servers) until(what string, check func() error) {
	s.t.Helper()
	var err error
	for deadline := time.Now().Add(serverTimeout); time.Now().Before(deadline); time.Sleep(100 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	s.t.Fatalf("%s: not in %v: %v", what, serverTimeout, err)
}

// create makes an object, as the owner.
func (s *servers) create(version, resource, text string) error {
	s.t.Helper()
	u := &unstructured.Unstructured{}
	content, err := yaml.YAMLToJSON([]byte(text))
	require.NoError(s.t, err)
	require.NoError(s.t, u.UnmarshalJSON(content))
	gv := u.GroupVersionKind().GroupVersion()
	require.Equal(s.t, version, gv.String())
	r := s.owner.Resource(gv.WithResource(resource))
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	if u.GetNamespace() == "" {
		_, err = r.Create(ctx, u, created)
	} else {
		_, err = r.Namespace(u.GetNamespace()).Create(ctx, u, created)
	}
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// rights gives the launcher what docs/launch.md says that it needs.
func (s *servers) rights() {
	s.t.Helper()
	for resource, text := range map[string]string{
		"roles": `
apiVersion: rbac.authorization.k8s.io/v1
kind: Role
metadata: {name: launcher, namespace: training}
rules:
- {apiGroups: [batch], resources: [jobs], verbs: [get, create, patch, delete]}
- {apiGroups: [jobset.x-k8s.io], resources: [jobsets], verbs: [get, create, patch, delete]}
- {apiGroups: [""], resources: [configmaps], verbs: [get, create, delete]}
- {apiGroups: [""], resources: [pods], verbs: [list, get, create, delete]}
- {apiGroups: [""], resources: [pods/log], verbs: [get]}
- {apiGroups: [""], resources: [pods/exec], verbs: [get, create]}
`,
		"rolebindings": `
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: launcher, namespace: training}
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: Role, name: launcher}
subjects: [{apiGroup: rbac.authorization.k8s.io, kind: User, name: launcher}]
`,
	} {
		s.until(resource, func() error { return s.create("rbac.authorization.k8s.io/v1", resource, text) })
	}
}

// kubeconfig writes one for an account, and returns its path.
func (s *servers) kubeconfig(name, token string) string {
	s.t.Helper()
	path := filepath.Join(s.dir, name+".kubeconfig")
	text := fmt.Sprintf(`{apiVersion: v1, kind: Config, current-context: here, contexts: [{name: here, context: {cluster: here, user: me, namespace: %s}}],
 clusters: [{name: here, cluster: {server: '%s', certificate-authority: '%s'}}], users: [{name: me, user: {token: %s}}]}
`, namespaceHere, s.url, s.config.CAFile, token)
	require.NoError(s.t, os.WriteFile(path, []byte(text), 0o600))
	_, err := clientcmd.LoadFromFile(path)
	require.NoError(s.t, err)
	return path
}

// launched is a run of the program as a user's.
type launched struct {
	cmd    *exec.Cmd
	mutex  sync.Mutex
	output bytes.Buffer
	ended  chan error
}

func (l *launched) Write(p []byte) (int, error) {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.output.Write(p)
}

func (l *launched) text() string {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	return l.output.String()
}

// user starts the program in a folder.
func (s *servers) user(dir string, env []string, args ...string) *launched {
	s.t.Helper()
	l := &launched{cmd: exec.Command(os.Getenv("CFTUNE_PROGRAM"), args...), ended: make(chan error, 1)}
	l.cmd.Dir, l.cmd.Stdout, l.cmd.Stderr = dir, l, l
	l.cmd.Env = append([]string{"PATH=" + os.Getenv("PATH"), "HOME=" + dir, "XDG_STATE_HOME=" + filepath.Join(dir, "state")}, env...)
	l.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.t.Logf("$ cftune %s", strings.Join(args, " "))
	require.NoError(s.t, l.cmd.Start())
	go func() { l.ended <- l.cmd.Wait() }()
	return l
}

var stepLine = regexp.MustCompile(`^step (\d+)/`)

// brief leaves out most of the lines that tell of a step.
func brief(text string) string {
	var out strings.Builder
	before := ""
	for line := range strings.Lines(text) {
		step := stepLine.FindStringSubmatch(line)
		if step == nil && stepLine.MatchString(before) {
			out.WriteString(before) // the last one before something else
		}
		if step == nil {
			out.WriteString(line)
		} else if before == "" || !stepLine.MatchString(before) {
			out.WriteString(line + "...\n")
		}
		before = line
	}
	return out.String()
}

// wait returns what the program said and its exit code.
func (s *servers) wait(l *launched) (text string, code int) {
	s.t.Helper()
	select {
	case err := <-l.ended:
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			s.t.Fatal(err)
		}
	case <-time.After(serverTimeout):
		_ = l.cmd.Process.Kill()
		s.t.Fatalf("%v takes longer than %v:\n%s", l.cmd.Args, serverTimeout, l.text())
	}
	s.t.Logf("exit code %d\n%s", l.cmd.ProcessState.ExitCode(), brief(l.text()))
	return l.text(), l.cmd.ProcessState.ExitCode()
}
