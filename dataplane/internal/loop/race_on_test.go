//go:build race

package loop_test

// The race detector makes pools forget, so that what allocates nothing does.
const raceDetector = true
