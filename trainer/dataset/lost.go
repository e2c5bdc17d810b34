package dataset

import (
	"bytes"
	"encoding/json"
	"slices"
)

// lostFields are fields that other trainers read in rows of a format and that are not read here. Without them something
// else would be learned than the row means, so that they are refused unless they are empty or fields leaves them out.
var lostFields = map[string][]string{
	"alpaca":            {"system", "history"},
	"messages":          {"system", "tools", "functions", "chat_template_kwargs"},
	"sharegpt":          {"tools"},
	"prompt-completion": {"system", "tools"},
	"tokenized":         {"assistant_masks", "completion_mask", "loss_mask", "position_ids"},
}

// checkLost complains of the fields that the format would lose.
func checkLost(r *row, format string) {
	for _, field := range lostFields[format] {
		if value := r.fields[field]; r.has(field) && !isEmpty(value) && !(field == "position_ids" && countsUp(value)) {
			r.complain("%s would be lost; to leave it out, say fields: {%s: \"\"}", field, field)
		}
	}
}

// isEmpty reports whether a value holds nothing, or is text that does ("[]").
func isEmpty(value json.RawMessage) bool {
	if value[0] == '"' {
		text, err := unquote(value)
		value = bytes.TrimSpace([]byte(text))
		if err != nil || len(value) == 0 {
			return err == nil
		}
	}
	var compact bytes.Buffer
	if json.Compact(&compact, value) != nil {
		return false
	}
	return slices.Contains([]string{"[]", "{}", "null", `""`}, compact.String())
}

// countsUp reports whether a list is 0, 1, 2 and so on: the positions that a row's tokens have in any case.
func countsUp(value json.RawMessage) bool {
	var list []int
	if json.Unmarshal(value, &list) != nil {
		return false
	}
	for i, n := range list {
		if n != i {
			return false
		}
	}
	return true
}
