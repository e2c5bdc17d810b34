package trainer

import (
	"errors"
	"fmt"

	"cftune/trainer/chat"
	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/objective"
	"cftune/trainer/pack"
)

// Text is how records become tokens.
type Text struct {
	// Template may be nil where all records are tokenized.
	Template *chat.Template
	// Digest is the SHA-256 of the template's source, hex.
	Digest string
	// Vocabulary is the number of tokens; BOS the one at a text's begin, -1 if there is none.
	Vocabulary int
	BOS        int32
}

// outcome is what the over-long policy did to an example.
type outcome int

const (
	fits outcome = iota
	dropped
	truncated
	split
)

// errTooLong is wrapped where the policy refuses an example, or cannot cut it.
var errTooLong = errors.New("longer than a pack")

// errLayout is wrapped where a record lacks what its objective needs.
var errLayout = errors.New("no layout")

// errOverlap is the error of a record that is held out as well.
var errOverlap = errors.New("in the held-out records as well")

// encoder makes examples of a set's records. It is safe for concurrent use.
type encoder struct {
	set  *dataset.Set
	text Text
	run  config.Run
	// held are the prompt keys of records that must not be trained on; nil: none.
	held map[uint64]struct{}
}

// encoded is an example, or what became of it: parts are what is trained on, one unless the policy dropped or split it.
// length is what it takes in a pack, before any cut. A tokenized record's has no conversation.
type encoded struct {
	example      pack.Example
	parts        []pack.Example
	conversation *objective.Conversation
	length       int
	outcome      outcome
}

// encode makes record i an example under an objective; pre-tokenized records have none, whatever is given.
func (e *encoder) encode(i int, name string) (encoded, error) {
	record, err := e.set.Record(i)
	if err != nil {
		return encoded{}, err
	}
	example := pack.Example{ID: record.ID, Weight: record.Weight, Objective: name}
	if _, is := e.held[promptKey(record)]; is && e.held != nil {
		return encoded{example: example}, errOverlap
	}
	var made *objective.Conversation
	if record.InputIDs != nil {
		example.Objective = objective.Tokenized
		example.Tokens, example.Labels = record.InputIDs, record.Labels
		if t := example.Tokens; e.run.Data.Audit && e.text.BOS >= 0 && len(t) > 1 && t[0] == e.text.BOS && t[1] == e.text.BOS {
			return encoded{example: example}, fmt.Errorf("record %s: begins with two BOS tokens (%d)", record.ID, e.text.BOS)
		}
		if e.run.Data.Audit && shifted(record.InputIDs, record.Labels) {
			return encoded{example: example}, fmt.Errorf("record %s: labels are shifted already: each is the token behind its own in input_ids; "+
				"here they lie under their own, or data.audit is false", record.ID)
		}
	} else {
		conversation, err := objective.Layout(name, record)
		if err != nil {
			return encoded{}, fmt.Errorf("%w: %w", errLayout, err)
		}
		if e.run.Objective.Turns == "last" && record.Train == nil {
			conversation = conversation.LastTurn()
		}
		made = &conversation
		if e.text.Template == nil {
			return encoded{}, fmt.Errorf("record %s: needs a chat template, and there is none", record.ID)
		}
		example.Tokens, example.Labels, err = e.text.Template.Encode(conversation.Messages, conversation.Train)
		if err != nil {
			return encoded{}, fmt.Errorf("record %s: %w", record.ID, err)
		}
	}
	if err := pack.Check(example, e.text.Vocabulary); err != nil {
		return encoded{example: example}, err
	}
	result, err := e.fit(example)
	result.conversation = made
	return result, err
}

// shifted reports whether the labels of a row are those of the positions behind: learned as they are, they would teach the token after the next.
func shifted(tokens, labels []int32) bool {
	behind := 0
	for i, label := range labels {
		switch {
		case label == dataset.IgnoreLabel || i+1 == len(tokens): // behind the last may be anything
		case label != tokens[i+1]:
			return false
		case label != tokens[i]:
			behind++
		}
	}
	return behind > 0
}

// fit applies the over-long policy.
func (e *encoder) fit(example pack.Example) (encoded, error) {
	result := encoded{example: example, length: pack.Len(example)}
	if result.length <= e.run.Train.SeqLen {
		result.parts = []pack.Example{example}
		return result, nil
	}
	keep := 0
	if e.text.BOS >= 0 && example.Tokens[0] == e.text.BOS {
		keep = 1
	}
	switch e.run.Data.OverLong {
	case "drop":
		result.outcome = dropped
		return result, nil
	case "split":
		parts, err := pack.Split(example, e.run.Train.SeqLen, keep)
		if err != nil {
			return result, fmt.Errorf("%w: %w", errTooLong, err)
		}
		result.parts, result.outcome = parts, split
		return result, nil
	case "truncate_prompt":
		cut, err := pack.TruncatePrompt(example, e.run.Train.SeqLen, keep)
		if err != nil {
			return result, fmt.Errorf("%w: %w", errTooLong, err)
		}
		result.example, result.parts, result.outcome = cut, []pack.Example{cut}, truncated
		return result, nil
	}
	return result, fmt.Errorf("%w: example %s has %d tokens", errTooLong, example.ID, result.length)
}

// lengths are those of the parts, in positions.
func (e encoded) lengths() []int {
	lengths := make([]int, len(e.parts))
	for i, part := range e.parts {
		lengths[i] = pack.Len(part)
	}
	return lengths
}

func (e encoded) targets() int {
	n := 0
	for _, part := range e.parts {
		n += pack.NumTargets(part)
	}
	return n
}
