// Package dataset reads records from JSONL files in a seeded order.
//
// A file has one JSON object per line; a byte order mark at its start, blank lines and a missing last newline are
// tolerated. Blank lines are no records, but count in line numbers, so that "train.jsonl:17" is where an editor shows
// it. Every fault names its file and line, and nothing is skipped, cut or converted silently. FORMAT.md beside the
// package lists the formats.
//
// A Set holds eight bytes per record in memory and reads records when asked. The order of an epoch is a function of
// (seed, epoch, index), not a stored shuffle: a Cursor of two integers says where a run stands, and a resumed run goes
// on as an unbroken one would have. The package knows records, not tokens.
package dataset
