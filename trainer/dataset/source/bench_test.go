package source

import (
	"bytes"
	"fmt"
	"strings"
	"testing"

	"github.com/parquet-go/parquet-go"
	"github.com/stretchr/testify/require"
)

// benchRow is like a row of a set of critiques, in small.
type benchRow struct {
	Query    string  `parquet:"query"`
	Response string  `parquet:"response"`
	Critique string  `parquet:"critique"`
	Label    string  `parquet:"label,dict"`
	Index    int64   `parquet:"index"`
	Score    float64 `parquet:"score"`
}

func newBenchRow(i int) benchRow {
	return benchRow{
		Query:    fmt.Sprintf("What is %d plus %d?\nSay how you know.", i, i*7%1000),
		Response: fmt.Sprintf("It is \"%d\", since %d and %d make that.", i+i*7%1000, i, i*7%1000),
		Critique: "The answer adds the numbers as they are. " + strings.Repeat("It checks. ", i%5),
		Label:    []string{"right", "wrong"}[i%2],
		Index:    int64(i),
		Score:    float64(i%100) / 8,
	}
}

const benchRows = 200_000

func benchmarkRows(b *testing.B, f File, want int) {
	b.SetBytes(f.Bytes())
	b.ReportAllocs()
	n, size := 0, 0
	for b.Loop() {
		n, size = 0, 0
		for r, err := range f.Rows(b.Context()) {
			if err != nil {
				b.Fatal(err)
			}
			n++
			size += len(r.Text)
		}
	}
	require.Equal(b, want, n)
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "rows/s")
	b.ReportMetric(float64(size)*float64(b.N)/b.Elapsed().Seconds()/1e6, "textMB/s")
}

func benchLines() string {
	var lines strings.Builder
	for i := range benchRows {
		r := newBenchRow(i)
		text := []byte(`{"query":`)
		text = appendString(text, r.Query)
		text = appendString(append(text, `,"response":`...), r.Response)
		text = appendString(append(text, `,"critique":`...), r.Critique)
		fmt.Fprintf(&lines, "%s,\"label\":%q,\"index\":%d,\"score\":%v}\n", text, r.Label, r.Index, r.Score)
	}
	return lines.String()
}

func BenchmarkRows(b *testing.B) {
	lines := benchLines()
	array := "[" + strings.ReplaceAll(strings.TrimSpace(lines), "\n", ",\n") + "]"
	list := make([]benchRow, benchRows)
	table := []byte("query,response,critique,label,index,score\n")
	for i := range list {
		list[i] = newBenchRow(i)
		r := list[i]
		table = fmt.Appendf(table, "\"%s\",\"%s\",%s,%s,%d,%v\n", r.Query, strings.ReplaceAll(r.Response, `"`, `""`), r.Critique, r.Label, r.Index, r.Score)
	}
	var packed bytes.Buffer
	require.NoError(b, parquet.Write(&packed, list, parquet.Compression(&parquet.Snappy), parquet.MaxRowsPerRowGroup(50_000)))
	for _, c := range []struct{ name, content string }{
		{"data.jsonl", lines},
		{"data.json", array},
		{"data.csv", string(table)},
		{"data.jsonl.gz", gzipped(b, lines)},
		{"data.jsonl.zst", zstandard(b, lines)},
		{"data.parquet", packed.String()},
	} {
		f := write(b, c.name, c.content)
		b.Run(c.name, func(b *testing.B) { benchmarkRows(b, f, benchRows) })
	}
}
