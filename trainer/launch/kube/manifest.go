package kube

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"unicode/utf8"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/yaml"

	"cftune/trainer/config"
	"cftune/trainer/launch"
)

// Labels and annotations of what belongs to a run.
const (
	labelRun = "cftune.run"
	// labelPart tells the pod whose log is the run's from those that help it.
	labelPart      = "cftune.part"
	partTrainer    = "trainer"
	partHelper     = "helper"
	digestNote     = "cftune.config-sha256"
	outputNote     = "cftune.output"
	containerNote  = "kubectl.kubernetes.io/default-container"
	namePrefix     = "cftune-"
	maxNameLength  = 36 // with prefix, "-worker-0-1023" and what is added to pods, 63
	trainContainer = "train"
	fieldManager   = "cftune"
)

// Manifests are what a run is in the cluster.
type Manifests struct {
	Name      string
	Namespace string
	Form      string
	Digest    string
	ConfigMap *corev1.ConfigMap
	// Workload is a *batchv1.Job, a *jobsetv1alpha2.JobSet or a *TrainJob.
	Workload runtime.Object
}

// ObjectName is what a run's objects are called.
func ObjectName(name string) string { return namePrefix + name }

// CheckName refuses names of runs that cannot be names in a cluster.
func CheckName(name string) error {
	if !launch.KubernetesName.MatchString(name) || len(name) > maxNameLength {
		return &launch.UsageError{Err: fmt.Errorf("%q is no name in Kubernetes: small letters, digits and dashes, at most %d, beginning and ending with a letter or digit; --name gives the run another", name, maxNameLength)}
	}
	return nil
}

// Render makes the manifests of a run. namespace is that of the target's context, where the target names none.
func Render(t launch.TargetConfig, namespace, name string, run config.Run) (*Manifests, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	folder, kept := t.KubernetesFolder()
	if !kept && run.Checkpoint.Mirror == "" {
		return nil, &launch.UsageError{Err: fmt.Errorf("checkpoints in %s would go with the pod: mount a claim there (kubernetes.volumes of target %s), or set checkpoint.mirror", folder, t.Name())}
	}
	output := run.Output
	s, err := ship(t, run, path.Join(folder, "runs", name, "run"))
	if err != nil {
		return nil, err
	}
	m := &Manifests{Name: name, Namespace: namespace, Form: t.Kubernetes.Form()}
	if t.Kubernetes.Namespace != "" {
		m.Namespace = t.Kubernetes.Namespace
	}
	r := &renderer{t: t, k: t.Kubernetes, m: m, folder: folder, kept: kept, files: s.files, scraped: scraped(run.Metrics)}
	switch m.Form {
	case launch.WorkloadJobSet:
		m.Workload = r.jobSet()
	case launch.WorkloadTrainJob:
		m.Workload = r.trainJob()
	default:
		m.Workload = r.job()
	}
	m.ConfigMap = r.configMap(s.text)
	return m, m.seal(output)
}

// Bytes is an amount of memory in Kubernetes' words.
func Bytes(quantity string) (uint64, error) {
	q, err := resource.ParseQuantity(quantity)
	if err != nil || q.Value() <= 0 {
		return 0, fmt.Errorf("%q is no amount of memory: %w", quantity, err)
	}
	return uint64(q.Value()), nil
}

// seal notes the digest of all that makes the run what it is, and the output here.
func (m *Manifests) seal(output string) error {
	sum := sha256.New()
	e := json.NewEncoder(sum)
	if err := errors.Join(e.Encode(m.ConfigMap), e.Encode(m.Workload)); err != nil {
		return err
	}
	m.Digest = hex.EncodeToString(sum.Sum(nil))
	meta, ok := m.Workload.(metav1.Object)
	if !ok {
		return fmt.Errorf("%T has no metadata", m.Workload)
	}
	for _, o := range []metav1.Object{m.ConfigMap, meta} {
		notes := o.GetAnnotations()
		if notes == nil {
			notes = map[string]string{}
		}
		notes[digestNote], notes[outputNote] = m.Digest, output
		o.SetAnnotations(notes)
	}
	return nil
}

// renderer makes one run's manifests.
type renderer struct {
	t      launch.TargetConfig
	k      launch.Kubernetes
	m      *Manifests
	folder string
	kept   bool
	files  map[string][]byte
	// scraped is the port at which the run answers Prometheus, 0 if it answers nobody but its own pod.
	scraped int32
}

func (r *renderer) labels() map[string]string {
	return map[string]string{"app.kubernetes.io/name": "cftune", "app.kubernetes.io/managed-by": "cftune", labelRun: r.m.Name}
}

func (r *renderer) meta() metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: ObjectName(r.m.Name), Namespace: r.m.Namespace, Labels: r.labels()}
}

// configMap holds the configuration and the files that travel with it.
func (r *renderer) configMap(text []byte) *corev1.ConfigMap {
	yes := true
	c := &corev1.ConfigMap{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "ConfigMap"},
		ObjectMeta: r.meta(),
		Immutable:  &yes,
		Data:       map[string]string{runName: string(text)},
	}
	for name, content := range r.files {
		if utf8.Valid(content) && bytes.IndexByte(content, 0) < 0 {
			c.Data[name] = string(content)
			continue
		}
		if c.BinaryData == nil {
			c.BinaryData = map[string][]byte{}
		}
		c.BinaryData[name] = content
	}
	return c
}

// objects are the manifests in the order in which they are created, as the API takes them.
func (m *Manifests) objects() ([]*unstructured.Unstructured, error) {
	var list []*unstructured.Unstructured
	for _, o := range []runtime.Object{m.ConfigMap, m.Workload} {
		text, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		u := &unstructured.Unstructured{}
		if err := u.UnmarshalJSON(text); err != nil {
			return nil, err
		}
		// What only the server fills in.
		unstructured.RemoveNestedField(u.Object, "status")
		prune(u.Object)
		list = append(list, u)
	}
	return list, nil
}

// prune takes out the creation times that are null, which Go's types write where there is none.
func prune(v any) {
	switch v := v.(type) {
	case map[string]any:
		if at, has := v["creationTimestamp"]; has && at == nil {
			delete(v, "creationTimestamp")
		}
		for _, below := range v {
			prune(below)
		}
	case []any:
		for _, below := range v {
			prune(below)
		}
	}
}

// YAML is the manifests as kubectl apply takes them, and as Apply creates them.
func (m *Manifests) YAML() ([]byte, error) {
	list, err := m.objects()
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	for _, u := range list {
		text, err := yaml.Marshal(u.Object)
		if err != nil {
			return nil, err
		}
		out.WriteString("---\n")
		out.Write(text)
	}
	return out.Bytes(), nil
}
