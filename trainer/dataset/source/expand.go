package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Expand lists the files that a path names, sorted by name; there is at least one. The path is
//
//   - a file, taken whatever its name;
//   - a folder: the files below it that are data by their name (.jsonl, .ndjson, .json, .csv, .tsv, .tab, .parquet; the
//     text also .gz, .gzip, .zst, .zstd). Names that begin with "." or "_" are left out, as are files of other names;
//     but data in a form that cannot be read (.arrow, .bz2, .zip and the like) is an error;
//   - a pattern: "*", "?" and "[a-z]" stand for characters of one name, "**" for any number of folders. It names files,
//     not folders, taken whatever their name;
//   - "-": standard input;
//   - a URL, file:///folder/file, s3://bucket/key, gs://bucket/key or azblob://container/key: as for paths, a key may
//     be an object, a folder ("prefix/") or a pattern (without "?", which begins the bucket's options). http:// and
//     https:// name one file.
//
// Credentials are those that each store's own tools use.
func Expand(ctx context.Context, path string) ([]File, error) {
	files, err := defaultFinder.find(ctx, path)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", shownName(path), err)
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Name, b.Name) })
	return files, nil
}

// find is Expand, unsorted.
func (f *finder) find(ctx context.Context, path string) ([]File, error) {
	if path == "" {
		return nil, errors.New("the path is empty")
	}
	if path == "-" {
		return []File{{Name: "standard input", place: f.stdin}}, nil
	}
	if scheme, rest, isURL := strings.Cut(path, "://"); isURL {
		return f.findURL(ctx, scheme, rest)
	}
	return findLocal(path)
}

func findLocal(path string) ([]File, error) {
	info, err := os.Stat(path)
	switch {
	case err == nil && info.IsDir():
		return findFolder(path)
	case err == nil:
		return []File{newLocal(path, info)}, nil
	case errors.Is(err, fs.ErrNotExist) && isPattern(path):
		return findPattern(path)
	case errors.Is(err, fs.ErrNotExist):
		return nil, errors.New("there is no such file or folder")
	}
	return nil, err
}

// newLocal takes pipes and devices as such: a file is what can be opened twice.
func newLocal(path string, info fs.FileInfo) File {
	if info.Mode().IsRegular() {
		return File{path, localFile{path, info.Size()}}
	}
	return File{path, &pipe{opener: func() (io.ReadCloser, error) { return os.Open(path) }}}
}

// findFolder lists the data files below a folder. Links are followed, as folders of data often hold links to a cache.
func findFolder(root string) ([]File, error) {
	var files []File
	others := 0
	var visit func(folder string, above []string) error
	visit = func(folder string, above []string) error {
		real, err := filepath.EvalSymlinks(folder)
		if err != nil {
			return err
		}
		if slices.Contains(above, real) {
			return fmt.Errorf("%s links to a folder that it is in", folder)
		}
		entries, err := os.ReadDir(folder)
		if err != nil {
			return err
		}
		for _, entry := range entries {
			path := filepath.Join(folder, entry.Name())
			if hidden(entry.Name()) {
				continue
			}
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			if info.IsDir() {
				if err := visit(path, append(slices.Clip(above), real)); err != nil {
					return err
				}
				continue
			}
			isData, err := dataByName(path)
			if err != nil {
				return err
			}
			if isData {
				files = append(files, newLocal(path, info))
			} else {
				others++
			}
		}
		return nil
	}
	if err := visit(root, nil); err != nil {
		return nil, err
	}
	if len(files) == 0 {
		return nil, noData(others)
	}
	return files, nil
}

func noData(others int) error {
	return fmt.Errorf("no data files in this folder (%d files of other kinds); data ends in %s, or is named by a pattern", others, strings.Join(dataEndings, ", "))
}

var (
	dataEndings   = []string{".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".tab", ".parquet"}
	closedEndings = []string{".bz2", ".xz", ".lz4", ".snappy", ".br", ".zip", ".tar", ".tgz", ".7z", ".arrow", ".feather", ".orc", ".avro", ".xls", ".xlsx"}
)

// dataByName reports whether a file of a folder is data. Data that cannot be read is an error, so that half a folder
// does not pass for the whole.
func dataByName(name string) (bool, error) {
	plain := strings.ToLower(plainName(name))
	if slices.Contains(closedEndings, filepath.Ext(plain)) {
		return false, fmt.Errorf("%s cannot be read; %s; name the files by a pattern to leave it out", name, readable)
	}
	return slices.Contains(dataEndings, filepath.Ext(plain)), nil
}

func hidden(name string) bool { return strings.HasPrefix(name, ".") || strings.HasPrefix(name, "_") }

// Takes reports whether a local path would take a file as data if it were there: a folder that it lies in, a pattern that
// matches it, the file itself. Links are not followed.
func Takes(path, file string) (bool, error) {
	if path == "-" || strings.Contains(path, "://") {
		return false, nil
	}
	whole, err := filepath.Abs(file)
	if err != nil {
		return false, err
	}
	from, err := filepath.Abs(path)
	if err != nil {
		return false, err
	}
	parts := func(name string) []string { return strings.Split(filepath.ToSlash(name), "/") }
	info, err := os.Stat(path)
	if err != nil || !info.IsDir() {
		if isPattern(path) && errors.Is(err, fs.ErrNotExist) {
			return matchPath(parts(from), parts(whole))
		}
		return from == whole, nil
	}
	below, err := filepath.Rel(from, whole)
	if err != nil || below == ".." || strings.HasPrefix(below, ".."+string(filepath.Separator)) {
		return false, nil // on another volume, or beside it
	}
	if slices.ContainsFunc(parts(below), hidden) {
		return false, nil
	}
	return dataByName(whole)
}
