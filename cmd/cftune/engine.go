package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"cftune/bindings/engine"
	"cftune/trainer"
	"cftune/trainer/config"
	"cftune/trainer/gguf"
	"cftune/trainer/pack"
)

// nativeEngine lets the loop train on the native engine.
type nativeEngine struct {
	model   *engine.Model
	trainer *engine.Trainer
	memory  engine.MemoryEstimate
}

var _ trainer.Engine = (*nativeEngine)(nil)

// openEngine loads the configuration's base model and makes the adapter. maxSequence is as trainer.Record has it.
func openEngine(run config.Run, maxSequence int) (*nativeEngine, error) {
	params, err := engineParams(run)
	if err != nil {
		return nil, err
	}
	params.MaxSequence = maxSequence
	model, err := engine.Load(run.Model, run.Device)
	if err != nil {
		return nil, engineError(err)
	}
	e := &nativeEngine{model: model}
	if e.trainer, err = engine.NewTrainer(model, params); err != nil {
		e.Close()
		return nil, paramsError(err)
	}
	if e.memory, err = e.trainer.Memory(); err != nil {
		e.Close()
		return nil, engineError(err)
	}
	return e, nil
}

// windowNote warns of sequences that llama.cpp computes otherwise than the model's own code and this engine; it is empty where
// there is nothing to say.
func windowNote(m engine.ModelInfo, seqLen int) string {
	if !m.WindowUnserved || seqLen <= m.Window {
		return ""
	}
	return fmt.Sprintf("the model looks back over %d tokens, which llama.cpp does not keep to for architecture %s: what it generates beyond %d tokens is not what was trained",
		m.Window, m.Architecture, m.Window)
}

// Close frees adapter and model.
func (e *nativeEngine) Close() {
	if e.trainer != nil {
		e.trainer.Close()
	}
	e.model.Close()
}

func (e *nativeEngine) Accumulate(ctx context.Context, b pack.Batch) (lossSum float64, targets int, err error) {
	lossSum, targets, err = e.trainer.Accumulate(ctx, engine.Batch(b))
	return lossSum, targets, passError(err)
}

func (e *nativeEngine) Evaluate(ctx context.Context, b pack.Batch) (lossSum float64, targets int, err error) {
	lossSum, targets, err = e.trainer.Evaluate(ctx, engine.Batch(b))
	return lossSum, targets, passError(err)
}

// passError is engineError for a pass over the weights, which reads no file but theirs.
func passError(err error) error {
	if errors.Is(err, engine.ErrIO) {
		err = fmt.Errorf("%w: %w", trainer.ErrModelGone, err)
	}
	return engineError(err)
}

func (e *nativeEngine) Apply(lr, maxGradNorm, normalizer float64) (gradNorm float64, err error) {
	gradNorm, err = e.trainer.Apply(lr, maxGradNorm, normalizer)
	return gradNorm, engineError(err)
}

func (e *nativeEngine) Discard() { e.trainer.Discard() }

func (e *nativeEngine) MemoryBytes() uint64 { return e.memory.Total }

func (e *nativeEngine) State() (trainer.State, error) {
	s, err := e.trainer.State()
	if err != nil {
		return trainer.State{}, engineError(err)
	}
	state := trainer.State{Steps: s.Steps, MicroBatches: s.MicroBatches}
	for _, t := range s.Tensors {
		state.Tensors = append(state.Tensors, trainer.Tensor{
			Name: t.Name, Rows: t.Rows, Cols: t.Cols, Value: t.Value, Moment1: t.Moment1, Moment2: t.Moment2,
		})
	}
	return state, nil
}

func (e *nativeEngine) Restore(state trainer.State) error {
	s := engine.State{Steps: state.Steps, MicroBatches: state.MicroBatches}
	for _, t := range state.Tensors {
		s.Tensors = append(s.Tensors, engine.Tensor{
			TensorInfo: engine.TensorInfo{Name: t.Name, Rows: t.Rows, Cols: t.Cols},
			Value:      t.Value, Moment1: t.Moment1, Moment2: t.Moment2,
		})
	}
	return engineError(e.trainer.Restore(s))
}

// Gradient, SetGradient and SetMicroBatches are what a rank of several needs beside.
func (e *nativeEngine) Gradient(dst []float32) ([]float32, error) {
	g, err := e.trainer.Gradient(dst)
	return g, engineError(err)
}

func (e *nativeEngine) SetGradient(src []float32) error {
	return engineError(e.trainer.SetGradient(src))
}

func (e *nativeEngine) SetMicroBatches(n uint64) error {
	return engineError(e.trainer.SetMicroBatches(n))
}

var engineTargets = map[string]engine.Targets{
	"all_linear":  engine.TargetAllLinear,
	"attn_q":      engine.TargetAttnQ,
	"attn_k":      engine.TargetAttnK,
	"attn_v":      engine.TargetAttnV,
	"attn_qkv":    engine.TargetAttnQKV,
	"attn_output": engine.TargetAttnOutput,
	"ffn_gate":    engine.TargetFFNGate,
	"ffn_up":      engine.TargetFFNUp,
	"ffn_down":    engine.TargetFFNDown,
	"token_embd":  engine.TargetTokenEmbd,
	"output":      engine.TargetOutput,
}

var engineKeep = map[string]engine.Keep{"auto": engine.KeepAuto, "all": engine.KeepAll, "layers": engine.KeepLayers}

// engineParams takes from a validated configuration what the engine needs.
func engineParams(run config.Run) (engine.Params, error) {
	var targets engine.Targets
	for name := range strings.SplitSeq(run.Adapter.Targets, ",") {
		target, ok := engineTargets[strings.TrimSpace(name)]
		if !ok {
			return engine.Params{}, fmt.Errorf("adapter.targets: unknown module %q", name)
		}
		targets |= target
	}
	keep, ok := engineKeep[run.Train.KeepActivations]
	if !ok {
		return engine.Params{}, fmt.Errorf("train.keep_activations: unknown value %q", run.Train.KeepActivations)
	}
	if len(run.Optimizer.Betas) != 2 {
		return engine.Params{}, fmt.Errorf("optimizer.betas: want 2 values, got %d", len(run.Optimizer.Betas))
	}
	limit, err := run.Limits.Bytes()
	if err != nil {
		return engine.Params{}, fmt.Errorf("limits.memory: %w", err)
	}
	modules, err := setApart(run)
	if err != nil {
		return engine.Params{}, err
	}
	return engine.Params{
		Rank:          run.Adapter.Rank,
		Alpha:         run.Adapter.Alpha,
		RSLoRA:        run.Adapter.RSLoRA,
		DoRA:          run.Adapter.DoRA,
		LoRAPlusRatio: run.Adapter.LoRAPlusRatio,
		Modules:       modules,
		Dropout:       run.Adapter.Dropout,
		Targets:       targets,
		Seed:          run.Seed,
		Keep:          keep,
		MemoryLimit:   limit,
		MaxTokens:     run.Train.SeqLen,
		Threads:       run.Threads,
		Beta1:         run.Optimizer.Betas[0],
		Beta2:         run.Optimizer.Betas[1],
		Eps:           run.Optimizer.Eps,
		WeightDecay:   run.Optimizer.WeightDecay,
	}, nil
}

// setApart lists the modules whose rank or alpha is not the usual one, and those that adapter.layers leaves out.
func setApart(run config.Run) ([]engine.Module, error) {
	a := run.Adapter
	if a.Layers == "" && len(a.RankPattern) == 0 && len(a.AlphaPattern) == 0 {
		return nil, nil
	}
	base, err := gguf.Open(run.Model)
	if err != nil {
		return nil, fmt.Errorf("base model: %w", err)
	}
	chosen, err := trainer.AdapterModules(a, base)
	if err != nil {
		return nil, err
	}
	everywhere := a
	everywhere.Layers, everywhere.RankPattern, everywhere.AlphaPattern = "", nil, nil
	all, err := trainer.AdapterModules(everywhere, base)
	if err != nil {
		return nil, err
	}
	var apart []engine.Module
	for _, m := range all {
		mine := engine.Module{Layer: m.Layer, Target: engineTargets[m.Name]}
		if i := slices.IndexFunc(chosen, func(c config.Module) bool { return c.Layer == m.Layer && c.Name == m.Name }); i >= 0 {
			mine.Rank, mine.Alpha = chosen[i].Rank, chosen[i].Alpha
		}
		if mine.Rank != a.Rank || mine.Alpha != a.Alpha {
			apart = append(apart, mine)
		}
	}
	return apart, nil
}

// codedError is an error with the exit code that it ends the process with.
type codedError struct {
	error
	code int
}

func (e codedError) Unwrap() error { return e.error }
func (e codedError) ExitCode() int { return e.code }

// Is lets the loop know a loss that is not finite without knowing the engine.
func (e codedError) Is(target error) bool {
	return target == trainer.ErrNonFinite && e.code == codeNonFinite
}

// Exit codes that engine failures lead to.
const (
	codeUsage     = 2
	codeData      = 3
	codeDevice    = 5
	codeNonFinite = 6
)

// paramsError is engineError where the engine was given parameters, which are the configuration's: what it refuses there, such
// as target modules that the model does not have, is the configuration's fault.
func paramsError(err error) error {
	if errors.Is(err, engine.ErrInvalidArgument) {
		return codedError{err, codeUsage}
	}
	return engineError(err)
}

// engineError gives a failure of the native engine its exit code; other errors pass.
func engineError(err error) error {
	for code, kinds := range map[int][]error{
		codeData:      {engine.ErrIO, engine.ErrFormat, engine.ErrUnsupported},
		codeDevice:    {engine.ErrDevice, engine.ErrNoMemory},
		codeNonFinite: {engine.ErrNonFinite},
	} {
		for _, kind := range kinds {
			if errors.Is(err, kind) {
				return codedError{err, code}
			}
		}
	}
	return err
}
