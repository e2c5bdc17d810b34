package main

import (
	"cmp"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"cftune/bindings/engine"
	"cftune/trainer/pack"
)

// benchOptions is one case of `bench step`.
type benchOptions struct {
	model, device, keep string
	tokens              int
	lengths             []int
	targets             float64
	pack                int
	rank, threads       int
	steps, warmup       int
}

// benchResult is the JSON line that `bench step` prints. Rates count tokens of the data.
type benchResult struct {
	Tool          string                `json:"tool"`
	Rows          []int                 `json:"rows"`    // tokens of each row
	Tokens        int                   `json:"tokens"`  // of all rows
	Targets       int                   `json:"targets"` // supervised ones
	Pack          int                   `json:"pack"`    // capacity of a pack
	Packs         int                   `json:"packs"`   // micro-batches of a step
	Rank          int                   `json:"rank"`
	Threads       int                   `json:"threads"`
	Steps         int                   `json:"steps"`
	TokensPerS    float64               `json:"tokens_per_s"`      // from the median step
	BestPerS      float64               `json:"tokens_per_s_best"` // from the fastest step
	StepMS        []float64             `json:"step_ms"`           // in the order they ran
	GFLOPS        float64               `json:"gflops"`            // of the median step, by stepFLOP
	SGEMMGFLOPS   float64               `json:"sgemm_gflops"`      // the best product seen before and after the steps
	PeakRSSMB     int64                 `json:"peak_rss_mb"`       // of the process, mapped weights included
	Memory        engine.MemoryEstimate `json:"memory"`
	Keep          string                `json:"keep_activations"`
	CPU           string                `json:"cpu"`
	Loss          float64               `json:"loss"` // of the last step
	GradNorm      float64               `json:"grad_norm"`
	LoadedSeconds float64               `json:"loaded_s"` // to map the model and make the trainer
}

func newBenchCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "bench",
		Short: "Measure training speed on random data",
	}
	var o benchOptions
	step := &cobra.Command{
		Use:   "step",
		Short: "Time whole training steps and print one JSON line",
		Long: `Time whole training steps (forward, backward, clipping, AdamW) of a LoRA adapter on random tokens, and print one JSON
line: tokens per second, peak memory, and the machine's rate of single-precision matrix products in the same run.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return engineError(benchStep(cmd, o, cmd.OutOrStdout())) },
	}
	flags := step.Flags()
	flags.StringVar(&o.model, "model", "", "base model, a GGUF file (required)")
	flags.StringVar(&o.device, "device", "cpu", "auto, cpu, or a device's name")
	flags.IntVar(&o.tokens, "tokens", 512, "tokens of the one row")
	flags.IntSliceVar(&o.lengths, "lengths", nil, "tokens of each row, instead of --tokens")
	flags.Float64Var(&o.targets, "targets", 1, "share of each row, at its end, that carries loss")
	flags.IntVar(&o.pack, "pack", 0, "capacity of a pack in tokens (0 = the longest row)")
	flags.IntVar(&o.rank, "rank", 16, "rank of the adapter, on all linear modules")
	flags.IntVar(&o.threads, "threads", 2, "CPU threads (0 = all that the process may use)")
	flags.IntVar(&o.steps, "steps", 5, "measured steps")
	flags.IntVar(&o.warmup, "warmup", 1, "steps before them")
	flags.StringVar(&o.keep, "keep-activations", "auto", "auto, all or layers")
	if err := step.MarkFlagRequired("model"); err != nil {
		panic(err) // the flag is defined above
	}
	cmd.AddCommand(step, newBenchDataCommand())
	return cmd
}

func benchStep(cmd *cobra.Command, o benchOptions, out io.Writer) error {
	rows := o.lengths
	if len(rows) == 0 {
		rows = []int{o.tokens}
	}
	keep, ok := engineKeep[o.keep]
	usage := func(format string, args ...any) error {
		return codedError{fmt.Errorf("bench step: "+format, args...), codeUsage}
	}
	switch {
	case !ok:
		return usage("--keep-activations: %q is not auto, all or layers", o.keep)
	case o.steps < 1 || o.warmup < 0:
		return usage("--steps must be at least 1 and --warmup at least 0")
	case slices.Min(rows) < 2:
		return usage("a row of %d tokens has no target", slices.Min(rows))
	case !(o.targets > 0 && o.targets <= 1):
		return usage("--targets must be above 0 and at most 1, got %v", o.targets)
	}
	var err error
	if o.model, err = findModel(cmd.Context(), o.model, cmd.ErrOrStderr()); err != nil {
		return err
	}
	began := time.Now()
	model, err := engine.Load(o.model, o.device)
	if err != nil {
		return fmt.Errorf("bench step: %w", err)
	}
	defer model.Close()
	info, err := model.Info()
	if err != nil {
		return fmt.Errorf("bench step: %w", err)
	}
	capacity := cmp.Or(o.pack, slices.Max(rows))
	batches, err := pack.Build(randomRows(rows, o.targets, info.Vocab), capacity)
	if err != nil {
		return fmt.Errorf("bench step: %w", err)
	}
	trainer, err := engine.NewTrainer(model, benchParams(o, keep, batches))
	if err != nil {
		return fmt.Errorf("bench step: %w", err)
	}
	defer trainer.Close()

	result := benchResult{
		Tool: "cftune", Rows: rows, Pack: capacity, Packs: len(batches), Rank: o.rank, Threads: o.threads, Steps: o.steps,
		CPU: engine.CPUFeatures(), LoadedSeconds: time.Since(began).Seconds(),
	}
	for _, n := range rows {
		result.Tokens += n
	}
	for _, b := range batches {
		result.Targets += b.NumTargets()
	}
	if result.SGEMMGFLOPS, err = sgemmRate(info, rows, o.threads); err != nil {
		return fmt.Errorf("bench step: %w", err)
	}
	if err := result.measure(cmd, trainer, batches, o); err != nil {
		return fmt.Errorf("bench step: %w", err)
	}
	after, err := sgemmRate(info, rows, o.threads)
	if err != nil {
		return fmt.Errorf("bench step: %w", err)
	}
	result.SGEMMGFLOPS = max(result.SGEMMGFLOPS, after)
	result.GFLOPS = stepFLOP(info, rows, result.Targets) * result.TokensPerS / float64(result.Tokens) / 1e9
	return json.NewEncoder(out).Encode(result)
}

func benchParams(o benchOptions, keep engine.Keep, batches []pack.Batch) engine.Params {
	p := engine.Params{
		Rank: o.rank, Alpha: 2 * float64(o.rank), Targets: engine.TargetAllLinear, Keep: keep, Threads: o.threads,
		Beta1: 0.9, Beta2: 0.999, Eps: 1e-8,
	}
	for _, b := range batches {
		p.MaxTokens = max(p.MaxTokens, len(b.Tokens))
		p.MaxTargets = max(p.MaxTargets, b.NumTargets())
	}
	return p
}

// measure runs the steps and fills in times, memory and the last step's loss.
func (r *benchResult) measure(cmd *cobra.Command, trainer *engine.Trainer, batches []pack.Batch, o benchOptions) error {
	const lr, maxGradNorm = 2e-4, 1.0
	for step := range o.warmup + o.steps {
		began := time.Now()
		var sum float64
		for _, b := range batches {
			loss, _, err := trainer.Accumulate(cmd.Context(), engine.Batch(b))
			if err != nil {
				return err
			}
			sum += loss
		}
		norm, err := trainer.Apply(lr, maxGradNorm, float64(r.Targets))
		if err != nil {
			return err
		}
		if step >= o.warmup {
			r.StepMS = append(r.StepMS, float64(time.Since(began).Microseconds())/1000)
		}
		r.Loss, r.GradNorm = sum/float64(r.Targets), norm
	}
	sorted := slices.Sorted(slices.Values(r.StepMS))
	r.TokensPerS = 1000 * float64(r.Tokens) / sorted[len(sorted)/2]
	r.BestPerS = 1000 * float64(r.Tokens) / sorted[0]
	memory, err := trainer.Memory()
	if err != nil {
		return err
	}
	r.Memory, r.Keep = memory, memory.Keep.String()
	r.PeakRSSMB, err = peakRSSMB()
	return err
}

// randomRows makes one example per length, of ordinary tokens, the last share of which is supervised.
func randomRows(lengths []int, share float64, vocab int) []pack.Example {
	rng := rand.New(rand.NewPCG(0, 0))
	const firstOrdinary = 3
	examples := make([]pack.Example, len(lengths))
	for i, n := range lengths {
		e := pack.Example{ID: fmt.Sprintf("row %d", i+1), Weight: 1}
		for t := range n {
			token := int32(firstOrdinary + rng.IntN(vocab-firstOrdinary))
			label := int32(pack.IgnoreTarget)
			if t >= n-int(float64(n)*share) {
				label = token
			}
			e.Tokens, e.Labels = append(e.Tokens, token), append(e.Labels, label)
		}
		examples[i] = e
	}
	return examples
}

// stepFLOP is what a step cannot do without: forward and input gradient of every body weight for every token (4 per
// weight) and of the output head for every target, and causal attention, two products forward and five backward.
// The adapter's own products are left out, and so is all that is computed twice to save memory.
func stepFLOP(m engine.ModelInfo, rows []int, targets int) float64 {
	q, kv := float64(m.Heads*m.HeadDim), float64(m.HeadsKV*m.HeadDim)
	embd, ff := float64(m.Embedding), float64(m.FF*max(1, m.ExpertsUsed))
	body := float64(m.Layers) * (2*embd*q + 2*embd*kv + 3*embd*ff)
	flop := 4 * embd * float64(m.Vocab) * float64(targets)
	for _, n := range rows {
		t := float64(n)
		flop += 4*body*t + 7*t*t*q*float64(m.Layers)
	}
	return flop
}

// sgemmRate is the best rate of matrix products seen here, in GFLOP/s: the model's own shapes and one large square.
func sgemmRate(m engine.ModelInfo, rows []int, threads int) (float64, error) {
	const square = 1024
	t := slices.Max(rows)
	best := 0.0
	for _, shape := range [][3]int{{t, m.FF, m.Embedding}, {t, m.Embedding, m.FF}, {square, square, square}} {
		flops, err := engine.BenchSGEMM(shape[0], shape[1], shape[2], threads)
		if err != nil {
			return 0, err
		}
		best = max(best, flops/1e9)
	}
	return best, nil
}
