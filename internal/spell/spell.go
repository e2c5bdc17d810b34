// Package spell writes values as people and shells read them.
package spell

import (
	"fmt"
	"regexp"
	"strings"
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
