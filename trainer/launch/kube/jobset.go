package kube

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	jobsetv1alpha2 "sigs.k8s.io/jobset/api/jobset/v1alpha2"

	"cftune/trainer/launch"
)

// Names in a JobSet, and the files by which its pods reach each other.
const (
	launcherJob = "launcher"
	workerJob   = "worker"
	hostfile    = "hostfile"
	sshConfig   = "ssh_config"
	sshdConfig  = "sshd_config"
	sshPort     = 2222
)

// jobSet is a run in several pods. The launcher's runs mpirun and rank 0, which alone reads data and writes; the others run
// an ssh server by which mpirun starts the other ranks. Where any of them is lost, mpirun ends all, and the set starts again. When all pods must
// go, each is told to, and the others stay until the launcher's has saved.
func (r *renderer) jobSet() *jobsetv1alpha2.JobSet {
	yes := true
	set := &jobsetv1alpha2.JobSet{
		TypeMeta:   metav1.TypeMeta{APIVersion: "jobset.x-k8s.io/v1alpha2", Kind: "JobSet"},
		ObjectMeta: r.meta(),
		Spec: jobsetv1alpha2.JobSetSpec{
			Network:       &jobsetv1alpha2.Network{EnableDNSHostnames: &yes, PublishNotReadyAddresses: &yes},
			SuccessPolicy: &jobsetv1alpha2.SuccessPolicy{Operator: jobsetv1alpha2.OperatorAll, TargetReplicatedJobs: []string{launcherJob}},
			// Retries are of the whole set; what stays wrong ends it at once.
			FailurePolicy: &jobsetv1alpha2.FailurePolicy{MaxRestarts: int32(r.t.Attempts()), RestartStrategy: jobsetv1alpha2.BlockingRecreate,
				Rules: []jobsetv1alpha2.FailurePolicyRule{{Name: "settled", Action: jobsetv1alpha2.FailJobSet,
					OnJobFailureReasons: []string{batchv1.JobReasonPodFailurePolicy}, TargetReplicatedJobs: []string{launcherJob}}}},
		},
	}
	pods := int32(r.k.Replicas())
	if pods == 1 {
		set.Spec.ReplicatedJobs = []jobsetv1alpha2.ReplicatedJob{r.replicated(launcherJob, r.pod(partTrainer, command()), 1)}
		return set
	}
	r.mpiFiles()
	worker := r.pod(partHelper, []string{"cftune", "launch", "outlast", "--", "/usr/sbin/sshd", "-D", "-e", "-f", launch.KubernetesConfigDir + "/" + sshdConfig})
	c := &worker.Spec.Containers[0]
	c.ReadinessProbe = &corev1.Probe{ProbeHandler: corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: intstr.FromInt32(sshPort)}}}
	launcher := r.replicated(launcherJob, r.pod(partTrainer, r.mpirun()), 1)
	launcher.DependsOn = []jobsetv1alpha2.DependsOn{{Name: workerJob, Status: jobsetv1alpha2.DependencyReady}}
	set.Spec.ReplicatedJobs = []jobsetv1alpha2.ReplicatedJob{r.replicated(workerJob, worker, pods-1), launcher}
	return set
}

// replicated is a job of a JobSet: the set starts all of it again, so its own limit of failures is none.
func (r *renderer) replicated(name string, pod corev1.PodTemplateSpec, pods int32) jobsetv1alpha2.ReplicatedJob {
	spec := r.jobSpec(pod, 0)
	// Only indexed pods have names, one alone too.
	indexed := batchv1.IndexedCompletion
	spec.Parallelism, spec.Completions, spec.CompletionMode = &pods, &pods, &indexed
	if name != launcherJob {
		spec.PodFailurePolicy = nil // an ssh server has no exit codes of the program
	}
	return jobsetv1alpha2.ReplicatedJob{Name: name, Replicas: 1, Template: batchv1.JobTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: r.labels()}, Spec: spec}}
}

// mpirun is the launcher's command: processes in each pod. Open MPI would take the hosts' names up to the first dot, and those nobody knows.
func (r *renderer) mpirun() []string {
	words := []string{"mpirun", "-np", strconv.Itoa(r.k.Replicas() * r.k.Processes()), "--hostfile", launch.KubernetesConfigDir + "/" + hostfile,
		"--map-by", "node", "--bind-to", "none", "--mca", "orte_keep_fqdn_hostnames", "1", "--mca", "plm_rsh_agent", "ssh -F " + launch.KubernetesConfigDir + "/" + sshConfig}
	// The other pods' ssh servers hand no variables on. Those of Secrets are rank 0's, which alone reads and writes.
	for _, name := range slices.Sorted(maps.Keys(r.plainEnv())) {
		words = append(words, "-x", name)
	}
	return slices.Concat(together(words...), command(), []string{"--parallel", "mpi"})
}

// mpiFiles add to the ConfigMap what mpirun, ssh and sshd read. The server's key is known by the Secret's known_hosts.
func (r *renderer) mpiFiles() {
	name := ObjectName(r.m.Name)
	var hosts strings.Builder
	// The JobSet's names: set-job-replica-pod.subdomain, which is the set's.
	fmt.Fprintf(&hosts, "localhost slots=%d\n", r.k.Processes())
	for i := range r.k.Replicas() - 1 {
		fmt.Fprintf(&hosts, "%s-%s-0-%d.%s slots=%d\n", name, workerJob, i, name, r.k.Processes())
	}
	keys := launch.KubernetesKeyDir
	r.files[hostfile] = []byte(hosts.String())
	r.files[sshConfig] = fmt.Appendf(nil, `Host *
  Port %d
  IdentityFile %s/ssh-privatekey
  IdentitiesOnly yes
  UserKnownHostsFile %s/known_hosts
  StrictHostKeyChecking yes
  PasswordAuthentication no
  BatchMode yes
`, sshPort, keys, keys)
	// The keys lie on a volume of root's with the pod's group, which StrictModes would refuse.
	r.files[sshdConfig] = fmt.Appendf(nil, `Port %d
HostKey %s/ssh-privatekey
AuthorizedKeysFile %s/authorized_keys
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
AllowTcpForwarding no
X11Forwarding no
`, sshPort, keys, keys)
}
