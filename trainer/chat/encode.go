package chat

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"

	"cftune/trainer/dataset"
)

// ignore marks a label without loss.
const ignore = dataset.IgnoreLabel

// piece is a control token or a run of text at a place of the rendered conversation.
type piece struct {
	control int32 // -1: text
	text    string
	start   int // bytes from the start of the rendered text
}

func (p piece) end() int { return p.start + len(p.text) }

// trim says on which sides a control token eats white space (lstrip and rstrip of Hugging Face's added tokens).
type trim struct{ left, right bool }

// EncodePrompt returns the tokens after which the model generates the assistant's next turn.
func (t *Template) EncodePrompt(messages []dataset.Message) ([]int32, error) {
	spans, err := t.spans(t.withSystem(messages), true)
	if err != nil {
		return nil, err
	}
	pieces, err := t.pieces(spans)
	if err != nil {
		return nil, err
	}
	tokens, _, err := t.tokenize(pieces, nil)
	return tokens, err
}

// target is a learned part of the rendered text, in bytes: from where the assistant's turn is generated to the end of
// the token that ends it.
type target struct{ start, end int }

// Encode returns tokens and unshifted labels of a conversation: a label is the token itself where it is learned,
// dataset.IgnoreLabel elsewhere. train says which messages are learned (nil: all of the assistant's). What follows the
// last learned token is left out.
func (t *Template) Encode(messages []dataset.Message, train []bool) (tokens, labels []int32, err error) {
	if train, err = learned(messages, train); err != nil {
		return nil, nil, err
	}
	all := t.withSystem(messages)
	train = append(make([]bool, len(all)-len(messages)), train...)
	spans, turns, err := t.learnedSpans(all, train)
	if err != nil {
		return nil, nil, err
	}
	pieces, err := t.pieces(spans)
	if err != nil {
		return nil, nil, err
	}
	targets := make([]target, 0, len(turns))
	for i := range all {
		if !train[i] {
			continue
		}
		found, err := t.target(all[i], i, turns[len(targets)], spans, pieces)
		if err != nil {
			return nil, nil, err
		}
		targets = append(targets, found)
	}
	return t.tokenize(pieces, targets)
}

// learnedSpans renders the conversation and returns the turn of each learned message: from where its generation begins,
// which is where a prompt of the messages before it ends, even if the template puts more before the content (an empty
// <think></think>), to where the next message's words begin.
//
// Some templates render a prompt that is no beginning of the conversation (it opens <think>, which a past turn has
// not). If only one message is learned, its words and what ends it then follow that prompt: so they will be generated.
func (t *Template) learnedSpans(all []dataset.Message, train []bool) (spans []span, turns []target, err error) {
	if spans, err = t.spans(all, false); err != nil {
		return nil, nil, err
	}
	text := joined(spans)
	for i := range all {
		if !train[i] {
			continue
		}
		prompt, err := t.render(all[:i], true)
		if err != nil {
			return nil, nil, err
		}
		next, err := t.wordsAt(all, i+1, text)
		if err != nil {
			return nil, nil, err
		}
		if strings.HasPrefix(text, prompt) {
			turns = append(turns, target{len(prompt), next})
			continue
		}
		at := slices.IndexFunc(spans, func(s span) bool { return s.message == i })
		only := !slices.Contains(train[:i], true) && !slices.Contains(train[i+1:], true)
		if !only || at < 0 {
			return nil, nil, fmt.Errorf("chat template: renders the messages before message %d differently once it is there, "+
				"so that what is learned would not follow the prompt of inference", i)
		}
		before, err := t.spans(all[:i], true)
		if err != nil {
			return nil, nil, err
		}
		list := append(before, spans[at:]...)
		return list, []target{{len(prompt), len(joined(list)) - (len(text) - next)}}, nil
	}
	return spans, turns, nil
}

// wordsAt returns where message i's words begin in the rendered text, its end where there is no such message: up to
// there the text is the same whatever the message says.
func (t *Template) wordsAt(all []dataset.Message, i int, text string) (int, error) {
	if i == len(all) {
		return len(text), nil
	}
	other := slices.Clone(all)
	other[i].Content = string(markOpen)
	rendered, err := t.render(other, false)
	if err != nil {
		return 0, err
	}
	at := 0
	for at < min(len(text), len(rendered)) && text[at] == rendered[at] {
		at++
	}
	return at, nil
}

// learned checks which messages are learned.
func learned(messages []dataset.Message, train []bool) ([]bool, error) {
	if train == nil {
		train = make([]bool, len(messages))
		for i, m := range messages {
			train[i] = m.Role == dataset.RoleAssistant
		}
	}
	if len(train) != len(messages) {
		return nil, fmt.Errorf("encode conversation: %d messages but %d masks", len(messages), len(train))
	}
	for i, m := range messages {
		switch {
		case train[i] && m.Role != dataset.RoleAssistant:
			return nil, fmt.Errorf("encode conversation: message %d is the %s's and cannot be learned", i, m.Role)
		case train[i] && m.Content == "":
			return nil, fmt.Errorf("encode conversation: message %d is to be learned but is empty", i)
		}
	}
	if !slices.Contains(train, true) {
		return nil, errors.New("encode conversation: no message is to be learned")
	}
	return train, nil
}

// target finds the end of message i's learned part: that of the token that ends generation. It must come before the next
// message says anything: some templates end only the last turn, and then the user's words would be learned.
func (t *Template) target(m dataset.Message, i int, turn target, spans []span, pieces []piece) (target, error) {
	for _, p := range pieces {
		if p.control < 0 || p.start < turn.start || p.end() > turn.end || !t.tok.IsEOG(p.control) {
			continue
		}
		found := target{turn.start, p.end()}
		return found, within(found, m, i, spans)
	}
	return target{}, fmt.Errorf("chat template: does not end message %d with a token that ends generation", i)
}

// joined is the rendered text.
func joined(spans []span) string {
	var text strings.Builder
	for _, s := range spans {
		text.WriteString(s.text)
	}
	return text.String()
}

// within checks that the message's words, all of them, are in the target.
func within(found target, m dataset.Message, i int, spans []span) error {
	at, located, inside := 0, false, false
	for _, s := range spans {
		if s.message == i {
			located = true
			inside = at >= found.start && at+len(s.text) <= found.end
		}
		at += len(s.text)
	}
	if !located && len(spans) == 1 && spans[0].message == markup {
		inside = strings.Contains(spans[0].text[found.start:found.end], strings.TrimFunc(m.Content, isSpace))
	}
	if !inside {
		return fmt.Errorf("chat template: alters or moves what message %d (%s) says, so that it cannot be learned as it stands", i, m.Role)
	}
	return nil
}

// pieces cuts the spans into control tokens, which only markup has, and runs of text between them. A run goes across
// the borders of markup and content: there tokens may join, as they do at inference.
func (t *Template) pieces(spans []span) ([]piece, error) {
	var list []piece
	at := 0
	addText := func(text string) {
		if n := len(list); n > 0 && list[n-1].control < 0 {
			list[n-1].text += text
		} else {
			list = append(list, piece{-1, text, at})
		}
		at += len(text)
	}
	for _, s := range spans {
		if s.message != markup {
			addText(s.text)
			continue
		}
		parts, err := t.splitMarkup(s.text)
		if err != nil {
			return nil, err
		}
		for _, p := range parts {
			if p.control < 0 {
				addText(p.text)
				continue
			}
			list = append(list, piece{p.control, p.text, at})
			at += len(p.text)
		}
	}
	return list, nil
}

// maxCachedMarkup bounds a cached markup, in bytes, and maxCached their number.
const (
	maxCachedMarkup = 4096
	maxCached       = 256
)

// splitMarkup tells control tokens from text in markup, and checks that the parts have the tokens of the whole.
func (t *Template) splitMarkup(text string) ([]piece, error) {
	t.cache.mu.Lock()
	known, ok := t.cache.pieces[text]
	t.cache.mu.Unlock()
	if ok {
		return known, nil
	}
	whole, err := t.tok.Tokenize(text, true)
	if err != nil {
		return nil, err
	}
	var list []piece
	at := 0
	for _, token := range whole {
		if !t.isMarker(token) {
			continue
		}
		spelling := t.tok.TokenText(token)
		skip := strings.Index(text[at:], spelling)
		if spelling == "" || skip < 0 {
			return nil, fmt.Errorf("chat template: control token %d (%q) is not spelt so in the markup %q", token, spelling, text)
		}
		if skip > 0 {
			list = append(list, piece{-1, text[at : at+skip], at})
		}
		at += skip
		list = append(list, piece{token, spelling, at})
		at += len(spelling)
	}
	if at < len(text) {
		list = append(list, piece{-1, text[at:], at})
	}
	composed, err := t.join(list, nil, nil)
	if err != nil {
		return nil, err
	}
	if !slices.Equal(composed, whole) {
		return nil, fmt.Errorf("chat template: the vocabulary has other tokens for the markup %q than for its parts", text)
	}
	t.cache.mu.Lock()
	if len(text) <= maxCachedMarkup && len(t.cache.pieces) < maxCached {
		t.cache.pieces[text] = list
	}
	t.cache.mu.Unlock()
	return list, nil
}

// tokenize returns the pieces' tokens with BOS in front, and their labels. With targets it ends with the last of them.
func (t *Template) tokenize(pieces []piece, targets []target) (tokens, labels []int32, err error) {
	if bos := t.tok.BOS(); t.tok.AddBOS() && bos >= 0 && (len(pieces) == 0 || pieces[0].control != bos) {
		tokens = append(tokens, bos)
	}
	if len(targets) > 0 {
		if pieces, err = cut(pieces, targets); err != nil {
			return nil, nil, err
		}
	}
	var starts []int // number of the piece that each token comes from
	body, err := t.join(pieces, targets, &starts)
	if err != nil {
		return nil, nil, err
	}
	labels = slices.Repeat([]int32{ignore}, len(tokens))
	for k, token := range body {
		label := int32(ignore)
		for _, span := range targets {
			if at := pieces[starts[k]].start; at >= span.start && at < span.end {
				label = token
			}
		}
		labels = append(labels, label)
	}
	return append(tokens, body...), labels, nil
}

// cut splits text at the targets' starts and drops what comes after the last target.
func cut(pieces []piece, targets []target) ([]piece, error) {
	var list []piece
	for _, p := range pieces {
		for _, span := range targets {
			if span.start <= p.start || span.start >= p.end() {
				continue
			}
			if p.control >= 0 {
				return nil, fmt.Errorf("chat template: a prompt ends within the token %q", p.text)
			}
			head := span.start - p.start
			list = append(list, piece{-1, p.text[:head], p.start})
			p = piece{-1, p.text[head:], span.start}
		}
		if p.start < targets[len(targets)-1].end {
			list = append(list, p)
		}
	}
	return list, nil
}

// join tokenizes piece by piece. Text is never parsed for control tokens. starts, if not nil, gets the piece's number
// for each token.
func (t *Template) join(pieces []piece, targets []target, starts *[]int) ([]int32, error) {
	var tokens []int32
	for i, p := range pieces {
		part := []int32{p.control}
		if p.control < 0 {
			text, err := t.strip(pieces, i, targets)
			if err != nil {
				return nil, err
			}
			midText := i > 0 && pieces[i-1].control < 0
			if part, err = t.run(text, midText); err != nil {
				return nil, err
			}
		}
		tokens = append(tokens, part...)
		if starts != nil {
			*starts = append(*starts, slices.Repeat([]int{i}, len(part))...)
		}
	}
	return tokens, nil
}

// strip takes off text the white space that the control tokens beside it eat. What begins a target is generated, not
// tokenized from text, and stays.
func (t *Template) strip(pieces []piece, i int, targets []target) (string, error) {
	text := pieces[i].text
	if i+1 < len(pieces) && pieces[i+1].control >= 0 {
		eats, err := t.trimOf(pieces[i+1].control)
		if err != nil {
			return "", err
		}
		if eats.left {
			text = strings.TrimRightFunc(text, isSpaceC)
		}
	}
	begins := slices.ContainsFunc(targets, func(s target) bool { return s.start == pieces[i].start })
	if i > 0 && pieces[i-1].control >= 0 && !begins {
		eats, err := t.trimOf(pieces[i-1].control)
		if err != nil {
			return "", err
		}
		if eats.right {
			text = strings.TrimLeftFunc(text, isSpaceC)
		}
	}
	return text, nil
}

// isMarker reports whether only markup may have the token. Some vocabularies have a token that ends generation among
// their user-defined ones, which tokenizers find in any text (Phi-3's </s>).
func (t *Template) isMarker(token int32) bool { return t.tok.IsControl(token) || t.tok.IsEOG(token) }

// run tokenizes a run of text into tokens none of which is a marker: where the vocabulary finds one all the same, the
// text is cut within its spelling. midText: text comes before it.
func (t *Template) run(text string, midText bool) ([]int32, error) {
	tokens, err := t.plain(text, midText)
	if err != nil {
		return nil, err
	}
	found := slices.IndexFunc(tokens, t.isMarker)
	if found < 0 {
		return tokens, nil
	}
	spelling := t.tok.TokenText(tokens[found])
	at := strings.Index(text, spelling)
	if at < 0 || len(spelling) < 2 {
		return nil, fmt.Errorf("encode conversation: the vocabulary makes token %d (%q) of the text %.40q", tokens[found], spelling, text)
	}
	_, width := utf8.DecodeRuneInString(spelling)
	before, err := t.run(text[:at+width], midText)
	if err != nil {
		return nil, err
	}
	after, err := t.run(text[at+width:], true)
	return append(before, after...), err
}

// plain tokenizes text. A vocabulary that puts a space before text must not put one where text comes before it: a
// newline in front, whose tokens are taken off again, keeps it from that.
func (t *Template) plain(text string, midText bool) ([]int32, error) {
	if text == "" {
		return nil, nil
	}
	if !midText || !t.addsSpace {
		return t.tok.Tokenize(text, false)
	}
	const fence = "\n"
	lead, err := t.tok.Tokenize(fence, false)
	if err != nil {
		return nil, err
	}
	fenced, err := t.tok.Tokenize(fence+text, false)
	if err != nil {
		return nil, err
	}
	if len(fenced) <= len(lead) || !slices.Equal(fenced[:len(lead)], lead) {
		return nil, fmt.Errorf("encode conversation: the vocabulary joins a newline with what follows in %.40q", text)
	}
	return fenced[len(lead):], nil
}

// trimOf finds out, once, on which sides a control token eats white space.
func (t *Template) trimOf(control int32) (trim, error) {
	t.cache.mu.Lock()
	known, ok := t.cache.trims[control]
	t.cache.mu.Unlock()
	if ok {
		return known, nil
	}
	const word, space = "a", " \n"
	spelling := t.tok.TokenText(control)
	var probes [5][]int32
	for i, text := range []string{word, word + space, space + word, word + space + spelling, spelling + space + word} {
		tokens, err := t.tok.Tokenize(text, true)
		if err != nil {
			return trim{}, err
		}
		probes[i] = tokens
	}
	// Eaten: the tokens are those of the word without the space, where the space by itself would make others.
	found := trim{
		left:  slices.Equal(probes[3], append(slices.Clone(probes[0]), control)) && !slices.Equal(probes[1], probes[0]),
		right: slices.Equal(probes[4], append([]int32{control}, probes[0]...)) && !slices.Equal(probes[2], probes[0]),
	}
	t.cache.mu.Lock()
	t.cache.trims[control] = found
	t.cache.mu.Unlock()
	return found, nil
}

// isSpace is white space as Jinja's trim takes it.
func isSpace(r rune) bool { return unicode.IsSpace(r) }

// isSpaceC is white space as llama.cpp's tokenizer takes it (isspace in the C locale).
func isSpaceC(r rune) bool { return r == ' ' || r >= '\t' && r <= '\r' }
