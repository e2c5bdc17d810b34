package metrics

import (
	"bytes"
	"encoding/json"
	"errors"
	"strconv"
	"time"
)

// parseRecord reads a line of which nothing is known yet. Most are of steps as this package writes them, and are read by
// parsePlain, several times faster: the lines of a long run must be read while somebody waits.
func parseRecord(text []byte) (Record, error) {
	var s Step
	if parsePlain(text, &s) {
		return s, nil
	}
	var l struct {
		line
		ValidationLoss *float64        `json:"validation_loss"`
		Examples       json.RawMessage `json:"examples"` // a number or names
	}
	if err := json.Unmarshal(text, &l); err != nil {
		return nil, err
	}
	switch {
	case l.Step == nil:
		return nil, errNoStep
	case l.Skipped == nil && l.Loss == nil && l.ValidationLoss == nil:
		return nil, errors.New("it has no loss")
	case l.Skipped != nil && len(l.Examples) == 0:
		return nil, errors.New("it has no examples")
	}
	return l.record(text)
}

// parsePlain reads the JSON of a step that has no spaces, no escapes, and each key once. It returns false for all else.
func parsePlain(line []byte, s *Step) bool {
	p := plain{line}
	if !p.take('{') {
		return false
	}
	seen := 0
	for {
		key, ok := p.text()
		if !ok || !p.take(':') {
			return false
		}
		bit := p.field(key, s)
		if bit < 0 || seen&(1<<bit) != 0 {
			return false
		}
		seen |= 1 << bit
		if p.take(',') {
			continue
		}
		const needed = 1<<0 | 1<<1 // step and loss
		return p.take('}') && len(p.rest) == 0 && seen&needed == needed
	}
}

// plain is what is left of a line.
type plain struct{ rest []byte }

// field reads the value of a key, and returns the key's number, -1 if it is not plain.
func (p *plain) field(key []byte, s *Step) int {
	number, ok := -1, false
	switch string(key) {
	case "step":
		number, ok = 0, p.integer(&s.Step)
	case "loss":
		number, ok = 1, p.float(&s.Loss)
	case "epoch":
		number, ok = 2, p.float(&s.Epoch)
	case "targets":
		number, ok = 3, p.integer(&s.Targets)
	case "tokens":
		number, ok = 4, p.integer(&s.Tokens)
	case "computed":
		number, ok = 5, p.integer(&s.Computed)
	case "examples":
		number, ok = 6, p.integer(&s.Examples)
	case "packs":
		number, ok = 7, p.integer(&s.Packs)
	case "lr":
		number, ok = 8, p.float(&s.LR)
	case "grad_norm":
		number, ok = 9, p.float(&s.GradNorm)
	case "objective":
		number, ok = 10, p.counts(&s.Objective)
	case "stage":
		number, ok = 11, p.integer(&s.Stage)
	case "tokens_per_s":
		number, ok = 12, p.float(&s.TokensPerS)
	case "target_tokens_per_s":
		number, ok = 13, p.float(&s.TargetTokensPerS)
	case "memory_bytes":
		number, ok = 14, p.bytes(&s.MemoryBytes)
	case "time":
		number, ok = 15, p.time(&s.Time)
	case "seconds":
		number, ok = 16, p.float(&s.Seconds)
	}
	if !ok {
		return -1
	}
	return number
}

func (p *plain) take(c byte) bool {
	if len(p.rest) == 0 || p.rest[0] != c {
		return false
	}
	p.rest = p.rest[1:]
	return true
}

// text takes a string of printable ASCII without escapes.
func (p *plain) text() ([]byte, bool) {
	if !p.take('"') {
		return nil, false
	}
	n := bytes.IndexByte(p.rest, '"')
	if n < 0 {
		return nil, false
	}
	text := p.rest[:n]
	for _, c := range text {
		if c < ' ' || c > '~' || c == '\\' {
			return nil, false
		}
	}
	p.rest = p.rest[n+1:]
	return text, true
}

// number takes what JSON has as a number; strconv would take more.
func (p *plain) number() (string, bool) {
	n := 0
	for n < len(p.rest) && (p.rest[n] >= '0' && p.rest[n] <= '9' || bytes.IndexByte([]byte("+-.eE"), p.rest[n]) >= 0) {
		n++
	}
	text := p.rest[:n]
	p.rest = p.rest[n:]
	digits := bytes.TrimPrefix(text, []byte("-"))
	switch {
	case len(digits) == 0 || digits[0] < '0' || digits[0] > '9':
		return "", false
	case len(digits) > 1 && digits[0] == '0' && digits[1] >= '0' && digits[1] <= '9':
		return "", false
	}
	if dot := bytes.IndexByte(digits, '.'); dot >= 0 && (dot+1 == len(digits) || digits[dot+1] < '0' || digits[dot+1] > '9') {
		return "", false
	}
	return string(text), true
}

func (p *plain) float(to *float64) bool {
	text, ok := p.number()
	if !ok {
		return false
	}
	v, err := strconv.ParseFloat(text, 64)
	*to = v
	return err == nil
}

func (p *plain) integer(to *int) bool {
	text, ok := p.number()
	if !ok {
		return false
	}
	v, err := strconv.Atoi(text)
	*to = v
	return err == nil
}

func (p *plain) bytes(to *uint64) bool {
	text, ok := p.number()
	if !ok {
		return false
	}
	v, err := strconv.ParseUint(text, 10, 64)
	*to = v
	return err == nil
}

func (p *plain) time(to *time.Time) bool {
	text, ok := p.text()
	if !ok {
		return false
	}
	return to.UnmarshalText(text) == nil
}

func (p *plain) counts(to *map[string]int) bool {
	if !p.take('{') {
		return false
	}
	*to = map[string]int{}
	if p.take('}') {
		return true
	}
	for {
		key, ok := p.text()
		var n int
		if !ok || !p.take(':') || !p.integer(&n) {
			return false
		}
		(*to)[string(key)] = n
		if !p.take(',') {
			return p.take('}')
		}
	}
}
