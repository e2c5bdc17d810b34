package score

import (
	"context"
	"fmt"

	"cftune/trainer/evaluate"
	"cftune/trainer/objective"
)

// singlePass asks for answer, critique and final answer in one turn.
const singlePass = "{query}\n\nFirst solve this. Then criticize your own solution. End with the final answer, as \"The answer is ...\"."

// self lets a model criticize its own answers, in the two ways of the CFT paper (table 11). Single pass: solution,
// critique and final answer in one turn. Two stages: a solution is drawn and criticized in a turn of its own, and drawn
// again until the critique accepts it or the tries are used up; the last one counts.
func (s *scorer) self(ctx context.Context, set Set, r *SetResult) error {
	own := &Self{}
	if err := s.single(ctx, set, r.Answers, own); err != nil {
		return err
	}
	if err := s.ownVerdicts(ctx, set, r.Answers, own); err != nil {
		return err
	}
	if err := s.twoStages(ctx, set, r.Answers, own); err != nil {
		return err
	}
	r.Self = own
	return nil
}

func (s *scorer) single(ctx context.Context, set Set, direct *Answers, own *Self) error {
	var asks []ask
	for _, i := range direct.items {
		asks = append(asks, ask{i, replace(singlePass, set.Records[i].Query)})
	}
	texts, err := s.write(ctx, set, "self, single pass", asks, greedy, s.o.AnswerTokens+s.o.CritiqueTokens)
	if err != nil {
		return err
	}
	var right []bool
	for k, t := range texts {
		right = append(right, evaluate.GradeAnswer(t.Text, goldOf(set.Records[asks[k].item])).Right)
	}
	own.Single = evaluate.NewShare(right)
	d := evaluate.Compare(right, direct.right)
	own.SingleVersusDirect = &d
	return nil
}

// ownVerdicts judges the model's greedy answers by itself.
func (s *scorer) ownVerdicts(ctx context.Context, set Set, direct *Answers, own *Self) error {
	var asks []ask
	for k, i := range direct.items {
		asks = append(asks, ask{i, objective.CritiquePrompt(set.Records[i].Query, direct.texts[k].Text)})
	}
	texts, err := s.write(ctx, set, "self, verdicts", asks, greedy, s.o.CritiqueTokens)
	if err != nil {
		return err
	}
	c := &Critiques{Confusion: map[string]int{}, truth: direct.right, items: direct.items, Form: formOf(texts)}
	for _, t := range texts {
		c.verdicts = append(c.verdicts, evaluate.ParseVerdict(t.Text))
	}
	c.count()
	own.Verdicts = c
	return nil
}

// trySeed keeps the tries' draws apart from those of sampled passes.
const trySeed = 1 << 20

func (s *scorer) twoStages(ctx context.Context, set Set, direct *Answers, own *Self) error {
	n := len(direct.items)
	right, accepted, tries := make([]bool, n), make([]bool, n), make([]int, n)
	pending := make([]int, n) // places in direct.items
	for k := range pending {
		pending[k] = k
	}
	for try := 0; try < s.o.Tries && len(pending) > 0; try++ {
		sampling := s.o.Sampling
		sampling.Seed += trySeed + uint64(try)
		var answers, critiques []ask
		for _, k := range pending {
			i := direct.items[k]
			answers = append(answers, ask{i, objective.AnswerPrompt(set.Records[i].Query)})
		}
		texts, err := s.write(ctx, set, fmt.Sprintf("self, try %d", try+1), answers, sampling, s.o.AnswerTokens)
		if err != nil {
			return err
		}
		for j, a := range answers {
			critiques = append(critiques, ask{a.item, objective.CritiquePrompt(set.Records[a.item].Query, texts[j].Text)})
		}
		judged, err := s.write(ctx, set, fmt.Sprintf("self, critique of try %d", try+1), critiques, greedy, s.o.CritiqueTokens)
		if err != nil {
			return err
		}
		var again []int
		for j, k := range pending {
			right[k] = evaluate.GradeAnswer(texts[j].Text, goldOf(set.Records[direct.items[k]])).Right
			tries[k] = try + 1
			if accepted[k] = evaluate.ParseVerdict(judged[j].Text) == evaluate.Right; !accepted[k] {
				again = append(again, k)
			}
		}
		pending = again
	}
	own.TwoStage, own.Accepted = evaluate.NewShare(right), evaluate.NewShare(accepted)
	sum := 0
	for _, t := range tries {
		sum += t
	}
	own.MeanTries = float64(sum) / float64(max(n, 1))
	d := evaluate.Compare(right, direct.right)
	own.TwoStageVersusDirect = &d
	return nil
}
