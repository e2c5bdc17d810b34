package kube

import (
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// TrainJob is Kubeflow Trainer's, of trainer.kubeflow.org/v1alpha1 as release 2.0 has it, with the fields that are used
// here. A test validates it against that release's schema (docs/DECISIONS.md says why the type is our own).
type TrainJob struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`
	Spec              TrainJobSpec `json:"spec"`
}

// TrainJobSpec says what a TrainingRuntime, which the cluster's owner has made, is to run.
type TrainJobSpec struct {
	RuntimeRef       RuntimeRef        `json:"runtimeRef"`
	Trainer          TrainJobTrainer   `json:"trainer"`
	Labels           map[string]string `json:"labels,omitempty"`
	PodSpecOverrides []PodSpecOverride `json:"podSpecOverrides,omitempty"`
	Suspend          *bool             `json:"suspend,omitempty"`
}

// RuntimeRef names a runtime.
type RuntimeRef struct {
	APIGroup string `json:"apiGroup"`
	Kind     string `json:"kind"`
	Name     string `json:"name"`
}

// TrainJobTrainer is the container that trains.
type TrainJobTrainer struct {
	Image            string                       `json:"image"`
	Command          []string                     `json:"command"`
	Env              []corev1.EnvVar              `json:"env,omitempty"`
	NumNodes         int32                        `json:"numNodes"`
	ResourcesPerNode *corev1.ResourceRequirements `json:"resourcesPerNode,omitempty"`
}

// PodSpecOverride adds to the pods of some of the runtime's jobs.
type PodSpecOverride struct {
	TargetJobs         []TargetJob         `json:"targetJobs"`
	ServiceAccountName *string             `json:"serviceAccountName,omitempty"`
	NodeSelector       map[string]string   `json:"nodeSelector,omitempty"`
	Tolerations        []corev1.Toleration `json:"tolerations,omitempty"`
	Volumes            []corev1.Volume     `json:"volumes,omitempty"`
	Containers         []ContainerOverride `json:"containers,omitempty"`
}

// TargetJob is a job of the runtime.
type TargetJob struct {
	Name string `json:"name"`
}

// ContainerOverride adds to a container.
type ContainerOverride struct {
	Name         string               `json:"name"`
	Env          []corev1.EnvVar      `json:"env,omitempty"`
	VolumeMounts []corev1.VolumeMount `json:"volumeMounts,omitempty"`
}

// DeepCopyObject implements runtime.Object.
func (t *TrainJob) DeepCopyObject() runtime.Object {
	c := *t
	t.ObjectMeta.DeepCopyInto(&c.ObjectMeta)
	return &c // the spec is never changed
}

// The names that Kubeflow's runtimes have in common.
const (
	runtimeGroup     = "trainer.kubeflow.org"
	runtimeJob       = "node"
	runtimeContainer = "node"
	// defaultRuntimeKind is that of runtimes which all namespaces share.
	defaultRuntimeKind = "ClusterTrainingRuntime"
)

// trainJob lets a runtime train. Retries, security and the way in which several pods find each other are the runtime's; of
// several pods, the runtime must be one for MPI.
func (r *renderer) trainJob() *TrainJob {
	kind := r.k.RuntimeKind
	if kind == "" {
		kind = defaultRuntimeKind
	}
	train := command()
	if r.k.Replicas() > 1 {
		train = append(append(together("mpirun"), train...), "--parallel", "mpi")
	}
	pod := r.pod(partTrainer, train)
	c := pod.Spec.Containers[0]
	resources := &c.Resources
	if len(resources.Limits) == 0 {
		resources = nil
	}
	targets := []TargetJob{{runtimeJob}}
	if r.k.Replicas() > 1 {
		targets = append(targets, TargetJob{launcherJob})
	}
	override := PodSpecOverride{
		TargetJobs:         targets,
		ServiceAccountName: optional(r.k.ServiceAccount),
		NodeSelector:       r.k.NodeSelector,
		Tolerations:        pod.Spec.Tolerations,
		Volumes:            pod.Spec.Volumes,
		Containers:         []ContainerOverride{{Name: runtimeContainer, VolumeMounts: c.VolumeMounts}},
	}
	return &TrainJob{
		TypeMeta:   metav1.TypeMeta{APIVersion: runtimeGroup + "/v1alpha1", Kind: "TrainJob"},
		ObjectMeta: r.meta(),
		Spec: TrainJobSpec{
			RuntimeRef:       RuntimeRef{APIGroup: runtimeGroup, Kind: kind, Name: r.k.Runtime},
			Trainer:          TrainJobTrainer{Image: r.k.Image, Command: train, Env: c.Env, NumNodes: int32(r.k.Replicas()), ResourcesPerNode: resources},
			Labels:           r.labels(),
			PodSpecOverrides: []PodSpecOverride{override},
		},
	}
}
