package runs

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cftune/trainer/checkpoint"
)

// Found is what Find found.
type Found struct {
	Dirs []string
	// Notes tell what was not looked at, and why.
	Notes []string
}

const (
	// maxDepth and maxFolders bound how much is looked through for runs.
	maxDepth   = 6
	maxFolders = 20000
	// MaxRuns bounds how many are found.
	MaxRuns = 1000
)

// Find looks for run directories: the folders themselves, or what is below them. There is nothing to find within a run.
// A folder that cannot be read is an error if it is one of the given, else a note.
func Find(folders ...string) (Found, error) {
	f := finder{seen: map[string]bool{}}
	for _, folder := range folders {
		info, err := os.Stat(folder)
		if err == nil && !info.IsDir() {
			err = fmt.Errorf("%s is not a folder", folder)
		}
		if err == nil && !isRun(folder) {
			_, err = os.ReadDir(folder)
		}
		if err != nil {
			return Found{}, fmt.Errorf("find runs: %w", err)
		}
		f.look(folder, 0)
	}
	if f.more {
		f.found.Notes = append(f.found.Notes, fmt.Sprintf("not all was looked at: more than %d runs, %d folders, or folders more than %d deep", MaxRuns, maxFolders, maxDepth))
	}
	return f.found, nil
}

type finder struct {
	found   Found
	seen    map[string]bool // by what links lead to
	folders int
	more    bool
}

// isRun tells run directories from others that have a config.json, such as models'.
func isRun(dir string) bool {
	has := func(name string) bool {
		_, err := os.Lstat(filepath.Join(dir, name))
		return err == nil
	}
	return has(checkpoint.ConfigName) && (has(checkpoint.LockName) || has(checkpoint.MetricsName) || has(filepath.Dir(checkpoint.StepDir("", 0))))
}

func (f *finder) look(dir string, depth int) {
	real, err := filepath.EvalSymlinks(dir)
	if err != nil || f.seen[real] {
		return
	}
	f.seen[real] = true
	f.folders++
	if isRun(dir) {
		if len(f.found.Dirs) == MaxRuns {
			f.more = true
			return
		}
		f.found.Dirs = append(f.found.Dirs, dir)
		return
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		if !errors.Is(err, os.ErrNotExist) { // it went away just now
			f.found.Notes = append(f.found.Notes, err.Error())
		}
		return
	}
	for _, entry := range entries {
		path := filepath.Join(dir, entry.Name())
		if entry.Type()&os.ModeSymlink != 0 {
			if info, err := os.Stat(path); err != nil || !info.IsDir() {
				continue
			}
		} else if !entry.IsDir() {
			continue
		}
		if depth == maxDepth || f.folders == maxFolders {
			f.more = true
			return
		}
		f.look(path, depth+1)
	}
}
