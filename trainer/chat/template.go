package chat

import (
	"errors"

	"cftune/trainer/dataset"
)

// Template is a model's chat template with its vocabulary.
type Template struct {
	source string
	tok    Tokenizer
	system string
}

var errUnfinished = errors.New("chat: being written")

// NewTemplate compiles the Jinja source of a chat template (tokenizer.chat_template of the GGUF).
func NewTemplate(source string, tok Tokenizer) (*Template, error) { return nil, errUnfinished }

// WithSystem returns a copy that puts a system message before conversations that have none. Empty: no change.
func (t *Template) WithSystem(system string) *Template { c := *t; c.system = system; return &c }

// Render returns the conversation as text.
func (t *Template) Render(messages []dataset.Message, addGenerationPrompt bool) (string, error) {
	return "", errUnfinished
}

// Encode returns tokens and unshifted labels of a conversation. train says which messages are learned (nil: all of the
// assistant's).
func (t *Template) Encode(messages []dataset.Message, train []bool) (tokens, labels []int32, err error) {
	return nil, nil, errUnfinished
}

// EncodePrompt returns the tokens after which the model generates the assistant's next turn.
func (t *Template) EncodePrompt(messages []dataset.Message) ([]int32, error) {
	return nil, errUnfinished
}

// Preview shows each token with its mask, for people.
func Preview(tok Tokenizer, tokens, labels []int32) string { return "" }
