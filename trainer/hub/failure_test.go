package hub

import (
	"net"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// A name that no server knows is not tried again, and means the same as a hub that does not answer.
func TestAHubWithoutAnAddressIsUnreachable(t *testing.T) {
	attempts := 0
	err := (&Store{Patience: defaultPatience}).patiently(t.Context(), func() (bool, error) {
		attempts++
		return false, &net.DNSError{Err: "no such host", Name: "hub.invalid", IsNotFound: true}
	})
	require.ErrorIs(t, err, ErrUnreachable)
	assert.Equal(t, 1, attempts)
}

// Without a home folder there is no store of one's own, and none is looked for in a folder without a name.
func TestOllamasStoresWithoutAHome(t *testing.T) {
	for _, dir := range FromEnvironment(func(string) string { return "" }, "").Ollama {
		assert.NotEmpty(t, dir)
	}
}
