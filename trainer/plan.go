package trainer

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/objective"
	"cftune/trainer/pack"
)

// Plan is what a run will do: the result of looking at all of its data before the model trains.
type Plan struct {
	Steps    int   `json:"steps"`
	Records  int   `json:"records"` // of an epoch
	Examples int64 `json:"examples"`
	Tokens   int64 `json:"tokens"` // positions of the examples; fewer are computed where prefixes are shared
	Targets  int64 `json:"targets"`
	// Objective has the number of examples of each objective.
	Objective map[string]int64 `json:"objective"`
	// Longest is the number of positions that the longest example takes in a pack, held-out ones included. 0: the run is of a version
	// that did not look.
	Longest    int        `json:"longest"`
	OverLong   OverLong   `json:"over_long"`
	Validation Validation `json:"validation"`
}

// OverLong tells what became of examples longer than a pack. Examples are counted once, however many epochs have them.
type OverLong struct {
	Policy  string   `json:"policy"`
	Count   int      `json:"count"`
	Longest int      `json:"longest"`         // positions, before any cut
	First   []string `json:"first,omitempty"` // IDs
}

// Validation counts what the validation loss is measured on.
type Validation struct {
	Examples int   `json:"examples"`
	Targets  int64 `json:"targets"`
}

// slot is what the planner remembers of a record under an objective: the positions of its one part, 0 if it has none.
type slot struct {
	length, targets int32
	known, split    bool // split: its parts are in the planner's
}

// fault is a record that cannot be used.
type fault struct {
	record int
	id     string
	length int
	err    error
}

// planner encodes every pick of a run once and remembers its size.
type planner struct {
	encoder *encoder
	grouper *grouper
	slots   map[string][]slot // by objective, then record

	mu     sync.Mutex
	faults []fault
	long   []fault // dropped, truncated or split
	parts  map[pick][]int
	seen   atomic.Int64

	ahead dataset.Cursor // up to where picks were encoded ahead

	looking func(done, total int, left time.Duration) // nil tells nobody
}

// aheadRecords is how many records are encoded at once, by all cores.
const aheadRecords = 1024

func newPlanner(e *encoder) *planner {
	p := &planner{encoder: e, slots: map[string][]slot{}, parts: map[pick][]int{}}
	stages := e.run.Objective.Stages
	p.want(objective.Objectives(stages...))
	p.grouper = &grouper{run: e.run, set: e.set, records: e.set.EpochLen(), course: objective.NewCourse(stages), size: p.size}
	return p
}

// want makes room for what is found out about records under the objectives.
func (p *planner) want(objectives []string) {
	for _, name := range objectives {
		if p.slots[name] == nil {
			p.slots[name] = make([]slot, p.encoder.set.Len())
		}
	}
}

func (p *planner) slot(k pick) *slot { return &p.slots[k.objective][k.record] }

// size implements grouper.size; faults are collected and have no parts.
func (p *planner) size(k pick) ([]int, error) {
	s := p.slot(k)
	if !s.known {
		p.look(k)
	}
	switch {
	case s.split:
		return p.parts[k], nil
	case s.length > 0:
		return []int{int(s.length)}, nil
	}
	return nil, nil
}

// look encodes a pick into its slot. Different picks may be looked at at once.
func (p *planner) look(k pick) {
	e, err := p.encoder.encode(k.record, k.objective)
	p.seen.Add(1)
	s := slot{known: true}
	if err == nil {
		s.targets, s.split = int32(e.targets()), len(e.parts) > 1
		if len(e.parts) == 1 {
			s.length = int32(pack.Len(e.parts[0]))
		}
	}
	*p.slot(k) = s
	if err == nil && e.outcome == fits {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	f := fault{k.record, e.example.ID, e.length, err}
	if err != nil {
		p.faults = append(p.faults, f)
		return
	}
	p.long = append(p.long, f)
	if s.split {
		p.parts[k] = e.lengths()
	}
}

// lookAhead encodes what comes from a cursor on in parallel. Where a later step belongs to another stage than the last
// one, a pick may be missed here; size then encodes it.
func (p *planner) lookAhead(ctx context.Context, at dataset.Cursor) error {
	if at.Epoch >= p.encoder.run.Train.Epochs || at.Epoch == p.ahead.Epoch && at.Index < p.ahead.Index {
		return ctx.Err()
	}
	end := min(at.Index+aheadRecords, p.grouper.records)
	p.ahead = dataset.Cursor{Epoch: at.Epoch, Index: end}
	var wanted []pick
	for i := at.Index; i < end; i++ {
		if k := p.grouper.pickAt(dataset.Cursor{Epoch: at.Epoch, Index: i}); !p.slot(k).known {
			wanted = append(wanted, k)
		}
	}
	return parallel(ctx, len(wanted), func(i int) { p.look(wanted[i]) })
}

// parallel calls work for 0..n-1 on all cores. It ends early when ctx does.
func parallel(ctx context.Context, n int, work func(i int)) error {
	var wg sync.WaitGroup
	var next atomic.Int64
	for range min(runtime.GOMAXPROCS(0), n) {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < n && ctx.Err() == nil; i = int(next.Add(1)) - 1 {
				work(i)
			}
		})
	}
	wg.Wait()
	return ctx.Err()
}

// plan goes through the whole run without training. Faults of the data come back together, as a *DataError.
func (p *planner) plan(ctx context.Context) (Plan, error) {
	run := p.encoder.run
	plan := Plan{Records: p.grouper.records, Objective: map[string]int64{}}
	var at dataset.Cursor
	look := newLookout(p.looking, p.positions())
	for run.Train.MaxSteps == 0 || plan.Steps < run.Train.MaxSteps {
		if err := p.lookAhead(ctx, at); err != nil {
			return Plan{}, err
		}
		group, err := p.grouper.group(at, plan.Steps+1)
		if err != nil {
			return Plan{}, err
		}
		if len(group.picks) == 0 {
			break
		}
		plan.Steps++
		at = group.end
		plan.add(p, group)
		look.at(at.Epoch*p.grouper.records + at.Index)
	}
	if hasPlateau(run.Objective.Stages) {
		// Nobody knows when its stage ends, so that any record may come under any objective.
		if err := p.lookAtAll(ctx, objective.Objectives(run.Objective.Stages...)); err != nil {
			return Plan{}, err
		}
	}
	if err := p.dataError(); err != nil {
		return Plan{}, err
	}
	if plan.Steps == 0 {
		return Plan{}, &DataError{Problems: []string{fmt.Sprintf("of %d records, none is left to train on", plan.Records)}}
	}
	plan.OverLong = overLong(run.Data.OverLong, p.long)
	plan.Longest = p.longest()
	return plan, nil
}

// positions is how many picks the run has at most.
func (p *planner) positions() int {
	train := p.encoder.run.Train
	n := train.Epochs * p.grouper.records
	if train.MaxSteps > 0 && train.GlobalBatch.Examples > 0 {
		n = min(n, train.MaxSteps*train.GlobalBatch.Examples)
	}
	return n
}

// longest is the number of positions of the longest example that was looked at.
func (p *planner) longest() int {
	n := 0
	for _, slots := range p.slots {
		for _, s := range slots {
			n = max(n, int(s.length))
		}
	}
	for _, lengths := range p.parts {
		n = max(n, slices.Max(lengths))
	}
	return n
}

func hasPlateau(stages []config.Stage) bool {
	return slices.ContainsFunc(stages, func(s config.Stage) bool { return s.Until.Plateau > 0 })
}

// lookAtAll encodes every record under every one of the objectives.
func (p *planner) lookAtAll(ctx context.Context, objectives []string) error {
	p.want(objectives)
	n := p.encoder.set.Len()
	look := newLookout(p.looking, n*len(objectives))
	return parallel(ctx, n*len(objectives), func(i int) {
		defer look.looked()
		if k := (pick{i % n, objectives[i/n]}); !p.slot(k).known {
			p.look(k)
		}
	})
}

// check reports, as a *DataError, records that cannot be trained under the stages' objectives.
func (p *planner) check(ctx context.Context, stages []config.Stage) error {
	if err := p.lookAtAll(ctx, objective.Objectives(stages...)); err != nil {
		return err
	}
	return p.dataError()
}

// add counts a step.
func (plan *Plan) add(p *planner, group picked) {
	for _, k := range group.picks {
		plan.Targets += int64(p.slot(k).targets)
		plan.Objective[k.objective]++
	}
	plan.Tokens += group.tokens()
	plan.Examples += int64(len(group.picks))
}

func overLong(policy string, long []fault) OverLong {
	o := OverLong{Policy: policy, Count: len(long)}
	slices.SortFunc(long, byRecord)
	for _, f := range long {
		o.Longest = max(o.Longest, f.length)
		if len(o.First) < maxNamed {
			o.First = append(o.First, f.id)
		}
	}
	return o
}

func byRecord(a, b fault) int { return a.record - b.record }

// dataError puts the faults into words, by their kinds.
func (p *planner) dataError() error {
	return faultsError(p.faults, int(p.seen.Load()), p.encoder.run.Train.SeqLen)
}

func faultsError(faults []fault, seen, seqLen int) error {
	if len(faults) == 0 {
		return nil
	}
	slices.SortFunc(faults, byRecord)
	var long, masked, overlap, layout, other []fault
	for _, f := range faults {
		switch {
		case errors.Is(f.err, errOverlap):
			overlap = append(overlap, f)
		case errors.Is(f.err, errTooLong):
			long = append(long, f)
		case errors.Is(f.err, pack.ErrNoTargets):
			masked = append(masked, f)
		case errors.Is(f.err, errLayout):
			layout = append(layout, f)
		default:
			other = append(other, f)
		}
	}
	e := &DataError{TooLong: len(long) > 0, Objective: len(layout) > 0, Overlap: len(overlap) > 0}
	if n := len(long); n > 0 {
		longest := slices.MaxFunc(long, func(a, b fault) int { return a.length - b.length })
		e.Problems = append(e.Problems, fmt.Sprintf("%d of %d examples are longer than a pack of %d tokens (train.seq_len), the longest has %d: %s",
			n, seen, seqLen, longest.length, named(ids(long), n)))
	}
	if n := len(masked); n > 0 {
		e.Problems = append(e.Problems, fmt.Sprintf("%d of %d examples have no token that is learned: all are masked: %s",
			n, seen, named(ids(masked), n)))
	}
	if n := len(overlap); n > 0 {
		e.Problems = append(e.Problems, overlapText(n, seen, ids(overlap)))
	}
	e.Fields = slices.ContainsFunc(other, func(f fault) bool { return errors.Is(f.err, dataset.ErrMissing) })
	for _, list := range [][]fault{layout, other} {
		if n := len(list); n > 0 {
			e.Problems = append(e.Problems, fmt.Sprintf("%d of %d records cannot be used:", n, seen))
			for _, f := range list[:min(n, maxNamed)] {
				e.Problems = append(e.Problems, "  "+words(f.err))
			}
			if more := n - maxNamed; more > 0 {
				e.Problems = append(e.Problems, fmt.Sprintf("  and %d more", more))
			}
		}
	}
	return e
}

func countMasked(faults []fault) int {
	n := 0
	for _, f := range faults {
		if errors.Is(f.err, pack.ErrNoTargets) {
			n++
		}
	}
	return n
}

// words leaves out what only errors.Is needs.
func words(err error) string {
	if u, ok := err.(interface{ Unwrap() []error }); ok && errors.Is(err, errLayout) {
		return u.Unwrap()[1].Error()
	}
	return err.Error()
}

func ids(faults []fault) []string {
	list := make([]string, len(faults))
	for i, f := range faults {
		list[i] = f.id
	}
	return list
}

// held is what the validation loss is measured on, for one objective.
type held struct {
	objective string
	batches   []pack.Batch
	targets   int
}

// encodeHeld encodes all held-out records under the objectives and packs them.
func encodeHeld(ctx context.Context, e *encoder, names []string, plan *Plan) ([]held, error) {
	var picks []pick
	for i := range e.set.Len() {
		for _, name := range names {
			picks = append(picks, pick{i, name})
		}
	}
	results := make([]encoded, len(picks))
	errs := make([]error, len(picks))
	if err := parallel(ctx, len(picks), func(i int) { results[i], errs[i] = e.encode(picks[i].record, picks[i].objective) }); err != nil {
		return nil, err
	}
	var faults, long []fault
	examples := map[string][]pack.Example{}
	tokenized := map[int]bool{}
	for i, r := range results {
		if name := r.example.Objective; name == objective.Tokenized {
			if tokenized[picks[i].record] {
				continue // the same under every objective
			}
			tokenized[picks[i].record] = true
		}
		if errs[i] != nil {
			faults = append(faults, fault{picks[i].record, r.example.ID, r.length, errs[i]})
			continue
		}
		if r.outcome != fits {
			long = append(long, fault{picks[i].record, r.example.ID, r.length, nil})
		}
		if r.outcome != dropped {
			for _, part := range r.parts {
				plan.Longest = max(plan.Longest, pack.Len(part))
			}
			examples[r.example.Objective] = append(examples[r.example.Objective], r.parts...)
			plan.Validation.Examples++
		}
	}
	if err := faultsError(faults, len(picks), e.run.Train.SeqLen); err != nil {
		return nil, fmt.Errorf("validation %w", err)
	}
	if len(examples) == 0 {
		return nil, &DataError{Problems: []string{fmt.Sprintf("validation: of %d records, none is left", e.set.Len())}}
	}
	plan.OverLong.Count += len(long)
	return packHeld(examples, e.run, plan)
}

func packHeld(examples map[string][]pack.Example, run config.Run, plan *Plan) ([]held, error) {
	var sets []held
	for _, name := range slices.Sorted(maps.Keys(examples)) {
		batches, _, err := build(run, examples[name])
		if err != nil {
			return nil, fmt.Errorf("validation: %w", err)
		}
		h := held{objective: name, batches: batches}
		for _, b := range batches {
			h.targets += b.NumTargets()
		}
		plan.Validation.Targets += int64(h.targets)
		sets = append(sets, h)
	}
	return sets, nil
}
