package trainer

import (
	"bufio"
	"encoding/binary"
	"fmt"
	"io"
	"math"

	"cftune/internal/regular"
	"cftune/trainer/checkpoint"
	"cftune/trainer/gguf"
)

// Files of a checkpoint; checkpoint/FORMAT.md describes them.
const (
	adapterName   = "adapter.gguf"
	optimizerName = "optimizer.bin"

	optimizerMagic   = "CFTOPTIM"
	optimizerVersion = 1
)

const (
	maxOptimizerTensors = 1 << 20
	maxTensorName       = 256
)

// headSpace is about what names and metadata take beside the numbers, for one tensor.
const headSpace = 256

// adapterHead is the adapter's file without its tensors.
func (t *Trainer) adapterHead(steps uint64) gguf.Adapter {
	a := t.run.Adapter
	return gguf.Adapter{
		Architecture: t.architecture, Alpha: a.Alpha, RSLoRA: a.RSLoRA, DoRA: a.DoRA, Alphas: alphasOf(t.run, t.modules),
		ModelDigest: t.record.Model.SHA256, Step: steps,
	}
}

// contents are the files of a checkpoint.
func contents(a gguf.Adapter, s State) []checkpoint.Content {
	numbers := int64(0)
	for _, t := range s.Tensors {
		numbers += int64(len(t.Value))
		a.Tensors = append(a.Tensors, gguf.Tensor{Name: t.Name, Rows: t.Rows, Cols: t.Cols, Data: t.Value})
	}
	heads := int64(len(s.Tensors)+8) * headSpace
	return []checkpoint.Content{
		{Name: adapterName, Bytes: 4*numbers + heads, Write: func(w io.Writer) error { return gguf.WriteAdapter(w, a, gguf.F32) }},
		{Name: optimizerName, Bytes: 8*numbers + heads, Write: func(w io.Writer) error { return writeOptimizer(w, s) }},
	}
}

// writeOptimizer writes counters and moments.
func writeOptimizer(out io.Writer, s State) error {
	w := bufio.NewWriterSize(out, 1<<20)
	head := append([]byte(optimizerMagic), make([]byte, 0, 24)...)
	head = binary.LittleEndian.AppendUint32(head, optimizerVersion)
	head = binary.LittleEndian.AppendUint32(head, uint32(len(s.Tensors)))
	head = binary.LittleEndian.AppendUint64(head, s.Steps)
	head = binary.LittleEndian.AppendUint64(head, s.MicroBatches)
	w.Write(head) // the writer keeps its first error for Flush
	for _, t := range s.Tensors {
		n := t.Rows * t.Cols
		if len(t.Moment1) != n || len(t.Moment2) != n {
			return fmt.Errorf("optimizer state: tensor %s has %d and %d moments for %d values", t.Name, len(t.Moment1), len(t.Moment2), n)
		}
		entry := binary.LittleEndian.AppendUint32(nil, uint32(len(t.Name)))
		entry = append(entry, t.Name...)
		entry = binary.LittleEndian.AppendUint64(entry, uint64(t.Rows))
		entry = binary.LittleEndian.AppendUint64(entry, uint64(t.Cols))
		w.Write(entry)
		for _, moments := range [][]float32{t.Moment1, t.Moment2} {
			raw := make([]byte, 0, 4*n)
			for _, x := range moments {
				raw = binary.LittleEndian.AppendUint32(raw, math.Float32bits(x))
			}
			w.Write(raw)
		}
	}
	return w.Flush()
}

// readOptimizer reads what writeOptimizer wrote. size is that of the file: nothing larger is believed.
func readOptimizer(in io.Reader, size int64) (State, error) {
	r := &optimizerReader{r: bufio.NewReaderSize(in, 1<<20), left: size}
	if magic := r.bytes(8); r.err == nil && string(magic) != optimizerMagic {
		return State{}, fmt.Errorf("%w: it does not start with %s", checkpoint.ErrCorrupt, optimizerMagic)
	}
	if version := r.u32(); r.err == nil && version != optimizerVersion {
		return State{}, fmt.Errorf("%w: version %d is not %d", checkpoint.ErrIncompatible, version, optimizerVersion)
	}
	count := r.u32()
	s := State{Steps: r.u64(), MicroBatches: r.u64()}
	if count > maxOptimizerTensors {
		r.fail("%d tensors", count)
	}
	for i := uint32(0); i < count && r.err == nil; i++ {
		s.Tensors = append(s.Tensors, r.tensor())
	}
	if r.err == nil && r.left != 0 {
		r.fail("%d bytes follow its end", r.left)
	}
	if r.err != nil {
		return State{}, r.err
	}
	return s, nil
}

type optimizerReader struct {
	r    io.Reader
	left int64
	err  error
}

func (r *optimizerReader) fail(format string, args ...any) {
	if r.err == nil {
		r.err = fmt.Errorf("%w: %s", checkpoint.ErrCorrupt, fmt.Sprintf(format, args...))
	}
}

func (r *optimizerReader) bytes(n uint64) []byte {
	if r.err == nil && n > uint64(r.left) {
		r.fail("it is cut off")
	}
	if r.err != nil {
		return nil
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(r.r, b); err != nil {
		r.err = err
		return nil
	}
	r.left -= int64(n)
	return b
}

func (r *optimizerReader) u32() uint32 {
	if b := r.bytes(4); b != nil {
		return binary.LittleEndian.Uint32(b)
	}
	return 0
}

func (r *optimizerReader) u64() uint64 {
	if b := r.bytes(8); b != nil {
		return binary.LittleEndian.Uint64(b)
	}
	return 0
}

func (r *optimizerReader) tensor() Tensor {
	n := r.u32()
	if n > maxTensorName {
		r.fail("a name of %d bytes", n)
	}
	t := Tensor{Name: string(r.bytes(uint64(n)))}
	rows, cols := r.u64(), r.u64()
	if rows == 0 || cols == 0 || rows > math.MaxInt32 || cols > math.MaxInt32 {
		r.fail("tensor %q is %d x %d", t.Name, rows, cols)
	}
	if r.err != nil {
		return t
	}
	t.Rows, t.Cols = int(rows), int(cols)
	t.Moment1, t.Moment2 = r.floats(rows*cols), r.floats(rows*cols)
	return t
}

func (r *optimizerReader) floats(n uint64) []float32 {
	raw := r.bytes(4 * n)
	out := make([]float32, len(raw)/4)
	for i := range out {
		out[i] = math.Float32frombits(binary.LittleEndian.Uint32(raw[4*i:]))
	}
	return out
}

// loadState reads adapter and moments of a checkpoint.
func loadState(c *checkpoint.Checkpoint) (State, error) {
	fail := func(name string, err error) (State, error) {
		return State{}, fmt.Errorf("open checkpoint step %d: %s: %w", c.Step, name, err)
	}
	f, err := regular.Open(c.Path(optimizerName))
	if err != nil {
		return fail(optimizerName, err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return fail(optimizerName, err)
	}
	s, err := readOptimizer(f, info.Size())
	if err != nil {
		return fail(optimizerName, err)
	}
	a, err := gguf.ReadAdapter(c.Path(adapterName), nil)
	if err != nil {
		return fail(adapterName, fmt.Errorf("%w: %w", checkpoint.ErrCorrupt, err))
	}
	values := make(map[string]gguf.Tensor, len(a.Tensors))
	for _, t := range a.Tensors {
		values[t.Name] = t
	}
	for i := range s.Tensors {
		t := &s.Tensors[i]
		v, ok := values[t.Name]
		if !ok || v.Rows != t.Rows || v.Cols != t.Cols || len(values) != len(s.Tensors) {
			return fail(optimizerName, fmt.Errorf("%w: its tensors are not those of %s", checkpoint.ErrCorrupt, adapterName))
		}
		t.Value = v.Data
	}
	if s.Steps != uint64(c.Step) || s.MicroBatches != c.Counters.MicroBatches {
		return fail(optimizerName, fmt.Errorf("%w: its counters are not the manifest's", checkpoint.ErrCorrupt))
	}
	return s, nil
}
