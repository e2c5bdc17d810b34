package source

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
)

// isPattern reports whether a path has characters that stand for others.
func isPattern(name string) bool { return strings.ContainsAny(name, "*?[") }

// matchPath matches slash-separated parts of a name; the part "**" stands for any number of parts.
func matchPath(pattern, name []string) (bool, error) {
	if len(pattern) == 0 {
		return len(name) == 0, nil
	}
	if pattern[0] == "**" {
		for i := 0; i <= len(name); i++ {
			if ok, err := matchPath(pattern[1:], name[i:]); ok || err != nil {
				return ok, err
			}
		}
		return false, nil
	}
	if len(name) == 0 {
		return false, nil
	}
	if ok, err := path.Match(pattern[0], name[0]); !ok || err != nil {
		return false, err
	}
	return matchPath(pattern[1:], name[1:])
}

// checkPattern finds faults that matching would meet only by chance.
func checkPattern(pattern string) error {
	for part := range strings.SplitSeq(pattern, "/") {
		if _, err := path.Match(part, ""); err != nil {
			return fmt.Errorf("part %q: %w", part, err)
		}
		if part != "**" && strings.Contains(part, "**") {
			return fmt.Errorf("part %q: ** must stand alone between slashes", part)
		}
	}
	return nil
}

var errNoMatch = errors.New("no file matches the pattern")

// findPattern lists the local files that match.
func findPattern(pattern string) ([]File, error) {
	if err := checkPattern(filepath.ToSlash(pattern)); err != nil {
		return nil, err
	}
	root := "."
	parts := strings.Split(filepath.ToSlash(filepath.Clean(pattern)), "/")
	if filepath.IsAbs(pattern) {
		root, parts = "/", parts[1:]
	}
	paths, err := globBelow(root, parts)
	if err != nil {
		return nil, err
	}
	slices.Sort(paths) // ** can reach a file by several ways
	var files []File
	for _, p := range slices.Compact(paths) {
		info, err := os.Stat(p)
		if err != nil {
			return nil, err
		}
		if !info.IsDir() {
			files = append(files, newLocal(p, info))
		}
	}
	if len(files) == 0 {
		return nil, errNoMatch
	}
	return files, nil
}

// globBelow returns the paths below a folder that match parts of a pattern. As in shells, "*" and "**" stand for no
// name that begins with a dot, and "**" follows no links.
func globBelow(folder string, parts []string) ([]string, error) {
	part, rest := parts[0], parts[1:]
	if !isPattern(part) {
		next := filepath.Join(folder, part)
		if _, err := os.Stat(next); errors.Is(err, os.ErrNotExist) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		return globDown(next, rest)
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	var found []string
	if part == "**" {
		if found, err = globDown(folder, rest); err != nil {
			return nil, err
		}
	}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") && !strings.HasPrefix(part, ".") {
			continue
		}
		next := filepath.Join(folder, entry.Name())
		var below []string
		switch matched, _ := path.Match(part, entry.Name()); { // checkPattern has seen the error
		case part == "**" && entry.IsDir():
			below, err = globBelow(next, parts)
		case part == "**" && len(rest) == 0:
			below = []string{next}
		case part != "**" && matched:
			below, err = globDown(next, rest)
		}
		if err != nil {
			return nil, err
		}
		found = append(found, below...)
	}
	return found, nil
}

// globDown goes on in what matched, which is the end if no parts are left.
func globDown(next string, rest []string) ([]string, error) {
	if len(rest) == 0 {
		return []string{next}, nil
	}
	if info, err := os.Stat(next); err != nil {
		return nil, err
	} else if !info.IsDir() {
		return nil, nil
	}
	return globBelow(next, rest)
}
