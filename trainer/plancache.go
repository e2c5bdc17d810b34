package trainer

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"cftune/internal/regular"
	"cftune/trainer/config"
	"cftune/trainer/dataset"
	"cftune/trainer/internal/durable"
	"cftune/trainer/objective"
)

// Looking at all records before a run takes minutes where there are millions. What came of it is kept under the digest
// of all that it depends on, so that the same run begins at once the next time.

// planCacheRecords is from how many records on a plan is kept: below, it is made in a moment.
var planCacheRecords = 20_000

// planKey digests what a plan depends on.
func (t *Trainer) planKey() (string, error) {
	probe, err := t.probe()
	if err != nil {
		return "", err
	}
	run := identity(t.run)
	run.Train.Epochs, run.Train.MaxSteps = t.run.Train.Epochs, t.run.Train.MaxSteps
	run.Adapter, run.Optimizer = config.Adapter{}, config.Optimizer{}
	text, err := json.Marshal(struct {
		Version          string // of the program: another may encode otherwise
		Run              config.Run
		Data, Held, Chat string
		Model            string
		Probe            []int32
		Vocabulary       int
		BOS              int32
		Changes          []objective.Change
	}{
		t.options.Version, run, t.record.DataDigest, t.record.ValidationDigest, t.record.ChatDigest, t.record.Model.SHA256, probe,
		t.encoder.text.Vocabulary, t.encoder.text.BOS, t.course.Changes(),
	})
	if err != nil {
		return "", fmt.Errorf("plan: %w", err)
	}
	return digestOf(text), nil
}

// probe is a prompt's tokens: a template may put the date there, which no digest of it shows.
func (t *Trainer) probe() ([]int32, error) {
	template := t.encoder.text.Template
	if template == nil {
		return nil, nil
	}
	tokens, err := template.EncodePrompt([]dataset.Message{{Role: dataset.RoleUser, Content: "a"}})
	if err != nil {
		return nil, nil // a template that wants more than a question; its records will tell
	}
	return tokens, nil
}

// keptPlan returns the plan that was kept for this run, if there is one; path is where it lies or would lie, empty if no
// plan is kept.
func (t *Trainer) keptPlan() (plan Plan, path string, found bool, err error) {
	if t.options.Cache == "" || t.set.Len() < planCacheRecords {
		return Plan{}, "", false, nil
	}
	key, err := t.planKey()
	if err != nil {
		return Plan{}, "", false, err
	}
	path = filepath.Join(t.options.Cache, "plans", key+".json")
	text, err := regular.ReadFile(path)
	var kept planFile
	if err == nil && json.Unmarshal(text, &kept) == nil && kept.SHA256 == kept.Plan.digest() {
		return kept.Plan, path, true, nil
	}
	return Plan{}, path, false, nil
}

// planFile is a plan as it is kept. A digit that a disk has turned over would make a run of another length.
type planFile struct {
	Plan   Plan   `json:"plan"`
	SHA256 string `json:"sha256"` // see digest
}

func (p Plan) digest() string {
	text, err := json.Marshal(p)
	if err != nil {
		panic(err) // plain values only
	}
	return digestOf(text)
}

func digestOf(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

// keepPlan keeps a plan. That it cannot is no reason not to train.
func (t *Trainer) keepPlan(path string, plan Plan) {
	if path == "" {
		return
	}
	err := durable.MkdirAll(durable.OS, filepath.Dir(path))
	if err == nil {
		err = writeJSON(durable.OS, path, planFile{plan, plan.digest()})
	}
	if err != nil && !errors.Is(err, os.ErrExist) {
		t.notes = append(t.notes, fmt.Sprintf("the plan was not kept, and will be made again the next time: %v", err))
	}
}
