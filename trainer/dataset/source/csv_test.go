package source

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestCSV(t *testing.T) {
	for name, tt := range map[string]struct {
		file, content string
		want          []row
	}{
		"numbers stay text":      {"data.csv", "a,b\n007,7.0\n,true\n", []row{{`{"a":"007","b":"7.0"}`, 2}, {`{"a":"","b":"true"}`, 3}}},
		"quotes and line breaks": {"data.csv", "a,b\r\n\"x, \"\"y\"\"\",\"1\r\n2\"\r\nz,w\r\n", []row{{`{"a":"x, \"y\"","b":"1\n2"}`, 2}, {`{"a":"z","b":"w"}`, 4}}},
		"header alone":           {"data.csv", "a,b\n", nil},
		"blank lines":            {"data.csv", "a,b\n\n1,2\n\n\n3,4\n\n", []row{{`{"a":"1","b":"2"}`, 3}, {`{"a":"3","b":"4"}`, 6}}},
		"byte order mark":        {"data.csv", "\ufeffa\n1\n", []row{{`{"a":"1"}`, 2}}},
		"one column":             {"data.csv", "a\n1\n\"2\n3\"\n\"\"\n4\n\n", []row{{`{"a":"1"}`, 2}, {`{"a":"2\n3"}`, 3}, {`{"a":""}`, 5}, {`{"a":"4"}`, 6}}},
		"space is text":          {"data.csv", "a,b\n 1 ,2\n", []row{{`{"a":" 1 ","b":"2"}`, 2}}},
		"tabs":                   {"data.TSV", "a\tb\n1,5\t2\n", []row{{`{"a":"1,5","b":"2"}`, 2}}},
	} {
		t.Run(name, func(t *testing.T) {
			f := write(t, tt.file, tt.content)
			got, err := rows(t, f)
			require.NoError(t, err)
			assert.Equal(t, tt.want, got)
			assert.False(t, f.Plain())
		})
	}
}

func TestCSVRefuses(t *testing.T) {
	for name, tt := range map[string]struct{ content, want string }{
		"short row":            {"a,b\n1,2\n3\n", ":3: the row has 1 fields, the header 2"},
		"long row":             {"a,b\n1,2,3\n", ":2: the row has 3 fields, the header 2"},
		"column twice":         {"a,b,a\n", `:1: header: column "a" is there twice`},
		"column without name":  {"a,,b\n", ":1: header: column 2 has no name"},
		"quote not closed":     {"a,b\n1,\"2\n3,4\n", ":2: line 3, byte 5: extraneous or missing"},
		"quote within":         {"a,b\n1,2\"3\n", ":2: byte 4: bare"},
		"not UTF-8":            {"a,b\n1,caf\xe9\n", ":2: field 2: the text is no UTF-8: byte 4 is 0xe9"},
		"header not UTF-8":     {"a,b\xe9\n", ":1: header: column 2: the text is no UTF-8"},
		"blank in one column":  {"a\n1\n\n2\n", ":3: the line is empty"},
		"one column at header": {"a\n\n2\n", ":2: the line is empty"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rows(t, write(t, "data.csv", tt.content))
			assert.ErrorContains(t, err, "data.csv"+tt.want)
		})
	}
}

func TestCSVRecordLongerThanTheBound(t *testing.T) {
	got, err := rows(t, write(t, "data.csv", "a,b\n1,2\n3,\""+strings.Repeat("x\n", MaxRowBytes/2+windowBytes)))
	assert.Len(t, got, 1)
	assert.ErrorContains(t, err, "a record is longer than 64 MiB; is a quote not closed?")
}

func FuzzAppendString(f *testing.F) {
	for _, s := range []string{"", "a", "\"\\\n\r\t\x00\x1f", "é漢😀\u2028", "</script>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		s = strings.ToValidUTF8(s, "?")
		var back string
		require.NoError(t, json.Unmarshal(appendString(nil, s), &back))
		assert.Equal(t, s, back)
	})
}
