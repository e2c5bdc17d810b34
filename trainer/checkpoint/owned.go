package checkpoint

import (
	"os"
	"path/filepath"
	"slices"
)

// ownFiles are what a run has in its folder beside its checkpoints.
var ownFiles = []string{ConfigName, MetricsName, JournalName, ControlName, EndName, LockName, ChosenName, checkpointsName, TensorBoardName}

// OwnedBy returns the run that a path belongs to, be there something or not: one of the run's own files, or anything in the folder of its
// checkpoints or of its event files. It is empty where the path is no run's, as that of another file in a run's folder is.
func OwnedBy(path string) (run string) {
	at, missing := existing(path)
	resolved, err := filepath.EvalSymlinks(at)
	if err == nil {
		resolved, err = filepath.Abs(resolved)
	}
	if err != nil {
		return ""
	}
	for _, m := range missing {
		resolved = filepath.Join(resolved, filepath.Base(m))
	}
	inside := false // a file or folder below an own one
	for at := resolved; at != filepath.Dir(at); at = filepath.Dir(at) {
		dir, name := filepath.Dir(at), filepath.Base(at)
		own := slices.Contains(ownFiles, name) && !inside || name == checkpointsName || name == TensorBoardName
		if own && isRun(dir) {
			return dir
		}
		inside = true
	}
	return ""
}

// isRun reports whether a folder is a run's: others have a config.json as well.
func isRun(dir string) bool {
	config, err := os.Stat(filepath.Join(dir, ConfigName))
	if err != nil || !config.Mode().IsRegular() {
		return false
	}
	steps, err := os.Stat(filepath.Join(dir, checkpointsName))
	return err == nil && steps.IsDir()
}
