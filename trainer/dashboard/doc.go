// Package dashboard shows run directories as web pages: a list, a page for each run with its curves, and runs compared.
//
// It reads what runs write (config.json, metrics.jsonl, journal.jsonl, checkpoints) and writes nothing. A file of metrics
// is read once, and then as it grows; what is kept of it has a bound, however long the run is. Pages are made on the
// server and need no JavaScript; a few lines of it ask for the page again while a run trains.
//
// It opens only files of the runs that it found: a request names a run by an identifier, never by a path.
package dashboard
