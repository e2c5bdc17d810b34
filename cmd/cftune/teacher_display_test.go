package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestPaces(t *testing.T) {
	for each, want := range map[time.Duration]string{
		0: "1000000000.0/s", 400 * time.Millisecond: "2.5/s", time.Second: "1.0/s", 1500 * time.Millisecond: "40.0/min", 48 * time.Second: "1.2/min",
		time.Minute: "1.0/min", 90 * time.Second: "40.0/h", 20 * time.Hour: "0.1/h",
	} {
		assert.Equal(t, want, pace(each), "%s each", each)
	}
}
