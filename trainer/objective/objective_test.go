package objective

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
)

var full = dataset.Record{ID: "d.jsonl:7", Query: "2+2?", Response: "5", Critique: "It is 4.\nConclusion: wrong", Solution: "4"}

func TestLayout(t *testing.T) {
	turns := []dataset.Message{
		{Role: "system", Content: "s"}, {Role: "user", Content: "u"}, {Role: "assistant", Content: "a"},
		{Role: "user", Content: "v"}, {Role: "assistant", Content: "b"},
	}
	tests := []struct {
		name, objective string
		record          dataset.Record
		want            Conversation
	}{
		{"cft: instruction and input are joined with a newline, as the published runs were", CFT, full, Conversation{
			Messages: []dataset.Message{
				{Role: "user", Content: "Please critique whether the following solution to the question is correct.\n\n\nQuestion:\n2+2?\n\nSolution:\n5\n\n"},
				{Role: "assistant", Content: "Critique:\nIt is 4.\nConclusion: wrong"},
			},
			Train: []bool{false, true},
		}},
		{"sft: the solution, not the response", SFT, full, Conversation{
			Messages: []dataset.Message{{Role: "user", Content: "2+2?"}, {Role: "assistant", Content: "4"}},
			Train:    []bool{false, true},
		}},
		{"messages: those that the row names", SFT, dataset.Record{Messages: turns, Train: []bool{false, false, false, false, true}}, Conversation{
			Messages: turns, Train: []bool{false, false, false, false, true},
		}},
		{"refine: the critique leads to the solution", Refine, full, Conversation{
			Messages: []dataset.Message{
				{Role: "user", Content: RefineInstruction + "\nQuestion:\n2+2?\n\nSolution:\n5\n\nCritique:\nIt is 4.\nConclusion: wrong\n\n"},
				{Role: "assistant", Content: "4"},
			},
			Train: []bool{false, true},
		}},
		{"names of fields within fields are text", CFT, dataset.Record{Query: "{response}", Response: "{critique}{query}", Critique: "{critique}"}, Conversation{
			Messages: []dataset.Message{
				{Role: "user", Content: CritiqueInstruction + "\nQuestion:\n{response}\n\nSolution:\n{critique}{query}\n\n"},
				{Role: "assistant", Content: "Critique:\n{critique}"},
			},
			Train: []bool{false, true},
		}},
		{"messages: all turns of the assistant", SFT, dataset.Record{Messages: turns}, Conversation{
			Messages: turns, Train: []bool{false, false, true, false, true},
		}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Layout(tt.objective, tt.record)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestPromptsOfEvaluationAreThoseOfTraining(t *testing.T) {
	critique, err := Layout(CFT, full)
	require.NoError(t, err)
	assert.Equal(t, critique.Messages[0].Content, CritiquePrompt(full.Query, full.Response))
	answer, err := Layout(SFT, full)
	require.NoError(t, err)
	assert.Equal(t, answer.Messages[0].Content, AnswerPrompt(full.Query))
}

func TestOwnTemplates(t *testing.T) {
	own := Templates{AnswerPrompt: "Q: {query}", CritiquePrompt: "{response} to {query}?", CritiqueTarget: "Hm. {critique}"}
	got, err := own.Layout(CFT, full)
	require.NoError(t, err)
	assert.Equal(t, "5 to 2+2??", got.Messages[0].Content)
	assert.Equal(t, "Hm. It is 4.\nConclusion: wrong", got.Messages[1].Content)
	got, err = own.Layout(SFT, full)
	require.NoError(t, err)
	assert.Equal(t, "Q: 2+2?", got.Messages[0].Content)
}

func TestLayoutRefuses(t *testing.T) {
	without := func(f func(*dataset.Record)) dataset.Record {
		r := full
		f(&r)
		return r
	}
	tests := []struct {
		name, objective string
		record          dataset.Record
		want            string
	}{
		{"a response is taken for a solution", SFT, without(func(r *dataset.Record) { r.Solution = "" }), "record d.jsonl:7 has no solution, which objective sft needs"},
		{"no critique", CFT, without(func(r *dataset.Record) { r.Critique = " \n" }), "record d.jsonl:7 has no critique, which objective cft needs"},
		{"neither response nor critique", CFT, without(func(r *dataset.Record) { r.Response, r.Critique = "", "" }), "record d.jsonl:7 has no response and no critique, which objective cft needs"},
		{"refine without its end", Refine, without(func(r *dataset.Record) { r.Solution = "" }), "record d.jsonl:7 has no solution, which objective refine needs"},
		{"unknown objective", "rl", full, `record d.jsonl:7: objective "rl" is not sft, cft or refine`},
		{"messages under cft", CFT, dataset.Record{ID: "m:1", Messages: []dataset.Message{{Role: "assistant", Content: "a"}}}, "record m:1: objective cft needs query, response and critique, but the record has messages"},
		{"messages without an assistant", SFT, dataset.Record{ID: "m:1", Messages: []dataset.Message{{Role: "user", Content: "a"}}}, "record m:1: no message is the assistant's and to be learned"},
		{"tokenized", SFT, dataset.Record{ID: "t:1", InputIDs: []int32{1}}, "record t:1: is tokenized and has no layout"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			_, err := Layout(tt.objective, tt.record)
			assert.EqualError(t, err, tt.want)
		})
	}
}

func TestPickFollowsTheWeights(t *testing.T) {
	const n = 20000
	course := NewCourse([]config.Stage{{Mix: map[string]float64{"cft": 3, "sft": 1}}})
	count := 0
	for position := range uint64(n) {
		if course.Pick(42, position) == CFT {
			count++
		}
	}
	// Standard deviation sqrt(n*3/4*1/4) = 61; four of them.
	assert.InDelta(t, n*3/4, count, 245)
}

func TestPickIsAFunctionOfSeedPositionAndStage(t *testing.T) {
	mix := map[string]float64{"cft": 1, "sft": 1}
	stages := []config.Stage{{Mix: mix, Until: config.Until{Steps: 10}}, {Mix: mix}}
	draw := func(seed uint64, step int) string {
		text := ""
		course := NewCourse(stages)
		course.Advance(At{Step: step})
		for position := range uint64(64) {
			text += course.Pick(seed, position)[:1]
		}
		return text
	}
	first := draw(1, 1)
	assert.Equal(t, first, draw(1, 10), "the step within a stage does not matter")
	assert.NotEqual(t, first, draw(1, 11), "another stage")
	assert.NotEqual(t, first, draw(2, 1), "another seed")
	// Part of what a checkpoint means: a change of it breaks resume.
	assert.Equal(t, "cssscsccccscsssccssscscscccssccsccscsccscccsssccssssccsssccssccs", first)
}

func TestDrawOfOneObjective(t *testing.T) {
	for position := range uint64(1000) {
		require.Equal(t, CFT, Draw(map[string]float64{"cft": 1}, 7, position, 0))
		require.Equal(t, SFT, Draw(map[string]float64{"cft": 0, "sft": 1e-9}, 7, position, 0), "an objective of weight 0 was drawn")
	}
}

func TestLastTurn(t *testing.T) {
	c, err := Layout(SFT, dataset.Record{Messages: []dataset.Message{{Role: "assistant"}, {Role: "user"}, {Role: "assistant"}, {Role: "user"}}})
	require.NoError(t, err)
	assert.Equal(t, []bool{false, false, true, false}, c.LastTurn().Train)
	assert.Equal(t, []bool{true, false, true, false}, c.Train, "the conversation itself stays")
}
