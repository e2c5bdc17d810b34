package trainer

import (
	"context"
	"fmt"
	"math/rand/v2"
	"time"
)

// Supplied is what Supply made, and how fast.
type Supplied struct {
	Records  int     `json:"records"` // of the set
	Examples int     `json:"examples"`
	Tokens   int     `json:"tokens"`
	Targets  int     `json:"targets"`
	Packs    int     `json:"packs"`
	OpenS    float64 `json:"open_s"`  // until the data was open
	FirstS   float64 `json:"first_s"` // from then until the first step's packs were there
	Seconds  float64 `json:"seconds"` // from then until the last
}

// Supply makes the packs of a run's steps as training does - read, lay out, render, tokenize, mask, pack - without a look
// at all of the data first and without an engine, and counts them: the speed of the data path. It ends after so many
// steps (0: with the epochs).
func Supply(ctx context.Context, o Options, steps int) (Supplied, error) {
	t := newTrainer(o)
	defer t.Close()
	began := time.Now()
	if err := t.openData(ctx); err != nil {
		return Supplied{}, err
	}
	s := Supplied{Records: t.set.Len(), OpenS: time.Since(began).Seconds()}
	began = time.Now()
	f := t.newFeeder()
	at := t.cursor
	for step := 1; steps == 0 || step <= steps; step++ {
		if err := ctx.Err(); err != nil {
			return s, err
		}
		g := f.make(at, step)
		if g.err != nil {
			return s, g.err
		}
		if g.batches == nil {
			break
		}
		at = g.end
		s.Examples += g.examples
		s.Tokens += g.tokens
		s.Packs += len(g.batches)
		for _, b := range g.batches {
			s.Targets += b.NumTargets()
		}
		if step == 1 {
			s.FirstS = time.Since(began).Seconds()
		}
	}
	s.Seconds = time.Since(began).Seconds()
	return s, nil
}

// OrderChecked is what CheckOrder looked at.
type OrderChecked struct {
	Places  int     `json:"places"` // of an epoch, each with a record of its own
	Cursors int     `json:"cursors"`
	Records int     `json:"records"` // read twice, by two openings of the data
	Seconds float64 `json:"seconds"`
}

// cursorRecords is how many records are read from each cursor on.
const cursorRecords = 10

// CheckOrder goes through the order of the first two epochs and reports an error unless each has every record as often as
// the others; and it opens the data a second time, goes on at so many random places, and reports an error unless the same
// records come there.
func CheckOrder(ctx context.Context, o Options, cursors int) (OrderChecked, error) {
	began := time.Now()
	t := newTrainer(o)
	defer t.Close()
	if err := t.openData(ctx); err != nil {
		return OrderChecked{}, err
	}
	n, records := t.set.EpochLen(), t.set.Len()
	if n != records {
		return OrderChecked{}, fmt.Errorf("check order: sources have a sample: an epoch has %d of %d records", n, records)
	}
	for epoch := range 2 {
		seen := make([]uint64, records/64+1)
		order := t.set.Order(t.run.Seed, epoch, t.run.Data.Shuffle)
		for place := range n {
			r := order(place)
			if seen[r/64]&(1<<(r%64)) != 0 {
				return OrderChecked{}, fmt.Errorf("check order: record %d comes twice in epoch %d", r, epoch)
			}
			seen[r/64] |= 1 << (r % 64)
		}
	}
	again := newTrainer(o)
	defer again.Close()
	if err := again.openData(ctx); err != nil {
		return OrderChecked{}, err
	}
	checked := OrderChecked{Places: n, Cursors: cursors}
	rng := rand.New(rand.NewPCG(t.run.Seed, 1))
	for range cursors {
		at, epoch := rng.IntN(n), rng.IntN(3)
		first, second := t.set.Order(t.run.Seed, epoch, t.run.Data.Shuffle), again.set.Order(t.run.Seed, epoch, t.run.Data.Shuffle)
		for place := at; place < min(n, at+cursorRecords); place++ {
			a, err := t.set.Record(first(place))
			if err != nil {
				return OrderChecked{}, err
			}
			b, err := again.set.Record(second(place))
			if err != nil {
				return OrderChecked{}, err
			}
			if recordKey(a) != recordKey(b) || a.ID != b.ID {
				return OrderChecked{}, fmt.Errorf("check order: at place %d of epoch %d there was %s, and is %s", place, epoch, a.ID, b.ID)
			}
			checked.Records++
		}
	}
	checked.Seconds = time.Since(began).Seconds()
	return checked, nil
}
