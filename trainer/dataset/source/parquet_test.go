package source

import (
	"bytes"
	"encoding/json"
	"fmt"
	"math"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/deprecated"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type inner struct {
	Name string   `parquet:"name"`
	Tags []string `parquet:"tags,list"`
}

type everything struct {
	B       bool              `parquet:"b"`
	I32     int32             `parquet:"i32"`
	I64     int64             `parquet:"i64"`
	U32     uint32            `parquet:"u32"`
	U64     uint64            `parquet:"u64"`
	F32     float32           `parquet:"f32"`
	F64     float64           `parquet:"f64"`
	S       string            `parquet:"s,dict"`
	Raw     []byte            `parquet:"raw"`
	J       string            `parquet:"j,json"`
	E       string            `parquet:"e,enum"`
	U       [16]byte          `parquet:"u,uuid"`
	D32     int32             `parquet:"d32,decimal(2:9)"`
	D64     int64             `parquet:"d64,decimal(3:18)"`
	Date    int32             `parquet:"date,date"`
	Time    int64             `parquet:"time,time(microsecond)"`
	Millis  int64             `parquet:"millis,timestamp(millisecond)"`
	Micros  int64             `parquet:"micros,timestamp(microsecond:local)"`
	Old     deprecated.Int96  `parquet:"old"`
	Maybe   *string           `parquet:"maybe,optional"`
	Inner   inner             `parquet:"inner"`
	Nothing *inner            `parquet:"nothing,optional"`
	Turns   []inner           `parquet:"turns,list"`
	Repeat  []int64           `parquet:"repeat"`
	Map     map[string]int64  `parquet:"map"`
	Numbers map[int32]float64 `parquet:"numbers"`
}

// parquetBytes packs rows as Parquet.
func parquetBytes[T any](t testing.TB, rows []T, options ...parquet.WriterOption) []byte {
	t.Helper()
	var b bytes.Buffer
	require.NoError(t, parquet.Write(&b, rows, options...))
	return b.Bytes()
}

func TestParquetTypes(t *testing.T) {
	maybe := "yes \"and\" no\n"
	moment := time.Date(2024, 2, 29, 23, 59, 58, 987654000, time.UTC)
	content := parquetBytes(t, []everything{{
		B: true, I32: math.MinInt32, I64: math.MaxInt64, U32: math.MaxUint32, U64: math.MaxUint64,
		F32: 0.1, F64: -1e300, S: "é", Raw: []byte("raw"), J: `{"x": [1]}`, E: "right",
		U: [16]byte{0x12, 0x34, 15: 0xff}, D32: -5, D64: 1234567, Date: 19782, Time: 3_600_000_001,
		Millis: moment.UnixMilli(), Micros: moment.UnixMicro(), Old: deprecated.Int96{1, 0, 2440589},
		Maybe: &maybe, Inner: inner{"n", []string{"a", "b"}}, Nothing: &inner{},
		Turns: []inner{{"x", nil}, {"y", []string{"c"}}}, Repeat: []int64{1, 2}, Map: map[string]int64{"k": 1},
		Numbers: map[int32]float64{-7: 0.5},
	}, {J: "null", Date: -1, Millis: -1, Micros: -1, Old: deprecated.Int96{0, 0, 2440588}}})
	got, err := rows(t, write(t, "data", string(content)))
	require.NoError(t, err)
	require.Len(t, got, 2)
	assert.JSONEq(t, `{"b": true, "i32": -2147483648, "i64": 9223372036854775807, "u32": 4294967295, "u64": 18446744073709551615,
		"f32": 0.1, "f64": -1e300, "s": "é", "raw": "raw", "j": {"x": [1]}, "e": "right",
		"u": "12340000-0000-0000-0000-0000000000ff", "d32": -0.05, "d64": 1234.567, "date": "2024-02-29", "time": "01:00:00.000001",
		"millis": "2024-02-29T23:59:58.987Z", "micros": "2024-02-29T23:59:58.987654", "old": "1970-01-02T00:00:00.000000001",
		"maybe": "yes \"and\" no\n", "inner": {"name": "n", "tags": ["a", "b"]}, "nothing": {"name": "", "tags": []},
		"turns": [{"name": "x", "tags": []}, {"name": "y", "tags": ["c"]}], "repeat": [1, 2], "map": {"k": 1},
		"numbers": {"-7": 0.5}}`, got[0].text)
	assert.Contains(t, got[0].text, `"i64":9223372036854775807,"u32":4294967295,"u64":18446744073709551615,"f32":0.1`, "digits and order are kept")
	assert.JSONEq(t, `{"b": false, "i32": 0, "i64": 0, "u32": 0, "u64": 0, "f32": 0, "f64": 0, "s": "", "raw": "", "j": null, "e": "",
		"u": "00000000-0000-0000-0000-000000000000", "d32": 0.00, "d64": 0.000, "date": "1969-12-31", "time": "00:00:00",
		"millis": "1969-12-31T23:59:59.999Z", "micros": "1969-12-31T23:59:59.999999", "old": "1970-01-01T00:00:00",
		"maybe": null, "inner": {"name": "", "tags": []}, "nothing": null, "turns": [], "repeat": [], "map": {}, "numbers": {}}`, got[1].text)
	assert.Equal(t, 2, got[1].line)
}

// Null and empty lists, lists of lists, nulls in lists: as the levels have it, over pages and row groups of all sizes.
func TestParquetNesting(t *testing.T) {
	schema := parquet.NewSchema("rows", parquet.Group{
		"a": parquet.Optional(parquet.List(parquet.Optional(parquet.List(parquet.Optional(parquet.Int(64)))))),
		"b": parquet.Optional(parquet.Map(parquet.String(), parquet.Optional(parquet.List(parquet.String())))),
		"c": parquet.Repeated(parquet.Group{"d": parquet.Repeated(parquet.String())}),
	})
	patterns := []string{
		`{"a":null,"b":null,"c":[]}`,
		`{"a":[],"b":{},"c":[{"d":[]}]}`,
		`{"a":[null],"b":{"x":null},"c":[{"d":["1"]},{"d":[]},{"d":["2","3"]}]}`,
		`{"a":[[]],"b":{"x":[],"y":null},"c":[{"d":[]},{"d":[]}]}`,
		`{"a":[[null],null,[],[1,null,3]],"b":{"x":["1","2"],"y":[],"z":["3"]},"c":[{"d":["4"]}]}`,
	}
	for _, perGroup := range []int{1, 3, 1000} {
		for _, page := range []int{1, 64, 1 << 20} {
			for version := 1; version <= 2; version++ {
				t.Run(fmt.Sprintf("%d rows a group, pages of %d, version %d", perGroup, page, version), func(t *testing.T) {
					var b bytes.Buffer
					w := parquet.NewGenericWriter[any](&b, schema, parquet.MaxRowsPerRowGroup(int64(perGroup)), parquet.PageBufferSize(page), parquet.DataPageVersion(version))
					var want []row
					for i := range 400 {
						text := patterns[i*i%len(patterns)]
						want = append(want, row{text, i + 1})
						_, err := w.WriteRows([]parquet.Row{nestedRow(t, text)})
						require.NoError(t, err)
					}
					require.NoError(t, w.Close())
					got, err := rows(t, write(t, "data.parquet", b.String()))
					require.NoError(t, err)
					assert.Equal(t, want, got)
				})
			}
		}
	}
}

// nestedRow shreds a row of TestParquetNesting by the definition of the levels.
func nestedRow(t *testing.T, text string) (r parquet.Row) {
	var v struct {
		A *[]*[]*int64
		B *json.RawMessage
		C []struct{ D []string }
	}
	require.NoError(t, json.Unmarshal([]byte(text), &v))
	add := func(column, repetition, definition int, value parquet.Value) {
		r = append(r, value.Level(repetition, definition, column))
	}
	null := parquet.NullValue()
	if v.A == nil {
		add(0, 0, 0, null)
	} else if len(*v.A) == 0 {
		add(0, 0, 1, null)
	} else {
		for i, l := range *v.A {
			outer := min(i, 1)
			if l == nil {
				add(0, outer, 2, null)
			} else if len(*l) == 0 {
				add(0, outer, 3, null)
			} else {
				for j, n := range *l {
					repetition := outer
					if j > 0 {
						repetition = 2
					}
					if n == nil {
						add(0, repetition, 4, null)
					} else {
						add(0, repetition, 5, parquet.Int64Value(*n))
					}
				}
			}
		}
	}
	r = append(r, nestedMap(t, v.B)...)
	if len(v.C) == 0 {
		add(3, 0, 0, null)
	}
	for i, c := range v.C {
		if len(c.D) == 0 {
			add(3, min(i, 1), 1, null)
		}
		for j, s := range c.D {
			repetition := min(i, 1)
			if j > 0 {
				repetition = 2
			}
			add(3, repetition, 2, parquet.ByteArrayValue([]byte(s)))
		}
	}
	return r
}

// nestedMap shreds the map of a row, whose keys are sorted: columns 1 (keys) and 2 (values).
func nestedMap(t *testing.T, text *json.RawMessage) parquet.Row {
	if text == nil {
		return parquet.Row{parquet.NullValue().Level(0, 0, 1), parquet.NullValue().Level(0, 0, 2)}
	}
	var m map[string]*[]string
	require.NoError(t, json.Unmarshal(*text, &m))
	if len(m) == 0 {
		return parquet.Row{parquet.NullValue().Level(0, 1, 1), parquet.NullValue().Level(0, 1, 2)}
	}
	var keys, values parquet.Row
	for _, k := range []string{"x", "y", "z"} {
		list, there := m[k]
		if !there {
			continue
		}
		repetition := min(len(keys), 1)
		keys = append(keys, parquet.ByteArrayValue([]byte(k)).Level(repetition, 2, 1))
		if list == nil {
			values = append(values, parquet.NullValue().Level(repetition, 2, 2))
		} else if len(*list) == 0 {
			values = append(values, parquet.NullValue().Level(repetition, 3, 2))
		} else {
			for j, s := range *list {
				level := repetition
				if j > 0 {
					level = 2
				}
				values = append(values, parquet.ByteArrayValue([]byte(s)).Level(level, 4, 2))
			}
		}
	}
	return append(keys, values...)
}

func TestParquetCodecs(t *testing.T) {
	for _, option := range []parquet.WriterOption{
		parquet.Compression(&parquet.Snappy), parquet.Compression(&parquet.Gzip), parquet.Compression(&parquet.Zstd),
		parquet.Compression(&parquet.Brotli), parquet.Compression(&parquet.Uncompressed),
	} {
		list := make([]inner, 5000)
		for i := range list {
			list[i] = inner{Name: fmt.Sprintf("%050d", i), Tags: []string{"a", fmt.Sprintf("%050d", i%7)}}
		}
		got, err := rows(t, write(t, "data.parquet", string(parquetBytes(t, list, option, parquet.MaxRowsPerRowGroup(1700)))))
		require.NoError(t, err)
		require.Len(t, got, len(list))
		for i, r := range got {
			require.Equal(t, row{fmt.Sprintf(`{"name":"%050d","tags":["a","%050d"]}`, i, i%7), i + 1}, r)
		}
	}
}

// Pictures, embeddings and scores lie beside the texts that are trained on; what JSON has no word for is shown as what it is.
func TestParquetShowsWhatJSONHasNoWordFor(t *testing.T) {
	type odd struct {
		Bytes  []byte             `parquet:"bytes"`
		Fixed  [2]byte            `parquet:"fixed"`
		Double float64            `parquet:"double"`
		Single float32            `parquet:"single"`
		Named  map[string]float64 `parquet:"named"`
	}
	got, err := rows(t, write(t, "data.parquet", string(parquetBytes(t, []odd{
		{[]byte("a"), [2]byte{'b', 'c'}, 1.5, 2.5, map[string]float64{"k": 1}},
		{[]byte("\xff\x00"), [2]byte{0xfe, 1}, math.NaN(), float32(math.Inf(-1)), map[string]float64{"k": math.Inf(1)}},
	}))))
	require.NoError(t, err)
	require.Len(t, got, 2)
	assert.JSONEq(t, `{"bytes":"a","fixed":"bc","double":1.5,"single":2.5,"named":{"k":1}}`, got[0].text)
	assert.JSONEq(t, `{"bytes":{"base64":"/wA="},"fixed":{"base64":"/gE="},"double":{"float":"NaN"},"single":{"float":"-Inf"},`+
		`"named":{"k":{"float":"+Inf"}}}`, got[1].text)
}

func TestParquetRefuses(t *testing.T) {
	type one[T any] struct {
		V T `parquet:"v"`
	}
	leafOf := func(node parquet.Node, value parquet.Value) []byte {
		var b bytes.Buffer
		w := parquet.NewGenericWriter[any](&b, parquet.NewSchema("rows", parquet.Group{"v": node}))
		_, err := w.WriteRows([]parquet.Row{{value.Level(0, 0, 0)}})
		require.NoError(t, err)
		require.NoError(t, w.Close())
		return b.Bytes()
	}
	good := parquetBytes(t, []one[string]{{"a"}, {"b"}})
	for name, tt := range map[string]struct {
		content []byte
		want    string
	}{
		"not UTF-8":      {parquetBytes(t, []one[string]{{"a"}, {"b"}, {"\xff"}}), `:3: column "v": the text is no UTF-8: byte 1 is 0xff`},
		"not JSON":       {leafOf(parquet.JSON(), parquet.ByteArrayValue([]byte("{"))), `:1: column "v": the value should be JSON, and is not: "{"`},
		"year":           {leafOf(parquet.Timestamp(parquet.Millisecond), parquet.Int64Value(math.MaxInt64)), `:1: column "v": the year is not within 0 to 9999`},
		"time of day":    {leafOf(parquet.Time(parquet.Millisecond), parquet.Int32Value(24*60*60*1000)), `:1: column "v": the time of day 86400000 is not within 0 to 86399999`},
		"BSON":           {leafOf(parquet.BSON(), parquet.ByteArrayValue(nil)), `: parquet: column "v": type BSON of BYTE_ARRAY is not supported`},
		"interval":       {leafOf(parquet.IntervalNode(), parquet.FixedLenByteArrayValue(make([]byte, 12))), `: parquet: column "v": type`},
		"LZ4":            {parquetBytes(t, []one[string]{{"a"}}, parquet.Compression(&parquet.Lz4Raw)), `: parquet: column "v": compression by LZ4_RAW is not supported`},
		"run lengths":    {leafOf(parquet.Encoded(parquet.Leaf(parquet.BooleanType), &parquet.RLE), parquet.BooleanValue(true)), `: parquet: column "v": booleans as run lengths are not supported`},
		"footer cut off": {good[:len(good)-1], ": parquet: the file is cut off: it does not end with PAR1"},
		"nothing after":  {good[:4], ": parquet: "},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := rows(t, write(t, "data.parquet", string(tt.content)))
			assert.ErrorContains(t, err, "data.parquet"+tt.want)
		})
	}
	_, err := rows(t, write(t, "data.parquet.gz", gzipped(t, string(good))))
	assert.ErrorContains(t, err, "is Parquet within gzip")
	pipe := pipeOf(t, string(good))
	_, err = rows(t, pipe)
	assert.ErrorContains(t, err, "must be read at any place, but comes through a pipe; save it to a file first")
}

// Whatever byte of a file is changed, the reader returns rows or an error; it does not crash or hang.
func TestDamagedParquet(t *testing.T) {
	list := make([]inner, 50)
	for i := range list {
		list[i] = inner{strings.Repeat("n", i), []string{"a", "b"}}
	}
	good := parquetBytes(t, list, parquet.Compression(&parquet.Snappy))
	want, err := rows(t, write(t, "data.parquet", string(good)))
	require.NoError(t, err)
	f := write(t, "data.parquet", "")
	refused := 0
	for i := range good {
		bad := bytes.Clone(good)
		bad[i] ^= []byte{0x01, 0x80, 0xff}[i%3]
		require.NoError(t, os.WriteFile(f.Path(), bad, 0o600))
		got, err := rows(t, f)
		require.LessOrEqual(t, len(got), len(want))
		if err != nil {
			refused++
		} else {
			require.Len(t, got, len(want), "byte %d changed lost rows", i)
		}
	}
	assert.Greater(t, refused, len(good)/2, "the checksums of pages find most changes")
}
