package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/bindings/engine"
)

// sharedVocabs has vocabularies of models with texts and their tokens, beside the repository.
var sharedVocabs = filepath.Join("..", "..", "..", "shared", "data", "llama_cpp_vocab")

// llama.cpp's test vectors: texts, and the tokens that Hugging Face's tokenizers gave for them.
func TestTokenizerVectors(t *testing.T) {
	paths, err := filepath.Glob(filepath.Join(sharedVocabs, "*.gguf"))
	require.NoError(t, err)
	if len(paths) == 0 {
		t.Skipf("no vocabularies at %s", sharedVocabs)
	}
	for _, path := range paths {
		t.Run(filepath.Base(path), func(t *testing.T) {
			vocab, err := engine.OpenVocab(path)
			require.NoError(t, err)
			defer vocab.Close()
			inputs, err := os.ReadFile(path + ".inp")
			require.NoError(t, err)
			outputs, err := os.ReadFile(path + ".out")
			require.NoError(t, err)
			texts := strings.Split(string(inputs), "\n__ggml_vocab_test__\n")
			lines := strings.Split(string(outputs), "\n")
			require.GreaterOrEqual(t, len(texts), 10)
			require.GreaterOrEqual(t, len(lines), len(texts))
			for i, text := range texts {
				var want []int32
				for _, field := range strings.Fields(lines[i]) {
					id, err := strconv.ParseInt(field, 10, 32)
					require.NoError(t, err)
					want = append(want, int32(id))
				}
				// Twice: the second time from the cache of words.
				for range 2 {
					got, err := vocab.Tokenize(text, false)
					require.NoError(t, err)
					assert.Equal(t, want, append([]int32(nil), got...), "%q", text)
				}
			}
			t.Logf("%d texts", len(texts))
		})
	}
}
