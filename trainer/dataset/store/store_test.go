package store

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/dataset/source"
)

func file(t testing.TB, path string) source.File {
	t.Helper()
	files, err := source.Expand(t.Context(), path)
	require.NoError(t, err)
	require.Len(t, files, 1)
	return files[0]
}

// rows of very different lengths; blank lines between some of them.
func someRows(n int) (rows []string, lines []int, text string) {
	var b strings.Builder
	line := 1
	for i := range n {
		if i%7 == 3 {
			b.WriteString(" \n\n")
			line += 2
		}
		row := fmt.Sprintf(`{"n": %d, "text": %q}`, i, strings.Repeat("ab ", i*i%997))
		if i == n/2 {
			row = fmt.Sprintf(`{"n": %d, "text": %q}`, i, strings.Repeat("x", 100_000))
		}
		rows, lines = append(rows, row), append(lines, line)
		b.WriteString(row + "\n")
		line++
	}
	return rows, lines, b.String()
}

func packed(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write([]byte(text))
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return b.Bytes()
}

func check(t testing.TB, table *Table, rows []string, lines []int) {
	t.Helper()
	require.Equal(t, len(rows), table.Len())
	rng := rand.New(rand.NewPCG(1, 1))
	for _, i := range append(rng.Perm(len(rows)), 0, 1, 2, 3) {
		text, line, err := table.Row(i)
		require.NoError(t, err)
		require.Equal(t, rows[i], string(text), "row %d", i)
		require.Equal(t, lines[i], line, "row %d", i)
	}
}

func TestRowsOfPlainAndPackedFiles(t *testing.T) {
	defer func(bytes int64) { keptPlainBytes = bytes }(keptPlainBytes)
	keptPlainBytes = 1
	rows, lines, text := someRows(1500)
	dir, cache := t.TempDir(), t.TempDir()
	// Of its own: packages tested beside this one keep files in the system's.
	t.Setenv("TMPDIR", t.TempDir())
	require.NoError(t, os.WriteFile(filepath.Join(dir, "plain.jsonl"), []byte("\ufeff"+text), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "packed.jsonl.gz"), packed(t, text), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "array.json"), []byte("["+strings.Join(rows, ",\n")+"]"), 0o600))
	numbers := make([]int, len(rows))
	for i := range numbers {
		numbers[i] = i + 1
	}
	for _, tt := range []struct {
		name  string
		lines []int
		kept  string
	}{{"plain.jsonl", lines, "*.index"}, {"packed.jsonl.gz", lines, "*.rows"}, {"array.json", numbers, "*.rows"}} {
		t.Run(tt.name, func(t *testing.T) {
			f := file(t, filepath.Join(dir, tt.name))
			first, err := Open(t.Context(), f, Options{Cache: cache})
			require.NoError(t, err)
			defer first.Close()
			check(t, first, rows, tt.lines)
			again, err := Open(t.Context(), f, Options{Cache: cache, Progress: func(string, int64) { t.Error("it was read again") }})
			require.NoError(t, err)
			defer again.Close()
			check(t, again, rows, tt.lines)
			assert.Equal(t, first.Digest(), again.Digest())
			loose, err := Open(t.Context(), f, Options{})
			require.NoError(t, err)
			check(t, loose, rows, tt.lines)
			assert.Equal(t, first.Digest(), loose.Digest())
			require.NoError(t, loose.Close())
		})
	}
	left, err := filepath.Glob(filepath.Join(cache, "data", "*"))
	require.NoError(t, err)
	assert.Len(t, left, 5, "three indexes and two files of rows")
	left, err = filepath.Glob(filepath.Join(os.TempDir(), "cftune-data-*"))
	require.NoError(t, err)
	assert.Empty(t, left, "a temporary folder was left")
}

func TestChangedSourcesAreReadAgain(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "a.jsonl")
	digests := map[string]bool{}
	for _, text := range []string{`{"a": 1}`, `{"a": 1}` + "\n" + `{"a": 22}`, ""} {
		require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
		table, err := Open(t.Context(), file(t, path), Options{Cache: cache})
		if text == "" {
			require.Error(t, err, "an empty file is no source")
			continue
		}
		require.NoError(t, err)
		assert.Equal(t, strings.Count(text, "{"), table.Len())
		digests[table.Digest()] = true
		require.NoError(t, table.Close())
	}
	assert.Len(t, digests, 2)
}

// Somebody writes to a file while its rows are read: what was read before may be used, what is another now is not, and what was added does no harm.
func TestPlainFilesThatChangeWhileTheyAreRead(t *testing.T) {
	rows, lines, text := someRows(500)
	path := filepath.Join(t.TempDir(), "a.jsonl")
	require.NoError(t, os.WriteFile(path, []byte("\n"+text), 0o600))
	table, err := Open(t.Context(), file(t, path), Options{})
	require.NoError(t, err)
	defer func() { assert.NoError(t, table.Close()) }()
	f, err := os.OpenFile(path, os.O_WRONLY, 0o600)
	require.NoError(t, err)
	changed := 1 + strings.Index(text, `{"n": 400,`) + len(`{"n": 4`)
	_, err = f.WriteAt([]byte("7"), int64(changed))
	require.NoError(t, err)
	_, err = f.WriteAt([]byte(`{"n": 500}`+"\n"), int64(1+len(text)))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	refused := 0
	for i, row := range rows {
		got, line, err := table.Row(i)
		if err == nil {
			require.Equal(t, row, string(got))
			require.Equal(t, lines[i]+1, line)
			continue
		}
		require.ErrorContains(t, err, "a.jsonl has changed since it was indexed: its lines from ")
		refused++
	}
	_, _, err = table.Row(400)
	require.Error(t, err)
	assert.Less(t, refused, 100, "only what lies beside it")
}

func TestSmallPlainFilesLeaveNothing(t *testing.T) {
	rows, lines, text := someRows(100)
	path, cache := filepath.Join(t.TempDir(), "a.jsonl"), t.TempDir()
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	for _, folder := range []string{cache, ""} {
		table, err := Open(t.Context(), file(t, path), Options{Cache: folder})
		require.NoError(t, err)
		check(t, table, rows, lines)
		require.NoError(t, table.Close())
	}
	left, err := filepath.Glob(filepath.Join(cache, "data", "*"))
	require.NoError(t, err)
	assert.Empty(t, left)
}

func TestDamagedCachesAreMadeAgain(t *testing.T) {
	rows, lines, text := someRows(400)
	dir, cache := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "a.jsonl.gz")
	require.NoError(t, os.WriteFile(path, packed(t, text), 0o600))
	open := func() *Table {
		table, err := Open(t.Context(), file(t, path), Options{Cache: cache})
		require.NoError(t, err)
		return table
	}
	require.NoError(t, open().Close())
	for _, ending := range []string{"*.index", "*.rows"} {
		found, err := filepath.Glob(filepath.Join(cache, "data", ending))
		require.NoError(t, err)
		require.Len(t, found, 1)
		whole, err := os.ReadFile(found[0])
		require.NoError(t, err)
		for name, damage := range map[string][]byte{"cut": whole[:len(whole)/2], "empty": nil, "longer": append(whole[:len(whole):len(whole)], 1), "flipped": flip(whole)} {
			require.NoError(t, os.WriteFile(found[0], damage, 0o600))
			table := open()
			if ending == "*.rows" && name == "flipped" {
				// Its size is right, so that only reading shows it.
				var err error
				for i := 0; err == nil && i < table.Len(); i++ {
					_, _, err = table.Row(i)
				}
				assert.ErrorContains(t, err, "are damaged")
				assert.ErrorContains(t, err, "remove "+found[0])
				require.NoError(t, table.Close())
				require.NoError(t, os.Remove(found[0]))
				table = open()
			}
			check(t, table, rows, lines)
			require.NoError(t, table.Close())
		}
	}
}

func flip(text []byte) []byte {
	text = bytes.Clone(text)
	text[len(text)/2] ^= 0x10
	return text
}

func TestFaultsOfTheSourceLeaveNothing(t *testing.T) {
	dir, cache := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "a.jsonl.gz")
	whole := packed(t, `{"a": 1}`+"\n"+strings.Repeat(`{"b": "x"}`+"\n", 1000))
	require.NoError(t, os.WriteFile(path, whole[:len(whole)-9], 0o600))
	_, err := Open(t.Context(), file(t, path), Options{Cache: cache})
	var fault *source.Error
	require.ErrorAs(t, err, &fault)
	left, err := filepath.Glob(filepath.Join(cache, "data", "*"))
	require.NoError(t, err)
	assert.Empty(t, left)

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	require.NoError(t, os.WriteFile(path, whole, 0o600))
	_, err = Open(ctx, file(t, path), Options{Cache: cache})
	require.ErrorIs(t, err, context.Canceled)
}

func TestManyReadersAndBuilders(t *testing.T) {
	rows, lines, text := someRows(600)
	dir, cache := t.TempDir(), t.TempDir()
	path := filepath.Join(dir, "a.jsonl.gz")
	require.NoError(t, os.WriteFile(path, packed(t, text), 0o600))
	f := file(t, path)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			table, err := Open(context.Background(), f, Options{Cache: cache})
			if !assert.NoError(t, err) {
				return
			}
			defer table.Close()
			var inner sync.WaitGroup
			for k := range 3 {
				inner.Go(func() {
					for i := k; i < len(rows); i += 2 {
						text, line, err := table.Row(i)
						assert.NoError(t, err)
						assert.Equal(t, rows[i], string(text))
						assert.Equal(t, lines[i], line)
					}
				})
			}
			inner.Wait()
		})
	}
	wg.Wait()
}
