package trainer

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A plan is made once for what it depends on, and again for anything else.
func TestPlansAreKept(t *testing.T) {
	before := planCacheRecords
	planCacheRecords = 1
	defer func() { planCacheRecords = before }()
	s := newSite(t)
	cache := filepath.Join(s.dir, "cache")
	plans := func(change ...func(*Options)) (Plan, int) {
		o := s.options()
		o.Cache = cache
		for _, f := range change {
			f(&o)
		}
		tr, err := Prepare(t.Context(), o)
		require.NoError(t, err)
		defer closeTrainer(t, tr)
		kept, err := filepath.Glob(filepath.Join(cache, "plans", "*.json"))
		require.NoError(t, err)
		return tr.Plan(), len(kept)
	}
	first, kept := plans()
	assert.Equal(t, 1, kept)
	again, kept := plans()
	assert.Equal(t, 1, kept)
	assert.Equal(t, first, again)
	_, kept = plans(func(o *Options) { o.Config.Optimizer.LR, o.Config.Output = 1, "elsewhere" })
	assert.Equal(t, 1, kept, "it does not depend on these")
	for n, change := range []func(*Options){
		func(o *Options) { o.Config.Seed++ },
		func(o *Options) { o.Config.Train.Epochs++ },
		func(o *Options) { o.Config.Train.SeqLen++ },
		func(o *Options) { o.Config.Data.Audit = false },
		func(o *Options) { o.Text.Digest = "another template" },
		func(o *Options) { o.Text.BOS = 3 },
	} {
		_, kept = plans(change)
		assert.Equal(t, n+2, kept, "change %d", n)
	}
	s.write(t, row(5, 2, 1), row(5, 2, 2))
	other, kept := plans()
	assert.Equal(t, 8, kept)
	assert.Equal(t, 2, other.Records)

	// A damaged one is made again, whichever byte is.
	newest, err := filepath.Glob(filepath.Join(cache, "plans", "*.json"))
	require.NoError(t, err)
	for _, f := range newest {
		text, err := os.ReadFile(f)
		require.NoError(t, err)
		if !strings.Contains(string(text), `"records":2,`) {
			require.NoError(t, os.Remove(f))
			continue
		}
		for i := range text {
			damaged := bytes.Clone(text)
			damaged[i] ^= 1 << (i % 8)
			require.NoError(t, os.WriteFile(f, damaged, 0o600))
			repaired, n := plans()
			require.Equal(t, other, repaired, "bit %d of byte %d", i%8, i)
			require.Equal(t, 1, n)
		}
		require.NoError(t, os.WriteFile(f, []byte("{"), 0o600))
		repaired, _ := plans()
		assert.Equal(t, other, repaired)
	}

	// Without a cache, and for little data, nothing is kept.
	planCacheRecords = 100
	s.write(t, row(5, 2, 1))
	_, kept = plans()
	assert.Equal(t, 1, kept)
}
