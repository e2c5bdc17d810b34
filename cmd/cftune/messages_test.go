package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// Nobody reads at first: no text is waited for twice, and when somebody does, all that was held comes in its order, with a word about the rest.
func TestMessagesDoNotWaitForTheirReader(t *testing.T) {
	out, in := io.Pipe()
	p := &patient{to: in, patience: time.Millisecond, most: 1000}
	for i := range 400 {
		n, err := fmt.Fprintf(p, "line %03d\n", i)
		require.NoError(t, err)
		require.Equal(t, 9, n)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	p.flush(ended) // of a process that was told to end: it returns, though nobody reads

	lines := bufio.NewScanner(out)
	whole := 0
	for lines.Scan() && !strings.HasPrefix(lines.Text(), "cftune: note:") {
		require.Equal(t, fmt.Sprintf("line %03d", whole), lines.Text())
		whole++
	}
	assert.Greater(t, whole, 100, "those that were held")
	assert.Equal(t, fmt.Sprintf("cftune: note: %d lines are left out here, which nobody read", 400-whole), lines.Text())

	p.flush(t.Context())
	go fmt.Fprintln(p, "again")
	require.True(t, lines.Scan())
	assert.Equal(t, "again", lines.Text())
	p.flush(t.Context())

	require.NoError(t, out.Close()) // the reader goes
	for range 3 {
		n, err := p.Write([]byte("to nobody\n"))
		assert.NoError(t, err)
		assert.Equal(t, 10, n)
	}
	p.flush(t.Context())
}

// A reader that keeps up has everything by the time that a Write returns, so that messages and results keep their order.
func TestMessagesAreReadInOrder(t *testing.T) {
	var read bytes.Buffer
	p := &patient{to: &read, patience: time.Hour, most: 10}
	for i := range 100 {
		fmt.Fprintf(p, "message %d\n", i)
		require.True(t, strings.HasSuffix(read.String(), fmt.Sprintf("message %d\n", i)))
	}
	assert.Equal(t, 100, strings.Count(read.String(), "\n"))
}
