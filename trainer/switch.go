package trainer

import (
	"context"
	"errors"
	"fmt"

	"cftune/trainer/config"
	"cftune/trainer/objective"
)

// Change replaces the stages of a run that was resumed but not run, from its next step on, and returns that step. Records
// that cannot be trained so are a *DataError, and nothing has changed.
func (t *Trainer) Change(ctx context.Context, stages []config.Stage) (step int, err error) {
	if t.resumed == nil {
		return 0, errors.New("change objective: the run was not resumed")
	}
	if err := t.checkStages(ctx, stages); err != nil {
		return 0, err
	}
	return t.change(stages)
}

// change journals other stages from the next step on.
func (t *Trainer) change(stages []config.Stage) (step int, err error) {
	change := objective.Change{Step: t.done + 1, Stages: stages}
	if err := appendJournal(t.options.fs, t.dir.Dir(), change); err != nil {
		return 0, err
	}
	t.course.Add(change)
	return change.Step, nil
}

// checkStages reports what of the run, or of its data, does not allow the stages. It may be called while the run trains.
func (t *Trainer) checkStages(ctx context.Context, stages []config.Stage) error {
	if err := config.ValidateStages(stages, t.heldSet != nil); err != nil {
		return err
	}
	var looked Plan
	p := newPlanner(t.encoder)
	if err := p.check(ctx, stages); err != nil {
		return err
	}
	if t.heldSet != nil {
		if _, err := encodeHeld(ctx, t.heldEncoder(), objective.Objectives(stages...), &looked); err != nil {
			return err
		}
	}
	return t.checkRotation(max(looked.Longest, p.longest()))
}

// switcher serves requests for other stages, one at a time. What a request needs of the data is looked at beside the
// training; the change itself is made between two steps.
type switcher struct {
	trainer *Trainer
	now     *asked // nil when there is none
	checked chan error
	cancel  context.CancelFunc
}

// serve is called between two steps.
func (s *switcher) serve(ctx context.Context) error {
	if s.now == nil {
		next, err := takeRequest(s.trainer.dir.Dir())
		if err != nil || next == nil {
			return err
		}
		if next.err != nil {
			return s.answer(next, Answer{Refused: fmt.Sprintf("the request cannot be read: %v", next.err)})
		}
		s.begin(ctx, next)
	}
	select {
	case err := <-s.checked:
		return s.finish(err)
	default:
		return nil
	}
}

func (s *switcher) begin(ctx context.Context, next *asked) {
	s.now, s.checked = next, make(chan error, 1)
	ctx, s.cancel = context.WithCancel(ctx)
	go func(result chan<- error) { result <- s.trainer.checkStages(ctx, next.stages) }(s.checked)
}

func (s *switcher) finish(err error) error {
	s.cancel()
	now := s.now
	s.now = nil
	if err != nil {
		s.trainer.progress.Note(fmt.Sprintf("note: a change of the objective was refused: %v", err))
		return s.answer(now, Answer{Refused: err.Error()})
	}
	step, err := s.trainer.change(now.stages)
	if err != nil {
		return err
	}
	return s.answer(now, Answer{Step: step})
}

func (s *switcher) answer(to *asked, a Answer) error {
	if err := writeJSON(s.trainer.options.fs, to.answer, a); err != nil {
		return fmt.Errorf("answer a request: %w", err)
	}
	return nil
}

// stop ends what is under way; whoever asked is told.
func (s *switcher) stop() {
	if s.now == nil {
		return
	}
	s.cancel()
	<-s.checked
	// The run ends with an error of its own, or well; whoever waits finds out that it has ended in any case.
	_ = s.answer(s.now, Answer{Refused: "the run ended before it was looked at"})
	s.now = nil
}
