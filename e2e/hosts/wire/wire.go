// Package wire reads what a host's capture holds: datagrams, the two directions of each TCP connection put together
// again, and, with the secrets that a program wrote down for it, what TLS 1.3 hid in them. It only reads files, and
// keeps nothing; its functions may be called by several goroutines at once.
package wire

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
)

// Stream is one direction of a TCP connection, or one datagram or other packet.
type Stream struct {
	From, To netip.AddrPort // no ports where the protocol has none
	Protocol int            // as in IP: 6 TCP, 17 UDP
	Data     []byte
	Lost     int // places where bytes are missing that the capture did not see
}

func (s Stream) String() string {
	return fmt.Sprintf("%s to %s, protocol %d", s.From, s.To, s.Protocol)
}

const tcp, udp = 6, 17

type segment struct {
	at   uint32 // its first byte, counted from the connection's first
	data []byte
}

type half struct {
	Stream
	first    uint32 // sequence number of the first byte
	segments []segment
}

type ends struct{ from, to netip.AddrPort }

// Read takes a pcap file of Ethernet frames apart. Frames that are not IPv4 come as streams of their own, without
// addresses: nothing is left out.
func Read(path string) ([]Stream, error) {
	file, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	if len(file) < 24 || binary.LittleEndian.Uint32(file) != 0xa1b2c3d4 || binary.LittleEndian.Uint32(file[20:]) != 1 {
		return nil, fmt.Errorf("read %s: it is no capture of Ethernet frames", path)
	}
	var all []Stream
	var order []*half
	open := map[ends]*half{}
	for rest := file[24:]; len(rest) > 0; {
		if len(rest) < 16 {
			return nil, fmt.Errorf("read %s: %w", path, io.ErrUnexpectedEOF)
		}
		kept, real := binary.LittleEndian.Uint32(rest[8:]), binary.LittleEndian.Uint32(rest[12:])
		if kept != real || len(rest)-16 < int(kept) {
			return nil, fmt.Errorf("read %s: a frame of %d bytes has only %d", path, real, kept)
		}
		frame := rest[16 : 16+kept]
		rest = rest[16+kept:]
		p, err := packet(frame)
		if err != nil { // ARP, IPv6 of the kernel's own
			all = append(all, Stream{Data: frame})
			continue
		}
		if p.Protocol != tcp {
			all = append(all, p.Stream)
			continue
		}
		key := ends{p.From, p.To}
		h := open[key]
		if h == nil || p.syn && p.sequence+1 != h.first { // ports are used again
			h = &half{Stream: Stream{From: p.From, To: p.To, Protocol: tcp}, first: p.sequence}
			if p.syn {
				h.first++
			}
			open[key] = h
			order = append(order, h)
		}
		if len(p.Data) > 0 {
			h.segments = append(h.segments, segment{p.sequence - h.first, p.Data})
		}
	}
	for _, h := range order {
		h.join()
		all = append(all, h.Stream)
	}
	return all, nil
}

// join puts the segments in order. What a sender sent twice counts once.
func (h *half) join() {
	slices.SortStableFunc(h.segments, func(a, b segment) int { return cmp.Compare(a.at, b.at) })
	next := uint32(0)
	for _, s := range h.segments {
		if s.at > 1<<31 { // before the first: a keep-alive's byte
			continue
		}
		if s.at > next {
			h.Lost++
			next = s.at
		}
		if end := s.at + uint32(len(s.data)); end > next {
			h.Data = append(h.Data, s.data[next-s.at:]...)
			next = end
		}
	}
}

type parsed struct {
	Stream
	sequence uint32
	syn      bool
}

var errForeign = errors.New("not IPv4")

func packet(frame []byte) (p parsed, err error) {
	if len(frame) < 34 || binary.BigEndian.Uint16(frame[12:]) != 0x0800 {
		return p, errForeign
	}
	ip := frame[14:]
	header, total := int(ip[0]&15)*4, int(binary.BigEndian.Uint16(ip[2:]))
	if total == 0 || total > len(ip) { // a frame larger than the field can say
		total = len(ip)
	}
	if header < 20 || header > total {
		return p, errForeign
	}
	p.Protocol = int(ip[9])
	from, to := netip.AddrFrom4([4]byte(ip[12:16])), netip.AddrFrom4([4]byte(ip[16:20]))
	body := ip[header:total]
	switch {
	case p.Protocol == tcp && len(body) >= 20:
		data := int(body[12]>>4) * 4
		if data > len(body) {
			return p, errForeign
		}
		p.From, p.To = netip.AddrPortFrom(from, binary.BigEndian.Uint16(body)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(body[2:]))
		p.sequence, p.syn, p.Data = binary.BigEndian.Uint32(body[4:]), body[13]&2 != 0, body[data:]
	case p.Protocol == udp && len(body) >= 8:
		p.From, p.To = netip.AddrPortFrom(from, binary.BigEndian.Uint16(body)), netip.AddrPortFrom(to, binary.BigEndian.Uint16(body[2:]))
		p.Data = body[8:]
	default:
		p.From, p.To = netip.AddrPortFrom(from, 0), netip.AddrPortFrom(to, 0)
		p.Data = body
	}
	return p, nil
}
