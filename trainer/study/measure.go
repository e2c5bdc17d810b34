package study

import (
	"cmp"
	"encoding/json"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"cftune/internal/regular"
	"cftune/trainer/evaluate"
)

// measuredSet is what all models wrote about a set, marked.
type measuredSet struct {
	set    Set
	items  []Item
	judged bool
	arms   map[string]*measuredArm
}

// measuredArm has an arm's marks with each seed, in the order of the study's seeds.
type measuredArm struct {
	keys                  []string
	marks                 []marks
	missing               []string // keys that are not scored whole
	answers, others, self grid
}

// arm returns an arm whose seeds are all there, or says which are missing.
func (m measuredSet) arm(name string) (*measuredArm, string) {
	a := m.arms[name]
	if a == nil {
		return nil, fmt.Sprintf("there is no arm %s", name)
	}
	if len(a.missing) > 0 {
		return nil, "not scored yet: " + strings.Join(a.missing, ", ")
	}
	return a, ""
}

// keysOf are the models of an arm.
func keysOf(s State, arm Arm) []string {
	if !arm.Trained() {
		return []string{arm.Name}
	}
	var keys []string
	for _, r := range s.Runs {
		if r.Arm == arm.Name {
			keys = append(keys, r.Key)
		}
	}
	return keys
}

// measure reads every text of a study from its folder and marks it.
func measure(dir string, s State) (map[string]measuredSet, []string, error) {
	sets := map[string]measuredSet{}
	var names []string
	for _, set := range s.Spec.Sets {
		file, used := s.Data[testFile(set.Name)]
		if !used {
			continue
		}
		items, err := readTest(filepath.Join(dir, "data", testFile(set.Name)), file)
		if err != nil {
			return nil, nil, err
		}
		names = append(names, set.Name)
		sets[set.Name] = measuredSet{set: set, items: items, judged: openSet{set, parts{test: items}}.judged(), arms: map[string]*measuredArm{}}
	}
	for _, arm := range s.Spec.Arms {
		for _, key := range keysOf(s, arm) {
			t, _, _, err := readTexts(scoresPath(dir, key))
			if err != nil {
				return nil, nil, err
			}
			for _, name := range names {
				sets[name].add(arm.Name, key, s.Spec.Scoring.SelfCritique, t)
			}
		}
	}
	return sets, names, nil
}

func (m measuredSet) add(arm, key string, self bool, t texts) {
	a := m.arms[arm]
	if a == nil {
		a = &measuredArm{}
		m.arms[arm] = a
	}
	marks, complete := grade(m.set, m.items, m.judged, self, t)
	if !complete {
		a.missing = append(a.missing, key)
		return
	}
	a.keys, a.marks = append(a.keys, key), append(a.marks, marks)
	a.answers = append(a.answers, cells(marks.answers))
	if m.judged {
		a.others = append(a.others, verdictCells(marks.others, marks.labels))
	}
	if self {
		a.self = append(a.self, verdictCells(marks.self, marks.answers))
	}
}

// readTest reads a set's test rows as they were scored.
func readTest(path string, want DataFile) ([]Item, error) {
	text, err := regular.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("test rows: %w", err)
	}
	if digestOf(text) != want.SHA256 {
		return nil, fmt.Errorf("test rows %s: %w", path, ErrChanged)
	}
	var items []Item
	for line := range strings.Lines(string(text)) {
		var i Item
		if err := json.Unmarshal([]byte(line), &i); err != nil {
			return nil, fmt.Errorf("test rows %s: line %d: %w", path, len(items)+1, err)
		}
		items = append(items, i)
	}
	return items, nil
}

// Count is a part of a whole, counted over all seeds.
type Count struct {
	Count int `json:"count"`
	N     int `json:"n"`
}

// Share is the count as a share; 0 of 0 is 0.
func (c Count) Share() float64 {
	if c.N == 0 {
		return 0
	}
	return float64(c.Count) / float64(c.N)
}

func (c Count) String() string { return fmt.Sprintf("%d of %d", c.Count, c.N) }

func (c *Count) add(hits []bool) {
	for _, h := range hits {
		if h {
			c.Count++
		}
	}
	c.N += len(hits)
}

// ModelReport is what an arm did on a set. Counts are over all seeds; estimates say how many there were.
type ModelReport struct {
	Arm     string    `json:"arm"`
	About   string    `json:"about"`
	Missing []string  `json:"missing,omitempty"` // seeds that are not scored; then nothing else is there
	Answers *Estimate `json:"answers,omitempty"`
	// BySeed has the share of right answers with each seed, in the order of seeds.
	BySeed     []float64 `json:"answers_by_seed,omitempty"`
	VersusBase *Effect   `json:"answers_minus_base,omitempty"`
	Loose      Count     `json:"anywhere"` // the right value is somewhere in the answer
	Drifted    Count     `json:"drifted"`  // answers that read like a critique
	Ended      Count     `json:"ended"`    // answers that ended by themselves
	MeanTokens float64   `json:"mean_answer_tokens"`
	// Verdicts on given answers.
	Verdicts  *Estimate `json:"verdicts,omitempty"`
	Balanced  *Estimate `json:"verdicts_balanced,omitempty"`
	SaidRight Count     `json:"said_right"`
	None      Count     `json:"no_verdict"`
	// Verdicts on the model's own answers.
	Self          *Estimate `json:"self_verdicts,omitempty"`
	SelfBalanced  *Estimate `json:"self_verdicts_balanced,omitempty"`
	SelfSaidRight Count     `json:"self_said_right"`
	SelfNone      Count     `json:"self_no_verdict"`
}

// SetReport is what the study found on a set.
type SetReport struct {
	Name   string        `json:"name"`
	Items  int           `json:"items"`
	Right  Count         `json:"given_right"` // given answers that are right
	Models []ModelReport `json:"models"`
	// Learned tells whether the set has taught any arm anything that shows; nil while models are missing.
	Learned *bool  `json:"learned"`
	Verdict string `json:"learned_because"`
}

func (m measuredSet) report(s Spec) SetReport {
	r := SetReport{Name: m.set.Name, Items: len(m.items)}
	if m.judged {
		for _, i := range m.items {
			r.Right.add([]bool{i.Label == string(evaluate.Right)})
		}
	}
	base := m.arms[baseKey(s)]
	for _, arm := range s.Arms {
		a := m.arms[arm.Name]
		model := ModelReport{Arm: arm.Name, About: arm.About, Missing: a.missing}
		if len(a.missing) == 0 {
			a.fill(&model, len(m.items))
			if arm.Trained() && base != nil && len(base.missing) == 0 {
				if e, ok := difference(a.answers, base.answers, false, level); ok {
					model.VersusBase = &e
				}
			}
		}
		r.Models = append(r.Models, model)
	}
	r.Learned, r.Verdict = m.learned(s)
	return r
}

func (a *measuredArm) fill(m *ModelReport, items int) {
	put := func(g grid, balanced bool) *Estimate {
		if e, ok := estimate(g, balanced, level); ok {
			return &e
		}
		return nil
	}
	m.Answers = put(a.answers, false)
	m.Verdicts, m.Balanced = put(a.others, false), put(a.others, true)
	m.Self, m.SelfBalanced = put(a.self, false), put(a.self, true)
	tokens := 0
	for _, k := range a.marks {
		var right Count
		right.add(k.answers)
		m.BySeed = append(m.BySeed, right.Share())
		m.Loose.add(k.loose)
		m.Drifted.add(k.drifted)
		m.Ended.add(k.ended)
		tokens += k.tokens
		for _, v := range k.others {
			m.SaidRight.add([]bool{v == evaluate.Right})
			m.None.add([]bool{v == evaluate.NoVerdict})
		}
		for _, v := range k.self {
			m.SelfSaidRight.add([]bool{v == evaluate.Right})
			m.SelfNone.add([]bool{v == evaluate.NoVerdict})
		}
	}
	m.MeanTokens = float64(tokens) / float64(max(1, items*len(a.marks)))
}

// learned decides by the rule whether the set has taught anything.
func (m measuredSet) learned(s Spec) (*bool, string) {
	base, missing := m.arm(baseKey(s))
	if missing != "" {
		return nil, "not decided: " + missing
	}
	type comparison struct {
		text  string
		e     Estimate
		bound float64
	}
	measures := 1
	if m.judged {
		measures = 2
	}
	arms := s.TrainedArms()
	wide := 1 - (1-level)/float64(measures*len(arms))
	var all []comparison
	for _, arm := range arms {
		a, missing := m.arm(arm.Name)
		if missing != "" {
			return nil, "not decided: " + missing
		}
		if e, ok := difference(a.answers, base.answers, false, wide); ok {
			all = append(all, comparison{fmt.Sprintf("%s's answers differ from the base model's by %+.1f points (%+.1f to %+.1f)", arm.Name, 100*e.Value, 100*e.Low, 100*e.High), e.Estimate, 0})
		}
		if e, ok := estimate(a.others, true, wide); m.judged && ok {
			all = append(all, comparison{fmt.Sprintf("%s's verdicts are right by %.1f %%, balanced (%.1f to %.1f)", arm.Name, 100*e.Value, 100*e.Low, 100*e.High), e, 0.5})
		}
	}
	var found []string
	for _, c := range all {
		if c.e.Low > c.bound {
			found = append(found, c.text)
		}
	}
	learned := len(found) > 0
	if learned {
		return &learned, fmt.Sprintf("in %d of %d comparisons, each at the %.2f %% level: %s", len(found), len(all), 100*wide, strings.Join(found, "; "))
	}
	if len(all) == 0 {
		return &learned, "there was nothing to compare"
	}
	best := slices.MaxFunc(all, func(a, b comparison) int { return cmp.Compare(a.e.Low-a.bound, b.e.Low-b.bound) })
	return &learned, fmt.Sprintf("in none of %d comparisons, each at the %.2f %% level; the nearest: %s", len(all), 100*wide, best.text)
}
