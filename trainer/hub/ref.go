package hub

import (
	"fmt"
	"path"
	"regexp"
	"strings"
)

const (
	hubScheme    = "hf://"
	ollamaScheme = "ollama://"
)

// IsReference reports whether a model's name is one of this package's and not a path.
func IsReference(name string) bool {
	return strings.HasPrefix(name, hubScheme) || strings.HasPrefix(name, ollamaScheme)
}

// Reference names a file on the hub.
type Reference struct {
	Owner, Repo, File string
	Revision          string // a branch, a tag or a commit; "main" unless it says otherwise
}

var (
	namePart     = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
	revisionPart = regexp.MustCompile(`^[A-Za-z0-9_.-]+(/[A-Za-z0-9_.-]+)*$`)
)

// ParseReference reads hf://owner/repo/file.gguf[@revision]; the file may lie in folders of the repository.
func ParseReference(text string) (Reference, error) {
	fail := func(why string) (Reference, error) {
		return Reference{}, fmt.Errorf("%q is %w: %s; want hf://owner/repo/file.gguf, with @revision if it is not main", text, ErrName, why)
	}
	rest, ok := strings.CutPrefix(text, hubScheme)
	if !ok {
		return fail("it does not begin with " + hubScheme)
	}
	rest, revision, pinned := strings.Cut(rest, "@")
	if !pinned {
		revision = "main"
	}
	parts := strings.SplitN(rest, "/", 3)
	if len(parts) < 2 {
		return fail("owner or repository is missing")
	}
	r := Reference{Owner: parts[0], Repo: parts[1], Revision: revision}
	if len(parts) == 3 {
		r.File = parts[2]
	}
	switch {
	case !namePart.MatchString(r.Owner) || !namePart.MatchString(r.Repo) || dots(r.Owner) || dots(r.Repo):
		return fail("owner or repository is no name")
	case !revisionPart.MatchString(revision) || path.Clean("/"+revision) != "/"+revision:
		return fail(fmt.Sprintf("%q is no revision", revision))
	case r.File != "" && (path.Clean("/"+r.File) != "/"+r.File || strings.ContainsAny(r.File, "\\\x00?#")):
		return fail(fmt.Sprintf("%q is no file of a repository", r.File))
	}
	return r, nil
}

func dots(name string) bool { return name == "." || name == ".." }

func (r Reference) String() string {
	text := hubScheme + r.Owner + "/" + r.Repo + "/" + r.File
	if r.Revision != "main" {
		text += "@" + r.Revision
	}
	return text
}

// folder is the repository's name in the cache.
func (r Reference) folder() string { return "models--" + r.Owner + "--" + r.Repo }

// pinned reports whether the revision is a commit, which never changes.
func (r Reference) pinned() bool { return commitHash.MatchString(r.Revision) }

// withFile is the same repository and revision with another file.
func (r Reference) withFile(file string) Reference {
	r.File = file
	return r
}
