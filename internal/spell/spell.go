// Package spell writes values as people and shells read them.
package spell

import (
	"fmt"
	"math"
	"regexp"
	"strconv"
	"strings"
	"time"
	"unicode"
)

// Size is a number of bytes for people.
func Size[N uint64 | float64](bytes N) string {
	const mib, gib = 1 << 20, 1 << 30
	n := float64(bytes)
	switch {
	case n >= gib:
		return fmt.Sprintf("%.2f GiB", n/gib)
	case n >= mib:
		return fmt.Sprintf("%.1f MiB", n/mib)
	}
	return fmt.Sprintf("%.1f KiB", n/1024)
}

// Estimate is a time that is only guessed at: seconds below a minute, minutes above.
func Estimate(d time.Duration) string {
	if d < time.Minute-500*time.Millisecond {
		return max(d.Round(time.Second), time.Second).String()
	}
	return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
}

// Quote makes one word of any text for a POSIX shell; a shell takes no NUL, whatever is around it.
func Quote(text string) string {
	return "'" + strings.ReplaceAll(text, "'", `'\''`) + "'"
}

var plainWord = regexp.MustCompile(`^[A-Za-z0-9_./:@%+,=-]+$`)

// Word makes one word of a path for a shell, and leaves it as it is where that is one.
func Word(text string) string {
	if plainWord.MatchString(text) && !strings.HasPrefix(text, "-") {
		return text
	}
	if strings.HasPrefix(text, "-") {
		text = "./" + text
	}
	return Quote(text)
}

// Loss is one for people. Of one that has blown up, the digits say nothing.
func Loss(v float64) string {
	const blown = 1e6
	if math.Abs(v) < blown {
		return fmt.Sprintf("%.4f", v)
	}
	return fmt.Sprintf("%.4g", v)
}

// Line shows a text, such as a name of a file, within one line: what would move a terminal's cursor, or turn the direction of writing, is
// escaped.
func Line(text string) string {
	var b strings.Builder
	for _, r := range text {
		if unicode.IsPrint(r) || r == unicode.ReplacementChar {
			b.WriteRune(r)
			continue
		}
		quoted := strconv.QuoteRune(r)
		b.WriteString(quoted[1 : len(quoted)-1])
	}
	return b.String()
}
