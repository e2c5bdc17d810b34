package score

import "fmt"

// What a checkpoint can be chosen by.
const (
	ByAnswers  = "answers"  // share of right greedy answers
	ByVerdicts = "verdicts" // balanced accuracy of critiques
	ByLoss     = "loss"     // mean loss, the lowest
)

// Choice is which checkpoint is the best, and by what.
type Choice struct {
	By         string      `json:"by"`
	Best       Candidate   `json:"best"`
	Candidates []Candidate `json:"candidates"`
}

// Candidate is a checkpoint with its figure: the mean over the sets.
type Candidate struct {
	Name  string  `json:"name"`
	Step  int     `json:"step"`
	Value float64 `json:"value"`
}

// Choose finds the best of the results that are checkpoints. Of equals the earliest is taken, which has trained least.
func (r *Report) Choose(by string) error {
	c := &Choice{By: by}
	for _, result := range r.Results {
		if result.Subject.Step == 0 {
			continue
		}
		value, err := figure(result, by)
		if err != nil {
			return err
		}
		one := Candidate{result.Subject.Name, result.Subject.Step, value}
		c.Candidates = append(c.Candidates, one)
		better := value > c.Best.Value
		if by == ByLoss {
			better = value < c.Best.Value
		}
		if c.Best.Step == 0 || better || value == c.Best.Value && one.Step < c.Best.Step {
			c.Best = one
		}
	}
	if c.Best.Step == 0 {
		return fmt.Errorf("choose by %s: there is no checkpoint among what was scored", by)
	}
	r.Chosen = c
	return nil
}

// ties is how many others are as good as the best.
func (c *Choice) ties() int {
	n := -1 // the best itself
	for _, each := range c.Candidates {
		if each.Value == c.Best.Value {
			n++
		}
	}
	return n
}

func figure(r Result, by string) (float64, error) {
	sum, n := 0.0, 0
	for _, s := range r.Sets {
		switch {
		case by == ByAnswers && s.Answers != nil:
			sum, n = sum+s.Answers.Greedy.Value(), n+1
		case by == ByVerdicts && s.Critiques != nil:
			sum, n = sum+s.Critiques.Balanced.Value, n+1
		case by == ByLoss && len(s.Losses) > 0:
			total, tokens := 0.0, 0
			for _, l := range s.Losses {
				total, tokens = total+l.Mean.Value*float64(l.Tokens), tokens+l.Tokens
			}
			sum, n = sum+total/float64(max(tokens, 1)), n+1
		}
	}
	if n == 0 {
		need := map[string]string{ByAnswers: "a query with gold", ByVerdicts: "query, response, and label or gold", ByLoss: "what an objective needs"}[by]
		return 0, fmt.Errorf("choose by %s: no set has rows for that; they need %s", by, need)
	}
	return sum / float64(n), nil
}
