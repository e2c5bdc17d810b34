// Package testfiles has what tests of several packages do with files: find the real model, and look through folders.
package testfiles

import (
	"bytes"
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Model is the small model that scripts/fetch-model gets, or CFTUNE_MODEL; without one the test is skipped.
func Model(t testing.TB) string {
	t.Helper()
	path := os.Getenv("CFTUNE_MODEL")
	if path == "" {
		cache := os.Getenv("CFTUNE_CACHE")
		if cache == "" {
			dir, err := os.UserCacheDir()
			if err != nil {
				t.Skipf("no model: CFTUNE_MODEL is not set and there is no cache folder: %v", err)
			}
			cache = filepath.Join(dir, "cftune")
		}
		path = filepath.Join(cache, "models", "SmolLM2-135M-Instruct.Q4_1.gguf")
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("no model: CFTUNE_MODEL is not set to one and scripts/fetch-model has not fetched one: %v", err)
	}
	return path
}

// AssertNowhere wants a secret in no file below the folders, which must have more than ten.
func AssertNowhere(t testing.TB, secret string, folders ...string) {
	t.Helper()
	files := 0
	for _, folder := range folders {
		require.NoError(t, filepath.WalkDir(folder, func(path string, d fs.DirEntry, err error) error {
			if err != nil || !d.Type().IsRegular() {
				return err
			}
			files++
			content, err := os.ReadFile(path)
			assert.False(t, bytes.Contains(content, []byte(secret)), "%s holds the secret", path)
			return err
		}))
	}
	assert.Greater(t, files, 10, "files looked at")
}
