package incarnation

import "golang.org/x/sys/unix"

// Boot names the present boot of this machine, "" if it cannot be known.
func Boot() string {
	id, err := unix.Sysctl("kern.bootsessionuuid")
	if err != nil {
		return ""
	}
	return id
}
