package ferry_test

import (
	"bytes"
	"net"
	"testing"

	"bailiwick/dataplane/internal/ferry"
)

// FuzzMarkOf reads packets as RFC 8999 and the types of RFC 9000 and RFC 9369 have it, by another way.
func FuzzMarkOf(f *testing.F) {
	id := []byte("\x01\x02\x03\x04abcdefgh")
	f.Add(short(id, "x"))
	for kind := range byte(4) {
		f.Add(long(1, kind, id))
		f.Add(long(0x6b3343cf, kind, id))
	}
	f.Fuzz(func(t *testing.T, packet []byte) {
		mark, early, ok := ferry.MarkOf(packet)
		at := func(i int) int {
			if i >= len(packet) {
				return -1
			}
			return int(packet[i])
		}
		from, wantEarly := 0, false
		switch {
		case at(0) < 0 || at(0)&0x40 == 0:
		case at(0) < 0x80:
			from = 1
		case at(5) != ferry.IDLen:
		case bytes.Equal(packet[1:5], []byte{0, 0, 0, 1}):
			from, wantEarly = 6, at(0)&0x30 <= 0x10
		case bytes.Equal(packet[1:5], []byte{0x6b, 0x33, 0x43, 0xcf}):
			from, wantEarly = 6, at(0)&0x30 == 0x10 || at(0)&0x30 == 0x20
		}
		if from == 0 || at(from+ferry.IDLen-1) < 0 {
			if ok {
				t.Fatalf("%x has a mark", packet)
			}
			return
		}
		want := ferry.Mark(at(from)<<24 | at(from+1)<<16 | at(from+2)<<8 | at(from+3))
		if !ok || mark != want || early != wantEarly {
			t.Fatalf("%x: got %x, %v, %v, want %x, %v", packet, mark, early, ok, want, wantEarly)
		}
	})
}

// FuzzDeliver takes anything for a frame: what is one comes out as it went in, and nothing else does.
func FuzzDeliver(f *testing.F) {
	f.Add(ferry.Frame([]byte("packet"), []byte("control"), &net.UDPAddr{IP: net.IPv6loopback, Port: 443, Zone: "lo"}))
	f.Add(ferry.Frame([]byte("packet"), nil, &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 443}))
	f.Fuzz(func(t *testing.T, b []byte) {
		packet, oob, from, err := ferry.Parse(b)
		if err != nil {
			return
		}
		if len(packet) == 0 {
			t.Fatal("there is no packet")
		}
		if again := ferry.Frame(packet, oob, from); !bytes.Equal(again, b) {
			t.Fatalf("%x became %x", b, again)
		}
	})
}
