package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"strings"
	"time"

	"cftune/bindings/engine"
	"cftune/internal/regular"
	"cftune/trainer/chat"
	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
	"cftune/trainer/objective"
	"cftune/trainer/wordforms"
)

// armScore is what a model wrote about the test items, as kept under scores/.
type armScore struct {
	Name        string     `json:"name"`
	Description string     `json:"description"`
	Digest      string     `json:"digest"` // of all that decides the texts: when it differs, the arm is scored again
	Answers     []demoText `json:"answers"`
	Critiques   []demoText `json:"critiques"`
}

// demoText is a completion.
type demoText struct {
	Text   string `json:"text"`
	Tokens int    `json:"tokens"`
	Ended  bool   `json:"ended"` // by itself, not at the bound
}

// Bounds of what is generated, in tokens: the training rows' critiques have about 45, their answers about 12.
const (
	demoAnswerTokens   = 32
	demoCritiqueTokens = 64
	demoParallel       = 16
)

// criticHeading begins every critique that was trained on.
const criticHeading = "Critique:"

// score lets a model answer the test questions and judge the given answers, greedily.
func (d *demo) score(ctx context.Context, arm *armScore) error {
	digest, err := d.scoreDigest(arm.Name)
	if err != nil {
		return err
	}
	path := d.path("scores", arm.Name+".json")
	var before armScore
	if text, err := regular.ReadFile(path); err == nil && json.Unmarshal(text, &before) == nil && before.Digest == digest {
		d.note("%s: is scored already", arm.Name)
		*arm = before
		return nil
	}
	began := time.Now()
	vocab, template, err := openChat(d.model, "", demoSystem)
	if err != nil {
		return err
	}
	defer vocab.Close()
	var answers, critiques [][]int32
	for _, item := range d.data.Test {
		answer, err := encodeTurn(template, objective.AnswerPrompt(item.Query()))
		if err != nil {
			return err
		}
		critique, err := encodeTurn(template, objective.CritiquePrompt(item.Query(), item.Answer()))
		if err != nil {
			return err
		}
		answers, critiques = append(answers, answer), append(critiques, critique)
	}
	if arm.Answers, err = d.generate(ctx, vocab, arm.Name, answers, demoAnswerTokens); err != nil {
		return err
	}
	if arm.Critiques, err = d.generate(ctx, vocab, arm.Name, critiques, demoCritiqueTokens); err != nil {
		return err
	}
	arm.Digest = digest
	d.note("%s: scored on %d items in %s", arm.Name, len(d.data.Test), time.Since(began).Round(time.Second))
	text, err := json.MarshalIndent(arm, "", " ")
	if err != nil {
		return err
	}
	return writeWhole(path, text)
}

func encodeTurn(t *chat.Template, text string) ([]int32, error) {
	return t.EncodePrompt([]dataset.Message{{Role: dataset.RoleUser, Content: text}})
}

// scoreDigest is of everything that decides what a model writes here.
func (d *demo) scoreDigest(arm string) (string, error) {
	adapter := ""
	if path := d.adapter(arm); path != "" {
		text, err := regular.ReadFile(path)
		if err != nil {
			return "", err
		}
		adapter = digestOf(text)
	}
	test, err := regular.ReadFile(d.path("data", "test.jsonl"))
	if err != nil {
		return "", err
	}
	info, err := os.Stat(d.model)
	if err != nil {
		return "", err
	}
	return digestOf(fmt.Appendf(nil, "%s %s %s %d %d %d %q", adapter, digestOf(test), d.model, info.Size(),
		demoAnswerTokens, demoCritiqueTokens, demoSystem)), nil
}

func digestOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func (d *demo) generate(ctx context.Context, vocab *engine.Vocab, arm string, prompts [][]int32, tokens int) ([]demoText, error) {
	longest := 0
	for _, p := range prompts {
		longest = max(longest, len(p))
	}
	s, err := engine.NewSession(d.model, d.adapter(arm), engine.SessionParams{
		NCtx: demoParallel * (longest + tokens), NBatch: 512, NSequences: demoParallel, NThreads: d.threads, AdapterScale: 1,
	})
	if err != nil {
		return nil, engineError(err)
	}
	defer s.Close()
	completions, err := engine.NewGenerator(s, vocab).Generate(ctx, prompts, engine.GenerateOptions{
		MaxTokens: tokens, StopStrings: []string{"[END]"},
	})
	if err != nil {
		return nil, engineError(err)
	}
	var texts []demoText
	for _, c := range completions {
		texts = append(texts, demoText{
			Text: c.Text, Tokens: len(c.Tokens), Ended: c.Reason != engine.StopLength && c.Reason != engine.StopContext,
		})
	}
	return texts, nil
}

// outcomes are what an arm's texts are worth, item by item.
type outcomes struct {
	verdicts, saidRight, none, derived, sound []bool // of critiques
	leading, exact, anywhere, drifted, ended  []bool // of answers
	answerTokens                              int
}

func (a armScore) outcomes(items []wordforms.Item) outcomes {
	var o outcomes
	for i, item := range items {
		critique := strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(a.Critiques[i].Text), criticHeading))
		verdict := evaluate.ParseVerdict(critique)
		o.verdicts = append(o.verdicts, verdict == evaluate.Of(item.Right()))
		o.saidRight = append(o.saidRight, verdict == evaluate.Right)
		o.none = append(o.none, verdict == evaluate.NoVerdict)
		o.derived = append(o.derived, evaluate.MatchAnswer(critique, item.Gold).Leading)
		o.sound = append(o.sound, critique == strings.TrimSpace(strings.TrimSuffix(item.Critique(), "[END]")))

		answer := a.Answers[i]
		match := evaluate.MatchAnswer(answer.Text, item.Gold)
		o.leading = append(o.leading, match.Leading)
		o.exact = append(o.exact, match.Exact)
		o.anywhere = append(o.anywhere, match.Anywhere)
		o.drifted = append(o.drifted, evaluate.Drifted(answer.Text))
		o.ended = append(o.ended, answer.Ended)
		o.answerTokens += answer.Tokens
	}
	return o
}

// where returns the outcomes of the items that pass.
func where(outcomes []bool, items []wordforms.Item, pass func(wordforms.Item) bool) []bool {
	var some []bool
	for i, ok := range outcomes {
		if pass(items[i]) {
			some = append(some, ok)
		}
	}
	return some
}
