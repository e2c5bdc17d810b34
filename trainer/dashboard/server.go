package dashboard

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/netutil"
)

// ListenError says that the address cannot be listened on.
type ListenError struct{ Err error }

func (e *ListenError) Error() string { return fmt.Sprintf("dashboard: %v", e.Err) }

func (e *ListenError) Unwrap() error { return e.Err }

// Server answers browsers.
type Server struct {
	index    *Index
	listener net.Listener
	hosts    []string // names that a request may call this server by, besides addresses
	instance string   // tells this server's tags from those of another
}

// Listen takes the address. hosts are more names that the server is reached by.
//
// A browser tells by what name it thinks that it reached the server. Only known ones are answered: else a web page
// elsewhere, whose name is made to point to this address, could read what is shown here.
func Listen(index *Index, address string, hosts ...string) (*Server, error) {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return nil, &ListenError{err}
	}
	s := &Server{index: index, listener: listener, instance: rand.Text(), hosts: []string{"localhost"}}
	for _, host := range hosts {
		s.hosts = append(s.hosts, strings.ToLower(host))
	}
	if !s.Loopback() {
		if host, _, err := net.SplitHostPort(address); err == nil && host != "" {
			s.hosts = append(s.hosts, strings.ToLower(host))
		}
		if name, err := os.Hostname(); err == nil {
			s.hosts = append(s.hosts, strings.ToLower(name))
		}
	}
	return s, nil
}

// Loopback reports whether only this machine reaches the server.
func (s *Server) Loopback() bool {
	address, ok := s.listener.Addr().(*net.TCPAddr)
	return ok && address.IP.IsLoopback()
}

// URL is where the list is; of a server on all addresses, by the machine's name.
func (s *Server) URL() string {
	address := s.listener.Addr().String()
	if tcp, ok := s.listener.Addr().(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		if name, err := os.Hostname(); err == nil {
			address = net.JoinHostPort(name, strconv.Itoa(tcp.Port))
		}
	}
	return "http://" + address + "/"
}

// Bounds of what a client may take.
const (
	readTimeout    = 10 * time.Second
	writeTimeout   = 60 * time.Second
	idleTimeout    = 2 * time.Minute
	maxHeaderBytes = 16 << 10
	maxConnections = 128 // more wait
	closeTimeout   = 2 * time.Second
)

// Serve answers until the context ends.
func (s *Server) Serve(ctx context.Context) error {
	server := &http.Server{
		Handler: s.Handler(), ReadTimeout: readTimeout, ReadHeaderTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
	}
	ended := make(chan error, 1)
	go func() { ended <- server.Serve(netutil.LimitListener(s.listener, maxConnections)) }()
	select {
	case err := <-ended:
		return fmt.Errorf("dashboard: %w", err)
	case <-ctx.Done():
	}
	closing, cancel := context.WithTimeout(context.WithoutCancel(ctx), closeTimeout)
	defer cancel()
	if err := server.Shutdown(closing); err != nil {
		server.Close()
	}
	if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
		return fmt.Errorf("dashboard: %w", err)
	}
	return nil
}

// policy lets a page use this server's style and script, and nothing else from anywhere.
const policy = "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"

// Handler returns what answers requests.
func (s *Server) Handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", s.list)
	mux.HandleFunc("GET /run/{id}", s.run)
	mux.HandleFunc("GET /compare", s.compare)
	mux.HandleFunc("GET /style.css", s.asset("text/css; charset=utf-8", string(style())))
	mux.HandleFunc("GET /page.js", s.asset("text/javascript; charset=utf-8", pageScript))
	mux.HandleFunc("GET /favicon.ico", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		s.problem(w, http.StatusNotFound, "There is no such page.")
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Resource-Policy", "same-origin")
		h.Set("Cache-Control", "no-cache")
		switch {
		case !s.knows(r.Host):
			http.Error(w, fmt.Sprintf("%q is no name of this server; cftune dashboard --allow-host NAME allows one", r.Host), http.StatusForbidden)
		case r.Method != http.MethodGet && r.Method != http.MethodHead:
			h.Set("Allow", "GET, HEAD")
			http.Error(w, "this server only shows", http.StatusMethodNotAllowed)
		default:
			mux.ServeHTTP(w, r)
		}
	})
}

// knows reports whether a Host header has one of this server's names: an address cannot be another site's name.
func (s *Server) knows(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	name = strings.ToLower(strings.TrimSuffix(strings.TrimPrefix(strings.TrimSuffix(name, "."), "["), "]"))
	if address, err := netip.ParseAddr(name); err == nil {
		return address.IsLoopback() || !s.Loopback()
	}
	return slices.Contains(s.hosts, name)
}

func (s *Server) asset(kind, text string) http.HandlerFunc {
	sum := sha256.Sum256([]byte(text))
	tag := `"` + hex.EncodeToString(sum[:8]) + `"`
	return func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", kind)
		w.Header().Set("ETag", tag)
		http.ServeContent(w, r, "", time.Time{}, strings.NewReader(text))
	}
}

// view is a page that can be made. what tells the state of all that is on it: where the client has that, it is not made.
type view struct {
	what string
	page func(tag string) any
}

// answer sends the page that look finds, unless the client has it. look is called while nobody else reads the index; where
// it finds none, missing says so.
func (s *Server) answer(w http.ResponseWriter, r *http.Request, name, missing string, look func(x *Index) *view) {
	text, tag, err := s.render(name, r.Header.Get("If-None-Match"), look)
	switch {
	case err != nil:
		http.Error(w, "the page cannot be made: "+err.Error(), http.StatusInternalServerError)
	case tag == "":
		s.problem(w, http.StatusNotFound, missing)
	case text == nil:
		w.Header().Set("ETag", tag)
		w.WriteHeader(http.StatusNotModified)
	default:
		w.Header().Set("ETag", tag)
		send(w, http.StatusOK, text)
	}
}

// render makes a page, and returns it with its tag: no text where the client has the page, no tag where there is none. The
// page is sent after that, so that a client that is slow to take it keeps nobody waiting.
func (s *Server) render(name, has string, look func(x *Index) *view) (text []byte, tag string, err error) {
	x := s.index
	x.mu.Lock()
	defer x.mu.Unlock()
	x.refresh()
	v := look(x)
	if v == nil {
		return nil, "", nil
	}
	sum := sha256.Sum256([]byte(s.instance + " " + v.what))
	tag = `"` + hex.EncodeToString(sum[:12]) + `"`
	if has == tag {
		return nil, tag, nil
	}
	var b bytes.Buffer
	err = pages.ExecuteTemplate(&b, name, v.page(tag))
	return b.Bytes(), tag, err
}

func send(w http.ResponseWriter, status int, text []byte) {
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.WriteHeader(status)
	// A client that went away is no error of this program.
	_, _ = w.Write(text)
}

func (s *Server) list(w http.ResponseWriter, r *http.Request) {
	sort := r.URL.Query().Get("sort")
	s.answer(w, r, "list", "", func(x *Index) *view {
		what := fmt.Sprintf("list %q %d", sort, x.version)
		for _, run := range x.runs {
			what += fmt.Sprintf(" %s.%d", run.id, run.version)
		}
		return &view{what, func(tag string) any {
			p := x.list(sort)
			p.Tag = tag
			return p
		}}
	})
}

func (s *Server) run(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, "run", "There is no such run; it may have been removed.", func(x *Index) *view {
		run := x.run(r.PathValue("id"))
		if run == nil {
			return nil
		}
		return &view{fmt.Sprintf("run %s.%d", run.id, run.version), func(tag string) any {
			p := run.page()
			p.Tag = tag
			return p
		}}
	})
}

func (s *Server) compare(w http.ResponseWriter, r *http.Request) {
	s.answer(w, r, "compare", "Choose runs in the list, then compare them.", func(x *Index) *view {
		var list []*run
		what := "compare"
		for _, id := range r.URL.Query()["run"] {
			if run := x.run(id); run != nil && !slices.Contains(list, run) {
				list = append(list, run)
				what += fmt.Sprintf(" %s.%d", run.id, run.version)
			}
		}
		if len(list) == 0 {
			return nil
		}
		return &view{what, func(tag string) any {
			p := compare(list)
			p.Tag = tag
			return p
		}}
	})
}

// problemPage says what is wrong.
type problemPage struct {
	common
	Text string
}

func (s *Server) problem(w http.ResponseWriter, status int, text string) {
	var b bytes.Buffer
	if err := pages.ExecuteTemplate(&b, "problem", problemPage{common{Title: http.StatusText(status)}, text}); err != nil {
		http.Error(w, text, status)
		return
	}
	send(w, status, b.Bytes())
}
