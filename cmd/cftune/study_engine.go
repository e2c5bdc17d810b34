package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"cftune/bindings/engine"
	"cftune/trainer"
	"cftune/trainer/chat"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/export"
	"cftune/trainer/gguf"
	"cftune/trainer/study"
)

// studyEngine trains and writes for a study, in this process.
type studyEngine struct {
	notes io.Writer
	model *study.Model // once it is known
}

var _ study.Engine = (*studyEngine)(nil)

// Model digests the base model once.
func (e *studyEngine) Model(ctx context.Context, spec study.Spec) (study.Model, error) {
	if e.model != nil {
		return *e.model, nil
	}
	var err error
	if spec.Model, err = findModel(ctx, spec.Model, e.notes); err != nil {
		return study.Model{}, err
	}
	f, err := gguf.Open(spec.Model)
	if err != nil {
		return study.Model{}, err
	}
	sum, err := export.Digest(f.Shards...)
	if err != nil {
		return study.Model{}, err
	}
	m := study.Model{File: filepath.Base(spec.Model), Bytes: f.Size, SHA256: sum}
	template := f.ChatTemplate()
	if spec.Chat.TemplateFile != "" {
		if template, err = readTemplate(spec.Chat.TemplateFile); err != nil {
			return study.Model{}, err
		}
	}
	chatSum := sha256.Sum256([]byte(template))
	m.ChatSHA256 = hex.EncodeToString(chatSum[:])
	m.Weights, m.Adapter = sizes(f, spec.Adapter)
	if spec.Device == "auto" || spec.Device == "cpu" {
		m.TrainTokensPerS, m.WriteTokensPerS = cpuSpeeds(m.Weights, spec.Threads)
	}
	e.model = &m
	return m, nil
}

// fileDigest is the SHA-256 of a file, or of all shards of a model.
func fileDigest(path string) (string, error) {
	files := []string{path}
	if f, err := gguf.Open(path); err == nil { // adapters and templates are no models
		files = f.Shards
	}
	return export.Digest(files...)
}

// sizes counts the numbers in the model's matrices, and those of the adapter that the study trains.
func sizes(f *gguf.File, a config.Adapter) (weights, adapter int64) {
	modules, err := config.TargetsMask(a.Targets)
	if err != nil {
		return 0, 0 // the file was checked
	}
	for _, t := range f.Tensors {
		if t.Rows() <= 1 {
			continue
		}
		weights += int64(t.Rows() * t.Cols())
		for _, m := range modules {
			if strings.HasPrefix(t.Name, "blk.") && strings.HasSuffix(t.Name, "."+m+".weight") {
				adapter += int64(a.Rank) * int64(t.Rows()+t.Cols())
			}
		}
	}
	return weights, adapter
}

// What a thread of a machine of today does, in floating-point operations a second: in training (4 for each weight and
// token) and in writing with many texts at once (2). They are guesses for a plan, and replaced by what is measured.
const (
	trainPerThread = 70e9
	writePerThread = 25e9
)

func cpuSpeeds(weights int64, threads int) (train, write float64) {
	if weights == 0 {
		return 0, 0
	}
	if threads == 0 {
		threads = runtime.GOMAXPROCS(0)
	}
	return trainPerThread * float64(threads) / (4 * float64(weights)), writePerThread * float64(threads) / (2 * float64(weights))
}

func (e *studyEngine) session(quiet bool) session {
	s := session{out: io.Discard, notes: e.notes, quiet: quiet}
	if f, ok := e.notes.(*os.File); !ok || !hasSize(f) {
		s.quiet = true // the study's own lines are enough where there is no bar
	}
	return s
}

// Plan looks at a run's data and writes nothing.
func (e *studyEngine) Plan(ctx context.Context, run config.Run) (trainer.Plan, error) {
	local, err := localModel(ctx, run, e.notes)
	if err != nil {
		return trainer.Plan{}, err
	}
	text, vocab, err := openText(local)
	if err != nil {
		return trainer.Plan{}, err
	}
	defer vocab.Close()
	t, err := trainer.Prepare(ctx, e.session(true).options(run, local.Model, text))
	if err != nil {
		return trainer.Plan{}, err
	}
	defer t.Close()
	return t.Plan(), nil
}

// Train makes a run or goes on with it.
func (e *studyEngine) Train(ctx context.Context, run config.Run) error {
	begun, err := runBegun(run.Output, func(text string) { fmt.Fprintln(e.notes, text) })
	if err != nil {
		return err
	}
	if !begun {
		_, err = e.session(false).train(ctx, run)
		return err
	}
	record, err := trainer.ReadRecord(run.Output)
	if err != nil {
		return err
	}
	if diffs := config.Diff(settings(record.Config), settings(run)); len(diffs) > 0 {
		return fmt.Errorf("the run in %s was made with %s = %s, the study's is %s: %w", run.Output, diffs[0].Key, diffs[0].A, diffs[0].B, study.ErrChanged)
	}
	sources, err := json.Marshal(run.Data.Sources)
	if err != nil {
		return err
	}
	// Where things lie may have changed; what they hold is compared by digests.
	sets := []string{"model=" + run.Model, "device=" + run.Device, fmt.Sprintf("threads=%d", run.Threads), "data.sources=" + string(sources)}
	if run.Data.Validation.Path != "" {
		sets = append(sets, "data.validation.path="+run.Data.Validation.Path)
	}
	_, err = e.session(false).resume(ctx, run.Output, sets)
	return err
}

// settings is a run's configuration without where it computes and where its files lie.
func settings(run config.Run) config.Run {
	run.Model, run.Output, run.Device, run.Threads, run.Limits = "", "", "", 0, config.Limits{}
	run.Data.Validation.Path = filepath.Base(run.Data.Validation.Path)
	run.Data.Sources = slices.Clone(run.Data.Sources)
	for i, s := range run.Data.Sources {
		run.Data.Sources[i].Path = filepath.Base(s.Path)
	}
	return run
}

// runBegun reports whether a run is there to go on with. One that was killed before its first checkpoint has nothing to
// go on from: what it left is removed.
func runBegun(dir string, note func(text string)) (bool, error) {
	_, err := os.Stat(filepath.Join(dir, checkpoint.ConfigName))
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	steps, err := checkpoint.List(dir)
	if err != nil || len(steps) > 0 {
		return true, err
	}
	if holder, held := checkpoint.Holder(dir); held {
		return false, fmt.Errorf("%s is in use by %s", dir, holder)
	}
	note(dir + " was ended before its first checkpoint and begins anew")
	return false, os.RemoveAll(dir)
}

// OpenWriter opens a model for writing. Its session is made with the first prompts, whose lengths decide its size.
func (e *studyEngine) OpenWriter(ctx context.Context, spec study.Spec, adapter string) (study.Writer, error) {
	var err error
	if spec.Model, err = findModel(ctx, spec.Model, e.notes); err != nil {
		return nil, err
	}
	vocab, template, err := openChat(spec.Model, spec.Chat.TemplateFile, spec.Chat.System)
	if err != nil {
		return nil, err
	}
	short, err := shortContext(spec.Model)
	if err != nil {
		vocab.Close()
		return nil, err
	}
	return &studyWriter{spec: spec, adapter: adapter, vocab: vocab, template: template, short: short}, nil
}

type studyWriter struct {
	spec     study.Spec
	adapter  string
	vocab    *engine.Vocab
	template *chat.Template
	session  *engine.Session
	size     int // of its context
	short    int // see trainer.ShortContext
}

func (w *studyWriter) Close() error {
	if w.session != nil {
		w.session.Close()
	}
	w.vocab.Close()
	return nil
}

// room makes a session for sequences of so many tokens each.
func (w *studyWriter) room(longest int) error {
	size, rotation := w.spec.Scoring.Parallel*longest, rotationFor(w.short, longest)
	if w.session != nil && w.size >= size && w.session.Params().MaxSequence == rotation {
		return nil
	}
	if w.session != nil {
		w.session.Close()
		w.session = nil
	}
	threads := w.spec.Scoring.Threads
	if threads == 0 {
		threads = w.spec.Threads
	}
	s, err := engine.NewSession(w.spec.Model, w.adapter, engine.SessionParams{
		NCtx: size, NBatch: 512, NSequences: w.spec.Scoring.Parallel, NThreads: threads, NGPULayers: w.spec.Scoring.GPULayers, AdapterScale: 1,
		MaxSequence: rotation,
	})
	if err != nil {
		return engineError(err)
	}
	w.session, w.size = s, size
	return nil
}

// Write answers prompts greedily, many at once.
func (w *studyWriter) Write(ctx context.Context, prompts []string, maxTokens int, done func(int, study.Completion) error) error {
	tokens := make([][]int32, len(prompts))
	longest := 0
	for i, p := range prompts {
		var err error
		if tokens[i], err = encodeTurn(w.template, p); err != nil {
			return err
		}
		longest = max(longest, len(tokens[i]))
	}
	if err := w.room(longest + maxTokens); err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var failed error
	_, err := engine.NewGenerator(w.session, w.vocab).Generate(ctx, tokens, engine.GenerateOptions{
		MaxTokens: maxTokens, StopStrings: w.spec.Scoring.Stop,
		OnDone: func(i int, c engine.Completion) {
			ended := c.Reason != engine.StopLength && c.Reason != engine.StopContext
			if err := done(i, study.Completion{Text: c.Text, Tokens: len(c.Tokens), Ended: ended}); err != nil && failed == nil {
				failed = err
				cancel()
			}
		},
	})
	if failed != nil {
		return failed
	}
	return engineError(err)
}
