// Package store gives random access to the rows of any source, in memory that does not grow with their number.
//
// A plain JSONL file stays where it is; an index of it, one entry for some 16 KiB of text, says where rows begin. Of all
// else (compressed files, CSV, Parquet, JSON arrays, object stores, standard input) the rows are written once to a file
// of zstd blocks of about 32 KiB with the same kind of index; reading a row unpacks its block. Indexes and blocks lie in a
// cache folder under a key of the file's name and stamp (size and time, or a server's tag), so that the second start
// reads neither the source nor its digest. FORMAT.md of the package above has the layout.
package store
