package main

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"cftune/internal/regular"
	"cftune/internal/spell"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
)

const inspectLong = `Show what a model or adapter file has: metadata, tensors with shapes and types, and how much each type takes.

The file is a GGUF model or adapter, a safetensors file, or a PEFT folder (adapter_config.json, adapter_model.safetensors). Only
its head is read, and nothing in that is believed unchecked. Shapes have rows first.

`

// inspection is what `inspect` shows.
type inspection struct {
	Path     string            `json:"path"`
	Kind     string            `json:"kind"` // GGUF 3, safetensors, PEFT
	Bytes    int64             `json:"bytes"`
	SHA256   string            `json:"sha256,omitempty"`
	Metadata []inspectedEntry  `json:"metadata"`
	Types    []inspectedType   `json:"types"`
	Tensors  []inspectedTensor `json:"tensors"`
	Template string            `json:"chat_template,omitempty"`

	files []string // of a model in shards, all of them
}

type inspectedEntry struct {
	Key   string `json:"key"`
	Type  string `json:"type"`
	Value any    `json:"value"`
	Count int    `json:"count,omitempty"` // of an array's elements; Value has the first ones
}

type inspectedTensor struct {
	Name  string   `json:"name"`
	Type  string   `json:"type"`
	Shape []uint64 `json:"shape"` // rows first
	Bytes uint64   `json:"bytes"` // 0 where the type's size is not known
}

type inspectedType struct {
	Type       string `json:"type"`
	Tensors    int    `json:"tensors"`
	Parameters uint64 `json:"parameters"`
	Bytes      uint64 `json:"bytes"`
}

func newInspectCommand() *cobra.Command {
	var digest, asJSON, tensors bool
	cmd := &cobra.Command{
		Use:   "inspect FILE",
		Short: "Show metadata and tensors of a GGUF, safetensors or PEFT adapter",
		Long:  inspectLong + exitCodesHelp,
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			path := args[0]
			if !isFolder(path) { // an adapter may be one
				var err error
				if path, err = findModel(cmd.Context(), path, cmd.ErrOrStderr()); err != nil {
					return err
				}
			}
			x, err := inspect(path)
			if err != nil {
				return err
			}
			if digest {
				files := x.files
				if files == nil {
					files = []string{gguf.AdapterFile(path)}
				}
				if x.SHA256, err = export.Digest(files...); err != nil {
					return err
				}
			}
			if asJSON {
				return json.NewEncoder(cmd.OutOrStdout()).Encode(x)
			}
			return x.print(cmd.OutOrStdout(), tensors)
		},
	}
	cmd.Flags().BoolVar(&tensors, "tensors", false, "list every tensor")
	cmd.Flags().BoolVar(&digest, "digest", false, "show the file's SHA-256 (reads all of it)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print one JSON object")
	return cmd
}

// magicBytes is how much of a file is looked at to tell what it is.
const magicBytes = 9

func inspect(path string) (inspection, error) {
	info, err := os.Stat(path)
	if err != nil {
		return inspection{}, codedError{fmt.Errorf("inspect: %w", err), codeData}
	}
	if info.IsDir() {
		return inspectFolder(path)
	}
	f, err := regular.Open(path)
	if err != nil {
		return inspection{}, err
	}
	head := make([]byte, magicBytes)
	n, err := io.ReadFull(f, head)
	f.Close()
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		return inspection{}, err
	}
	switch {
	case bytes.HasPrefix(head[:n], []byte("GGUF")):
		return inspectGGUF(path)
	case n == magicBytes && head[8] == '{':
		return inspectSafetensors(path, info.Size())
	}
	return inspection{}, codedError{fmt.Errorf("inspect: %s is neither GGUF nor safetensors: it begins with %q", path, head[:n]), codeData}
}

func inspectGGUF(path string) (inspection, error) {
	f, err := gguf.Open(path)
	if err != nil {
		return inspection{}, err
	}
	x := inspection{Path: path, Kind: fmt.Sprintf("GGUF %d", f.Version), Bytes: f.Size, Template: f.ChatTemplate(), files: f.Shards}
	if n := len(f.Shards); n > 1 {
		x.Kind += fmt.Sprintf(", %d shards", n)
	}
	for _, e := range f.Entries() {
		if e.Key != "tokenizer.chat_template" {
			x.Metadata = append(x.Metadata, inspectEntry(e))
		}
	}
	for _, t := range f.Tensors {
		shape := slices.Clone(t.Shape)
		slices.Reverse(shape)
		x.Tensors = append(x.Tensors, inspectedTensor{t.Name, t.Type.String(), shape, t.Bytes()})
	}
	x.sum()
	return x, nil
}

// shownElements is how many elements of an array are shown.
const shownElements = 5

func inspectEntry(e gguf.Entry) inspectedEntry {
	out := inspectedEntry{Key: e.Key, Type: e.Type.String(), Value: e.Value}
	if v, isFloat := e.Value.(float64); isFloat {
		switch {
		case math.IsNaN(v) || math.IsInf(v, 0):
			out.Value = fmt.Sprint(v) // JSON has no such number
		case e.Type == gguf.Float32:
			out.Value = float32(v)
		}
	}
	if v := reflect.ValueOf(e.Value); v.Kind() == reflect.Slice {
		out.Count = v.Len()
		out.Value = v.Slice(0, min(v.Len(), shownElements)).Interface()
	}
	return out
}

func inspectSafetensors(path string, size int64) (inspection, error) {
	tensors, metadata, err := gguf.OpenSafetensors(path)
	if err != nil {
		return inspection{}, err
	}
	x := inspection{Path: path, Kind: "safetensors", Bytes: size}
	for _, key := range slices.Sorted(maps.Keys(metadata)) {
		x.Metadata = append(x.Metadata, inspectedEntry{Key: key, Type: "string", Value: metadata[key]})
	}
	for _, t := range tensors {
		x.Tensors = append(x.Tensors, inspectedTensor{t.Name, t.Type, t.Shape, t.Bytes})
	}
	x.sum()
	return x, nil
}

// inspectFolder shows a PEFT adapter: its configuration as metadata.
func inspectFolder(path string) (inspection, error) {
	file := gguf.AdapterFile(path)
	info, err := os.Stat(file)
	if errors.Is(err, os.ErrNotExist) {
		return inspection{}, codedError{fmt.Errorf("inspect: %s is a folder without %s; cftune runs show looks at runs", path, gguf.PEFTTensorsName), codeData}
	}
	if err != nil {
		return inspection{}, err
	}
	x, err := inspectSafetensors(file, info.Size())
	if err != nil {
		return inspection{}, err
	}
	x.Path, x.Kind, x.Metadata = path, "PEFT", nil
	text, err := regular.ReadFile(filepath.Join(path, gguf.PEFTConfigName))
	if err != nil {
		return inspection{}, codedError{fmt.Errorf("inspect: %w", err), codeData}
	}
	var config map[string]any
	if err := json.Unmarshal(text, &config); err != nil {
		return inspection{}, codedError{fmt.Errorf("inspect: %s: %w", filepath.Join(path, gguf.PEFTConfigName), err), codeData}
	}
	for _, key := range slices.Sorted(maps.Keys(config)) {
		x.Metadata = append(x.Metadata, inspectedEntry{Key: key, Type: "json", Value: config[key]})
	}
	return x, nil
}

// sum counts tensors by type, the largest share first.
func (x *inspection) sum() {
	byType := map[string]*inspectedType{}
	for _, t := range x.Tensors {
		s := byType[t.Type]
		if s == nil {
			s = &inspectedType{Type: t.Type}
			byType[t.Type] = s
		}
		n := uint64(1)
		for _, d := range t.Shape {
			n *= d
		}
		s.Tensors++
		s.Parameters += n
		s.Bytes += t.Bytes
	}
	for _, s := range byType {
		x.Types = append(x.Types, *s)
	}
	slices.SortFunc(x.Types, func(a, b inspectedType) int {
		return cmp.Or(cmp.Compare(b.Bytes, a.Bytes), strings.Compare(a.Type, b.Type))
	})
}

// maxShownText is how much of a text is shown on its line.
const maxShownText = 80

func (x inspection) print(out io.Writer, tensors bool) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "%s\t%s\t%s\n", x.Path, x.Kind, spell.Size(uint64(x.Bytes)))
	if x.SHA256 != "" {
		fmt.Fprintf(w, "sha256\t%s\t\n", x.SHA256)
	}
	fmt.Fprintln(w)
	for _, e := range x.Metadata {
		text := fmt.Sprintf("%v", e.Value)
		if s, ok := e.Value.(string); ok {
			text = fmt.Sprintf("%q", s)
		}
		if more := len([]rune(text)) - maxShownText; more > 0 {
			text = string([]rune(text)[:maxShownText]) + fmt.Sprintf("… and %d characters more", more)
		}
		if e.Count > shownElements {
			text += fmt.Sprintf(" … %d in all", e.Count)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", e.Key, e.Type, text)
	}
	fmt.Fprintln(w)
	for _, s := range x.Types {
		fmt.Fprintf(w, "%d tensors\t%s\t%d parameters, %s\n", s.Tensors, s.Type, s.Parameters, spell.Size(s.Bytes))
	}
	if tensors {
		fmt.Fprintln(w)
		for _, t := range x.Tensors {
			shape := strings.Trim(strings.ReplaceAll(fmt.Sprint(t.Shape), " ", " x "), "[]")
			fmt.Fprintf(w, "%s\t%s\t%s\n", t.Name, t.Type, shape)
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	if x.Template != "" {
		_, err := fmt.Fprintf(out, "\nchat template:\n%s\n", x.Template)
		return err
	}
	return nil
}
