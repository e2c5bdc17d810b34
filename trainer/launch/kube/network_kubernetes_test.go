//go:build kubernetes

package kube

import (
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// podNetwork is a bridge for pods. It lies in a network namespace that a process holds: with the process, which ends with the
// test in any case, the bridge and all links are gone.
type podNetwork struct {
	t      *testing.T
	holder *exec.Cmd
	last   netip.Addr
	links  int
}

const (
	podRange   = "10.77.0.1/16" // with the bridge's address
	podNetBits = "/16"
)

func startNetwork(t *testing.T) *podNetwork {
	t.Helper()
	n := &podNetwork{t: t, holder: exec.Command("sleep", "infinity"), last: netip.MustParsePrefix(podRange).Addr()}
	n.holder.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET, Pdeathsig: syscall.SIGKILL}
	require.NoError(t, n.holder.Start(), "a network namespace")
	t.Cleanup(func() {
		_ = n.holder.Process.Kill()
		_ = n.holder.Wait()
	})
	require.NoError(t, n.inside("ip link set lo up; ip link add pods type bridge; ip addr add "+podRange+" dev pods; ip link set pods up"))
	return n
}

// inside runs a shell's words where the bridge is.
func (n *podNetwork) inside(words string) error {
	out, err := exec.Command("nsenter", "-n", "-t", strconv.Itoa(n.holder.Process.Pid), "sh", "-ec", words).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", words, err, out)
	}
	return nil
}

// join links a process's network namespace to the bridge, as eth0, and returns the link's name and the address that it is to take.
func (n *podNetwork) join(pid int) (link string, address netip.Addr) {
	n.t.Helper()
	n.last, n.links = n.last.Next(), n.links+1
	link = "pod" + strconv.Itoa(n.links)
	require.NoError(n.t, n.inside(fmt.Sprintf("ip link add %s type veth peer name eth0 netns %d; ip link set %s master pods up", link, pid, link)))
	return link, n.last
}

// cut is a cable that is pulled: the other side hears nothing.
func (n *podNetwork) cut(link string) { require.NoError(n.t, n.inside("ip link del "+link)) }

// answers reports whether a port of a pod takes connections from the node.
func (n *podNetwork) answers(address netip.Addr, port int) bool {
	return n.inside(fmt.Sprintf("bash -c 'exec 3<>/dev/tcp/%s/%d'", address, port)) == nil
}

// resolve plays the cluster's DNS: each pod's hosts file has the names of all. The files are written in place, where the
// pods have them.
func resolve(t *testing.T, pods []*podProcess) {
	t.Helper()
	for _, reader := range pods {
		text := "127.0.0.1 localhost\n"
		for _, p := range pods {
			var names []string
			if p.subdomain != "" {
				name := p.host + "." + p.subdomain
				names = append(names, name+"."+namespaceHere+".svc.cluster.local", name)
			}
			if p == reader {
				names = append(names, p.host)
			}
			if len(names) > 0 {
				text += fmt.Sprintf("%s %s\n", p.address, strings.Join(names, " "))
			}
		}
		require.NoError(t, os.WriteFile(reader.hosts, []byte(text), 0o644))
	}
}
