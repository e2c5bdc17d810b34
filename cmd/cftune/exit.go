package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"cftune/bindings/engine"
	"cftune/internal/regular"
	"cftune/internal/spell"
	"cftune/trainer"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/critic"
	"cftune/trainer/dashboard"
	"cftune/trainer/dataset"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
	"cftune/trainer/hub"
	"cftune/trainer/launch"
	"cftune/trainer/metrics"
	"cftune/trainer/mirror"
	"cftune/trainer/score"
	"cftune/trainer/study"
)

// The exit codes that engine.go does not have.
const (
	codeOther       = 1
	codeCheckpoint  = 4
	codeMirror      = 7
	codeShort       = 8
	codeInterrupted = 130
)

const exitCodesHelp = `Exit codes:
  0    done
  1    another error
  2    wrong usage or configuration; an output that exists or cannot be written
  3    data or a model cannot be used: a row that is no JSON, too long or without anything to learn; a GGUF that is
       missing, cut off, written to while it is in use, or of an architecture that is not trained
  4    a checkpoint is missing, damaged, or does not fit the configuration; or another process has the run
  5    device or memory
  6    the loss is not finite
  7    the run ended well, but its last checkpoint is not in its mirror
  8    sample, critique: some requests have no answer: a budget is reached, a teacher takes none, or they are given up
  130  interrupted; a training run has written a checkpoint and can be resumed`

// rule gives errors an exit code and, where there is one to give, advice.
type rule struct {
	code    int
	matches func(error) bool
	hint    string
}

func is(targets ...error) func(error) bool {
	return func(err error) bool {
		for _, target := range targets {
			if errors.Is(err, target) {
				return true
			}
		}
		return false
	}
}

func as[T error](err error) bool {
	_, ok := errors.AsType[T](err)
	return ok
}

// ofAnswer tells whether a logit was not finite where a model answers: nothing is learned there.
func ofAnswer(err error) bool {
	e, ok := errors.AsType[*engine.Error](err)
	return ok && strings.HasPrefix(e.Op, "session_") && errors.Is(err, engine.ErrNonFinite)
}

// rules are tried in order; errors that none matches have the code that they carry, or codeOther.
var rules = []rule{
	{codeNonFinite, ofAnswer, "the numbers grow too large: try it without the adapter, or with a smaller --adapter-scale; if that is no better, the model is at fault (cftune inspect MODEL)"},
	{codeNonFinite, is(trainer.ErrNonFinite, engine.ErrNonFinite), "a lower optimizer.lr or optimizer.max_grad_norm may help; checkpoints are as they were"},
	{codeInterrupted, as[*goesOnError], "the same command goes on"},
	{codeInterrupted, as[*trainer.Interrupted], ""},
	{codeData, is(trainer.ErrModelGone), "with the model as it was, cftune resume goes on from the newest checkpoint; a file that is in use is replaced by mv, not written over"},
	{codeData, is(gguf.ErrChanged), "nothing was made of it; the same command makes it of the file that is there now, once nobody writes to that"},
	{codeUsage, is(study.ErrChanged), "a changed study needs another output: --set output=FOLDER"},
	{codeUsage, is(study.ErrNone), "without --report-only the study is made"},
	{codeUsage, is(study.ErrNoShare), "there may be as many shards as models, and no more"},
	{codeData, as[*study.DataError], ""},
	{codeMirror, as[*mirrorBehindError], ""},
	{codeInterrupted, func(err error) bool { return as[*shortError](err) && errors.Is(err, context.Canceled) }, ""},
	{codeShort, as[*shortError], ""},
	{codeCheckpoint, is(mirror.ErrAhead), "cftune resume with the mirror's URL goes on from there; --set checkpoint.mirror=URL names another place"},
	{codeUsage, is(mirror.ErrForeign), "each run needs a place of its own: --set checkpoint.mirror=URL names another"},
	{codeUsage, as[*trainer.MirrorError], "--set checkpoint.mirror= trains without it"},
	{codeUsage, as[*trainer.ListenError], "--set metrics.listen=127.0.0.1:0 takes a port that is free, --set metrics.listen= trains without it"},
	{codeUsage, is(trainer.ErrEventsExist), "--force replaces it"},
	{codeCheckpoint, as[*eventsHeldError], "a run that trains has its own folder for itself; --output names another"},
	{codeUsage, as[*dashboard.ListenError], "--listen 127.0.0.1:0 takes a port that is free"},
	{codeCheckpoint, as[*trainer.MismatchError], ""},
	{codeCheckpoint, as[*checkpoint.HeldError], ""},
	{codeCheckpoint, is(checkpoint.ErrNone), "a run that ended before its first one is begun anew by cftune train with its configuration and --or-resume"},
	{codeCheckpoint, is(checkpoint.ErrIncompatible, checkpoint.ErrNotFound), ""},
	{codeCheckpoint, is(checkpoint.ErrCorrupt, metrics.ErrCorrupt), "cftune check shows what is damaged; cftune resume --older takes the newest checkpoint that is whole"},
	{codeCheckpoint, is(score.ErrCorrupt), "without such a line its text is written again, and the others are kept"},
	{codeUsage, is(checkpoint.ErrExists), "cftune resume goes on with that run; --output begins another"},
	{codeUsage, is(export.ErrExists), "--force replaces a file"},
	{codeUsage, is(export.ErrFolder), ""},
	{codeUsage, is(critic.ErrForeign), "--output names a folder of the run's own, which need not be there"},
	{codeUsage, as[*critic.UnusableError], ""},
	{codeCheckpoint, as[*critic.SettingsError], "--output begins another run; this one goes on with the settings that it has"},
	{codeUsage, is(export.ErrQuantizedBase), "merge into the unquantized original if there is one; --accept-quantized-base goes on all the same"},
	{codeUsage, is(export.ErrWrongBase), "name the model that the adapter was trained on; where it is the same model in another file, --any-base takes it"},
	{codeUsage, as[*checkpoint.OutputError], ""},
	{codeUsage, as[*checkpoint.ForeignError], "whose it is goes on with it, or gives others leave (ls -l shows both); a copy of the folder is a run of its own"},
	{codeUsage, as[*launch.UsageError], ""},
	{codeOther, as[*launch.HostKeyError], ""},
	{codeDevice, as[*launch.PreflightError], ""},
	{codeOther, as[*launch.RunError], ""},
	{codeUsage, as[*config.Problems], ""},
	{codeUsage, as[*usageError], ""},
	{codeData, as[*modelError], ""},
	{codeUsage, as[*trainer.AdapterError], "the adapter section must say what the adapter is; --set adapter.rank=... and the like change it"},
	{codeInterrupted, is(context.Canceled), ""},
	{codeData, as[*trainer.DataError], ""},
	{codeData, as[*dataset.Error], ""},
	{codeData, is(gguf.ErrFormat), ""},
	{codeData, is(hub.ErrNotFound, hub.ErrDigest), ""},
	{codeData, is(hub.ErrDenied), "HF_TOKEN takes a token of an account that may read it"},
	{codeOther, is(hub.ErrUnreachable), "what arrived is kept and gone on with; HTTPS_PROXY names a proxy, HF_ENDPOINT another hub"},
	{codeUsage, is(hub.ErrName), ""},
	{codeCheckpoint, is(regular.ErrNotRegular), "a run's files, and those of other outputs, are regular ones"},
	{codeOther, is(engine.ErrHeaders), "make builds both anew"},
	{codeDevice, is(engine.ErrNoMemory), "cftune doctor --config shows what the run takes and what would fit"},
}

// goesOnError is the end of a command that was asked to stop and goes on when it is given again, whatever it was at: the
// run of a study is resumed with the study.
type goesOnError struct{ err error }

func (e *goesOnError) Error() string { return e.err.Error() }

func (e *goesOnError) Unwrap() error { return e.err }

// goesOn marks the error of a command that was asked to stop.
func goesOn(err error) error {
	if as[*trainer.Interrupted](err) || errors.Is(err, context.Canceled) {
		return &goesOnError{err}
	}
	return err
}

// ruleFor returns the rule of an error, nil if there is none.
func ruleFor(err error) *rule {
	for i := range rules {
		if rules[i].matches(err) {
			return &rules[i]
		}
	}
	return nil
}

// hintFor returns advice about an error, empty where there is none.
func hintFor(err error) string {
	if e, ok := errors.AsType[*trainer.DataError](err); ok {
		switch {
		case e.TooLong:
			return "raise train.seq_len, or set data.over_long to drop, truncate_prompt or split"
		case e.Overlap:
			return "take them out of one of the two, or set data.audit to false if it is meant"
		case e.Fields:
			return "where a field has another name, data.sources[].fields says which it is, as fields: {query: question, response: answer}"
		case e.Objective:
			return "objective.stages decides what is learned: sft needs a query with a solution, cft a query with a response and a critique, refine all four; data.sources[].fields names a field that is called otherwise"
		}
	}
	if e, ok := errors.AsType[*trainer.MismatchError](err); ok {
		if e.Again {
			return "put back what the run had; cftune train makes a run of what there is now"
		}
		if e.Final {
			return "begin a new run; adapter.init_from can start it from this one's adapter"
		}
		return "resume with what the run has, or with --accept-changes, which tells what each change gives up; or begin a new run"
	}
	if e, ok := errors.AsType[*usageError](err); ok {
		return e.hint
	}
	if e, ok := errors.AsType[*modelError](err); ok {
		return e.hint()
	}
	if e, ok := errors.AsType[*mirrorBehindError](err); ok {
		return fmt.Sprintf("cftune resume %s tries again; until then %s is the only copy", spell.Word(e.run), e.run)
	}
	if e, ok := errors.AsType[*trainer.Interrupted](err); ok && !as[*goesOnError](err) {
		return fmt.Sprintf("cftune resume %s goes on", spell.Word(e.Run))
	}
	if e, ok := errors.AsType[*shortError](err); ok {
		return e.hint()
	}
	if e, ok := errors.AsType[*launch.HostKeyError](err); ok {
		return e.Hint()
	}
	if e, ok := errors.AsType[*launch.RunError](err); ok && launch.Over(e.State.Phase) {
		return fmt.Sprintf("cftune launch resume %s starts it again, from its newest checkpoint; cftune launch fetch %s brings what there is", e.Name, e.Name)
	}
	const goesOn = "cftune resume goes on with a training run from its newest checkpoint, other commands go on when they are given again"
	switch {
	case checkpoint.IsFull(err):
		return "make room; what was there before is whole: " + goesOn
	case is(syscall.EROFS)(err):
		return "the file system takes no writes: it is mounted so, or has turned to it after an error of its disk, of which dmesg tells; once it takes them again, " + goesOn
	case is(syscall.EIO, syscall.ESTALE)(err):
		return "the disk has failed, or the way to it, and dmesg tells more; where it is well again, or the folder was copied to another, cftune check shows what is whole, and " + goesOn
	}
	if r := ruleFor(err); r != nil {
		return r.hint
	}
	return ""
}

// exitCode returns the process's exit code for an error.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	if r := ruleFor(err); r != nil {
		return r.code
	}
	if coded, ok := errors.AsType[codedError](err); ok {
		return coded.code
	}
	if errors.Is(err, context.Canceled) {
		return codeInterrupted
	}
	return codeOther
}
