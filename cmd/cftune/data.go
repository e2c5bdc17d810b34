package main

import (
	"encoding/json"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"cftune/trainer"
	"cftune/trainer/chat"
	"cftune/trainer/config"
	"cftune/trainer/pack"
)

func newDataCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "data",
		Short: "Look at data",
		Args:  cobra.NoArgs,
		RunE:  func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
	}
	var (
		path    string
		sets    []string
		records int
		asJSON  bool
	)
	preview := &cobra.Command{
		Use:   "preview",
		Short: "Show how records become tokens, and which of them are learned",
		Long: `Show the first examples of a run in the order of training, token by token: x where a token is learned, its number, its text.
The objective of each is the one that it is trained under.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if records < 1 {
				return codedError{fmt.Errorf("--records: must be at least 1, got %d", records), codeUsage}
			}
			run, err := config.Load(path, sets, os.Environ())
			if err != nil {
				return codedError{err, codeUsage}
			}
			text, vocab, err := openText(run)
			if err != nil {
				return err
			}
			defer vocab.Close()
			examples, err := trainer.Preview(trainer.Options{Config: run, Text: text}, records)
			if err != nil {
				return err
			}
			for _, e := range examples {
				if err := printExample(cmd, vocab, e, asJSON); err != nil {
					return err
				}
			}
			return nil
		},
	}
	preview.Flags().StringVar(&path, "config", "", "configuration of a run (required)")
	preview.Flags().StringArrayVar(&sets, "set", nil, "override a key of the configuration (key=value)")
	preview.Flags().IntVar(&records, "records", 3, "how many records")
	preview.Flags().BoolVar(&asJSON, "json", false, "print input_ids and labels, one JSON object per record, as format tokenized takes them")
	if err := preview.MarkFlagRequired("config"); err != nil {
		panic(err) // the flag is defined above
	}
	cmd.AddCommand(preview)
	return cmd
}

func printExample(cmd *cobra.Command, vocab chat.Tokenizer, e pack.Example, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(cmd.OutOrStdout()).Encode(map[string]any{
			"id": e.ID, "objective": e.Objective, "input_ids": e.Tokens, "labels": e.Labels,
		})
	}
	_, err := fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %d tokens, %d learned\n%s\n",
		e.ID, e.Objective, len(e.Tokens), pack.NumTargets(e), chat.Preview(vocab, e.Tokens, e.Labels))
	return err
}
