package export

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
	"text/template"
)

// Turn is a turn of a conversation that a chat template lays out.
type Turn struct{ Role, Content string }

// RenderFunc lays out a conversation by a model's own chat template, up to where the assistant's next turn begins.
type RenderFunc func(turns []Turn) (string, error)

// ErrNoOllamaTemplate is wrapped by the error about a chat template that ollama's language does not express.
var ErrNoOllamaTemplate = errors.New("the chat template cannot be expressed in Ollama's language")

// The texts by which the pieces between contents are found; no template has them.
var probeMarks = []string{"\x02one\x03", "\x02two\x03", "\x02three\x03", "\x02four\x03"}

// ollamaPieces are what a chat template puts around contents.
type ollamaPieces struct {
	system                    bool   // it has a place for a system message
	openPlain                 string // before the first user's turn, without a system message
	openSystem, afterSystem   string // around a system message; then the first user's turn follows
	assistant, user, generate string // after a user's turn, before the assistant's; after the assistant's, before the user's; at the end
}

// OllamaTemplate writes a model's chat template in the language of Ollama's Modelfiles. It finds out what the template puts
// around contents, and then lays out conversations of many kinds with both: they must come out the same, to the byte, or
// ErrNoOllamaTemplate is wrapped. notes tells where the two differ nevertheless.
func OllamaTemplate(render RenderFunc) (text string, notes []string, err error) {
	p, err := findPieces(render)
	if err != nil {
		return "", nil, fmt.Errorf("%w: %w", ErrNoOllamaTemplate, err)
	}
	text = p.template()
	compiled, err := template.New("ollama").Parse(text)
	if err != nil {
		return "", nil, fmt.Errorf("ollama template: %w", err)
	}
	for _, turns := range probeConversations(p.system, false) {
		if err := sameRendering(render, compiled, turns); err != nil {
			return "", nil, fmt.Errorf("%w: %w", ErrNoOllamaTemplate, err)
		}
	}
	if !p.system {
		notes = append(notes, "the chat template has no place for a system message: Ollama leaves one out without a word")
	}
	for _, turns := range probeConversations(p.system, true) {
		if sameRendering(render, compiled, turns) != nil {
			notes = append(notes, "the chat template strips white space around contents, which Ollama's language cannot: prompts that begin or end with it are laid out otherwise")
			break
		}
	}
	return text, notes, nil
}

// findPieces renders conversations of marks and takes what lies between these.
func findPieces(render RenderFunc) (ollamaPieces, error) {
	m := probeMarks
	plain, err := render([]Turn{{"user", m[0]}, {"assistant", m[1]}, {"user", m[2]}})
	if err != nil {
		return ollamaPieces{}, err
	}
	parts, err := between(plain, m[:3])
	if err != nil {
		return ollamaPieces{}, err
	}
	p := ollamaPieces{openPlain: parts[0], assistant: parts[1], user: parts[2], generate: parts[3]}
	with, err := render([]Turn{{"system", m[3]}, {"user", m[0]}})
	if err != nil {
		return p, nil // it refuses system messages
	}
	if parts, err = between(with, []string{m[3], m[0]}); err != nil {
		return ollamaPieces{}, err
	}
	p.system, p.openSystem, p.afterSystem = true, parts[0], parts[1]
	return p, nil
}

// between returns what lies before, between and after marks that must come once each, in this order.
func between(text string, marks []string) ([]string, error) {
	var parts []string
	for _, mark := range marks {
		if strings.Count(text, mark) != 1 {
			return nil, errors.New("it changes contents, repeats them or leaves them out")
		}
		before, after, _ := strings.Cut(text, mark)
		parts, text = append(parts, before), after
	}
	return append(parts, text), nil
}

// template writes the pieces in Ollama's language. Literals are quoted, so that line ends and braces in them are safe.
func (p ollamaPieces) template() string {
	literal := func(text string) string {
		if text == "" {
			return ""
		}
		return "{{ " + quoteLiteral(text) + " }}"
	}
	var b strings.Builder
	b.WriteString("{{- $begun := false }}{{ $last := \"\" }}\n")
	if p.system {
		fmt.Fprintf(&b, "{{- if .System }}%s{{ .System }}%s{{ else }}%s{{ end }}\n", literal(p.openSystem), literal(p.afterSystem), literal(p.openPlain))
	} else if p.openPlain != "" {
		fmt.Fprintf(&b, "{{- %s }}\n", quoteLiteral(p.openPlain))
	}
	fmt.Fprintf(&b, "{{- range .Messages }}\n{{- if eq .Role \"user\" }}{{ if $begun }}%s{{ end }}{{ .Content }}{{ $begun = true }}{{ $last = .Role }}\n", literal(p.user))
	fmt.Fprintf(&b, "{{- else if eq .Role \"assistant\" }}%s{{ .Content }}{{ $last = .Role }}\n{{- end }}\n{{- end }}\n", literal(p.assistant))
	fmt.Fprintf(&b, "{{- if ne $last \"assistant\" }}%s{{ end }}", literal(p.generate))
	return b.String()
}

// quoteLiteral quotes a text without a quotation mark in it, since three in a row end a Modelfile's text.
func quoteLiteral(text string) string {
	return strings.ReplaceAll(strconv.Quote(text), `\"`, `\x22`)
}

// probeConversations are what both renderings must agree on. Spaced ones have white space around contents.
func probeConversations(system, spaced bool) [][]Turn {
	contents := []string{
		"What is 17 + 25?", "a\n\nb\n", "{{ .System }} {% if x %} {# y #}", `"quotes" 'and' \n back\slashes`, "größer 世界 🙂", "1", "<b>&amp;</b>", "[END]",
		strings.Repeat("long ", 500) + "end",
	}
	if spaced {
		contents = []string{" before", "after ", "\n both\n"}
	} else {
		contents[1] = "a\n\nb"
	}
	at := func(i int) string { return contents[i%len(contents)] }
	var all [][]Turn
	for i := range contents {
		for turns := 1; turns <= 4; turns++ {
			var c []Turn
			for k := range turns {
				if k > 0 {
					c = append(c, Turn{"assistant", at(i + 2*k - 1)})
				}
				c = append(c, Turn{"user", at(i + 2*k)})
			}
			all = append(all, c)
			if system {
				all = append(all, append([]Turn{{"system", at(i + 5)}}, c...))
			}
		}
	}
	return all
}

// sameRendering lays a conversation out both ways.
func sameRendering(render RenderFunc, compiled *template.Template, turns []Turn) error {
	want, err := render(turns)
	if err != nil {
		return err
	}
	var got strings.Builder
	if err := compiled.Execute(&got, ollamaValues(turns)); err != nil {
		return err
	}
	if got.String() != want {
		roles := make([]string, len(turns))
		for i, t := range turns {
			roles[i] = t.Role
		}
		return fmt.Errorf("a conversation of %s is laid out otherwise than by the same pieces", strings.Join(roles, ", "))
	}
	return nil
}

// ollamaValues is what Ollama gives a template (template/template.go@v0.17.4).
func ollamaValues(turns []Turn) map[string]any {
	var system []string
	for _, t := range turns {
		if t.Role == "system" {
			system = append(system, t.Content)
		}
	}
	return map[string]any{"System": strings.Join(system, "\n\n"), "Messages": turns, "Response": ""}
}

// Modelfile is what `ollama create` reads.
type Modelfile struct {
	Comments []string
	From     string // a path, or a model's name
	Adapter  string // a path; empty: none
	Template string // in Ollama's language; empty: none
	System   string
	Stops    []string
	// Parameters are written as they are: name and value.
	Parameters [][2]string
	License    string
}

// Text writes it. A text with three quotation marks in a row cannot be in one.
func (m Modelfile) Text() (string, error) {
	var b strings.Builder
	for _, c := range m.Comments {
		fmt.Fprintf(&b, "# %s\n", strings.ReplaceAll(c, "\n", " "))
	}
	for _, one := range [][2]string{{"FROM", m.From}, {"ADAPTER", m.Adapter}} {
		if strings.ContainsAny(one[1], "\"\n") {
			return "", fmt.Errorf("modelfile: the path %q cannot stand in one", one[1])
		}
		if one[1] != "" {
			fmt.Fprintf(&b, "%s %s\n", one[0], one[1])
		}
	}
	for _, one := range [][2]string{{"TEMPLATE", m.Template}, {"SYSTEM", m.System}, {"LICENSE", m.License}} {
		if strings.Contains(one[1], `"""`) || strings.HasSuffix(one[1], `"`) {
			return "", fmt.Errorf("modelfile: its %s has quotation marks where Ollama's language has no place for them", strings.ToLower(one[0]))
		}
		if one[1] != "" {
			fmt.Fprintf(&b, "%s \"\"\"%s\"\"\"\n", one[0], one[1])
		}
	}
	for _, stop := range m.Stops {
		if strings.ContainsAny(stop, "\"\n") {
			return "", fmt.Errorf("modelfile: the stop text %q cannot stand in one", stop)
		}
		fmt.Fprintf(&b, "PARAMETER stop \"%s\"\n", stop)
	}
	for _, p := range m.Parameters {
		fmt.Fprintf(&b, "PARAMETER %s %s\n", p[0], p[1])
	}
	return b.String(), nil
}
