package dataset

import (
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/trainer/config"
)

func numbered(t *testing.T, name string, n int) {
	t.Helper()
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `{"query":"%s%d","solution":"s"}`+"\n", name, i)
	}
	require.NoError(t, os.WriteFile(name, []byte(b.String()), 0o600))
}

// counts tells how often each record comes in some epochs.
func counts(t *testing.T, s *Set, epochs ...int) []int {
	t.Helper()
	list := make([]int, s.Len())
	for _, epoch := range epochs {
		at := s.Order(7, epoch, true)
		for place := range s.EpochLen() {
			list[at(place)]++
		}
	}
	return list
}

func TestSample(t *testing.T) {
	t.Chdir(t.TempDir())
	numbered(t, "a", 10)
	numbered(t, "b", 4)
	numbered(t, "c", 6)
	with := func(path string, sample float64) config.Source {
		return config.Source{Path: path, Format: "cft", Weight: 1, Sample: sample}
	}
	s := open(t, with("a", 0.5), with("b", 2.5), with("c", 1))
	require.Equal(t, 20, s.Len())
	require.Equal(t, 5+10+6, s.EpochLen())
	both := counts(t, s, 0, 1)
	for i, n := range both {
		want := 1
		if i >= 10 {
			want = 5
		}
		if i >= 14 {
			want = 2
		}
		assert.Equal(t, want, n, "record %d in two epochs", i)
	}
	assert.NotEqual(t, counts(t, s, 0), counts(t, s, 1), "every epoch had the same half")
	assert.Equal(t, counts(t, s, 3), counts(t, s, 3))

	straight := s.Order(7, 0, false)
	var order []int
	for place := range s.EpochLen() {
		order = append(order, straight(place))
	}
	assert.Equal(t, []int{10, 11, 12, 13, 10, 11, 12, 13}, order[5:13], "twice in the file's order")
	assert.Equal(t, []int{14, 15, 16, 17, 18, 19}, order[15:])

	plain := open(t, with("a", 1), with("b", 1))
	for place, at := 0, Order(3, 2, 14, true); place < 14; place++ {
		assert.Equal(t, at(place), plain.Order(3, 2, true)(place), "without samples the order is what it was")
	}
}

func TestFieldMaps(t *testing.T) {
	row := `{"problem":"2+2?","meta":{"answer":4,"by":{"name":"ann"}},"rationale":"2+2=4","a.b":"dotted","none":null,"list":[1,{}],"steps":["one",2]}`
	write(t, "d.jsonl", row+"\n")
	tests := []struct {
		name   string
		fields config.Fields
		want   Record
		err    string
	}{
		{"renamed", config.Fields{"query": "problem", "solution": "rationale"}, Record{Query: "2+2?", Solution: "2+2=4"}, ""},
		{"a path", config.Fields{"query": "problem", "gold": "meta.answer"}, Record{Query: "2+2?", Gold: "4"}, ""},
		{"put together", config.Fields{"query": "{problem} by {meta.by.name}", "solution": "{rationale} = {meta.answer}"}, Record{Query: "2+2? by ann", Solution: "2+2=4 = 4"}, ""},
		{"a list", config.Fields{"query": "problem", "solution": "{steps}"}, Record{Query: "2+2?", Solution: "one\n2"}, ""},
		{"a list of other things", config.Fields{"query": "{list}"}, Record{}, "fields.query: {list}[1] must be text, a number or a list of them, is an object"},
		{"a name with a dot", config.Fields{"query": "a.b", "solution": "rationale"}, Record{Query: "dotted", Solution: "2+2=4"}, ""},
		{"null is missing", config.Fields{"query": "problem", "solution": "rationale", "gold": "none"}, Record{Query: "2+2?", Solution: "2+2=4"}, ""},
		{"no such field", config.Fields{"query": "problm", "solution": "rationale"}, Record{}, `fields.query: the row has no field "problm"; the row has {a.b: text of 6 bytes, list: a list of 2, meta: an object, none: null, problem: text of 4 bytes, rationale: text of 5 bytes, steps: a list of 2}`},
		{"no such path", config.Fields{"query": "meta.question"}, Record{}, `fields.query: in meta: the row has no field "question"`},
		{"not an object", config.Fields{"query": "problem.x"}, Record{}, "fields.query: problem is no object but text of 4 bytes"},
		{"an object in a text", config.Fields{"query": "{meta}"}, Record{}, "fields.query: {meta} must be text, a number or a list of them, is an object"},
		{"null in a text", config.Fields{"query": "{none}"}, Record{}, "fields.query: {none} is null"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			from := from("d.jsonl", "cft")
			from.Fields = tt.fields
			got, err := open(t, from).Record(0)
			if tt.err != "" {
				assert.ErrorContains(t, err, tt.err)
				return
			}
			require.NoError(t, err)
			tt.want.ID, tt.want.Weight = "d.jsonl:1", 1
			assert.Equal(t, tt.want, got)
		})
	}
	bad := from("d.jsonl", "cft")
	bad.Fields = config.Fields{"question": "problem"}
	_, err := Open(t.Context(), []config.Source{bad}, Options{})
	assert.EqualError(t, err, `open data d.jsonl: fields: format cft has no field "question"; it has id, weight, query, response, critique, solution, label, gold`)
	write(t, "lost.jsonl", `{"prompt":"p","completion":"c","system":"s"}`)
	without := from("lost.jsonl", "prompt-completion")
	without.Fields = config.Fields{"system": ""}
	got, err := open(t, without).Record(0)
	require.NoError(t, err)
	assert.Equal(t, Record{ID: "lost.jsonl:1", Query: "p", Solution: "c", Weight: 1}, got)
	for name, fields := range formatFields {
		assert.Contains(t, formats, name)
		assert.NotEmpty(t, fields)
	}
	assert.Len(t, formatFields, len(formats))
}

func TestSourcesWithoutAFormat(t *testing.T) {
	for row, want := range map[string]string{
		`{"instruction":"a","output":"b"}`:                           "d.jsonl:1: the source's format is not named: the row has {instruction: text of 1 bytes, output: text of 1 bytes}; it could be alpaca",
		`{"question":"a","answer":"b"}`:                              "the row has {answer: text of 1 bytes, question: text of 1 bytes}; no format takes it as it is; data.sources[].fields says which field is which",
		`{"query":"q","solution":"s","prompt":"q","completion":"s"}`: "it could be cft or prompt-completion",
	} {
		write(t, "d.jsonl", row)
		_, err := Open(t.Context(), []config.Source{from("d.jsonl", "")}, Options{})
		assert.ErrorContains(t, err, want)
		var fault *Error
		assert.ErrorAs(t, err, &fault)
	}
}

// What another format than JSONL holds comes out as the same records.
func TestContainers(t *testing.T) {
	t.Chdir(t.TempDir())
	rows := []map[string]string{{"query": "a, \"b\"", "solution": "x\ny"}, {"query": "é", "solution": "2"}}
	text, err := json.Marshal(rows)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile("a.json", text, 0o600))
	require.NoError(t, os.WriteFile("b.csv", []byte("query,solution\n\"a, \"\"b\"\"\",\"x\ny\"\né,2\n"), 0o600))
	s := open(t, from("a.json", "cft"), from("b.csv", "cft"))
	require.Equal(t, 4, s.Len())
	for i := range 4 {
		r, err := s.Record(i)
		require.NoError(t, err)
		assert.Equal(t, rows[i%2]["query"], r.Query)
		assert.Equal(t, rows[i%2]["solution"], r.Solution)
	}
	names, records := s.Files()
	assert.True(t, slices.Equal(names, []string{"a.json", "b.csv"}), names)
	assert.Equal(t, []int{2, 2}, records)
}
