package testmodel

import (
	"fmt"
	"slices"
	"strings"
)

// The control tokens, in the order of their ids.
const (
	EndOfText = 0 // <|endoftext|>, also BOS (which the model does not ask for)
	ImStart   = 1 // <|im_start|>
	ImEnd     = 2 // <|im_end|>, EOS
)

// ChatTemplate is the template that the models carry.
const ChatTemplate = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + " +
	"'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"

// words become whole tokens, by merges that build them from the left; Ġ stands for a leading space.
var words = []string{
	"the", "Ġthe", "ing", "er", "Ġis", "Ġa", "user", "assistant", "right", "wrong", "Ġright", "Ġwrong", "Ġanswer", "Question", "ed",
}

// Kinds of tokens in GGUF's numbers.
const (
	kindNormal  = 1
	kindControl = 3
	kindUnused  = 5
)

// across are merged from the left as words are, over the borders of words.
var across = []string{"aĠ", "eĠ", "ZĠ", "9Ġ", ".Ġ", ",Ġ", "'Ġ", "ĠĠ", "ĊĠ", "ĠĊ", "Ġ9", "Ġ.", "Ġb", "sĠb", "99", "éĠ"}

// MinVocab is the number of tokens that the tokenizer itself needs: control tokens, bytes and merged words.
func MinVocab() int {
	tokens, _, _ := vocabulary(words)
	return len(tokens)
}

// MinVocabAcross is MinVocab with the merges across spaces.
func MinVocabAcross() int {
	tokens, _, _ := vocabulary(slices.Concat(words, across))
	return len(tokens)
}

// vocabulary lists tokens, their kinds and the merges: control tokens first, then one token per byte, then what merges make.
func vocabulary(words []string) (tokens []string, kinds []int32, merges []string) {
	known := map[string]bool{}
	add := func(token string, kind int32) {
		tokens, kinds = append(tokens, token), append(kinds, kind)
		known[token] = true
	}
	add("<|endoftext|>", kindControl)
	add("<|im_start|>", kindControl)
	add("<|im_end|>", kindControl)
	for b := range 256 {
		add(string(byteRune(b)), kindNormal)
	}
	for _, word := range words {
		runes := []rune(word)
		left := string(runes[:1])
		for _, r := range runes[1:] {
			if joined := left + string(r); !known[joined] {
				merges = append(merges, left+" "+string(r))
				add(joined, kindNormal)
			}
			left += string(r)
		}
	}
	return tokens, kinds, merges
}

// byteRune is the character that stands for a byte in GPT-2's vocabularies: printable Latin-1 stands for itself, the
// other 68 bytes are counted up from U+0100, so that no token holds a space or a control character.
func byteRune(b int) rune {
	printable := func(c int) bool { return '!' <= c && c <= '~' || 0xa1 <= c && c <= 0xac || 0xae <= c && c <= 0xff }
	if printable(b) {
		return rune(b)
	}
	offset := 0
	for c := range b {
		if !printable(c) {
			offset++
		}
	}
	return rune(0x100 + offset)
}

func tokenizerMetadata(f *file, size int, pre string) {
	tokens, kinds, merges := vocabulary(words)
	if pre == "" {
		pre = "smollm"
	} else {
		tokens, kinds, merges = vocabulary(slices.Concat(words, across))
	}
	for i := len(tokens); i < size; i++ {
		tokens, kinds = append(tokens, fmt.Sprintf("<|unused_%d|>", i)), append(kinds, kindUnused)
	}
	f.str("tokenizer.ggml.model", "gpt2")
	f.str("tokenizer.ggml.pre", pre)
	f.strings("tokenizer.ggml.tokens", tokens)
	f.int32s("tokenizer.ggml.token_type", kinds)
	f.strings("tokenizer.ggml.merges", merges)
	f.u32("tokenizer.ggml.bos_token_id", EndOfText)
	f.u32("tokenizer.ggml.eos_token_id", ImEnd)
	f.u32("tokenizer.ggml.unknown_token_id", EndOfText)
	f.u32("tokenizer.ggml.padding_token_id", ImEnd)
	f.boolean("tokenizer.ggml.add_bos_token", false)
	f.boolean("tokenizer.ggml.add_space_prefix", false)
	f.str("tokenizer.chat_template", ChatTemplate)
}

// SentencePiece's tokens with a meaning: unknown, BOS, EOS.
const (
	SPUnknown = 0 // <unk>
	SPBOS     = 1 // <s>
	SPEOS     = 2 // </s>
)

const (
	kindUnknown = 2
	kindByte    = 6
)

// MinVocabSentencePiece is the number of tokens that the tokenizer of kind SentencePiece needs.
func MinVocabSentencePiece() int {
	tokens, _, _ := pieces()
	return len(tokens)
}

// pieces lists tokens, kinds and scores: control tokens, a token per byte, printable characters, and what joins from the
// left to words; longer ones have lower scores, as a trained vocabulary has.
func pieces() (tokens []string, kinds []int32, scores []float32) {
	known := map[string]bool{}
	add := func(token string, kind int32, score float32) {
		if !known[token] {
			known[token] = true
			tokens, kinds, scores = append(tokens, token), append(kinds, kind), append(scores, score)
		}
	}
	add("<unk>", kindUnknown, 0)
	add("<s>", kindControl, 0)
	add("</s>", kindControl, 0)
	for b := range 256 {
		add(fmt.Sprintf("<0x%02X>", b), kindByte, 0)
	}
	score := float32(-1)
	piece := func(text string) {
		add(strings.NewReplacer("Ġ", "▁", " ", "▁").Replace(text), kindNormal, score)
		score--
	}
	piece("▁▁") // before ▁, so that runs of spaces join
	for _, word := range words {
		runes := []rune(word)
		for n := 2; n <= len(runes); n++ {
			piece(string(runes[:n]))
		}
	}
	for c := '!'; c <= '~'; c++ {
		piece(string(c))
	}
	for _, c := range "▁éñ中文" {
		piece(string(c))
	}
	return tokens, kinds, scores
}

func sentencePieceMetadata(f *file, size int) {
	tokens, kinds, scores := pieces()
	for i := len(tokens); i < size; i++ {
		tokens, kinds, scores = append(tokens, fmt.Sprintf("<|unused_%d|>", i)), append(kinds, kindUnused), append(scores, 0)
	}
	f.str("tokenizer.ggml.model", "llama")
	f.strings("tokenizer.ggml.tokens", tokens)
	f.float32s("tokenizer.ggml.scores", scores)
	f.int32s("tokenizer.ggml.token_type", kinds)
	f.u32("tokenizer.ggml.unknown_token_id", SPUnknown)
	f.u32("tokenizer.ggml.bos_token_id", SPBOS)
	f.u32("tokenizer.ggml.eos_token_id", SPEOS)
	f.boolean("tokenizer.ggml.add_bos_token", true)
	f.boolean("tokenizer.ggml.add_space_prefix", true)
	f.str("tokenizer.chat_template", SentencePieceTemplate)
}

// SentencePieceTemplate is the chat template of models of that kind, in the manner of Llama 2's.
const SentencePieceTemplate = "{{ bos_token }}{% for message in messages %}{% if message.role == 'assistant' %}" +
	"{{ ' ' + message.content + eos_token }}{% else %}{{ '[INST] ' + message.content + ' [/INST]' }}{% endif %}{% endfor %}"
