package source

import (
	"context"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestAReadThatWaitsEndsWithItsContext(t *testing.T) {
	ctx, stop := context.WithCancel(t.Context())
	silent, writer := io.Pipe()
	defer writer.Close()
	ended := make(chan error)
	go func() {
		_, err := Interruptible(ctx, silent).Read(make([]byte, 8))
		ended <- err
	}()
	stop()
	require.ErrorIs(t, <-ended, context.Canceled)

	text, err := io.ReadAll(Interruptible(t.Context(), strings.NewReader("all of it")))
	require.NoError(t, err)
	assert.Equal(t, "all of it", string(text))
}
