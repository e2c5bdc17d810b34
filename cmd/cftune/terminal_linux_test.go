package main

import (
	"fmt"
	"os"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// newTerminal opens a pseudo-terminal of so many columns.
func newTerminal(t *testing.T, columns uint16) *os.File {
	t.Helper()
	_, terminal := newKeyboard(t, columns)
	return terminal
}

// newKeyboard opens a pseudo-terminal: what is written to the first of its ends is typed at the other, and read from it what is shown there.
func newKeyboard(t *testing.T, columns uint16) (keyboard, terminal *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = master.Close() })
	require.NoError(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	require.NoError(t, err)
	require.NoError(t, unix.IoctlSetWinsize(int(master.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 24, Col: columns}))
	terminal, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	require.NoError(t, err)
	t.Cleanup(func() { _ = terminal.Close() })
	return master, terminal
}

// What a terminal cannot show, or its owner does not want, is not written to it.
func TestTerminals(t *testing.T) {
	for _, tt := range []struct {
		name, term, noColor string
		columns             uint16
		bar, colours        bool
	}{
		{"any", "xterm", "", 40, true, true},
		{"colours are not wanted", "xterm", "1", 40, true, false},
		{"dumb", "dumb", "", 40, false, false},
		{"without a size", "xterm", "", 0, false, false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("TERM", tt.term)
			t.Setenv("NO_COLOR", tt.noColor)
			terminal := newTerminal(t, tt.columns)
			assert.Equal(t, tt.bar, hasSize(terminal))
			assert.Equal(t, tt.colours, hasColours(terminal))
		})
	}
}
