package launch

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
)

// Names in a study's folder, as package study has them.
const (
	studyRecord   = "study.json"
	studyRuns     = "runs"
	studyAdapters = "adapters"
)

// studyFolders hold small files that are fetched whole.
var studyFolders = []string{"data", "progress", "scores"}

// FetchStudy brings a study from a target to dir: its record, data, progress, texts, adapters and the courses of its runs; with
// all, their newest checkpoints too. What is here already is not fetched again; a folder of another study is refused. The
// caller verifies what has come. made reports that the study was made in dir itself.
func FetchStudy(ctx context.Context, t Target, parts []Placed, dir string, all bool, say func(format string, args ...any)) (made bool, err error) {
	h, far := t.Host(), parts[0].Job.Run
	if here, err := filepath.Abs(dir); err == nil && h == (localHost{}) && here == far {
		return true, nil
	}
	if err := sameStudy(h, far, dir); err != nil {
		return false, err
	}
	for _, folder := range studyFolders {
		err := eachFile(h, path.Join(far, folder), func(name string) error {
			return fetchInto(h, path.Join(far, folder, name), filepath.Join(dir, folder, name))
		})
		if err != nil {
			return false, err
		}
	}
	err = eachFile(h, path.Join(far, studyAdapters), func(name string) error {
		say("fetching %s/%s", studyAdapters, name)
		return get(ctx, h, path.Join(far, studyAdapters, name), filepath.Join(dir, studyAdapters, name))
	})
	if err != nil {
		return false, err
	}
	infos, err := h.ReadDir(path.Join(far, studyRuns))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	for _, info := range infos {
		if !info.IsDir() {
			continue
		}
		if err := fetchCourse(ctx, h, path.Join(far, studyRuns, info.Name()), filepath.Join(dir, studyRuns, filepath.Base(info.Name())), all, say); err != nil {
			return false, err
		}
	}
	// The record last: a folder that has it has the rest.
	return false, fetchInto(h, path.Join(far, studyRecord), filepath.Join(dir, studyRecord))
}

// sameStudy refuses a folder that holds another study.
func sameStudy(h Host, far, dir string) error {
	text, err := readSmall(h, path.Join(far, studyRecord), maxOutput)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("the study has not begun: %s on %s has no %s", far, h.Name(), studyRecord)
	}
	if err != nil {
		return err
	}
	here, err := regular.ReadFile(filepath.Join(dir, studyRecord))
	if err == nil && !bytes.Equal(text, here) {
		return usage("%s holds another study: --output names another folder", dir)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// eachFile visits the files of a folder that are finished.
func eachFile(h Host, folder string, visit func(name string) error) error {
	infos, err := h.ReadDir(folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, info := range infos {
		name := filepath.Base(info.Name())
		if !info.Mode().IsRegular() || strings.HasSuffix(name, durable.TempSuffix) {
			continue
		}
		if err := visit(name); err != nil {
			return fmt.Errorf("fetch %s: %w", name, err)
		}
	}
	return nil
}

func fetchInto(h Host, remote, local string) error {
	if err := os.MkdirAll(filepath.Dir(local), privateDir); err != nil {
		return err
	}
	return fetchGrowing(h, remote, local)
}

// fetchCourse brings what tells how a run of a study went, with all its newest checkpoint too.
func fetchCourse(ctx context.Context, h Host, far, dir string, all bool, say func(format string, args ...any)) error {
	if all {
		steps, err := farSteps(h, far)
		if err != nil {
			return err
		}
		if len(steps) > 0 {
			_, err = FetchRun(ctx, h, path.Base(far), far, dir, false, say)
			return err
		}
	}
	return fetchFiles(h, far, dir, false)
}
