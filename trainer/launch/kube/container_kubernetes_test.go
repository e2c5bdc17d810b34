//go:build kubernetes

package kube

import (
	"context"
	"encoding/base64"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"time"

	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// The image of the containers: this machine's /usr, which cannot be written to, and what configs/docker adds to Debian's.
const (
	imagePath   = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
	imageUsers  = "root:x:0:0:root:/root:/bin/sh\nsshd:x:100:65534::/run/sshd:/usr/sbin/nologin\ncftune:x:1000:1000::/home/cftune:/bin/sh\n"
	imageGroups = "root:x:0:\nnogroup:x:65534:\ncftune:x:1000:\n"
)

// enter is what a container runtime does before a container's process, which takes the shell's place as the first of its
// namespaces. Its arguments are the root folder, the host's name, the address, then the command.
const enter = `
read -r address
root=$1 host=$2; shift 2
mount --make-rprivate /
hostname "$host"
ip link set lo up
ip addr add "$address" dev eth0
ip link set eth0 up
mount --bind "$root" "$root"
cd "$root"
while read -r how from to; do
    mount --bind "$from" ".$to"
    [ "$how" = rw ] || mount -o remount,bind,ro ".$to"
done <mounts
for node in null zero full random urandom tty; do
    : >"dev/$node"
    mount --bind "/dev/$node" "dev/$node"
done
mount -t tmpfs -o nosuid,nodev,noexec,mode=1777,size=64m shm dev/shm
mount -t sysfs -o ro,nosuid,nodev,noexec sysfs sys
mount -t proc -o nosuid,nodev,noexec proc proc
pivot_root . .
umount -l .
mount -o remount,bind,ro /
cd /tmp
echo made >&3
exec "$@" </dev/null 3>&-
`

// unprivileged starts a command as a pod's user, with no rights that it could get.
func unprivileged(user int64) []string {
	id := strconv.FormatInt(user, 10)
	return []string{"setpriv", "--reuid", id, "--regid", id, "--groups", id, "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", "--"}
}

// contain makes a container of a pod, in namespaces of its own, and starts it.
func (k *kubelet) contain(ctx context.Context, p corev1.Pod, proc *podProcess) {
	c := p.Spec.Containers[0]
	user := *p.Spec.SecurityContext.RunAsUser
	require.True(k.t, *c.SecurityContext.ReadOnlyRootFilesystem && *p.Spec.SecurityContext.RunAsNonRoot)
	proc.root, proc.user = filepath.Join(proc.dir, "root"), user
	proc.host, proc.subdomain = p.Spec.Hostname, p.Spec.Subdomain
	if proc.host == "" {
		proc.host = p.Name
	}
	mounts := k.image(proc.root)
	proc.hosts = filepath.Join(proc.root, "etc", "hosts")
	for _, m := range c.VolumeMounts {
		i := slices.IndexFunc(p.Spec.Volumes, func(v corev1.Volume) bool { return v.Name == m.Name })
		from, writable := k.volume(ctx, p, p.Spec.Volumes[i], proc)
		how := "ro"
		if writable && !m.ReadOnly {
			how = "rw"
		}
		require.NoError(k.t, os.MkdirAll(filepath.Join(proc.root, m.MountPath), 0o755))
		mounts += fmt.Sprintf("%s %s %s\n", how, from, m.MountPath)
	}
	require.NoError(k.t, os.WriteFile(filepath.Join(proc.root, "mounts"), []byte(mounts), 0o644))
	proc.cmd = exec.Command("sh", slices.Concat([]string{"-ec", enter, "sh", proc.root, proc.host}, unprivileged(user), c.Command)...)
	proc.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL,
		Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWNS | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC}
	proc.cmd.Env = append(k.environment(ctx, p), "PATH="+imagePath, "HOSTNAME="+proc.host)
	proc.cmd.Dir = proc.dir
	input, err := proc.cmd.StdinPipe()
	require.NoError(k.t, err)
	made, told, err := os.Pipe()
	require.NoError(k.t, err)
	defer made.Close()
	proc.cmd.ExtraFiles = []*os.File{told}
	k.run(proc)
	told.Close()
	proc.link, proc.address = k.network.join(proc.cmd.Process.Pid)
	k.pods[p.UID] = proc
	k.resolveAll()
	_, err = fmt.Fprintf(input, "%s%s\n", proc.address, podNetBits)
	require.NoError(k.t, err)
	if _, err := made.Read(make([]byte, 1)); err != nil {
		<-proc.ended
		text, _ := os.ReadFile(proc.log())
		k.t.Errorf("container of %s: %s", p.Name, text)
	}
}

// resolveAll tells all pods each other's names.
func (k *kubelet) resolveAll() {
	var live []*podProcess
	for _, p := range k.pods {
		select {
		case <-p.ended:
		default:
			live = append(live, p)
		}
	}
	resolve(k.t, live)
}

// image makes a container's root folder, and returns what is mounted into it.
func (k *kubelet) image(root string) (mounts string) {
	for _, dir := range []string{"dev/shm", "etc", "home/cftune", "local/bin", "opt/cftune/bin", "opt/cftune/native/lib", "proc", "run", "sys", "usr", "var"} {
		require.NoError(k.t, os.MkdirAll(filepath.Join(root, dir), 0o755))
	}
	for name, to := range map[string]string{"bin": "usr/bin", "sbin": "usr/sbin", "lib": "usr/lib", "lib64": "usr/lib64",
		"dev/fd": "/proc/self/fd", "local/bin/cftune": "/opt/cftune/bin/cftune"} {
		require.NoError(k.t, os.Symlink(to, filepath.Join(root, name)))
	}
	for name, text := range map[string]string{"passwd": imageUsers, "group": imageGroups, "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n"} {
		require.NoError(k.t, os.WriteFile(filepath.Join(root, "etc", name), []byte(text), 0o644))
	}
	out, err := exec.Command("cp", "-a", "/etc/alternatives", "/etc/openmpi", "/etc/ld.so.cache", filepath.Join(root, "etc")).CombinedOutput()
	require.NoError(k.t, err, "%s", out)
	build := filepath.Dir(filepath.Dir(k.program))
	return fmt.Sprintf("ro /usr /usr\nro %s /usr/local\nro %s /opt/cftune/bin\nro %s /opt/cftune/native/lib\n", filepath.Join(root, "local"),
		filepath.Join(build, "bin"), filepath.Join(build, "native", "lib"))
}

// volume makes a volume's folder, with owner and modes as a kubelet gives them for fsGroup.
func (k *kubelet) volume(ctx context.Context, p corev1.Pod, v corev1.Volume, proc *podProcess) (path string, writable bool) {
	group := int(*p.Spec.SecurityContext.FSGroup)
	path = filepath.Join(proc.dir, "volumes", v.Name)
	switch {
	case v.ConfigMap != nil:
		k.project(path, k.data(ctx, configMaps, p.Namespace, v.ConfigMap.Name), group, *v.ConfigMap.DefaultMode)
		return path, false
	case v.Secret != nil:
		k.project(path, k.data(ctx, secrets, p.Namespace, v.Secret.SecretName), group, *v.Secret.DefaultMode)
		return path, false
	case v.EmptyDir != nil:
		require.NoError(k.t, os.MkdirAll(path, 0o777))
	case v.PersistentVolumeClaim != nil:
		path = k.claims[v.PersistentVolumeClaim.ClaimName]
		require.NotEmpty(k.t, path, "claim %s", v.PersistentVolumeClaim.ClaimName)
		if v.PersistentVolumeClaim.ReadOnly {
			return path, false
		}
	}
	info, err := os.Stat(path)
	require.NoError(k.t, err)
	if info.Sys().(*syscall.Stat_t).Gid != uint32(group) { // OnRootMismatch
		require.NoError(k.t, filepath.WalkDir(path, func(name string, d fs.DirEntry, err error) error {
			require.NoError(k.t, err)
			require.NoError(k.t, os.Lchown(name, 0, group))
			if d.IsDir() {
				return os.Chmod(name, os.ModeSetgid|0o775)
			}
			return os.Chmod(name, 0o664)
		}))
	}
	return path, true
}

var secrets = schema.GroupVersionResource{Version: "v1", Resource: "secrets"}

// data is what a ConfigMap or a Secret holds.
func (k *kubelet) data(ctx context.Context, of schema.GroupVersionResource, namespace, name string) map[string][]byte {
	u, err := k.owner.Resource(of).Namespace(namespace).Get(ctx, name, metav1.GetOptions{})
	require.NoError(k.t, err)
	files := map[string][]byte{}
	text, _, _ := unstructured.NestedStringMap(u.Object, "data")
	binary, _, _ := unstructured.NestedStringMap(u.Object, "binaryData")
	for key, value := range text {
		files[key] = []byte(value)
		if of == secrets {
			binary = text
		}
	}
	for key, value := range binary {
		files[key], err = base64.StdEncoding.DecodeString(value)
		require.NoError(k.t, err)
	}
	return files
}

// project lays files down as Kubernetes does: links to links to files of root's, which the pod's group may read.
func (k *kubelet) project(path string, files map[string][]byte, group int, mode int32) {
	version := "..2026_11_26_00_00_00.0"
	require.NoError(k.t, os.MkdirAll(filepath.Join(path, version), 0o755))
	require.NoError(k.t, os.Symlink(version, filepath.Join(path, "..data")))
	for name, content := range files {
		file := filepath.Join(path, version, name)
		require.NoError(k.t, os.WriteFile(file, content, 0o600))
		require.NoError(k.t, os.Chown(file, 0, group))
		require.NoError(k.t, os.Chmod(file, fs.FileMode(mode)|0o440))
		require.NoError(k.t, os.Symlink("..data/"+name, filepath.Join(path, name)))
	}
}

// inContainer is a command in a pod's container.
func (p *podProcess) inContainer(words []string) *exec.Cmd {
	if p == nil || p.root == "" {
		return exec.Command(words[0], words[1:]...)
	}
	enter := []string{"-t", strconv.Itoa(p.cmd.Process.Pid), "-m", "-u", "-i", "-n", "-p", "-r", "-w", "--"}
	cmd := exec.Command("nsenter", slices.Concat(enter, unprivileged(p.user), words)...)
	cmd.Env = []string{"PATH=" + imagePath, "HOME=" + tempPath}
	return cmd
}

// ready asks a running pod's probe, if it has one, and tells the server when it is passed for the first time. Sooner than the
// probe says.
func (k *kubelet) ready(ctx context.Context, p corev1.Pod, proc *podProcess) {
	probe := p.Spec.Containers[0].ReadinessProbe
	if proc.ready || time.Since(proc.probed) < time.Second {
		return
	}
	proc.probed = time.Now()
	if probe != nil && !(k.network != nil && k.network.answers(proc.address, probe.TCPSocket.Port.IntValue())) {
		return
	}
	proc.ready = true
	k.say(ctx, p, corev1.PodRunning, p.Status.ContainerStatuses[0].State)
}

// setReady is the condition by which controllers count pods.
func setReady(p *corev1.Pod, ready bool) {
	status := corev1.ConditionFalse
	if ready {
		status = corev1.ConditionTrue
	}
	p.Status.Conditions = slices.DeleteFunc(p.Status.Conditions, func(c corev1.PodCondition) bool { return c.Type == corev1.PodReady })
	p.Status.Conditions = append(p.Status.Conditions, corev1.PodCondition{Type: corev1.PodReady, Status: status, LastTransitionTime: metav1.Now()})
}
