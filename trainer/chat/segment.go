package chat

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"cftune/trainer/dataset"
)

// span is a part of a rendered conversation: the template's markup, or what message n says.
type span struct {
	text    string
	message int // -1: markup
}

const markup = -1

// Contents are found by rendering the conversation once more with marks in their place: markOpen, the message's number,
// markClose. The characters are of a private use area: no template has them (NewTemplate sees to it).
const (
	markOpen  = '\uf5c1'
	markClose = '\uf5c2'
)

// errAltered says that a template does more to a content than to trim it.
var errAltered = errors.New("the template alters contents")

// spans renders the conversation and tells markup from contents. The spans' texts, joined, are what render returns.
//
// A template may trim contents, move them or leave out empty ones. If it does more (splits off what is in <think>),
// the whole text counts as markup, which is only allowed when no content spells a control token.
func (t *Template) spans(messages []dataset.Message, addGenerationPrompt bool) ([]span, error) {
	text, err := t.render(messages, addGenerationPrompt)
	if err != nil {
		return nil, err
	}
	marked := slices.Clone(messages)
	for i := range marked {
		if marked[i].Content != "" {
			marked[i].Content = string(markOpen) + strconv.Itoa(i) + string(markClose)
		}
	}
	// Where the template cannot render the marks at all, it looks into contents: that is altering too.
	if outline, err := t.render(marked, addGenerationPrompt); err == nil {
		list, err := match(outline, text, messages)
		if !errors.Is(err, errAltered) {
			return list, err
		}
	}
	for i, m := range messages {
		plain, err := t.isPlain(m.Content)
		if err != nil {
			return nil, err
		}
		if !plain {
			return nil, fmt.Errorf("chat template: alters what message %d (%s) says, which spells a control token: it cannot be kept text", i, m.Role)
		}
	}
	return []span{{text, markup}}, nil
}

// isPlain reports whether the text has no control token's spelling.
func (t *Template) isPlain(text string) (bool, error) {
	special, err := t.tok.Tokenize(text, true)
	if err != nil {
		return false, err
	}
	plain, err := t.tok.Tokenize(text, false)
	return slices.Equal(special, plain), err
}

// match cuts text at the places where outline has marks.
func match(outline, text string, messages []dataset.Message) ([]span, error) {
	var list []span
	seen := make([]bool, len(messages))
	for {
		before, rest, found := strings.Cut(outline, string(markOpen))
		if !strings.HasPrefix(text, before) {
			return nil, errAltered
		}
		if before != "" {
			list = append(list, span{before, markup})
			text = text[len(before):]
		}
		if !found {
			break
		}
		number, rest, found := strings.Cut(rest, string(markClose))
		i, err := strconv.Atoi(number)
		if !found || err != nil || i >= len(messages) {
			return nil, errAltered
		}
		next, _, last := strings.Cut(rest, string(markOpen))
		content, ok := trimmedAs(text, messages[i].Content, next, !last)
		if !ok {
			return nil, errAltered
		}
		seen[i] = true
		if content != "" {
			list = append(list, span{content, i})
			text = text[len(content):]
		}
		outline = rest
	}
	if text != "" {
		return nil, errAltered
	}
	for i, m := range messages {
		if !seen[i] && m.Content != "" {
			return nil, fmt.Errorf("chat template: leaves out what message %d (%s) says", i, m.Role)
		}
	}
	return list, nil
}

// trimmedAs returns the form of content, trimmed or not on either side, with which text goes on before next.
func trimmedAs(text, content, next string, last bool) (string, bool) {
	left := []string{content, strings.TrimLeft(content, "\n"), trimLeft(content)}
	for _, l := range left {
		for _, form := range []string{l, strings.TrimRight(l, "\n"), trimRight(l)} {
			rest, ok := strings.CutPrefix(text, form)
			if ok && (last && rest == next || !last && strings.HasPrefix(rest, next)) {
				return form, true
			}
		}
	}
	return "", false
}

func trimLeft(s string) string  { return s[len(s)-len(strings.TrimLeftFunc(s, isSpace)):] }
func trimRight(s string) string { return strings.TrimRightFunc(s, isSpace) }
