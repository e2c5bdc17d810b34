package dataset

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"cftune/trainer/dataset/source"
)

// row is a line's object, its fields undecoded, with what is wrong with them.
type row struct {
	fields   map[string]json.RawMessage
	problems []string
	came     map[string]json.RawMessage // the fields before a map renamed them; nil without one
	lacks    bool                       // a problem is a field that is not there
}

// parseRow splits an object into fields. Duplicate names are errors: JSON decoders keep one of the two at will.
func parseRow(text []byte) (*row, error) {
	if len(text) > 0 && text[0] == '[' {
		return nil, errors.New("the line is an array; JSONL has one object per line")
	}
	if len(text) > 0 && text[0] != '{' {
		return nil, fmt.Errorf("the line is no JSON object: it starts with %s", excerpt(text))
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	var whole json.RawMessage
	if err := dec.Decode(&whole); err != nil {
		return nil, syntaxError(err)
	}
	if rest := bytes.TrimSpace(text[dec.InputOffset():]); len(rest) > 0 {
		return nil, fmt.Errorf("more text after the object: %s", excerpt(rest))
	}
	fields := json.NewDecoder(bytes.NewReader(whole))
	if _, err := fields.Token(); err != nil {
		return nil, syntaxError(err)
	}
	r := &row{fields: map[string]json.RawMessage{}}
	for fields.More() {
		name, err := fields.Token()
		if err != nil {
			return nil, syntaxError(err)
		}
		var value json.RawMessage
		if err := fields.Decode(&value); err != nil {
			return nil, syntaxError(err)
		}
		if _, twice := r.fields[name.(string)]; twice {
			return nil, fmt.Errorf("field %q is there twice", name)
		}
		r.fields[name.(string)] = value
	}
	return r, nil
}

func syntaxError(err error) error {
	var syntax *json.SyntaxError
	switch {
	case errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("the JSON object is cut off")
	case errors.As(err, &syntax):
		return fmt.Errorf("no JSON: byte %d: %w", syntax.Offset, err)
	}
	return fmt.Errorf("no JSON: %w", err)
}

// missing complains of a field that is not there.
func (r *row) missing(name string) {
	r.complain("%s is missing", name)
	r.lacks = true
}

func (r *row) complain(format string, args ...any) {
	r.problems = append(r.problems, fmt.Sprintf(format, args...))
}

// err joins the problems, and shows what the fields look like where there are any.
func (r *row) err(format string) error {
	if len(r.problems) == 0 {
		return nil
	}
	err := fmt.Errorf("format %s: %s; the row has {%s}", format, strings.Join(r.problems, "; "), r.looks())
	if r.lacks {
		return missingError{err}
	}
	return err
}

// looks tells what each field of the row, as it came, looks like.
func (r *row) looks() string {
	fields := r.fields
	if r.came != nil {
		fields = r.came
	}
	looks := make([]string, 0, len(fields))
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		looks = append(looks, fmt.Sprintf("%s: %s", name, looksLike(fields[name])))
	}
	return strings.Join(looks, ", ")
}

// again is the row without what was found wrong with it.
func (r *row) again() *row { return &row{fields: r.fields, came: r.came} }

// has reports whether the field is there and not null.
func (r *row) has(name string) bool {
	value, there := r.fields[name]
	return there && string(value) != "null"
}

// text returns a field that may be missing or null.
func (r *row) text(name string) string {
	if !r.has(name) {
		return ""
	}
	text, err := unquote(r.fields[name])
	if err != nil {
		r.complain("%s: %v", name, err)
	}
	return text
}

// needText returns a field that must be there and have more than white space.
func (r *row) needText(name string) string {
	if !r.has(name) {
		r.missing(name)
		return ""
	}
	before := len(r.problems)
	text := r.text(name)
	if len(r.problems) == before && strings.TrimSpace(text) == "" {
		r.complain("%s is empty", name)
	}
	return text
}

// textOrNumber returns a field that holds an answer: text, or a number as the row spells it.
func (r *row) textOrNumber(name string) string {
	if value := r.fields[name]; r.has(name) && (value[0] == '-' || value[0] >= '0' && value[0] <= '9') {
		return string(value)
	}
	return r.text(name)
}

// unquote decodes a JSON string. Escapes of half a surrogate pair are errors: encoding/json makes U+FFFD of them.
func unquote(value json.RawMessage) (string, error) {
	if value[0] != '"' {
		return "", fmt.Errorf("must be text, is %s", looksLike(value))
	}
	var text string
	if err := json.Unmarshal(value, &text); err != nil {
		return "", err
	}
	if strings.ContainsRune(text, utf8.RuneError) && loneSurrogate(value) {
		return "", errors.New("has a \\u escape of half a surrogate pair")
	}
	return text, nil
}

// loneSurrogate reports whether a valid JSON string escapes a surrogate without its other half.
func loneSurrogate(value []byte) bool {
	for i := 0; i < len(value); i++ {
		if value[i] != '\\' {
			continue
		}
		i++
		if value[i] != 'u' {
			continue
		}
		unit, _ := strconv.ParseUint(string(value[i+1:i+5]), 16, 16)
		i += 4
		if unit < 0xd800 || unit > 0xdfff {
			continue
		}
		low := uint64(0)
		if i+6 < len(value) && value[i+1] == '\\' && value[i+2] == 'u' {
			low, _ = strconv.ParseUint(string(value[i+3:i+7]), 16, 16)
		}
		if unit >= 0xdc00 || low < 0xdc00 || low > 0xdfff {
			return true
		}
		i += 6
	}
	return false
}

// weight returns the row's own weight, 1 if it has none.
func (r *row) weight() float32 {
	if !r.has("weight") {
		return 1
	}
	var w float32
	if err := json.Unmarshal(r.fields["weight"], &w); err != nil || !(w > 0) || math.IsInf(float64(w), 0) {
		r.complain("weight must be a number above 0, is %s", looksLike(r.fields["weight"]))
	}
	return w
}

// tokens returns a field with a list of token numbers or IgnoreLabel.
func (r *row) tokens(name string) []int32 {
	if !r.has(name) {
		r.missing(name)
		return nil
	}
	value := r.fields[name]
	tokens := []int32{}
	// A null within the list would be taken for 0.
	if err := json.Unmarshal(value, &tokens); err != nil || bytes.IndexByte(value, 'n') >= 0 {
		r.complain("%s must be a list of token numbers, is %s", name, looksLike(value))
		return nil
	}
	for i, token := range tokens {
		if token < 0 && token != IgnoreLabel {
			r.complain("%s[%d] is %d", name, i, token)
			return nil
		}
	}
	return tokens
}

// list returns a field's items.
func (r *row) list(name string) []json.RawMessage {
	if !r.has(name) {
		r.missing(name)
		return nil
	}
	var items []json.RawMessage
	if err := json.Unmarshal(r.fields[name], &items); err != nil {
		r.complain("%s must be a list of turns, is %s", name, looksLike(r.fields[name]))
		return nil
	}
	if len(items) == 0 {
		r.complain("%s is empty", name)
	}
	return items
}

// turns returns a field with turns, each read by parse, and if any of them says so, which are learned.
func (r *row) turns(name string, parse func(json.RawMessage) (m Message, learned, says bool, err error)) (list []Message, train []bool) {
	turns := r.list(name)
	list, train = make([]Message, len(turns)), make([]bool, len(turns))
	said := false
	for i, turn := range turns {
		m, learned, says, err := parse(turn)
		if err != nil {
			r.complain("%s[%d]: %v", name, i, err)
			continue
		}
		list[i], train[i] = m, learned
		said = said || says
	}
	if !said {
		return list, nil
	}
	return list, train
}

// messages returns a field with turns and, if any of them says so, which are learned. Unknown keys of a turn (tool calls,
// images) are errors: they would be lost.
func (r *row) messages(name string) (list []Message, train []bool) { return r.turns(name, parseTurn) }

func parseTurn(turn json.RawMessage) (m Message, learned, says bool, err error) {
	fields, err := parseRow(turn)
	if err != nil {
		return Message{}, false, false, err
	}
	m = Message{Role: fields.needText("role")}
	m.Content = fields.text("content")
	if !fields.has("content") {
		fields.complain("content is missing")
	}
	for _, key := range slices.Sorted(maps.Keys(fields.fields)) {
		if fields.has(key) && !slices.Contains([]string{"role", "content", "name", "train", "weight"}, key) {
			fields.complain("%s is not supported", key)
		}
	}
	learned, says = fields.learnedTurn(m.Role)
	if roles := []string{RoleSystem, RoleUser, RoleAssistant}; m.Role != "" && !slices.Contains(roles, m.Role) {
		fields.complain("role must be one of %s, is %q", strings.Join(roles, ", "), m.Role)
	}
	return m, learned, says, fields.joined()
}

// learnedTurn reports whether a turn is learned, and whether it says so itself, by train or weight.
func (r *row) learnedTurn(role string) (learned, says bool) {
	learned = role == RoleAssistant
	for _, key := range []string{"train", "weight"} {
		if !r.has(key) {
			continue
		}
		before := len(r.problems)
		is := r.learned(key)
		switch {
		case len(r.problems) > before:
		case is && role != RoleAssistant:
			r.complain("%s: a turn of the %s cannot be learned", key, role)
		case says && is != learned:
			r.complain("train and weight contradict each other")
		}
		learned, says = is, true
	}
	return learned, says
}

// learned returns a turn's train (true, false) or weight (1, 0).
func (r *row) learned(name string) bool {
	value := string(r.fields[name])
	switch {
	case name == "train" && (value == "true" || value == "false"):
		return value == "true"
	case name == "weight" && (value == "1" || value == "0" || value == "1.0" || value == "0.0"):
		return value[0] == '1'
	}
	want := map[string]string{"train": "true or false", "weight": "0 or 1"}[name]
	r.complain("%s must be %s, is %s", name, want, looksLike(r.fields[name]))
	return false
}

func (r *row) joined() error {
	if len(r.problems) == 0 {
		return nil
	}
	return errors.New(strings.Join(r.problems, ", "))
}

// speeches returns a field with ShareGPT's turns, and which are learned as messages does. Other keys of a turn are left out, as its files
// have many, but for those that would decide what is learned.
func (r *row) speeches(name string) (list []Message, train []bool) { return r.turns(name, parseSpeech) }

func parseSpeech(turn json.RawMessage) (m Message, learned, says bool, err error) {
	fields, err := parseRow(turn)
	if err != nil {
		return Message{}, false, false, err
	}
	from := fields.needText("from")
	m = Message{Role: speakers[from], Content: fields.text("value")}
	if !fields.has("value") {
		fields.complain("value is missing")
	}
	if from != "" && m.Role == "" {
		fields.complain("from must be one of %s, is %q", strings.Join(slices.Sorted(maps.Keys(speakers)), ", "), from)
		return m, false, false, fields.joined()
	}
	if fields.has("loss") {
		fields.complain("loss is not supported; train (true, false) and weight (0, 1) are")
	}
	learned, says = fields.learnedTurn(m.Role)
	return m, learned, says, fields.joined()
}

// excerptBytes is how much of a value messages show.
const excerptBytes = 40

func excerpt(text []byte) string {
	if len(text) <= excerptBytes {
		return strconv.Quote(string(text))
	}
	cut := excerptBytes
	for cut > 0 && !utf8.RuneStart(text[cut]) {
		cut--
	}
	return strconv.Quote(string(text[:cut])) + "..."
}

// looksLike describes a field's value for people.
func looksLike(value json.RawMessage) string {
	switch value[0] {
	case 'n':
		return "null"
	case '"':
		return fmt.Sprintf("text of %d bytes", len(value)-2)
	case '{':
		// As source.File.Rows has what JSON has no word for.
		if bytes.HasPrefix(value, []byte(source.BytesOpen)) {
			return "bytes that are no text"
		}
		if f, is := bytes.CutPrefix(value, []byte(source.FloatOpen)); is {
			return string(bytes.TrimSuffix(f, []byte(`"}`)))
		}
		return "an object"
	case '[':
		var items []json.RawMessage
		if json.Unmarshal(value, &items) != nil || len(items) == 0 {
			return "an empty list"
		}
		return fmt.Sprintf("a list of %d", len(items))
	}
	return string(value)
}
