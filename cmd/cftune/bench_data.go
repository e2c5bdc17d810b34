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
	// Order is set with --cursors.
	Order *trainer.OrderChecked `json:"order,omitempty"`
}

func newBenchDataCommand() *cobra.Command {
	var (
		f       dataFlags
		steps   int
		cursors int
	)
	cmd := &cobra.Command{
		Use:   "data",
		Short: "Time the making of packs and print one JSON line",
		Long: `Time what a run does to its data - read, lay out, render, tokenize, mask, pack - without training, and print one JSON line:
rows and tokens per second (opening the data included), the time until data is open and until the first step's packs are
there, and peak memory.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if steps < 0 || cursors < 0 {
				return codedError{fmt.Errorf("--steps and --cursors: must be at least 0, got %d and %d", steps, cursors), codeUsage}
			}
			o, vocab, err := f.open(cmd)
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
			if cursors > 0 {
				checked, err := trainer.CheckOrder(cmd.Context(), o, cursors)
				if err != nil {
					return err
				}
				result.Order = &checked
			}
			if result.PeakRSSMB, err = peakRSSMB(); err != nil {
				return err
			}
			return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
		},
	}
	f.add(cmd)
	cmd.Flags().IntVar(&steps, "steps", 0, "steps to make packs for (0 = all epochs)")
	cmd.Flags().IntVar(&cursors, "cursors", 0, "also check that an epoch has each record once, and that going on at so many random places gives the same records")
	return cmd
}
