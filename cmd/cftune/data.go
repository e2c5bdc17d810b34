package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"cftune/bindings/engine"
	"cftune/trainer"
)

func newDataCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "data",
		Short: "Look at data, check it, convert it",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	cmd.AddCommand(newDataPreviewCommand(), newDataStatsCommand(), newDataAuditCommand(), newDataConvertCommand())
	return cmd
}

// dataFlags are those of all data commands.
type dataFlags struct {
	path string
	sets []string
}

func (f *dataFlags) add(cmd *cobra.Command) {
	cmd.Flags().StringVarP(&f.path, "config", "c", "", "configuration of a run (required)")
	cmd.Flags().StringArrayVar(&f.sets, "set", nil, "override a key of the configuration (key=value)")
	if err := cmd.MarkFlagRequired("config"); err != nil {
		panic(err) // the flag is defined above
	}
}

// open reads the configuration and opens the model's vocabulary, which the caller closes.
func (f *dataFlags) open(cmd *cobra.Command) (trainer.Options, *engine.Vocab, error) {
	run, err := loadConfig(cmd.Context(), f.path, f.sets)
	if err != nil {
		return trainer.Options{}, nil, err
	}
	local, err := localModel(cmd.Context(), run, cmd.ErrOrStderr())
	if err != nil {
		return trainer.Options{}, nil, err
	}
	text, vocab, err := openText(local)
	notes := cmd.ErrOrStderr()
	return trainer.Options{
		Config: run, ModelFile: local.Model, Text: text, Version: programVersion(), Cache: cacheFolder(),
		Reading: func(file string, rows int64) { fmt.Fprintln(notes, readingNote(file, rows)) },
		Looking: func(done, total int, left time.Duration) { fmt.Fprintln(notes, lookingNote(done, total, left)) },
	}, vocab, err
}

func readingNote(file string, rows int64) string {
	return fmt.Sprintf("reading %s for the first time: %d rows", file, rows)
}

func lookingNote(done, total int, left time.Duration) string {
	return fmt.Sprintf("looking at the data: %d of %d records, ETA %s", done, total, left.Round(time.Second))
}

const dataStatsLong = `Count a run's data: records of each file, lengths under each objective of the configuration, the share of tokens that is
learned, rows that are too long or have nothing to learn, repeated records, and the overlap with the held-out ones.

Every record is counted under every objective that the configuration has. Lengths are in positions of a pack.`

func newDataStatsCommand() *cobra.Command {
	var (
		f      dataFlags
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "stats --config FILE",
		Short: "Count records, lengths, targets, repeats and overlap",
		Long:  dataStatsLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			stats, err := f.stats(cmd)
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(stats)
			}
			return printStats(cmd.OutOrStdout(), stats)
		},
	}
	f.add(cmd)
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

func (f *dataFlags) stats(cmd *cobra.Command) (trainer.DataStats, error) {
	o, vocab, err := f.open(cmd)
	if err != nil {
		return trainer.DataStats{}, err
	}
	defer vocab.Close()
	return trainer.Stats(cmd.Context(), o)
}

const dataAuditLong = `Look for defects in a run's data: everything that training would refuse, all at once. Repeated records are told, and are
no defect. The exit code is 3 where there are defects. Training makes the same checks before it begins.

`

func newDataAuditCommand() *cobra.Command {
	var f dataFlags
	cmd := &cobra.Command{
		Use:   "audit --config FILE",
		Short: "Look for defects that training would refuse",
		Long:  dataAuditLong + exitCodesHelp,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			stats, err := f.stats(cmd)
			if err != nil {
				return err
			}
			out := cmd.OutOrStdout()
			for _, p := range stats.Problems {
				fmt.Fprintln(out, p)
			}
			printFound(out, "note: records that repeat an earlier one", stats.Repeats)
			printFound(out, "note: records with the prompt of an earlier one", stats.Duplicates)
			if n := len(stats.Problems); n > 0 {
				return codedError{fmt.Errorf("audit %s: the data has defects", f.path), codeData}
			}
			_, err = fmt.Fprintf(out, "%d records, no defect\n", stats.Records)
			return err
		},
	}
	f.add(cmd)
	return cmd
}

func printFound(w io.Writer, what string, found trainer.Found) {
	if found.Count == 0 {
		return
	}
	more := ""
	if n := found.Count - len(found.First); n > 0 {
		more = fmt.Sprintf(" and %d more", n)
	}
	fmt.Fprintf(w, "%s: %d: %s%s\n", what, found.Count, strings.Join(found.First, ", "), more)
}

// barWidth is that of the histograms, in characters.
const barWidth = 40

func printStats(w io.Writer, s trainer.DataStats) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "file\trecords")
	for _, f := range s.Files {
		fmt.Fprintf(table, "%s\t%d\n", f.File, f.Records)
	}
	if len(s.Files) > 1 {
		fmt.Fprintf(table, "all\t%d\n", s.Records)
	}
	table.Flush()
	for _, o := range s.Objectives {
		fmt.Fprintf(w, "\n%s: %d examples, %d tokens, %d of them learned (%.1f %%)\n", o.Objective, o.Examples, o.Tokens.Sum, o.Targets.Sum, 100*o.TargetShare())
		if o.Refused+o.OverLong+o.AllMasked > 0 {
			fmt.Fprintf(w, "  cannot be examples: %d, longer than a pack: %d, nothing to learn: %d\n", o.Refused, o.OverLong, o.AllMasked)
		}
		table := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
		fmt.Fprintln(table, "  \tmean\tleast\thalf\t90 %\t99 %\tmost\t")
		for _, l := range []struct {
			name string
			trainer.Lengths
		}{{"tokens", o.Tokens}, {"learned", o.Targets}} {
			fmt.Fprintf(table, "  %s\t%.1f\t%d\t%d\t%d\t%d\t%d\t\n", l.name, l.Mean, l.Min, l.P50, l.P90, l.P99, l.Max)
		}
		table.Flush()
		printHistogram(w, o.Tokens.Histogram)
	}
	fmt.Fprintln(w)
	printFound(w, "records that repeat an earlier one", s.Repeats)
	printFound(w, "records with the prompt of an earlier one", s.Duplicates)
	if s.HeldOut > 0 {
		fmt.Fprintf(w, "held out: %d records\n", s.HeldOut)
		printFound(w, "records that ask what a held-out record asks", s.Overlap)
	}
	if len(s.Problems) > 0 {
		fmt.Fprintf(w, "training would refuse:\n  %s\n", strings.Join(s.Problems, "\n  "))
	}
	return nil
}

func printHistogram(w io.Writer, buckets []trainer.Bucket) {
	most := 1
	for _, b := range buckets {
		most = max(most, b.Count)
	}
	for _, b := range buckets {
		span := fmt.Sprintf("%6d-%d", b.From, b.To)
		if b.From == b.To {
			span = fmt.Sprintf("%6d", b.From)
		}
		fmt.Fprintf(w, "  %-13s %8d %s\n", span, b.Count, strings.Repeat("█", (b.Count*barWidth+most-1)/most))
	}
}

var errOutputExists = errors.New("is there already; --force replaces it")
