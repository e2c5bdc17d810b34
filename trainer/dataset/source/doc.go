// Package source reads rows, as the text of JSON objects, from files of any container, wherever they lie.
//
// [Expand] turns a path into files: a file, a folder, a glob, standard input, or a URL of an object store or web
// server. [File.Rows] reads one of them from its start, in memory that does not grow with the file.
//
// What a file is follows from its first bytes, and from its name where these leave a choice:
//
//   - JSONL: an object a line; blank lines and a byte order mark are passed over.
//   - JSON: an array of objects, or an object that holds exactly one array of objects (others of its members are not
//     rows). An object that fills one line is a row of JSONL, unless the name ends in .json and no line follows.
//   - CSV (.csv) and TSV (.tsv) as RFC 4180 and encoding/csv have them, with a header. Every value is a JSON string,
//     numbers too: "007" and "7.0" stay what they are. Line breaks within quotes become "\n".
//   - Parquet; what becomes of its types is told at [File.Rows].
//
// All but Parquet may be packed by gzip or zstd. Text must be UTF-8. A row must not exceed [MaxRowBytes].
//
// What cannot be read whole and exactly is an error: nothing is skipped, cut off or mended. The package does not parse
// the objects of JSON and JSONL; it finds where they begin and end.
package source
