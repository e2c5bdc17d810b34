package engine

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
)

// parts are what random texts are made of: everything that pre-tokenizers treat in ways of its own.
var parts = []string{
	" ", " ", " ", " ", "  ", "   ", "\n", "\n\n", "\t", "\r\n", "\u00a0", "\u2003", "\u3000", "a", "e", "s", "b", "the", "is", "answer", "Z", "ABC", "é",
	"naïve", "ß", "e\u0301", "9", "99", "123", "1234567", "½", "٣", ".", ",", "...", "'", "'s", "'ll", "'RE", "n't", "\"", "(", ")", "-", "--", "_", "/", "\\",
	"#", "$", "<", "<|im_", "|>", "日本語", "漢", "ひらがな", "한국어", "🙂", "👩‍👩‍👧", "\u200b", "\ufeff", "µ", "x²", "\x00", "\x7f", "Привет", "العربية",
}

// wordsRounds is how many random texts each vocabulary is tried with.
const wordsRounds = 600

// Without control tokens in it a text has the same tokens with and without parseSpecial. With it, nothing is taken from
// words that were seen before.
func compareWords(t *testing.T, v *Vocab) {
	t.Helper()
	rng := rand.New(rand.NewPCG(3, 5))
	for range wordsRounds {
		var b strings.Builder
		for range 1 + rng.IntN(24) {
			b.WriteString(parts[rng.IntN(len(parts))])
		}
		text := b.String()
		want, err := v.Tokenize(text, true)
		require.NoError(t, err)
		for range 2 { // the second time from memory
			got, err := v.Tokenize(text, false)
			require.NoError(t, err)
			require.Equal(t, want, got, "%q", text)
		}
	}
}

func TestRememberedWordsHaveTheirTokens(t *testing.T) {
	for _, pre := range []string{
		"gpt-2", "smollm", "starcoder", "refact", "command-r", "olmo", "mpt", "llama-bpe", "llama-v3", "llama3", "qwen2", "deepseek-r1-qwen", "stablelm2",
		"dbrx", "smaug-bpe",
		"falcon", "deepseek-llm", "tekken", // are not remembered, and must not be
	} {
		t.Run(pre, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "vocab.gguf")
			require.NoError(t, testmodel.Write(path, testmodel.Options{Pre: pre, Vocab: testmodel.MinVocabAcross()}))
			v, err := OpenVocab(path)
			require.NoError(t, err)
			defer v.Close()
			compareWords(t, v)
		})
	}
	t.Run("real vocabulary", func(t *testing.T) { compareWords(t, openVocab(t)) })
	shared, err := filepath.Glob(filepath.Join("..", "..", "..", "shared", "data", "llama_cpp_vocab", "*.gguf"))
	require.NoError(t, err)
	if len(shared) == 0 {
		t.Log("no vocabularies beside the checkout: only the ones above were compared")
	}
	for _, path := range shared {
		t.Run(filepath.Base(path), func(t *testing.T) {
			if info, err := os.Stat(path); err != nil || info.Size() == 0 {
				t.Skipf("%s cannot be read", path)
			}
			v, err := OpenVocab(path)
			require.NoError(t, err)
			defer v.Close()
			compareWords(t, v)
		})
	}
}
