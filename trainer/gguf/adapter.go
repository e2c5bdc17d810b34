package gguf

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"cftune/internal/regular"
)

// Metadata keys of adapter files. llama.cpp reads the first ones; those of cftune say what it cannot express.
const (
	keyType         = "general.type"
	keyArchitecture = "general.architecture"
	keyName         = "general.name"
	keyAdapterType  = "adapter.type"
	keyAlpha        = "adapter.lora.alpha"

	keyRSLoRA      = "cftune.lora.rslora" // the scale is alpha / sqrt(rank), of cftune.lora.alpha
	keyRSAlpha     = "cftune.lora.alpha"  // as configured; adapter.lora.alpha is adjusted where rslora is set
	keyAlphas      = "cftune.lora.alphas" // JSON: the alphas of weights that have another
	keyDoRA        = "cftune.lora.dora"   // there are magnitudes
	keyModelDigest = "cftune.base_model.sha256"
	keyStep        = "cftune.step"
)

// Values of adapter.type. llama.cpp takes lora alone, and so refuses what it would compute wrongly.
const (
	typeLoRA   = "lora"
	typeCftune = "cftune"
)

// Adapter is a LoRA adapter: for each adapted base tensor W [out][in] the matrices A [rank][in] and B [out][rank].
type Adapter struct {
	Architecture string
	Rank         int     // of most weights
	Alpha        float64 // as configured
	RSLoRA       bool    // the scale is Alpha / sqrt(rank) instead of Alpha / rank
	DoRA         bool    // rows of W + scale B A are scaled to the lengths that the magnitudes say
	// Alphas are of weights that have another alpha, by name ("blk.0.attn_q.weight"); nil where there are none.
	Alphas map[string]float64

	Name        string // of the model, for people; may be empty
	ModelDigest string // SHA-256 of the base model's file, hex; empty if unknown
	Step        uint64 // of the training run; 0 if unknown

	// Tensors are sorted by name, as llama.cpp has them: "blk.0.attn_q.weight.lora_a", and ".lora_magnitude".
	Tensors []Tensor
}

// Tensor is a row-major matrix.
type Tensor struct {
	Name       string
	Rows, Cols int
	Data       []float32
}

// Modules returns the names of the adapted modules ("attn_q"), sorted.
func (a Adapter) Modules() []string {
	found := map[string]bool{}
	for _, t := range a.Tensors {
		switch parts := strings.Split(t.Name, "."); len(parts) {
		case 5: // blk.0.attn_q.weight.lora_a
			found[parts[2]] = true
		case 3: // output.weight.lora_a
			found[parts[0]] = true
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// check makes sure that the tensors are pairs with finite values, sorts them and finds the rank of most.
func (a *Adapter) check() error {
	if len(a.Tensors) == 0 {
		return bad("it has no tensors")
	}
	if !(a.Alpha > 0) || math.IsInf(a.Alpha, 0) {
		return bad("alpha is %v", a.Alpha)
	}
	slices.SortFunc(a.Tensors, func(x, y Tensor) int { return strings.Compare(x.Name, y.Name) })
	pairs, err := a.Pairs()
	if err != nil {
		return err
	}
	a.Rank = usualRank(pairs)
	for weight, alpha := range a.Alphas {
		if !slices.ContainsFunc(pairs, func(p Pair) bool { return p.Weight == weight }) {
			return bad("it has an alpha for %s, but no tensors", weight)
		}
		if !(alpha > 0) || math.IsInf(alpha, 0) {
			return bad("alpha of %s is %v", weight, alpha)
		}
	}
	for _, t := range a.Tensors {
		for _, x := range t.Data {
			if math.IsNaN(float64(x)) || math.IsInf(float64(x), 0) {
				return bad("tensor %s has a value that is not finite", t.Name)
			}
		}
	}
	return nil
}

// ReadAdapter reads a GGUF adapter, or a PEFT folder with adapter_config.json and adapter_model.safetensors. base is the
// base model that it is for: PEFT's tensors are put into the order of its rows. It may be nil for a GGUF file.
//
// Whatever would be lost or misread is refused by name. Errors about content wrap ErrFormat.
func ReadAdapter(path string, base *File) (Adapter, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Adapter{}, fmt.Errorf("read adapter: %w", err)
	}
	read := readGGUFAdapter
	if info.IsDir() {
		read = readPEFT
		if base == nil {
			return Adapter{}, fmt.Errorf("read adapter %s: %w", path, bad("it is a folder, not a GGUF file"))
		}
		if _, err := os.Stat(filepath.Join(path, peftConfigName)); errors.Is(err, fs.ErrNotExist) {
			return Adapter{}, fmt.Errorf("read adapter %s: %w", path, bad("a folder without %s is no PEFT adapter", peftConfigName))
		}
	}
	a, err := read(path, base)
	if err == nil {
		err = a.check()
	}
	if err == nil && base != nil && a.Architecture != base.Architecture() {
		err = bad("it is for architecture %q, the base model is %q", a.Architecture, base.Architecture())
	}
	if err != nil {
		return Adapter{}, fmt.Errorf("read adapter %s: %w", path, err)
	}
	return a, nil
}

// AdapterFile returns the file that has the numbers of the adapter at path: path itself, or a file in a PEFT folder.
func AdapterFile(path string) string {
	if info, err := os.Stat(path); err == nil && info.IsDir() {
		return filepath.Join(path, peftTensorsName)
	}
	return path
}

func readGGUFAdapter(path string, _ *File) (Adapter, error) {
	f, err := regular.Open(path)
	if err != nil {
		return Adapter{}, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return Adapter{}, err
	}
	head, err := parse(f, info.Size())
	if err != nil {
		return Adapter{}, err
	}
	a, err := head.adapter()
	if err != nil {
		return Adapter{}, err
	}
	for _, t := range head.Tensors {
		if len(t.Shape) != 2 {
			return Adapter{}, bad("tensor %s has %d dimensions, not 2", t.Name, len(t.Shape))
		}
		if t.Type.elementBytes() == 0 {
			return Adapter{}, bad("tensor %s is of %s; adapters are read from F32, F16 and BF16", t.Name, t.Type)
		}
		data, err := readElements(f, t.Offset, t.elements(), t.Type)
		if err != nil {
			return Adapter{}, fmt.Errorf("tensor %s: %w", t.Name, err)
		}
		a.Tensors = append(a.Tensors, Tensor{Name: t.Name, Rows: int(t.Shape[1]), Cols: int(t.Shape[0]), Data: data})
	}
	return a, nil
}

// adapter reads the metadata of an adapter.
func (f *File) adapter() (Adapter, error) {
	if kind, _ := f.String(keyType); kind != "adapter" {
		return Adapter{}, bad("%s is %q: it is no adapter", keyType, kind)
	}
	kind, _ := f.String(keyAdapterType)
	if kind != typeLoRA && kind != typeCftune {
		return Adapter{}, bad("%s is %q, not %s", keyAdapterType, kind, typeLoRA)
	}
	alpha, ok := f.Float(keyAlpha)
	if !ok {
		return Adapter{}, bad("%s is missing", keyAlpha)
	}
	a := Adapter{Architecture: f.Architecture(), Alpha: alpha}
	if a.RSLoRA, _ = f.Bool(keyRSLoRA); a.RSLoRA || kind == typeCftune {
		if a.Alpha, ok = f.Float(keyRSAlpha); !ok {
			return Adapter{}, bad("%s or %s is set, but %s is missing", keyRSLoRA, typeCftune, keyRSAlpha)
		}
	}
	a.DoRA, _ = f.Bool(keyDoRA)
	if text, there := f.String(keyAlphas); there {
		if err := json.Unmarshal([]byte(text), &a.Alphas); err != nil {
			return Adapter{}, bad("%s is no JSON object of numbers: %v", keyAlphas, err)
		}
	}
	a.Name, _ = f.String(keyName)
	a.ModelDigest, _ = f.String(keyModelDigest)
	a.Step, _ = f.Uint(keyStep)
	return a, nil
}
