// Package kube runs trainings in a Kubernetes cluster: as a Job, as a JobSet of several pods that train together, or as a
// Kubeflow TrainJob.
//
// A run is a workload and a ConfigMap with its configuration, both named after it. The cluster's own controllers start it,
// start it again after a failure or the loss of a pod, and keep its state; the program in the pod goes on from the newest
// checkpoint, which lies on a claim or in the checkpoints' mirror. Nothing of a run is kept on this machine.
//
// Promises: what Render returns is what Apply creates, to the byte of its YAML; creating is by name, so that a run that is
// there is never started beside itself; manifests hold names of Secrets, never values.
//
// This is the one package that knows Kubernetes' Go modules. It sends no files: images hold the program, and models and
// data lie on claims, behind URLs, or, when they are small, in the ConfigMap.
package kube
