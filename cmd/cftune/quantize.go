package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/spf13/cobra"

	"cftune/bindings/engine"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
)

const quantizeLong = `Write a copy of a model with its weights stored as another type, by llama.cpp's own code.

With --text, the perplexity on a text is measured before and after: in windows of --context tokens, over the second half of
each, as llama.cpp's tool of that name does.

Types: `

// quantized is what `quantize --json` prints.
type quantized struct {
	export.Merged
	Perplexity *perplexities `json:"perplexity,omitempty"`
}

type perplexities struct {
	Before, After perplexity
}

func newQuantizeCommand() *cobra.Command {
	var (
		kind, text, imatrix string
		window, threads     int
		o                   export.Options
		asJSON              bool
	)
	cmd := &cobra.Command{
		Use:   "quantize MODEL FILE --type TYPE",
		Short: "Write a copy of a model with its weights stored as another type",
		Long:  quantizeLong + strings.Join(export.FileTypeNames(), ", ") + "\n\n" + exitCodesHelp,
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := export.ParseFileType(kind)
			if err != nil {
				return codedError{fmt.Errorf("--%w", err), codeUsage}
			}
			if err := writable(args[1]); err != nil {
				return fmt.Errorf("quantize: %w", err)
			}
			model, err := findModel(cmd.Context(), args[0], cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			base, err := gguf.Open(model)
			if err != nil {
				return err
			}
			importance, err := columnWeights(imatrix, base, t)
			if err != nil {
				return err
			}
			var words string
			if text != "" {
				read, err := os.ReadFile(text)
				if err != nil {
					return codedError{fmt.Errorf("--text: %w", err), codeUsage}
				}
				words = string(read)
			}
			var result quantized
			if text != "" { // first: a text that is too short is found before the work
				before, err := measurePerplexity(cmd.Context(), model, words, window, threads)
				if err != nil {
					return err
				}
				result.Perplexity = &perplexities{Before: before}
			}
			if result.Merged, err = export.Quantize(exportEngine{threads}, base, args[1], t, importance, o); err != nil {
				return err
			}
			if text != "" {
				if result.Perplexity.After, err = measurePerplexity(cmd.Context(), args[1], words, window, threads); err != nil {
					return err
				}
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
			}
			if p := result.Perplexity; p != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "perplexity over %d tokens: %.4f before, %.4f after (%+.2f %%)\n", p.After.Tokens, p.Before.Value, p.After.Value,
					100*(p.After.Value/p.Before.Value-1))
			}
			return printMerged(cmd.OutOrStdout(), cmd.ErrOrStderr(), result.Merged, false)
		},
	}
	f := cmd.Flags()
	f.StringVar(&kind, "type", "", "what the weights are stored as (required)")
	f.StringVar(&imatrix, "imatrix", "", "an importance matrix (cftune imatrix)")
	f.StringVar(&text, "text", "", "a text file to measure perplexity on")
	f.IntVar(&window, "context", 512, "tokens of a window of the text")
	f.IntVar(&threads, "threads", 0, "threads (0: all that this process may use)")
	f.BoolVar(&o.Force, "force", false, "replace an existing file")
	f.BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	if err := cmd.MarkFlagRequired("type"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

// perplexity is exp of the mean negative log-likelihood.
type perplexity struct {
	Value  float64 `json:"value"`
	Tokens int     `json:"tokens"` // that were predicted
}

// measurePerplexity reads a text in windows that know nothing of each other, and predicts the second half of each.
func measurePerplexity(ctx context.Context, model, text string, window, threads int) (perplexity, error) {
	vocab, err := engine.OpenVocab(model)
	if err != nil {
		return perplexity{}, engineError(err)
	}
	defer vocab.Close()
	windows, err := textWindows(vocab, text, window)
	if err != nil {
		return perplexity{}, err
	}
	session, err := engine.NewSession(model, "", engine.SessionParams{NCtx: window, NBatch: window, NSequences: 1, NThreads: threads, AdapterScale: 1})
	if err != nil {
		return perplexity{}, engineError(err)
	}
	defer session.Close()
	s := &scorer{session: session, logits: make([]float32, vocab.Info().Tokens)}
	for _, part := range windows {
		if err := ctx.Err(); err != nil {
			return perplexity{}, err
		}
		if err := s.score(part, window/2); err != nil {
			return perplexity{}, engineError(err)
		}
	}
	if s.n == 0 {
		return perplexity{}, errors.New("perplexity: no tokens")
	}
	return perplexity{s.value(), s.n}, nil
}
