package trainer

import (
	"context"
	"fmt"
	"time"

	"cftune/trainer/checkpoint"
)

// A full disk is waited for: the steps since the newest checkpoint are in memory alone, and room is often made soon.
var (
	roomPatience = 10 * time.Minute
	roomLook     = 5 * time.Second // between two tries
)

// withRoom returns err, unless it is of a full disk: then again is tried until there is room, for a bounded time.
func (t *Trainer) withRoom(ctx context.Context, err error, again func() error) error {
	if !checkpoint.IsFull(err) {
		return err
	}
	t.progress.Note(fmt.Sprintf("warning: %v: the run waits until there is room, for %s at most; an interrupt ends it without the steps since its newest checkpoint",
		err, roomPatience))
	tooLong := time.NewTimer(roomPatience)
	defer tooLong.Stop()
	look := time.NewTicker(roomLook)
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return err
		case <-tooLong.C:
			return err
		case <-look.C:
		}
		t.watch.beat()
		switch now := again(); {
		case now == nil:
			t.progress.Note("there is room again: the run goes on")
			return nil
		case !checkpoint.IsFull(now):
			return fmt.Errorf("%w; then %w", err, now)
		}
	}
}
