// Package objective says in which form a record is trained: which text is prompt and which is learned.
//
// Under sft the model learns to answer the query with the record's solution. Under cft (critique fine-tuning) it reads
// the query with a candidate response and learns the critique only. Under refine it reads query, response and critique
// and learns the solution. A Course says which mix of them holds for a step; which of a mix a record gets is a function
// of the seed, its position and the stage. The package renders no chat template and makes no tokens.
package objective

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"cftune/trainer/dataset"
)

// The objectives, and the name that pre-tokenized records carry instead of one.
const (
	SFT       = "sft"
	CFT       = "cft"
	Refine    = "refine"
	Tokenized = "tokenized"
)

// The texts of critique fine-tuning, as in the released WebInstruct-CFT data: instruction and input, joined with a
// newline into one user turn, and the output.
const (
	CritiqueInstruction = "Please critique whether the following solution to the question is correct.\n\n"
	CritiqueInput       = "Question:\n{query}\n\nSolution:\n{response}\n\n"
	CritiqueOutput      = "Critique:\n{critique}"
)

// The text of refinement: the critique's, with the critique after the solution and another question at the end.
const (
	RefineInstruction = "Please correct the following solution to the question, as the critique says.\n\n"
	RefineInput       = CritiqueInput + "Critique:\n{critique}\n\n"
)

// Templates are the texts that a record's fields are put into. The names in braces are replaced.
type Templates struct {
	AnswerPrompt   string // {query}
	CritiquePrompt string // {query}, {response}
	CritiqueTarget string // {critique}
	RefinePrompt   string // {query}, {response}, {critique}
}

// DefaultTemplates returns the texts of the package's constants.
func DefaultTemplates() Templates {
	return Templates{
		AnswerPrompt:   "{query}",
		CritiquePrompt: CritiqueInstruction + "\n" + CritiqueInput,
		CritiqueTarget: CritiqueOutput,
		RefinePrompt:   RefineInstruction + "\n" + RefineInput,
	}
}

// Conversation is a record laid out as turns. Train[i] says that message i is learned; such messages are the assistant's.
type Conversation struct {
	Messages []dataset.Message
	Train    []bool
}

// AnswerPrompt is the user's turn that asks for an answer, in training and in evaluation.
func AnswerPrompt(query string) string { return DefaultTemplates().answerPrompt(query) }

// CritiquePrompt is the user's turn that asks for a critique of a response, in training and in evaluation.
func CritiquePrompt(query, response string) string {
	return DefaultTemplates().critiquePrompt(query, response)
}

// Layout lays the record out under an objective, with the default texts.
func Layout(name string, r dataset.Record) (Conversation, error) {
	return DefaultTemplates().Layout(name, r)
}

// Layout lays the record out under an objective.
//
// sft needs query and solution: a response is never taken for a solution, because it may be flawed. cft needs query,
// response and critique; refine needs all four. Records with messages have a layout under sft only; their assistant
// turns are learned, unless the record says which (dataset.Record.Train). Pre-tokenized records have none.
func (t Templates) Layout(name string, r dataset.Record) (Conversation, error) {
	if r.InputIDs != nil {
		return Conversation{}, fmt.Errorf("record %s: is tokenized and has no layout", r.ID)
	}
	switch {
	case name != SFT && name != CFT && name != Refine:
		return Conversation{}, fmt.Errorf("record %s: objective %q is not sft, cft or refine", r.ID, name)
	case len(r.Messages) > 0 && name != SFT:
		return Conversation{}, fmt.Errorf("record %s: objective %s needs query, response and critique, but the record has messages", r.ID, name)
	case len(r.Messages) > 0:
		return ofMessages(r)
	case name == SFT:
		if err := need(r, name, "query", r.Query, "solution", r.Solution); err != nil {
			return Conversation{}, err
		}
		return turn(t.answerPrompt(r.Query), r.Solution), nil
	case name == CFT:
		if err := need(r, name, "query", r.Query, "response", r.Response, "critique", r.Critique); err != nil {
			return Conversation{}, err
		}
		return turn(t.critiquePrompt(r.Query, r.Response), fill(t.CritiqueTarget, "{critique}", r.Critique)), nil
	}
	if err := need(r, name, "query", r.Query, "response", r.Response, "critique", r.Critique, "solution", r.Solution); err != nil {
		return Conversation{}, err
	}
	return turn(fill(t.RefinePrompt, "{query}", r.Query, "{response}", r.Response, "{critique}", r.Critique), r.Solution), nil
}

func ofMessages(r dataset.Record) (Conversation, error) {
	train := make([]bool, len(r.Messages))
	for i, m := range r.Messages {
		train[i] = m.Role == dataset.RoleAssistant
	}
	if r.Train != nil {
		train = r.Train
	}
	if !slices.Contains(train, true) {
		return Conversation{}, fmt.Errorf("record %s: no message is the assistant's and to be learned", r.ID)
	}
	return Conversation{Messages: r.Messages, Train: train}, nil
}

// LastTurn returns the conversation with its last learned turn as the only one.
func (c Conversation) LastTurn() Conversation {
	last := len(c.Train) - 1
	for last >= 0 && !c.Train[last] {
		last--
	}
	train := make([]bool, len(c.Train))
	if last >= 0 {
		train[last] = true
	}
	c.Train = train
	return c
}

func turn(user, assistant string) Conversation {
	return Conversation{
		Messages: []dataset.Message{
			{Role: dataset.RoleUser, Content: user},
			{Role: dataset.RoleAssistant, Content: assistant},
		},
		Train: []bool{false, true},
	}
}

// need reports every missing field of pairs (name, value).
func need(r dataset.Record, objective string, pairs ...string) error {
	var missing []string
	for i := 0; i < len(pairs); i += 2 {
		if strings.TrimSpace(pairs[i+1]) == "" {
			missing = append(missing, pairs[i])
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("record %s has no %s, which objective %s needs", r.ID, strings.Join(missing, " and no "), objective)
}

func (t Templates) answerPrompt(query string) string { return fill(t.AnswerPrompt, "{query}", query) }

func (t Templates) critiquePrompt(query, response string) string {
	return fill(t.CritiquePrompt, "{query}", query, "{response}", response)
}

// fill replaces names in one pass, so that a name within a field's text stays text.
func fill(template string, pairs ...string) string {
	return strings.NewReplacer(pairs...).Replace(template)
}

// Draw takes one objective out of a mix in proportion to the weights.
func Draw(mix map[string]float64, seed, position uint64, stage int) string {
	names := slices.Sorted(maps.Keys(mix))
	total := 0.0
	for _, name := range names {
		total += mix[name]
	}
	u := unit(seed, position, uint64(stage)) * total
	last := ""
	for _, name := range names {
		if mix[name] <= 0 {
			continue
		}
		last = name
		if u -= mix[name]; u < 0 {
			return name
		}
	}
	return last // u was within rounding of total
}

// unit hashes its arguments to a number in [0, 1) with 53 bits.
func unit(words ...uint64) float64 {
	h := uint64(0x6f626a6563746976) // "objectiv": keeps these draws apart from others made of the same seed
	for _, w := range words {
		h = mix64(h ^ mix64(w))
	}
	return float64(h>>11) / (1 << 53)
}

// mix64 is the SplitMix64 generator's step (Steele, Lea, Flood 2014): increment, then finalizer.
func mix64(x uint64) uint64 {
	x += 0x9e3779b97f4a7c15
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
