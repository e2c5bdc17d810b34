package source

import (
	"bytes"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestJSONLines(t *testing.T) {
	big := `{"a": "` + strings.Repeat("x", 3*windowBytes) + `"}`
	for name, tt := range map[string]struct {
		content string
		want    []row
	}{
		"one":                     {`{"a": 1}`, []row{{`{"a": 1}`, 1}}},
		"blank lines count":       {"\n{\"a\": 1}\n \t\n{\"a\": 2}\n\n", []row{{`{"a": 1}`, 2}, {`{"a": 2}`, 4}}},
		"space and CR around":     {" {\"a\": 1} \r\n{\"a\": 2}\r\n", []row{{`{"a": 1}`, 1}, {`{"a": 2}`, 2}}},
		"byte order mark":         {"\ufeff{\"a\": 1}\n{\"a\": 2}", []row{{`{"a": 1}`, 1}, {`{"a": 2}`, 2}}},
		"line longer than window": {big + "\n{}\n" + big, []row{{big, 1}, {`{}`, 2}, {big, 3}}},
		"list of objects within":  {`{"messages": [{"role": "user"}]}`, []row{{`{"messages": [{"role": "user"}]}`, 1}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := write(t, "data.jsonl", tt.content)
			got, err := rows(t, f)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
			assert.True(t, f.Plain())
			assert.Equal(t, int64(len(tt.content)), f.Bytes())

			content := []byte(tt.content)
			for r, err := range f.Rows(t.Context()) {
				require.NoError(t, err)
				assert.True(t, bytes.HasPrefix(content[r.Offset:], r.Text), "text of line %d is not at %d", r.Line, r.Offset)
			}
		})
	}
}

func TestJSONLinesRefuse(t *testing.T) {
	for name, tt := range map[string]struct{ content, want string }{
		"array in a line":  {"{}\n[1]\n", ":2: the line is an array"},
		"text":             {"{}\n\nhello\n", `:3: the line is no JSON object: it starts with "hello"`},
		"cut off":          {"{}\n{\"a\": \"b", ":2: the line is cut off"},
		"pretty-printed":   {"{\n \"a\": 1\n}\n", ":1: the line is cut off or its object goes on in the next one"},
		"not UTF-8":        {"{}\n{\"a\": \"caf\xe9\"}\n", ":2: the text is no UTF-8: byte 11 is 0xe9"},
		"empty":            {"", ": is empty"},
		"white space only": {" \n\n", ": holds white space only"},
		"UTF-16":           {"\xff\xfe{\x00}\x00", ": looks like UTF-16"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rows(t, write(t, "data.jsonl", tt.content))
			assert.ErrorContains(t, err, "data.jsonl"+tt.want)
		})
	}
}

func TestLineLongerThanTheBound(t *testing.T) {
	f := write(t, "data.jsonl", "{}\n")
	out, err := os.OpenFile(f.Path(), os.O_APPEND|os.O_WRONLY, 0)
	require.NoError(t, err)
	_, err = out.WriteString(`{"a": "`)
	require.NoError(t, err)
	part := bytes.Repeat([]byte("x"), 1<<20)
	for range MaxRowBytes/len(part) + 1 {
		_, err = out.Write(part)
		require.NoError(t, err)
	}
	require.NoError(t, out.Close())
	got, err := rows(t, f)
	assert.Equal(t, []row{{"{}", 1}}, got)
	assert.ErrorContains(t, err, "data.jsonl:2: the line is longer than 64 MiB")
}
