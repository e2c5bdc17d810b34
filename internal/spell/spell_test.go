package spell_test

import (
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/spell"
)

func TestSize(t *testing.T) {
	for n, want := range map[uint64]string{0: "0.0 KiB", 1536: "1.5 KiB", 1 << 20: "1.0 MiB", 3 << 29: "1.50 GiB"} {
		assert.Equal(t, want, spell.Size(n))
	}
}

func TestEstimate(t *testing.T) {
	for d, want := range map[time.Duration]string{
		0: "1s", 8400 * time.Millisecond: "8s", 59 * time.Second: "59s", 59700 * time.Millisecond: "1m", 89 * time.Second: "1m", 100 * time.Second: "2m",
		time.Hour: "1h0m", 65*time.Minute + 20*time.Second: "1h5m", 30 * time.Hour: "30h0m",
	} {
		assert.Equal(t, want, spell.Estimate(d), "%s", d)
	}
}

func TestLoss(t *testing.T) {
	for v, want := range map[float64]string{2.5: "2.5000", 99999.5: "99999.5000", -1e300: "-1e+300", 12345678: "1.235e+07"} {
		assert.Equal(t, want, spell.Loss(v))
	}
}

func TestALineStaysOne(t *testing.T) {
	for text, want := range map[string]string{
		"runs/a b": "runs/a b", "été ☃ 模型": "été ☃ 模型", "new\nline\ttab": `new\nline\ttab`, "\x1b[31mred": `\x1b[31mred`, "a\u202eb\u0085": `a\u202eb\u0085`, "\xff": "\ufffd",
	} {
		assert.Equal(t, want, spell.Line(text))
	}
}

// What is quoted comes out of a shell as it was, and does nothing there.
func TestQuotedWordsPassAShell(t *testing.T) {
	for _, word := range []string{"plain", "two words", `it's "both"`, "$(touch pwned)", "`touch pwned`", "a;touch pwned", "-n", "", `back\slash`, "*", "~", "é", "two\nlines"} {
		out, err := exec.Command("/bin/sh", "-c", "printf %s "+spell.Quote(word)).Output()
		require.NoError(t, err)
		assert.Equal(t, word, string(out))
	}
}

// A path that is one word stays readable; any other is made one.
func TestWordsAreOneWord(t *testing.T) {
	for text, want := range map[string]string{"runs/first-1": "runs/first-1", "two words": "'two words'", "-n": "'./-n'", "": "''", "ü": "'ü'"} {
		assert.Equal(t, want, spell.Word(text))
	}
}
