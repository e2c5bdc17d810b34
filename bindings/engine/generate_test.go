package engine

import (
	"context"
	"fmt"
	"math"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"cftune/internal/testfiles"
	"cftune/internal/testmodel"
)

var questions = []string{
	"What is the capital of France?",
	"Name three colours.",
	"What is 2 + 2?",
	"Who wrote Romeo and Juliet?",
	"What do bees make?",
	"Say hello in Spanish.",
	"What is the largest planet?",
}

func prompts(t testing.TB, v *Vocab, questions []string) [][]int32 {
	t.Helper()
	p := make([][]int32, len(questions))
	for i, q := range questions {
		p[i] = chatML(t, v, q)
	}
	return p
}

func TestGenerateAnswers(t *testing.T) {
	v, s := openVocab(t), openSession(t, nil)
	answers, err := NewGenerator(s, v).Generate(t.Context(), prompts(t, v, questions[:1]), GenerateOptions{MaxTokens: 40})
	require.NoError(t, err)
	require.Contains(t, answers[0].Text, "Paris")
	require.Equal(t, StopEnd, answers[0].Reason)
	require.Equal(t, answers[0].Text, v.Detokenize(answers[0].Tokens, false))
}

func TestBatchedAnswersAreThoseOfOneAtATime(t *testing.T) {
	answer := func(t *testing.T, path string, f32 bool, opts GenerateOptions) (together, one []Completion) {
		t.Helper()
		v, err := OpenVocab(path)
		require.NoError(t, err)
		defer v.Close()
		all := prompts(t, v, questions)
		require.Greater(t, len(all), 3) // so that sequences are used again
		require.Equal(t, all[0][:3], all[1][:3])
		generate := func(sequences int, times int) (answers []Completion) {
			s, err := NewSession(path, "", SessionParams{NCtx: 768, NBatch: 64, NSequences: sequences, NThreads: 1, AdapterScale: 1, F32KV: f32})
			require.NoError(t, err)
			defer s.Close()
			for range times {
				before := answers
				answers, err = NewGenerator(s, v).Generate(t.Context(), all, opts)
				require.NoError(t, err)
				if before != nil {
					require.Equal(t, before, answers, "the same call gives the same answers")
				}
			}
			return answers
		}
		return generate(3, 2), generate(1, 1)
	}
	for name, sampling := range map[string]Sampling{
		"greedy":  {},
		"sampled": {Temperature: 0.9, TopK: 40, TopP: 0.95, Seed: 7},
	} {
		opts := GenerateOptions{MaxTokens: 24, Sampling: sampling}
		t.Run(name, func(t *testing.T) {
			together, one := answer(t, tinyModel(t, testmodel.Options{}), true, opts)
			require.Equal(t, one, together)
		})
		t.Run(name+" by a real model", func(t *testing.T) {
			// Its quantized products round to 8 bits, so that near ties may fall otherwise in sums of several rows; most
			// answers must be the same to the letter.
			opts.MaxTokens = 12
			together, one := answer(t, testfiles.Model(t), false, opts)
			same := 0
			for i := range one {
				if slices.Equal(one[i].Tokens, together[i].Tokens) {
					same++
				}
			}
			require.GreaterOrEqual(t, same, len(one)-2, "%d of %d answers are the same", same, len(one))
		})
	}
}

// With seeds of their own, an answer depends on its prompt and its seed, wherever it stands.
func TestGenerateWithSeeds(t *testing.T) {
	model := tinyModel(t, testmodel.Options{})
	v, err := OpenVocab(model)
	require.NoError(t, err)
	defer v.Close()
	s, err := NewSession(model, "", SessionParams{NCtx: 256, NBatch: 64, NSequences: 1, NThreads: 1, F32KV: true})
	require.NoError(t, err)
	defer s.Close()
	g := NewGenerator(s, v)
	prompt := prompts(t, v, questions[:1])[0]
	generate := func(seeds ...uint64) []Completion {
		var all [][]int32
		for range seeds {
			all = append(all, prompt)
		}
		answers, err := g.Generate(t.Context(), all, GenerateOptions{MaxTokens: 12, Sampling: Sampling{Temperature: 1, TopP: 1}, Seeds: seeds})
		require.NoError(t, err)
		return answers
	}
	two := generate(5, 6)
	require.NotEqual(t, two[0].Tokens, two[1].Tokens)
	swapped := generate(6, 5)
	require.Equal(t, two[0].Tokens, swapped[1].Tokens)
	require.Equal(t, two[1].Tokens, swapped[0].Tokens)
	_, err = g.Generate(t.Context(), [][]int32{prompt}, GenerateOptions{MaxTokens: 1, Seeds: []uint64{1, 2}})
	require.ErrorContains(t, err, "2 seeds for 1 prompts")
}

func TestGenerateStops(t *testing.T) {
	v, s := openVocab(t), openSession(t, nil)
	g := NewGenerator(s, v)
	prompt := prompts(t, v, questions[:1])
	whole, err := g.Generate(t.Context(), prompt, GenerateOptions{MaxTokens: 40})
	require.NoError(t, err)
	require.Greater(t, len(whole[0].Tokens), 4)

	short, err := g.Generate(t.Context(), prompt, GenerateOptions{MaxTokens: 3})
	require.NoError(t, err)
	require.Equal(t, StopLength, short[0].Reason)
	require.Equal(t, whole[0].Tokens[:3], short[0].Tokens)

	before, _, _ := strings.Cut(whole[0].Text, "Paris")
	cut, err := g.Generate(t.Context(), prompt, GenerateOptions{MaxTokens: 40, StopStrings: []string{"Paris"}})
	require.NoError(t, err)
	require.Equal(t, StopString, cut[0].Reason)
	require.Equal(t, before, cut[0].Text)

	token, err := g.Generate(t.Context(), prompt, GenerateOptions{MaxTokens: 40, StopTokens: whole[0].Tokens[2:3]})
	require.NoError(t, err)
	require.Equal(t, StopEnd, token[0].Reason)
	require.Equal(t, whole[0].Tokens[:2], token[0].Tokens)
}

func TestGenerateFillsTheContext(t *testing.T) {
	v := openVocab(t)
	s := openSession(t, func(p *SessionParams) { p.NCtx, p.NSequences = 256, 2 })
	long := slices.Repeat(chatML(t, v, "Count."), 30)[:250]
	answers, err := NewGenerator(s, v).Generate(t.Context(), [][]int32{long, long[:256-8]}, GenerateOptions{MaxTokens: 100})
	require.NoError(t, err)
	for i, room := range []int{7, 9} { // the last token is not decoded, so it needs no room
		if answers[i].Reason == StopContext {
			require.Len(t, answers[i].Tokens, room)
		} else {
			require.Equal(t, StopEnd, answers[i].Reason)
		}
	}
}

// What prompts have in common is read once and shared; the answers are those of prompts on their own.
func TestCommonPrefixChangesNothing(t *testing.T) {
	path := tinyModel(t, testmodel.Options{})
	v, err := OpenVocab(path)
	require.NoError(t, err)
	defer v.Close()
	s, err := NewSession(path, "", SessionParams{NCtx: 256, NBatch: 16, NSequences: 2, NThreads: 1, AdapterScale: 1, F32KV: true})
	require.NoError(t, err)
	defer s.Close()
	g := NewGenerator(s, v)
	common := chatML(t, v, "the answer is right, and the question is the same")
	for name, all := range map[string][][]int32{
		"long":                {append(slices.Clone(common), 60, 61), append(slices.Clone(common), 62), append(slices.Clone(common), 63, 64)},
		"one is the prefix":   {common, append(slices.Clone(common), 62)},
		"the same":            {common, common, common},
		"too short to matter": {{1, 60, 70, 80}, {1, 60, 71, 80}},
		"nothing":             {{60, 61}, {62, 63}},
		"prompts of one":      {{60}, {61}},
	} {
		t.Run(name, func(t *testing.T) {
			opts := GenerateOptions{MaxTokens: 8, Sampling: Sampling{Temperature: 1, TopP: 1, Seed: 5}}
			together, err := g.Generate(t.Context(), all, opts)
			require.NoError(t, err)
			for i, prompt := range all {
				// Same index, so the same draws; prompts that begin otherwise share nothing.
				alone := make([][]int32, len(all))
				for j := range alone {
					alone[j] = []int32{90}
				}
				alone[i] = prompt
				answers, err := g.Generate(t.Context(), alone, opts)
				require.NoError(t, err)
				require.Equal(t, answers[i], together[i])
			}
		})
	}
}

func TestStreamedPartsMakeUpTheAnswers(t *testing.T) {
	v, s := openVocab(t), openSession(t, nil)
	streamed := make([]string, 3)
	answers, err := NewGenerator(s, v).Generate(t.Context(), prompts(t, v, questions[:3]), GenerateOptions{
		MaxTokens:   24,
		StopStrings: []string{"."},
		OnText:      func(i int, text string) { streamed[i] += text },
	})
	require.NoError(t, err)
	for i, a := range answers {
		require.Equal(t, a.Text, streamed[i])
		require.NotContains(t, a.Text, ".")
	}
}

func TestGenerateEndsWithItsContext(t *testing.T) {
	v, s := openVocab(t), openSession(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	answers, err := NewGenerator(s, v).Generate(ctx, prompts(t, v, questions[:1]), GenerateOptions{
		MaxTokens: 500,
		OnText:    func(int, string) { cancel() },
	})
	require.ErrorIs(t, err, context.Canceled)
	require.Empty(t, answers[0].Reason)
	require.NotEmpty(t, answers[0].Text)
	// The session is empty and usable.
	answers, err = NewGenerator(s, v).Generate(t.Context(), prompts(t, v, questions[:1]), GenerateOptions{MaxTokens: 40})
	require.NoError(t, err)
	require.Contains(t, answers[0].Text, "Paris")
}

func TestGenerateRefuses(t *testing.T) {
	v, s := openVocab(t), openSession(t, nil)
	g := NewGenerator(s, v)
	ok := []int32{1}
	for words, call := range map[string]func() error{
		"max tokens is 0": func() error { _, err := g.Generate(t.Context(), [][]int32{ok}, GenerateOptions{}); return err },
		"prompt 1 is empty": func() error {
			_, err := g.Generate(t.Context(), [][]int32{ok, {}}, GenerateOptions{MaxTokens: 1})
			return err
		},
		"stop string is empty": func() error {
			_, err := g.Generate(t.Context(), [][]int32{ok}, GenerateOptions{MaxTokens: 1, StopStrings: []string{""}})
			return err
		},
		"has 1025 tokens": func() error {
			_, err := g.Generate(t.Context(), [][]int32{make([]int32, 1025)}, GenerateOptions{MaxTokens: 1})
			return err
		},
		"not in the vocabulary": func() error {
			_, err := g.Generate(t.Context(), [][]int32{{1 << 30}}, GenerateOptions{MaxTokens: 1})
			return err
		},
		"top_p": func() error {
			_, err := g.Generate(t.Context(), [][]int32{ok}, GenerateOptions{MaxTokens: 1, Sampling: Sampling{Temperature: 1}})
			return err
		},
	} {
		err := call()
		require.ErrorIs(t, err, ErrInvalidArgument)
		require.ErrorContains(t, err, words)
	}
}

func TestSharedPrefixGivesTheSameLogits(t *testing.T) {
	v := openVocab(t)
	s := openSession(t, func(p *SessionParams) { p.F32KV = true })
	tokens := chatML(t, v, "What is the capital of France?")
	logits := func(seq int32, from int) []float32 {
		t.Helper()
		n := len(tokens) - from
		positions, seqs, want := make([]int32, n), make([]int32, n), make([]bool, n)
		for i := range n {
			positions[i], seqs[i] = int32(from+i), seq
		}
		want[n-1] = true
		require.NoError(t, s.Decode(tokens[from:], positions, seqs, want))
		out := make([]float32, v.Info().Tokens)
		require.NoError(t, s.Logits(n-1, out))
		return out
	}
	whole := logits(0, 0)
	const shared = 5
	require.NoError(t, s.Share(0, 1, shared))
	require.Greater(t, cosine(whole, logits(1, shared)), sameLogits)
	// What the prefix holds matters: without it the same end of the prompt gives other logits.
	tokens = tokens[shared:]
	require.Less(t, cosine(whole, logits(2, 0)), sameLogits)
	require.ErrorIs(t, s.Share(0, 1, 3), ErrInvalidArgument)
}

// sameLogits allows for the quantized products of the pinned ggml, which round activations to 8 bits: last bits of sums in
// another order become steps of that size. Other prompts lie far below.
const sameLogits = 0.9995

func cosine(a, b []float32) float64 {
	var ab, aa, bb float64
	for i := range a {
		ab += float64(a[i]) * float64(b[i])
		aa += float64(a[i]) * float64(a[i])
		bb += float64(b[i]) * float64(b[i])
	}
	return ab / math.Sqrt(aa*bb)
}

func BenchmarkGenerate(b *testing.B) {
	v := openVocab(b)
	for _, sequences := range []int{1, 4, 16} {
		b.Run(fmt.Sprintf("sequences=%d", sequences), func(b *testing.B) {
			s := openSession(b, func(p *SessionParams) { p.NSequences, p.NCtx = sequences, 4096 })
			all := make([]string, 16)
			for i := range all {
				all[i] = questions[i%len(questions)]
			}
			tokens := 0
			for b.Loop() {
				answers, err := NewGenerator(s, v).Generate(b.Context(), prompts(b, v, all), GenerateOptions{MaxTokens: 64})
				require.NoError(b, err)
				for _, a := range answers {
					tokens += len(a.Tokens)
				}
			}
			b.ReportMetric(float64(tokens)/b.Elapsed().Seconds(), "tokens/s")
		})
	}
}

// A conversation's turns begin with what the cache still holds, and are answered as if each had been read whole.
func TestAConversationIsKept(t *testing.T) {
	path := tinyModel(t, testmodel.Options{})
	v, err := OpenVocab(path)
	require.NoError(t, err)
	defer v.Close()
	open := func() *Generator {
		s, err := NewSession(path, "", SessionParams{NCtx: 256, NBatch: 16, NSequences: 1, NThreads: 1, AdapterScale: 1, F32KV: true})
		require.NoError(t, err)
		t.Cleanup(s.Close)
		return NewGenerator(s, v)
	}
	kept, fresh := open(), open()
	opts := GenerateOptions{MaxTokens: 12, Sampling: Sampling{Temperature: 0.8, TopP: 1, Seed: 3}}
	keeping := opts
	keeping.Keep = true
	first := chatML(t, v, "a question")
	prompt := first
	for turn := range 4 {
		want, err := fresh.Generate(t.Context(), [][]int32{prompt}, opts)
		require.NoError(t, err)
		got, err := kept.Generate(t.Context(), [][]int32{prompt}, keeping)
		require.NoError(t, err)
		require.Equal(t, want, got, "turn %d", turn)
		require.GreaterOrEqual(t, len(kept.kept), len(prompt))
		next := append(slices.Clone(prompt), got[0].Tokens...)
		prompt = append(next, chatML(t, v, "and then?")...)
		require.NoError(t, kept.takeBack([][]int32{prompt}, true))
		require.GreaterOrEqual(t, len(kept.kept), len(next)-1, "only what is new is computed")
	}
	want, err := fresh.Generate(t.Context(), [][]int32{first}, opts)
	require.NoError(t, err)
	got, err := kept.Generate(t.Context(), [][]int32{first}, keeping)
	require.NoError(t, err)
	require.Equal(t, want, got, "back to the first turn")

	ended, stop := context.WithCancel(t.Context())
	interrupted := keeping
	interrupted.OnText = func(int, string) { stop() }
	_, err = kept.Generate(ended, [][]int32{prompt}, interrupted)
	require.ErrorIs(t, err, context.Canceled)
	got, err = kept.Generate(t.Context(), [][]int32{prompt}, keeping)
	require.NoError(t, err)
	want, err = fresh.Generate(t.Context(), [][]int32{prompt}, opts)
	require.NoError(t, err)
	require.Equal(t, want, got, "after an answer that was cut short")

	_, err = kept.Generate(t.Context(), [][]int32{first, prompt}, keeping)
	require.ErrorContains(t, err, "one prompt can be kept")
	got, err = kept.Generate(t.Context(), [][]int32{first, prompt}, opts)
	require.NoError(t, err)
	require.Empty(t, kept.kept)
	require.Len(t, got, 2)
}
