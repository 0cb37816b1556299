package incarnation

import (
	"os"
	"strings"
)

// Boot names the present boot of this machine, "" if it cannot be known.
func Boot() string {
	raw, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(raw))
}
