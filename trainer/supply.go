package trainer

import (
	"context"
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
