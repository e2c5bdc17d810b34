package study

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/internal/durable"
	"cftune/trainer/objective"
)

// The kinds of texts.
const (
	kindAnswer = "answer"
	kindOthers = "critique"
	kindSelf   = "self_critique"
)

// scoreLine is a line of a scores file: one text.
type scoreLine struct {
	Set  string `json:"set"`
	Kind string `json:"kind"`
	Item int    `json:"item"` // of the test rows, from 0
	Completion
}

// scoreHead is the first line: what decides the texts.
type scoreHead struct {
	Digest string `json:"digest"`
}

type place struct {
	set, kind string
	item      int
}

// texts are what one model wrote.
type texts map[place]Completion

// textFile appends a model's texts to a file. A text is there whole or not at all: a line that was cut off is removed
// when the file is opened again.
type textFile struct {
	path  string
	f     durable.File
	texts texts
}

func scoresPath(dir, key string) string { return filepath.Join(dir, "scores", key+".jsonl") }

// openTexts opens a model's file to go on in. One whose texts were decided by something else is begun anew; again says so.
func openTexts(path, digest string) (t *textFile, again bool, err error) {
	if err := durable.MkdirAll(durable.OS, filepath.Dir(path)); err != nil {
		return nil, false, err
	}
	old, known, whole, err := readTexts(path)
	if err != nil {
		return nil, false, err
	}
	if again = known != "" && known != digest; again || known == "" {
		old, whole = texts{}, 0
		head, err := json.Marshal(scoreHead{digest})
		if err != nil {
			return nil, false, err
		}
		if err := writeWhole(path, append(head, '\n')); err != nil {
			return nil, false, err
		}
	} else if err := os.Truncate(path, int64(whole)); err != nil {
		return nil, false, err
	}
	f, err := durable.OS.Append(path)
	if err != nil {
		return nil, false, err
	}
	return &textFile{path, f, old}, again, nil
}

// readTexts reads a file as far as its lines are whole. A missing file has no digest.
func readTexts(path string) (t texts, digest string, whole int, err error) {
	text, err := regular.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return texts{}, "", 0, nil
	}
	if err != nil {
		return nil, "", 0, err
	}
	t = texts{}
	for number := 1; ; number++ {
		n := bytes.IndexByte(text[whole:], '\n')
		if n < 0 {
			return t, digest, whole, nil
		}
		line := text[whole : whole+n]
		if number == 1 {
			var head scoreHead
			if err := json.Unmarshal(line, &head); err != nil {
				return nil, "", 0, fmt.Errorf("scores %s: line 1: %w", path, err)
			}
			digest = head.Digest
		} else {
			var l scoreLine
			if err := json.Unmarshal(line, &l); err != nil {
				return nil, "", 0, fmt.Errorf("scores %s: line %d: %w", path, number, err)
			}
			t[place{l.Set, l.Kind, l.Item}] = l.Completion
		}
		whole += n + 1
	}
}

// add keeps a text. One that ends within a character, at the bound, gets a replacement character there, since JSON and
// prompts take nothing else.
func (t *textFile) add(at place, c Completion) error {
	c.Text = strings.ToValidUTF8(c.Text, "\ufffd")
	line, err := json.Marshal(scoreLine{at.set, at.kind, at.item, c})
	if err != nil {
		return err
	}
	if _, err := t.f.Write(append(line, '\n')); err != nil {
		return err
	}
	t.texts[at] = c
	return nil
}

// settle puts the texts of a file that is complete into one order, whatever the order in which they were written.
func (t *textFile) settle(digest string) error {
	head, err := json.Marshal(scoreHead{digest})
	if err != nil {
		return err
	}
	text := append(head, '\n')
	places := slices.SortedFunc(maps.Keys(t.texts), func(a, b place) int {
		return cmp.Or(cmp.Compare(a.set, b.set), cmp.Compare(a.kind, b.kind), cmp.Compare(a.item, b.item))
	})
	for _, at := range places {
		line, err := json.Marshal(scoreLine{at.set, at.kind, at.item, t.texts[at]})
		if err != nil {
			return err
		}
		text = append(append(text, line...), '\n')
	}
	return writeWhole(t.path, text)
}

func (t *textFile) close() error {
	err := t.f.Sync()
	if closeErr := t.f.Close(); err == nil {
		err = closeErr
	}
	return err
}

// scoreDigest is of everything that decides what a model writes.
func scoreDigest(s State, adapter string, sets []openSet) string {
	text := fmt.Sprintf("%s %s %s %q %+v", s.Model.SHA256, s.Model.ChatSHA256, adapter, s.Spec.Scoring.Stop, s.Prompts)
	for _, set := range sets {
		text += fmt.Sprintf(" %s %s %d %d", set.Name, s.Data[testFile(set.Name)].SHA256, set.AnswerTokens, set.CritiqueTokens)
	}
	return digestOf([]byte(text))
}

// score lets a model write what is missing of its texts: answers to the test questions, critiques of the given answers,
// critiques of its own.
func (r *runner) score(ctx context.Context, key, adapter, adapterDigest string) error {
	digest := scoreDigest(r.state, adapterDigest, r.sets)
	if done, ok := r.state.Scored[key]; ok && done.Digest == digest {
		return nil
	}
	file, again, err := openTexts(scoresPath(r.dir, key), digest)
	if err != nil {
		return err
	}
	if again {
		r.note("%s: what was written before was by another adapter, or about other rows; it is written anew", key)
	}
	began := time.Now()
	err = r.write(ctx, key, adapter, file)
	if closeErr := file.close(); err == nil {
		err = closeErr
	}
	if err == nil {
		err = file.settle(digest)
	}
	if err != nil {
		return err
	}
	tokens := 0
	for _, c := range file.texts {
		tokens += c.Tokens
	}
	sum, err := durable.Digest(file.path)
	if err != nil {
		return err
	}
	r.state.Scored[key] = Scored{Texts: len(file.texts), Tokens: tokens, Seconds: time.Since(began).Seconds(), Digest: digest, SHA256: sum.SHA256}
	if err := r.state.saveProgress(r.dir, key); err != nil {
		return err
	}
	r.note("%s: %d texts written in %s", key, len(file.texts), time.Since(began).Round(time.Second))
	return nil
}

func (r *runner) write(ctx context.Context, key, adapter string, file *textFile) error {
	writer, err := r.engine.OpenWriter(ctx, r.spec, adapter)
	if err != nil {
		return err
	}
	defer writer.Close()
	for _, kind := range []string{kindAnswer, kindOthers, kindSelf} {
		for _, set := range r.sets {
			if kind == kindOthers && !set.judged() || kind == kindSelf && !r.spec.Scoring.SelfCritique {
				continue
			}
			if err := r.writeKind(ctx, writer, file, set, kind); err != nil {
				return fmt.Errorf("score %s on %s: %w", key, set.Name, err)
			}
		}
	}
	return nil
}

// writeKind writes the texts of one kind that are missing.
func (r *runner) writeKind(ctx context.Context, w Writer, file *textFile, set openSet, kind string) error {
	var prompts []string
	var places []place
	limit := set.CritiqueTokens
	for i, item := range set.test {
		at := place{set.Name, kind, i}
		if _, done := file.texts[at]; done {
			continue
		}
		prompt := objective.AnswerPrompt(item.Query)
		switch kind {
		case kindAnswer:
			limit = set.AnswerTokens
		case kindOthers:
			prompt = objective.CritiquePrompt(item.Query, item.Response)
		case kindSelf:
			prompt = objective.CritiquePrompt(item.Query, file.texts[place{set.Name, kindAnswer, i}].Text)
		}
		prompts, places = append(prompts, prompt), append(places, at)
	}
	if len(prompts) == 0 {
		return nil
	}
	return w.Write(ctx, prompts, limit, func(i int, c Completion) error { return file.add(places[i], c) })
}
