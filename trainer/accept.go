package trainer

import (
	"fmt"
	"slices"
	"strings"

	"cftune/trainer/checkpoint"
	"cftune/trainer/config"
)

// Accepted is a change of what a run is made from, which resume was told to accept.
type Accepted struct {
	Step   int                `json:"step"` // the last step that was made before it
	Fields []config.FieldDiff `json:"fields"`

	// What the checkpoints up to that step carry.
	ConfigDigest string `json:"config_digest"`
	ModelDigest  string `json:"model_digest"`
	DataDigest   string `json:"data_digest"`
	Seed         uint64 `json:"seed"`
}

// costs tells what a run gives up by going on with another value of a key, by the key's beginning; the first that fits
// counts. What is not listed cannot be changed: the shape of the adapter, for one.
var costs = []struct{ key, cost string }{
	{keyModelDigest, "adapter and moments were learned on other weights; the loss may jump"},
	{keyDataDigest, "the place in the order of the old records is taken for one in the new; in this pass records may be learned twice or not at all"},
	{keyHeldDigest, "validation losses before and after cannot be compared; the best checkpoint so far is forgotten"},
	{"data.validation", "validation losses before and after cannot be compared; the best checkpoint so far is forgotten"},
	{keyChatDigest, "examples before and after are laid out with different tokens"},
	{"chat.", "examples before and after are laid out with different tokens"},
	{"seed", "order and dropout are others from here on; in this pass records may be learned twice or not at all"},
	{"data.", "the place in the old order is taken for one in the new; in this pass records may be learned twice or not at all"},
	{"adapter.alpha", "what the adapter adds is scaled anew; the loss may jump"},
	{"adapter.rslora", "what the adapter adds is scaled anew; the loss may jump"},
	{"adapter.dropout", "steps before and after were made with different noise"},
	{"optimizer.", "steps before and after were made with different settings"},
	{"train.", "steps before and after are made of different packs"},
	{"health.", "steps before and after were judged differently"},
}

// costOf returns what a change of a key gives up; ok is false where it cannot be had at all.
func costOf(key string) (cost string, ok bool) {
	for _, c := range costs {
		if strings.HasPrefix(key, c.key) {
			return c.cost, true
		}
	}
	return "", false
}

// accept compares what the run was made from with what is given now. Differences are a *MismatchError unless Options
// accept them; changed reports that there were any.
func (t *Trainer) accept(was Record) (changed bool, err error) {
	t.record.Accepted = slices.Clone(was.Accepted)
	fields := was.differences(t.record)
	if len(fields) == 0 {
		return false, nil
	}
	var refused []config.FieldDiff
	for _, f := range fields {
		if _, ok := costOf(f.Key); !ok {
			refused = append(refused, f)
		}
	}
	switch {
	case !t.options.AcceptChanges && len(refused) < len(fields):
		return false, &MismatchError{Run: t.dir.Dir(), Fields: fields}
	case len(refused) > 0:
		return false, &MismatchError{Run: t.dir.Dir(), Fields: refused, Final: true}
	}
	for _, f := range fields {
		cost, _ := costOf(f.Key)
		t.notes = append(t.notes, fmt.Sprintf("accepted: %s was %s, is %s: %s", f.Key, f.A, f.B, cost))
	}
	t.record.Accepted = append(t.record.Accepted, Accepted{
		Step: t.resumed.Step, Fields: fields,
		ConfigDigest: identity(was.Config).Digest(), ModelDigest: was.Model.SHA256, DataDigest: was.DataDigest, Seed: was.Config.Seed,
	})
	return true, nil
}

// owns reports whether a checkpoint is of this run: it carries the run's digests, or those from before a change that was
// accepted later.
func (r Record) owns(c *checkpoint.Checkpoint) bool {
	eras := append(slices.Clone(r.Accepted), Accepted{
		Step: c.Step, ConfigDigest: identity(r.Config).Digest(), ModelDigest: r.Model.SHA256, DataDigest: r.DataDigest, Seed: r.Config.Seed,
	})
	return slices.ContainsFunc(eras, func(a Accepted) bool {
		return c.Step <= a.Step && c.ConfigDigest == a.ConfigDigest && c.ModelDigest == a.ModelDigest && c.DataDigest == a.DataDigest && c.Seed == a.Seed
	})
}

// forgetsBest reports whether the best checkpoint so far was chosen by validation losses that are measured otherwise now.
func (t *Trainer) forgetsBest() bool {
	return slices.ContainsFunc(t.record.Accepted, func(a Accepted) bool {
		return a.Step >= t.done && slices.ContainsFunc(a.Fields, func(f config.FieldDiff) bool {
			return f.Key == keyHeldDigest || strings.HasPrefix(f.Key, "data.validation")
		})
	})
}
