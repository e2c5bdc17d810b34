package llama_test

import (
	"context"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/bindings/llama"
	"cftune/internal/testmodel"
)

func tiny(t testing.TB, o testmodel.Options) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "tiny.gguf")
	require.NoError(t, testmodel.Write(path, o))
	return path
}

func load(t testing.TB, o testmodel.Options, opts ...llama.ModelOption) *llama.LLama {
	t.Helper()
	l, err := llama.New(tiny(t, o), append([]llama.ModelOption{llama.SetContext(128)}, opts...)...)
	require.NoError(t, err)
	t.Cleanup(l.Free)
	return l
}

// fixed are options with which an answer is the same every time.
func fixed(more ...llama.PredictOption) []llama.PredictOption {
	return append([]llama.PredictOption{llama.SetThreads(1), llama.SetSeed(7), llama.SetTokens(24), llama.IgnoreEOS}, more...)
}

const prompt = "the answer is"

func TestPredict(t *testing.T) {
	l := load(t, testmodel.Options{Seed: 1})
	first, err := l.Predict(prompt, fixed()...)
	require.NoError(t, err)
	assert.NotEmpty(t, first)
	again, err := l.Predict(prompt, fixed()...)
	require.NoError(t, err)
	assert.Equal(t, first, again, "the same seed gives the same answer, whatever is in the cache")
	other, err := l.Predict(prompt, fixed(llama.SetSeed(8))...)
	require.NoError(t, err)
	assert.NotEqual(t, first, other)
	greedy, err := l.Predict(prompt, fixed(llama.SetTemperature(0))...)
	require.NoError(t, err)
	for _, opts := range [][]llama.PredictOption{
		{llama.SetTopK(1)}, {llama.SetTopP(1e-6)}, {llama.SetMirostat(2), llama.SetMirostatTAU(1e-6), llama.SetMirostatETA(0)},
	} {
		same, err := l.Predict(prompt, fixed(opts...)...)
		require.NoError(t, err)
		assert.Equal(t, greedy, same, "only the likeliest token is left to draw")
	}
	for _, opts := range [][]llama.PredictOption{
		{llama.SetMirostat(1)}, {llama.SetMirostat(2)}, {llama.SetTypicalP(0.5)}, {llama.SetPenalty(1), llama.SetFrequencyPenalty(1), llama.SetPresencePenalty(1)},
		{llama.IgnoreEOS}, {llama.SetTokens(0), llama.SetStopWords("e", "a", "\n")},
	} {
		_, err := l.Predict(prompt, fixed(opts...)...)
		require.NoError(t, err)
	}
}

func TestCallbacksGetTheAnswerAndEndIt(t *testing.T) {
	l := load(t, testmodel.Options{Seed: 1})
	var parts, byMethod []string
	l.SetTokenCallback(func(part string) bool { byMethod = append(byMethod, part); return true })
	answer, err := l.Predict(prompt, fixed(llama.SetTokenCallback(func(part string) bool { parts = append(parts, part); return true }))...)
	require.NoError(t, err)
	assert.Equal(t, answer, strings.Join(parts, ""))
	assert.Equal(t, parts, byMethod)
	require.Greater(t, len(parts), 2)
	l.SetTokenCallback(nil)
	n := 0
	cut, err := l.Predict(prompt, fixed(llama.SetTokenCallback(func(string) bool { n++; return n < 2 }))...)
	require.NoError(t, err)
	assert.Equal(t, strings.Join(parts[:2], ""), cut)

	// A stop word ends the answer where it begins, also in the middle of a token, and nobody sees it.
	stop := answer[len(answer)/2 : len(answer)/2+2]
	var seen strings.Builder
	stopped, err := l.Predict(prompt, fixed(llama.SetStopWords("never in it", stop), llama.SetTokenCallback(func(part string) bool { seen.WriteString(part); return true }))...)
	require.NoError(t, err)
	assert.Equal(t, answer[:strings.Index(answer, stop)], stopped)
	assert.Equal(t, stopped, seen.String())
}

func TestLogitBias(t *testing.T) {
	l := load(t, testmodel.Options{Seed: 1})
	n, tokens, err := l.TokenizeString("right")
	require.NoError(t, err)
	require.Equal(t, int32(1), n)
	answer, err := l.Predict(prompt, fixed(llama.SetTokens(3), llama.SetPenalty(1), llama.SetLogitBias(fmt.Sprintf("%d+1000", tokens[0])))...)
	require.NoError(t, err)
	assert.Equal(t, "rightrightright", answer)
	for _, bad := range []string{"x", "5", "+1", "99999999+1", "5+x"} {
		_, err := l.Predict(prompt, fixed(llama.SetLogitBias(bad))...)
		assert.ErrorContains(t, err, "SetLogitBias", bad)
	}
}

// A full context drops the older half of what it may drop and goes on.
func TestLongAnswersShift(t *testing.T) {
	l := load(t, testmodel.Options{Seed: 1}, llama.SetContext(32))
	tokens := 0
	_, err := l.Predict(prompt, fixed(llama.SetTokens(100), llama.IgnoreEOS, llama.SetNKeep(4), llama.SetTokenCallback(func(string) bool { tokens++; return true }))...)
	require.NoError(t, err)
	assert.Greater(t, tokens, 40)
	_, err = l.Predict(strings.Repeat("9", 33), fixed()...)
	assert.ErrorContains(t, err, "33 tokens, the context has 32")
}

func TestEmbeddings(t *testing.T) {
	l := load(t, testmodel.Options{Seed: 1}, llama.EnableEmbeddings)
	a, err := l.Embeddings(prompt, llama.SetThreads(1))
	require.NoError(t, err)
	assert.Len(t, a, 64, "as wide as the model")
	_, ids, err := l.TokenizeString(prompt)
	require.NoError(t, err)
	var tokens []int
	for _, id := range ids {
		tokens = append(tokens, int(id))
	}
	b, err := l.TokenEmbeddings(tokens, llama.SetThreads(1))
	require.NoError(t, err)
	assert.Equal(t, a, b)
	other, err := l.Embeddings("wrong", llama.SetThreads(1))
	require.NoError(t, err)
	assert.NotEqual(t, a, other)
	sum := 0.0
	for _, x := range a {
		sum += float64(x) * float64(x)
	}
	assert.InDelta(t, 1, math.Sqrt(sum/64), 0.5, "the last norm gives unit size, times its weights near 1")
	_, err = l.TokenEmbeddings([]int{1 << 20})
	assert.ErrorContains(t, err, "not in the vocabulary")
	_, err = load(t, testmodel.Options{Seed: 1}).Embeddings(prompt)
	assert.ErrorContains(t, err, "EnableEmbeddings")
}

func TestStateGoesOnElsewhere(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state")
	l := load(t, testmodel.Options{Seed: 1})
	require.NoError(t, l.Eval(prompt, llama.SetThreads(1)))
	require.NoError(t, l.SaveState(path))
	want, err := l.Predict(prompt, fixed()...)
	require.NoError(t, err)
	other := load(t, testmodel.Options{Seed: 1})
	require.NoError(t, other.LoadState(path))
	got, err := other.Predict(prompt, fixed()...)
	require.NoError(t, err)
	assert.Equal(t, want, got)

	whole, err := os.ReadFile(path)
	require.NoError(t, err)
	for name, content := range map[string][]byte{"empty": nil, "cut off": whole[:len(whole)/2], "another file": []byte(strings.Repeat("x", 200))} {
		require.NoError(t, os.WriteFile(path, content, 0o600))
		assert.Error(t, other.LoadState(path), name)
	}
	flipped := append([]byte(nil), whole...)
	flipped[len(flipped)/2] ^= 4
	require.NoError(t, os.WriteFile(path, flipped, 0o600))
	assert.ErrorContains(t, other.LoadState(path), "checksum differs")
	require.NoError(t, os.WriteFile(path, whole, 0o600))
	assert.Error(t, load(t, testmodel.Options{Seed: 1, Layers: 3}).LoadState(path), "another model")
	got, err = other.Predict(prompt, fixed()...)
	require.NoError(t, err)
	assert.Equal(t, want, got, "a state that is refused leaves the model usable")
}

func TestSpeculativeSamplingIsPredict(t *testing.T) {
	target, draft := load(t, testmodel.Options{Seed: 1}), load(t, testmodel.Options{Seed: 2, Layers: 1})
	for _, opts := range [][]llama.PredictOption{{}, {llama.SetTemperature(0)}, {llama.SetNDraft(3)}, {llama.SetStopWords("e")}} {
		want, err := target.Predict(prompt, fixed(opts...)...)
		require.NoError(t, err)
		got, err := target.SpeculativeSampling(draft, prompt, fixed(opts...)...)
		require.NoError(t, err)
		assert.Equal(t, want, got)
	}
	same, err := target.SpeculativeSampling(load(t, testmodel.Options{Seed: 1}), prompt, fixed(llama.SetTemperature(0))...)
	require.NoError(t, err)
	want, err := target.Predict(prompt, fixed(llama.SetTemperature(0))...)
	require.NoError(t, err)
	assert.Equal(t, want, same, "a draft that is always right")
	_, err = target.SpeculativeSampling(load(t, testmodel.Options{Seed: 1, Vocab: 400}), prompt, fixed()...)
	assert.ErrorContains(t, err, "another vocabulary")
	_, err = target.SpeculativeSampling(target, prompt)
	assert.ErrorContains(t, err, "second model")
}

func TestUnsupportedOptionsAreErrors(t *testing.T) {
	path := tiny(t, testmodel.Options{Seed: 1})
	for name, opt := range map[string]llama.ModelOption{
		"low VRAM": llama.EnableLowVRAM, "NUMA": llama.EnableNUMA, "main GPU": llama.SetMainGPU("0"), "split": llama.SetTensorSplit("1,2"),
		"kernels": llama.SetMulMatQ(false), "base": llama.SetLoraBase("x"),
	} {
		_, err := llama.New(path, opt)
		assert.ErrorIs(t, err, llama.ErrUnsupported, name)
	}
	l := load(t, testmodel.Options{Seed: 1}, llama.SetMulMatQ(true))
	for name, opt := range map[string]llama.PredictOption{
		"tail free": llama.SetTailFreeSamplingZ(0.9), "cache": llama.SetPathPromptCache("x"), "cache all": llama.EnablePromptCacheAll, "cache ro": llama.EnablePromptCacheRO,
		"grammar": llama.WithGrammar("root ::= \"a\""), "negative": llama.SetNegativePrompt("x"), "scale": llama.SetNegativePromptScale(1),
		"mlock": llama.SetMlock(true), "mmap": llama.SetMemoryMap(false), "rope": llama.SetRopeFreqBase(5), "rope scale": llama.SetRopeFreqScale(2),
		"GPU": llama.SetPredictionMainGPU("1"), "split": llama.SetPredictionTensorSplit("1"), "mirostat": llama.SetMirostat(3),
	} {
		_, err := l.Predict(prompt, opt)
		assert.ErrorIs(t, err, llama.ErrUnsupported, name)
	}
	for _, opt := range []llama.PredictOption{llama.SetTemperature(-1), llama.SetTopP(0), llama.SetTypicalP(0), llama.SetPenalty(0), llama.SetTopK(-1), llama.SetTokens(-1), llama.SetThreads(-1), llama.SetStopWords("")} {
		_, err := l.Predict(prompt, opt)
		assert.Error(t, err)
	}
	_, err := llama.New(filepath.Join(t.TempDir(), "none.gguf"))
	assert.ErrorContains(t, err, "none.gguf")
	_, err = llama.New(path, llama.SetLoraAdapter("none.gguf"))
	assert.ErrorContains(t, err, "none.gguf")
	_, err = llama.New(path, llama.SetContext(0))
	assert.Error(t, err)
}

func TestFreedModelsSaySo(t *testing.T) {
	l := load(t, testmodel.Options{Seed: 1})
	l.Free()
	l.Free()
	_, err := l.Predict(prompt)
	require.ErrorIs(t, err, llama.ErrFreed)
	require.ErrorIs(t, l.Eval(prompt), llama.ErrFreed)
	require.ErrorIs(t, l.SaveState("x"), llama.ErrFreed)
	_, _, err = l.TokenizeString(prompt)
	require.ErrorIs(t, err, llama.ErrFreed)
}

func TestContextEndsAnAnswer(t *testing.T) {
	l := load(t, testmodel.Options{Seed: 1})
	ctx, cancel := context.WithCancel(t.Context())
	parts := 0
	answer, err := l.PredictContext(ctx, prompt, fixed(llama.SetTokens(0), llama.IgnoreEOS, llama.SetTokenCallback(func(string) bool {
		if parts++; parts == 3 {
			cancel()
		}
		return true
	}))...)
	require.ErrorIs(t, err, context.Canceled)
	assert.NotEmpty(t, answer)
}

// Calls of many goroutines wait for each other, and none sees another's.
func TestConcurrentPredictions(t *testing.T) {
	l := load(t, testmodel.Options{Seed: 1})
	var want [8]string
	for i := range want {
		var err error
		want[i], err = l.Predict(prompt, fixed(llama.SetSeed(i+1))...)
		require.NoError(t, err)
	}
	var group sync.WaitGroup
	for i := range want {
		group.Go(func() {
			for range 3 {
				got, err := l.Predict(prompt, fixed(llama.SetSeed(i+1))...)
				assert.NoError(t, err)
				assert.Equal(t, want[i], got)
				l.SetTokenCallback(nil)
			}
		})
	}
	group.Wait()
}

const (
	shortCycles = 60
	// maxGrowth is for the rings and arenas that fill up in the beginning, whatever the number of cycles.
	maxGrowth = 8 << 20
)

// SOAK_CYCLES asks for more cycles; a thousand are run by `make soak`.
func TestNothingIsLeft(t *testing.T) {
	cycles := shortCycles
	if text := os.Getenv("SOAK_CYCLES"); text != "" {
		var err error
		cycles, err = strconv.Atoi(text)
		require.NoError(t, err)
	}
	path := tiny(t, testmodel.Options{Seed: 1})
	cycle := func() {
		l, err := llama.New(path, llama.SetContext(64))
		require.NoError(t, err)
		_, err = l.Predict(prompt, fixed(llama.SetTokens(2))...)
		require.NoError(t, err)
		l.Free()
	}
	for range 20 { // until the allocators have what they keep
		cycle()
	}
	before := residentBytes(t)
	for range cycles {
		cycle()
	}
	grown := residentBytes(t) - before
	t.Logf("%d cycles of New and Free: %d KiB more", cycles, grown>>10)
	assert.Less(t, grown, int64(maxGrowth), "memory is flat")
}

// residentBytes is the process's resident memory.
func residentBytes(t *testing.T) int64 {
	t.Helper()
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		t.Skipf("no resident memory to read on this system: %v", err)
	}
	pages, err := strconv.ParseInt(strings.Fields(string(text))[1], 10, 64)
	require.NoError(t, err)
	return pages * int64(os.Getpagesize())
}
