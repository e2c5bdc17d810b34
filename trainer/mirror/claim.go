package mirror

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"time"

	"cftune/trainer/checkpoint"
)

// Claim is the right to copy a run's checkpoints to a mirror, until another process takes it.
type Claim struct {
	store  *Store
	claim  claim
	newest int // step of the newest copy that was there, -1 if there was none
	// Notes tell what was found and put right.
	Notes []string
}

// Newest is the step of the newest copy that was there, unverified; -1 if there was none.
func (c *Claim) Newest() int { return c.newest }

// Claim makes the mirror that of a run that stands at step done, and writes to it: a mirror that cannot be used is found
// out here. Errors wrap ErrForeign where it holds another run, and ErrAhead where it holds a whole checkpoint that is newer than
// done. Newer ones that are damaged are removed: the run will come to their steps again.
func (s *Store) Claim(ctx context.Context, run string, done int) (*Claim, error) {
	c := &Claim{store: s, newest: -1, claim: claim{
		Format: FormatVersion, Run: run, Writer: rand.Text(), Holder: holder(), Since: time.Now().UTC(),
	}}
	if err := c.take(ctx, done); err != nil {
		return nil, fmt.Errorf("mirror %s: %w", s.name, err)
	}
	return c, nil
}

func holder() string {
	host, err := os.Hostname()
	if err != nil {
		host = "an unnamed host"
	}
	return fmt.Sprintf("pid %d on %s", os.Getpid(), host)
}

func (c *Claim) take(ctx context.Context, done int) error {
	steps, _, err := c.store.steps(ctx)
	if err != nil {
		return err
	}
	if err := c.owns(ctx, steps); err != nil {
		return err
	}
	for _, step := range slices.Backward(steps) {
		if step <= done {
			c.newest = max(c.newest, step)
			continue
		}
		_, err := c.store.whole(ctx, step)
		if err == nil {
			return fmt.Errorf("it holds step %d, the run stands at step %d: it %w", step, done, ErrAhead)
		}
		if !damaged(err) {
			return fmt.Errorf("step %d: %w", step, err)
		}
		if err := c.store.remove(ctx, step); err != nil {
			return err
		}
		c.Notes = append(c.Notes, fmt.Sprintf("mirror %s: step %d was damaged (%v) and is removed", c.store.name, step, err))
	}
	// The run goes on from here. Where it cannot be removed, the step that it names will not be the newest for long.
	_ = c.store.objects.Delete(ctx, checkpoint.EndName)
	return c.write(ctx)
}

// owns fails if the mirror holds copies of another run. A claim without copies does not count.
func (c *Claim) owns(ctx context.Context, steps []int) error {
	for i := len(steps) - 1; i >= 0; i-- {
		e, err := c.store.entry(ctx, steps[i])
		switch {
		case err == nil && e.Run == c.claim.Run:
			return nil
		case err == nil:
			return fmt.Errorf("it %w, which began %s", ErrForeign, e.Run)
		case !errors.Is(err, checkpoint.ErrCorrupt):
			return fmt.Errorf("step %d: %w", steps[i], err)
		}
	}
	return nil
}

// holds fails if another process has claimed the mirror since. What it copies is of the same steps, but other times stand
// in its metrics: two of them must not mix. A claim that was lost, or removed with all else, is made anew.
func (c *Claim) holds(ctx context.Context) error {
	text, err := c.store.read(ctx, claimName, maxEntryBytes)
	var now claim
	if err == nil {
		now, err = parseClaim(text)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, checkpoint.ErrCorrupt):
		return c.write(ctx)
	case err != nil:
		return err
	case now.Writer != c.claim.Writer:
		return fmt.Errorf("%w (%s, since %s)", ErrTaken, now.Holder, now.Since.Format(time.RFC3339))
	}
	return nil
}

func (c *Claim) write(ctx context.Context) error {
	text, err := c.claim.encode()
	if err != nil {
		return err
	}
	return c.store.putBytes(ctx, "", claimName, text)
}

// upload copies a snapshot, unless it is there already: from before the run was resumed.
func (c *Claim) upload(ctx context.Context, s *Snapshot) (copied bool, err error) {
	if s.run != c.claim.Run {
		return false, fmt.Errorf("%w: it is of another run", errLocal)
	}
	if err := s.digest(); err != nil {
		return false, err
	}
	if err := c.holds(ctx); err != nil {
		return false, err
	}
	if _, err := c.store.whole(ctx, s.Step); err == nil || !damaged(err) {
		return false, err
	}
	// A mirror.json that is no good must not come to stand for what is written now.
	if err := c.store.remove(ctx, s.Step); err != nil {
		return false, err
	}
	folder := stepFolder(s.Step)
	for _, h := range s.files {
		if err := c.store.put(ctx, folder, h.File, h.reader); err != nil {
			return false, err
		}
	}
	text, err := s.entry().encode()
	if err != nil {
		return false, err
	}
	if err := c.holds(ctx); err != nil {
		return false, err
	}
	if err := c.store.putBytes(ctx, folder, entryName, text); err != nil {
		// Whatever lies there now should not look like a copy; if it cannot be removed, its digest tells.
		_ = c.store.objects.Delete(ctx, folder+entryName)
		return false, err
	}
	return true, nil
}

// prune removes the copies that are not kept once a newer one is there, and what is left of copies that never were whole.
func (c *Claim) prune(ctx context.Context, s *Snapshot) error {
	steps, left, err := c.store.steps(ctx)
	if err != nil {
		return err
	}
	for _, step := range append(s.keep.Removed(steps), left...) {
		if step >= s.Step {
			continue // not this copy, nor another process's
		}
		if err := c.store.remove(ctx, step); err != nil {
			return err
		}
	}
	return nil
}
