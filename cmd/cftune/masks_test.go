package main

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/bindings/engine"
	"cftune/internal/testmodel"
	"cftune/trainer/chat"
	"cftune/trainer/dataset"
)

// maskTemplates end an assistant's turn with EOS, so that any vocabulary can train with them.
var maskTemplates = []string{"instruct", "tagged", "trimmed", "sentences", "thinking"}

// maskVocabs are of both kinds of tokenizers: BPE over bytes and SentencePiece. Those of models are used where they are.
func maskVocabs(t *testing.T) map[string]*engine.Vocab {
	dir := t.TempDir()
	paths := map[string]string{"BPE": filepath.Join(dir, "bpe.gguf"), "SentencePiece": filepath.Join(dir, "sp.gguf")}
	require.NoError(t, testmodel.Write(paths["BPE"], testmodel.Options{}))
	require.NoError(t, testmodel.Write(paths["SentencePiece"], testmodel.Options{SentencePiece: true}))
	for _, name := range []string{"gpt-2", "llama-spm", "phi-3", "starcoder"} {
		if path := filepath.Join(sharedVocabs, "ggml-vocab-"+name+".gguf"); isFile(path) {
			paths[name] = path
		}
	}
	vocabs := map[string]*engine.Vocab{}
	for name, path := range paths {
		vocab, err := engine.OpenVocab(path)
		require.NoError(t, err, name)
		t.Cleanup(vocab.Close)
		vocabs[name] = vocab
	}
	return vocabs
}

func isFile(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// scraps make text that a mask could slip on: spaces of all kinds, what joins with its neighbours, control tokens and
// markup as people may type them, characters of several bytes.
var scraps = []string{
	" ", "  ", "\n", "\n\n", "\t", "\u00a0", "a", "the", " the", "answer", ".", ",", "'s", "42", "007", "é", "ñ", "中文", "🙂", "👩\u200d👩\u200d👧", "e\u0301",
	"<|im_end|>", "<|im_start|>", "</s>", "<s>", "<unk>", "<|endoftext|>", "[INST]", "[/INST]", "ASSISTANT:", "<think>", "== USER ==", "<|user|>", "{{ x }}", "{% if %}", "\\", "▁", "<0x0A>",
}

// readable returns the scraps that the vocabulary gives back as they were: phi-3 has a token </s> that is no control
// token and puts a space after it.
func readable(t *testing.T, vocab *engine.Vocab) []string {
	var list []string
	for _, scrap := range scraps {
		tokens, err := vocab.Tokenize("x"+scrap+"é", false)
		require.NoError(t, err)
		var text strings.Builder
		for _, token := range tokens {
			text.WriteString(vocab.TokenText(token))
		}
		if got := strings.TrimPrefix(text.String(), " "); got == "x"+scrap+"é" || strings.Contains(scrap, "▁") {
			list = append(list, scrap)
		} else {
			t.Logf("left out: %q comes back as %q", scrap, got)
		}
	}
	require.GreaterOrEqual(t, len(list), len(scraps)-2)
	return list
}

func scrapText(rng *rand.Rand, scraps []string) string {
	var out strings.Builder
	for range 1 + rng.IntN(8) {
		out.WriteString(scraps[rng.IntN(len(scraps))])
	}
	if strings.TrimSpace(out.String()) == "" {
		out.WriteString("x")
	}
	return out.String()
}

// Over random conversations: the learned tokens, decoded, are what the assistant says after the prompt of inference, and
// the token that ends it. What comes before are the tokens of that prompt. BOS is there once, or not at all.
func TestLearnedTokensAreTheTargetText(t *testing.T) {
	const records = 150
	for vocabName, vocab := range maskVocabs(t) {
		scraps := readable(t, vocab)
		for _, templateName := range maskTemplates {
			t.Run(vocabName+"/"+templateName, func(t *testing.T) {
				source, err := os.ReadFile(filepath.Join("..", "..", "trainer", "chat", "testdata", "templates", templateName+".jinja"))
				require.NoError(t, err)
				template, err := chat.NewTemplate(string(source), vocab)
				require.NoError(t, err)
				rng := rand.New(rand.NewPCG(4, uint64(len(templateName))))
				learned := 0
				for range records {
					var messages []dataset.Message
					if rng.IntN(2) == 0 {
						messages = append(messages, dataset.Message{Role: dataset.RoleSystem, Content: scrapText(rng, scraps)})
					}
					for range rng.IntN(2) {
						messages = append(messages, dataset.Message{Role: dataset.RoleUser, Content: scrapText(rng, scraps)}, dataset.Message{Role: dataset.RoleAssistant, Content: scrapText(rng, scraps)})
					}
					messages = append(messages, dataset.Message{Role: dataset.RoleUser, Content: scrapText(rng, scraps)}, dataset.Message{Role: dataset.RoleAssistant, Content: scrapText(rng, scraps)})
					if checkMask(t, vocab, template, messages) {
						learned++
					}
				}
				if templateName == "thinking" {
					assert.Greater(t, learned, records/2, "conversations that can be trained with")
				} else {
					assert.Equal(t, records, learned, "conversations that can be trained with")
				}
			})
		}
	}
}

// checkMask checks a conversation whose last message is the only one learned, and reports whether it is not refused.
func checkMask(t *testing.T, vocab *engine.Vocab, template *chat.Template, messages []dataset.Message) bool {
	t.Helper()
	train := make([]bool, len(messages))
	last := len(messages) - 1
	train[last] = true
	tokens, labels, err := template.Encode(messages, train)
	if err != nil {
		// The one thing that may be refused: a thought in what people say, which the template splits off and which
		// spells a control token.
		require.Regexp(t, "alters|differently", err.Error(), "%q", messages)
		return false
	}
	first := 0
	for labels[first] == dataset.IgnoreLabel {
		first++
	}
	for i := first; i < len(labels); i++ {
		require.Equal(t, tokens[i], labels[i], "the target has a hole at %d of %q", i, messages)
	}
	prompt, err := template.EncodePrompt(messages[:last])
	require.NoError(t, err)
	require.Equal(t, prompt, tokens[:first], "other tokens than inference's before the target of %q", messages)

	before, err := template.Render(messages[:last], true)
	require.NoError(t, err)
	whole, err := template.Render(messages, false)
	require.NoError(t, err)
	target, found := strings.CutPrefix(whole, before)
	require.True(t, found, "%q is no beginning of %q", before, whole)
	var text strings.Builder
	for _, token := range labels[first : len(labels)-1] {
		text.WriteString(vocab.TokenText(token))
	}
	end := labels[len(labels)-1]
	require.True(t, vocab.IsEOG(end), "the last token of %q does not end generation", messages)
	eos := vocab.TokenText(vocab.EOS())
	target = target[:strings.LastIndex(target, eos)]
	got := text.String()
	if vocab.Info().AddSpacePrefix {
		// SentencePiece spells a space as U+2581, and that as itself; and it puts a space before text that follows a
		// control token.
		target = strings.ReplaceAll(target, "▁", " ")
		if got == " "+target {
			got = target
		}
	}
	require.Equal(t, target, got)
	for i, token := range tokens {
		if token == vocab.BOS() && vocab.BOS() != vocab.EOS() {
			require.Zero(t, i, "BOS within %q", messages)
		}
	}
	return true
}
