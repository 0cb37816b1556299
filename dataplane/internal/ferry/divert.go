package ferry

import (
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"slices"
	"time"
)

// way is where packets of a mark go.
type way struct {
	mark  Mark
	to    func(frame []byte)
	early time.Time // until then also those that may begin a connection
}

// Divert hands packets of connections of the process with that mark to it from now on, as frames for its Deliver; nil: no more. This
// process's QUIC does not see them, which would answer that the connections are gone, as it has to once that process is. Of
// several marks each has its own way.
//
// to must not block: no packet is read meanwhile. The frame is good until it returns. It may still be called for a moment after
// its way has ended. Frames have at most 2 KiB.
func (c *Conn) Divert(mark Mark, to func(frame []byte)) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var ways []way
	if old := c.ways.Load(); old != nil {
		ways = slices.DeleteFunc(slices.Clone(*old), func(w way) bool { return w.mark == mark })
	}
	if to != nil {
		ways = append(ways, way{mark, to, time.Now().Add(handshakeTime)})
	}
	if len(ways) == 0 {
		c.ways.Store(nil)
		return
	}
	c.ways.Store(&ways)
}

// over says where a packet goes; nil: it is this process's.
func over(ways []way, packet []byte) func([]byte) {
	mark, early, ok := markOf(packet)
	if !ok {
		return nil
	}
	for _, w := range ways {
		if w.mark == mark && (!early || time.Now().Before(w.early)) {
			return w.to
		}
	}
	return nil
}

// Versions of QUIC (RFC 9000, RFC 9369).
const (
	version1 = 1
	version2 = 0x6b3343cf
)

// markOf reads the mark of the process that a packet is for, where its destination connection ID is of a length and in a place that
// an edge's has (RFC 8999, 5). early: it may begin a connection, Initial and 0-RTT packets, which at first have an ID that the
// client chose. Of several packets in one the first speaks for all (RFC 9000, 12.2).
func markOf(packet []byte) (mark Mark, early, ok bool) {
	const long, fixed = 0x80, 0x40
	if len(packet) < 1+IDLen || packet[0]&fixed == 0 {
		return 0, false, false
	}
	id := packet[1:]
	if packet[0]&long != 0 {
		if len(packet) < 6+IDLen || packet[5] != IDLen {
			return 0, false, false
		}
		kind := packet[0] >> 4 & 3
		switch binary.BigEndian.Uint32(packet[1:]) {
		case version1:
			early = kind < 2
		case version2:
			early = kind == 1 || kind == 2
		default: // QUIC answers it with the versions it has
			return 0, false, false
		}
		id = packet[6:]
	}
	return Mark(binary.BigEndian.Uint32(id)), early, true
}

// A frame is a packet with what the system said of it: the sender's address (16 bytes), port (2), the length (1) and name of its
// zone, the length of the control messages (1), they, and the packet. Both processes run on one machine; versions of the program may
// differ, so it does not change.
const (
	frameMost = 2048
	frameHead = 16 + 2 + 1 + 1
	wordMost  = 255 // bytes of a zone's name and of control messages each; 128 are what quic-go has room for
)

var errFrame = errors.New("a frame is no packet")

type frame struct {
	from        netip.AddrPort
	zone        []byte
	oob, packet []byte
}

// addr is the sender's address as a socket of IPv6 or IPv4 has it: QUIC's tokens tell four bytes from the same in sixteen.
func (f frame) addr(six bool) *net.UDPAddr {
	from := f.from
	if !six {
		from = netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
	}
	a := net.UDPAddrFromAddrPort(from)
	a.Zone = string(f.zone)
	return a
}

// appendFrame leaves away what has no room: control messages that are longer than the system has any, and the end of a packet that
// is longer than any that QUIC reads.
func appendFrame(b, packet, oob []byte, from *net.UDPAddr) []byte {
	zone := from.Zone
	if len(zone) > wordMost {
		zone = ""
	}
	if len(oob) > wordMost {
		oob = nil
	}
	ip := from.AddrPort().Addr().As16()
	b = append(b, ip[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(from.Port))
	b = append(append(b, byte(len(zone))), zone...)
	b = append(append(b, byte(len(oob))), oob...)
	return append(b, packet[:min(len(packet), frameMost-frameHead-len(zone)-len(oob))]...)
}

func parseFrame(b []byte) (f frame, err error) {
	if len(b) < frameHead || len(b) > frameMost {
		return f, errFrame
	}
	f.from = netip.AddrPortFrom(netip.AddrFrom16([16]byte(b)), binary.BigEndian.Uint16(b[16:]))
	word := func() (w []byte) {
		if err == nil && (len(b) == 0 || len(b) < 1+int(b[0])) {
			err = errFrame
		}
		if err == nil {
			w, b = b[1:1+int(b[0])], b[1+int(b[0]):]
		}
		return w
	}
	b = b[18:]
	f.zone, f.oob = word(), word()
	f.packet = b
	if len(b) == 0 {
		err = errFrame
	}
	return f, err
}

// Deliver takes a packet that the successor has read. What nobody reads in time is lost, as in a full socket: it never waits. A
// frame of a process before this one goes on to that one. The error says that it is no frame, and something is wrong with the link.
func (c *Conn) Deliver(b []byte) error {
	f, err := parseFrame(b)
	if err != nil {
		return err
	}
	if ways := c.ways.Load(); ways != nil {
		if to := over(*ways, f.packet); to != nil {
			c.counts.diverted.Add(1)
			to(b)
			return nil
		}
	}
	c.counts.delivered.Add(1)
	p := c.parcels.Get().(*parcel)
	p.n = copy(p.bytes[:], b)
	select {
	case c.queue <- p:
	default:
		c.counts.dropped.Add(1)
		c.parcels.Put(p)
	}
	return nil
}
