// Package bucket has what all users of object stores share: how a URL names a bucket and what lies in it, and how long to
// wait between attempts. It opens nothing; whoever does links the drivers of the schemes in.
package bucket

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// Schemes are those of the object stores.
var Schemes = []string{"s3", "gs", "azblob"}

// FileScheme names files and folders of this machine.
const FileScheme = "file"

// Address is the URL of something in a bucket: SCHEME://NAME/KEY?OPTIONS. Of file:// only Path is set.
type Address struct {
	Scheme, Name, Key, Options string
	Path                       string
}

// ParseURL takes a URL apart that names a place in an object store, or a folder.
func ParseURL(text string) (Address, error) {
	scheme, rest, _ := strings.Cut(text, "://")
	if scheme == FileScheme {
		path, err := FilePath(rest)
		if err == nil && filepath.Clean(path) == string(filepath.Separator) {
			err = errors.New("names no folder")
		}
		return Address{Scheme: scheme, Path: path}, err
	}
	if !slices.Contains(Schemes, scheme) {
		return Address{}, fmt.Errorf("must begin with %s:// or %s://", strings.Join(Schemes, "://, "), FileScheme)
	}
	a, err := Parse(scheme, rest)
	if err == nil && strings.ContainsAny(a.Name, "@:") {
		err = errors.New("has more than a bucket's name before the path; credentials are found where the store's own tools find them")
	}
	return a, err
}

// String is the URL less its options, and without a slash at its end.
func (a Address) String() string {
	if a.Scheme == FileScheme {
		return FileScheme + "://" + filepath.ToSlash(filepath.Clean(a.Path))
	}
	return strings.TrimSuffix(a.Base()+"/"+strings.Trim(a.Key, "/"), "/")
}

// LastPart is the last part of the path, a name for what lies there; empty if there is none.
func (a Address) LastPart() string {
	name := path.Base("/" + strings.Trim(filepath.ToSlash(a.Path)+a.Key, "/"))
	if name == "/" || name == ".." {
		return ""
	}
	return name
}

// Parse takes apart what follows "SCHEME://". The key is taken as it is; nothing in it is an escape.
func Parse(scheme, rest string) (Address, error) {
	a := Address{Scheme: scheme}
	rest, a.Options, _ = strings.Cut(rest, "?")
	a.Name, a.Key, _ = strings.Cut(rest, "/")
	if a.Name == "" {
		return Address{}, errors.New("the address has no bucket")
	}
	return a, nil
}

// Base is the bucket's URL less its options, which may hold keys: what people are shown.
func (a Address) Base() string { return a.Scheme + "://" + a.Name }

// Bucket is the URL that opens the bucket.
func (a Address) Bucket() string {
	if a.Options == "" {
		return a.Base()
	}
	return a.Base() + "?" + a.Options
}

// FilePath is the path of what follows "file://".
func FilePath(rest string) (string, error) {
	host, path, _ := strings.Cut(rest, "/")
	if host != "" && host != "localhost" {
		return "", fmt.Errorf("names the machine %s; three slashes begin a path of this one (file:///folder/file)", host)
	}
	path, err := url.PathUnescape("/" + path)
	if err != nil {
		return "", err
	}
	return filepath.FromSlash(path), nil
}

// Backoff is how long to wait between attempts.
type Backoff struct {
	First   time.Duration // before the second attempt; doubles with each
	Longest time.Duration
}

// Wait waits before an attempt, counted from 0, or until ctx ends.
func (b Backoff) Wait(ctx context.Context, attempt int) error {
	if attempt == 0 {
		return context.Cause(ctx)
	}
	pause := b.Longest
	if attempt <= 30 { // more doublings might overflow
		pause = min(b.First<<(attempt-1), b.Longest)
	}
	pause = pause/2 + rand.N(pause/2+1) // so that many clients do not come back at once
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-timer.C:
		return nil
	}
}
