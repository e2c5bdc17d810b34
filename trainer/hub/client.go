package hub

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strconv"
	"strings"
	"time"
)

var (
	commitHash = regexp.MustCompile(`^[0-9a-f]{40}$`)
	sha256Hex  = regexp.MustCompile(`^[0-9a-f]{64}$`)
	blobName   = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)
)

// remote is what the hub says of a file.
type remote struct {
	url    string
	commit string
	etag   string // a SHA-256 for large files, git's SHA-1 for small ones
	size   int64
}

// maxRedirects is how often the hub may send us on.
const maxRedirects = 10

// newHTTPClient keeps the token from hosts that are not the hub: net/http compares names without ports and schemes.
func newHTTPClient(follow func(from, to *url.URL) bool) *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone() // takes the proxy from the environment
	transport.DisableCompression = true
	transport.ResponseHeaderTimeout = time.Minute
	return &http.Client{Transport: transport, CheckRedirect: func(req *http.Request, via []*http.Request) error {
		first := via[0].URL
		switch {
		case len(via) >= maxRedirects:
			return errors.New("the hub redirects without end")
		case !follow(first, req.URL):
			return http.ErrUseLastResponse
		case first.Scheme == "https" && req.URL.Scheme != "https":
			return fmt.Errorf("the hub redirects to %s, which is not encrypted", req.URL.Host)
		case !sameHost(first, req.URL):
			req.Header.Del("Authorization")
		}
		return nil
	}}
}

func sameHost(a, b *url.URL) bool { return a.Scheme == b.Scheme && a.Host == b.Host }

// request makes a request to the hub, with the token where that may be sent.
func (s *Store) request(ctx context.Context, method, address string) (*http.Request, error) {
	req, err := http.NewRequestWithContext(ctx, method, address, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Accept-Encoding", "identity")
	req.Header.Set("User-Agent", "cftune")
	if s.Token != "" && mayCarryToken(req.URL) {
		req.Header.Set("Authorization", "Bearer "+s.Token)
	}
	return req, nil
}

// mayCarryToken keeps tokens off wires on which anybody reads them.
func mayCarryToken(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Hostname() == "localhost" || ip != nil && ip.IsLoopback()
}

// address is that of a place of the hub; a part with slashes, as revisions have them, stays one part.
func (s *Store) address(parts ...string) string {
	at := strings.TrimSuffix(s.Endpoint, "/")
	for _, p := range parts {
		at += "/" + url.PathEscape(p)
	}
	return at
}

// ask finds out what a file is at a revision. The hub answers for files that lie elsewhere with a redirect whose head has all.
func (s *Store) ask(ctx context.Context, r Reference) (remote, error) {
	at := s.address(append([]string{r.Owner, r.Repo, "resolve", r.Revision}, strings.Split(r.File, "/")...)...)
	var found remote
	err := s.patiently(ctx, func() (bool, error) {
		req, err := s.request(ctx, http.MethodHead, at)
		if err != nil {
			return false, err
		}
		client := newHTTPClient(sameHost)
		defer client.CloseIdleConnections()
		response, err := client.Do(req)
		if err != nil {
			return false, bare(err)
		}
		response.Body.Close()
		h := response.Header
		linked := h.Get("X-Linked-Etag") != "" && response.StatusCode < 400
		if response.StatusCode != http.StatusOK && !linked {
			return false, s.refusal(r, response)
		}
		found, err = describe(at, h, response.ContentLength)
		return false, err
	})
	if err != nil {
		return remote{}, fmt.Errorf("%s: %w", r, err)
	}
	return found, nil
}

// describe reads a head and believes none of it unchecked: commit and ETag become names of files.
func describe(at string, h http.Header, length int64) (remote, error) {
	first := func(names ...string) string {
		for _, name := range names {
			if v := h.Get(name); v != "" {
				return v
			}
		}
		return ""
	}
	f := remote{url: at, commit: h.Get("X-Repo-Commit"), size: length}
	f.etag = strings.Trim(strings.TrimPrefix(first("X-Linked-Etag", "ETag"), "W/"), `"`)
	if text := h.Get("X-Linked-Size"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return remote{}, fmt.Errorf("the hub says a size of %q", text)
		}
		f.size = n
	}
	switch {
	case !commitHash.MatchString(f.commit):
		return remote{}, fmt.Errorf("the server does not answer as the hub does: X-Repo-Commit is %q", f.commit)
	case !blobName.MatchString(f.etag) || strings.HasSuffix(f.etag, incompleteSuffix):
		return remote{}, fmt.Errorf("the server does not answer as the hub does: ETag is %q", f.etag)
	case f.size < 0:
		return remote{}, errors.New("the server does not answer as the hub does: it tells no size")
	}
	return f, nil
}

// maxListing bounds the text of a repository's description.
const maxListing = 16 << 20

// list names the GGUF files of a repository.
func (s *Store) list(ctx context.Context, r Reference) ([]string, error) {
	var files []string
	err := s.patiently(ctx, func() (bool, error) {
		req, err := s.request(ctx, http.MethodGet, s.address("api", "models", r.Owner, r.Repo, "revision", r.Revision))
		if err != nil {
			return false, err
		}
		client := newHTTPClient(sameHost)
		defer client.CloseIdleConnections()
		response, err := client.Do(req)
		if err != nil {
			return false, bare(err)
		}
		defer response.Body.Close()
		if response.StatusCode != http.StatusOK {
			return false, s.refusal(r, response)
		}
		var described struct {
			Siblings []struct {
				Name string `json:"rfilename"`
			} `json:"siblings"`
		}
		if err := json.NewDecoder(io.LimitReader(response.Body, maxListing)).Decode(&described); err != nil {
			return false, fmt.Errorf("the hub's description of the repository: %w", err)
		}
		files = nil
		for _, f := range described.Siblings {
			if strings.HasSuffix(strings.ToLower(f.Name), ".gguf") {
				files = append(files, f.Name)
			}
		}
		return false, nil
	})
	return files, err
}

// bare drops the URL of net/http's errors: addresses of files elsewhere are signed, which is as good as a key.
func bare(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		return wrapped.Err
	}
	return err
}
