package trainer

import (
	"context"

	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/pack"
)

// group is what one step trains on. One without batches says that the epochs are over.
type group struct {
	step    int
	epoch   int
	stage   int // number of the stage that the course had
	end     dataset.Cursor
	batches []pack.Batch
	// ids[i] are the examples of batch i.
	ids       [][]string
	examples  int
	tokens    int
	objective map[string]int
	err       error
}

// feedAhead is how many groups are made while the engine works on one.
const feedAhead = 2

// feed is a goroutine that makes groups.
type feed struct {
	groups <-chan group
	cancel context.CancelFunc
}

// stop ends the goroutine and waits until it has gone.
func (f *feed) stop() {
	f.cancel()
	for range f.groups {
	}
}

// startFeed makes the groups of the steps after done, up to and with the last, in a goroutine of its own. It ends with the
// last one, with the end of the epochs, with an error in a group, or with ctx; the channel is then closed.
func (t *Trainer) startFeed(ctx context.Context) *feed {
	ctx, cancel := context.WithCancel(ctx)
	groups := make(chan group, feedAhead)
	last := t.last()
	g := t.newFeeder()
	at, step := t.cursor, t.done
	go func() {
		defer close(groups)
		for step < last {
			step++
			next := g.make(at, step)
			at = next.end
			select {
			case groups <- next:
			case <-ctx.Done():
				return
			}
			if next.err != nil || next.batches == nil {
				return
			}
		}
	}()
	return &feed{groups, cancel}
}

// feeder encodes the picks of a group; what is not used is kept for the next.
type feeder struct {
	encoder *encoder
	grouper *grouper
	made    map[pick]encoded
}

// newFeeder begins where the run stands.
func (t *Trainer) newFeeder() *feeder {
	f := &feeder{encoder: t.encoder}
	f.grouper = t.grouper()
	f.grouper.size = f.size
	return f
}

func (f *feeder) size(k pick) ([]int, error) {
	e, ok := f.made[k]
	if !ok {
		var err error
		if e, err = f.encoder.encode(k.record, k.objective); err != nil {
			return nil, err
		}
		f.made[k] = e
	}
	return e.lengths(), nil
}

// feedRecords is how many records are encoded at once where a step's number of records is not known.
const feedRecords = 256

// lookAhead encodes what the next group most likely needs, on all cores. What fails here fails again in size, which
// reports it.
func (f *feeder) lookAhead(at dataset.Cursor) {
	n := f.grouper.run.Train.GlobalBatch.Examples
	if n == 0 {
		n = feedRecords
	}
	before := f.made
	f.made = map[pick]encoded{}
	if at.Epoch >= f.grouper.run.Train.Epochs {
		return
	}
	var missing []pick
	for i := at.Index; i < min(at.Index+n, f.grouper.records); i++ {
		k := f.grouper.pickAt(dataset.Cursor{Epoch: at.Epoch, Index: i})
		if e, ok := before[k]; ok {
			f.made[k] = e
		} else {
			missing = append(missing, k)
		}
	}
	results, errs := make([]encoded, len(missing)), make([]error, len(missing))
	_ = parallel(context.Background(), len(missing), func(i int) {
		results[i], errs[i] = f.encoder.encode(missing[i].record, missing[i].objective)
	})
	for i, k := range missing {
		if errs[i] == nil {
			f.made[k] = results[i]
		}
	}
}

func (f *feeder) make(at dataset.Cursor, step int) group {
	f.lookAhead(at)
	fail := func(err error) group {
		return group{step: step, end: at, err: &DataError{Problems: []string{words(err)}}}
	}
	p, err := f.grouper.group(at, step)
	if err != nil {
		return fail(err)
	}
	g := group{step: step, epoch: p.epoch, stage: f.grouper.course.Number(), end: p.end, examples: len(p.picks), objective: map[string]int{}}
	if len(p.picks) == 0 {
		return g
	}
	var examples []pack.Example
	for _, k := range p.picks {
		e := f.made[k]
		examples = append(examples, e.parts...)
		g.objective[e.example.Objective]++
	}
	g.tokens = int(p.tokens())
	batches, items, err := build(f.grouper.run, examples)
	if err != nil {
		return fail(err)
	}
	g.batches = batches
	for _, of := range items {
		names := make([]string, len(of))
		for n, i := range of {
			names[n] = examples[i].ID
		}
		g.ids = append(g.ids, names)
	}
	return g
}

// build packs the examples of a group; items[p] are those of batch p.
func build(run config.Run, examples []pack.Example) (batches []pack.Batch, items [][]int, err error) {
	// A step that is counted in packs holds as many examples as its packs do without sharing.
	if run.Train.SharePrefixes && run.Train.GlobalBatch.Packs == 0 {
		return pack.BuildShared(examples, run.Train.SeqLen)
	}
	if batches, err = pack.Build(examples, run.Train.SeqLen); err != nil {
		return nil, nil, err
	}
	lengths := make([]int, len(examples))
	for i, e := range examples {
		lengths[i] = pack.Len(e)
	}
	return batches, pack.Plan(lengths, run.Train.SeqLen), nil // as Build laid them out
}
