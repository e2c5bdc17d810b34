package engine

import (
	"runtime"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestStacksTellOfEveryThread(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("threads are asked on Linux only")
	}
	for range 3 {
		text := Stacks()
		require.NotEmpty(t, text)
		assert.GreaterOrEqual(t, strings.Count(text, "thread "), 2)
		assert.Contains(t, text, "cft_stacks", "the thread that asks")
	}
}
