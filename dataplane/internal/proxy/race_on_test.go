//go:build race

package proxy_test

// The race detector makes pools forget, so that what allocates nothing does.
const raceDetector = true
