package engine

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTokenizeAndBack(t *testing.T) {
	v := openVocab(t)
	for _, text := range []string{
		"",
		"What is the capital of France?",
		"  two spaces, a tab\tand\nnewlines\n\n",
		"def f(x):\n    return x ** 2  # naïve",
		"Ελληνικά, 日本語, 🙂, e\u0301",
		"a zero \x00 byte",
		"<|im_start|> written by a user",
	} {
		tokens, err := v.Tokenize(text, false)
		require.NoError(t, err)
		require.Equal(t, text, v.Detokenize(tokens, true))
		for _, token := range tokens {
			require.False(t, v.IsControl(token), "%q has control token %d", text, token)
		}
	}
}

func TestControlTokensNeedParseSpecial(t *testing.T) {
	v := openVocab(t)
	tokens, err := v.Tokenize("<|im_start|>user\nhi<|im_end|>", true)
	require.NoError(t, err)
	first, last := tokens[0], tokens[len(tokens)-1]
	require.True(t, v.IsControl(first))
	require.Equal(t, TokenKind{Control: true, EOG: true}, v.Kind(last))
	require.Equal(t, "<|im_end|>", v.TokenText(last))
	require.Equal(t, "user\nhi", v.Detokenize(tokens, false))
	require.Equal(t, last, v.EOS())
	require.Contains(t, v.ChatTemplate(), "<|im_start|>")

	asText, err := v.Tokenize("<|im_end|>", false)
	require.NoError(t, err)
	require.Greater(t, len(asText), 1)
}

func TestTokenizeRefusesWhatIsNotUTF8(t *testing.T) {
	v := openVocab(t)
	for text, words := range map[string]string{
		"a\xff":             "byte 1",
		"\xed\xa0\x80":      "byte 0",
		"cut \xe6\x97":      "byte 4",
		"overlong \xc0\xaf": "byte 9",
	} {
		_, err := v.Tokenize(text, true)
		require.ErrorIs(t, err, ErrInvalidArgument)
		require.ErrorContains(t, err, words)
	}
}

func TestTokensOutOfRangeAreNone(t *testing.T) {
	v := openVocab(t)
	for _, token := range []int32{-1, int32(v.Info().Tokens), 1 << 30} {
		require.Empty(t, v.TokenText(token))
		require.False(t, v.IsControl(token))
		require.False(t, v.IsEOG(token))
	}
}

func TestVocabServesSeveralCallers(t *testing.T) {
	v := openVocab(t)
	want, err := v.Tokenize("The quick brown fox jumps over the lazy dog.", false)
	require.NoError(t, err)
	var wg sync.WaitGroup
	got := make([][]int32, 16)
	for i := range got {
		wg.Go(func() {
			for range 50 {
				got[i], _ = v.Tokenize("The quick brown fox jumps over the lazy dog.", false)
			}
		})
	}
	wg.Wait()
	for _, tokens := range got {
		require.Equal(t, want, tokens)
	}
}
