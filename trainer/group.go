package trainer

import (
	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/objective"
	"cftune/trainer/pack"
)

// pick is a record of a step's group, with the objective that it is trained under.
type pick struct {
	record    int
	objective string
}

// order is what a grouper asks of a set: which record is at a place of an epoch.
type order interface {
	Order(seed uint64, epoch int, shuffle bool) func(place int) int
}

// grouper says which records a step is made of. That is a function of the place in the order, of the stage that the
// course has there, and of the records' lengths: planning and training both ask it, and so does a resumed run.
type grouper struct {
	run     config.Run
	set     order
	records int // of an epoch
	course  *objective.Course
	tokens  int64 // of the groups before
	// size returns the lengths of a pick's parts, in positions of a pack; none: it is left out.
	size func(pick) ([]int, error)

	epoch int // of order
	order func(int) int
}

// grouper begins where the run stands; it has no size yet.
func (t *Trainer) grouper() *grouper {
	return &grouper{run: t.run, set: t.set, records: t.set.EpochLen(), course: t.course.Clone(), tokens: t.counters.Tokens}
}

// pickAt returns the pick at a place of the order, in the stage that the course stands in.
func (g *grouper) pickAt(at dataset.Cursor) pick {
	if g.order == nil || g.epoch != at.Epoch {
		g.epoch, g.order = at.Epoch, g.set.Order(g.run.Seed, at.Epoch, g.run.Data.Shuffle)
	}
	position := uint64(at.Epoch)*uint64(g.records) + uint64(at.Index)
	return pick{record: g.order(at.Index), objective: g.course.Pick(g.run.Seed, position)}
}

// picked is a step's group: its records, the lengths of all their parts, the epoch that they are of, and the cursor after
// them.
type picked struct {
	picks   []pick
	lengths []int
	epoch   int
	end     dataset.Cursor
}

func (p picked) tokens() int64 {
	sum := 0
	for _, n := range p.lengths {
		sum += n
	}
	return int64(sum)
}

// group returns the records of a step that begin at a cursor; none when the epochs are over. A group ends with its
// epoch, and all of it is of one stage.
func (g *grouper) group(at dataset.Cursor, step int) (picked, error) {
	var p picked
	for at.Epoch < g.run.Train.Epochs {
		if at.Index < g.records {
			g.course.Advance(objective.At{Step: step, Epoch: at.Epoch, Tokens: g.tokens})
		}
		for at.Index < g.records {
			if batch := g.run.Train.GlobalBatch.Examples; batch > 0 && len(p.picks) == batch {
				return g.done(p, at), nil // without a look at the next one
			}
			k := g.pickAt(at)
			parts, err := g.size(k)
			if err != nil {
				return picked{}, err
			}
			if len(parts) > 0 {
				if len(p.picks) > 0 && !g.takes(p, parts) {
					return g.done(p, at), nil
				}
				p.picks, p.lengths, p.epoch = append(p.picks, k), append(p.lengths, parts...), at.Epoch
			}
			at.Index++
		}
		at = dataset.Cursor{Epoch: at.Epoch + 1}
		if len(p.picks) > 0 {
			return g.done(p, at), nil
		}
	}
	return g.done(p, at), nil
}

func (g *grouper) done(p picked, end dataset.Cursor) picked {
	p.end = end
	g.tokens += p.tokens()
	return p
}

// takes reports whether the parts of one more record belong to a group: the global batch is as many records as there may
// be, as many as have no more than its tokens together, or as many as its packs hold.
func (g *grouper) takes(p picked, parts []int) bool {
	batch := g.run.Train.GlobalBatch
	with := append(p.lengths[:len(p.lengths):len(p.lengths)], parts...)
	switch {
	case batch.Examples > 0:
		return len(p.picks) < batch.Examples
	case batch.Tokens > 0:
		return picked{lengths: with}.tokens() <= int64(batch.Tokens)
	}
	return len(pack.Plan(with, g.run.Train.SeqLen)) <= batch.Packs
}
