package kube

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	ktesting "k8s.io/client-go/testing"
	"k8s.io/client-go/tools/remotecommand"
	kexec "k8s.io/client-go/util/exec"

	"cftune/trainer/launch"
)

// hereExec runs commands on this machine, as in a pod's container.
func hereExec(ctx context.Context, _, _, _ string, command []string, o remotecommand.StreamOptions) error {
	cmd := exec.CommandContext(ctx, command[0], command[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = o.Stdin, o.Stdout, o.Stderr
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return kexec.CodeExitError{Err: err, Code: exit.ExitCode()}
	}
	return err
}

func TestFilesOfPods(t *testing.T) {
	h := podHost{&Cluster{exec: hereExec}, "p", trainContainer}
	dir := filepath.Join(t.TempDir(), "it's $(touch pwned) -n")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "step-1"), 0o700))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a b;c"), []byte("0123456789"), 0o600))

	infos, err := h.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, infos, 2)
	assert.Equal(t, "a b;c", infos[0].Name())
	assert.Equal(t, int64(10), infos[0].Size())
	assert.True(t, infos[0].Mode().IsRegular())
	assert.True(t, infos[1].IsDir())
	empty, err := h.ReadDir(filepath.Join(dir, "step-1"))
	require.NoError(t, err)
	assert.Empty(t, empty)
	for _, missing := range []func() error{
		func() error { _, err := h.ReadDir(filepath.Join(dir, "none")); return err },
		func() error { _, err := h.Stat(filepath.Join(dir, "none")); return err },
		func() error { _, err := h.Open(filepath.Join(dir, "none")); return err },
	} {
		assert.ErrorIs(t, missing(), fs.ErrNotExist)
	}

	f, err := h.Open(filepath.Join(dir, "a b;c"))
	require.NoError(t, err)
	_, err = f.Seek(4, io.SeekStart)
	require.NoError(t, err)
	text, err := io.ReadAll(f)
	require.NoError(t, err)
	assert.Equal(t, "456789", string(text))
	require.NoError(t, f.Close())
	f, err = h.Open(filepath.Join(dir, "a b;c"))
	require.NoError(t, err)
	require.NoError(t, os.Remove(filepath.Join(dir, "a b;c")))
	_, err = io.ReadAll(f)
	assert.ErrorContains(t, err, "read "+filepath.Join(dir, "a b;c"), "a file that goes meanwhile is no short file")
	require.NoError(t, f.Close())

	_, err = h.Run(t.Context(), "echo why >&2; exit 3", nil, nil)
	var exit *launch.ExitError
	require.ErrorAs(t, err, &exit)
	assert.Equal(t, 3, exit.Code)
	assert.Contains(t, exit.Stderr, "why")
	assert.NoFileExists(t, "pwned")
	_, err = h.WriteFrom("x", 0)
	assert.Error(t, err)
}

// A claim is read through the pod that trains, or one that is made for it and removed; never with secrets or a device.
func TestFetchingFromAClaim(t *testing.T) {
	b := newTestbed(t, "job")
	b.exec = hereExec
	require.NoError(t, b.Apply(t.Context(), b.m))
	var made *corev1.Pod
	b.fake.PrependReactor("create", "pods", func(a ktesting.Action) (bool, runtime.Object, error) {
		u := a.(ktesting.CreateAction).GetObject().(*unstructured.Unstructured)
		if u.GetGenerateName() == "" {
			return false, nil, nil // the test's own
		}
		made = &corev1.Pod{}
		require.NoError(t, runtime.DefaultUnstructuredConverter.FromUnstructured(u.Object, made))
		u.SetName(made.GenerateName + "x")
		require.NoError(t, unstructured.SetNestedField(u.Object, "Running", "status", "phase"))
		return false, nil, nil
	})
	_, err := b.Fetch(t.Context(), "first", filepath.Join(t.TempDir(), "out"), false, t.Logf)
	assert.ErrorContains(t, err, "the run has not begun: /data/cftune/runs/first/run on pod cftune-first-fetch-x", "which is looked for, and not here")
	require.NotNil(t, made)
	spec := made.Spec
	assert.Equal(t, []string{"sleep", "3600"}, spec.Containers[0].Command)
	assert.Empty(t, spec.Containers[0].EnvFrom)
	assert.Empty(t, spec.Containers[0].Resources.Limits)
	assert.Len(t, spec.Containers[0].Env, 1, "HOME")
	assert.Positive(t, *spec.ActiveDeadlineSeconds)
	_, err = b.of(podsOf).Get(t.Context(), "cftune-first-fetch-x", metav1.GetOptions{})
	assert.True(t, apierrors.IsNotFound(err), "it is removed")

	made = nil
	b.pod("p", 0, running)
	_, err = b.Fetch(t.Context(), "first", filepath.Join(t.TempDir(), "out"), false, t.Logf)
	assert.ErrorContains(t, err, "on pod p")
	assert.Nil(t, made, "the pod that trains serves")

	// Without a claim there is nothing to be read once the pod is gone.
	b = newTestbed(t, "jobset")
	b.exec = hereExec
	require.NoError(t, b.Apply(t.Context(), b.m))
	_, err = b.Fetch(t.Context(), "first", filepath.Join(t.TempDir(), "out"), false, t.Logf)
	assert.ErrorContains(t, err, "is gone; what there is lies in the run's mirror")
}
