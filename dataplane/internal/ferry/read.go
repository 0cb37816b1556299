package ferry

import (
	"errors"
	"net"
	"os"

	"golang.org/x/net/ipv4"
)

// ReadBatch reads packets that are this process's, one at least: from the socket, and once detached what Deliver has brought. Where
// nothing is handed on it is the socket's own, and costs what that costs.
func (c *Conn) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	for !c.Detached() {
		n, err := c.batch.ReadBatch(ms, flags)
		if err != nil {
			if c.Detached() && errors.Is(err, net.ErrClosed) {
				break
			}
			return 0, err
		}
		if ways := c.ways.Load(); ways != nil {
			if n = c.sift(ms[:n], *ways); n == 0 {
				continue
			}
		}
		return n, nil
	}
	return c.collect(ms)
}

// sift hands on what is not this process's, and moves the rest to the front. Bytes are moved, not buffers: quic-go knows which of its
// buffers it has put at which place.
func (c *Conn) sift(ms []ipv4.Message, ways []way) int {
	kept := 0
	for i := range ms {
		m := &ms[i]
		if to := over(ways, m.Buffers[0][:m.N]); to != nil {
			if at, ok := m.Addr.(*net.UDPAddr); ok {
				c.frame = appendFrame(c.frame[:0], m.Buffers[0][:m.N], m.OOB[:m.NN], at)
				c.counts.diverted.Add(1)
				to(c.frame)
				continue
			}
		}
		if to := &ms[kept]; to != m {
			to.N, to.NN = copy(to.Buffers[0], m.Buffers[0][:m.N]), copy(to.OOB, m.OOB[:m.NN])
			to.Flags, to.Addr = m.Flags, m.Addr
		}
		kept++
	}
	return kept
}

// collect reads what Deliver has brought.
func (c *Conn) collect(ms []ipv4.Message) (int, error) {
	if len(ms) == 0 {
		return 0, nil
	}
	over := c.deadline.wait()
	select { // these two before any packet
	case <-c.done:
		return 0, net.ErrClosed
	case <-over:
		return 0, os.ErrDeadlineExceeded
	default:
	}
	var p *parcel
	select {
	case p = <-c.queue:
	case <-c.done:
		return 0, net.ErrClosed
	case <-over:
		return 0, os.ErrDeadlineExceeded
	}
	n := 0
	for {
		c.unpack(p, &ms[n])
		if n++; n == len(ms) {
			return n, nil
		}
		select {
		case p = <-c.queue:
		default:
			return n, nil
		}
	}
}

func (c *Conn) unpack(p *parcel, m *ipv4.Message) {
	f, _ := parseFrame(p.bytes[:p.n]) // Deliver has looked
	m.N, m.NN = copy(m.Buffers[0], f.packet), copy(m.OOB, f.oob)
	m.Addr, m.Flags = f.addr(c.six), 0
	c.parcels.Put(p)
}

// ReadMsgUDP is ReadBatch of one packet. quic-go asks for the method, and calls ReadBatch.
func (c *Conn) ReadMsgUDP(b, oob []byte) (n, oobn, flags int, from *net.UDPAddr, err error) {
	ms := []ipv4.Message{{Buffers: [][]byte{b}, OOB: oob}}
	if _, err = c.ReadBatch(ms, 0); err != nil {
		return 0, 0, 0, nil, err
	}
	from, _ = ms[0].Addr.(*net.UDPAddr)
	return ms[0].N, ms[0].NN, ms[0].Flags, from, nil
}

// ReadFrom is ReadMsgUDP.
func (c *Conn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, _, _, from, err := c.ReadMsgUDP(b, nil)
	if err != nil {
		return 0, nil, err
	}
	return n, from, nil
}
