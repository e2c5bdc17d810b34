package mirror

import (
	"context"
	"errors"
	"fmt"
	"io/fs"

	"cftune/trainer/checkpoint"
)

// State is what Check found out about a mirror.
type State struct {
	URL         string      `json:"url"`
	Run         string      `json:"run,omitempty"`    // when the run began
	Holder      string      `json:"holder,omitempty"` // who copied to it last
	Checkpoints []StepState `json:"checkpoints"`
	// Notes tell what is unusual but no damage.
	Notes []string `json:"notes,omitempty"`
	// Problems tell what is damaged.
	Problems []string `json:"problems,omitempty"`
}

// StepState is one checkpoint of a mirror.
type StepState struct {
	Step    int    `json:"step"`
	Bytes   int64  `json:"bytes"`
	Problem string `json:"problem,omitempty"`
}

// Check reads all of a mirror and changes nothing. The error wraps checkpoint.ErrNotFound where there is none; what is damaged
// is in the state.
func (s *Store) Check(ctx context.Context) (State, error) {
	state := State{URL: s.name}
	text, err := s.read(ctx, claimName, maxEntryBytes)
	unclaimed := errors.Is(err, fs.ErrNotExist)
	if err != nil && !unclaimed && !damaged(err) { // it cannot be read
		return State{}, fmt.Errorf("check %s: %w", s.name, err)
	}
	var c claim
	if err == nil {
		c, err = parseClaim(text)
	}
	if err != nil && !unclaimed {
		state.Problems = append(state.Problems, err.Error())
	}
	state.Run, state.Holder = c.Run, c.Holder
	steps, left, err := s.steps(ctx)
	if err != nil {
		return State{}, fmt.Errorf("check %s: %w", s.name, err)
	}
	if unclaimed && len(steps) == 0 {
		return State{}, fmt.Errorf("check %s: there is no mirror: %w", s.name, checkpoint.ErrNotFound)
	}
	if unclaimed {
		state.Notes = append(state.Notes, claimName+" is missing; the next copy writes it anew")
	}
	if _, err := s.ending(ctx); err != nil {
		state.Notes = append(state.Notes, fmt.Sprintf("why the run ended is not known: %v", err))
	}
	for _, step := range left {
		state.Notes = append(state.Notes, fmt.Sprintf("step %d is not whole: it is being copied, or was left by a crash and the next copy removes it", step))
	}
	for _, step := range steps {
		if err := s.checkStep(ctx, &state, step); err != nil {
			return State{}, fmt.Errorf("check %s: step %d: %w", s.name, step, err)
		}
	}
	return state, nil
}

func (s *Store) checkStep(ctx context.Context, state *State, step int) error {
	e, err := s.whole(ctx, step)
	if err == nil {
		err = s.checkManifest(ctx, e)
	}
	if err == nil && state.Run != "" && e.Run != state.Run {
		err = corrupt("%s: it is of another run", entryName)
	}
	if err != nil && !damaged(err) && !errors.Is(err, checkpoint.ErrIncompatible) {
		return err
	}
	found := StepState{Step: step, Bytes: e.bytes()}
	if err != nil {
		found.Problem = err.Error()
		state.Problems = append(state.Problems, fmt.Sprintf("step %d: %v", step, err))
	}
	state.Checkpoints = append(state.Checkpoints, found)
	return nil
}

// checkManifest compares a copy with the manifest in it.
func (s *Store) checkManifest(ctx context.Context, e entry) error {
	text, err := s.read(ctx, stepFolder(e.Step)+checkpoint.ManifestName, maxEntryBytes)
	if err != nil {
		return err
	}
	m, err := checkpoint.ParseManifest(text)
	if err != nil {
		return err
	}
	if m.Step != e.Step {
		return corrupt("%s: it is of step %d", checkpoint.ManifestName, m.Step)
	}
	copied := map[checkpoint.File]bool{}
	for _, f := range e.Files {
		copied[f] = true
	}
	for _, f := range m.Files {
		if !copied[f] {
			return corrupt("%s: its file %s is not among those of %s", checkpoint.ManifestName, f.Name, entryName)
		}
	}
	return nil
}
