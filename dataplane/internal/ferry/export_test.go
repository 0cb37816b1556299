package ferry

import (
	"net"
	"slices"
	"time"
)

const (
	QueueMost = queueMost
	FrameMost = frameMost
)

var MarkOf = markOf

// Frame is a packet as a successor hands it on.
func Frame(packet, oob []byte, from *net.UDPAddr) []byte { return appendFrame(nil, packet, oob, from) }

// Parse is Frame's way back.
func Parse(b []byte) (packet, oob []byte, from *net.UDPAddr, err error) {
	f, err := parseFrame(b)
	if err != nil {
		return nil, nil, nil, err
	}
	return f.packet, f.oob, f.addr(true), nil
}

// Late has all handshakes of the processes before be over.
func (c *Conn) Late() {
	c.mu.Lock()
	defer c.mu.Unlock()
	ways := slices.Clone(*c.ways.Load())
	for i := range ways {
		ways[i].early = time.Time{}
	}
	c.ways.Store(&ways)
}
