package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"cftune/internal/regular"
	"cftune/internal/spell"
	"cftune/trainer/checkpoint"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
)

const mergeLong = `Write a model with an adapter's products added to its weights: a file that needs no adapter.

The adapter is a GGUF file, a PEFT folder, a run (its newest checkpoint) or a checkpoint (the folder that cftune train prints); a
run's own chat template (chat.template_file) then replaces the base's. Weights are widened to F32, the products added, and the result
stored as --type by llama.cpp's own code. It goes tensor by tensor, so that memory does not grow with the model; beside the output,
a temporary file takes space on the same disk.

A base whose weights are quantized is merged with --accept-quantized-base only: what rounding took from them stays lost, and they
are rounded once more. Where it can be had, merge into the unquantized original.

Types: `

func newMergeCommand() *cobra.Command {
	var (
		adapter, output, kind, imatrix string
		threads                        int
		o                              export.MergeOptions
		asJSON                         bool
	)
	cmd := &cobra.Command{
		Use:   "merge BASE --adapter ADAPTER --output FILE",
		Short: "Write a model with an adapter merged into it",
		Long:  mergeLong + strings.Join(export.FileTypeNames(), ", ") + "\n\n" + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			var err error
			if o.Type, err = export.ParseFileType(kind); err != nil {
				return codedError{fmt.Errorf("--%w", err), codeUsage}
			}
			if err := writable(output); err != nil {
				return fmt.Errorf("merge: %w", err)
			}
			model, err := findModel(cmd.Context(), args[0], cmd.ErrOrStderr())
			if err != nil {
				return err
			}
			base, err := gguf.Open(model)
			if err != nil {
				return err
			}
			a, err := readAnyAdapter(adapter, base)
			if err != nil {
				return err
			}
			if a.ModelDigest != "" {
				if o.Base, err = export.Digest(base.Shards...); err != nil {
					return err
				}
			}
			if o.Importance, err = columnWeights(imatrix, base, o.Type); err != nil {
				return err
			}
			chat, err := trainedChat(adapter)
			if err != nil {
				return err
			}
			if chat.TemplateFile != "" {
				if o.ChatTemplate, err = readTemplate(chat.TemplateFile); err != nil {
					return err
				}
			}
			merged, err := export.Merge(cmd.Context(), exportEngine{threads}, base, a, output, o)
			if err != nil {
				return err
			}
			return printMerged(cmd.OutOrStdout(), cmd.ErrOrStderr(), merged, asJSON)
		},
	}
	f := cmd.Flags()
	f.StringVar(&adapter, "adapter", "", "the adapter: a GGUF file, a PEFT folder, a run, or a checkpoint (required)")
	f.StringVar(&output, "output", "", "the file to write (required)")
	f.StringVar(&kind, "type", "F16", "what the weights are stored as")
	f.StringVar(&imatrix, "imatrix", "", "an importance matrix (cftune imatrix)")
	f.IntVar(&threads, "threads", 0, "threads (0: all that this process may use)")
	f.BoolVar(&o.AcceptQuantized, "accept-quantized-base", false, "merge into a base whose weights are quantized")
	f.BoolVar(&o.AnyBase, "any-base", false, "take an adapter that was trained on another file of the same shapes")
	f.BoolVar(&o.Force, "force", false, "replace an existing file")
	f.BoolVar(&asJSON, "json", false, "print the result as one JSON object")
	for _, name := range []string{"adapter", "output"} {
		if err := cmd.MarkFlagRequired(name); err != nil {
			panic(err) // the flags are defined above
		}
	}
	return cmd
}

// readAnyAdapter reads a GGUF adapter, a PEFT folder, or the newest checkpoint's adapter of a run.
func readAnyAdapter(path string, base *gguf.File) (gguf.Adapter, error) {
	path, err := adapterFile(path)
	if err != nil {
		return gguf.Adapter{}, err
	}
	return gguf.ReadAdapter(path, base)
}

// modelThere says what a missing model is, or something else under its name: something that cannot be used.
func modelThere(path string) error {
	if err := regular.Check(path); err != nil {
		return &modelError{path, err}
	}
	return nil
}

// modelError says that there is no file of a model, or none that is a file.
type modelError struct {
	path string
	err  error
}

func (e *modelError) Error() string { return fmt.Sprintf("model: %v", e.err) }

func (e *modelError) Unwrap() error { return e.err }

var hubName = regexp.MustCompile(`^[\w-][\w.-]*/[\w-][\w.-]*$`)

func (e *modelError) hint() string {
	if errors.Is(e.err, regular.ErrNotRegular) {
		if regular.Check(filepath.Join(e.path, checkpoint.ConfigName)) == nil {
			return fmt.Sprintf("%s is a run: --adapter takes it, or what it has exported; --model names the model that it was trained on", spell.Word(e.path))
		}
		return "a model is a GGUF file"
	}
	if !filepath.IsAbs(e.path) && hubName.MatchString(e.path) && filepath.Ext(e.path) != ".gguf" {
		return fmt.Sprintf("of Hugging Face's hub a model is named with its file: hf://%s/FILE.gguf; cftune pull hf://%s shows which there are", e.path, e.path)
	}
	if !filepath.IsAbs(e.path) {
		return "a path is taken from the folder that the command runs in; hf://owner/repo/file.gguf and ollama://name:tag name models elsewhere"
	}
	return ""
}

func isFolder(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}

// printMerged tells what a file came to be: the path on stdout, the rest on stderr.
func printMerged(out, notes io.Writer, m export.Merged, asJSON bool) error {
	if asJSON {
		return json.NewEncoder(out).Encode(m)
	}
	for _, note := range m.Notes {
		fmt.Fprintf(notes, "note: %s\n", note)
	}
	var types []string
	for _, name := range slices.Sorted(maps.Keys(m.Tensors)) {
		types = append(types, fmt.Sprintf("%d %s", m.Tensors[name], name))
	}
	fmt.Fprintf(notes, "%s: %s, tensors: %s\n", m.Type, spell.Size(uint64(m.Bytes)), strings.Join(types, ", "))
	_, err := fmt.Fprintln(out, m.Path)
	return err
}
