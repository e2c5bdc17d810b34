package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cftune/trainer"
	"cftune/trainer/dataset"
	"cftune/trainer/objective"
	"cftune/trainer/pack"
)

const dataConvertLong = `Write a run's examples as JSONL, in the order of the first epoch, each under the objective that it is trained under there.

  tokenized  input_ids and labels, as format tokenized takes them: trains on exactly the same
  messages   the conversation, with train: false at an assistant's turn that is not learned, as format messages takes it; the
             configuration's chat.system is not in it

Where a record cannot be an example nothing is written.`

var convertTargets = []string{"tokenized", "messages"}

func newDataConvertCommand() *cobra.Command {
	var (
		f          dataFlags
		to, output string
		force      bool
	)
	cmd := &cobra.Command{
		Use:   "convert --config FILE --output FILE",
		Short: "Write a run's examples as tokens or as conversations",
		Long:  dataConvertLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !slices.Contains(convertTargets, to) {
				return codedError{fmt.Errorf("--to: must be one of %s, got %q", strings.Join(convertTargets, ", "), to), codeUsage}
			}
			if _, err := os.Lstat(output); !force && !errors.Is(err, fs.ErrNotExist) {
				return codedError{fmt.Errorf("convert: %s %w", output, errOutputExists), codeUsage}
			}
			if err := writable(output); err != nil {
				return fmt.Errorf("convert: %w", err)
			}
			o, vocab, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer vocab.Close()
			for _, s := range o.Config.Data.Sources {
				if err := notItsData(output, s.Path); err != nil {
					return fmt.Errorf("convert: %w", err)
				}
			}
			n, err := convert(cmd, o, to, output)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %d examples\n", output, n)
			return err
		},
	}
	f.add(cmd)
	cmd.Flags().StringVar(&to, "to", "tokenized", "what to write: "+strings.Join(convertTargets, ", "))
	cmd.Flags().StringVar(&output, "output", "", "the file to write (required)")
	cmd.Flags().BoolVar(&force, "force", false, "replace the file")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// convert writes to a file beside the output and renames it.
func convert(cmd *cobra.Command, o trainer.Options, to, output string) (n int, err error) {
	temp := output + ".tmp"
	file, err := os.Create(temp)
	if err != nil {
		return 0, codedError{fmt.Errorf("convert: %w", err), codeUsage}
	}
	defer os.Remove(temp) // gone when it was renamed
	w := bufio.NewWriter(file)
	err = trainer.Convert(cmd.Context(), o, func(parts []pack.Example, c *objective.Conversation) error {
		if to == "messages" {
			n++
			return writeConversation(w, parts[0], c)
		}
		for _, e := range parts {
			if err := writeTokenized(w, e); err != nil {
				return err
			}
			n++
		}
		return nil
	})
	if err = errors.Join(err, w.Flush(), file.Close()); err != nil {
		return 0, err
	}
	return n, os.Rename(temp, output)
}

// turn is a message as format messages has it.
type turn struct {
	Role    string `json:"role"`
	Content string `json:"content"`
	Train   *bool  `json:"train,omitempty"` // false: an assistant's that is not learned
}

func writeConversation(w io.Writer, e pack.Example, c *objective.Conversation) error {
	if c == nil {
		return codedError{fmt.Errorf("convert: %s is tokenized and has no conversation; use --to tokenized", e.ID), codeUsage}
	}
	var turns []turn
	for i, m := range c.Messages {
		t := turn{Role: m.Role, Content: m.Content}
		if m.Role == dataset.RoleAssistant && !c.Train[i] {
			t.Train = &c.Train[i]
		}
		turns = append(turns, t)
	}
	return json.NewEncoder(w).Encode(map[string]any{"id": e.ID, "messages": turns, "weight": e.Weight})
}
