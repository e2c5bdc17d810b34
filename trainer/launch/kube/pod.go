package kube

import (
	"fmt"
	"maps"
	"net"
	"slices"
	"strconv"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"cftune/trainer/config"
	"cftune/trainer/launch"
)

const (
	gpuResource  = "nvidia.com/gpu"
	configVolume = "config"
	keyVolume    = "ssh-keys"
	tempVolume   = "scratch"
	tempPath     = "/tmp"
	workVolume   = "work"
	// privateMode is that of keys: for the owner and the pod's group.
	privateMode int32 = 0o440
)

// settled are the exit codes of failures that do not pass by themselves: configuration, data, checkpoints, a loss that is not
// finite. interrupted is that of a run that has saved because it had to go.
var (
	settled           = []int32{2, 3, 4, 6}
	interrupted int32 = 130
)

// command trains, or goes on: it may be given again and again.
func command() []string {
	return []string{"cftune", "train", "--config", configPath, "--or-resume"}
}

// together are the words before a launcher of several processes, by which they can save when a pod must go.
func together(launcher ...string) []string {
	return append([]string{"cftune", "launch", "together", "--"}, launcher...)
}

// inOnePod is the command of a pod that trains by itself.
func (r *renderer) inOnePod() []string {
	if n := r.k.Processes(); n > 1 {
		return slices.Concat(together(launch.Mpirun(n)...), command(), []string{"--parallel", "mpi"})
	}
	return command()
}

// job is a run in one pod.
func (r *renderer) job() *batchv1.Job {
	return &batchv1.Job{
		TypeMeta:   metav1.TypeMeta{APIVersion: "batch/v1", Kind: "Job"},
		ObjectMeta: r.meta(),
		Spec:       r.jobSpec(r.pod(partTrainer, r.inOnePod()), int32(r.t.Attempts())),
	}
}

// jobSpec lets a job's pods be started again, as often as the target says, but not after what stays wrong. Lost nodes,
// evictions and interrupted pods are not counted.
func (r *renderer) jobSpec(pod corev1.PodTemplateSpec, retries int32) batchv1.JobSpec {
	spec := batchv1.JobSpec{BackoffLimit: &retries, Template: pod}
	failed := batchv1.Failed
	spec.PodReplacementPolicy = &failed // a run directory has one pod at a time
	container := trainContainer
	spec.PodFailurePolicy = &batchv1.PodFailurePolicy{Rules: []batchv1.PodFailurePolicyRule{
		{Action: batchv1.PodFailurePolicyActionFailJob, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
			ContainerName: &container, Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: settled}},
		{Action: batchv1.PodFailurePolicyActionIgnore, OnPodConditions: []batchv1.PodFailurePolicyOnPodConditionsPattern{
			{Type: corev1.DisruptionTarget, Status: corev1.ConditionTrue}}},
		{Action: batchv1.PodFailurePolicyActionIgnore, OnExitCodes: &batchv1.PodFailurePolicyOnExitCodesRequirement{
			ContainerName: &container, Operator: batchv1.PodFailurePolicyOnExitCodesOpIn, Values: []int32{interrupted}}},
	}}
	return spec
}

// pod has one container. Its rights are those of a process that reads its configuration and writes its run.
func (r *renderer) pod(part string, args []string) corev1.PodTemplateSpec {
	no, yes := false, true
	user, grace := r.k.User(), r.k.GraceSeconds()
	labels := r.labels()
	labels[labelPart] = part
	onlyIfChanged := corev1.FSGroupChangeOnRootMismatch
	pod := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: labels, Annotations: map[string]string{containerNote: trainContainer}},
		Spec: corev1.PodSpec{
			RestartPolicy:                 corev1.RestartPolicyNever, // the job's controller starts pods, on another node if need be
			TerminationGracePeriodSeconds: &grace,
			AutomountServiceAccountToken:  &no,
			EnableServiceLinks:            &no,
			ServiceAccountName:            r.k.ServiceAccount,
			PriorityClassName:             r.k.PriorityClass,
			RuntimeClassName:              optional(r.k.RuntimeClass),
			NodeSelector:                  r.k.NodeSelector,
			Tolerations:                   r.tolerations(),
			ImagePullSecrets:              r.pullSecrets(),
			SecurityContext: &corev1.PodSecurityContext{
				RunAsNonRoot: &yes, RunAsUser: &user, RunAsGroup: &user, FSGroup: &user, FSGroupChangePolicy: &onlyIfChanged,
				SeccompProfile: &corev1.SeccompProfile{Type: corev1.SeccompProfileTypeRuntimeDefault},
			},
			Volumes: r.volumes(),
			Containers: []corev1.Container{{
				Name:            trainContainer,
				Image:           r.k.Image,
				ImagePullPolicy: corev1.PullPolicy(r.k.PullPolicy),
				Command:         args,
				Env:             r.env(),
				EnvFrom:         r.envFrom(),
				Resources:       r.resources(),
				VolumeMounts:    r.mounts(),
				// What a program that is killed could not say is looked for in its log.
				TerminationMessagePolicy: corev1.TerminationMessageFallbackToLogsOnError,
				SecurityContext: &corev1.SecurityContext{
					AllowPrivilegeEscalation: &no, ReadOnlyRootFilesystem: &yes, Privileged: &no,
					Capabilities: &corev1.Capabilities{Drop: []corev1.Capability{"ALL"}},
				},
			}},
		},
	}
	if part == partTrainer {
		r.announce(&pod)
	}
	return pod
}

// scraped is the port of metrics.listen where it answers other machines.
func scraped(m config.Metrics) int32 {
	address, err := m.Address()
	if err != nil || address == "" {
		return 0
	}
	host, port, err := net.SplitHostPort(address)
	n, portErr := strconv.ParseUint(port, 10, 16)
	if ip := net.ParseIP(host); err != nil || portErr != nil || host == "localhost" || ip != nil && ip.IsLoopback() {
		return 0
	}
	return int32(n)
}

// announce lets a Prometheus that looks for annotations, or for ports called metrics, find the pod that trains.
func (r *renderer) announce(pod *corev1.PodTemplateSpec) {
	if r.scraped == 0 {
		return
	}
	maps.Copy(pod.Annotations, map[string]string{
		"prometheus.io/scrape": "true", "prometheus.io/path": "/metrics", "prometheus.io/port": strconv.Itoa(int(r.scraped)),
	})
	pod.Spec.Containers[0].Ports = []corev1.ContainerPort{{Name: "metrics", ContainerPort: r.scraped}}
}

func optional(text string) *string {
	if text == "" {
		return nil
	}
	return &text
}

func (r *renderer) tolerations() []corev1.Toleration {
	var list []corev1.Toleration
	for _, t := range r.k.Tolerations {
		list = append(list, corev1.Toleration{Key: t.Key, Operator: corev1.TolerationOperator(t.Operator), Value: t.Value,
			Effect: corev1.TaintEffect(t.Effect), TolerationSeconds: t.Seconds})
	}
	return list
}

func (r *renderer) pullSecrets() []corev1.LocalObjectReference {
	var list []corev1.LocalObjectReference
	for _, name := range r.k.PullSecrets {
		list = append(list, corev1.LocalObjectReference{Name: name})
	}
	return list
}

// plainEnv are the variables that are no secrets.
func (r *renderer) plainEnv() map[string]string {
	plain := map[string]string{"HOME": tempPath}
	maps.Copy(plain, r.t.Env)
	return plain
}

// env names variables; those of Secrets without their values.
func (r *renderer) env() []corev1.EnvVar {
	plain := r.plainEnv()
	var list []corev1.EnvVar
	for _, name := range slices.Sorted(maps.Keys(plain)) {
		list = append(list, corev1.EnvVar{Name: name, Value: plain[name]})
	}
	for _, name := range slices.Sorted(maps.Keys(r.k.SecretEnv)) {
		s := r.k.SecretEnv[name]
		list = append(list, corev1.EnvVar{Name: name, ValueFrom: &corev1.EnvVarSource{SecretKeyRef: &corev1.SecretKeySelector{
			LocalObjectReference: corev1.LocalObjectReference{Name: s.Secret}, Key: s.Key}}})
	}
	return list
}

func (r *renderer) envFrom() []corev1.EnvFromSource {
	var list []corev1.EnvFromSource
	for _, name := range r.k.SecretEnvFrom {
		list = append(list, corev1.EnvFromSource{SecretRef: &corev1.SecretEnvSource{LocalObjectReference: corev1.LocalObjectReference{Name: name}}})
	}
	return list
}

// resources are asked for and bounded by the same amounts: a run is not one to be slowed down or killed for its neighbours.
func (r *renderer) resources() corev1.ResourceRequirements {
	list := corev1.ResourceList{}
	set := func(name corev1.ResourceName, amount string) {
		if amount != "" {
			list[name] = resource.MustParse(amount) // the file of targets was checked
		}
	}
	set(corev1.ResourceCPU, r.k.CPU)
	set(corev1.ResourceMemory, r.k.Memory)
	if r.k.GPUs > 0 {
		set(gpuResource, strconv.Itoa(r.k.GPUs))
	}
	if len(list) == 0 {
		return corev1.ResourceRequirements{}
	}
	return corev1.ResourceRequirements{Requests: list, Limits: list.DeepCopy()}
}

func (r *renderer) volumes() []corev1.Volume {
	scratch := &corev1.EmptyDirVolumeSource{}
	if r.k.Scratch != "" {
		limit := resource.MustParse(r.k.Scratch)
		scratch.SizeLimit = &limit
	}
	list := []corev1.Volume{
		{Name: configVolume, VolumeSource: corev1.VolumeSource{ConfigMap: &corev1.ConfigMapVolumeSource{
			LocalObjectReference: corev1.LocalObjectReference{Name: ObjectName(r.m.Name)}}}},
		{Name: tempVolume, VolumeSource: corev1.VolumeSource{EmptyDir: scratch}},
	}
	if !r.kept {
		list = append(list, corev1.Volume{Name: workVolume, VolumeSource: corev1.VolumeSource{EmptyDir: scratch.DeepCopy()}})
	}
	for i, v := range r.k.Volumes {
		list = append(list, corev1.Volume{Name: volumeName(i), VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: v.Claim, ReadOnly: v.ReadOnly}}})
	}
	if r.k.SSHSecret != "" {
		mode := privateMode
		list = append(list, corev1.Volume{Name: keyVolume, VolumeSource: corev1.VolumeSource{
			Secret: &corev1.SecretVolumeSource{SecretName: r.k.SSHSecret, DefaultMode: &mode}}})
	}
	return list
}

func volumeName(i int) string { return fmt.Sprintf("claim-%d", i) }

func (r *renderer) mounts() []corev1.VolumeMount {
	list := []corev1.VolumeMount{
		{Name: configVolume, MountPath: launch.KubernetesConfigDir, ReadOnly: true},
		{Name: tempVolume, MountPath: tempPath},
	}
	if !r.kept {
		list = append(list, corev1.VolumeMount{Name: workVolume, MountPath: r.folder})
	}
	for i, v := range r.k.Volumes {
		list = append(list, corev1.VolumeMount{Name: volumeName(i), MountPath: v.Path, ReadOnly: v.ReadOnly})
	}
	if r.k.SSHSecret != "" {
		list = append(list, corev1.VolumeMount{Name: keyVolume, MountPath: launch.KubernetesKeyDir, ReadOnly: true})
	}
	return list
}
