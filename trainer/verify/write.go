package verify

import (
	"encoding/json"
	"io"

	"cftune/trainer/dataset"
	"cftune/trainer/evaluate"
)

// Write writes the kept rows to kept and the others to dropped, as JSON lines of format cft. A row has the fields that it
// came with; what differs is told by the row: label and weight where a policy changed them, and checks, the names of
// those that it fails.
func (v *Verifier) Write(kept, dropped io.Writer) error {
	for i, r := range v.rows {
		line, err := v.line(i, r)
		if err != nil {
			return err
		}
		to := kept
		if r.drop {
			to = dropped
		}
		if _, err := to.Write(append(line, '\n')); err != nil {
			return err
		}
	}
	return nil
}

// parts are the fields that other formats put the texts of format cft in; they are in the texts then. Where a format does not
// read them they are the row's own.
var parts = []string{"instruction", "input", "output"}

func (v *Verifier) line(i int, r row) ([]byte, error) {
	record, err := v.set.Record(i)
	if err != nil {
		return nil, err
	}
	text, err := v.set.Text(i)
	if err != nil {
		return nil, err
	}
	fields := map[string]any{}
	var came map[string]json.RawMessage
	if err := json.Unmarshal(text, &came); err != nil {
		return nil, &dataset.Error{File: record.ID, Err: err}
	}
	for name, value := range came {
		fields[name] = value
	}
	if _, own := came["query"]; !own {
		rest, err := v.set.Rest(i)
		if err != nil {
			return nil, err
		}
		for _, name := range parts {
			if _, left := rest[name]; !left {
				delete(fields, name)
			}
		}
	}
	for name, value := range map[string]string{
		"query": record.Query, "response": record.Response, "critique": record.Critique, "solution": record.Solution, "label": record.Label,
	} {
		if value != "" {
			fields[name] = value
		}
	}
	if _, own := came["gold"]; !own && record.Gold != "" {
		fields["gold"] = record.Gold
	}
	if r.majority != evaluate.NoVerdict {
		fields["label"] = r.majority
	}
	if weight := float64(record.Weight); r.lower && !r.drop {
		fields["weight"] = weight * v.o.Weight
	}
	delete(fields, "checks") // of an earlier verification
	if len(r.failed) > 0 {
		fields["checks"] = r.failed
	}
	return json.Marshal(fields)
}
