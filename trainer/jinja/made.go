package jinja

import "strings"

// A template comes with a model's file, so what it makes is bounded: each text, and all that a rendering makes together.
// Operations that can make a long text of short ones collect it in a builder; what they hand on is counted by made.

// builder collects a text of at most maxTextBytes.
type builder struct{ text strings.Builder }

func (b *builder) add(texts ...string) {
	for _, s := range texts {
		if b.text.Len()+len(s) > maxTextBytes {
			failf("makes a text of more than %d bytes", maxTextBytes)
		}
		b.text.WriteString(s)
	}
}

func (b *builder) String() string { return b.text.String() }

func joined(parts []string, sep string) string {
	var b builder
	for i, part := range parts {
		if i > 0 {
			b.add(sep)
		}
		b.add(part)
	}
	return b.String()
}

// replaced is strings.Replace.
func replaced(s, old, new string, n int) string {
	count := strings.Count(s, old)
	if n >= 0 {
		count = min(count, n)
	}
	if grows := len(new) - len(old); grows > 0 && count > (maxTextBytes-min(len(s), maxTextBytes))/grows {
		failf("makes a text of more than %d bytes", maxTextBytes)
	}
	return strings.Replace(s, old, new, n)
}

// bounded refuses more items than a loop may have.
func bounded(what string, n int) {
	if n > maxRange {
		failf("%s of %d items is too long: more than %d", what, n, maxRange)
	}
}

// made counts what an operation has made, and returns it.
func (s *state) made(v any) any {
	switch v := v.(type) {
	case string:
		s.charge(len(v))
	case markup:
		s.charge(len(v))
	case *List:
		bounded("a list", len(v.Items))
		s.charge(itemBytes * len(v.Items))
	case *sequence:
		s.charge(itemBytes * len(v.items))
	}
	return v
}

func (s *state) charge(bytes int) {
	if s.bytes += bytes; s.bytes > maxMadeBytes {
		failf("makes more than %d bytes", maxMadeBytes)
	}
}
