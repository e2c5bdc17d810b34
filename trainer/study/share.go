package study

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"cftune/trainer/internal/durable"
	"cftune/trainer/shard"
)

const (
	locksName = "locks"
	// modelLock ends the name of the lock of a model, and no shard's.
	modelLock = ".model"
)

// Models are what a study makes, by key: the base model, which is scored once for all seeds, and a model for each trained
// arm and seed. Their order is that in which they are made, and in which they fall to shards. The base model comes first: its
// scores alone may show that a set is too hard or too easy.
func Models(spec Spec) []string {
	var keys []string
	if key := baseKey(spec); key != "" {
		keys = append(keys, key)
	}
	for _, arm := range spec.TrainedArms() {
		for _, seed := range spec.Seeds {
			keys = append(keys, runKey(arm, seed))
		}
	}
	return keys
}

func runKey(arm Arm, seed uint64) string { return fmt.Sprintf("%s-s%d", arm.Name, seed) }

// ErrNoShare is wrapped by the error about a shard that no model falls to.
var ErrNoShare = errors.New("no model falls to the shard")

// shareOf returns the models that fall to a shard.
func shareOf(spec Spec, s shard.Shard) ([]string, error) {
	all := Models(spec)
	n := s.Len(len(all))
	if n <= 0 && !s.All() {
		return nil, fmt.Errorf("shard %d/%d: the study has %d models: %w", s.Number, s.Of, len(all), ErrNoShare)
	}
	share := make([]string, n)
	for i := range share {
		share[i] = all[s.Row(i)]
	}
	return share, nil
}

// shardLock names the lock of a process: the same share is not made twice at a time.
func shardLock(s shard.Shard) string {
	if s.All() {
		return "whole"
	}
	return s.Folder()
}

// lockPause is the pause between two looks at a lock that is held for a short while.
const lockPause = 100 * time.Millisecond

// await takes a lock that others hold for a short while.
func await(ctx context.Context, path string, note func(format string, args ...any)) (*durable.Lock, error) {
	for told := false; ; {
		lock, err := durable.Acquire(path)
		held, is := errors.AsType[*durable.HeldError](err)
		if !is {
			return lock, err
		}
		if !told {
			told = true
			note("waiting: %v", held)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(lockPause):
		}
	}
}

// all makes the models of a share that are not made. What another process is at is left to it and looked at once more in
// the end.
func (r *runner) all(ctx context.Context, share []string) error {
	left := share
	var held *durable.HeldError
	for range 2 {
		var others []string
		for _, key := range left {
			err := r.model(ctx, key, share)
			if errors.As(err, &held) {
				r.note("%s is left to another process: %v", key, held)
				others = append(others, key)
			} else if err != nil {
				return err
			}
		}
		left = others
	}
	if len(left) > 0 {
		return fmt.Errorf("of %d models %d are being made by other processes, the last is %s: %w", len(share), len(left), left[len(left)-1], held)
	}
	if done, all, _ := r.made(share); all > 0 {
		r.note("all %d runs are trained and scored", done)
	}
	return nil
}

// model trains and scores one model of a share, unless that is done.
func (r *runner) model(ctx context.Context, key string, share []string) error {
	lock, err := durable.Acquire(filepath.Join(r.dir, locksName, key+modelLock))
	if err != nil {
		return err
	}
	defer lock.Release()
	// Another process may have made it since the study was read.
	if err := r.state.readProgressOf(r.dir, key); err != nil {
		return err
	}
	run := r.state.run(key)
	if run == nil {
		return r.score(ctx, key, "", "")
	}
	_, before := r.state.Scored[key]
	if err := r.train(ctx, run); err != nil {
		return fmt.Errorf("train %s: %w", key, err)
	}
	if err := r.score(ctx, key, r.adapter(key), run.Adapter); err != nil {
		return err
	}
	if !before {
		r.tellRest(share)
	}
	return nil
}

// made counts the runs of a share that are trained and scored, all of them, and the seconds that those took.
func (r *runner) made(share []string) (done, all int, seconds float64) {
	for _, key := range share {
		run := r.state.run(key)
		if run == nil {
			continue
		}
		all++
		if scored, ok := r.state.Scored[key]; ok && run.Done {
			done++
			seconds += run.Seconds + scored.Seconds
		}
	}
	return done, all, seconds
}

// tellRest says how far the share is and when it may end: the runs that are left take as long as those that were made.
func (r *runner) tellRest(share []string) {
	done, all, seconds := r.made(share)
	if done == all {
		return // is told in the end
	}
	rest := time.Duration(seconds / float64(done) * float64(all-done) * float64(time.Second))
	unit := time.Minute
	if rest < unit {
		unit = time.Second
	}
	r.note("%d of %d runs are trained and scored; the others take about %s", done, all, rest.Round(unit))
}
