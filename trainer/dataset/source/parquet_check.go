package source

import (
	"fmt"
	"slices"
	"strings"

	"github.com/parquet-go/parquet-go"
	"github.com/parquet-go/parquet-go/format"
)

// checkChunks refuses what the library would decode wrongly without a word.
func checkChunks(file *parquet.File) error {
	groups := file.Metadata().RowGroups
	for g := range groups {
		for i := range groups[g].Columns {
			meta := &groups[g].Columns[i].MetaData
			name := strings.Join(meta.PathInSchema, ".")
			switch codec := meta.Codec; {
			// It takes the codec of the first row group for that of all.
			case i >= len(groups[0].Columns) || codec != groups[0].Columns[i].MetaData.Codec:
				return fmt.Errorf("column %q: row group %d has another compression than the first one", name, g+1)
			// Its LZ4 gives back a buffer that has not been written to where a page shrinks to less than a third.
			case !slices.Contains(codecs, codec):
				return fmt.Errorf("column %q: compression by %v is not supported; have the file written with zstd, snappy or gzip", name, codec)
			}
			if meta.Type == format.Boolean && mayBeRunLength(meta) {
				return fmt.Errorf("column %q: booleans as run lengths are not supported; have the file written with data pages of version 1 or without the column", name)
			}
		}
	}
	return nil
}

var codecs = []format.CompressionCodec{format.Uncompressed, format.Snappy, format.Gzip, format.Brotli, format.Zstd}

// mayBeRunLength reports whether values are stored as run lengths. The list of encodings has those of levels, too.
func mayBeRunLength(meta *format.ColumnMetaData) bool {
	if !slices.Contains(meta.Encoding, format.RLE) {
		return false
	}
	known := false
	for _, stats := range meta.EncodingStats {
		if stats.PageType != format.DictionaryPage {
			known = true
			if stats.Encoding == format.RLE {
				return true
			}
		}
	}
	return !known
}
