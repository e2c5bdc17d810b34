package dataset

import (
	"encoding/json"
	"testing"

	"github.com/stretchr/testify/assert"
)

// What JSON has no word for is shown as what it was in the file.
func TestLooksLike(t *testing.T) {
	for value, want := range map[string]string{
		`null`: "null", `"abc"`: "text of 3 bytes", `1.5`: "1.5", `[1,2]`: "a list of 2", `[]`: "an empty list", `{"a":1}`: "an object", `{}`: "an object",
		`{"base64":"/wA="}`: "bytes that are no text", `{"float":"NaN"}`: "NaN", `{"float":"-Inf"}`: "-Inf",
	} {
		assert.Equal(t, want, looksLike(json.RawMessage(value)), value)
	}
}
