package launch

import (
	"errors"
	"fmt"
	"regexp"
	"strings"

	"cftune/internal/spell"
)

// quoteAll makes a command line of words. Text with a NUL or a line break never comes here (checkPath).
func quoteAll(words ...string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = spell.Quote(w)
	}
	return strings.Join(quoted, " ")
}

// checkPath refuses what no honest path has, and what would end a line of a script.
func checkPath(path string) error {
	if i := strings.IndexFunc(path, func(r rune) bool { return r < ' ' || r == 0x7f }); i >= 0 {
		return fmt.Errorf("path %q has a line break or another control character", path)
	}
	return nil
}

var nameWords = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// CheckName refuses names of runs and targets that would be trouble as names of folders, jobs and units.
func CheckName(name string) error {
	if !nameWords.MatchString(name) {
		return fmt.Errorf("%q is no name: letters, digits, dots, dashes and underscores, at most 100, a letter or digit first", name)
	}
	if strings.HasSuffix(name, ".tmp") || strings.HasSuffix(name, ".part") {
		return errors.New("a name must not end in .tmp or .part, which mark what is unfinished")
	}
	return nil
}
