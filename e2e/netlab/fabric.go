package netlab

import (
	"errors"
	"net/netip"
	"time"
)

// ErrMissing says that this machine lacks what a fabric needs: the nft program, or a kernel's devices.
var ErrMissing = errors.New("no fabric of hosts can be made here")

// Flow is packets from one network to another.
type Flow struct{ From, To netip.Prefix }

// Late is how much later the packets of a flow arrive.
type Late struct {
	Flow
	By time.Duration
}
