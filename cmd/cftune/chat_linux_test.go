package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/internal/testmodel"
)

// At a terminal lines are typed at a mark, mistakes end nothing, what is pasted is one message, and Ctrl-D ends.
func TestChatAtATerminal(t *testing.T) {
	t.Setenv("TERM", "xterm")
	model := tinyModel(t, testmodel.Options{})
	keyboard, terminal := newKeyboard(t, 80)
	screen := &lockedBuffer{}
	go func() { _, _ = io.Copy(screen, keyboard) }() // ends with the terminal
	cmd := newChatCommand()
	var out bytes.Buffer
	cmd.SetIn(terminal)
	cmd.SetErr(terminal)
	cmd.SetOut(&out)
	cmd.SetArgs(append([]string{"--model", model}, drawn...))
	ended := make(chan error, 1)
	go func() { ended <- cmd.ExecuteContext(t.Context()) }()
	typeAt := func(marks int, keys string) {
		t.Helper()
		require.Eventually(t, func() bool { return strings.Count(screen.String(), "> ") >= marks }, time.Minute, time.Millisecond, "the mark")
		_, err := keyboard.WriteString(keys)
		require.NoError(t, err)
	}
	typeAt(1, "/nothing\r")
	typeAt(2, "/regen\r")
	typeAt(3, "\x1b[200~the answer\ris\r\x1b[201~wrong\r")
	typeAt(4, "\x04")
	require.NoError(t, <-ended)
	assert.Equal(t, generated(t, model, "the answer\nis\nwrong")+"\n", string([]rune(out.String())))
	require.Eventually(t, func() bool { return strings.Contains(screen.String(), "there is no /nothing") }, time.Minute, time.Millisecond)
	assert.Contains(t, screen.String(), "/regen: there is no answer yet")
}
