package export

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cftune/internal/regular"
	"cftune/trainer/gguf"
	"cftune/trainer/internal/durable"
)

// Engine does the arithmetic of merging and quantizing: ggml's.
type Engine interface {
	// MergeRows widens rows of a weight, as they lie in the file, to F32 and adds scale * b a; rank 0 adds nothing. b is
	// [rows][rank], a [rank][cols], out [rows][cols].
	MergeRows(kind gguf.TensorType, raw []byte, rows, cols int, b, a []float32, rank int, scale float64, out []float32) error
	// Quantize writes a copy of a model in a file type, with an importance matrix if that is not nil.
	Quantize(from, to string, t FileType, importance map[string][]float32) error
}

// ErrQuantizedBase is wrapped by the error about a base whose weights are rounded already, where that was not accepted.
var ErrQuantizedBase = errors.New("the base model is quantized")

// ErrWrongBase is wrapped by errors about an adapter that is not of the base model.
var ErrWrongBase = errors.New("the adapter is not of this base model")

// MergeOptions of Merge.
type MergeOptions struct {
	Options
	Type FileType
	// Base is the SHA-256 of the base model's file, hex, to be compared with what the adapter says; empty: it is not
	// compared, nor is it where AnyBase is set.
	Base    string
	AnyBase bool
	// AcceptQuantized takes a base whose weights are quantized.
	AcceptQuantized bool
	// ChatTemplate, if not empty, replaces the model's.
	ChatTemplate string
	// Importance is what quantizing weighs columns by, by tensor; nil: all alike.
	Importance map[string][]float32
}

// Merged tells what Merge wrote.
type Merged struct {
	Path     string         `json:"path"`
	Type     string         `json:"type"`
	Bytes    int64          `json:"bytes"`
	Tensors  map[string]int `json:"tensors"` // number by type
	Fallback []Fallback     `json:"fallback,omitempty"`
	Notes    []string       `json:"notes,omitempty"`
}

// Fallback is a tensor whose rows are not made of the blocks that its type would have; llama.cpp stores it as another.
type Fallback struct {
	Tensor string `json:"tensor"`
	Width  uint64 `json:"width"`
	Type   string `json:"type"` // that it has instead
}

// mergeFloats is how many weights are merged at a time: the memory that merging takes beyond the files is some times this.
const mergeFloats = 8 << 20

// Merge writes the base model with the adapter's products added to its weights, in F32, and then stored as o.Type. It goes
// tensor by tensor: memory does not grow with the model. Beside the output, a temporary file takes space on its disk. It fails with
// gguf.ErrChanged, and leaves nothing, if the model is written to meanwhile.
func Merge(ctx context.Context, engine Engine, base *gguf.File, a gguf.Adapter, path string, o MergeOptions) (Merged, error) {
	fail := func(err error) (Merged, error) { return Merged{}, fmt.Errorf("merge: %w", err) }
	if o.fs == nil {
		o.fs = durable.OS
	}
	if err := checkOutput(path, o.Force); err != nil {
		return fail(err)
	}
	m := &merger{ctx: ctx, engine: engine, base: base, adapter: a}
	notes, err := m.match(o)
	if err != nil {
		return fail(err)
	}
	need := base.Size*2 + 4*m.floats
	if err := durable.CheckSpace(o.fs, filepath.Dir(path), need); err != nil {
		return fail(err)
	}
	widened := path + ".merge" + durable.TempSuffix
	defer o.fs.RemoveAll(widened)
	metadata := map[string]any{"cftune.merged.rank": uint64(a.Rank), "cftune.merged.step": a.Step}
	if o.Base != "" {
		metadata["cftune.base_model.sha256"] = o.Base
	}
	if o.ChatTemplate != "" {
		metadata["tokenizer.chat_template"] = o.ChatTemplate
	}
	_, err = durable.WriteFile(o.fs, widened, func(w io.Writer) error { return base.Rewrite(w, m.replacements(), metadata) })
	if changed := base.Unchanged(); changed != nil {
		err = changed // a file that ends too early is an effect of that
	}
	if err != nil {
		return fail(err)
	}
	source, err := gguf.Open(widened)
	if err != nil {
		return fail(err)
	}
	merged, err := quantize(engine, source, path, o.Type, o.Importance, o.fs)
	if err != nil {
		return fail(err)
	}
	merged.Notes = append(notes, merged.Notes...)
	return merged, nil
}

// checkOutput makes sure that nothing is lost by writing to path.
func checkOutput(path string, force bool) error {
	switch info, err := os.Lstat(path); {
	case err == nil && info.IsDir():
		return fmt.Errorf("%s is a folder: %w", path, ErrFolder)
	case err == nil && !force:
		return fmt.Errorf("%s %w", path, ErrExists)
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return err
	}
	return nil
}

// checkFolder makes sure that nothing is at path.
func checkFolder(path string) error {
	if _, err := os.Lstat(path); err == nil {
		return fmt.Errorf("%s already exists; %w: remove it, or name another", path, ErrFolder)
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// merger merges one adapter into one base.
type merger struct {
	ctx     context.Context
	engine  Engine
	base    *gguf.File
	adapter gguf.Adapter

	pairs  map[string]pair // by the base tensor's name
	floats int64           // elements of all tensors that change
}

type pair struct {
	gguf.Pair
	weight gguf.TensorInfo
}

// maxListed is how many tensors a message names.
const maxListed = 3

// match finds the base tensor of each pair of matrices, and refuses what does not fit together.
func (m *merger) match(o MergeOptions) (notes []string, err error) {
	if m.adapter.Architecture != m.base.Architecture() {
		return nil, fmt.Errorf("%w: it is for architecture %q, the model is %q", ErrWrongBase, m.adapter.Architecture, m.base.Architecture())
	}
	switch digest := m.adapter.ModelDigest; {
	case digest == "":
		notes = append(notes, "the adapter does not say which model it was trained on: only the shapes were compared")
	case o.Base != "" && digest != o.Base && !o.AnyBase:
		return nil, fmt.Errorf("%w: it was trained on a file with sha256 %.12s, that of %s is %.12s", ErrWrongBase, digest, m.base.Path, o.Base)
	case o.Base != "" && digest != o.Base:
		notes = append(notes, fmt.Sprintf("the adapter was trained on another file (sha256 %.12s, this one is %.12s)", digest, o.Base))
	}
	weights := make(map[string]gguf.TensorInfo, len(m.base.Tensors))
	for _, t := range m.base.Tensors {
		weights[t.Name] = t
	}
	m.pairs = map[string]pair{}
	pairs, err := m.adapter.Pairs()
	if err != nil {
		return nil, err
	}
	var unknown, misshapen []string
	quantized := map[string]int{}
	for _, p := range pairs {
		w, ok := weights[p.Weight]
		if !ok {
			unknown = append(unknown, p.Weight)
			continue
		}
		if _, untied := weights[gguf.Output]; p.Weight == gguf.TokenEmbd && !untied {
			return nil, fmt.Errorf("%w: it adapts the embedding, which in the model is the head as well: merged, it would change both", ErrWrongBase)
		}
		if left, right := p.Factors(); uint64(right.Cols) != w.Cols() || uint64(left.Rows) != w.Rows() {
			misshapen = append(misshapen, fmt.Sprintf("%s (for %d x %d, the weight is %d x %d)", p.Weight, left.Rows, right.Cols, w.Rows(), w.Cols()))
		}
		m.floats += int64(w.Rows() * w.Cols())
		if w.Type.Quantized() {
			quantized[w.Type.String()]++
		}
		m.pairs[p.Weight] = pair{p, w}
	}
	switch {
	case len(unknown) > 0:
		return nil, fmt.Errorf("%w: it has no weight for %s", ErrWrongBase, list(unknown))
	case len(misshapen) > 0:
		return nil, fmt.Errorf("%w: other shapes: %s", ErrWrongBase, list(misshapen))
	case len(quantized) > 0 && !o.AcceptQuantized:
		return nil, fmt.Errorf("%w: %d of the weights that change are stored as %s; merging widens them, adds the adapter and stores them as %s. "+
			"What rounding took from them stays lost, and they are rounded once more", ErrQuantizedBase, total(quantized), strings.Join(sortedKeys(quantized), ", "), o.Type)
	case len(quantized) > 0:
		notes = append(notes, fmt.Sprintf("%d weights were stored as %s before: they were rounded twice", total(quantized), strings.Join(sortedKeys(quantized), ", ")))
	}
	return notes, nil
}

func list(names []string) string {
	text := strings.Join(names[:min(len(names), maxListed)], ", ")
	if more := len(names) - maxListed; more > 0 {
		text += fmt.Sprintf(" and %d more", more)
	}
	return text
}

func total(counts map[string]int) (n int) {
	for _, c := range counts {
		n += c
	}
	return n
}

func sortedKeys(counts map[string]int) []string {
	var keys []string
	for key := range counts {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys
}

// replacements are the tensors that change, in F32.
func (m *merger) replacements() map[string]gguf.Replacement {
	replace := make(map[string]gguf.Replacement, len(m.pairs))
	for name, p := range m.pairs {
		replace[name] = gguf.Replacement{Type: gguf.F32, Write: func(w io.Writer) error { return m.write(w, p) }}
	}
	return replace
}

// write merges a tensor, some rows at a time.
func (m *merger) write(w io.Writer, p pair) error {
	in, err := regular.Open(m.base.Shards[p.weight.Shard])
	if err != nil {
		return err
	}
	defer in.Close()
	rows, cols, rank := int(p.weight.Rows()), int(p.weight.Cols()), p.Rank()
	left, right := p.Factors()
	rowBytes := int(p.weight.Bytes()) / rows
	block := max(1, min(rows, mergeFloats/cols))
	raw, out := make([]byte, block*rowBytes), make([]float32, block*cols)
	for first := 0; first < rows; first += block {
		if err := m.ctx.Err(); err != nil {
			return err
		}
		n := min(block, rows-first)
		if _, err := in.ReadAt(raw[:n*rowBytes], int64(p.weight.Offset)+int64(first)*int64(rowBytes)); err != nil {
			return err
		}
		err := m.engine.MergeRows(p.weight.Type, raw[:n*rowBytes], n, cols, left.Data[first*rank:(first+n)*rank], right.Data, rank, m.adapter.ScaleOf(p.Pair), out[:n*cols])
		if err != nil {
			return err
		}
		if m.adapter.DoRA {
			stretch(out[:n*cols], p.Magnitude.Data[first:first+n])
		}
		if err := writeFloats(w, out[:n*cols]); err != nil {
			return err
		}
	}
	return nil
}

// stretch gives rows the lengths of DoRA's magnitudes.
func stretch(rows, lengths []float32) {
	cols := len(rows) / len(lengths)
	for i, length := range lengths {
		row := rows[i*cols : (i+1)*cols]
		sum := 0.0
		for _, x := range row {
			sum += float64(x) * float64(x)
		}
		factor := float32(float64(length) / math.Sqrt(sum))
		for j := range row {
			row[j] *= factor
		}
	}
}
