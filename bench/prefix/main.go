// Command prefix measures what sharing prefixes saves: rows per second of training steps on a stream of critiques of
// one query, with packs of trees (pack.BuildShared) against packs of separate rows (pack.Build), by the same engine in
// the same run.
//
// The stream is that of One-Shot-CFT: one query, some answers, some critiques of each; lengths.go has the lengths. Tokens
// are random: they cost what real ones do. Both sides take turns on pieces of the stream, so that a machine whose speed
// changes does not favour one. Beside the measured ratio stands that of the positions computed, which bounds it while
// a position costs the same.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"cftune/bindings/engine"
	"cftune/trainer/pack"
)

type options struct {
	model, output      string
	keep               engine.Keep
	cases              []string
	answers, critiques int
	seqLen             int
	rank, threads      int
	rounds             int
	countOnly          bool
}

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func parse() (options, error) {
	var o options
	var cases, keep string
	flag.StringVar(&o.model, "model", "", "base model, a GGUF file (required unless --count)")
	flag.StringVar(&o.output, "output", "", "path of the results (default: bench/results/DATE-prefix.md)")
	flag.StringVar(&cases, "cases", "all,DSR-p1", "of "+strings.Join(names(), ", "))
	flag.IntVar(&o.answers, "answers", 20, "answers to the query")
	flag.IntVar(&o.critiques, "critiques", 7, "critiques of each answer")
	flag.IntVar(&o.seqLen, "seq-len", 8192, "capacity of a pack in tokens")
	flag.StringVar(&keep, "keep-activations", "auto", "all, layers (recompute the inside of layers), or auto: all if it fits")
	flag.IntVar(&o.rank, "rank", 16, "rank of the adapter, on all linear modules")
	flag.IntVar(&o.threads, "threads", 2, "CPU threads")
	flag.IntVar(&o.rounds, "rounds", 1, "times that all is measured; the fastest counts, for both sides")
	flag.BoolVar(&o.countOnly, "count", false, "count positions of all cases, measure nothing")
	flag.Parse()
	o.cases = strings.Split(cases, ",")
	if o.countOnly {
		o.cases = names()
	}
	var known bool
	o.keep, known = map[string]engine.Keep{"auto": engine.KeepAuto, "all": engine.KeepAll, "layers": engine.KeepLayers}[keep]
	switch {
	case !known:
		return o, fmt.Errorf("--keep-activations: %q is not auto, all or layers", keep)
	case flag.NArg() > 0:
		return o, fmt.Errorf("unknown argument %s", flag.Arg(0))
	case o.model == "" && !o.countOnly:
		return o, errors.New("--model is missing")
	case o.answers < 1 || o.critiques < 1 || o.rounds < 1:
		return o, errors.New("--answers, --critiques and --rounds must be at least 1")
	}
	if o.output == "" {
		o.output = filepath.Join("bench", "results", time.Now().Format(time.DateOnly)+"-prefix.md")
	}
	return o, nil
}

func names() []string {
	var all []string
	for _, s := range shapes {
		all = append(all, s.name)
	}
	return all
}

func find(name string) (shape, error) {
	for _, s := range shapes {
		if s.name == name {
			return s, nil
		}
	}
	return shape{}, fmt.Errorf("no case %s: have %s", name, strings.Join(names(), ", "))
}

func run() error {
	o, err := parse()
	if err != nil {
		return err
	}
	if o.countOnly {
		return o.count()
	}
	model, err := engine.Load(o.model, "cpu")
	if err != nil {
		return err
	}
	defer model.Close()
	info, err := model.Info()
	if err != nil {
		return err
	}
	table := header
	for _, name := range o.cases {
		s, err := find(name)
		if err != nil {
			return err
		}
		st, err := newStream(s, o, info.Vocab)
		if err != nil {
			return err
		}
		if err := st.measure(model, o); err != nil {
			return fmt.Errorf("case %s: %w", name, err)
		}
		table += st.row()
	}
	return o.write(table)
}

// count tells each case's positions, which takes no model.
func (o options) count() error {
	for _, s := range shapes {
		st, err := newStream(s, o, 1<<15)
		if err != nil {
			return err
		}
		fmt.Printf("%-8s %4d rows, %d left out, %7d tokens; computed %7d apart, %7d shared: %.2f\n", s.name, len(st.rows),
			st.leftOut, st.tokens, st.apart.positions, st.shared.positions, float64(st.apart.positions)/float64(st.shared.positions))
	}
	return nil
}

// side is one way to pack a stream, and the best time seen.
type side struct {
	batches   []pack.Batch
	positions int
	seconds   float64
	loss      float64
}

type stream struct {
	shape         shape
	rows          []pack.Example
	leftOut       int // rows longer than a pack
	tokens        int
	targets       int
	apart, shared side
	keep          engine.Keep // what the trainer chose
}

func newStream(s shape, o options, vocab int) (*stream, error) {
	st := &stream{shape: s}
	for _, e := range s.rows(o.answers, o.critiques, vocab) {
		if pack.Len(e) > o.seqLen {
			st.leftOut++
			continue
		}
		st.rows = append(st.rows, e)
		st.tokens += len(e.Tokens)
		st.targets += pack.NumTargets(e)
	}
	var err error
	if st.apart.batches, err = pack.Build(st.rows, o.seqLen); err != nil {
		return nil, err
	}
	if st.shared.batches, _, err = pack.BuildShared(st.rows, o.seqLen); err != nil {
		return nil, err
	}
	for _, side := range []*side{&st.apart, &st.shared} {
		side.seconds = math.Inf(1)
		for _, b := range side.batches {
			side.positions += len(b.Tokens)
		}
	}
	return st, nil
}

func (st *stream) measure(model *engine.Model, o options) error {
	params := engine.Params{
		Rank: o.rank, Alpha: 2 * float64(o.rank), Targets: engine.TargetAllLinear, Keep: o.keep, Threads: o.threads,
		Beta1: 0.9, Beta2: 0.999, Eps: 1e-8,
	}
	for _, side := range []*side{&st.apart, &st.shared} {
		for _, b := range side.batches {
			params.MaxTokens = max(params.MaxTokens, len(b.Tokens))
			params.MaxTargets = max(params.MaxTargets, b.NumTargets())
		}
	}
	trainer, err := engine.NewTrainer(model, params)
	if err != nil {
		return err
	}
	defer trainer.Close()
	memory, err := trainer.Memory()
	if err != nil {
		return err
	}
	st.keep = memory.Keep
	// Pages of weights and buffers are touched once before anything counts.
	if _, _, err := trainer.Accumulate(context.Background(), engine.Batch(st.shared.batches[len(st.shared.batches)-1])); err != nil {
		return err
	}
	trainer.Discard()
	for round := range o.rounds {
		if err := st.round(trainer); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, "%s, round %d: %.1f s apart, %.1f s shared\n", st.shape.name, round+1, st.apart.seconds, st.shared.seconds)
	}
	// The same rows: the same loss, but for the order of summation.
	if difference := math.Abs(st.apart.loss-st.shared.loss) / st.apart.loss; !(difference < maxLossDifference) {
		return fmt.Errorf("the losses are %.6f apart and %.6f shared", st.apart.loss, st.shared.loss)
	}
	return nil
}

// maxLossDifference is relative; fp32 sums over a few thousand positions were seen to differ by 1e-7.
const maxLossDifference = 1e-6

// round computes the whole stream once by each side, in turns: whichever is behind, by its share of positions, goes on.
func (st *stream) round(trainer *engine.Trainer) error {
	sides := []*side{&st.apart, &st.shared}
	var next, done [2]int
	var seconds, loss [2]float64
	for next[0] < len(sides[0].batches) || next[1] < len(sides[1].batches) {
		i := 0
		if next[0] == len(sides[0].batches) || next[1] < len(sides[1].batches) &&
			done[1]*sides[0].positions < done[0]*sides[1].positions {
			i = 1
		}
		b := sides[i].batches[next[i]]
		began := time.Now()
		sum, _, err := trainer.Accumulate(context.Background(), engine.Batch(b))
		if err != nil {
			return err
		}
		seconds[i] += time.Since(began).Seconds()
		loss[i] += sum
		next[i]++
		done[i] += len(b.Tokens)
		trainer.Discard()
	}
	for i, side := range sides {
		side.seconds, side.loss = min(side.seconds, seconds[i]), loss[i]/float64(st.targets)
	}
	return nil
}

const header = `| lengths | activations kept | rows | left out | tokens a row | targets a row | positions apart | shared | ratio | rows/s apart | shared | ratio |
|---|---|---|---|---|---|---|---|---|---|---|---|
`

func (st *stream) row() string {
	n := float64(len(st.rows))
	return fmt.Sprintf("| %s | %s | %d | %d | %.0f | %.0f | %d | %d | %.2f | %.3f | %.3f | %.2f |\n", st.shape.name, st.keep, len(st.rows), st.leftOut,
		float64(st.tokens)/n, float64(st.targets)/n, st.apart.positions, st.shared.positions,
		float64(st.apart.positions)/float64(st.shared.positions),
		n/st.apart.seconds, n/st.shared.seconds, st.apart.seconds/st.shared.seconds)
}

// limit tells what the ratio of positions is bounded by, whatever the engine does.
const limit = `A critique's own positions are computed for every row, shared or not. So with q, a and c tokens of query, answer and
critique, the positions' ratio is at most (q + a + c) / (c + a / critiques + q / rows), whatever the engine does; the
output head, which sees the targets alone, costs both sides the same.
`

func (o options) write(table string) error {
	text := fmt.Sprintf(`# Prefix sharing: rows per second

Made by %s. %s, rank %d, all seven linear modules, fp32, packs of at most %d positions, %d threads of %d
(%s); one query, %d answers, %d critiques each, lengths as One-Shot-CFT's; forward and backward of every pack, best of
%d rounds; %s.

%s
%s`, "`bench/prefix/run`", filepath.Base(o.model), o.rank, o.seqLen, o.threads, runtime.NumCPU(), engine.CPUFeatures(), o.answers, o.critiques, o.rounds,
		time.Now().Format(time.DateOnly), table, limit)
	fmt.Print(text)
	if err := os.MkdirAll(filepath.Dir(o.output), 0o755); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	if err := os.WriteFile(o.output, []byte(text), 0o644); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}
