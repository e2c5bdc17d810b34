package main

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"

	"cftune/trainer"
)

// A bucket of one length is that length, not a span from it to itself.
func TestHistogramsOfSingleLengths(t *testing.T) {
	var out strings.Builder
	printHistogram(&out, []trainer.Bucket{{From: 93, To: 93, Count: 4}, {From: 94, To: 127, Count: 2}})
	assert.Equal(t, "  "+"    93               4 "+strings.Repeat("█", barWidth)+"\n  "+"    94-127           2 "+strings.Repeat("█", barWidth/2)+"\n", out.String())
}
