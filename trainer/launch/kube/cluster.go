package kube

import (
	"context"
	"errors"
	"fmt"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"cftune/trainer/launch"
)

// resources are those of the workloads' kinds.
var resources = map[string]schema.GroupVersionResource{
	launch.WorkloadJob:      {Group: "batch", Version: "v1", Resource: "jobs"},
	launch.WorkloadJobSet:   {Group: "jobset.x-k8s.io", Version: "v1alpha2", Resource: "jobsets"},
	launch.WorkloadTrainJob: {Group: runtimeGroup, Version: "v1alpha1", Resource: "trainjobs"},
}

// Cluster is a namespace of a cluster, and the kind of workloads that are made there.
type Cluster struct {
	Namespace string
	// Server is its address, for people.
	Server string
	target launch.TargetConfig
	client dynamic.Interface
	logs   logSource
	exec   execSource
	poll   time.Duration
}

// What is looked at beside the workloads.
var (
	configMaps = schema.GroupVersionResource{Version: "v1", Resource: "configmaps"}
	podsOf     = schema.GroupVersionResource{Version: "v1", Resource: "pods"}
	claims     = schema.GroupVersionResource{Version: "v1", Resource: "persistentvolumeclaims"}
)

// requestTimeout bounds each request but those that follow a log.
const requestTimeout = 30 * time.Second

// clientConfig is how a cluster is reached, by kubectl's rules.
func clientConfig(k launch.Kubernetes) clientcmd.ClientConfig {
	rules := clientcmd.NewDefaultClientConfigLoadingRules()
	rules.ExplicitPath = k.Kubeconfig
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(rules, &clientcmd.ConfigOverrides{CurrentContext: k.Context})
}

// Namespace is where a target's runs are: as it says, else as its context does.
func Namespace(t launch.TargetConfig) (string, error) {
	if t.Kubernetes.Namespace != "" {
		return t.Kubernetes.Namespace, nil
	}
	namespace, _, err := clientConfig(t.Kubernetes).Namespace()
	if err != nil {
		return "", &launch.UsageError{Err: fmt.Errorf("target %s: kubeconfig: %w", t.Name(), err)}
	}
	return namespace, nil
}

// Open makes the clients of a target's cluster. No request is sent.
func Open(t launch.TargetConfig) (*Cluster, error) {
	config, err := clientConfig(t.Kubernetes).ClientConfig()
	if err != nil {
		return nil, &launch.UsageError{Err: fmt.Errorf("target %s: kubeconfig: %w", t.Name(), err)}
	}
	namespace, err := Namespace(t)
	if err != nil {
		return nil, err
	}
	config.UserAgent = fieldManager
	// Warnings would be printed by the library; what matters comes as errors, since fields are validated strictly.
	config.WarningHandler = rest.NoWarnings{}
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name(), err)
	}
	logs, err := openLogs(config)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name(), err)
	}
	exec, err := openExec(config)
	if err != nil {
		return nil, fmt.Errorf("target %s: %w", t.Name(), err)
	}
	return &Cluster{Namespace: namespace, Server: config.Host, target: t, client: client, logs: logs, exec: exec, poll: time.Second}, nil
}

func (c *Cluster) of(r schema.GroupVersionResource) dynamic.ResourceInterface {
	return c.client.Resource(r).Namespace(c.Namespace)
}

func (c *Cluster) workloads() dynamic.ResourceInterface {
	return c.of(resources[c.target.Kubernetes.Form()])
}

// within runs a request with its time limit, and says what it was for.
func within[T any](ctx context.Context, what string, request func(ctx context.Context) (T, error)) (T, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	v, err := request(ctx)
	if err != nil {
		err = fmt.Errorf("%s: %w", what, err)
	}
	return v, err
}

// workload returns a run's workload, nil if there is none.
func (c *Cluster) workload(ctx context.Context, name string) (*unstructured.Unstructured, error) {
	u, err := within(ctx, "look for "+ObjectName(name), func(ctx context.Context) (*unstructured.Unstructured, error) {
		return c.workloads().Get(ctx, ObjectName(name), metav1.GetOptions{})
	})
	if apierrors.IsNotFound(err) {
		return nil, nil
	}
	return u, err
}

// created is how everything is created: a field that the server does not know is an error.
var created = metav1.CreateOptions{FieldManager: fieldManager, FieldValidation: metav1.FieldValidationStrict}

// Check asks the server whether it would take the manifests, and looks for what they name. Nothing is changed.
func (c *Cluster) Check(ctx context.Context, m *Manifests) []launch.Finding {
	var findings []launch.Finding
	options := created
	options.DryRun = []string{metav1.DryRunAll}
	if err := c.create(ctx, m, options); err != nil && !apierrors.IsAlreadyExists(err) {
		way := "the account needs the rights to create and read ConfigMaps, pods, logs, events and " + resources[m.Form].Resource + " in the namespace"
		if apierrors.IsNotFound(err) {
			way = "the namespace must exist, and the cluster must have " + resources[m.Form].String()
		}
		return append(findings, launch.Finding{Level: launch.LevelFail, What: "manifests", Found: err.Error(), WayOut: way})
	}
	findings = append(findings, launch.Finding{Level: launch.LevelOK, What: "manifests", Found: fmt.Sprintf("%s takes them, in namespace %s", c.Server, c.Namespace)})
	for i, v := range c.target.Kubernetes.Volumes {
		_, err := within(ctx, "claim "+v.Claim, func(ctx context.Context) (any, error) {
			return c.of(claims).Get(ctx, v.Claim, metav1.GetOptions{})
		})
		findings = append(findings, found(fmt.Sprintf("volume %d", i+1), "claim "+v.Claim+" is there", err, "a PersistentVolumeClaim of that name must be made first"))
	}
	return findings
}

// found is a finding about something that must be there, and may not be ours to look at.
func found(what, ok string, err error, wayOut string) launch.Finding {
	switch {
	case err == nil:
		return launch.Finding{Level: launch.LevelOK, What: what, Found: ok}
	case apierrors.IsForbidden(err):
		return launch.Finding{Level: launch.LevelWarn, What: what, Found: "not to be looked at by this account"}
	}
	return launch.Finding{Level: launch.LevelFail, What: what, Found: err.Error(), WayOut: wayOut}
}

func (c *Cluster) create(ctx context.Context, m *Manifests, options metav1.CreateOptions) error {
	list, err := m.objects()
	if err != nil {
		return err
	}
	_, err = within(ctx, "create ConfigMap "+list[0].GetName(), func(ctx context.Context) (any, error) {
		return c.of(configMaps).Create(ctx, list[0], options)
	})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return err
	}
	_, err = within(ctx, "create "+m.Form+" "+list[1].GetName(), func(ctx context.Context) (any, error) {
		return c.workloads().Create(ctx, list[1], options)
	})
	return err
}

// Apply creates a run. One of the same name that is there with the same manifests is left as it is, which is not an error;
// with others it is.
func (c *Cluster) Apply(ctx context.Context, m *Manifests) error {
	if err := c.clearStale(ctx, m); err != nil {
		return err
	}
	err := c.create(ctx, m, created)
	if apierrors.IsAlreadyExists(err) {
		return c.Same(ctx, m)
	}
	return err
}

// clearStale removes a ConfigMap that was left by a run which is gone.
func (c *Cluster) clearStale(ctx context.Context, m *Manifests) error {
	old, err := within(ctx, "look for ConfigMap "+ObjectName(m.Name), func(ctx context.Context) (*unstructured.Unstructured, error) {
		return c.of(configMaps).Get(ctx, ObjectName(m.Name), metav1.GetOptions{})
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil || old.GetAnnotations()[digestNote] == m.Digest {
		return err
	}
	if u, err := c.workload(ctx, m.Name); err != nil || u != nil {
		return errors.Join(err, c.Same(ctx, m))
	}
	if old.GetLabels()[labelRun] != m.Name {
		return &launch.UsageError{Err: fmt.Errorf("there is a ConfigMap %s in namespace %s that is no run's: --name gives the run another name", ObjectName(m.Name), c.Namespace)}
	}
	_, err = within(ctx, "remove an old ConfigMap", func(ctx context.Context) (any, error) {
		return nil, c.of(configMaps).Delete(ctx, ObjectName(m.Name), metav1.DeleteOptions{})
	})
	return err
}

// Same refuses manifests where a run of that name is there with others.
func (c *Cluster) Same(ctx context.Context, m *Manifests) error {
	u, err := c.workload(ctx, m.Name)
	if err != nil || u == nil {
		return err
	}
	if u.GetAnnotations()[digestNote] != m.Digest {
		return &launch.UsageError{Err: fmt.Errorf("a run of this name is there with another configuration, data file or target; --name begins another, cftune launch remove %s forgets it", m.Name)}
	}
	return nil
}

// Stop lets a run's pods save and end, and waits for them. The workload stays, suspended.
func (c *Cluster) Stop(ctx context.Context, name string) (launch.State, error) {
	s, err := c.Status(ctx, name)
	if err != nil || s.Phase == launch.PhaseNew || s.Phase == launch.PhaseDone || s.Phase == launch.PhaseFailed {
		return s, err
	}
	if err := c.suspend(ctx, name, true); err != nil {
		return s, err
	}
	grace := time.Duration(c.target.Kubernetes.GraceSeconds()) * time.Second
	for deadline := time.Now().Add(grace + time.Minute); ; {
		pods, err := c.pods(ctx, name)
		if err != nil {
			return s, err
		}
		if s, err = c.Status(ctx, name); err != nil || active(pods) == 0 && launch.Over(s.Phase) {
			return s, err
		}
		if time.Now().After(deadline) {
			return s, fmt.Errorf("%s was told to end more than %v ago, and %d pods are still there: kubectl -n %s get pods -l %s=%s", name, grace, active(pods), c.Namespace, labelRun, name)
		}
		if err := c.pause(ctx); err != nil {
			return s, err
		}
	}
}

func (c *Cluster) suspend(ctx context.Context, name string, suspend bool) error {
	_, err := within(ctx, "suspend or resume "+ObjectName(name), func(ctx context.Context) (any, error) {
		return c.workloads().Patch(ctx, ObjectName(name), types.MergePatchType, fmt.Appendf(nil, `{"spec":{"suspend":%t}}`, suspend), metav1.PatchOptions{FieldManager: fieldManager})
	})
	return err
}

func (c *Cluster) pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(c.poll):
		return nil
	}
}

// Resume starts a run again that is suspended or over. A failed workload is for good, and so is one that limits.max_time has ended: another
// takes its place, with the same manifest.
func (c *Cluster) Resume(ctx context.Context, name string) error {
	u, err := c.workload(ctx, name)
	if err != nil {
		return err
	}
	if u == nil {
		return &launch.UsageError{Err: fmt.Errorf("there is no run %s in namespace %s of %s", name, c.Namespace, c.Server)}
	}
	if suspended, _, _ := unstructured.NestedBool(u.Object, "spec", "suspend"); suspended {
		return c.suspend(ctx, name, false)
	}
	s, err := c.Status(ctx, name)
	if err != nil {
		return err
	}
	again := s.Phase == launch.PhaseFailed
	if s.Phase == launch.PhaseDone {
		// The cluster does not know whether the limit has ended it. Where it has not, the run says that it is done, and no more.
		run, _, err := c.RunOf(ctx, name)
		if err != nil {
			return err
		}
		again = run.Limits.MaxTime != ""
	}
	if !again {
		return nil
	}
	if err := c.removeWorkload(ctx, name); err != nil {
		return err
	}
	_, err = within(ctx, "create "+u.GetName()+" again", func(ctx context.Context) (any, error) {
		return c.workloads().Create(ctx, reborn(u), created)
	})
	return err
}

// reborn is a workload as it was created, without what the server and its controllers have added.
func reborn(u *unstructured.Unstructured) *unstructured.Unstructured {
	n := u.DeepCopy()
	meta := map[string]any{"name": u.GetName(), "namespace": u.GetNamespace()}
	n.Object["metadata"] = meta
	n.SetLabels(u.GetLabels())
	n.SetAnnotations(u.GetAnnotations())
	notes := n.GetAnnotations()
	delete(notes, "batch.kubernetes.io/job-tracking")
	n.SetAnnotations(notes)
	delete(n.Object, "status")
	if n.GetKind() != "Job" {
		return n
	}
	unstructured.RemoveNestedField(n.Object, "spec", "selector")
	unstructured.RemoveNestedField(n.Object, "spec", "manualSelector")
	for _, label := range []string{"controller-uid", "job-name", "batch.kubernetes.io/controller-uid", "batch.kubernetes.io/job-name"} {
		unstructured.RemoveNestedField(n.Object, "spec", "template", "metadata", "labels", label)
	}
	return n
}

// removeWorkload deletes a workload with its pods, and waits until both are gone: two pods must not share a run directory.
func (c *Cluster) removeWorkload(ctx context.Context, name string) error {
	foreground := metav1.DeletePropagationForeground
	_, err := within(ctx, "remove "+ObjectName(name), func(ctx context.Context) (any, error) {
		return nil, c.workloads().Delete(ctx, ObjectName(name), metav1.DeleteOptions{PropagationPolicy: &foreground})
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	grace := time.Duration(c.target.Kubernetes.GraceSeconds()) * time.Second
	for deadline := time.Now().Add(grace + time.Minute); ; {
		u, err := c.workload(ctx, name)
		if err != nil {
			return err
		}
		pods, err := c.pods(ctx, name)
		if err != nil || u == nil && active(pods) == 0 {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%s is still there %v after it was deleted", ObjectName(name), grace+time.Minute)
		}
		if err := c.pause(ctx); err != nil {
			return err
		}
	}
}

// Remove removes all of a run that is over from the cluster; what lies on claims and in mirrors stays.
func (c *Cluster) Remove(ctx context.Context, name string) error {
	s, err := c.Status(ctx, name)
	if err != nil {
		return err
	}
	if !launch.Over(s.Phase) {
		return fmt.Errorf("it is %s: cftune launch stop ends it first", s.Phase)
	}
	if err := c.removeWorkload(ctx, name); err != nil {
		return err
	}
	_, err = within(ctx, "remove ConfigMap "+ObjectName(name), func(ctx context.Context) (any, error) {
		return nil, c.of(configMaps).Delete(ctx, ObjectName(name), metav1.DeleteOptions{})
	})
	if apierrors.IsNotFound(err) {
		return nil
	}
	return err
}
