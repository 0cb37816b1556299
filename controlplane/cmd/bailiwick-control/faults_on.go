//go:build faults

package main

import (
	"os"
	"strconv"
	"sync/atomic"
)

// dropDelta loses as many deltas as BAILIWICK_FAULT_DROP_DELTA says, to prove that a loss is noticed and healed.
func dropDelta() func() bool {
	n, _ := strconv.Atoi(os.Getenv("BAILIWICK_FAULT_DROP_DELTA"))
	var left atomic.Int64
	left.Store(int64(n))
	return func() bool { return left.Add(-1) >= 0 }
}
