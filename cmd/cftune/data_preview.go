package main

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"html/template"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cftune/trainer"
	"cftune/trainer/chat"
	"cftune/trainer/dataset"
	"cftune/trainer/pack"
)

const dataPreviewLong = `Show the first examples of a run in the order of training. The objective of each is the one that it is trained under.

Styles:
  list  token by token: x where it is learned, its number, its text
  text  the text as the model reads it, with what is learned marked: in colour on a terminal, between « and » elsewhere
  html  a page to look at in a browser, with the tokens' borders
  json  input_ids and labels, one object per record, as format tokenized takes them`

var previewStyles = []string{"list", "text", "html", "json"}

func newDataPreviewCommand() *cobra.Command {
	var (
		f       dataFlags
		records int
		style   string
		asJSON  bool
	)
	cmd := &cobra.Command{
		Use:   "preview --config FILE",
		Short: "Show how records become tokens, and which of them are learned",
		Long:  dataPreviewLong,
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if asJSON {
				style = "json"
			}
			switch {
			case records < 1:
				return codedError{fmt.Errorf("--records: must be at least 1, got %d", records), codeUsage}
			case !slices.Contains(previewStyles, style):
				return codedError{fmt.Errorf("--style: must be one of %s, got %q", strings.Join(previewStyles, ", "), style), codeUsage}
			}
			o, vocab, err := f.open(cmd)
			if err != nil {
				return err
			}
			defer vocab.Close()
			examples, err := trainer.Preview(cmd.Context(), o, records)
			if err != nil {
				return err
			}
			return printExamples(cmd.OutOrStdout(), style, vocab, examples)
		},
	}
	f.add(cmd)
	cmd.Flags().IntVar(&records, "records", 3, "how many records")
	cmd.Flags().StringVar(&style, "style", "list", "how to show them: "+strings.Join(previewStyles, ", "))
	cmd.Flags().BoolVar(&asJSON, "json", false, "the same as --style json")
	return cmd
}

func printExamples(w io.Writer, style string, tok chat.Tokenizer, examples []pack.Example) error {
	if style == "html" {
		return writePreviewPage(w, tok, examples)
	}
	for _, e := range examples {
		var err error
		switch style {
		case "json":
			err = writeTokenized(w, e)
		case "text":
			_, err = fmt.Fprintf(w, "%s\n%s\n\n", exampleTitle(e), markedText(tok, e, hasColours(w)))
		default:
			_, err = fmt.Fprintf(w, "%s\n%s\n", exampleTitle(e), chat.Preview(tok, e.Tokens, e.Labels))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// exampleTitle counts an example's tokens, and those of them that take room, which is what train.seq_len bounds and a plan counts.
func exampleTitle(e pack.Example) string {
	return fmt.Sprintf("%s: %s, %d tokens (%d in a pack), %d learned", e.ID, e.Objective, len(e.Tokens), pack.Len(e), pack.NumTargets(e))
}

func writeTokenized(w io.Writer, e pack.Example) error {
	return json.NewEncoder(w).Encode(map[string]any{"id": e.ID, "objective": e.Objective, "input_ids": e.Tokens, "labels": e.Labels})
}

// hasColours reports whether w is a terminal that may be written to in colour (no-color.org).
func hasColours(w io.Writer) bool {
	return isTerminal(w) && os.Getenv("NO_COLOR") == ""
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && hasSize(f)
}

// markedText is the example's text with its learned parts marked.
func markedText(tok chat.Tokenizer, e pack.Example, colour bool) string {
	open, end := "«", "»"
	if colour {
		open, end = "\x1b[1;32m", "\x1b[0m"
	}
	var b strings.Builder
	inside := false
	for i, token := range e.Tokens {
		if learned := e.Labels[i] != dataset.IgnoreLabel; learned != inside {
			b.WriteString(map[bool]string{true: open, false: end}[learned])
			inside = learned
		}
		b.WriteString(tok.TokenText(token))
	}
	if inside {
		b.WriteString(end)
	}
	return b.String()
}

//go:embed preview.html
var previewSource string

var previewPage = template.Must(template.New("preview").Parse(previewSource))

// previewExample is what the page shows of an example.
type previewExample struct {
	Title  string
	Tokens []previewToken
}

type previewToken struct {
	Number           int32
	Text             string
	Learned, Control bool
}

// visible shows white space that would not be seen.
var visible = strings.NewReplacer("\n", "⏎\n", "\t", "⇥", "\r", "␍")

func writePreviewPage(w io.Writer, tok chat.Tokenizer, examples []pack.Example) error {
	var list []previewExample
	for _, e := range examples {
		shown := previewExample{Title: exampleTitle(e)}
		for i, token := range e.Tokens {
			text := strings.ToValidUTF8(tok.TokenText(token), "�")
			shown.Tokens = append(shown.Tokens, previewToken{token, visible.Replace(text), e.Labels[i] != dataset.IgnoreLabel, tok.IsControl(token)})
		}
		list = append(list, shown)
	}
	return previewPage.Execute(w, list)
}
