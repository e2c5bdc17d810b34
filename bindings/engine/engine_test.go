package engine

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"cftune/internal/testfiles"
	"cftune/internal/testmodel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func openVocab(t testing.TB) *Vocab {
	t.Helper()
	v, err := OpenVocab(testfiles.Model(t))
	require.NoError(t, err)
	t.Cleanup(v.Close)
	return v
}

func openSession(t testing.TB, change func(*SessionParams)) *Session {
	t.Helper()
	p := SessionParams{NCtx: 1024, NBatch: 256, NSequences: 4, NThreads: 1, AdapterScale: 1} // one thread: several wait for each other actively, which is slow on busy cores
	if change != nil {
		change(&p)
	}
	s, err := NewSession(testfiles.Model(t), "", p)
	require.NoError(t, err)
	t.Cleanup(s.Close)
	return s
}

// chatML is SmolLM2's template for one question.
func chatML(t testing.TB, v *Vocab, question string) []int32 {
	t.Helper()
	tokens, err := v.Tokenize("<|im_start|>user\n"+question+"<|im_end|>\n<|im_start|>assistant\n", true)
	require.NoError(t, err)
	return tokens
}

func TestDevices(t *testing.T) {
	devices, err := Devices()
	require.NoError(t, err)
	require.NotEmpty(t, devices)
	var trainable []string
	for _, d := range devices {
		require.NotEmpty(t, d.Name)
		require.LessOrEqual(t, d.MemoryFree, d.MemoryTotal)
		if d.CanTrain && !d.Portable {
			trainable = append(trainable, d.Name)
		}
	}
	require.Contains(t, trainable, "CPU")
	// Every device of the CUDA library trains; the others would need to be portable.
	onCUDA := slices.DeleteFunc(trainable, func(name string) bool { return name == "CPU" })
	require.Equal(t, strings.Contains(CUDAState(), "trains on the first"), len(onCUDA) > 0, "%v: %s", onCUDA, CUDAState())
	require.Contains(t, []string{"avx512", "avx2+fma", "generic"}, CPUFeatures())
	require.NoError(t, Init("/a/folder/that/does/not/matter/after/the/first"))
}

func TestLogIsDrainedOnce(t *testing.T) {
	openVocab(t)
	log := strings.Join(DrainLog(), "\n")
	require.Contains(t, log, "vocab")
	require.Empty(t, DrainLog())
}

func TestFilesThatAreNoModel(t *testing.T) {
	whole, err := os.ReadFile(tinyModel(t, testmodel.Options{}))
	require.NoError(t, err)
	inTokens := bytes.Index(whole, []byte("tokenizer.ggml.tokens")) + 100
	write := func(name string, data []byte) string {
		path := filepath.Join(t.TempDir(), name)
		require.NoError(t, os.WriteFile(path, data, 0o600))
		return path
	}
	tests := []struct {
		name, path string
		want       error
		words      string
	}{
		{"missing", filepath.Join(t.TempDir(), "missing.gguf"), ErrIO, "No such file"},
		{"a folder", t.TempDir(), ErrIO, "not a regular file"},
		{"empty", write("empty.gguf", nil), ErrFormat, "not a GGUF file: 0 bytes"},
		{"text", write("text.gguf", []byte("model: yes\n")), ErrFormat, "does not begin with GGUF"},
		{"cut in the counts", write("c1.gguf", whole[:17]), ErrFormat, "cut off"},
		{"cut in the tokens", write("c2.gguf", whole[:inTokens]), ErrFormat, "cut off"},
		{"cut in the weights", write("c3.gguf", whole[:len(whole)/2]), ErrFormat, "cut off: tensor"},
		{"cut by one byte", write("c4.gguf", whole[:len(whole)-1]), ErrFormat, "cut off: tensor"},
		{"empty path", "", ErrInvalidArgument, "path is empty"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, modelErr := Load(tt.path, "cpu")
			_, vocabErr := OpenVocab(tt.path)
			_, sessionErr := NewSession(tt.path, "", SessionParams{NCtx: 256, NBatch: 64, NSequences: 1, AdapterScale: 1})
			for _, err := range []error{modelErr, vocabErr, sessionErr} {
				require.ErrorIs(t, err, tt.want)
				require.ErrorContains(t, err, tt.words)
				var e *Error
				require.ErrorAs(t, err, &e)
			}
		})
	}
}

func TestAdapterThatIsNone(t *testing.T) {
	model := tinyModel(t, testmodel.Options{})
	text := filepath.Join(t.TempDir(), "adapter.gguf")
	require.NoError(t, os.WriteFile(text, []byte("adapter: yes\n"), 0o600))
	for _, tt := range []struct {
		name, adapter string
		want          error
		words         string
	}{
		{"a model", model, ErrFormat, "not a LoRA adapter"},
		{"text", text, ErrFormat, "not a GGUF file"},
		{"missing", text + ".gguf", ErrIO, "No such file"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			_, err := NewSession(model, tt.adapter, SessionParams{NCtx: 256, NBatch: 64, NSequences: 1, AdapterScale: 1})
			require.ErrorIs(t, err, tt.want)
			require.ErrorContains(t, err, tt.words)
		})
	}
}

func TestClosedHandles(t *testing.T) {
	v, s := openVocab(t), openSession(t, nil)
	for range 2 {
		v.Close()
		s.Close()
	}
	_, err := v.Tokenize("x", false)
	require.ErrorIs(t, err, ErrClosed)
	require.ErrorIs(t, s.Decode([]int32{1}, []int32{0}, []int32{0}, []bool{true}), ErrClosed)
	require.ErrorIs(t, s.Logits(0, make([]float32, 1)), ErrClosed)
	require.ErrorIs(t, s.Forget(-1), ErrClosed)
	require.ErrorIs(t, s.Share(0, 1, 1), ErrClosed)
	_, err = s.Sample(0, Greedy(), 0)
	require.ErrorIs(t, err, ErrClosed)
	_, err = NewGenerator(s, v).Generate(t.Context(), [][]int32{{1}}, GenerateOptions{MaxTokens: 1})
	require.ErrorIs(t, err, ErrClosed)
}
