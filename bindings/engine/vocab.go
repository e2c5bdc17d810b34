package engine

// #include "cft_infer.h"
import "C"

import (
	"runtime"
	"strings"
	"sync"
	"unsafe"
)

// Vocab is the vocabulary of a GGUF. It serves several callers at once.
type Vocab struct {
	mu sync.RWMutex // held for writing by Close only
	c  *C.cft_vocab

	// Read once by OpenVocab, so that looking a token up does not cross to C. They stay readable after Close.
	info     VocabInfo
	template string
	pieces   []string // as text of control tokens too
	kinds    []TokenKind
}

// VocabInfo has the special tokens, -1 where the model has none, and what the GGUF asks of callers.
type VocabInfo struct {
	Tokens                 int
	BOS, EOS, EOT, NL, Pad int32
	AddBOS, AddEOS         bool
	AddSpacePrefix         bool // SentencePiece: a space is put before text
}

// TokenKind says what a token is for: Control tokens are made by template markup only; EOG ends generation.
type TokenKind struct {
	Control, EOG bool
}

// OpenVocab reads the vocabulary of the GGUF at path, and no weights.
func OpenVocab(path string) (*Vocab, error) {
	if err := Init(""); err != nil {
		return nil, err
	}
	var (
		c  *C.cft_vocab
		ce C.cft_error
	)
	p, n := chars(path)
	status := C.cft_vocab_load(p, n, &c, &ce)
	runtime.KeepAlive(path)
	if err := check("vocab_load", status, &ce); err != nil {
		return nil, err
	}
	v := &Vocab{c: c}
	if err := v.readTables(); err != nil {
		v.Close()
		return nil, err
	}
	return v, nil
}

func (v *Vocab) readTables() error {
	var (
		i  C.cft_vocab_info
		ce C.cft_error
	)
	if err := check("vocab_get_info", C.cft_vocab_get_info(v.c, &i, &ce), &ce); err != nil {
		return err
	}
	v.info = VocabInfo{
		Tokens: int(i.n_tokens),
		BOS:    int32(i.bos), EOS: int32(i.eos), EOT: int32(i.eot), NL: int32(i.nl), Pad: int32(i.pad),
		AddBOS: i.add_bos == 1, AddEOS: i.add_eos == 1, AddSpacePrefix: i.add_space_prefix == 1,
	}
	v.pieces = make([]string, v.info.Tokens)
	v.kinds = make([]TokenKind, v.info.Tokens)
	buf := make([]byte, 256)
	template, err := readText("vocab_chat_template", &buf, func(p *C.char, capacity C.size_t, n *C.size_t, ce *C.cft_error) C.cft_status {
		return C.cft_vocab_chat_template(v.c, p, capacity, n, ce)
	})
	if err != nil {
		return err
	}
	v.template = template
	for token := range v.pieces {
		piece, err := v.readPiece(C.int32_t(token), &buf)
		if err != nil {
			return err
		}
		var control, eog C.int32_t
		if err := check("vocab_token_kind", C.cft_vocab_token_kind(v.c, C.int32_t(token), &control, &eog, &ce), &ce); err != nil {
			return err
		}
		v.pieces[token] = piece
		v.kinds[token] = TokenKind{Control: control == 1, EOG: eog == 1}
	}
	return nil
}

func (v *Vocab) readPiece(token C.int32_t, buf *[]byte) (string, error) {
	return readText("vocab_piece", buf, func(p *C.char, capacity C.size_t, n *C.size_t, ce *C.cft_error) C.cft_status {
		return C.cft_vocab_piece(v.c, token, 1, p, capacity, n, ce)
	})
}

// readText returns what call writes, and grows buf where that is longer.
func readText(op string, buf *[]byte, call func(p *C.char, capacity C.size_t, n *C.size_t, ce *C.cft_error) C.cft_status) (string, error) {
	for {
		var (
			n  C.size_t
			ce C.cft_error
		)
		p := (*C.char)(unsafe.Pointer(unsafe.SliceData(*buf)))
		if err := check(op, call(p, C.size_t(len(*buf)), &n, &ce), &ce); err != nil {
			return "", err
		}
		if int(n) <= len(*buf) {
			return string((*buf)[:n]), nil
		}
		*buf = make([]byte, n)
	}
}

// Close frees the vocabulary.
func (v *Vocab) Close() {
	v.mu.Lock()
	defer v.mu.Unlock()
	C.cft_vocab_free(v.c)
	v.c = nil
}

// Info returns the special tokens.
func (v *Vocab) Info() VocabInfo { return v.info }

// ChatTemplate returns the Jinja source of the model's chat template, "" where it has none.
func (v *Vocab) ChatTemplate() string { return v.template }

// Tokenize returns the tokens of text, which must be UTF-8, without BOS or EOS. With parseSpecial, text that spells a
// control token becomes that token; without, it stays text.
func (v *Vocab) Tokenize(text string, parseSpecial bool) ([]int32, error) {
	v.mu.RLock()
	defer v.mu.RUnlock()
	if v.c == nil {
		return nil, ErrClosed
	}
	p, size := chars(text)
	tokens := make([]int32, len(text)/3+8) // English has 3 to 5 bytes a token; else it is done again
	for {
		var (
			n  C.size_t
			ce C.cft_error
		)
		st := C.cft_vocab_tokenize(v.c, p, size, flag(parseSpecial), int32s(tokens), C.size_t(len(tokens)), &n, &ce)
		runtime.KeepAlive(text)
		if err := check("vocab_tokenize", st, &ce); err != nil {
			return nil, err
		}
		if int(n) <= len(tokens) {
			return tokens[:n:n], nil
		}
		tokens = make([]int32, n)
	}
}

// TokenText returns the bytes of a token, a control token's as templates spell it. It is empty for what is no token.
func (v *Vocab) TokenText(token int32) string {
	if token < 0 || int(token) >= len(v.pieces) {
		return ""
	}
	return v.pieces[token]
}

// Kind says what a token is for.
func (v *Vocab) Kind(token int32) TokenKind {
	if token < 0 || int(token) >= len(v.kinds) {
		return TokenKind{}
	}
	return v.kinds[token]
}

// IsControl reports whether the token is made by template markup only.
func (v *Vocab) IsControl(token int32) bool { return v.Kind(token).Control }

// IsEOG reports whether generation ends with the token.
func (v *Vocab) IsEOG(token int32) bool { return v.Kind(token).EOG }

// BOS is the token at a text's begin, -1 where there is none.
func (v *Vocab) BOS() int32 { return v.info.BOS }

// EOS is the token at a text's end, -1 where there is none.
func (v *Vocab) EOS() int32 { return v.info.EOS }

// AddBOS reports whether the GGUF asks for a BOS in front of every text.
func (v *Vocab) AddBOS() bool { return v.info.AddBOS }

// Detokenize returns the bytes of all tokens in a row, control tokens as their text if special is set, as nothing
// otherwise. It is not always UTF-8: a token may end inside a character. The space that a SentencePiece vocabulary put
// before the text is still there.
func (v *Vocab) Detokenize(tokens []int32, special bool) string {
	var text strings.Builder
	for _, token := range tokens {
		if special || !v.IsControl(token) {
			text.WriteString(v.TokenText(token))
		}
	}
	return text.String()
}
