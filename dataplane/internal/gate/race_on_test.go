//go:build race

package gate_test

// Under the race detector sync.Pool drops values at random, so allocations mean nothing.
const raceDetector = true
