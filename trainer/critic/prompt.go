package critic

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"

	"cftune/configs/teacher"
	"cftune/trainer/dataset"
)

// Prompt is what a teacher is told about a record: turns with names in braces where the record's texts go.
type Prompt struct {
	Name   string `json:"name"`
	Text   string `json:"text"` // the whole file, so that a record of a run needs nothing beside it
	SHA256 string `json:"sha256"`
	turns  []dataset.Message
}

// Prompts lists the names of the prompts that the program carries.
func Prompts() []string {
	files, err := fs.Glob(teacher.Prompts, "*.tmpl")
	if err != nil {
		panic(err) // the pattern is fixed
	}
	for i := range files {
		files[i] = strings.TrimSuffix(files[i], ".tmpl")
	}
	return files
}

// LoadPrompt returns a prompt by its name, or from a file.
func LoadPrompt(name string) (Prompt, error) {
	if slices.Contains(Prompts(), name) {
		text, err := teacher.Prompts.ReadFile(name + ".tmpl")
		if err != nil {
			return Prompt{}, fmt.Errorf("prompt %s: %w", name, err)
		}
		return ParsePrompt(name, string(text))
	}
	text, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Prompt{}, fmt.Errorf("prompt %s: is neither a file nor one of %s", name, strings.Join(Prompts(), ", "))
	}
	if err != nil {
		return Prompt{}, fmt.Errorf("prompt: %w", err)
	}
	return ParsePrompt(name, string(text))
}

const turnMark = "---"

var nameInBraces = regexp.MustCompile(`\{[a-z_]+\}`)

// promptNames are the texts of a record that a prompt may have.
var promptNames = []string{"{query}", "{response}", "{gold}", "{solution}"}

// ParsePrompt reads a prompt's file.
func ParsePrompt(name, text string) (Prompt, error) {
	sum := sha256.Sum256([]byte(text))
	p := Prompt{Name: name, Text: text, SHA256: hex.EncodeToString(sum[:])}
	fail := func(format string, args ...any) (Prompt, error) {
		return Prompt{}, fmt.Errorf("prompt %s: "+format, append([]any{name}, args...)...)
	}
	number := 0
	for line := range strings.Lines(strings.TrimPrefix(text, "\uFEFF")) {
		number++
		mark, isMark := strings.CutPrefix(strings.TrimRight(line, "\r\n"), turnMark)
		switch role := strings.TrimSpace(mark); {
		case isMark && slices.Contains([]string{dataset.RoleSystem, dataset.RoleUser, dataset.RoleAssistant}, role):
			p.turns = append(p.turns, dataset.Message{Role: role})
		case len(p.turns) > 0:
			p.turns[len(p.turns)-1].Content += line
		case strings.TrimSpace(line) != "" && !strings.HasPrefix(line, "#"):
			return fail("line %d: before the first turn (--- system, --- user, --- assistant) only comments may stand, which begin with #", number)
		}
	}
	for i := range p.turns {
		t := &p.turns[i]
		t.Content = strings.Trim(t.Content, "\r\n")
		if t.Content == "" {
			return fail("turn %d (%s) is empty", i+1, t.Role)
		}
		for _, found := range nameInBraces.FindAllString(t.Content, -1) {
			if !slices.Contains(promptNames, found) {
				return fail("%s is no text of a record; there are %s", found, strings.Join(promptNames, ", "))
			}
		}
	}
	if len(p.turns) == 0 || p.turns[len(p.turns)-1].Role != dataset.RoleUser {
		return fail("the last turn must be the user's")
	}
	if !p.needs("{query}") {
		return fail("{query} is in no turn: the teacher would not see the question")
	}
	return p, nil
}

func (p Prompt) needs(name string) bool {
	return slices.ContainsFunc(p.turns, func(m dataset.Message) bool { return strings.Contains(m.Content, name) })
}

// Messages puts a record's texts into the prompt, in one pass: names within the texts stay as they are. A text that the
// prompt needs and the record lacks is an error.
func (p Prompt) Messages(r dataset.Record) ([]dataset.Message, error) {
	values := []string{r.Query, r.Response, r.Gold, r.Solution}
	var pairs []string
	for i, name := range promptNames {
		if strings.TrimSpace(values[i]) == "" && p.needs(name) {
			return nil, fmt.Errorf("record %s has no %s, which prompt %s needs", r.ID, strings.Trim(name, "{}"), p.Name)
		}
		pairs = append(pairs, name, values[i])
	}
	replace := strings.NewReplacer(pairs...)
	messages := slices.Clone(p.turns)
	for i := range messages {
		messages[i].Content = replace.Replace(messages[i].Content)
	}
	return messages, nil
}
