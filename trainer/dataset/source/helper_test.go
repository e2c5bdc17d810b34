package source

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// write makes a file in a folder of its own and returns it as Expand finds it.
func write(t testing.TB, name, content string) File {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(path, []byte(content), 0o600))
	return only(t, path)
}

// only expands a path that names one file.
func only(t testing.TB, path string) File {
	t.Helper()
	files, err := Expand(t.Context(), path)
	require.NoError(t, err)
	require.Len(t, files, 1)
	return files[0]
}

// row is a Row that may be kept.
type row struct {
	text string
	line int
}

// rows reads a file. The error ends the sequence, so both can be there.
func rows(t testing.TB, f File) (list []row, err error) {
	t.Helper()
	for r, e := range f.Rows(t.Context()) {
		require.NoError(t, err, "rows after an error")
		if err = e; err != nil {
			var at *Error
			require.ErrorAs(t, e, &at)
			require.Equal(t, f.Name, at.File)
			continue
		}
		list = append(list, row{string(r.Text), r.Line})
	}
	return list, err
}
