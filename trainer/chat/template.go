package chat

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"cftune/trainer/dataset"
	"cftune/trainer/jinja"
)

// Template is a model's chat template with its vocabulary. It is safe for concurrent use.
type Template struct {
	compiled *jinja.Template
	tok      Tokenizer
	system   string
	now      time.Time
	// addsSpace: the vocabulary puts a space before text (SentencePiece).
	addsSpace bool
	cache     *cache
}

// cache holds what does not depend on what people wrote: it is small.
type cache struct {
	mu     sync.Mutex
	pieces map[string][]piece // markup -> text and control tokens
	trims  map[int32]trim
}

// NewTemplate compiles the Jinja source of a chat template (tokenizer.chat_template of the GGUF).
//
// strftime_now gives the time of this call, so that a prompt with a date has the same tokens throughout a run; see At.
func NewTemplate(source string, tok Tokenizer) (*Template, error) {
	if strings.TrimSpace(source) == "" {
		return nil, errors.New("chat template: there is none; give one with chat.template_file (--template-file of commands without a configuration)")
	}
	if strings.ContainsRune(source, markOpen) {
		return nil, fmt.Errorf("chat template: uses the private character %U, which stands for contents here", markOpen)
	}
	compiled, err := jinja.Parse(source)
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	t := &Template{
		compiled: compiled,
		tok:      tok,
		now:      time.Now(),
		cache:    &cache{pieces: map[string][]piece{}, trims: map[int32]trim{}},
	}
	probe, err := tok.Tokenize("a", false)
	if err != nil {
		return nil, fmt.Errorf("chat template: %w", err)
	}
	t.addsSpace = len(probe) > 0 && strings.HasPrefix(tok.TokenText(probe[0]), " ")
	return t, nil
}

// WithSystem returns a copy that puts a system message before conversations that have none. Empty: no change.
func (t *Template) WithSystem(system string) *Template {
	c := *t
	c.system = system
	return &c
}

// At returns a copy whose strftime_now gives the time.
func (t *Template) At(now time.Time) *Template {
	c := *t
	c.now = now
	return &c
}

// Render returns the conversation as text. With addGenerationPrompt it ends where the assistant's next turn begins.
func (t *Template) Render(messages []dataset.Message, addGenerationPrompt bool) (string, error) {
	return t.render(t.withSystem(messages), addGenerationPrompt)
}

func (t *Template) withSystem(messages []dataset.Message) []dataset.Message {
	if t.system == "" || len(messages) > 0 && messages[0].Role == dataset.RoleSystem {
		return messages
	}
	return append([]dataset.Message{{Role: dataset.RoleSystem, Content: t.system}}, messages...)
}

func (t *Template) render(messages []dataset.Message, addGenerationPrompt bool) (text string, err error) {
	list := make([]any, len(messages))
	for i, m := range messages {
		list[i] = jinja.NewDict().Set("role", m.Role).Set("content", m.Content)
	}
	text, err = t.compiled.Render(map[string]any{
		"messages":              jinja.NewList(list...),
		"add_generation_prompt": addGenerationPrompt,
		"bos_token":             t.text(t.tok.BOS()),
		"eos_token":             t.text(t.tok.EOS()),
		"tools":                 nil, // transformers passes these two even where there are none
		"documents":             nil,
		"raise_exception":       jinja.Func(raise),
		"strftime_now": jinja.Func(func(args []any, _ map[string]any) (any, error) {
			format, ok := only(args)
			if !ok {
				return nil, errors.New("strftime_now takes a format")
			}
			return strftime(t.now, format)
		}),
	})
	if err != nil {
		return "", fmt.Errorf("chat template: %w", err)
	}
	return text, nil
}

// raised is what a template says by raise_exception.
type raised struct{ message string }

func (r *raised) Error() string { return "the template says: " + r.message }

func raise(args []any, _ map[string]any) (any, error) {
	message, ok := only(args)
	if !ok {
		return nil, errors.New("raise_exception takes a message")
	}
	return nil, &raised{message}
}

// only returns the one argument, a text.
func only(args []any) (string, bool) {
	if len(args) != 1 {
		return "", false
	}
	text, ok := args[0].(string)
	return text, ok
}

func (t *Template) text(token int32) string {
	if token < 0 {
		return ""
	}
	return t.tok.TokenText(token)
}

// strftimeLayouts are Go's layouts of Python's directives, as far as templates use them.
var strftimeLayouts = map[byte]string{
	'a': "Mon", 'A': "Monday", 'b': "Jan", 'B': "January", 'd': "02", 'H': "15", 'I': "03", 'j': "002", 'm': "01", 'M': "04",
	'p': "PM", 'S': "05", 'y': "06", 'Y': "2006",
}

// strftime formats a time as Python does.
func strftime(now time.Time, format string) (string, error) {
	var out strings.Builder
	for i := 0; i < len(format); i++ {
		if format[i] != '%' {
			out.WriteByte(format[i])
			continue
		}
		i++
		if i < len(format) && format[i] == '%' {
			out.WriteByte('%')
			continue
		}
		if i == len(format) || strftimeLayouts[format[i]] == "" {
			return "", fmt.Errorf("strftime_now: format %q has a directive that is not known here", format)
		}
		out.WriteString(now.Format(strftimeLayouts[format[i]]))
	}
	return out.String(), nil
}
