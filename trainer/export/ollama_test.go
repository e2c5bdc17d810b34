package export

import (
	"errors"
	"strings"
	"testing"
	"text/template"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// chatML is a template of role headers with a system message where there is none.
func chatML(turns []Turn) (string, error) {
	var b strings.Builder
	if len(turns) == 0 || turns[0].Role != "system" {
		b.WriteString("<|im_start|>system\nYou are \"helpful\".<|im_end|>\n")
	}
	for _, t := range turns {
		b.WriteString("<|im_start|>" + t.Role + "\n" + t.Content + "<|im_end|>\n")
	}
	return b.String() + "<|im_start|>assistant\n", nil
}

// inst puts the system message into the first user's turn.
func inst(turns []Turn) (string, error) {
	text, system := "", ""
	for _, t := range turns {
		switch t.Role {
		case "system":
			system = t.Content + "\n\n"
		case "user":
			text += "[INST] " + system + t.Content + " [/INST]"
			system = ""
		default:
			text += " " + t.Content + "</s>"
		}
	}
	return text, nil
}

// tagged has no place for system messages and strips contents.
func tagged(turns []Turn) (string, error) {
	text := ""
	for _, t := range turns {
		if t.Role == "system" {
			return "", errors.New("no system")
		}
		text += "<turn>" + t.Role + "\n" + strings.TrimSpace(t.Content) + "</turn>\n"
	}
	return text + "<turn>assistant\n", nil
}

func TestOllamaTemplatesAreTheSame(t *testing.T) {
	for name, c := range map[string]struct {
		render RenderFunc
		notes  []string
	}{
		"headers": {chatML, nil},
		"inst":    {inst, nil},
		"tagged":  {tagged, []string{"no place for a system message", "strips white space"}},
	} {
		t.Run(name, func(t *testing.T) {
			text, notes, err := OllamaTemplate(c.render)
			require.NoError(t, err)
			require.Len(t, notes, len(c.notes))
			for i, part := range c.notes {
				assert.Contains(t, notes[i], part)
			}
			assert.NotContains(t, text, `"""`)
			compiled, err := template.New("").Parse(text)
			require.NoError(t, err)
			var got strings.Builder
			turns := []Turn{{"user", "hello"}, {"assistant", "so"}, {"user", "far"}}
			require.NoError(t, compiled.Execute(&got, ollamaValues(turns)))
			want, err := c.render(turns)
			require.NoError(t, err)
			assert.Equal(t, want, got.String())
			// A turn of the assistant at the end is gone on with.
			got.Reset()
			require.NoError(t, compiled.Execute(&got, ollamaValues(append(turns, Turn{"assistant", "The"}))))
			assert.True(t, strings.HasSuffix(got.String(), "The"))
			assert.True(t, strings.HasPrefix(got.String(), want[:len(want)-1]))
		})
	}
}

func TestTemplatesThatAreMoreThanPiecesAreRefused(t *testing.T) {
	for name, render := range map[string]RenderFunc{
		"numbered turns": func(turns []Turn) (string, error) {
			text := ""
			for i, t := range turns {
				text += strings.Repeat("#", i) + t.Content
			}
			return text, nil
		},
		"only the last two turns": func(turns []Turn) (string, error) {
			text := ""
			for _, t := range turns[max(0, len(turns)-3):] {
				text += "<" + t.Role + ">" + t.Content
			}
			return text, nil
		},
		"changes contents": func(turns []Turn) (string, error) {
			return strings.ToUpper(turns[0].Content), nil
		},
		"system at the end": func(turns []Turn) (string, error) {
			text, system := "", ""
			for _, t := range turns {
				if t.Role == "system" {
					system = t.Content
				} else {
					text += "<" + t.Role + ">" + t.Content
				}
			}
			return text + system, nil
		},
		"another for digits": func(turns []Turn) (string, error) {
			text := ""
			for _, t := range turns {
				if t.Content == "1" {
					text += "<digit>"
				}
				text += "<" + t.Role + ">" + t.Content
			}
			return text, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			_, _, err := OllamaTemplate(render)
			require.ErrorIs(t, err, ErrNoOllamaTemplate)
		})
	}
}

func TestModelfile(t *testing.T) {
	text, err := Modelfile{
		Comments: []string{"made by cftune"}, From: "./m.gguf", Adapter: "./a.gguf", Template: "{{ .Prompt }}", System: "Be\nkind.",
		Stops: []string{"<|im_end|>"}, Parameters: [][2]string{{"repeat_penalty", "1"}}, License: "MIT",
	}.Text()
	require.NoError(t, err)
	assert.Equal(t, "# made by cftune\nFROM ./m.gguf\nADAPTER ./a.gguf\nTEMPLATE \"\"\"{{ .Prompt }}\"\"\"\nSYSTEM \"\"\"Be\nkind.\"\"\"\nLICENSE \"\"\"MIT\"\"\"\n"+
		"PARAMETER stop \"<|im_end|>\"\nPARAMETER repeat_penalty 1\n", text)
	for _, m := range []Modelfile{{From: "a\"b"}, {From: "m", System: `x"""y`}, {From: "m", System: `says "x"`}, {From: "m", Stops: []string{"a\nb"}}} {
		_, err := m.Text()
		assert.Error(t, err)
	}
}
