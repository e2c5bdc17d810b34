package kube

import (
	"context"
	"io"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer"
	"k8s.io/client-go/rest"
)

// logSource opens the log of a pod.
type logSource func(ctx context.Context, namespace, pod string, o *corev1.PodLogOptions) (io.ReadCloser, error)

// coreClient is for what the dynamic client has no place for. Package kubernetes of client-go has one too, with the types of
// all API groups, some 25 MB of program.
func coreClient(config *rest.Config) (*rest.RESTClient, error) {
	v1 := schema.GroupVersion{Version: "v1"}
	known := runtime.NewScheme()
	metav1.AddToGroupVersion(known, v1) // errors come as objects
	c := rest.CopyConfig(config)
	c.APIPath, c.GroupVersion = "/api", &v1
	c.NegotiatedSerializer = serializer.NewCodecFactory(known).WithoutConversion()
	return rest.RESTClientFor(c)
}

func openLogs(config *rest.Config) (logSource, error) {
	client, err := coreClient(config)
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context, namespace, pod string, o *corev1.PodLogOptions) (io.ReadCloser, error) {
		r := client.Get().Namespace(namespace).Resource("pods").Name(pod).SubResource("log").
			Param("container", o.Container).Param("follow", strconv.FormatBool(o.Follow)).Param("timestamps", strconv.FormatBool(o.Timestamps))
		if o.TailLines != nil {
			r = r.Param("tailLines", strconv.FormatInt(*o.TailLines, 10))
		}
		if o.SinceTime != nil {
			r = r.Param("sinceTime", o.SinceTime.UTC().Format(time.RFC3339))
		}
		return r.Stream(ctx)
	}, nil
}
