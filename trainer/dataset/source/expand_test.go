package source

import (
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// tree makes files of a folder, each an empty object, and goes there.
func tree(t *testing.T, paths ...string) {
	t.Helper()
	t.Chdir(t.TempDir())
	for _, p := range paths {
		require.NoError(t, os.MkdirAll(filepath.Dir(p), 0o700))
		require.NoError(t, os.WriteFile(p, []byte("{}\n"), 0o600))
	}
}

func TestExpand(t *testing.T) {
	tree(t, "d/b.jsonl", "d/a.csv.gz", "d/sub/x.parquet", "d/sub/y.TSV", "d/README.md", "d/.hidden/x.jsonl", "d/.x.jsonl",
		"d/_tmp.jsonl", "d/sub/deep/z.json.zst", "odd[1].txt", "e.jsonl")
	require.NoError(t, os.Symlink(filepath.Join("..", "e.jsonl"), "d/link.jsonl"))
	require.NoError(t, os.Mkdir("linked", 0o700))
	require.NoError(t, os.Symlink(filepath.Join("..", "d", "sub"), "linked/sub"))
	for path, want := range map[string][]string{
		"e.jsonl":           {"e.jsonl"},
		"d":                 {"d/a.csv.gz", "d/b.jsonl", "d/link.jsonl", "d/sub/deep/z.json.zst", "d/sub/x.parquet", "d/sub/y.TSV"},
		"linked":            {"linked/sub/deep/z.json.zst", "linked/sub/x.parquet", "linked/sub/y.TSV"},
		"d/*":               {"d/README.md", "d/_tmp.jsonl", "d/a.csv.gz", "d/b.jsonl", "d/link.jsonl"},
		"d/.*":              {"d/.x.jsonl"},
		"d/[ab].*":          {"d/a.csv.gz", "d/b.jsonl"},
		"*/sub/?.parquet":   {"d/sub/x.parquet", "linked/sub/x.parquet"},
		"d/**/*.zst":        {"d/sub/deep/z.json.zst"},
		"**/*.jsonl":        {"d/_tmp.jsonl", "d/b.jsonl", "d/link.jsonl", "e.jsonl"},
		"d/sub/**":          {"d/sub/deep/z.json.zst", "d/sub/x.parquet", "d/sub/y.TSV"},
		"odd[1].txt":        {"odd[1].txt"},
		"./d/../e.jsonl":    {"./d/../e.jsonl"},
		"d/**/**/x.parquet": {"d/sub/x.parquet"},
	} {
		files, err := Expand(t.Context(), path)
		require.NoError(t, err, path)
		assert.Equal(t, want, names(files), path)
	}
	whole, err := filepath.Abs("d/*.jsonl")
	require.NoError(t, err)
	files, err := Expand(t.Context(), whole)
	require.NoError(t, err)
	assert.Len(t, files, 3)
}

func TestExpandRefuses(t *testing.T) {
	tree(t, "docs/README.md", "docs/LICENSE", "half/a.jsonl", "half/b.jsonl.bz2", "round/a.jsonl", "broken/a.jsonl")
	require.NoError(t, os.Symlink(".", "round/self"))
	require.NoError(t, os.Symlink("nowhere", "broken/b.jsonl"))
	for path, want := range map[string]string{
		"":          "find : the path is empty",
		"none":      "find none: there is no such file or folder",
		"docs":      "find docs: no data files in this folder (2 files of other kinds); data ends in .jsonl, ",
		"half":      "half/b.jsonl.bz2 cannot be read",
		"round":     "round/self links to a folder that it is in",
		"broken":    "nowhere",
		"docs/*.x":  "find docs/*.x: no file matches the pattern",
		"none/*":    "find none/*: no file matches the pattern",
		"docs/[":    "syntax error in pattern",
		"docs/a**":  "** must stand alone between slashes",
		"docs/**/x": "no file matches the pattern",
	} {
		_, err := Expand(t.Context(), path)
		if path == "broken" {
			assert.ErrorIs(t, err, os.ErrNotExist)
			continue
		}
		assert.ErrorContains(t, err, want, path)
	}
}

func TestLocalStamp(t *testing.T) {
	f := write(t, "data.jsonl", "{}\n")
	first, ok, err := f.Stamp(t.Context())
	require.NoError(t, err)
	assert.True(t, ok)
	again, _, err := f.Stamp(t.Context())
	require.NoError(t, err)
	assert.Equal(t, first, again)
	require.NoError(t, os.Chtimes(f.Path(), time.Time{}, time.Now().Add(time.Hour)))
	later, _, err := f.Stamp(t.Context())
	require.NoError(t, err)
	assert.NotEqual(t, first, later)
	// Other content of the same size, with its time set back: rsync, tar and images make such files.
	info, err := os.Stat(f.Path())
	require.NoError(t, err)
	for changed := later; changed == later; { // the system's clock of files ticks some hundred times a second
		require.NoError(t, os.WriteFile(f.Path(), []byte("[]\n"), 0o600))
		require.NoError(t, os.Chtimes(f.Path(), time.Time{}, info.ModTime()))
		changed, _, err = f.Stamp(t.Context())
		require.NoError(t, err)
	}
	require.NoError(t, os.Remove(f.Path()))
	_, _, err = f.Stamp(t.Context())
	assert.ErrorContains(t, err, "data.jsonl: stamp: ")
	assert.False(t, f.Plain())
	_, err = rows(t, f)
	assert.ErrorIs(t, err, os.ErrNotExist)
}

func TestTakes(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	require.NoError(t, os.MkdirAll(filepath.Join("data", "sub"), 0o700))
	require.NoError(t, os.WriteFile("a.jsonl", nil, 0o600))
	for _, tt := range []struct {
		path, file string
		want       bool
	}{
		{"data", "data/out/x.jsonl", true},
		{"data", "data/sub/../x.json", true},
		{"data", "data/_out/x.jsonl", false},
		{"data", "data/out/LOCK", false},
		{"data", "data2/x.jsonl", false},
		{".", "out/x.jsonl", true},
		{"data/sub", filepath.Join(dir, "data", "sub", "x.jsonl"), true},
		{"data/*.jsonl", "data/x.jsonl", true},
		{"data/*.jsonl", "data/out/x.jsonl", false},
		{"data/**/*.jsonl", "data/out/x.jsonl", true},
		{"a.jsonl", "./a.jsonl", true},
		{"a.jsonl", "b.jsonl", false},
		{"-", "-", false},
		{"s3://bucket/data", "s3:/bucket/data/x.jsonl", false},
	} {
		got, err := Takes(tt.path, tt.file)
		require.NoError(t, err)
		assert.Equal(t, tt.want, got, "%s takes %s", tt.path, tt.file)
	}
}
