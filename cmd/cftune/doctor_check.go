package main

import (
	"context"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"slices"
	"strings"

	"cftune/bindings/engine"
	"cftune/trainer/config"
	"cftune/trainer/pack"
)

// nearness is how near a device's gradients must be to the CPU engine's, which its number format bounds: on an H100, which keeps activations in bf16,
// the cosine of whole gradients is 0.9999 and more; those of single tensors fall lower, the less they weigh. A wrong kernel, driver or device turns
// what lies behind it on the way back by far more.
type nearness struct{ whole, tensor float64 }

var (
	nearDense = nearness{0.995, 0.9}
	// The rounding of a router's logits decides which of two experts that are nearly alike a token goes to.
	nearMixture = nearness{0.9, 0.5}
)

const (
	leastShare    = 1e-3 // tensors whose norm is less of the whole one are not looked at alone
	mostLossError = 0.02 // relative
	mostNormError = 0.1  // of the whole gradient, relative; what is right but for its scale has a cosine of 1
	mostTensor    = 0.25 // the same of a tensor's
)

// agreement compares a device with the CPU engine, on the same tokens.
type agreement struct {
	Device  string   `json:"device"`
	Tokens  int      `json:"tokens"`
	Targets int      `json:"targets"`
	Loss    float64  `json:"loss"`     // nats for each target, on the device
	LossCPU float64  `json:"loss_cpu"` // on the CPU
	Cosine  float64  `json:"cosine"`   // of the whole gradients
	Ratio   float64  `json:"ratio"`    // of their norms, device over CPU
	Worst   string   `json:"worst"`    // the tensor whose gradients are farthest apart
	WorstAt float64  `json:"worst_cosine"`
	Wrong   []string `json:"wrong,omitempty"` // what is not as near as it should be
}

// gradientOf is what a device makes of the tokens.
type gradientOf struct {
	infos []engine.TensorInfo
	all   []float32
	loss  float64
}

// checkDevice computes loss and gradients of a run's adapter over its model, of random tokens, on the run's device and on the CPU.
func checkDevice(ctx context.Context, run config.Run, info engine.ModelInfo) (*agreement, error) {
	params, err := engineParams(run)
	if err != nil {
		return nil, err
	}
	const least, most = 8, 512 // two rows with targets; several tiles of attention, which the CPU has to do too
	n := min(most, run.Train.SeqLen)
	if n < least {
		return nil, codedError{fmt.Errorf("--check-device takes packs of %d tokens or more, train.seq_len is %d", least, n), codeUsage}
	}
	rows := []int{n - n/3, n / 3} // two examples of a pack, neither of which may see the other
	batches, err := pack.Build(randomRows(rows, 0.5, info.Vocab), n)
	if err != nil {
		return nil, err
	}
	a := &agreement{Device: run.Device, Tokens: n}
	for _, b := range batches {
		a.Targets += b.NumTargets()
	}
	onDevice, err := computeGradient(ctx, run.Model, run.Device, params, batches)
	if err != nil {
		return nil, err
	}
	params.MaxTokens, params.MemoryLimit = n, 0
	near := nearDense
	if info.ExpertsUsed > 0 {
		near = nearMixture
	}
	onCPU, err := computeGradient(ctx, run.Model, "cpu", params, batches)
	if err != nil {
		return nil, fmt.Errorf("on the CPU: %w", err)
	}
	a.compare(onDevice, onCPU, near)
	return a, nil
}

func computeGradient(ctx context.Context, path, device string, params engine.Params, batches []pack.Batch) (g gradientOf, err error) {
	model, err := engine.Load(path, device)
	if err != nil {
		return g, err
	}
	defer model.Close()
	trainer, err := engine.NewTrainer(model, params)
	if err != nil {
		return g, paramsError(err)
	}
	defer trainer.Close()
	if g.infos, err = trainer.Tensors(); err != nil {
		return g, err
	}
	rng := rand.New(rand.NewPCG(params.Seed, 1))
	for i, info := range g.infos { // what begins as zero would hide its other half's gradient
		values := make([]float32, info.Rows*info.Cols)
		if err := trainer.ReadTensor(i, engine.SlotValue, values); err != nil {
			return g, err
		}
		if slices.ContainsFunc(values, func(v float32) bool { return v != 0 }) {
			continue
		}
		const size = 0.02
		for j := range values {
			values[j] = size * (2*rng.Float32() - 1)
		}
		if err := trainer.WriteTensor(i, engine.SlotValue, values); err != nil {
			return g, err
		}
	}
	for _, b := range batches {
		loss, _, err := trainer.Accumulate(ctx, engine.Batch(b))
		if err != nil {
			return g, err
		}
		g.loss += loss
	}
	g.all, err = trainer.Gradient(nil)
	return g, err
}

// compare fills in how near the two are.
func (a *agreement) compare(device, cpu gradientOf, near nearness) {
	targets := float64(max(1, a.Targets))
	a.Loss, a.LossCPU = finite(device.loss/targets), finite(cpu.loss/targets)
	var whole dots
	wholeCPU := newDots(cpu.all, cpu.all).norm(0)
	a.WorstAt = 1
	at := 0
	for _, info := range cpu.infos {
		n := info.Rows * info.Cols
		d := newDots(device.all[at:at+n], cpu.all[at:at+n])
		at += n
		whole.add(d)
		weighs := !(max(d.norm(0), d.norm(1)) < leastShare*wholeCPU)
		c := d.cosine()
		if weighs && !(c >= a.WorstAt) {
			a.Worst, a.WorstAt = info.Name, c
		}
		switch {
		case !weighs:
		case !(c >= near.tensor):
			a.Wrong = append(a.Wrong, fmt.Sprintf("%s has a cosine of %.4f", info.Name, c))
		case !(math.Abs(d.ratio()-1) <= mostTensor):
			a.Wrong = append(a.Wrong, fmt.Sprintf("%s has %.4f times the norm", info.Name, d.ratio()))
		}
	}
	a.Cosine, a.Ratio = whole.cosine(), whole.ratio()
	switch {
	case !(a.Cosine >= near.whole):
		a.Wrong = append([]string{fmt.Sprintf("the whole gradient has a cosine of %.4f", a.Cosine)}, a.Wrong...)
	case !(math.Abs(a.Ratio-1) <= mostNormError):
		a.Wrong = append([]string{fmt.Sprintf("the whole gradient has %.4f times the norm", a.Ratio)}, a.Wrong...)
	}
	if !(math.Abs(device.loss-cpu.loss) <= mostLossError*math.Abs(cpu.loss)) {
		a.Wrong = append(a.Wrong, fmt.Sprintf("the loss is %.4f instead of %.4f", device.loss/targets, cpu.loss/targets))
	}
}

// dots are the products of two vectors: the first with itself, the second with itself, one with the other.
type dots [3]float64

func newDots(a, b []float32) (d dots) {
	for i := range a {
		x, y := float64(a[i]), float64(b[i])
		d[0] += x * x
		d[1] += y * y
		d[2] += x * y
	}
	return d
}

func (d *dots) add(o dots) {
	for i := range d {
		d[i] += o[i]
	}
}

func (d dots) norm(i int) float64 { return math.Sqrt(d[i]) }

// cosine of two vectors that are zero is 1, and 0 where one of them is or is not finite.
func (d dots) cosine() float64 {
	if d[0] == 0 && d[1] == 0 {
		return 1
	}
	return finite(d[2] / (d.norm(0) * d.norm(1)))
}

// ratio is the first's norm over the second's, 1 where both are zero.
func (d dots) ratio() float64 {
	if d[0] == 0 && d[1] == 0 {
		return 1
	}
	return finite(d.norm(0) / d.norm(1))
}

// finite is x, or 0 where JSON has no word for it.
func finite(x float64) float64 {
	if math.IsNaN(x) || math.IsInf(x, 0) {
		return 0
	}
	return x
}

func (a agreement) print(w io.Writer) {
	fmt.Fprintf(w, "\n%s beside the CPU, %d random tokens with %d targets:\n", a.Device, a.Tokens, a.Targets)
	fmt.Fprintf(w, "loss\t%.5f, on the CPU %.5f\n", a.Loss, a.LossCPU)
	fmt.Fprintf(w, "gradients\tcosine %.6f, norm %.4f times the CPU's\n", a.Cosine, a.Ratio)
	if a.Worst != "" {
		fmt.Fprintf(w, "farthest apart\t%s, cosine %.6f\n", a.Worst, a.WorstAt)
	}
	if len(a.Wrong) == 0 {
		fmt.Fprintln(w, "\nThe device computes what the CPU computes.")
	}
}

// err says what is wrong with a device, in words.
func (a agreement) err() error {
	const most = 4
	wrong := a.Wrong
	more := ""
	if len(wrong) > most {
		wrong, more = wrong[:most], fmt.Sprintf(", and %d more", len(a.Wrong)-most)
	}
	return fmt.Errorf("%s does not compute what the CPU computes: %s%s; train with device: cpu, and please report it with the output of `cftune doctor --json`",
		a.Device, strings.Join(wrong, ", "), more)
}
