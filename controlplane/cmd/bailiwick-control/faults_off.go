//go:build !faults

package main

// dropDelta is a fault of test builds (go build -tags faults); here there is none.
func dropDelta() func() bool { return nil }
