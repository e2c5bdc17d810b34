package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/spf13/cobra"

	"cftune/bindings/engine"
	"cftune/trainer"
	"cftune/trainer/config"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
)

const imatrixLong = `Measure how much each column of a model's weights counts, and write that as an importance matrix: quantizing with one rounds
where it matters least (cftune quantize, merge and export take it with --imatrix).

The model reads a text, in windows of --context tokens that know nothing of each other, or the first --rows examples of a
configuration's training data; for each weight the squares of what its columns are multiplied by are summed. The file is that of
llama.cpp's tool of the name, and tools of llama.cpp read it; like that one it leaves out embedding and output head.

Take a text of the kind that the model will work on: some ten thousand tokens are enough.

`

// imatrixOptions are the flags of `imatrix`.
type imatrixOptions struct {
	text, config, adapter, output string
	sets                          []string
	window, rows, threads         int
	force, asJSON                 bool
}

// imatrixResult is what `imatrix --json` prints.
type imatrixResult struct {
	Path    string `json:"path"`
	Weights int    `json:"weights"`
	Tokens  int    `json:"tokens"`
	Chunks  int    `json:"chunks"`
}

func newImatrixCommand() *cobra.Command {
	var o imatrixOptions
	cmd := &cobra.Command{
		Use:   "imatrix MODEL --output FILE {--text FILE | --config RUN.yaml}",
		Short: "Measure an importance matrix, for quantizing a model with less loss",
		Long:  imatrixLong + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if (o.text == "") == (o.config == "") {
				return codedError{errors.New("imatrix: want either --text or --config"), codeUsage}
			}
			result, err := o.run(cmd.Context(), args[0], cmd.ErrOrStderr())
			if err != nil {
				return fmt.Errorf("imatrix: %w", err)
			}
			if o.asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
			}
			fmt.Fprintf(cmd.ErrOrStderr(), "importance of %d weights over %d tokens in %d pieces\n", result.Weights, result.Tokens, result.Chunks)
			_, err = fmt.Fprintln(cmd.OutOrStdout(), result.Path)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.text, "text", "", "a text file to read")
	f.StringVarP(&o.config, "config", "c", "", "a configuration whose training data to read")
	f.StringArrayVar(&o.sets, "set", nil, "override a key of the configuration (key=value)")
	f.StringVar(&o.adapter, "adapter", "", "read it with this adapter (a GGUF file, a PEFT folder, a run): for a model that it will be merged into")
	f.StringVar(&o.output, "output", "", "the file to write (required)")
	f.IntVar(&o.window, "context", 512, "tokens of a window of the text")
	f.IntVar(&o.rows, "rows", defaultImatrixRows, "examples of the training data")
	f.IntVar(&o.threads, "threads", 0, "threads (0: all that this process may use)")
	f.BoolVar(&o.force, "force", false, "replace an existing file")
	f.BoolVar(&o.asJSON, "json", false, "print the result as one JSON object")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

const defaultImatrixRows = 128

func (o imatrixOptions) run(ctx context.Context, name string, notes io.Writer) (imatrixResult, error) {
	if _, err := os.Lstat(o.output); err == nil && !o.force {
		return imatrixResult{}, fmt.Errorf("%s %w", o.output, export.ErrExists)
	}
	if err := writable(o.output); err != nil {
		return imatrixResult{}, err
	}
	model, err := findModel(ctx, name, notes)
	if err != nil {
		return imatrixResult{}, err
	}
	base, err := gguf.Open(model)
	if err != nil {
		return imatrixResult{}, err
	}
	var pieces [][]int32
	source := o.text
	if o.text != "" {
		pieces, err = textPieces(model, o.text, o.window)
	} else {
		var run config.Run
		if run, err = loadConfig(ctx, o.config, o.sets); err != nil {
			return imatrixResult{}, err
		}
		run.Model, source = model, o.config
		pieces, err = dataPieces(ctx, run, o.rows)
	}
	if err != nil {
		return imatrixResult{}, err
	}
	m, tokens, err := measureImportance(ctx, model, o.adapter, pieces, o.threads)
	if err != nil {
		return imatrixResult{}, err
	}
	if err := base.Unchanged(); err != nil {
		return imatrixResult{}, err
	}
	m.Datasets = []string{filepath.Base(source)}
	var out bytes.Buffer
	if err := gguf.WriteImportance(&out, m); err != nil {
		return imatrixResult{}, err
	}
	if err := writeWhole(o.output, out.Bytes()); err != nil {
		return imatrixResult{}, codedError{err, codeUsage}
	}
	return imatrixResult{o.output, len(m.Weights), tokens, len(pieces)}, nil
}

// textPieces reads a text in windows.
func textPieces(model, path string, window int) ([][]int32, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, codedError{fmt.Errorf("--text: %w", err), codeUsage}
	}
	vocab, err := engine.OpenVocab(model)
	if err != nil {
		return nil, engineError(err)
	}
	defer vocab.Close()
	return textWindows(vocab, string(text), window)
}

// textWindows cuts a text into windows as llama.cpp's tools do: BOS, where the model has one, is put before the text, and replaces the
// first token of each later window. What is left at the end is left out.
func textWindows(vocab *engine.Vocab, text string, window int) ([][]int32, error) {
	tokens, err := vocab.Tokenize(text, false)
	if err != nil {
		return nil, engineError(err)
	}
	if vocab.AddBOS() {
		tokens = append([]int32{vocab.BOS()}, tokens...)
	}
	if window < 4 || len(tokens) < window {
		return nil, codedError{fmt.Errorf("--text: it has %d tokens, fewer than a window of %d (--context)", len(tokens), window), codeUsage}
	}
	var pieces [][]int32
	for first := 0; first+window <= len(tokens); first += window {
		piece := append([]int32(nil), tokens[first:first+window]...)
		if vocab.AddBOS() {
			piece[0] = vocab.BOS()
		}
		pieces = append(pieces, piece)
	}
	return pieces, nil
}

// dataPieces are the first examples of training, as the model reads them there.
func dataPieces(ctx context.Context, run config.Run, rows int) ([][]int32, error) {
	if rows < 1 {
		return nil, codedError{fmt.Errorf("--rows: must be at least 1, got %d", rows), codeUsage}
	}
	text, vocab, err := openText(run)
	if err != nil {
		return nil, err
	}
	defer vocab.Close()
	examples, err := trainer.Preview(ctx, trainer.Options{Config: run, Text: text, Version: programVersion(), Cache: cacheFolder()}, rows)
	if err != nil {
		return nil, err
	}
	var pieces [][]int32
	for _, e := range examples {
		pieces = append(pieces, e.Tokens)
	}
	if len(pieces) == 0 {
		return nil, codedError{errors.New("there are no examples"), codeData}
	}
	return pieces, nil
}

// measureImportance lets a model, with an adapter if there is one, read pieces of text.
func measureImportance(ctx context.Context, model, adapter string, pieces [][]int32, threads int) (gguf.ImportanceMatrix, int, error) {
	fail := func(err error) (gguf.ImportanceMatrix, int, error) {
		return gguf.ImportanceMatrix{}, 0, engineError(err)
	}
	longest, total := 0, 0
	for _, p := range pieces {
		longest, total = max(longest, len(p)), total+len(p)
	}
	session, err := newSession(model, adapter, engine.SessionParams{
		NCtx: longest, NBatch: longest, NSequences: 1, NThreads: threads, AdapterScale: 1, Importance: true,
	})
	if err != nil {
		return fail(err)
	}
	defer session.Close()
	for _, p := range pieces {
		if err := ctx.Err(); err != nil {
			return fail(err)
		}
		if err := readPiece(session, p); err != nil {
			return fail(err)
		}
	}
	collected, err := session.Importance()
	if err != nil {
		return fail(err)
	}
	m := gguf.ImportanceMatrix{Weights: make(map[string]gguf.Importance, len(collected)), Chunks: len(pieces), Chunk: longest}
	for name, one := range collected {
		m.Weights[name] = gguf.Importance(one)
	}
	return m, total, nil
}

// readPiece runs a piece of text by itself. All logits are wanted: where they are not, libllama leaves rows of the last layer out.
func readPiece(session *engine.Session, tokens []int32) error {
	if err := session.Forget(-1); err != nil {
		return err
	}
	n := len(tokens)
	positions, ids, want := make([]int32, n), make([]int32, n), make([]bool, n)
	for i := range n {
		positions[i], want[i] = int32(i), true
	}
	return session.Decode(tokens, positions, ids, want)
}

// columnWeights reads an importance matrix for a model; an empty path is none.
func columnWeights(path string, base *gguf.File, t export.FileType) (map[string][]float32, error) {
	if path == "" {
		return nil, nil
	}
	if !t.Weighed() {
		return nil, codedError{fmt.Errorf("--imatrix: type %s rounds nothing that it could weigh; it is for the quantized types of %s", t, export.WeighedNames()), codeUsage}
	}
	m, err := gguf.ReadImportance(path)
	if err != nil {
		if errors.Is(err, os.ErrNotExist) {
			err = codedError{fmt.Errorf("--imatrix: %w", err), codeUsage}
		}
		return nil, err
	}
	return m.ColumnWeights(base)
}
