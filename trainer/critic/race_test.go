//go:build race

package critic

const raceDetector = true
