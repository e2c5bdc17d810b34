package hub

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// Store finds models. FromEnvironment makes one.
type Store struct {
	Endpoint string // the hub
	Token    string // empty: none
	Cache    string // Hugging Face's cache folder of repositories
	Offline  bool   // take what the cache has
	Ollama   []string
	Patience Patience
	// Progress, if set, is called now and then during a download.
	Progress func(file string, done, total int64)
	// Note, if set, is told what the caller's user should know.
	Note func(text string)
}

// FromEnvironment makes a store as the variables say that Hugging Face's and ollama's own programs heed: HF_ENDPOINT, HF_TOKEN,
// HF_TOKEN_PATH, HF_HUB_CACHE, HF_HOME, HF_HUB_OFFLINE, XDG_CACHE_HOME, OLLAMA_MODELS. home is the user's folder.
func FromEnvironment(getenv func(string) string, home string) *Store {
	first := func(values ...string) string {
		for _, v := range values {
			if v != "" {
				return v
			}
		}
		return ""
	}
	below := func(folder string, parts ...string) string {
		if folder == "" {
			return ""
		}
		return filepath.Join(append([]string{folder}, parts...)...)
	}
	cache := first(getenv("XDG_CACHE_HOME"), below(home, ".cache"))
	hf := first(getenv("HF_HOME"), below(cache, "huggingface"))
	s := &Store{
		Endpoint: first(getenv("HF_ENDPOINT"), "https://huggingface.co"),
		Token:    strings.TrimSpace(getenv("HF_TOKEN")),
		Cache:    first(getenv("HF_HUB_CACHE"), getenv("HUGGINGFACE_HUB_CACHE"), below(hf, "hub")),
		Patience: defaultPatience,
	}
	switch strings.ToLower(getenv("HF_HUB_OFFLINE")) {
	case "1", "true", "yes", "on":
		s.Offline = true
	}
	if file := first(getenv("HF_TOKEN_PATH"), below(hf, "token")); s.Token == "" && file != "" {
		if text, err := os.ReadFile(file); err == nil { // none there: no token
			s.Token = strings.TrimSpace(string(text))
		}
	}
	if dir := getenv("OLLAMA_MODELS"); dir != "" {
		s.Ollama = []string{dir}
	} else {
		s.Ollama = []string{"/usr/share/ollama/.ollama/models"}
		if own := below(home, ".ollama", "models"); own != "" {
			s.Ollama = append([]string{own}, s.Ollama...)
		}
	}
	return s
}

// Found is a model's file, or the files of its shards.
type Found struct {
	Name   string   `json:"name"`
	Path   string   `json:"path"`            // of the first shard, if there are several
	Files  []string `json:"files,omitempty"` // of all shards, where there are several
	Bytes  int64    `json:"bytes"`           // of all files
	SHA256 []string `json:"sha256"`          // of each file, as announced and verified; "" where none was announced
	Commit string   `json:"commit,omitempty"`
	// Downloaded is how many bytes came over the network.
	Downloaded int64   `json:"downloaded"`
	Ollama     *Ollama `json:"ollama,omitempty"`
}

// Find brings a model to this machine, if it is not there already. A name that is no reference is taken as a path.
func (s *Store) Find(ctx context.Context, name string) (Found, error) {
	switch {
	case strings.HasPrefix(name, ollamaScheme):
		return s.findOllama(name)
	case !strings.HasPrefix(name, hubScheme):
		return Found{Name: name, Path: name}, nil
	}
	r, err := ParseReference(name)
	if err != nil {
		return Found{}, err
	}
	if r.File == "" {
		return Found{}, s.noFile(ctx, r)
	}
	if s.Cache == "" {
		return Found{}, errors.New("there is no folder for the cache: set HF_HUB_CACHE")
	}
	files, err := shards(r.File)
	if err != nil {
		return Found{}, fmt.Errorf("%s: %w", r, err)
	}
	found := Found{Name: name}
	for _, file := range files {
		one, err := s.findFile(ctx, r.withFile(file))
		if err != nil {
			return Found{}, err
		}
		if found.Commit != "" && one.commit != found.Commit {
			return Found{}, fmt.Errorf("%s: the repository changed while its shards were fetched: try again", r)
		}
		if found.Commit == "" { // the other shards are those of the same commit
			found.Path, found.Commit = one.path, one.commit
			r.Revision = one.commit
		}
		found.Files = append(found.Files, one.path)
		found.Bytes += one.bytes
		found.SHA256 = append(found.SHA256, one.sha256)
		found.Downloaded += one.downloaded
	}
	if len(files) == 1 {
		found.Files = nil
	}
	return found, nil
}

// noFile says which files of a repository could be meant.
func (s *Store) noFile(ctx context.Context, r Reference) error {
	if s.Offline {
		return fmt.Errorf("%s is %w: it names no file", r, ErrName)
	}
	files, err := s.list(ctx, r)
	switch {
	case err != nil:
		return fmt.Errorf("%s: it names no file, and which there are is not known: %w", r, err)
	case len(files) == 0:
		return fmt.Errorf("%s: %w: the repository has no GGUF file", r, ErrNotFound)
	}
	return fmt.Errorf("%s is %w: it names no file; there are %s", r, ErrName, strings.Join(files, ", "))
}

var shardName = regexp.MustCompile(`^(.*)-(\d{5})-of-(\d{5})(\.gguf)$`)

// maxShards bounds what a name may claim.
const maxShards = 1000

// shards lists the files that a file is one of, first to last; of most, only itself. Only the first may be asked for.
func shards(file string) ([]string, error) {
	m := shardName.FindStringSubmatch(file)
	if m == nil {
		return []string{file}, nil
	}
	number, _ := strconv.Atoi(m[2]) // digits
	count, _ := strconv.Atoi(m[3])
	switch {
	case count < 1 || count > maxShards || number < 1 || number > count:
		return nil, fmt.Errorf("shard %d of %d does not exist", number, count)
	case number != 1:
		return nil, fmt.Errorf("%w: it is shard %d of %d: name the first one, %s", ErrName, number, count, path.Base(fmt.Sprintf("%s-00001-of-%s%s", m[1], m[3], m[4])))
	}
	files := make([]string, count)
	for i := range files {
		files[i] = fmt.Sprintf("%s-%05d-of-%s%s", m[1], i+1, m[3], m[4])
	}
	return files, nil
}

func (s *Store) note(format string, args ...any) {
	if s.Note != nil {
		s.Note(fmt.Sprintf(format, args...))
	}
}

// cached is a file in the cache.
type cached struct {
	path       string
	commit     string
	bytes      int64
	sha256     string
	downloaded int64
}

// findFile returns a file of a repository from the cache, or brings it there.
func (s *Store) findFile(ctx context.Context, r Reference) (cached, error) {
	if r.pinned() || s.Offline {
		if c, ok := s.lookUp(r); ok {
			return c, nil
		}
		if s.Offline {
			return cached{}, fmt.Errorf("%s: %w in the cache (%s), and HF_HUB_OFFLINE is set", r, ErrNotFound, s.Cache)
		}
	}
	f, err := s.ask(ctx, r)
	if err != nil {
		if c, ok := s.lookUp(r); ok && away(err) {
			s.note("the hub cannot be reached: %s is taken as the cache has it, at commit %.12s", r, c.commit)
			return c, nil
		}
		return cached{}, err
	}
	c, err := s.bring(ctx, r, f)
	if err != nil {
		return cached{}, fmt.Errorf("%s: %w", r, err)
	}
	return c, nil
}

// lookUp finds a file in the cache by what it knows of revisions.
func (s *Store) lookUp(r Reference) (cached, bool) {
	commit := r.Revision
	if !r.pinned() {
		text, err := regular.ReadFile(filepath.Join(s.Cache, r.folder(), "refs", filepath.FromSlash(r.Revision)))
		if err != nil {
			return cached{}, false
		}
		commit = strings.TrimSpace(string(text))
		if !commitHash.MatchString(commit) {
			return cached{}, false
		}
	}
	at := s.snapshot(r, commit)
	info, err := os.Stat(at)
	if err != nil || !info.Mode().IsRegular() {
		return cached{}, false
	}
	c := cached{path: at, commit: commit, bytes: info.Size()}
	if target, err := os.Readlink(at); err == nil && sha256Hex.MatchString(filepath.Base(target)) {
		c.sha256 = filepath.Base(target)
	}
	return c, true
}

func (s *Store) snapshot(r Reference, commit string) string {
	return filepath.Join(s.Cache, r.folder(), "snapshots", commit, filepath.FromSlash(r.File))
}

// publish makes a blob visible as a file of a commit, and the commit as what a revision is.
func (s *Store) publish(r Reference, f remote, blob string) (cached, error) {
	c := cached{path: s.snapshot(r, f.commit), commit: f.commit, bytes: f.size}
	if sha256Hex.MatchString(f.etag) {
		c.sha256 = f.etag
	}
	dir := filepath.Dir(c.path)
	if err := durable.MkdirAll(durable.OS, dir); err != nil {
		return cached{}, err
	}
	target, err := filepath.Rel(dir, blob)
	if err != nil {
		return cached{}, err
	}
	if there, err := os.Readlink(c.path); err != nil || there != target {
		temp := fmt.Sprintf("%s.%d%s", c.path, os.Getpid(), durable.TempSuffix)
		_ = os.Remove(temp) // of a process that had this number
		if err := os.Symlink(target, temp); err != nil {
			return cached{}, err
		}
		if err := os.Rename(temp, c.path); err != nil {
			return cached{}, errors.Join(err, os.Remove(temp))
		}
	}
	if r.pinned() {
		return c, nil
	}
	ref := filepath.Join(s.Cache, r.folder(), "refs", filepath.FromSlash(r.Revision))
	if err := durable.MkdirAll(durable.OS, filepath.Dir(ref)); err != nil {
		return cached{}, err
	}
	if there, err := regular.ReadFile(ref); err == nil && string(there) == f.commit {
		return c, nil
	}
	temp := fmt.Sprintf("%s.%d%s", ref, os.Getpid(), durable.TempSuffix)
	if err := os.WriteFile(temp, []byte(f.commit), 0o644); err != nil {
		return cached{}, err
	}
	return c, os.Rename(temp, ref)
}
