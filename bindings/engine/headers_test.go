package engine

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"cftune/bindings/native"
)

// A program over a library of other headers wrote past the end of its structs: a run went on with eight zeroes in its chat template.
func TestALibraryOfOtherHeadersIsRefused(t *testing.T) {
	require.NoError(t, Init(""), "the library that these tests run with is of these headers")
	own, err := native.Headers()
	require.NoError(t, err)
	assert.Regexp(t, "^[0-9a-f]{64}$", own)
	assert.NoError(t, sameHeaders(own))
	for _, other := range []string{"", own[1:] + "0"} {
		assert.ErrorIs(t, sameHeaders(other), ErrHeaders)
	}
}
