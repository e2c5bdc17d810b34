package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
)

// webFile is a file of a web server.
type webFile struct {
	client *http.Client
	url    string
}

// newWebClient returns a client that takes bodies as they are stored: net/http would unpack some unasked, and the
// offsets would not be the file's.
func newWebClient() *http.Client {
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.DisableCompression = true
	return &http.Client{Transport: transport}
}

// findWeb asks the server for the file, so that a wrong address shows at once.
func (f *finder) findWeb(ctx context.Context, address string) ([]File, error) {
	u, err := url.Parse(address)
	if err != nil {
		return nil, bareError(err)
	}
	if u.Host == "" || strings.HasSuffix(u.Path, "/") || u.Path == "" {
		return nil, errors.New("an http address must name a file: servers list no folders")
	}
	file := &remoteFile{store: &webFile{f.client, address}, bytes: -1, patience: f.patience}
	v, err := file.stat(ctx)
	if err != nil {
		return nil, err
	}
	file.bytes = v.bytes
	return []File{{shownName(address), file}}, nil
}

// shownName is a path, or a URL without what may be secret: user, password and options.
func shownName(name string) string {
	scheme, rest, isURL := strings.Cut(name, "://")
	if !isURL {
		return name
	}
	rest, _, _ = strings.Cut(rest, "?")
	if scheme == "http" || scheme == "https" {
		rest, _, _ = strings.Cut(rest, "#")
		host, file, _ := strings.Cut(rest, "/")
		if at := strings.LastIndexByte(host, '@'); at >= 0 {
			host = host[at+1:]
		}
		rest = path.Join(host, "/"+file)
	}
	return scheme + "://" + rest
}

// stat asks for the first byte, as not every server that gives a file answers HEAD (signed addresses, for one).
func (w *webFile) stat(ctx context.Context) (version, error) {
	body, v, _, err := w.fetch(ctx, 0, 1)
	if err != nil {
		return v, err
	}
	return v, bareError(body.Close())
}

func (w *webFile) fetch(ctx context.Context, offset, n int64) (io.ReadCloser, version, bool, error) {
	none := version{bytes: -1}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, w.url, nil)
	if err != nil {
		return nil, none, false, bareError(err)
	}
	request.Header.Set("Accept-Encoding", "identity")
	part := offset > 0 || n >= 0
	if part {
		last := ""
		if n >= 0 {
			last = strconv.FormatInt(offset+n-1, 10)
		}
		request.Header.Set("Range", fmt.Sprintf("bytes=%d-%s", offset, last))
	}
	response, err := w.client.Do(request)
	if err != nil {
		return nil, none, false, bareError(err)
	}
	v := version{webTag(response.Header), response.ContentLength}
	switch {
	case response.StatusCode == http.StatusOK:
		return response.Body, v, part, nil
	case response.StatusCode == http.StatusPartialContent && part:
		from, total, err := parseContentRange(response.Header.Get("Content-Range"))
		if err == nil && from != offset {
			err = fmt.Errorf("the server gave the bytes from %d on, asked for those from %d", from, offset)
		}
		if err != nil {
			return nil, none, false, errors.Join(err, response.Body.Close())
		}
		v.bytes = total
		return response.Body, v, false, nil
	case response.StatusCode == http.StatusRequestedRangeNotSatisfiable && offset == 0:
		// The file is empty: it has no first byte.
		return http.NoBody, version{v.tag, 0}, false, response.Body.Close()
	}
	return nil, none, false, errors.Join(&statusError{response.StatusCode, "the server says " + response.Status}, response.Body.Close())
}

// webTag is what the server says of the content's version.
func webTag(h http.Header) string {
	if tag := h.Get("ETag"); tag != "" {
		return tag
	}
	return h.Get("Last-Modified")
}

// parseContentRange reads "bytes 3-8/20"; total is -1 for "*".
func parseContentRange(header string) (from, total int64, err error) {
	span, all, ok := strings.Cut(strings.TrimPrefix(header, "bytes "), "/")
	first, _, ok2 := strings.Cut(span, "-")
	if !ok || !ok2 {
		return 0, 0, fmt.Errorf("the server's Content-Range is %q", header)
	}
	if from, err = strconv.ParseInt(first, 10, 64); err == nil {
		total = -1
		if all != "*" {
			total, err = strconv.ParseInt(all, 10, 64)
		}
	}
	if err != nil {
		return 0, 0, fmt.Errorf("the server's Content-Range is %q", header)
	}
	return from, total, nil
}
