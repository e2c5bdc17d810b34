package engine

import (
	"strings"
	"unicode/utf8"
)

// stopText collects an answer's text and watches for stop strings.
//
// Nothing but a stop string itself, and what follows it, is ever taken from the text. Text that may yet become a stop
// string, or a character that is not whole, is held back from certain until it is decided.
type stopText struct {
	stops   []string
	buf     []byte
	emitted int // bytes handed out by certain and rest
}

// add appends a token's bytes and reports whether a stop string is now in the text; then the text ends before it.
func (t *stopText) add(piece string) (stopped bool) {
	longest := 0
	for _, s := range t.stops {
		longest = max(longest, len(s))
	}
	// A new occurrence ends in the new bytes, so it begins at most longest-1 bytes before them.
	from := max(0, len(t.buf)-longest+1)
	t.buf = append(t.buf, piece...)
	first := -1
	for _, s := range t.stops {
		if at := strings.Index(string(t.buf[from:]), s); at >= 0 && (first < 0 || from+at < first) {
			first = from + at
		}
	}
	if first < 0 {
		return false
	}
	t.buf = t.buf[:first]
	return true
}

// certain returns the text since the last call that no later token can change.
func (t *stopText) certain() string {
	end := len(t.buf)
	for _, s := range t.stops {
		for n := min(len(s)-1, len(t.buf)); n > 0; n-- {
			if strings.HasSuffix(string(t.buf[len(t.buf)-n:]), s[:n]) {
				end = min(end, len(t.buf)-n)
				break
			}
		}
	}
	return t.take(max(t.emitted, t.emitted+wholeRunes(t.buf[t.emitted:max(end, t.emitted)])))
}

// rest returns the text that was held back.
func (t *stopText) rest() string { return t.take(len(t.buf)) }

func (t *stopText) take(end int) string {
	text := string(t.buf[t.emitted:end])
	t.emitted = end
	return text
}

func (t *stopText) all() string { return string(t.buf) }

// wholeRunes returns how many bytes of b come before a character that is not whole yet.
func wholeRunes(b []byte) int {
	for back := 1; back <= min(utf8.UTFMax-1, len(b)); back++ {
		if tail := b[len(b)-back:]; utf8.RuneStart(tail[0]) {
			if !utf8.FullRune(tail) {
				return len(b) - back
			}
			break
		}
	}
	return len(b)
}
