package chat

import (
	"regexp"
	"slices"
	"strings"
	"sync"
)

// fake is a word-level tokenizer with llama.cpp's treatment of control tokens. White space sticks to the word that
// follows it, so that text cut at the wrong place has other tokens than text that was not.
type fake struct {
	mu       sync.Mutex
	ids      map[string]int32
	texts    []string
	controls []string
	eog      []string
	rstrip   bool // control tokens eat the white space after them
	lstrip   bool
	always   string // a control token that is found without parseSpecial too, and eats white space to its right
	spm      bool   // a space is put before text, as SentencePiece vocabularies do
	bos, eos string
	addBOS   bool
}

const firstWord = 100

func newFake(controls ...string) *fake {
	return &fake{ids: map[string]int32{}, controls: controls}
}

var (
	words    = regexp.MustCompile(`\s*[^\s]+|\s+`)
	spmWords = regexp.MustCompile(`\n| *[^\s]+|\s`)
)

func (f *fake) Tokenize(text string, parseSpecial bool) ([]int32, error) {
	var tokens []int32
	afterControl := false
	for text != "" {
		at, which := len(text), -1
		for i, c := range f.controls {
			if parseSpecial || c == f.always {
				if found := strings.Index(text, c); found >= 0 && found < at {
					at, which = found, i
				}
			}
		}
		run := text[:at]
		if f.lstrip && which >= 0 {
			run = strings.TrimRight(run, " \n\t")
		}
		if f.rstrip && afterControl {
			run = strings.TrimLeft(run, " \n\t")
		}
		tokens = append(tokens, f.words(run)...)
		if which < 0 {
			break
		}
		tokens = append(tokens, int32(which))
		text = text[at+len(f.controls[which]):]
		if f.controls[which] == f.always {
			text = strings.TrimLeft(text, " \n")
		}
		afterControl = true
	}
	return tokens, nil
}

func (f *fake) words(run string) []int32 {
	if run == "" {
		return nil
	}
	pattern := words
	if f.spm {
		run, pattern = " "+run, spmWords
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	var tokens []int32
	for _, word := range pattern.FindAllString(run, -1) {
		id, known := f.ids[word]
		if !known {
			id = int32(firstWord + len(f.texts))
			f.ids[word] = id
			f.texts = append(f.texts, word)
		}
		tokens = append(tokens, id)
	}
	return tokens
}

func (f *fake) TokenText(token int32) string {
	if f.IsControl(token) {
		return f.controls[token]
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.texts[token-firstWord]
}

func (f *fake) IsControl(token int32) bool { return token >= 0 && int(token) < len(f.controls) }
func (f *fake) IsEOG(token int32) bool {
	return f.IsControl(token) && slices.Contains(f.eog, f.controls[token])
}
func (f *fake) BOS() int32   { return int32(slices.Index(f.controls, f.bos)) }
func (f *fake) EOS() int32   { return int32(slices.Index(f.controls, f.eos)) }
func (f *fake) AddBOS() bool { return f.addBOS }

// show is tokens as text: learned ones in braces.
func (f *fake) show(tokens, labels []int32) string {
	var out strings.Builder
	for i, token := range tokens {
		if labels != nil && labels[i] != ignore {
			out.WriteString("{" + f.TokenText(token) + "}")
		} else {
			out.WriteString("[" + f.TokenText(token) + "]")
		}
	}
	return out.String()
}
