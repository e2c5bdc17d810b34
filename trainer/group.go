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

// sized is what grouping needs to know of a pick.
type sized struct {
	length  int // positions in a pack
	skipped bool
}

// grouper says which records a step is made of. That is a function of the place in the order and the step's number, and
// of the records' lengths: planning and training both ask it, and so does a resumed run.
type grouper struct {
	run     config.Run
	records int
	size    func(pick) (sized, error)

	epoch int // of order
	order func(int) int
}

// pickAt returns the pick at a place of the order for a step.
func (g *grouper) pickAt(at dataset.Cursor, step int) pick {
	if g.order == nil || g.epoch != at.Epoch {
		g.epoch, g.order = at.Epoch, dataset.Order(g.run.Seed, at.Epoch, g.records, g.run.Data.Shuffle)
	}
	position := uint64(at.Epoch)*uint64(g.records) + uint64(at.Index)
	return pick{
		record:    g.order(at.Index),
		objective: objective.Pick(g.run.Objective.Stages, g.run.Seed, position, step, at.Epoch),
	}
}

// group returns the picks of a step whose records begin at a cursor, their lengths, and the cursor after them. It
// returns none when the epochs are over. A group ends with its epoch.
func (g *grouper) group(at dataset.Cursor, step int) (picks []pick, lengths []int, end dataset.Cursor, err error) {
	for at.Epoch < g.run.Train.Epochs {
		for at.Index < g.records {
			if batch := g.run.Train.GlobalBatch.Examples; batch > 0 && len(picks) == batch {
				return picks, lengths, at, nil // without a look at the next one
			}
			p := g.pickAt(at, step)
			s, err := g.size(p)
			if err != nil {
				return nil, nil, at, err
			}
			if !s.skipped {
				if len(picks) > 0 && !g.takes(lengths, s.length) {
					return picks, lengths, at, nil
				}
				picks, lengths = append(picks, p), append(lengths, s.length)
			}
			at.Index++
		}
		at = dataset.Cursor{Epoch: at.Epoch + 1}
		if len(picks) > 0 {
			return picks, lengths, at, nil
		}
	}
	return nil, nil, at, nil
}

// takes reports whether one more example belongs to a group: the global batch is as many examples as there may be, as
// many as have no more than its tokens together, or as many as its packs hold.
func (g *grouper) takes(lengths []int, next int) bool {
	batch := g.run.Train.GlobalBatch
	switch {
	case batch.Examples > 0:
		return len(lengths) < batch.Examples
	case batch.Tokens > 0:
		sum := next
		for _, n := range lengths {
			sum += n
		}
		return sum <= batch.Tokens
	}
	with := append(lengths[:len(lengths):len(lengths)], next)
	return len(pack.Plan(with, g.run.Train.SeqLen)) <= batch.Packs
}
