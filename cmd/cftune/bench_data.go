package main

import (
	"encoding/json"
	"fmt"

	"github.com/spf13/cobra"

	"cftune/trainer"
)

// benchDataResult is the JSON line that `bench data` prints.
type benchDataResult struct {
	trainer.Supplied
	TokensPerS float64 `json:"tokens_per_s"`
	RowsPerS   float64 `json:"rows_per_s"`
	PeakRSSMB  int64   `json:"peak_rss_mb"`
}

func newBenchDataCommand() *cobra.Command {
	var (
		f     dataFlags
		steps int
	)
	cmd := &cobra.Command{
		Use:   "data",
		Short: "Time the making of packs and print one JSON line",
		Long: `Time what a run does to its data - read, lay out, render, tokenize, mask, pack - without training, and print one JSON line:
rows and tokens per second (opening the data included), the time until data is open and until the first step's packs are
there, and peak memory.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if steps < 0 {
				return codedError{fmt.Errorf("--steps: must be at least 0, got %d", steps), codeUsage}
			}
			o, vocab, err := f.open()
			if err != nil {
				return err
			}
			defer vocab.Close()
			s, err := trainer.Supply(cmd.Context(), o, steps)
			if err != nil {
				return err
			}
			seconds := s.OpenS + s.Seconds
			result := benchDataResult{Supplied: s, TokensPerS: float64(s.Tokens) / seconds, RowsPerS: float64(s.Examples) / seconds}
			if result.PeakRSSMB, err = peakRSSMB(); err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
		},
	}
	f.add(cmd)
	cmd.Flags().IntVar(&steps, "steps", 0, "steps to make packs for (0 = all epochs)")
	return cmd
}
