package source

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestJSON(t *testing.T) {
	big := `{"a": "` + strings.Repeat(`\"{[`, windowBytes) + `"}`
	for name, tt := range map[string]struct {
		content string
		want    []row
	}{
		"array":                          {`[{"a": 1}, {"a": 2}]`, []row{{`{"a": 1}`, 1}, {`{"a": 2}`, 2}}},
		"array of several lines":         {"\ufeff \n[\n {\"a\":\n  1},\n {\"a\": [2]}\n]\n", []row{{"{\"a\":\n  1}", 1}, {`{"a": [2]}`, 2}}},
		"empty array":                    {"[ ]\n", nil},
		"brackets and quotes in strings": {`[{"a\"": "}]\\"},{}]`, []row{{`{"a\"": "}]\\"}`, 1}, {`{}`, 2}}},
		"rows longer than the window":    {"[" + big + ",{}," + big + "]", []row{{big, 1}, {"{}", 2}, {big, 3}}},
		"object around the rows":         {`{"version": "]", "n": 1.5, "data": [{"a": 1}, {"a": 2}], "o": {"x": [{}]}, "e": [], "s": ["x"]}`, []row{{`{"a": 1}`, 1}, {`{"a": 2}`, 2}}},
		"lines in a .json":               {"{\"a\": [{}]}\n{\"a\": [{}]}\n", []row{{`{"a": [{}]}`, 1}, {`{"a": [{}]}`, 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := write(t, "data.json", tt.content)
			got, err := rows(t, f)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
		})
	}
}

func TestJSONRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ content, want string }{
		"array cut off after a row":    {`[{"a": 1}`, ":1: the file ends within its array: it is cut off"},
		"array cut off within a row":   {`[{"a": 1}, {"a`, ":2: the file ends within its array: it is cut off"},
		"array of arrays":              {`[{}, [1]]`, `:2: rows must be objects; this one starts with "[1]]"`},
		"array of text":                {`["a"]`, `:1: rows must be objects`},
		"comma at the end":             {`[{},]`, `:2: rows must be objects; this one starts with "]"`},
		"no comma":                     {`[{} {}]`, `:1: after the object comes "{}]"`},
		"two arrays":                   {"[{}]\n[{}]\n", `: another array follows the first`},
		"more after the array":         {"[{}] x", `: after the array comes "x"`},
		"array not UTF-8":              {"[{},{\"a\": \"\xe9\"}]", ":2: the text is no UTF-8"},
		"line break in a string":       {"[{},{\"a\": \"x\ny\"}]", ":2: a string has the control character 0x0a"},
		"pretty-printed rows":          {"{\n \"a\": 1\n}\n{\n \"a\": 2\n}\n", ": several objects, of several lines each; JSONL has one object per line"},
		"object without rows":          {"{\n \"a\": 1, \"b\": [], \"c\": \"x\"\n}\n", `holds 0 ("a" is a number, true, false or null, "b" is an empty list, "c" is text)`},
		"empty object":                 {"{\n}\n", `holds 0 ()`},
		"object with two lists":        {`{"train": [{}], "test": [{}]}`, `holds 2 ("train" is a list of objects, "test" is a list of objects)`},
		"object cut off in rows":       {"{\n\"a\": [{},{", ":2: the file ends within its array"},
		"object cut off after rows":    {"{\n\"a\": [{}],", ": the file ends within its object: it is cut off"},
		"object with a row of others":  {`{"a": [{}, 1]}`, ":2: rows must be objects"},
		"object with more after it":    {"{\n\"a\": [{}]\n}\n]", `: after the object comes "]`},
		"object with no name":          {"{\n1: [{}]}", ": the file is no JSON: in place of a name comes"},
		"object with no colon":         {"{\n\"a\" [{}]}", `: the file is no JSON: after the name "a" comes`},
		"object with no comma":         {"{\n\"a\": 1 \"b\": 2}", `: after the value of "a" comes`},
		"neither object nor array":     {`"text"`, `: starts with "\"text\"", and the name does not say what that is`},
		"web page in place of a file":  {"\n<!DOCTYPE html>", ": looks like a web page"},
		"pointer in place of a file":   {"version https://git-lfs.github.com/spec/v1\n", ": looks like a pointer of git-lfs"},
		"object of too many members":   {"{\n" + members(maxMembers+1) + "}", ": the file is one object with more than 1000 members"},
		"object cut off in its name":   {"{\n\"a", ": the file ends within its object"},
		"object cut off in its number": {"{\n\"a\": 12", ": the file ends within its object"},
		"object cut off in its list":   {"{\n\"a\": [ ", ": the file ends within its object"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rows(t, write(t, "data.json", tt.content))
			assert.ErrorContains(t, err, "data.json:")
			assert.ErrorContains(t, err, tt.want)
		})
	}
}

func members(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "\"%d\": 0,\n", i)
	}
	return b.String()
}

func TestOneObjectIsARowUnlessTheNameSaysJSON(t *testing.T) {
	const content = `{"data": [{"a": 1}]}`
	for name, want := range map[string]string{"data.jsonl": content, "data.ndjson": content, "data": content, "data.json": `{"a": 1}`, "data.JSON": `{"a": 1}`} {
		got, err := rows(t, write(t, name, content))
		require.NoError(t, err)
		assert.Equal(t, []row{{want, 1}}, got, name)
	}
}

func TestJSONRowLongerThanTheBound(t *testing.T) {
	long := `{"a": "` + strings.Repeat("x", MaxRowBytes) + `"}`
	got, err := rows(t, write(t, "data.json", "[{},"+long+"]"))
	assert.Len(t, got, 1)
	assert.ErrorContains(t, err, "data.json:2: the value is longer than 64 MiB")
	// What is no row may be of any length.
	got, err = rows(t, write(t, "data.json", `{"x": `+long+`, "data": [{}]}`))
	require.NoError(t, err)
	assert.Equal(t, []row{{"{}", 1}}, got)
}

// Wherever the reads of a stream end, the rows are the same.
func TestPartsOfAStreamDoNotMatter(t *testing.T) {
	random := rand.New(rand.NewPCG(1, 2))
	var want []row
	var lines, array strings.Builder
	for i := range 200 {
		text, err := json.Marshal(map[string]any{"a": randomText(random), "b": []any{i, map[string]any{"c": randomText(random)}}})
		require.NoError(t, err)
		want = append(want, row{string(text), i + 1})
		fmt.Fprintf(&lines, "%s\n", text)
		fmt.Fprintf(&array, "%c%s\n ", "[,"[min(i, 1)], text)
	}
	array.WriteString("]")
	for name, content := range map[string]string{"lines": lines.String(), "array": array.String(), "object": `{"x": 1, "rows": ` + array.String() + `}`} {
		for part, reader := range map[string]func(string) *window{
			"bytes":  func(s string) *window { return newWindow(t.Context(), iotest.OneByteReader(strings.NewReader(s))) },
			"halves": func(s string) *window { return newWindow(t.Context(), iotest.HalfReader(strings.NewReader(s))) },
			"ends":   func(s string) *window { return newWindow(t.Context(), iotest.DataErrReader(strings.NewReader(s))) },
		} {
			t.Run(name+" in "+part, func(t *testing.T) {
				o := &opened{in: reader(content), file: File{place: standardInput}}
				var err error
				o.container, err = detectText(o.in, "data.json")
				require.NoError(t, err)
				var got []row
				require.NoError(t, o.rows(t.Context(), func(r Row, _ error) bool {
					got = append(got, row{string(r.Text), r.Line})
					return true
				}))
				assert.Equal(t, want, got)
			})
		}
	}
}

func randomText(random *rand.Rand) string {
	alphabet := []rune("ab \"\\{}[],:\n\t漢é😀")
	text := make([]rune, random.IntN(60))
	for i := range text {
		text[i] = alphabet[random.IntN(len(alphabet))]
	}
	return string(text)
}

// What encoding/json takes for an object, the scanner finds whole.
func FuzzScanner(f *testing.F) {
	for _, s := range []string{`{}`, `{"a": "\\\"}"}`, `{"a": [1, {"b": null}]} `, `["x"]`, `{"a": "` + "\x7f" + `é"}`} {
		f.Add(s, 3)
	}
	f.Fuzz(func(t *testing.T, text string, cut int) {
		var s scanner
		cut = min(max(cut, 0), len(text))
		n, done, err := s.advance([]byte(text[:cut]))
		if err == nil && !done {
			var more int
			more, done, err = s.advance([]byte(text[cut:]))
			n += more
		}
		require.LessOrEqual(t, n, len(text))
		trimmed := strings.Trim(text, " \t\r\n")
		if json.Valid([]byte(text)) && strings.ContainsAny(trimmed[:1], `{["`) {
			require.NoError(t, err)
			require.True(t, done)
			require.Equal(t, strings.TrimRight(text, " \t\r\n"), text[:n])
		}
	})
}
