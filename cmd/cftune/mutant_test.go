package main

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"cftune/internal/testfiles"
	"cftune/internal/testmodel"
)

// The mutant test gives the program GGUF files with a few bytes changed, most of them in the head, where counts, lengths,
// types, shapes and hyperparameters are. Whatever it makes of them, it must end by itself with an exit code that is
// documented. SOAK_MUTANTS asks for so many mutants of the real model (scripts/soak-mutants); without it there are a few
// of a tiny one (SOAK_TINY_MUTANTS: more of those).
const (
	shortMutants = 40

	// mostBadMutants ends a run early: as many as these show what is wrong.
	mostBadMutants = 20
	// mutantDeadline is far above what a step of the real model takes, loading included.
	mutantDeadline = 2 * time.Minute
	// mutantMemory bounds a child's address space in KiB: a claimed length that is believed runs into it. The libraries'
	// thread buffers alone reserve about 2 GiB.
	mutantMemory = 6 << 20
)

const mutantConfig = `model: model.gguf
output: run
threads: 1
data: {sources: [{path: train.jsonl, format: cft}]}
adapter: {rank: 2, alpha: 4}
train: {seq_len: 160, max_steps: 1, global_batch: {examples: 1}}
optimizer: {lr: 1e-3, warmup_steps: 0}
`

var mutantCommands = [][]string{{"doctor", "--config", "run.yaml"}, {"train", "--config", "run.yaml"}}

func TestMutantsOfATinyModel(t *testing.T) {
	base := filepath.Join(t.TempDir(), "tiny.gguf")
	require.NoError(t, testmodel.Write(base, testmodel.Options{Seed: 1, Type: testmodel.Q8_0}))
	runMutants(t, base, mutantCount(t, "SOAK_TINY_MUTANTS", shortMutants))
}

func TestMutantsOfTheModel(t *testing.T) {
	count := mutantCount(t, "SOAK_MUTANTS", 0)
	if count == 0 {
		t.Skip("SOAK_MUTANTS is not set: scripts/soak-mutants runs this")
	}
	runMutants(t, testfiles.Model(t), count)
}

func mutantCount(t *testing.T, variable string, usual int) int {
	text := os.Getenv(variable)
	if text == "" {
		return usual
	}
	count, err := strconv.Atoi(text)
	require.NoError(t, err, variable)
	return count
}

func runMutants(t *testing.T, base string, count int) {
	whole, err := os.ReadFile(base)
	require.NoError(t, err)
	fields, err := fieldsOf(whole)
	require.NoError(t, err)

	sound := newMutantSite(t, whole)
	for _, args := range mutantCommands {
		code, err := sound.command(args)
		require.NoError(t, err)
		require.Zero(t, code, "%v of the file itself", args)
	}

	const workers = 2
	var (
		group sync.WaitGroup
		mu    sync.Mutex
		codes = map[string]int{}
		next  int
		bad   atomic.Int32
	)
	for range workers {
		site := newMutantSite(t, whole)
		group.Go(func() {
			for {
				mu.Lock()
				seed := uint64(next)
				next++
				mu.Unlock()
				if seed >= uint64(count) || bad.Load() > mostBadMutants {
					return
				}
				results, ok := site.run(t, fields, seed)
				if !ok {
					bad.Add(1)
				}
				for _, result := range results {
					mu.Lock()
					codes[result]++
					mu.Unlock()
				}
			}
		})
	}
	group.Wait()
	var lines []string
	for result, n := range codes {
		lines = append(lines, fmt.Sprintf("%s: %d", result, n))
	}
	slices.Sort(lines)
	t.Logf("%d mutants of %s, %d ended badly: %s", count, filepath.Base(base), bad.Load(), strings.Join(lines, ", "))
	if !t.Failed() {
		require.NotZero(t, codes["doctor 3"], "no mutant was refused: the mutations do nothing")
		require.NotZero(t, codes["train 0"], "every mutant was refused: nothing is seen of what comes after")
	}
}

// mutantSite is a folder with one private copy of the model, which is changed and put right again.
type mutantSite struct {
	dir, program string
	whole        []byte
}

func newMutantSite(t *testing.T, whole []byte) *mutantSite {
	t.Helper()
	s := &mutantSite{dir: t.TempDir(), whole: whole}
	self, err := os.Executable()
	require.NoError(t, err)
	s.program = filepath.Join(s.dir, "cftune")
	require.NoError(t, os.Symlink(self, s.program))
	for name, text := range map[string]string{
		"run.yaml": mutantConfig, "train.jsonl": `{"query": "1 + 1?", "response": "2", "critique": "right"}` + "\n", "model.gguf": string(whole),
	} {
		require.NoError(t, os.WriteFile(filepath.Join(s.dir, name), []byte(text), 0o600))
	}
	return s
}

// run makes one mutant, gives it to the program, and puts the file right again.
func (s *mutantSite) run(t *testing.T, fields []field, seed uint64) (results []string, ok bool) {
	m := newMutation(rand.New(rand.NewPCG(seed, 77)), s.whole, fields)
	path := filepath.Join(s.dir, "model.gguf")
	if err := m.apply(path); err != nil {
		t.Errorf("mutant %d: %v", seed, err)
		return nil, false
	}
	ok = true
	for _, args := range mutantCommands {
		code, err := s.command(args)
		if err != nil {
			t.Errorf("mutant %d (%s): %v: %v", seed, m, args, err)
			ok = false
		}
		results = append(results, fmt.Sprintf("%s %d", args[0], code))
	}
	if err := m.undo(path, s.whole); err != nil {
		t.Errorf("mutant %d: %v", seed, err)
	}
	if err := os.RemoveAll(filepath.Join(s.dir, "run")); err != nil {
		t.Error(err)
	}
	return results, ok
}

// command runs the program with bounded memory and time, and wants it to end by itself, in words.
func (s *mutantSite) command(args []string) (code int, err error) {
	script := fmt.Sprintf(`ulimit -c 0; ulimit -v %d; exec "$0" "$@"`, mutantMemory)
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, s.program}, args...)...)
	cmd.Dir = s.dir
	var said bytes.Buffer
	cmd.Stdout, cmd.Stderr = io.Discard, &said
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	timer := time.AfterFunc(mutantDeadline, func() { _ = cmd.Process.Signal(syscall.SIGABRT) })
	_ = cmd.Wait() // the state says it all
	timer.Stop()
	code = cmd.ProcessState.ExitCode()
	switch text := said.String(); {
	case code < 0:
		return code, fmt.Errorf("%v\n%.600s", cmd.ProcessState, text)
	case strings.Contains(text, "goroutine ") || strings.Contains(text, "panic"):
		return code, fmt.Errorf("it panicked\n%.600s", text)
	case !slices.Contains([]int{0, 2, 3, 5, 6}, code):
		return code, fmt.Errorf("exit code %d\n%.600s", code, text)
	case code != 0 && !strings.Contains(text, "cftune: error: "):
		return code, fmt.Errorf("exit code %d without a word: %q", code, text)
	}
	return code, nil
}

// mutation is a change of a file: bytes at places, or a cut.
type mutation struct {
	changes []change
	cut     int // new length, -1 for none
}

type change struct {
	field field
	bytes []byte
}

func (m mutation) String() string {
	if m.cut >= 0 {
		return fmt.Sprintf("cut to %d bytes", m.cut)
	}
	var parts []string
	for _, c := range m.changes {
		parts = append(parts, fmt.Sprintf("%s at %d: %x", c.field.what, c.field.at, c.bytes))
	}
	return strings.Join(parts, ", ")
}

// newMutation chooses one to three changes; one mutant in ten is cut instead.
func newMutation(rng *rand.Rand, whole []byte, fields []field) mutation {
	head := fields[len(fields)-1].at + fields[len(fields)-1].size
	if rng.IntN(10) == 0 {
		if rng.IntN(2) == 0 {
			return mutation{cut: rng.IntN(head)}
		}
		return mutation{cut: rng.IntN(len(whole))}
	}
	m := mutation{cut: -1}
	for range 1 + rng.IntN(3)*rng.IntN(2) {
		var f field
		switch r := rng.IntN(20); {
		case r < 15:
			f = fields[rng.IntN(len(fields))]
		case r < 18: // any byte of the head
			f = field{"head", rng.IntN(head), 1}
		default: // any of the weights
			at := head + rng.IntN(len(whole)-head-8)
			f = field{"weights", at, 4}
		}
		m.changes = append(m.changes, change{f, mutate(rng, whole[f.at:f.at+f.size])})
	}
	return m
}

// mutate returns other bytes of the same number: values at the borders of their type, or a bit flipped.
func mutate(rng *rand.Rand, was []byte) []byte {
	now := slices.Clone(was)
	var value uint64
	switch r := rng.IntN(12); r {
	case 0:
		value = 0
	case 1:
		value = math.MaxUint64
	case 2:
		value = 1 << 31
	case 3:
		value = math.MaxInt32
	case 4:
		value = uint64(math.Float32bits(float32(math.NaN())))
	case 5:
		value = uint64(math.Float32bits(float32(math.Inf(1))))
	case 6:
		value = math.MaxInt64
	case 7:
		value = 1 << 62
	case 8:
		value = uint64(rng.IntN(40))
	case 9:
		value = rng.Uint64()
	default:
		now[rng.IntN(len(now))] ^= 1 << rng.IntN(8)
		return now
	}
	var raw [8]byte
	binary.LittleEndian.PutUint64(raw[:], value)
	copy(now, raw[:])
	return now
}

func (m mutation) apply(path string) error {
	if m.cut >= 0 {
		return os.Truncate(path, int64(m.cut))
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, c := range m.changes {
		if _, err := f.WriteAt(c.bytes, int64(c.field.at)); err != nil {
			return err
		}
	}
	return f.Close()
}

func (m mutation) undo(path string, whole []byte) error {
	if m.cut >= 0 {
		return os.WriteFile(path, whole, 0o600)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	for _, c := range m.changes {
		if _, err := f.WriteAt(whole[c.field.at:c.field.at+c.field.size], int64(c.field.at)); err != nil {
			return err
		}
	}
	return f.Close()
}

// field is a place in the head of a GGUF file.
type field struct {
	what     string
	at, size int
}

// maxArrayFields is how many elements of an array are places of their own: a vocabulary would drown all the rest.
const maxArrayFields = 6

// fieldsOf lists the places of a GGUF head, in their order: counts, lengths, keys, types, values, shapes, offsets.
func fieldsOf(file []byte) (fields []field, err error) {
	defer func() {
		if r := recover(); r != nil {
			err = fmt.Errorf("no GGUF file: %v", r)
		}
	}()
	at := 0
	take := func(what string, n int) int {
		fields = append(fields, field{what, at, n})
		at += n
		return at - n
	}
	u64 := func(what string) int { return int(binary.LittleEndian.Uint64(file[take(what, 8):])) }
	u32 := func(what string) int { return int(binary.LittleEndian.Uint32(file[take(what, 4):])) }
	str := func(what string) string {
		n := u64(what + " length")
		return string(file[take(what, n):at])
	}
	sizes := map[int]int{0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
	var value func(key string, kind int)
	value = func(key string, kind int) {
		switch kind {
		case 8:
			str(key)
		case 9:
			element := u32(key + " element type")
			n := u64(key + " count")
			for i := range n {
				before := len(fields)
				value(key, element)
				if i >= maxArrayFields {
					fields = fields[:before]
				}
			}
		default:
			take(key, sizes[kind])
		}
	}
	take("magic", 4)
	u32("version")
	tensors := u64("tensor count")
	entries := u64("metadata count")
	for range entries {
		key := str("key")
		value(key, u32(key+" type"))
	}
	for range tensors {
		name := str("tensor name")
		for range u32(name + " dimensions") {
			u64(name + " shape")
		}
		u32(name + " type")
		u64(name + " offset")
	}
	return slices.DeleteFunc(fields, func(f field) bool { return f.size == 0 }), nil
}
