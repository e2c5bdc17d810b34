package wordforms

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestNoSpellingBelongsToTwoWords(t *testing.T) {
	owner := map[string]string{}
	for _, w := range lexicon() {
		seen := map[string]bool{}
		for _, s := range w.spellings() {
			if seen[s] {
				continue // "become": one word's forms may be alike
			}
			seen[s] = true
			if other, taken := owner[s]; taken {
				t.Errorf("%q belongs to %s and %s", s, other, w.Text)
			}
			owner[s] = w.Text
			assert.Regexp(t, "^[a-z]+$", s)
		}
	}
	assert.Greater(t, len(owner), 3000)
}
