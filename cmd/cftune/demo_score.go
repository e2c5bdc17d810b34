package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"cftune/bindings/engine"
	"cftune/trainer/chat"
	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
	"cftune/trainer/objective"
	page "cftune/trainer/report"
	"cftune/trainer/wordforms"
)

// scoredArm is what a model wrote on the test items, as kept under scores/.
type scoredArm struct {
	Name        string       `json:"name"`
	Description string       `json:"description"`
	Digest      string       `json:"digest"` // of adapter and test items: when it differs, the arm is scored again
	Answers     []demoAnswer `json:"answers"`
	Critiques   []demoAnswer `json:"critiques"`
}

type demoAnswer struct {
	Text   string `json:"text"`
	Tokens int    `json:"tokens"`
	Ended  bool   `json:"ended"`
}

// Bounds of what is generated, in tokens: the training rows' critiques have about 45, their answers about 12.
const (
	demoAnswerTokens   = 32
	demoCritiqueTokens = 64
	demoParallel       = 16
	demoSamples        = 8
)

// score lets a model answer the test questions and judge the candidate answers, greedily.
func (d *demo) score(ctx context.Context, arm *scoredArm) error {
	digest, err := d.scoreDigest(arm.Name)
	if err != nil {
		return err
	}
	path := d.path("scores", arm.Name+".json")
	var before scoredArm
	if text, err := os.ReadFile(path); err == nil && json.Unmarshal(text, &before) == nil && before.Digest == digest {
		d.note("demo: %s is scored already", arm.Name)
		arm.Answers, arm.Critiques, arm.Digest = before.Answers, before.Critiques, digest
		return nil
	}
	began := time.Now()
	vocab, template, err := openChat(d.model, "", "")
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
	d.note("demo: %s is scored on %d items (%s)", arm.Name, len(d.data.Test), time.Since(began).Round(time.Second))
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
		text, err := os.ReadFile(path)
		if err != nil {
			return "", err
		}
		adapter = digestOf(text)
	}
	test, err := os.ReadFile(d.path("data", "test.jsonl"))
	if err != nil {
		return "", err
	}
	info, err := os.Stat(d.model)
	if err != nil {
		return "", err
	}
	return digestOf(fmt.Appendf(nil, "%s %s %s %d %d %d", adapter, digestOf(test), d.model, info.Size(), demoAnswerTokens, demoCritiqueTokens)), nil
}

func (d *demo) generate(ctx context.Context, vocab *engine.Vocab, arm string, prompts [][]int32, tokens int) ([]demoAnswer, error) {
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
	var answers []demoAnswer
	for _, c := range completions {
		answers = append(answers, demoAnswer{Text: c.Text, Tokens: len(c.Tokens), Ended: c.Reason != engine.StopLength && c.Reason != engine.StopContext})
	}
	return answers, nil
}

// outcomes are an arm's results, item by item.
type outcomes struct{ verdicts, said, strict, loose, drift []bool }

func (a scoredArm) outcomes(items []wordforms.Item) (o outcomes, noVerdict int) {
	for i, item := range items {
		verdict := evaluate.ParseVerdict(a.Critiques[i].Text)
		if verdict == evaluate.NoVerdict {
			noVerdict++
		}
		match := evaluate.MatchAnswer(a.Answers[i].Text, item.Gold)
		o.verdicts = append(o.verdicts, verdict == evaluate.Of(item.Right()))
		o.said = append(o.said, verdict == evaluate.Right)
		o.strict = append(o.strict, match.Leading)
		o.loose = append(o.loose, match.Anywhere)
		o.drift = append(o.drift, evaluate.Drifted(a.Answers[i].Text))
	}
	return o, noVerdict
}

// compareSeed is of the bootstrap's draws.
const compareSeed = 1

// page turns the scores into the report.
func (d *demo) page(arms []scoredArm) (page.Page, error) {
	p := page.Page{
		Title: "Critiques against answers, on English word forms",
		Intro: "Four models answer the same questions about words that none of them was trained on, and judge others' answers to them. " +
			"All adapters were trained on the same questions, once through.",
		Facts: d.facts(),
	}
	var base outcomes
	for i, a := range arms {
		o, none := a.outcomes(d.data.Test)
		arm := page.Arm{
			Name: a.Name, Description: a.Description, NoVerdict: none,
			Verdicts: evaluate.NewShare(o.verdicts), RightShare: evaluate.NewShare(o.said),
			Strict: evaluate.NewShare(o.strict), Loose: evaluate.NewShare(o.loose), Drift: evaluate.NewShare(o.drift),
		}
		tokens := 0
		for _, answer := range a.Answers {
			tokens += answer.Tokens
			if !answer.Ended {
				arm.Unended++
			}
		}
		arm.MeanTokens = float64(tokens) / float64(max(1, len(a.Answers)))
		if i == 0 {
			base = o
		} else {
			strict, loose := evaluate.Compare(o.strict, base.strict, compareSeed), evaluate.Compare(o.loose, base.loose, compareSeed)
			arm.VersusBase, arm.LooseVsBase = &strict, &loose
			steps, err := d.trained(a.Name)
			if err != nil {
				return p, err
			}
			for _, s := range steps {
				arm.Loss = append(arm.Loss, page.Point{Step: s.Step, Loss: s.Loss})
				arm.Seconds += s.Seconds
			}
		}
		p.Arms = append(p.Arms, arm)
		p.Reading = append(p.Reading, reading(arm)...)
	}
	for i, item := range d.data.Test[:min(demoSamples, len(d.data.Test))] {
		s := page.Sample{Question: item.Query(), Gold: item.Gold, Candidate: item.Answer(), Label: item.Label()}
		for _, a := range arms {
			s.Answers = append(s.Answers, a.Answers[i].Text)
			s.Critiques = append(s.Critiques, a.Critiques[i].Text)
		}
		p.Samples = append(p.Samples, s)
	}
	return p, nil
}

func (d *demo) facts() []page.Fact {
	return []page.Fact{
		{Name: "base model", Value: filepath.Base(d.model)},
		{Name: "training questions", Value: fmt.Sprintf("%d, half with a right answer to judge, half with a flawed one", len(d.data.Train))},
		{Name: "test items", Value: fmt.Sprintf("%d, balanced alike; no word of theirs, nor any of its forms, was trained on", len(d.data.Test))},
		{Name: "recipe", Value: "chosen on the development items only: LoRA rank 16 on all linear maps, learning rate 1e-3, cosine, 8 questions a step, one pass"},
		{Name: "generation", Value: "greedy, through libllama with the exported adapter"},
		{Name: "strict", Value: "the answer leads with the right form"},
		{Name: "loose", Value: "the right form is a word of the answer"},
		{Name: "intervals", Value: "95 %: Wilson for shares, paired bootstrap for differences; p by the exact McNemar test"},
	}
}

// reading says in words what an arm's numbers show, also when that is nothing.
func reading(a page.Arm) []string {
	var lines []string
	n := a.Verdicts
	switch {
	case a.NoVerdict == n.N:
		lines = append(lines, fmt.Sprintf("%s gives no verdict on any of %d answers.", a.Name, n.N))
	case n.Low > 0.5:
		lines = append(lines, fmt.Sprintf("%s judges others' answers above chance: %d of %d verdicts are right (95 %% interval %.0f to %.0f %%); it said “right” %d times.", a.Name, n.Count, n.N, 100*n.Low, 100*n.High, a.RightShare.Count))
	default:
		lines = append(lines, fmt.Sprintf("%s does not judge others' answers above chance: %d of %d verdicts are right (95 %% interval %.0f to %.0f %%).", a.Name, n.Count, n.N, 100*n.Low, 100*n.High))
	}
	if c := a.VersusBase; c != nil {
		how := "not measurably differently from"
		if c.Low > 0 {
			how = "better than"
		} else if c.High < 0 {
			how = "worse than"
		}
		lines = append(lines, fmt.Sprintf("%s answers %s the base model: %.1f %% of its answers lead with the right form, a difference of %+.1f points (95 %% interval %+.1f to %+.1f).", a.Name, how, 100*a.Strict.Value(), 100*c.Value, 100*c.Low, 100*c.High))
	}
	return lines
}

func (d *demo) writeReport(path string, p page.Page) error {
	var b bytes.Buffer
	if err := page.Write(&b, p); err != nil {
		return err
	}
	return writeWhole(path, b.Bytes())
}

func digestOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// writeWhole writes a file aside and renames it, so that an interrupt leaves no half of it.
func writeWhole(path string, text []byte) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	temp := path + ".tmp"
	if err := os.WriteFile(temp, text, 0o644); err != nil {
		return err
	}
	return os.Rename(temp, path)
}
