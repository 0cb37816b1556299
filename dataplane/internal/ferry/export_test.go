package ferry

import (
	"net"
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
	return f.packet, f.oob, f.addr(), nil
}

// Late has all handshakes of the processes before be over.
func (c *Conn) Late() {
	for i := range *c.ways.Load() {
		(*c.ways.Load())[i].early = time.Time{}
	}
}
