package telemetry

import (
	"fmt"
	"syscall"
)

// undumpable holds also where the system pipes cores to a program, which a limit of zero does not stop.
func undumpable() error {
	if _, _, errno := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_SET_DUMPABLE, 0, 0); errno != 0 {
		return fmt.Errorf("turn core dumps off: %w", errno)
	}
	return nil
}
