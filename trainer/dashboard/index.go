package dashboard

import (
	"path/filepath"
	"slices"
	"sync"
	"time"

	"cftune/trainer/runs"
)

// Index has the runs below some folders, as they were at the last look.
type Index struct {
	folders []string

	mu      sync.Mutex // held while files are read and while a page is made of them
	runs    []*run     // in the order of their folders
	notes   []string
	version int // another one when a run came or went, or a note
	// When and how long it was looked for runs, and into them.
	found, looked         time.Time
	findingTook, lookTook time.Duration
}

// However many people look, no more often than this is looked for runs, and into them; and where it takes long, as it does
// on a far disk, so seldom that it is at most a tenth of the time.
const (
	findEvery = 5 * time.Second
	lookEvery = time.Second
	restShare = 10
	lookers   = 4
)

// NewIndex looks for runs below the folders. A folder that cannot be read is an error.
func NewIndex(folders ...string) (*Index, error) {
	x := &Index{folders: folders}
	found, err := runs.Find(folders...)
	if err != nil {
		return nil, err
	}
	x.take(found)
	return x, nil
}

// Len is how many runs there are.
func (x *Index) Len() int {
	x.mu.Lock()
	defer x.mu.Unlock()
	return len(x.runs)
}

func (x *Index) take(found runs.Found) {
	x.found = time.Now()
	list := make([]*run, 0, len(found.Dirs))
	for _, dir := range found.Dirs {
		if i := slices.IndexFunc(x.runs, func(r *run) bool { return r.dir == dir }); i >= 0 {
			list = append(list, x.runs[i])
		} else {
			list = append(list, newRun(dir, x.name(dir)))
		}
	}
	if !slices.Equal(list, x.runs) || !slices.Equal(found.Notes, x.notes) {
		x.version++
	}
	x.runs, x.notes = list, found.Notes
}

// name is how a run is called: by its path within the folder, or, of several folders, by its whole path.
func (x *Index) name(dir string) string {
	if len(x.folders) == 1 {
		if name, err := filepath.Rel(x.folders[0], dir); err == nil && name != "." {
			return name
		}
	}
	return filepath.Clean(dir)
}

// refresh looks at all runs again, unless that was done just now. The lock is held.
func (x *Index) refresh() {
	if time.Since(x.found) >= max(findEvery, restShare*x.findingTook) {
		began := time.Now()
		if found, err := runs.Find(x.folders...); err == nil {
			x.take(found)
		} else {
			x.take(runs.Found{Notes: []string{err.Error()}})
		}
		x.findingTook = time.Since(began)
	}
	if time.Since(x.looked) < max(lookEvery, restShare*x.lookTook) {
		return
	}
	began := time.Now()
	var wg sync.WaitGroup
	next := make(chan *run)
	for range lookers {
		wg.Go(func() {
			for r := range next {
				r.refresh()
			}
		})
	}
	for _, r := range x.runs {
		next <- r
	}
	close(next)
	wg.Wait()
	x.looked = time.Now()
	x.lookTook = x.looked.Sub(began)
}

// run returns the run of an identifier, nil if there is none. The lock is held.
func (x *Index) run(id string) *run {
	if i := slices.IndexFunc(x.runs, func(r *run) bool { return r.id == id }); i >= 0 {
		return x.runs[i]
	}
	return nil
}
