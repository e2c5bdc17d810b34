package mirror

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testlimit"
	"cftune/trainer/checkpoint"
	"cftune/trainer/internal/crashpoint"
)

// bytesOf reads an object.
func bytesOf(t *testing.T, o Objects, key string) []byte {
	t.Helper()
	r, err := o.Get(t.Context(), key)
	require.NoError(t, err)
	text, err := io.ReadAll(r)
	require.NoError(t, errors.Join(err, r.Close()))
	return text
}

func put(t *testing.T, o Objects, key string, text []byte) {
	t.Helper()
	require.NoError(t, o.Put(t.Context(), key, bytes.NewReader(text)))
}

func TestDamageIsFoundAndPassedOver(t *testing.T) {
	s, objects := inMemory(t)
	r := newRun(t, firstRun)
	r.mirrored(t, s, 2, 4)
	found := 0
	for _, key := range keys(t, objects, "checkpoints/step-00000004/") {
		whole := bytesOf(t, objects, key)
		name := filepath.Base(key)
		damage := map[string][]byte{
			"a bit turned over": append(bytes.Clone(whole[:len(whole)/2]), append([]byte{whole[len(whole)/2] ^ 1}, whole[len(whole)/2+1:]...)...),
			"cut":               whole[:len(whole)-1],
			"empty":             nil,
			"longer":            append(bytes.Clone(whole), 'x'),
			"missing":           nil,
		}
		for what, text := range damage {
			put(t, objects, key, text)
			if what == "missing" {
				require.NoError(t, objects.Delete(t.Context(), key))
			}
			dir := filepath.Join(t.TempDir(), "run")
			restored, said, err := restore(t, s, dir)
			require.NoError(t, err, "%s: %s", name, what)
			require.Equal(t, 2, restored.Step, "%s: %s", name, what)
			r.same(t, dir, 2)
			if name != entryName || what != "missing" { // without it there is no copy to speak of
				require.Len(t, said, 1)
				assert.Contains(t, said[0], "passed over: step 4 of mem://: ")
				assert.Contains(t, said[0], name)
			}
			found++
		}
		put(t, objects, key, whole)
	}
	assert.Equal(t, 6*5, found)
	restored, _, err := restore(t, s, filepath.Join(t.TempDir(), "run"))
	require.NoError(t, err)
	assert.Equal(t, 4, restored.Step)
	for _, step := range []string{"step-00000002", "step-00000004"} {
		require.NoError(t, objects.Delete(t.Context(), "checkpoints/"+step+"/optimizer.bin"))
	}
	dir := filepath.Join(t.TempDir(), "run")
	_, _, err = restore(t, s, dir)
	assert.ErrorIs(t, err, checkpoint.ErrCorrupt)
	assert.ErrorContains(t, err, "none of 2 checkpoints is whole")
	assert.NoDirExists(t, dir)
	assert.NoDirExists(t, dir+restoreEnding)
	empty, _ := inMemory(t)
	_, _, err = restore(t, empty, dir)
	assert.ErrorIs(t, err, checkpoint.ErrNotFound)
}

// unreachable is a store that does not give some objects, though it has them.
type unreachable struct {
	Objects
	part string
}

func (u *unreachable) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if strings.Contains(key, u.part) {
		return nil, errFault
	}
	return u.Objects.Get(ctx, key)
}

// A store that cannot be reached is no damage: an older checkpoint would throw work away.
func TestNothingOlderIsTakenBecauseTheStoreIsDown(t *testing.T) {
	s, objects := inMemory(t)
	newRun(t, firstRun).mirrored(t, s, 2, 4)
	for _, name := range []string{"mirror.json", "optimizer.bin", "metrics.jsonl"} {
		dir := filepath.Join(t.TempDir(), "run")
		_, said, err := restore(t, New("mem://", &unreachable{objects, "00000004/" + name}, hurried), dir)
		assert.ErrorIs(t, err, errFault)
		assert.ErrorContains(t, err, "step 4: ")
		assert.ErrorContains(t, err, "after 4 attempts")
		assert.Empty(t, said)
		assert.NoDirExists(t, dir)
	}
}

func TestWhatIsThereIsNotOverwritten(t *testing.T) {
	s, _ := inMemory(t)
	r := newRun(t, firstRun)
	r.mirrored(t, s, 2, 4)
	other := newRun(t, "2026-05-05T00:00:00Z")
	_, _, err := restore(t, s, other.dir)
	assert.ErrorIs(t, err, checkpoint.ErrExists)
	assert.ErrorContains(t, err, "it is another one")

	restored, _, err := restore(t, s, r.dir)
	require.NoError(t, err)
	assert.Equal(t, Restored{Dir: r.dir, Step: 4, Kept: true}, restored)
	require.NoError(t, r.run.RemoveAfter(2))
	_, _, err = restore(t, s, r.dir)
	assert.ErrorIs(t, err, checkpoint.ErrExists)
	assert.ErrorContains(t, err, "it stands at step 2, the mirror at 4")
	require.NoError(t, r.run.RemoveAfter(0))
	_, _, err = restore(t, s, r.dir)
	assert.ErrorIs(t, err, checkpoint.ErrExists)
	assert.ErrorContains(t, err, "without a whole checkpoint")

	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "letter"), nil, 0o600))
	var output *checkpoint.OutputError
	_, _, err = restore(t, s, dir)
	assert.ErrorAs(t, err, &output)
	_, _, err = restore(t, s, filepath.Join(dir, "letter", "run"))
	assert.ErrorAs(t, err, &output)
	assert.FileExists(t, filepath.Join(dir, "letter"))

	empty := filepath.Join(t.TempDir(), "empty")
	require.NoError(t, os.Mkdir(empty, 0o700))
	restored, _, err = restore(t, s, empty)
	require.NoError(t, err)
	assert.Equal(t, 4, restored.Step)
}

// Whatever operation of the disk a restore ends at, power loss included: the run directory is not there, or whole; and a
// second restore ends well.
func TestInterruptedRestore(t *testing.T) {
	s, _ := inMemory(t)
	r := newRun(t, firstRun)
	r.mirrored(t, s, 3)
	for _, powerLoss := range []bool{false, true} {
		for at := 1; ; at++ {
			dir := filepath.Join(t.TempDir(), "run")
			fs := &crashpoint.FS{At: at}
			o := RestoreOptions{Dir: dir, Check: func(string) error { return nil }, Say: func(string) {}, FS: fs}
			_, err := s.Restore(t.Context(), o)
			if powerLoss {
				require.NoError(t, fs.Lose())
			}
			if !fs.Crashed() {
				require.NoError(t, err)
				require.Greater(t, at, 20)
				break
			}
			if _, statErr := os.Stat(dir); statErr == nil {
				r.same(t, dir, 3)
			} else {
				require.Error(t, err, "crash at operation %d", at)
			}
			restored, said, err := restore(t, s, dir)
			require.NoError(t, err, "after a crash at operation %d", at)
			require.Empty(t, said)
			require.Equal(t, 3, restored.Step)
			r.same(t, dir, 3)
		}
	}
}

func TestTwoRestoresDoNotMix(t *testing.T) {
	s, _ := inMemory(t)
	newRun(t, firstRun).mirrored(t, s, 3)
	dir := filepath.Join(t.TempDir(), "run")
	d := &download{store: s, fs: &crashpoint.FS{}, temp: dir + restoreEnding}
	require.NoError(t, d.begin(filepath.Dir(dir)))
	_, _, err := restore(t, s, dir)
	var held *checkpoint.HeldError
	assert.ErrorAs(t, err, &held)
	d.end()
	_, _, err = restore(t, s, dir)
	assert.NoError(t, err)
}

func TestADiskThatIsTooFull(t *testing.T) {
	s, _ := inMemory(t)
	newRun(t, firstRun).mirrored(t, s, 3)
	free := uint64(spaceMargin)
	dir := filepath.Join(t.TempDir(), "run")
	_, err := s.Restore(t.Context(), RestoreOptions{Dir: dir, FS: &crashpoint.FS{Free: &free}, Say: func(string) {}})
	var full *checkpoint.SpaceError
	assert.ErrorAs(t, err, &full)
}

// endless is a store with objects that do not end. It counts what is asked of them.
type endless struct {
	Objects
	part  string
	asked int64
}

func (e *endless) Get(ctx context.Context, key string) (io.ReadCloser, error) {
	if strings.Contains(key, e.part) {
		return io.NopCloser(e), nil
	}
	return e.Objects.Get(ctx, key)
}

func (e *endless) Read(p []byte) (int, error) {
	e.asked += int64(len(p))
	for i := range p {
		p[i] = ' '
	}
	return len(p), nil
}

// askedLimit is twice (two attempts) the largest object that is read whole, and what a reader's buffer may ask beyond it.
const askedLimit = 2*maxEntryBytes + (2 << 20)

func TestObjectsWithoutAnEnd(t *testing.T) {
	s, objects := inMemory(t)
	newRun(t, firstRun).mirrored(t, s, 3)
	for _, name := range []string{"mirror.json", "config.json", "manifest.json", "adapter.gguf"} {
		e := &endless{Objects: objects, part: name}
		_, _, err := restore(t, New("mem://", e, hurried), filepath.Join(t.TempDir(), "run"))
		assert.ErrorIs(t, err, checkpoint.ErrCorrupt, name)
		assert.Less(t, e.asked, int64(askedLimit), name)
	}
}

// A mirror that somebody made by hand, with digests that fit: what it asks for is refused by itself.
func TestHostileEntries(t *testing.T) {
	s, objects := inMemory(t)
	newRun(t, firstRun).mirrored(t, s, 3)
	key := stepFolder(3) + entryName
	sound, err := parseEntry(bytesOf(t, objects, key), 3)
	require.NoError(t, err)
	add := func(f checkpoint.File) func(*entry) {
		return func(e *entry) { e.Files = append([]checkpoint.File{f}, e.Files...) }
	}
	digest := strings.Repeat("0", 64)
	for want, change := range map[string]func(*entry){
		`file name "../../x"`:       add(checkpoint.File{Name: "../../x", SHA256: digest}),
		`file name "/etc/x"`:        add(checkpoint.File{Name: "/etc/x", SHA256: digest}),
		`file name "a\\b"`:          add(checkpoint.File{Name: `a\b`, SHA256: digest}),
		`file name ".."`:            add(checkpoint.File{Name: "..", SHA256: digest}),
		`file name ""`:              add(checkpoint.File{SHA256: digest}),
		`file name "LOCK"`:          add(checkpoint.File{Name: "LOCK", SHA256: digest}),
		`file name "a.tmp"`:         add(checkpoint.File{Name: "a.tmp", SHA256: digest}),
		"a: -1 bytes":               add(checkpoint.File{Name: "a", Bytes: -1, SHA256: digest}),
		"a: 9223372036854775807":    add(checkpoint.File{Name: "a", Bytes: 1<<63 - 1, SHA256: digest}),
		"a: its digest is none":     add(checkpoint.File{Name: "a", SHA256: "0"}),
		"adapter.gguf after":        add(sound.Files[0]),
		"config.json: 1099511":      func(e *entry) { e.Files[1].Bytes = 1 << 40 },
		"it lacks config.json":      func(e *entry) { e.Files = append(e.Files[:1:1], e.Files[2:]...) },
		"it lacks manifest.json":    func(e *entry) { e.Files = append(e.Files[:2:2], e.Files[3:]...) },
		"it is of step 4":           func(e *entry) { e.Step = 4 },
		"is of another run":         func(e *entry) { e.Run = "2027-01-01T00:00:00Z" },
		"64 files":                  func(e *entry) { e.Files = make([]checkpoint.File, maxFiles+1) },
		"optimizer.bin is missing":  func(e *entry) { e.Files = e.Files[:4] },
		"another.bin is not in the": nil,
	} {
		e := sound
		e.Files = append([]checkpoint.File{}, sound.Files...)
		if change == nil {
			put(t, objects, stepFolder(3)+"another.bin", nil)
			e.Files = append([]checkpoint.File{e.Files[0], fileOf("another.bin", nil)}, e.Files[1:]...)
		} else {
			change(&e)
		}
		text, err := e.encode()
		require.NoError(t, err)
		put(t, objects, key, text)
		parent := t.TempDir()
		_, said, err := restore(t, s, filepath.Join(parent, "run"))
		require.Error(t, err, want)
		require.True(t, damaged(err), "%v", err)
		require.Len(t, said, 1)
		assert.Contains(t, strings.ReplaceAll(said[0], "65 files", "64 files"), want)
		left, err := os.ReadDir(parent)
		require.NoError(t, err)
		assert.Empty(t, left, want)
	}
}

// What a newer version wrote is neither passed over for something older nor taken for rubbish.
func TestAnotherFormatIsNoDamage(t *testing.T) {
	s, objects := inMemory(t)
	newRun(t, firstRun).mirrored(t, s, 2, 3)
	key := stepFolder(3) + entryName
	e, err := parseEntry(bytesOf(t, objects, key), 3)
	require.NoError(t, err)
	e.Format = FormatVersion + 1
	text, err := e.encode()
	require.NoError(t, err)
	put(t, objects, key, text)
	_, said, err := restore(t, s, filepath.Join(t.TempDir(), "run"))
	assert.ErrorIs(t, err, checkpoint.ErrIncompatible)
	assert.ErrorContains(t, err, "step 3: ")
	assert.Empty(t, said)
	_, err = s.Claim(t.Context(), firstRun, 2)
	assert.ErrorIs(t, err, checkpoint.ErrIncompatible)
	assert.Equal(t, text, bytesOf(t, objects, key))
	state, err := s.Check(t.Context())
	require.NoError(t, err)
	assert.Len(t, state.Problems, 1)
}

// The same of what is in a copy.
func TestARunOfANewerVersionIsNoDamage(t *testing.T) {
	s, _ := inMemory(t)
	newRun(t, firstRun).mirrored(t, s, 2, 3)
	_, err := s.Restore(t.Context(), RestoreOptions{
		Dir: filepath.Join(t.TempDir(), "run"), Say: func(text string) { t.Error(text) },
		Check: func(string) error { return fmt.Errorf("config.json: %w", checkpoint.ErrIncompatible) },
	})
	assert.ErrorIs(t, err, checkpoint.ErrIncompatible)
	assert.ErrorContains(t, err, "step 3: ")
}

func FuzzEntry(f *testing.F) {
	e := entry{Format: FormatVersion, Run: firstRun, Step: 7}
	for _, name := range []string{"adapter.gguf", checkpoint.ConfigName, checkpoint.ManifestName, checkpoint.MetricsName} {
		e.Files = append(e.Files, fileOf(name, []byte(name)))
	}
	text, err := e.encode()
	require.NoError(f, err)
	f.Add(text)
	f.Add([]byte(`{"format": 1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var e entry
		var err error
		testlimit.Bound(t, func() { e, err = parseEntry(text, 7) })
		if err != nil {
			require.True(t, damaged(err) || errors.Is(err, checkpoint.ErrIncompatible), "%v", err)
			return
		}
		for _, file := range e.Files {
			require.Equal(t, file.Name, filepath.Base(file.Name))
			require.LessOrEqual(t, file.Bytes, int64(maxMetricsBytes+maxFileBytes))
		}
		again, err := e.encode()
		require.NoError(t, err)
		require.Equal(t, string(text), string(again))
	})
}

func TestKeysOfOthersAreNoSteps(t *testing.T) {
	for key, want := range map[string]int{
		"checkpoints/step-00000012/mirror.json":     12,
		"checkpoints/step-123456789/mirror.json":    123456789,
		"checkpoints/step-12/mirror.json":           -1,
		"checkpoints/step--0000012/mirror.json":     -1,
		"checkpoints/step-0000000x/mirror.json":     -1,
		"checkpoints/step-00000012":                 -1,
		"other/step-00000012/mirror.json":           -1,
		"checkpoints/99999999999999999999/x":        -1,
		"checkpoints/step-99999999999999999999/a.b": -1,
	} {
		step, _, ok := splitKey(key)
		if !ok {
			step = -1
		}
		assert.Equal(t, want, step, key)
	}
	assert.Equal(t, "checkpoints/step-00000012/", stepFolder(12))
	assert.Equal(t, fmt.Sprintf("%s/", filepath.Base(checkpoint.StepDir("x", 12))), strings.TrimPrefix(stepFolder(12), "checkpoints/"))
}
