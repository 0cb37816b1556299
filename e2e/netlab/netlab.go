// Package netlab gives a test networks of its own that nobody else sees. The small kind is one loopback device in a
// namespace, in which packets can be lost by protocol, by who sends them and by where they go to: a cut is a routing
// rule that swallows, and needs no firewall program. The large kind is a Fabric: hosts in namespaces of their own
// around a router, with every frame captured, counters and losses by nftables (the program nft) and delays by this
// process; the kernel's netem is not needed.
//
// A namespace belongs to a process from its start, so a program runs itself again inside (Command) and asks
// Inside where it is. Nothing survives the process but capture files. Everything may be called by several
// goroutines at once.
package netlab

import (
	"os"
	"os/exec"
)

const inside = "BAILIWICK_E2E_NAMESPACE"

// Inside says whether this process was started by Command.
func Inside() bool { return os.Getenv(inside) != "" }

// Command is this program again, with other arguments, in a network and a mount table of its own. Starting it
// fails where that is not allowed.
func Command(args ...string) *exec.Cmd {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.SysProcAttr = attributes()
	return cmd
}

// Cut says which packets are lost. Zero fields match everything.
type Cut struct {
	Protocol int // as in IP: 17 is UDP
	UID      int // of the process that sends
	Port     int // to which they go
}

// UDP is every datagram.
var UDP = Cut{Protocol: 17}
