package dataset

import (
	"maps"
	"slices"
	"strings"
)

// format makes a record of a row.
type format func(*row) (Record, error)

// formats are the formats by their names in the configuration.
var formats = map[string]format{
	"cft":               named("cft", cft),
	"alpaca":            named("alpaca", alpaca),
	"webinstruct-cft":   named("webinstruct-cft", webInstruct),
	"messages":          named("messages", messages),
	"sharegpt":          named("sharegpt", shareGPT),
	"prompt-completion": named("prompt-completion", promptCompletion),
	FormatQuery:         named(FormatQuery, query),
	"tokenized":         named("tokenized", tokenized),
}

// Formats lists the names of the formats that can be trained on.
func Formats() []string {
	return slices.DeleteFunc(slices.Sorted(maps.Keys(formats)), func(name string) bool { return name == FormatQuery })
}

// FormatQuery is for questions alone. Nothing can be learned from them, so it is not among Formats.
const FormatQuery = "query"

// named wraps what the formats share: the fields id and weight, and the report.
func named(name string, read func(*row) Record) format {
	return func(fields *row) (Record, error) {
		r := read(fields)
		r.RowID = fields.textOrNumber("id")
		r.Weight = fields.weight()
		checkLost(fields, name)
		return r, fields.err(name)
	}
}

// cft: {query, response, critique, label, gold, solution}. Which of the texts are needed is the objective's matter; a
// row without any has nothing to learn and nothing to score.
func cft(fields *row) Record {
	query := fields.needText("query")
	before := len(fields.problems)
	r := Record{
		Query:    query,
		Response: fields.text("response"),
		Critique: fields.text("critique"),
		Solution: fields.text("solution"),
		Label:    fields.text("label"),
		Gold:     fields.textOrNumber("gold"),
	}
	if len(fields.problems) == before && r.Response == "" && r.Critique == "" && r.Solution == "" && r.Label == "" && r.Gold == "" {
		fields.complain("response, critique, solution, label and gold are all missing")
	}
	if r.Label != "" && r.Label != "right" && r.Label != "wrong" {
		fields.complain("label must be right or wrong, is %q", r.Label)
	}
	return r
}

// query: {query, gold}: a question to be answered by sampling or in a test, with nothing to learn.
func query(fields *row) Record {
	return Record{Query: fields.needText("query"), Gold: fields.textOrNumber("gold")}
}

// alpaca: {instruction, input, output}; instruction and input are joined with a newline, as trainers do.
func alpaca(fields *row) Record {
	query := fields.needText("instruction")
	if input := fields.text("input"); input != "" {
		query += "\n" + input
	}
	return Record{Query: query, Solution: fields.needText("output")}
}

const (
	questionHead  = "Question:\n"
	solutionHead  = "\nSolution:\n" // after a blank line, but not in rows made before February 2025
	critiqueHead  = "Critique:\n"
	critiqueStart = "Please critique"
)

// webInstruct: {instruction, input, output} of WebInstruct-CFT, where input holds question and solution, and output the
// critique. The headings and the newlines around the parts belong to the layout, not to the texts: they are taken off
// here and put back by the objective. A solution that itself has a line "Solution:" stays whole: the first one counts.
func webInstruct(fields *row) Record {
	instruction, input := fields.needText("instruction"), fields.needText("input")
	output := fields.needText("output")
	if instruction != "" && !strings.HasPrefix(instruction, critiqueStart) {
		// Another task's row; its instruction would be lost, because the layout has its own.
		fields.complain("instruction must start with %q, is %s", critiqueStart, excerpt([]byte(instruction)))
	}
	query, response, found := strings.Cut(input, solutionHead)
	query = strings.TrimSuffix(query, "\n")
	hasHead := strings.HasPrefix(query, questionHead)
	query = strings.TrimPrefix(query, questionHead)
	response = strings.TrimRight(response, "\n")
	if input != "" && (!found || !hasHead || strings.TrimSpace(query) == "" || strings.TrimSpace(response) == "") {
		fields.complain("input must be %q, a question, %q and a solution, is %s", questionHead, solutionHead, excerpt([]byte(input)))
	}
	critique := strings.TrimRight(strings.TrimPrefix(output, critiqueHead), "\n")
	if output != "" && strings.TrimSpace(critique) == "" {
		fields.complain("output has no critique")
	}
	return Record{Query: query, Response: response, Critique: critique}
}

// messages: {"messages": [{role, content}, ...]}; a turn of the assistant's may say by train (true, false) or weight (0, 1)
// whether it is learned.
func messages(fields *row) Record {
	r := Record{}
	r.Messages, r.Train = fields.messages("messages")
	checkTurns(fields, r.Messages, "messages")
	return r
}

func checkTurns(fields *row, turns []Message, name string) {
	for i, m := range turns {
		if m.Role == RoleAssistant && m.Content == "" {
			fields.complain("%s[%d]: the assistant's content is empty", name, i)
		}
	}
}

// speakers are the roles by the names that ShareGPT's files have for them.
var speakers = map[string]string{
	"human": RoleUser, "user": RoleUser, "gpt": RoleAssistant, "chatgpt": RoleAssistant, "assistant": RoleAssistant, "model": RoleAssistant, "system": RoleSystem,
}

// shareGPT: {"conversations": [{from, value}, ...], "system"}; system is a first turn that stands apart, and train or weight say of a turn
// what they say in messages.
func shareGPT(fields *row) Record {
	r := Record{}
	r.Messages, r.Train = fields.speeches("conversations")
	checkTurns(fields, r.Messages, "conversations")
	system := fields.text("system")
	if strings.TrimSpace(system) == "" {
		return r
	}
	if len(r.Messages) > 0 && r.Messages[0].Role == RoleSystem {
		fields.complain("system is there twice: as a field and as the first turn")
	}
	r.Messages = append([]Message{{RoleSystem, system}}, r.Messages...)
	if r.Train != nil {
		r.Train = append([]bool{false}, r.Train...)
	}
	return r
}

// promptCompletion: {prompt, completion}, one user turn and the assistant's answer.
func promptCompletion(fields *row) Record {
	return Record{Query: fields.needText("prompt"), Solution: fields.needText("completion")}
}

// tokenized: {input_ids, labels}; a label is a token or IgnoreLabel.
func tokenized(fields *row) Record {
	before := len(fields.problems)
	r := Record{InputIDs: fields.tokens("input_ids"), Labels: fields.tokens("labels")}
	for i, token := range r.InputIDs {
		if token < 0 {
			fields.complain("input_ids[%d] is %d", i, token)
			break
		}
	}
	if len(fields.problems) == before && len(r.InputIDs) != len(r.Labels) {
		fields.complain("input_ids has %d tokens but labels has %d", len(r.InputIDs), len(r.Labels))
	}
	if len(fields.problems) == before && len(r.InputIDs) == 0 {
		fields.complain("input_ids is empty")
	}
	if fields.has("attention_mask") {
		for i, bit := range fields.tokens("attention_mask") {
			if bit != 1 {
				fields.complain("attention_mask[%d] is %d: rows must have no padding", i, bit)
				break
			}
		}
	}
	return r
}
