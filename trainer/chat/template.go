package chat

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/nikolalohinski/gonja/v2/builtins"
	"github.com/nikolalohinski/gonja/v2/config"
	"github.com/nikolalohinski/gonja/v2/exec"
	"github.com/nikolalohinski/gonja/v2/loaders"

	"cftune/trainer/dataset"
)

// Template is a model's chat template with its vocabulary. It is safe for concurrent use.
type Template struct {
	compiled *exec.Template
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

// templateName is how the template is called in messages of the Jinja engine.
const templateName = "/chat_template"

// NewTemplate compiles the Jinja source of a chat template (tokenizer.chat_template of the GGUF).
//
// strftime_now gives the time of this call, so that a prompt with a date has the same tokens throughout a run; see At.
func NewTemplate(source string, tok Tokenizer) (*Template, error) {
	if strings.TrimSpace(source) == "" {
		return nil, errors.New("chat template: there is none; give one with chat.template_file")
	}
	if strings.ContainsRune(source, markOpen) {
		return nil, fmt.Errorf("chat template: uses the private character %U, which stands for contents here", markOpen)
	}
	compiled, err := compile(source)
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

// compile parses the source with the settings of transformers' renderer. Its engine panics on some faulty sources.
func compile(source string) (compiled *exec.Template, err error) {
	defer recoverAs(&err)
	settings := config.New()
	settings.TrimBlocks = true
	settings.LeftStripBlocks = true
	// The loader has this one file: a template can include nothing of this machine's.
	loader, err := loaders.NewMemoryLoader(map[string]string{templateName: source})
	if err != nil {
		return nil, err
	}
	methods := builtins.Methods
	methods.Str = stringMethods()
	environment := &exec.Environment{
		Context:           exec.EmptyContext().Update(builtins.GlobalFunctions).Update(builtins.GlobalVariables),
		Filters:           builtins.Filters,
		Tests:             builtins.Tests,
		ControlStructures: builtins.ControlStructures,
		Methods:           methods,
	}
	compiled, err = exec.NewTemplate(templateName, settings, loader, environment)
	if err != nil {
		// The engine's message starts with the whole source.
		return nil, errors.New("cannot be parsed: " + lastLine(err))
	}
	return compiled, nil
}

// recoverAs makes an error of a panic in the Jinja engine: its input is the model's file, not ours.
func recoverAs(err *error) {
	if r := recover(); r != nil {
		*err = fmt.Errorf("the Jinja engine gave up: %v", r)
	}
}

func lastLine(err error) string {
	text := strings.TrimSpace(err.Error())
	return text[strings.LastIndexByte(text, '\n')+1:]
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

// raised is what a template says by raise_exception.
type raised struct{ message string }

func (r *raised) Error() string { return "the template says: " + r.message }

func (t *Template) render(messages []dataset.Message, addGenerationPrompt bool) (text string, err error) {
	defer recoverAs(&err)
	list := make([]any, len(messages))
	for i, m := range messages {
		list[i] = map[string]any{"role": m.Role, "content": m.Content}
	}
	// The engine wraps errors into text; what the template itself said is worth more than where.
	var said *raised
	var clock error
	values := map[string]any{
		"messages":              list,
		"add_generation_prompt": addGenerationPrompt,
		"bos_token":             t.text(t.tok.BOS()),
		"eos_token":             t.text(t.tok.EOS()),
		"tools":                 nil, // transformers passes these two even where there are none
		"documents":             nil,
		"raise_exception": func(message string) (string, error) {
			said = &raised{message}
			return "", said
		},
		"strftime_now": func(format string) (string, error) {
			var text string
			text, clock = strftime(t.now, format)
			return text, clock
		},
	}
	text, err = t.compiled.ExecuteToString(exec.NewContext(values))
	switch {
	case said != nil:
		return "", fmt.Errorf("chat template: %w", said)
	case clock != nil:
		return "", fmt.Errorf("chat template: %w", clock)
	case err != nil:
		return "", fmt.Errorf("chat template: %w", err)
	}
	return text, nil
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
