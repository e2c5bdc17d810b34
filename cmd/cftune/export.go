package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
	"cftune/trainer/hub"
)

const exportLong = `Write what a run has trained for use elsewhere, from a committed checkpoint.

Formats:
  adapter  a GGUF adapter that llama.cpp loads beside the base model; of DoRA (adapter.dora) there is none
  peft     a folder that Hugging Face's PEFT loads (adapter_config.json, adapter_model.safetensors)
  merged   a GGUF model with the adapter merged in, its weights stored as --type

What was exported is then loaded again and compared with the trained state on held-out rows (those of data.validation, or else
the first ones of training): loss, first choices, divergence per token, a generated text, and the tokens that the exported
file's own template makes of the rows. Beyond a stated limit the export fails and is removed, unless --allow-loss keeps it.
The result is stored beside the output as NAME.proof.json.

--modelfile writes a Modelfile beside it, which ` + "`ollama create`" + ` makes a model of: the chat template in Ollama's language where it
lays out probe conversations to the very bytes of the model's own (it is left out otherwise, and that is said), the run's
system message, the texts that end an answer, and no repeat penalty, which training knew nothing of.

--card writes a model card beside it: base model and data with their digests, configuration, objectives, losses, this proof,
licences as far as the files tell them, and how to use it.

An output appears whole or not at all; a file that is there is replaced with --force only, a folder never.

Types of merged models: `

var exportFormats = []string{"adapter", "peft", "merged"}

// exporter is one call of export.
type exporter struct {
	run, which, output, format, kind string
	model, baseName                  string
	modelName                        string // what the model is called where that is no path
	modelfile, card                  string
	imatrix                          string
	imatrixRows                      int
	f16, force, allowLoss            bool
	acceptQuantized                  bool
	threads, proofRows               int
}

// exported is what `export --json` prints.
type exported struct {
	Path   string         `json:"path"`
	Step   int            `json:"step"`
	Rank   int            `json:"rank"`
	Type   string         `json:"type"`
	Bytes  int64          `json:"bytes"`
	Merged *export.Merged `json:"merged,omitempty"`
	Proof  *exportProof   `json:"proof,omitempty"`
}

func newExportCommand() *cobra.Command {
	var (
		e      exporter
		asJSON bool
	)
	cmd := &cobra.Command{
		Use:   "export RUN[/checkpoints/step-N] --output FILE",
		Short: "Write the trained adapter or a merged model, and prove that it answers as trained",
		Long:  exportLong + strings.Join(export.FileTypeNames(), ", ") + "\n\n" + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			e.run = args[0]
			if run, step, ok := checkpoint.SplitStep(e.run); ok {
				if cmd.Flags().Changed("checkpoint") {
					return codedError{fmt.Errorf("export: %s names a checkpoint, and so does --checkpoint: give one of them", e.run), codeUsage}
				}
				e.run, e.which = run, strconv.Itoa(step)
			}
			if err := e.check(); err != nil {
				return codedError{err, codeUsage}
			}
			result, err := e.export(cmd.Context(), cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(result)
			}
			_, err = fmt.Fprintln(cmd.OutOrStdout(), result.Path)
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&e.output, "output", "", "the file or folder to write (required)")
	f.StringVar(&e.format, "format", "adapter", strings.Join(exportFormats, ", "))
	f.StringVar(&e.kind, "type", "F16", "what a merged model's weights are stored as")
	f.StringVar(&e.which, "checkpoint", "latest", "latest, best (what cftune evaluate chose, or else the lowest validation loss), or a step")
	f.StringVar(&e.model, "model", "", "the base model's file (default: the run's)")
	f.StringVar(&e.baseName, "base-name", "", "peft, card: what the base model is called where transformers can load it")
	f.BoolVar(&e.f16, "f16", false, "adapter: store 16-bit numbers: half the size, rounded")
	f.BoolVar(&e.acceptQuantized, "accept-quantized-base", false, "merged: merge into a base whose weights are quantized")
	f.IntVar(&e.proofRows, "proof-rows", 16, "rows to compare on (0: no proof)")
	f.StringVar(&e.imatrix, "imatrix", "", "merged: an importance matrix for quantizing (cftune imatrix)")
	f.IntVar(&e.imatrixRows, "imatrix-rows", 0, "merged: measure an importance matrix on so many training examples")
	f.StringVar(&e.modelfile, "modelfile", "", "adapter, merged: also write a Modelfile for Ollama")
	f.StringVar(&e.card, "card", "", "also write a model card: README.md with Hugging Face's front matter")
	f.BoolVar(&e.allowLoss, "allow-loss", false, "keep an export that fails its proof")
	f.IntVar(&e.threads, "threads", 0, "threads (0: all that this process may use)")
	f.BoolVar(&e.force, "force", false, "replace an existing file")
	f.BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	if err := cmd.MarkFlagRequired("output"); err != nil {
		panic(err) // the flag is defined above
	}
	return cmd
}

func (e *exporter) check() error {
	if !slices.Contains(exportFormats, e.format) {
		return fmt.Errorf("--format: must be one of %s, got %q", strings.Join(exportFormats, ", "), e.format)
	}
	if err := e.checkBeside(); err != nil {
		return err
	}
	if err := writable(e.output); err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if e.proofRows < 0 {
		return fmt.Errorf("--proof-rows: must be at least 0, got %d", e.proofRows)
	}
	t, err := export.ParseFileType(e.kind)
	if err != nil {
		return fmt.Errorf("--%w", err)
	}
	if e.imatrix != "" || e.imatrixRows != 0 {
		switch {
		case e.format != "merged" || !t.Weighed():
			return fmt.Errorf("--imatrix and --imatrix-rows are for --format merged with a quantized --type: %s", export.WeighedNames())
		case e.imatrix != "" && e.imatrixRows != 0:
			return errors.New("--imatrix and --imatrix-rows exclude each other")
		case e.imatrixRows < 0:
			return fmt.Errorf("--imatrix-rows: must be at least 0, got %d", e.imatrixRows)
		}
	}
	return nil
}

func (e *exporter) export(ctx context.Context, notes io.Writer) (exported, error) {
	c, err := chooseCheckpoint(e.run, e.which)
	if err != nil {
		return exported{}, err
	}
	record, err := trainer.ReadRecord(e.run)
	if err != nil {
		return exported{}, err
	}
	if e.model == "" {
		e.model = record.Model.Path
		if _, err := os.Stat(e.model); err != nil && hub.IsReference(record.Config.Model) {
			e.model = record.Config.Model // on another machine than the run's
		}
	}
	e.modelName = e.model
	if e.modelName == record.Model.Path {
		e.modelName = record.Config.Model
	}
	if e.model, err = findModel(ctx, e.model, notes); err != nil {
		return exported{}, err
	}
	if err := checkChat(record); err != nil {
		return exported{}, err
	}
	run := record.Config
	run.Model = e.model
	if e.threads > 0 {
		run.Threads = e.threads
	}
	result, served, kind, err := e.write(ctx, c, record, notes)
	if served.temporary != "" {
		defer os.RemoveAll(served.temporary)
	}
	if err != nil {
		return result, err
	}
	if e.proofRows > 0 {
		if result, err = e.prove(ctx, record, run, c, result, served, kind, notes); err != nil {
			return result, err
		}
	}
	if err := e.noteChat(record, notes); err != nil {
		return result, err
	}
	if e.modelfile != "" {
		if err := e.writeModelfile(run, cmp.Or(record.MaxSequence(), run.Train.SeqLen), result, served, notes); err != nil {
			return result, fmt.Errorf("export: modelfile: %w", err)
		}
	}
	if e.card != "" {
		if err := e.writeCard(record, c, result, served); err != nil {
			return result, fmt.Errorf("export: card: %w", err)
		}
	}
	return result, nil
}

// prove compares what was written with what was trained, and takes it away where it is not the same.
func (e *exporter) prove(ctx context.Context, record trainer.Record, run config.Run, c *checkpoint.Checkpoint, result exported, served servedAs, kind string, notes io.Writer) (exported, error) {
	proof, err := proveExport(ctx, run, record.MaxSequence(), export.AdapterOf(c), served, kind, e.proofRows)
	if err != nil {
		return result, errors.Join(fmt.Errorf("export: what was written could not be proved: %w", err), removeUnproven(e.output))
	}
	result.Proof = &proof
	proof.print(notes)
	if !proof.holds() && !e.allowLoss {
		return result, errors.Join(codedError{proof.failure(e.output), codeOther}, removeUnproven(e.output))
	}
	return result, writeProof(e.output, result)
}

// write makes the output, and tells what it is served by and which limit holds for it.
func (e *exporter) write(ctx context.Context, c *checkpoint.Checkpoint, record trainer.Record, notes io.Writer) (exported, servedAs, string, error) {
	o := export.Options{F16: e.f16, Force: e.force}
	switch e.format {
	case "peft":
		r, err := export.PEFT(c, e.model, e.baseName, e.output, o)
		if err == nil && e.baseName == "" {
			fmt.Fprintln(notes, "note: base_model_name_or_path is empty; --base-name says what transformers knows the base model by")
		}
		if err == nil {
			err = samePEFT(c, e.output, e.model)
		}
		if err != nil {
			return exported{}, servedAs{}, "", err
		}
		// The folder has the very numbers of the checkpoint's adapter: that is what is proved.
		served, kind := servedAs{model: e.model}, ""
		if e.proofRows > 0 {
			served, kind, err = e.serveCheckpoint(ctx, c, record)
		}
		return exported{Path: r.Path, Step: r.Step, Rank: r.Rank, Type: r.Type, Bytes: r.Bytes}, served, kind, err
	case "merged":
		m, rank, err := e.merge(ctx, c, record)
		if err != nil {
			return exported{}, servedAs{}, "", err
		}
		if err := printMerged(io.Discard, notes, m, false); err != nil {
			return exported{}, servedAs{}, "", err
		}
		return exported{Path: m.Path, Step: c.Step, Rank: rank, Type: m.Type, Bytes: m.Bytes, Merged: &m}, servedAs{model: m.Path}, m.Type, nil
	}
	r, err := export.Adapter(c, e.output, o)
	if errors.Is(err, gguf.ErrNotLlama) {
		err = codedError{err, codeUsage}
	}
	return exported{Path: r.Path, Step: r.Step, Rank: r.Rank, Type: r.Type, Bytes: r.Bytes}, servedAs{model: e.model, adapter: e.output}, "", err
}

func (e *exporter) merge(ctx context.Context, c *checkpoint.Checkpoint, record trainer.Record) (export.Merged, int, error) {
	base, err := gguf.Open(e.model)
	if err != nil {
		return export.Merged{}, 0, err
	}
	a, err := gguf.ReadAdapter(export.AdapterOf(c), nil)
	if err != nil {
		return export.Merged{}, 0, err
	}
	o := export.MergeOptions{Options: export.Options{Force: e.force}, AcceptQuantized: e.acceptQuantized}
	if o.Type, err = export.ParseFileType(e.kind); err != nil {
		return export.Merged{}, 0, err
	}
	if o.Base, err = export.Digest(base.Shards...); err != nil {
		return export.Merged{}, 0, err
	}
	if file := record.Config.Chat.TemplateFile; file != "" {
		if o.ChatTemplate, err = readTemplate(file); err != nil {
			return export.Merged{}, 0, err
		}
	}
	if o.Importance, err = e.importance(ctx, c, record, base, o.Type); err != nil {
		return export.Merged{}, 0, err
	}
	m, err := export.Merge(ctx, exportEngine{e.threads}, base, a, e.output, o)
	return m, a.Rank, err
}

// importance is what quantizing a merged model weighs columns by: a file's, or measured with base and adapter on the run's data.
func (e *exporter) importance(ctx context.Context, c *checkpoint.Checkpoint, record trainer.Record, base *gguf.File, t export.FileType) (map[string][]float32, error) {
	if e.imatrix != "" || e.imatrixRows == 0 {
		return columnWeights(e.imatrix, base, t)
	}
	run := record.Config
	run.Model = e.model
	pieces, err := dataPieces(ctx, run, e.imatrixRows)
	if err != nil {
		return nil, fmt.Errorf("--imatrix-rows: %w", err)
	}
	m, _, err := measureImportance(ctx, e.model, export.AdapterOf(c), pieces, e.threads)
	if err != nil {
		return nil, err
	}
	return m.ColumnWeights(base)
}

// samePEFT reads a PEFT folder back and wants the very numbers of the checkpoint.
func samePEFT(c *checkpoint.Checkpoint, folder, model string) error {
	base, err := gguf.Open(model)
	if err != nil {
		return err
	}
	want, err := gguf.ReadAdapter(export.AdapterOf(c), nil)
	if err != nil {
		return err
	}
	got, err := gguf.ReadAdapter(folder, base)
	if err != nil {
		return err
	}
	if len(got.Tensors) != len(want.Tensors) || got.Rank != want.Rank || got.RSLoRA != want.RSLoRA || got.DoRA != want.DoRA || !maps.Equal(got.Alphas, want.Alphas) {
		return fmt.Errorf("export: %s does not read back as it was written", folder)
	}
	for i, t := range want.Tensors {
		if g := got.Tensors[i]; g.Name != t.Name || !slices.Equal(g.Data, t.Data) {
			return fmt.Errorf("export: %s of %s does not read back as it was written", t.Name, folder)
		}
	}
	return nil
}

// writeProof stores what was found beside the output.
func writeProof(output string, result exported) error {
	text, err := json.MarshalIndent(result, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Clean(output)+".proof.json", append(text, '\n'), 0o644)
}

// chooseCheckpoint opens a run's newest checkpoint, its best one, or that of a step.
func chooseCheckpoint(dir, which string) (*checkpoint.Checkpoint, error) {
	if step, err := strconv.Atoi(which); err == nil {
		return checkpoint.Open(dir, step)
	}
	latest, _, err := checkpoint.Latest(dir, false)
	switch {
	case err != nil:
		return nil, err
	case which == "latest":
		return latest, nil
	case which != "best":
		return nil, codedError{fmt.Errorf("--checkpoint: must be latest, best or a step, got %q", which), codeUsage}
	}
	// What an evaluation chose comes before the lowest validation loss.
	switch chosen, found, err := checkpoint.Chosen(dir); {
	case err != nil:
		return nil, err
	case found:
		return checkpoint.Open(dir, chosen.Step)
	case latest.Best == nil:
		return nil, codedError{fmt.Errorf("--checkpoint best: %s has no validation loss (data.validation) and no choice of cftune evaluate --choose", dir), codeCheckpoint}
	}
	best, err := checkpoint.Open(dir, latest.Best.Step)
	if errors.Is(err, checkpoint.ErrNotFound) {
		return nil, fmt.Errorf("--checkpoint best: the checkpoint of step %d was not kept (checkpoint.keep_best): %w", latest.Best.Step, err)
	}
	return best, err
}
