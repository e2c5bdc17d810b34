package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"strconv"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/httpstream"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	kexec "k8s.io/client-go/util/exec"

	"cftune/internal/spell"
	"cftune/trainer/launch"
)

// execSource runs a command in a pod's container.
type execSource func(ctx context.Context, namespace, pod, container string, command []string, o remotecommand.StreamOptions) error

// openExec makes one by websockets, and where a server or a proxy does not know these, by SPDY, as kubectl does.
func openExec(config *rest.Config) (execSource, error) {
	client, err := coreClient(config)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, namespace, pod, container string, command []string, o remotecommand.StreamOptions) error {
		r := client.Post().Namespace(namespace).Resource("pods").Name(pod).SubResource("exec").Param("container", container).
			Param("stdin", strconv.FormatBool(o.Stdin != nil)).Param("stdout", "true").Param("stderr", "true")
		for _, word := range command {
			r = r.Param("command", word)
		}
		web, err := remotecommand.NewWebSocketExecutor(config, "GET", r.URL().String())
		if err != nil {
			return err
		}
		spdy, err := remotecommand.NewSPDYExecutor(config, "POST", r.URL())
		if err != nil {
			return err
		}
		e, err := remotecommand.NewFallbackExecutor(web, spdy, func(err error) bool {
			return httpstream.IsUpgradeFailure(err) || httpstream.IsHTTPSProxyError(err)
		})
		if err != nil {
			return err
		}
		return e.StreamWithContext(ctx, o)
	}, nil
}

// podHost reads files in a pod's container, by its own sh, stat, tail and sha256sum. It writes nothing.
type podHost struct {
	c         *Cluster
	pod       string
	container string
}

var _ launch.Host = podHost{}

// notThere is the exit code by which scripts say that there is no such file.
const notThere = 44

func (h podHost) Name() string { return "pod " + h.pod }
func (h podHost) Close() error { return nil }

func (h podHost) Run(ctx context.Context, script string, input []byte, _ map[string]string) ([]byte, error) {
	var out, errs bytes.Buffer
	o := remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}
	if len(input) > 0 {
		o.Stdin = bytes.NewReader(input)
	}
	err := h.c.exec(ctx, h.c.Namespace, h.pod, h.container, []string{"sh", "-c", script}, o)
	var exit kexec.CodeExitError
	if errors.As(err, &exit) {
		return out.Bytes(), &launch.ExitError{Host: h.Name(), Code: exit.Code, Stderr: errs.String()}
	}
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", h.Name(), err)
	}
	return out.Bytes(), nil
}

// fileInfo is what stat says of a file.
type fileInfo struct {
	name string
	size int64
	mode fs.FileMode
	time time.Time
}

func (f fileInfo) Name() string       { return f.name }
func (f fileInfo) Size() int64        { return f.size }
func (f fileInfo) Mode() fs.FileMode  { return f.mode }
func (f fileInfo) ModTime() time.Time { return f.time }
func (f fileInfo) IsDir() bool        { return f.mode.IsDir() }
func (f fileInfo) Sys() any           { return nil }

// statFormat is what parseStat reads: size, mode in hexadecimal, time, name.
const statFormat = "stat -L -c '%s %f %Y %n' -- "

func parseStat(line string) (fileInfo, error) {
	const kindMask, folder, plain = 0xf000, 0x4000, 0x8000
	fields := strings.SplitN(line, " ", 4)
	if len(fields) != 4 {
		return fileInfo{}, fmt.Errorf("stat answers %q", line)
	}
	size, err := strconv.ParseInt(fields[0], 10, 64)
	mode, err2 := strconv.ParseUint(fields[1], 16, 32)
	seconds, err3 := strconv.ParseInt(fields[2], 10, 64)
	if err := errors.Join(err, err2, err3); err != nil {
		return fileInfo{}, fmt.Errorf("stat answers %q: %w", line, err)
	}
	f := fileInfo{name: path.Base(fields[3]), size: size, mode: fs.FileMode(mode & 0o777), time: time.Unix(seconds, 0)}
	switch mode & kindMask {
	case folder:
		f.mode |= fs.ModeDir
	case plain:
	default:
		f.mode |= fs.ModeIrregular
	}
	return f, nil
}

// ask runs a script that says with an exit code of its own that a file is not there.
func (h podHost) ask(op, file, script string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), requestTimeout)
	defer cancel()
	out, err := h.Run(ctx, script, nil, nil)
	var exit *launch.ExitError
	if errors.As(err, &exit) && exit.Code == notThere {
		err = fs.ErrNotExist
	}
	if err != nil {
		return "", &fs.PathError{Op: op, Path: file, Err: err}
	}
	return string(out), nil
}

func (h podHost) Stat(file string) (fs.FileInfo, error) {
	q := spell.Quote(file)
	out, err := h.ask("stat", file, fmt.Sprintf("[ -e %s ] || exit %d; %s%s", q, notThere, statFormat, q))
	if err != nil {
		return nil, err
	}
	return parseStat(strings.TrimSuffix(out, "\n"))
}

func (h podHost) ReadDir(dir string) ([]fs.FileInfo, error) {
	out, err := h.ask("readdir", dir, fmt.Sprintf("cd -- %s 2>/dev/null || exit %d; for f in *; do [ ! -e \"$f\" ] || %s\"$f\" || exit; done", spell.Quote(dir), notThere, statFormat))
	if err != nil {
		return nil, err
	}
	var infos []fs.FileInfo
	for line := range strings.Lines(out) {
		f, err := parseStat(strings.TrimSuffix(line, "\n"))
		if err != nil {
			return nil, &fs.PathError{Op: "readdir", Path: dir, Err: err}
		}
		infos = append(infos, f)
	}
	return infos, nil
}

func (h podHost) Open(file string) (launch.ReadFile, error) {
	info, err := h.Stat(file)
	if err != nil {
		return nil, err
	}
	return &podFile{h: h, path: file, size: info.Size()}, nil
}

var errReadOnly = errors.New("files of a pod are only read")

func (podHost) WriteFrom(string, int64) (io.WriteCloser, error) { return nil, errReadOnly }
func (podHost) MkdirAll(string) error                           { return errReadOnly }
func (podHost) Rename(string, string) error                     { return errReadOnly }
func (podHost) Remove(string) error                             { return errReadOnly }
func (podHost) Chmod(string, fs.FileMode) error                 { return errReadOnly }
func (podHost) Symlink(string, string) error                    { return errReadOnly }

// podFile is read from an offset to its end by one command.
type podFile struct {
	h      podHost
	path   string
	size   int64
	offset int64
	r      *io.PipeReader
	cancel context.CancelFunc
}

// Seek says where reading begins. It comes before reading.
func (f *podFile) Seek(offset int64, whence int) (int64, error) {
	switch {
	case f.r != nil:
		return 0, errors.New("seek: the file is being read")
	case whence == io.SeekEnd:
		offset += f.size
	case whence == io.SeekCurrent:
		offset += f.offset
	}
	f.offset = offset
	return offset, nil
}

func (f *podFile) Read(p []byte) (int, error) {
	if f.r == nil {
		ctx, cancel := context.WithCancel(context.Background())
		r, w := io.Pipe()
		f.r, f.cancel = r, cancel
		go func() {
			var errs bytes.Buffer
			err := f.h.c.exec(ctx, f.h.c.Namespace, f.h.pod, f.h.container,
				[]string{"tail", "-c", fmt.Sprintf("+%d", f.offset+1), "--", f.path}, remotecommand.StreamOptions{Stdout: w, Stderr: &errs})
			if err != nil {
				err = fmt.Errorf("in %s: read %s: %w: %s", f.h.Name(), f.path, err, strings.TrimSpace(errs.String()))
			}
			w.CloseWithError(err) // nil is the end of the file
		}()
	}
	return f.r.Read(p)
}

func (f *podFile) Close() error {
	if f.r == nil {
		return nil
	}
	f.cancel()
	return f.r.Close()
}

// Fetch brings a run's checkpoints from its claim, through the pod that trains or one that is made for it.
func (c *Cluster) Fetch(ctx context.Context, name, output string, all bool, say func(format string, args ...any)) (steps []string, err error) {
	run, _, err := c.RunOf(ctx, name)
	if err != nil {
		return nil, err
	}
	h, done, err := c.reader(ctx, name, say)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, done()) }()
	return launch.FetchRun(ctx, h, name, run.Output, output, all, say)
}

const (
	readerLife    = 3600 // seconds after which a pod that reads ends, should nobody remove it
	readerPatient = 5 * time.Minute
)

// reader is a pod in which a run's files are read. done removes it if it was made.
func (c *Cluster) reader(ctx context.Context, name string, say func(format string, args ...any)) (h podHost, done func() error, err error) {
	pods, err := c.pods(ctx, name)
	if err != nil {
		return h, nil, err
	}
	for _, p := range c.trainers(pods) {
		if p.Status.Phase == corev1.PodRunning && p.DeletionTimestamp == nil {
			return podHost{c, p.Name, logContainer(p)}, func() error { return nil }, nil
		}
	}
	if folder, kept := c.target.KubernetesFolder(); !kept {
		return h, nil, &launch.UsageError{Err: fmt.Errorf("the run directory was in its pod, in %s, and is gone; what there is lies in the run's mirror", folder)}
	}
	made, err := within(ctx, "create a pod that reads the claim", func(ctx context.Context) (*unstructured.Unstructured, error) {
		object, err := runtime.DefaultUnstructuredConverter.ToUnstructured(c.readerPod(name))
		if err != nil {
			return nil, err
		}
		unstructured.RemoveNestedField(object, "status")
		prune(object)
		return c.of(podsOf).Create(ctx, &unstructured.Unstructured{Object: object}, created)
	})
	if err != nil {
		return h, nil, err
	}
	say("pod %s reads the claim", made.GetName())
	done = func() error {
		now := int64(0)
		// Also after an interrupt.
		_, err := within(context.WithoutCancel(ctx), "remove pod "+made.GetName(), func(ctx context.Context) (any, error) {
			return nil, c.of(podsOf).Delete(ctx, made.GetName(), metav1.DeleteOptions{GracePeriodSeconds: &now})
		})
		return err
	}
	if err := c.awaitPod(ctx, made.GetName()); err != nil {
		return h, nil, errors.Join(err, done())
	}
	return podHost{c, made.GetName(), trainContainer}, done, nil
}

// readerPod is like those that train, but for the device, the secrets, and what it does.
func (c *Cluster) readerPod(name string) *corev1.Pod {
	folder, kept := c.target.KubernetesFolder()
	r := &renderer{t: c.target, k: c.target.Kubernetes, m: &Manifests{Name: name, Namespace: c.Namespace}, folder: folder, kept: kept}
	r.k.GPUs, r.k.CPU, r.k.Memory, r.k.SSHSecret = 0, "", "", ""
	r.k.SecretEnv, r.k.SecretEnvFrom, r.t.Env = nil, nil, nil
	template := r.pod(partHelper, []string{"sleep", strconv.Itoa(readerLife)})
	life := int64(readerLife)
	template.Spec.ActiveDeadlineSeconds = &life
	p := &corev1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, ObjectMeta: template.ObjectMeta, Spec: template.Spec}
	p.GenerateName, p.Namespace = ObjectName(name)+"-fetch-", c.Namespace
	return p
}

// awaitPod waits until a pod runs.
func (c *Cluster) awaitPod(ctx context.Context, name string) error {
	for deadline := time.Now().Add(readerPatient); ; {
		u, err := within(ctx, "look for pod "+name, func(ctx context.Context) (*unstructured.Unstructured, error) {
			return c.of(podsOf).Get(ctx, name, metav1.GetOptions{})
		})
		if err != nil {
			return err
		}
		var p corev1.Pod
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, &p); err != nil {
			return err
		}
		_, _, is := stuckIn(p)
		switch {
		case p.Status.Phase == corev1.PodRunning:
			return nil
		case p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded:
			return errors.New(howEnded(p))
		case is || time.Now().After(deadline):
			return fmt.Errorf("pod %s does not run: %s", name, waiting(p))
		}
		if err := c.pause(ctx); err != nil {
			return err
		}
	}
}
