package main

import (
	"bytes"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/term"

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
	typeAt(4, "/no \ufffd\xe9\u00e9\r")
	typeAt(5, "\x1b[200~"+strings.Repeat("x", 5000)+"\rmore\r\x1b[201~\r")
	typeAt(6, "\x04")
	require.NoError(t, <-ended)
	assert.Equal(t, generated(t, model, "the answer\nis\nwrong")+"\n", string([]rune(out.String())))
	require.Eventually(t, func() bool { return strings.Contains(screen.String(), "there is no /no \ufffd\ufffd\u00e9:") }, time.Minute, time.Millisecond,
		"what is no character is read")
	require.Eventually(t, func() bool { return strings.Contains(screen.String(), "there is no /nothing") }, time.Minute, time.Millisecond)
	assert.Contains(t, screen.String(), "/regen: there is no answer yet")
	assert.Contains(t, screen.String(), "a line has more than the 4095 characters that can be typed, so the message was not sent")
}

// An interrupt by a signal while a line is typed ends the program, and leaves the terminal as it was.
func TestASignalAtChatsMarkLeavesTheTerminalAsItWas(t *testing.T) {
	t.Setenv("TERM", "xterm")
	keyboard, terminal := newKeyboard(t, 80)
	screen := &lockedBuffer{}
	go func() { _, _ = io.Copy(screen, keyboard) }() // ends with the terminal
	before, err := term.GetState(int(terminal.Fd()))
	require.NoError(t, err)
	lines := newTerminalLines(t.Context(), terminal, terminal)
	defer lines.close()
	ended := make(chan error, 1)
	go func() {
		_, err := lines.line("> ")
		ended <- err
	}()
	require.Eventually(t, func() bool { return strings.Contains(screen.String(), "> ") }, time.Minute, time.Millisecond, "the mark")
	during, err := term.GetState(int(terminal.Fd()))
	require.NoError(t, err)
	require.NotEqual(t, before, during)
	require.NoError(t, syscall.Kill(os.Getpid(), syscall.SIGINT))
	require.ErrorIs(t, <-ended, io.EOF)
	after, err := term.GetState(int(terminal.Fd()))
	require.NoError(t, err)
	require.Equal(t, before, after)
}

// Characters that come in parts are read whole, also where a reader takes less than one.
func TestWholeRunes(t *testing.T) {
	read, err := io.ReadAll(&wholeRunes{in: iotest.OneByteReader(strings.NewReader("a\u00e9\xe9b\u20ac\ufffd\xe2\x82"))})
	require.NoError(t, err)
	require.Equal(t, "a\u00e9\uf8ffb\u20ac\uf8ff\uf8ff\uf8ff", string(read))
	_, err = (&wholeRunes{in: strings.NewReader("a")}).Read(nil)
	require.ErrorIs(t, err, errEndless)
}
