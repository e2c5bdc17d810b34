package hub

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// Ollama is what a model of ollama's store has beside its weights.
type Ollama struct {
	Store      string         `json:"store"`
	Template   string         `json:"template,omitempty"` // in ollama's own language
	System     string         `json:"system,omitempty"`
	Parameters map[string]any `json:"parameters,omitempty"`
	Adapters   []string       `json:"adapters,omitempty"` // paths
	Licenses   []string       `json:"licenses,omitempty"`
}

// The layers of a manifest.
const (
	layerPrefix   = "application/vnd.ollama.image."
	maxManifest   = 4 << 20
	maxTextLayer  = 4 << 20
	defaultHost   = "registry.ollama.ai"
	defaultSpace  = "library"
	defaultTag    = "latest"
	manifestsName = "manifests"
)

type layer struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
	Size      int64  `json:"size"`
}

var (
	layerDigest = regexp.MustCompile(`^sha256[:-]([0-9a-f]{64})$`)
	hostPart    = regexp.MustCompile(`^[A-Za-z0-9_.-]+(:[0-9]+)?$`)
)

// manifestPath is where a name's manifest lies below a store: [host/][namespace/]model[:tag].
func manifestPath(name string) (string, error) {
	rest := strings.TrimPrefix(name, ollamaScheme)
	tag := defaultTag
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, tag = rest[:i], rest[i+1:]
	}
	parts := strings.Split(rest, "/")
	switch len(parts) {
	case 1:
		parts = append([]string{defaultHost, defaultSpace}, parts...)
	case 2:
		parts = append([]string{defaultHost}, parts...)
	}
	bad := len(parts) != 3 || !hostPart.MatchString(parts[0])
	for _, p := range append(parts[1:], tag) {
		bad = bad || !namePart.MatchString(p) || dots(p)
	}
	if bad || dots(parts[0]) {
		return "", fmt.Errorf("%q is %w: want ollama://name:tag, with host and namespace before it if they are not ollama's own", name, ErrName)
	}
	return filepath.Join(append(append([]string{manifestsName}, parts...), tag)...), nil
}

// findOllama finds a model in ollama's store on this machine.
func (s *Store) findOllama(name string) (Found, error) {
	at, err := manifestPath(name)
	if err != nil {
		return Found{}, err
	}
	for _, store := range s.Ollama {
		text, err := readBounded(filepath.Join(store, at), maxManifest)
		if errors.Is(err, os.ErrNotExist) || store == "" {
			continue
		}
		if err != nil {
			return Found{}, fmt.Errorf("%s: %w", name, err)
		}
		found, err := readManifest(store, text)
		if err != nil {
			return Found{}, fmt.Errorf("%s: %w", name, err)
		}
		found.Name = name
		if n := len(found.Ollama.Adapters); n > 0 {
			s.note("%s is a base model with %d adapters: only the base model is taken; adapter.init_from or --adapter takes an adapter: %s", name, n, strings.Join(found.Ollama.Adapters, ", "))
		}
		return found, nil
	}
	return Found{}, fmt.Errorf("%s: %w in %s; `ollama pull` brings it, OLLAMA_MODELS names another store", name, ErrNotFound, strings.Join(s.Ollama, ", "))
}

func readManifest(store string, text []byte) (Found, error) {
	var manifest struct {
		Layers []layer `json:"layers"`
	}
	if err := json.Unmarshal(text, &manifest); err != nil {
		return Found{}, fmt.Errorf("its manifest: %w", err)
	}
	found := Found{Ollama: &Ollama{Store: store}}
	for _, l := range manifest.Layers {
		kind, ours := strings.CutPrefix(l.MediaType, layerPrefix)
		if !ours {
			continue
		}
		blob, digest, err := blobOf(store, l)
		if err != nil {
			return Found{}, err
		}
		switch kind {
		case "model":
			if found.Path != "" {
				return Found{}, errors.New("it has several models, as one of shards has; import it from one file")
			}
			found.Path, found.Bytes, found.SHA256 = blob, l.Size, []string{digest}
		case "adapter":
			found.Ollama.Adapters = append(found.Ollama.Adapters, blob)
		default:
			if err := found.Ollama.read(kind, blob); err != nil {
				return Found{}, err
			}
		}
	}
	if found.Path == "" {
		return Found{}, fmt.Errorf("%w: its manifest has no model", ErrNotFound)
	}
	return found, nil
}

// blobOf finds the file of a layer, which must have the announced size.
func blobOf(store string, l layer) (path, digest string, err error) {
	m := layerDigest.FindStringSubmatch(l.Digest)
	if m == nil {
		return "", "", fmt.Errorf("its manifest has the digest %q", l.Digest)
	}
	path = filepath.Join(store, "blobs", "sha256-"+m[1])
	info, err := os.Stat(path)
	if err != nil {
		return "", "", fmt.Errorf("its %s: %w", strings.TrimPrefix(l.MediaType, layerPrefix), err)
	}
	if info.Size() != l.Size {
		return "", "", fmt.Errorf("%w: %s has %d bytes, its manifest says %d; `ollama pull` mends it", ErrDigest, path, info.Size(), l.Size)
	}
	return path, m[1], nil
}

// read takes a layer of text.
func (o *Ollama) read(kind, blob string) error {
	text, err := readBounded(blob, maxTextLayer)
	if err != nil {
		return err
	}
	switch kind {
	case "template":
		o.Template = string(text)
	case "system":
		o.System = string(text)
	case "license":
		o.Licenses = append(o.Licenses, string(text))
	case "params":
		if err := json.Unmarshal(text, &o.Parameters); err != nil {
			return fmt.Errorf("its parameters: %w", err)
		}
	}
	return nil
}

func readBounded(path string, limit int64) ([]byte, error) {
	f, err := regular.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	return text, err
}

// Verify reads the files of a model of which a digest is announced and compares.
func (f Found) Verify() error {
	files := f.Files
	if files == nil {
		files = []string{f.Path}
	}
	for i, want := range f.SHA256 {
		if want == "" {
			continue
		}
		written, err := durable.Digest(files[i])
		if err != nil {
			return err
		}
		if written.SHA256 != want {
			return fmt.Errorf("%w: %s has the sha256 %.16s, %.16s was announced; remove the file and fetch it again", ErrDigest, files[i], written.SHA256, want)
		}
	}
	return nil
}
