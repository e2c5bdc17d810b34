package trainer

import (
	"context"
	"fmt"

	"cftune/trainer/dataset"
	"cftune/trainer/pack"
)

// group is what one step trains on.
type group struct {
	step    int
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

// feed makes the groups of the steps after done, up to and with last, in a goroutine of its own. It ends with the last
// one, with an error in a group, or with ctx; the channel is then closed.
func (t *Trainer) feed(ctx context.Context, last int) <-chan group {
	groups := make(chan group, feedAhead)
	g := &feeder{encoder: t.encoder}
	g.grouper = &grouper{run: t.run, records: t.set.Len(), size: g.size}
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
			if next.err != nil {
				return
			}
		}
	}()
	return groups
}

// feeder encodes the picks of a group; the group's own size question keeps what it has encoded.
type feeder struct {
	encoder *encoder
	grouper *grouper
	made    map[pick]encoded
}

func (f *feeder) size(k pick) (sized, error) {
	e, ok := f.made[k]
	if !ok {
		var err error
		if e, err = f.encoder.encode(k.record, k.objective); err != nil {
			return sized{}, err
		}
		f.made[k] = e
	}
	return sized{length: pack.Len(e.example), skipped: e.outcome == dropped}, nil
}

func (f *feeder) make(at dataset.Cursor, step int) group {
	// What the last group looked at and left is the first of this one, and is kept; the rest is not needed again.
	last := f.made
	f.made = map[pick]encoded{}
	if at.Epoch < f.grouper.run.Train.Epochs && at.Index < f.grouper.records {
		if k := f.grouper.pickAt(at, step); last != nil {
			if e, ok := last[k]; ok {
				f.made[k] = e
			}
		}
	}
	fail := func(err error) group {
		return group{step: step, end: at, err: &DataError{Problems: []string{words(err)}}}
	}
	picks, lengths, end, err := f.grouper.group(at, step)
	if err != nil {
		return fail(err)
	}
	if len(picks) == 0 {
		return fail(fmt.Errorf("the records end before step %d, though they were planned to last longer", step))
	}
	g := group{step: step, end: end, examples: len(picks), objective: map[string]int{}}
	examples := make([]pack.Example, len(picks))
	for i, k := range picks {
		examples[i] = f.made[k].example
		g.objective[examples[i].Objective]++
		g.tokens += lengths[i]
	}
	seqLen := f.grouper.run.Train.SeqLen
	if g.batches, err = pack.Build(examples, seqLen); err != nil {
		return fail(err)
	}
	for _, items := range pack.Plan(lengths, seqLen) { // as Build laid them out
		names := make([]string, len(items))
		for n, i := range items {
			names[n] = examples[i].ID
		}
		g.ids = append(g.ids, names)
	}
	return g
}
