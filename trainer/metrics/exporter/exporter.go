// Package exporter answers Prometheus while a run trains: /metrics has the run's last figures, those of the process and
// of the Go runtime, /healthz says that the process is there.
//
// A server belongs to the run that made it and ends with it. It shows figures that the training has left behind and never
// asks for any, so no client can hold the training up; how many clients there are, and how long each may take, is bounded.
package exporter

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/net/netutil"
)

// Bounds on clients.
const (
	maxClients    = 32 // more wait
	maxScrapes    = 4  // at a time; more are told to come later
	headerTimeout = 5 * time.Second
	clientTimeout = 10 * time.Second // for a request and its answer
	idleTimeout   = time.Minute
	maxHeader     = 16 << 10 // bytes
	// closing is how long the end of a run waits for answers that are under way.
	closing = 500 * time.Millisecond
)

// Server is a metrics.Sink.
type Server struct {
	*figures
	listener net.Listener
	http     *http.Server
	gone     chan struct{}
}

// Listen takes the address, which has a host, and answers there from now on.
func Listen(address string, run Run) (*Server, error) {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	s := &Server{figures: newFigures(run), listener: l, gone: make(chan struct{})}
	registry := prometheus.NewRegistry()
	for _, c := range []prometheus.Collector{
		s.figures, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}),
	} {
		if err := registry.Register(c); err != nil {
			return nil, errors.Join(err, l.Close())
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, "ok\n") // a client that went away does not matter
	})
	s.http = &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTimeout, ReadTimeout: clientTimeout, WriteTimeout: clientTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: nobody,
	}
	go func() {
		defer close(s.gone)
		_ = s.http.Serve(netutil.LimitListener(l, maxClients)) // ends when the server is closed
	}()
	return s, nil
}

// URL is where the metrics are.
func (s *Server) URL() string { return fmt.Sprintf("http://%s/metrics", s.listener.Addr()) }

// Close ends the server and every connection. It may be called again.
func (s *Server) Close() {
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	if s.http.Shutdown(ctx) != nil {
		_ = s.http.Close() // of the listener, which Shutdown has closed
	}
	<-s.gone
}
