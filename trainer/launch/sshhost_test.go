package launch

import (
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/spell"
)

// A script comes to /bin/sh as it is, whatever the login shell makes of quotes, backslashes and line breaks, and its input behind it.
func TestScriptsPassAnyLoginShell(t *testing.T) {
	word := `a 'b' "c" $(touch pwned) \n \' \\ ! é`
	script, input := withEnvironment("set -- "+spell.Quote(word)+"\nif true; then\n  printf '%s|' \"$1\" \"$V\"\nfi\ncat\nexit 3\n", []byte("first\nsecond\n"), map[string]string{"V": `x 'y' \z`})
	tried := 0
	for _, shell := range []string{"sh", "bash", "dash", "zsh", "ksh", "csh", "tcsh", "fish"} {
		path, err := exec.LookPath(shell)
		if err != nil {
			continue // sh is everywhere
		}
		tried++
		cmd := exec.Command(path, "-c", fromInput)
		cmd.Dir, cmd.Stdin = t.TempDir(), strings.NewReader(string(asLine(script))+string(input))
		out, err := cmd.Output()
		var exit *exec.ExitError
		require.ErrorAs(t, err, &exit, shell)
		assert.Equal(t, 3, exit.ExitCode(), "%s: %s", shell, exit.Stderr)
		assert.Equal(t, word+`|x 'y' \z|first`+"\nsecond\n", string(out), shell)
	}
	require.Positive(t, tried)
}
