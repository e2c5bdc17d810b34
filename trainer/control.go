package trainer

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"cftune/internal/regular"
	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
	"cftune/trainer/internal/durable"
)

// A process asks a run that another one trains for a change by two files under control/ in the run directory: it writes
// ID.request and waits for ID.answer. Both are written aside and renamed. The trainer looks between two steps.

const (
	requestEnding = ".request"
	answerEnding  = ".answer"
	// pollInterval is how often whoever asks looks for the answer.
	pollInterval = 50 * time.Millisecond
)

// request asks for other stages.
type request struct {
	Stages []config.Stage `json:"stages"`
	// Until is when nobody waits for the answer any more; after it the request is void.
	Until time.Time `json:"until"`
}

// Answer says what became of a request for a change.
type Answer struct {
	// Step is the first one that the change holds for.
	Step int `json:"step"`
	// Refused says why there is no change.
	Refused string `json:"refused,omitempty"`
}

// errNotRunning is wrapped where nobody trains the run (any more).
var errNotRunning = errors.New("is not running")

// Ask asks the process that trains the run in dir for other stages and waits for its answer. It fails when the run ends
// before it has answered, or ctx does; then nothing has changed.
func Ask(ctx context.Context, dir string, stages []config.Stage, wait time.Duration) (Answer, error) {
	fail := func(err error) (Answer, error) { return Answer{}, fmt.Errorf("change %s: %w", dir, err) }
	if _, held := checkpoint.Holder(dir); !held {
		return fail(errNotRunning)
	}
	control := filepath.Join(dir, checkpoint.ControlName)
	if err := durable.MkdirAll(durable.OS, control); err != nil {
		return fail(err)
	}
	id := filepath.Join(control, rand.Text())
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	until, _ := ctx.Deadline()
	if err := writeJSON(durable.OS, id+requestEnding, request{stages, until.UTC()}); err != nil {
		return fail(err)
	}
	for {
		answer, err := takeAnswer(id + answerEnding)
		if err == nil || !errors.Is(err, os.ErrNotExist) {
			return answer, err
		}
		_, held := checkpoint.Holder(dir)
		select {
		case <-ctx.Done():
		case <-time.After(pollInterval):
			if held {
				continue
			}
		}
		// The request is taken back. If the trainer has taken it just now, the answer is there or comes.
		if os.Remove(id+requestEnding) == nil {
			if held {
				return fail(fmt.Errorf("it did not answer in time: %w", ctx.Err()))
			}
			return fail(fmt.Errorf("%w any more; ask again", errNotRunning))
		}
		if answer, err := takeAnswer(id + answerEnding); err == nil || !held {
			return answer, err
		}
	}
}

// takeAnswer reads an answer and removes it.
func takeAnswer(path string) (Answer, error) {
	text, err := regular.ReadFile(path)
	if err != nil {
		return Answer{}, err
	}
	var answer Answer
	if err := json.Unmarshal(text, &answer); err != nil {
		return Answer{}, fmt.Errorf("read answer: %w", err)
	}
	return answer, os.Remove(path)
}

func writeJSON(fs durable.FS, path string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, err = durable.ReplaceFile(fs, path, func(w io.Writer) error {
		_, err := w.Write(append(text, '\n'))
		return err
	})
	return err
}

// asked is a request that was taken, and where its answer goes. err: it cannot be understood.
type asked struct {
	stages []config.Stage
	answer string
	err    error
}

// takeRequest takes the oldest valid request off a run's control folder; nil if there is none.
func takeRequest(dir string) (*asked, error) {
	control := filepath.Join(dir, checkpoint.ControlName)
	entries, err := os.ReadDir(control)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("look for requests: %w", err)
	}
	slices.SortStableFunc(entries, func(a, b os.DirEntry) int { return modified(a).Compare(modified(b)) })
	for _, entry := range entries {
		name, is := strings.CutSuffix(entry.Name(), requestEnding)
		if !is {
			continue
		}
		path := filepath.Join(control, entry.Name())
		text, err := regular.ReadFile(path)
		if err != nil {
			continue // taken back just now
		}
		if os.Remove(path) != nil {
			continue
		}
		var r request
		d := json.NewDecoder(bytes.NewReader(text))
		d.DisallowUnknownFields()
		err = d.Decode(&r)
		if err == nil && time.Now().After(r.Until) {
			continue // nobody waits for it
		}
		return &asked{r.Stages, filepath.Join(control, name+answerEnding), err}, nil
	}
	return nil, nil
}

func modified(e os.DirEntry) time.Time {
	info, err := e.Info()
	if err != nil {
		return time.Time{}
	}
	return info.ModTime()
}
