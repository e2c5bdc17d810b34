package dataset

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testlimit"
	"cftune/trainer/config"
)

// write makes a file in a fresh folder and changes into it, so that messages have short paths.
func write(t *testing.T, name, content string) {
	t.Helper()
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
}

func open(t *testing.T, sources ...config.Source) *Set {
	t.Helper()
	s, err := Open(t.Context(), sources, Options{})
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, s.Close()) })
	return s
}

func from(path, format string) config.Source {
	return config.Source{Path: path, Format: format, Weight: 1, Sample: 1}
}

func TestLinesAndNumbers(t *testing.T) {
	row := func(q string) string { return `{"query":"` + q + `","solution":"s"}` }
	tests := []struct{ name, content string }{
		{"plain", "\n" + row("a") + "\n\n" + row("b") + "\n \t\n\n" + row("c") + "\n"},
		{"no newline at the end", "\n" + row("a") + "\n\n" + row("b") + "\n\n\n" + row("c")},
		{"byte order mark", "\ufeff\n" + row("a") + "\n\n" + row("b") + "\n\n\n" + row("c")},
		{"carriage returns", "\r\n" + row("a") + "\r\n\r\n" + row("b") + "\r\n\r\n\r\n" + row("c") + "\r\n\r\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			write(t, "d.jsonl", tt.content)
			s := open(t, from("d.jsonl", "cft"))
			require.Equal(t, 3, s.Len())
			require.NoError(t, s.Check())
			for i, want := range []Record{
				{ID: "d.jsonl:2", Query: "a", Solution: "s", Weight: 1},
				{ID: "d.jsonl:4", Query: "b", Solution: "s", Weight: 1},
				{ID: "d.jsonl:7", Query: "c", Solution: "s", Weight: 1},
			} {
				got, err := s.Record(i)
				require.NoError(t, err)
				assert.Equal(t, want, got)
			}
		})
	}
}

func TestLineLongerThanTheBuffer(t *testing.T) {
	long := strings.Repeat("x", 3<<20)
	write(t, "d.jsonl", `{"query":"`+long+`","solution":"s"}`+"\n"+`{"query":"b","solution":"s"}`)
	s := open(t, from("d.jsonl", "cft"))
	require.Equal(t, 2, s.Len())
	first, err := s.Record(0)
	require.NoError(t, err)
	assert.Len(t, first.Query, 3<<20)
	second, err := s.Record(1)
	require.NoError(t, err)
	assert.Equal(t, "b", second.Query)
}

func TestLineBeyondTheBound(t *testing.T) {
	t.Chdir(t.TempDir())
	f, err := os.Create("d.jsonl")
	require.NoError(t, err)
	_, err = f.WriteString("{}\n{" + strings.Repeat(" ", 1024))
	require.NoError(t, err)
	require.NoError(t, f.Truncate(MaxLineBytes+5)) // the rest is sparse: NUL bytes
	require.NoError(t, f.Close())
	_, err = Open(t.Context(), []config.Source{from("d.jsonl", "cft")}, Options{})
	assert.EqualError(t, err, "d.jsonl:2: the line is longer than 64 MiB")
}

func TestSeveralSources(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, content := range map[string]string{
		"b1.jsonl":  `{"prompt":"b1","completion":"x"}`,
		"a.jsonl":   "{\"query\":\"a0\",\"solution\":\"s\",\"weight\":0.5}\n{\"query\":\"a1\",\"solution\":\"s\"}",
		"b0.jsonl":  `{"prompt":"b0","completion":"x","id":"first"}`,
		"[x].jsonl": `{"prompt":"literal","completion":"x"}`,
	} {
		require.NoError(t, os.WriteFile(name, []byte(content), 0o600))
	}
	half := from("a.jsonl", "cft")
	half.Weight = 0.5
	s := open(t, half, from("b?.jsonl", "prompt-completion"),
		from("[x].jsonl", "prompt-completion"))
	var queries, ids []string
	var weights []float32
	for i := range s.Len() {
		r, err := s.Record(i)
		require.NoError(t, err)
		queries, ids, weights = append(queries, r.Query), append(ids, r.ID), append(weights, r.Weight)
	}
	assert.Equal(t, []string{"a0", "a1", "b0", "b1", "literal"}, queries)
	assert.Equal(t, []string{"a.jsonl:1", "a.jsonl:2", "b0.jsonl:1 (first)", "b1.jsonl:1", "[x].jsonl:1"}, ids)
	assert.Equal(t, []float32{0.25, 0.5, 1, 1, 1}, weights)

	require.NoError(t, os.WriteFile("empty.jsonl", []byte("\n\n"), 0o600))
	_, err := Open(t.Context(), []config.Source{half, from("empty.jsonl", "cft")}, Options{})
	assert.EqualError(t, err, "empty.jsonl: holds white space only")
	_, err = Open(t.Context(), []config.Source{from("c*.jsonl", "cft")}, Options{})
	assert.EqualError(t, err, "c*.jsonl: no file matches the pattern")
	_, err = Open(t.Context(), []config.Source{from("a.jsonl", "cft"), from("none.jsonl", "cft")}, Options{})
	assert.EqualError(t, err, "none.jsonl: there is no such file or folder")
}

func TestDigest(t *testing.T) {
	t.Chdir(t.TempDir())
	put := func(name, content string) { require.NoError(t, os.WriteFile(name, []byte(content), 0o600)) }
	digest := func() string { return open(t, from("a", "cft"), from("b", "cft")).Digest() }
	put("a", "{}\n{}\n")
	put("b", "{}\n")
	first := digest()
	assert.Len(t, first, 64)
	assert.Equal(t, first, digest())
	put("b", "{ }\n")
	assert.NotEqual(t, first, digest(), "a changed file")
	put("a", "{}\n")
	put("b", "{}\n{}\n")
	assert.NotEqual(t, first, digest(), "a line moved from one file to the next")
}

func TestFormats(t *testing.T) {
	tests := []struct {
		name, format, line string
		want               Record
	}{
		{"cft", "cft", `{"query":"q","response":"r","critique":"c","label":"wrong","gold":"7","solution":"s","other":[1]}`,
			Record{Query: "q", Response: "r", Critique: "c", Label: "wrong", Gold: "7", Solution: "s"}},
		{"cft null is missing, gold may be a number", "cft", ` { "query" : "q" , "critique" : "c" , "label" : null , "gold" : -7.50 } `,
			Record{Query: "q", Critique: "c", Gold: "-7.50"}},
		{"escapes", "cft", `{"query":"a\nb\u00e9\ud83d\ude00\ufffd","solution":"\\ud83d"}`, Record{Query: "a\nbé😀\ufffd", Solution: `\ud83d`}},
		{"alpaca", "alpaca", `{"instruction":"add","input":"1 2","output":"3"}`, Record{Query: "add\n1 2", Solution: "3"}},
		{"alpaca without input", "alpaca", `{"instruction":"add","input":"","output":"3"}`, Record{Query: "add", Solution: "3"}},
		{"webinstruct", "webinstruct-cft", `{"instruction":"Please critique whether the following solution to the question is correct.\n\n","input":"Question:\nq1\n\nq2\n\nSolution:\ny1\n\nSolution:\ny2\n\n","output":"Critique:\nfine\nConclusion: right [END]\n\n"}`,
			Record{Query: "q1\n\nq2", Response: "y1\n\nSolution:\ny2", Critique: "fine\nConclusion: right [END]"}},
		{"webinstruct of the older form", "webinstruct-cft", `{"instruction":"Please critique","input":"Question:\nq\nSolution:\ny\n","output":"bad"}`,
			Record{Query: "q", Response: "y", Critique: "bad"}},
		{"messages", "messages", `{"messages":[{"role":"system","content":""},{"role":"user","content":"u","name":"x"},{"content":"a","role":"assistant"}]}`,
			Record{Messages: []Message{{"system", ""}, {"user", "u"}, {"assistant", "a"}}}},
		{"messages that say what is learned", "messages", `{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a","train":false},{"role":"user","content":"v","weight":0},{"role":"assistant","content":"b","weight":1}]}`,
			Record{Messages: []Message{{"user", "u"}, {"assistant", "a"}, {"user", "v"}, {"assistant", "b"}}, Train: []bool{false, false, false, true}}},
		{"a system turn that stands apart", "sharegpt", `{"conversations":[{"from":"human","value":"u"},{"from":"gpt","value":"a"}],"system":"s","tools":"[ ]"}`,
			Record{Messages: []Message{{"system", "s"}, {"user", "u"}, {"assistant", "a"}}}},
		{"positions that all rows have", "tokenized", `{"input_ids":[1,2],"labels":[1,2],"position_ids":[0,1],"loss_mask":[]}`, Record{InputIDs: []int32{1, 2}, Labels: []int32{1, 2}}},
		{"sharegpt", "sharegpt", `{"conversations":[{"from":"system","value":"s"},{"from":"human","value":"u"},{"from":"gpt","value":"a"}]}`,
			Record{Messages: []Message{{"system", "s"}, {"user", "u"}, {"assistant", "a"}}}},
		{"sharegpt's turns that say what is learned", "sharegpt", `{"system":"s","conversations":[{"from":"human","value":"u","weight":0,"markdown":true},{"from":"gpt","value":"a","weight":0},{"from":"human","value":"v","weight":null},{"from":"gpt","value":"b","weight":1,"train":true}]}`,
			Record{Messages: []Message{{"system", "s"}, {"user", "u"}, {"assistant", "a"}, {"user", "v"}, {"assistant", "b"}}, Train: []bool{false, false, false, false, true}}},
		{"prompt-completion", "prompt-completion", `{"prompt":"p","completion":" c "}`, Record{Query: "p", Solution: " c "}},
		{"query", "query", `{"query":"1+1","gold":2}`, Record{Query: "1+1", Gold: "2"}},
		{"a row's own id", "query", `{"query":"q","id":7}`, Record{Query: "q", RowID: "7"}},
		{"a response to be judged", "cft", `{"query":"q","response":"y"}`, Record{Query: "q", Response: "y"}},
		{"tokenized", "tokenized", `{"input_ids":[1,2,3],"labels":[-100,2,-100],"attention_mask":[1,1,1]}`,
			Record{InputIDs: []int32{1, 2, 3}, Labels: []int32{-100, 2, -100}}},
	}
	covered := map[string]bool{}
	for _, tt := range tests {
		covered[tt.format] = true
		t.Run(tt.name, func(t *testing.T) {
			fields, err := parseRow([]byte(strings.TrimSpace(tt.line)))
			require.NoError(t, err)
			got, err := formats[tt.format](fields)
			require.NoError(t, err)
			tt.want.Weight = 1
			assert.Equal(t, tt.want, got)
		})
	}
	for name := range formats {
		assert.True(t, covered[name], "format %s has no case here", name)
	}
}

func TestFaults(t *testing.T) {
	tests := []struct{ name, format, line, want string }{
		{"no JSON", "cft", `hello`, `d.jsonl:3: the line is no JSON object: it starts with "hello"`},
		{"an array among the rows", "cft", "{\"query\":\"q\",\"solution\":\"s\"}\n[", "d.jsonl:4: the line is an array; JSONL has one object per line"},
		{"cut off", "cft", `{"query":"q`, "d.jsonl:3: the JSON object is cut off"},
		{"bad syntax", "cft", `{"query":q}`, "d.jsonl:3: no JSON: byte 10: invalid character 'q' looking for beginning of value"},
		{"two objects", "cft", `{"a":1} {"b":2}`, `d.jsonl:3: more text after the object: "{\"b\":2}"`},
		{"invalid UTF-8", "cft", "{\"query\":\"\xff\"}", "d.jsonl:3: byte 11 of the line is no UTF-8"},
		{"half a surrogate pair", "cft", `{"query":"\ud83dx","solution":"s"}`, `d.jsonl:3: format cft: query: has a \u escape of half a surrogate pair; the row has {query: text of 7 bytes, solution: text of 1 bytes}`},
		{"a name twice", "cft", `{"query":"a","query":"b"}`, `d.jsonl:3: field "query" is there twice`},
		{"missing fields", "cft", `{"question":"a","answer":7}`, "d.jsonl:3: format cft: query is missing; response, critique, solution, label and gold are all missing; the row has {answer: 7, question: text of 1 bytes}"},
		{"empty object", "cft", `{}`, "d.jsonl:3: format cft: query is missing; response, critique, solution, label and gold are all missing; the row has {}"},
		{"mistyped field", "cft", `{"query":["a"],"solution":"s"}`, "d.jsonl:3: format cft: query: must be text, is a list of 1; the row has {query: a list of 1, solution: text of 1 bytes}"},
		{"blank query", "cft", `{"query":" ","solution":"s"}`, "d.jsonl:3: format cft: query is empty; the row has {query: text of 1 bytes, solution: text of 1 bytes}"},
		{"label of another scheme", "cft", `{"query":"q","critique":"c","label":"correct"}`, `d.jsonl:3: format cft: label must be right or wrong, is "correct"; the row has {critique: text of 1 bytes, label: text of 7 bytes, query: text of 1 bytes}`},
		{"weight 0", "cft", `{"query":"q","solution":"c","weight":0}`, "d.jsonl:3: format cft: weight must be a number above 0, is 0; the row has {query: text of 1 bytes, solution: text of 1 bytes, weight: 0}"},
		{"alpaca without output", "alpaca", `{"instruction":"q"}`, "d.jsonl:3: format alpaca: output is missing; the row has {instruction: text of 1 bytes}"},
		{"webinstruct of another task", "webinstruct-cft", `{"instruction":"Solve","input":"Question:\nq\n\nSolution:\ny","output":"c"}`, `d.jsonl:3: format webinstruct-cft: instruction must start with "Please critique", is "Solve"; the row has {input: text of 28 bytes, instruction: text of 5 bytes, output: text of 1 bytes}`},
		{"webinstruct without a solution", "webinstruct-cft", `{"instruction":"Please critique","input":"Question:\nq","output":"c"}`, `d.jsonl:3: format webinstruct-cft: input must be "Question:\n", a question, "\nSolution:\n" and a solution, is "Question:\nq"; the row has {input: text of 12 bytes, instruction: text of 15 bytes, output: text of 1 bytes}`},
		{"unknown role", "messages", `{"messages":[{"role":"bot","content":"x"}]}`, `d.jsonl:3: format messages: messages[0]: role must be one of system, user, assistant, is "bot"; the row has {messages: a list of 1}`},
		{"tool calls would be lost", "messages", `{"messages":[{"role":"assistant","content":"x","tool_calls":[{}]}]}`, "d.jsonl:3: format messages: messages[0]: tool_calls is not supported; the row has {messages: a list of 1}"},
		{"content in parts", "messages", `{"messages":[{"role":"user","content":[{"type":"text"}]}]}`, "d.jsonl:3: format messages: messages[0]: content: must be text, is a list of 1; the row has {messages: a list of 1}"},
		{"no content", "messages", `{"messages":[{"role":"user","content":null}]}`, "d.jsonl:3: format messages: messages[0]: content is missing; the row has {messages: a list of 1}"},
		{"empty answer", "messages", `{"messages":[{"role":"assistant","content":""}]}`, "d.jsonl:3: format messages: messages[0]: the assistant's content is empty; the row has {messages: a list of 1}"},
		{"a turn of the user's cannot be learned", "messages", `{"messages":[{"role":"user","content":"x","train":true}]}`, "d.jsonl:3: format messages: messages[0]: train: a turn of the user cannot be learned; the row has {messages: a list of 1}"},
		{"a share of learning", "messages", `{"messages":[{"role":"assistant","content":"x","weight":0.5}]}`, "d.jsonl:3: format messages: messages[0]: weight must be 0 or 1, is 0.5; the row has {messages: a list of 1}"},
		{"learned and not", "messages", `{"messages":[{"role":"assistant","content":"x","weight":1,"train":false}]}`, "d.jsonl:3: format messages: messages[0]: train and weight contradict each other; the row has {messages: a list of 1}"},
		{"a loss of a turn's own", "sharegpt", `{"conversations":[{"from":"human","value":"x","weight":1},{"from":"gpt","value":"a","loss":false}]}`, "d.jsonl:3: format sharegpt: conversations[0]: weight: a turn of the user cannot be learned; conversations[1]: loss is not supported; train (true, false) and weight (0, 1) are; the row has {conversations: a list of 2}"},
		{"texts that are none", "cft", `{"query":"q","response":1,"critique":true}`, "d.jsonl:3: format cft: response: must be text, is 1; critique: must be text, is true; the row has {critique: true, query: text of 1 bytes, response: 1}"},
		{"a template's settings that would be lost", "messages", `{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a"}],"chat_template_kwargs":{"enable_thinking":false}}`, "d.jsonl:3: format messages: chat_template_kwargs would be lost; to leave it out, say fields: {chat_template_kwargs: \"\"}; the row has {chat_template_kwargs: an object, messages: a list of 2}"},
		{"a system prompt that would be lost", "alpaca", `{"instruction":"q","output":"a","system":"Be brief","history":[]}`, "d.jsonl:3: format alpaca: system would be lost; to leave it out, say fields: {system: \"\"}; the row has {history: an empty list, instruction: text of 1 bytes, output: text of 1 bytes, system: text of 8 bytes}"},
		{"turns before that would be lost", "alpaca", `{"instruction":"q","output":"a","system":" ","history":[["x","y"]]}`, "d.jsonl:3: format alpaca: history would be lost; to leave it out, say fields: {history: \"\"}; the row has {history: a list of 1, instruction: text of 1 bytes, output: text of 1 bytes, system: text of 1 bytes}"},
		{"tools that would be lost", "messages", `{"messages":[{"role":"user","content":"u"},{"role":"assistant","content":"a"}],"tools":"[{}]"}`, "d.jsonl:3: format messages: tools would be lost; to leave it out, say fields: {tools: \"\"}; the row has {messages: a list of 2, tools: text of 4 bytes}"},
		{"rows packed by others", "tokenized", `{"input_ids":[1,2],"labels":[1,2],"position_ids":[0,0]}`, "d.jsonl:3: format tokenized: position_ids would be lost; to leave it out, say fields: {position_ids: \"\"}; the row has {input_ids: a list of 2, labels: a list of 2, position_ids: a list of 2}"},
		{"two systems", "sharegpt", `{"conversations":[{"from":"system","value":"x"},{"from":"gpt","value":"a"}],"system":"y"}`, "d.jsonl:3: format sharegpt: system is there twice: as a field and as the first turn; the row has {conversations: a list of 2, system: text of 1 bytes}"},
		{"unknown speaker", "sharegpt", `{"conversations":[{"from":"tool","value":"x"},{"from":"human"}]}`, "d.jsonl:3: format sharegpt: conversations[0]: from must be one of assistant, chatgpt, gpt, human, model, system, user, is \"tool\"; conversations[1]: value is missing; the row has {conversations: a list of 2}"},
		{"labels of another length", "tokenized", `{"input_ids":[1,2],"labels":[1]}`, "d.jsonl:3: format tokenized: input_ids has 2 tokens but labels has 1; the row has {input_ids: a list of 2, labels: a list of 1}"},
		{"null token", "tokenized", `{"input_ids":[null],"labels":[1]}`, "d.jsonl:3: format tokenized: input_ids must be a list of token numbers, is a list of 1; the row has {input_ids: a list of 1, labels: a list of 1}"},
		{"fractional token", "tokenized", `{"input_ids":[1.5],"labels":[1]}`, "d.jsonl:3: format tokenized: input_ids must be a list of token numbers, is a list of 1; the row has {input_ids: a list of 1, labels: a list of 1}"},
		{"ignored input", "tokenized", `{"input_ids":[-100],"labels":[1]}`, "d.jsonl:3: format tokenized: input_ids[0] is -100; the row has {input_ids: a list of 1, labels: a list of 1}"},
		{"negative label", "tokenized", `{"input_ids":[1],"labels":[-1]}`, "d.jsonl:3: format tokenized: labels[0] is -1; the row has {input_ids: a list of 1, labels: a list of 1}"},
		{"no tokens", "tokenized", `{"input_ids":[],"labels":[]}`, "d.jsonl:3: format tokenized: input_ids is empty; the row has {input_ids: an empty list, labels: an empty list}"},
		{"padding", "tokenized", `{"input_ids":[1,0],"labels":[1,-100],"attention_mask":[1,0]}`, "d.jsonl:3: format tokenized: attention_mask[1] is 0: rows must have no padding; the row has {attention_mask: a list of 2, input_ids: a list of 2, labels: a list of 2}"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			write(t, "d.jsonl", "\n\n"+tt.line+"\n")
			s := open(t, from("d.jsonl", tt.format))
			_, err := s.Record(s.Len() - 1)
			assert.EqualError(t, err, tt.want)
			var fault *Error
			require.ErrorAs(t, err, &fault)
			assert.Equal(t, "d.jsonl", fault.File)
			assert.Equal(t, 2+s.Len(), fault.Line)
			assert.ErrorAs(t, s.Check(), &fault)
		})
	}
}

func TestCheckCountsTheRest(t *testing.T) {
	write(t, "d.jsonl", strings.Repeat("{}\n", 25)+`{"query":"q","solution":"s"}`)
	err := open(t, from("d.jsonl", "cft")).Check()
	lines := strings.Split(err.Error(), "\n")
	require.Len(t, lines, maxCheckErrors+1)
	assert.True(t, strings.HasPrefix(lines[0], "d.jsonl:1: "), lines[0])
	assert.Equal(t, "and 5 more of 26 records", lines[maxCheckErrors])
}

func TestOrderIsAPermutation(t *testing.T) {
	for n := range 200 {
		for epoch := range 3 {
			seen := make([]bool, n)
			at := Order(7, epoch, n, true)
			for i := range n {
				require.False(t, seen[at(i)], "n=%d: %d comes twice", n, at(i))
				seen[at(i)] = true
			}
		}
	}
}

func TestOrderDependsOnSeedAndEpoch(t *testing.T) {
	take := func(seed uint64, epoch, n int, shuffle bool) []int {
		at := Order(seed, epoch, n, shuffle)
		list := make([]int, n)
		for i := range list {
			list[i] = at(i)
		}
		return list
	}
	const n = 1000
	straight := take(1, 0, n, false)
	assert.True(t, slices.IsSorted(straight), "without shuffle the files' order holds")
	assert.Equal(t, take(1, 0, n, true), take(1, 0, n, true))
	orders := [][]int{straight, take(1, 0, n, true), take(1, 1, n, true), take(2, 0, n, true), take(0, 1, n, true), take(0, 0, n, true)}
	for i, a := range orders {
		for j, b := range orders[:i] {
			same := 0
			for k := range a {
				if a[k] == b[k] {
					same++
				}
			}
			// Two random orders agree in one place on average; 12 or more has probability below 1e-9.
			assert.Less(t, same, 12, "orders %d and %d", j, i)
		}
	}
	// The order is part of what a checkpoint means: a change of it breaks resume.
	assert.Equal(t, []int{2, 7, 3, 6, 4, 1, 9, 0, 5, 8}, take(42, 0, 10, true))
}

// Every record must come first about equally often, or some are favoured in short runs.
func TestOrderIsUniform(t *testing.T) {
	const n, seeds = 10, 20000
	var counts [n]int
	for seed := range uint64(seeds) {
		counts[Order(seed, 0, n, true)(0)]++
	}
	chi := 0.0
	for _, c := range counts {
		d := float64(c) - seeds/n
		chi += d * d / (seeds / n)
	}
	// Chi-square with 9 degrees of freedom: 33.7 has probability 1e-4.
	assert.Less(t, chi, 33.7)
}

func TestRealFiles(t *testing.T) {
	folder := filepath.Join("..", "..", "..", "shared", "data", "derived")
	if _, err := os.Stat(folder); err != nil {
		t.Skipf("no data sets at %s", folder)
	}
	s := open(t, from(filepath.Join(folder, "mwp_cft_train_2000.jsonl"), "cft"), from(filepath.Join(folder, "cft_ci_64.jsonl"), "cft"))
	assert.Equal(t, 2064, s.Len())
	assert.NoError(t, s.Check())
}

func FuzzRow(f *testing.F) {
	for _, line := range []string{
		`{"query":"q","response":"r","critique":"c","label":"right"}`,
		`{"instruction":"Please critique","input":"Question:\nq\n\nSolution:\ny","output":"Critique:\nc"}`,
		`{"messages":[{"role":"user","content":"\ud83d"}]}`,
		`{"input_ids":[1,2],"labels":[-100,2],"attention_mask":[1,1]}`,
		`{"prompt":"\\\ud83d\ude00","completion":" ","weight":1e99,"id":-1}`,
		`{"query": "q" "x":1}`, "{\"query\":\"\xff\"}", `{"a":{"a":[[[`, "",
	} {
		f.Add([]byte(line))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		for name, read := range formats {
			var r Record
			var err error
			testlimit.Bound(t, func() {
				var fields *row
				if fields, err = parseRow(line); err == nil {
					r, err = read(fields)
				}
			})
			if err != nil {
				continue
			}
			if len(r.InputIDs) != len(r.Labels) || !(r.Weight > 0) {
				t.Fatalf("%s accepted %q as %+v", name, line, r)
			}
		}
	})
}

func ExampleOrder() {
	at := Order(42, 0, 5, true)
	for i := range 5 {
		fmt.Print(at(i), " ")
	}
	fmt.Println(Cursor{Epoch: 0, Index: 5})
	// Output: 2 0 3 1 4 {0 5}
}

func TestRestIsWhatTheRecordDoesNotHave(t *testing.T) {
	for _, tt := range []struct {
		format string
		fields config.Fields
		row    string
		want   []string
	}{
		{"cft", nil, `{"id":1,"query":"q","response":"r","output":"mine","topic":"t"}`, []string{"output", "topic"}},
		{"cft", config.Fields{"query": "prompt", "gold": "meta.answer"}, `{"prompt":"q","output":"mine","meta":{"answer":"1"}}`, []string{"meta", "output"}},
		{"cft", config.Fields{"query": "{body} {question}", "gold": "a"}, `{"body":"b","question":"q","a":"1","x":2}`, []string{"x"}},
		{"cft", config.Fields{"solution": ""}, `{"query":"q","response":"r","solution":5}`, []string{"solution"}},
		{"alpaca", nil, `{"instruction":"q","input":"","output":"a","source":"s"}`, []string{"source"}},
		{"query", nil, `{"query":"q","solution":"a"}`, []string{"solution"}},
	} {
		write(t, "rest.jsonl", tt.row+"\n")
		set := open(t, config.Source{Path: "rest.jsonl", Format: tt.format, Weight: 1, Fields: tt.fields})
		_, err := set.Record(0)
		require.NoError(t, err)
		rest, err := set.Rest(0)
		require.NoError(t, err)
		assert.Equal(t, tt.want, slices.Sorted(maps.Keys(rest)), tt.row)
	}
}
