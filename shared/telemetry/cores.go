package telemetry

import (
	"fmt"
	"syscall"
)

// NoCoreDumps keeps the system from writing this process's memory to a file, or handing it to whoever collects
// crashes: keys and requests are in it, and the file would rest wherever the collector says. Call it before any
// secret is read. On Linux other processes of the same user cannot read the memory either.
func NoCoreDumps() error {
	if err := syscall.Setrlimit(syscall.RLIMIT_CORE, &syscall.Rlimit{}); err != nil {
		return fmt.Errorf("turn core dumps off: %w", err)
	}
	return undumpable()
}
