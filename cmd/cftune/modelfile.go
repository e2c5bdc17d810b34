package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"cftune/bindings/engine"
	"cftune/internal/spell"
	"cftune/trainer"
	"cftune/trainer/chat"
	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
	"cftune/trainer/hub"
)

// ollamaContext is the context that Ollama gives a model which asks for none.
const ollamaContext = 4096

// writeModelfile writes what `ollama create` makes a model of: the export, its template in Ollama's language where it has one
// there, and what ends answers.
func (e *exporter) writeModelfile(run config.Run, maxSequence int, result exported, served servedAs, notes io.Writer) error {
	vocab, template, err := openChat(served.model, run.Chat.TemplateFile, "")
	if err != nil {
		return err
	}
	defer vocab.Close()
	m := export.Modelfile{
		Comments: []string{fmt.Sprintf("Written by cftune %s. ollama create NAME -f %s makes a model of it.", programVersion(), spell.Word(filepath.Base(e.modelfile)))},
		System:   run.Chat.System,
		// Ollama's own default of 1.1 would make the model's words less likely the second time: not what was trained.
		Parameters: [][2]string{{"repeat_penalty", "1"}},
	}
	if m.From, err = fromModelfile(e.modelfile, served.model); err != nil {
		return err
	}
	if served.adapter != "" {
		if m.Adapter, err = fromModelfile(e.modelfile, served.adapter); err != nil {
			return err
		}
		if hub.IsReference(e.modelName) && strings.HasPrefix(e.modelName, "ollama://") {
			m.From = strings.TrimPrefix(e.modelName, "ollama://")
		}
	}
	note := func(text string) {
		fmt.Fprintf(notes, "note: %s: %s\n", e.modelfile, text)
		m.Comments = append(m.Comments, text)
	}
	var remarks []string
	m.Template, remarks, err = ollamaTemplate(template, vocab)
	switch {
	case errors.Is(err, export.ErrNoOllamaTemplate):
		note(fmt.Sprintf("it has no TEMPLATE: %v. Ollama then guesses one, which may not be that of training: send it whole prompts (raw)", err))
	case err != nil:
		return err
	}
	for _, text := range remarks {
		note(text)
	}
	m.Stops = stopTexts(vocab, m.Template)
	base, err := gguf.Open(served.model)
	if err != nil {
		return err
	}
	if n := contextForOllama(base, maxSequence); n != ollamaContext {
		m.Parameters = append(m.Parameters, [2]string{"num_ctx", strconv.Itoa(n)})
	}
	m.License, _ = base.String("general.license")
	text, err := m.Text()
	if err != nil {
		return err
	}
	if err := writeWhole(e.modelfile, []byte(text)); err != nil {
		return err
	}
	fmt.Fprintf(notes, "%s: ollama create NAME -f %s\n", result.Path, spell.Word(e.modelfile))
	return nil
}

// contextForOllama is a context in which a model is what it was when trained: no longer than it was made for and, where it has two sets of
// rotary factors, of the length that has those of the run's longest example.
func contextForOllama(base *gguf.File, maxSequence int) int {
	n := ollamaContext
	if made, ok := base.Uint(base.Architecture() + ".context_length"); ok && made < ollamaContext {
		n = int(made)
	}
	switch short := trainer.ShortContext(base); {
	case short == 0:
	case maxSequence > short:
		n = max(n, maxSequence)
	default:
		n = min(n, short)
	}
	return n
}

// fromModelfile is a path as a Modelfile has it: beside it by name, elsewhere whole.
func fromModelfile(modelfile, path string) (string, error) {
	at, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	folder, err := filepath.Abs(filepath.Dir(modelfile))
	if err == nil && filepath.Dir(at) == folder {
		at = "./" + filepath.Base(at)
	}
	return at, err
}

// ollamaTemplate is the chat template in Ollama's language. The BOS token that the runtime puts before a prompt is not in it.
func ollamaTemplate(t *chat.Template, vocab *engine.Vocab) (string, []string, error) {
	bos := ""
	if vocab.AddBOS() && vocab.BOS() >= 0 {
		bos = vocab.TokenText(vocab.BOS())
	}
	at := func(t *chat.Template) export.RenderFunc {
		return func(turns []export.Turn) (string, error) {
			messages := make([]dataset.Message, len(turns))
			for i, turn := range turns {
				messages[i] = dataset.Message{Role: turn.Role, Content: turn.Content}
			}
			text, err := t.Render(messages, true)
			return strings.TrimPrefix(text, bos), err
		}
	}
	now := time.Now()
	text, remarks, err := export.OllamaTemplate(at(t.At(now)))
	if err != nil {
		return "", nil, err
	}
	const otherDay = 400 * 24 * time.Hour // another day, month and year
	if other, _, err := export.OllamaTemplate(at(t.At(now.Add(otherDay)))); err != nil || other != text {
		return "", nil, fmt.Errorf("%w: it has the date of the day in it", export.ErrNoOllamaTemplate)
	}
	return text, remarks, nil
}

// stopTexts are those of the tokens that end an answer: EOS and what else the template has of them.
func stopTexts(vocab *engine.Vocab, template string) []string {
	var stops []string
	for token := range int32(vocab.Info().Tokens) {
		text := vocab.TokenText(token)
		if vocab.IsEOG(token) && text != "" && (token == vocab.EOS() || strings.Contains(template, text)) && !slices.Contains(stops, text) {
			stops = append(stops, text)
		}
	}
	return stops
}

// checkBeside refuses, before any work, what is to be written beside an export.
func (e *exporter) checkBeside() error {
	if e.modelfile != "" && e.format == "peft" {
		return errors.New("--modelfile: Ollama takes GGUF files; --format adapter or merged")
	}
	for name, path := range map[string]string{"--modelfile": e.modelfile, "--card": e.card} {
		if path == "" {
			continue
		}
		if err := notOfARun(path); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
		switch info, err := os.Lstat(path); {
		case err == nil && info.IsDir():
			return fmt.Errorf("%s: %s is a folder", name, path)
		case err == nil && !e.force:
			return fmt.Errorf("%s: %s %w; --force replaces it", name, path, export.ErrExists)
		case err != nil && !errors.Is(err, fs.ErrNotExist):
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}
