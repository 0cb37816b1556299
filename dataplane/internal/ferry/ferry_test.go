package ferry_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/ipv4"

	"bailiwick/dataplane/internal/ferry"
)

// two are the Conns of two processes of one socket.
func two(t testing.TB, address string) (before, after *ferry.Conn) {
	t.Helper()
	l, err := net.ListenPacket("udp", address)
	if err != nil {
		t.Skipf("no socket at %s: %v", address, err)
	}
	f, err := l.(*net.UDPConn).File()
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	same, err := net.FilePacketConn(f)
	if err != nil {
		t.Fatal(err)
	}
	if before, err = ferry.New(l.(*net.UDPConn)); err != nil {
		t.Fatal(err)
	}
	if after, err = ferry.New(same.(*net.UDPConn), before.Mark()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { before.Close(); after.Close() })
	return before, after
}

// client is a socket that sends to a Conn.
func client(t testing.TB, to *ferry.Conn) *net.UDPConn {
	t.Helper()
	at := *to.LocalAddr().(*net.UDPAddr)
	if at.IP.IsUnspecified() {
		at.IP = net.IPv4(127, 0, 0, 1)
	}
	c, err := net.DialUDP("udp", nil, &at)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// short is a packet of a connection that has this ID.
func short(id []byte, text string) []byte {
	return append(append([]byte{0x40}, id...), text...)
}

// of is a packet of a connection that c has.
func of(c *ferry.Conn, text string) []byte {
	id := c.ID()
	return short(id[:], text)
}

// long is a packet with a long header.
func long(version uint32, kind byte, id []byte) []byte {
	b := binary.BigEndian.AppendUint32([]byte{0xc0 | kind<<4}, version)
	b = append(append(b, byte(len(id))), id...)
	return append(b, 0, 0, 0)
}

func messages(n int) []ipv4.Message {
	ms := make([]ipv4.Message, n)
	for i := range ms {
		ms[i].Buffers, ms[i].OOB = [][]byte{make([]byte, 1452)}, make([]byte, 128)
	}
	return ms
}

// read reads a packet within a time, without what tells whose it is; "" if there is none.
func read(t testing.TB, c *ferry.Conn, within time.Duration) string {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(within))
	defer c.SetReadDeadline(time.Time{})
	ms := messages(1)
	if _, err := c.ReadBatch(ms, 0); errors.Is(err, os.ErrDeadlineExceeded) {
		return ""
	} else if err != nil {
		t.Fatal(err)
	}
	return string(ms[0].Buffers[0][1+ferry.IDLen : ms[0].N])
}

func TestMarkOf_ByTheFormOfThePacket(t *testing.T) {
	const v1, v2 = 1, 0x6b3343cf
	id := []byte("\x01\x02\x03\x04abcdefgh")
	of := ferry.Mark(0x01020304)
	for _, c := range []struct {
		what   string
		packet []byte
		mark   ferry.Mark
		early  bool
	}{
		{"short", short(id, "x"), of, false},
		{"short, all of it", short(id, ""), of, false},
		{"short and cut off", short(id[:11], ""), 0, false},
		{"short without the bit of QUIC", append([]byte{0}, id...), 0, false},
		{"Handshake", long(v1, 2, id), of, false},
		{"Handshake of version 2", long(v2, 3, id), of, false},
		{"Initial", long(v1, 0, id), of, true},
		{"Initial of version 2", long(v2, 1, id), of, true},
		{"0-RTT", long(v1, 1, id), of, true},
		{"0-RTT of version 2", long(v2, 2, id), of, true},
		{"a longer ID", long(v1, 2, append(id, 0)), 0, false},
		{"a shorter ID", long(v1, 2, id[:8]), 0, false},
		{"a version that nobody has", long(7, 2, id), 0, false},
		{"version negotiation", long(0, 2, id), 0, false},
		{"long and cut off", long(v1, 2, id)[:17], 0, false},
		{"long without the bit of QUIC", append([]byte{0xa0}, long(v1, 2, id)[1:]...), 0, false},
		{"nothing", nil, 0, false},
	} {
		mark, early, ok := ferry.MarkOf(c.packet)
		if mark != c.mark || early != c.early || ok != (c.mark != 0) {
			t.Errorf("%s: got %x, %v, %v", c.what, mark, early, ok)
		}
	}
}

// IDs carry the mark and differ; marks differ from others'.
func TestConn_IDs(t *testing.T) {
	before, after := two(t, "127.0.0.1:0")
	if before.Mark() == 0 || before.Mark() == after.Mark() {
		t.Fatalf("marks %x and %x", before.Mark(), after.Mark())
	}
	seen := map[[ferry.IDLen]byte]bool{}
	for range 1000 {
		id := before.ID()
		if seen[id] {
			t.Fatal("an ID came twice")
		}
		seen[id] = true
		if mark, _, ok := ferry.MarkOf(short(id[:], "")); !ok || mark != before.Mark() {
			t.Fatalf("%x does not carry %x", id, before.Mark())
		}
	}
}

// What was read at once of one sender is taken apart by whose it is, in order, with all that the system said of it.
func TestDivert_TakesABatchApart(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		t.Run(address, func(t *testing.T) {
			before, after := two(t, address)
			u := client(t, after)
			var other []string
			after.Divert(before.Mark(), func(frame []byte) {
				packet, _, from, err := ferry.Parse(frame)
				if err != nil || from.Port != u.LocalAddr().(*net.UDPAddr).Port || !from.IP.Equal(u.LocalAddr().(*net.UDPAddr).IP) {
					t.Errorf("it is from %v, %v", from, err)
				}
				other = append(other, string(packet[1+ferry.IDLen:]))
			})
			strange := short([]byte("0123456789ab"), "of nobody")
			for _, p := range [][]byte{of(before, "a"), of(after, "b, which is longer"), of(before, "c"), of(before, "d"), strange, of(after, "e"), of(before, "f")} {
				if _, err := u.Write(p); err != nil {
					t.Fatal(err)
				}
			}
			ms := messages(8)
			for i := range ms {
				ms[i].Buffers[0] = ms[i].Buffers[0][:100+i] // each keeps its own
			}
			n, err := after.ReadBatch(ms, 0)
			if err != nil {
				t.Fatal(err)
			}
			var got []string
			for i, m := range ms {
				if len(m.Buffers[0]) != 100+i {
					t.Errorf("buffer %d is another's", i)
				}
				if i < n {
					got = append(got, string(m.Buffers[0][1+ferry.IDLen:m.N]))
					if at, ok := m.Addr.(*net.UDPAddr); !ok || at.Port != u.LocalAddr().(*net.UDPAddr).Port {
						t.Errorf("%d is from %v", i, m.Addr)
					}
				}
			}
			if want := "[b, which is longer of nobody e]"; fmt.Sprint(got) != want {
				t.Errorf("got %v, want %v", got, want)
			}
			if want := "[a c d f]"; fmt.Sprint(other) != want || after.Counts().Diverted != 4 {
				t.Errorf("handed on %v, want %v; %+v", other, want, after.Counts())
			}
			after.Divert(before.Mark(), nil)
			u.Write(of(before, "g"))
			if got := read(t, after, time.Minute); got != "g" {
				t.Errorf("after its end: %q", got)
			}
		})
	}
}

// What may begin a connection is handed on for as long as it may be of one that has begun, and never without the mark.
func TestDivert_InitialsForAWhile(t *testing.T) {
	before, after := two(t, "127.0.0.1:0")
	u := client(t, after)
	handed := 0
	after.Divert(before.Mark(), func([]byte) { handed++ })
	is := func(what string, packet []byte, want int) {
		t.Helper()
		handed = 0
		u.Write(packet)
		u.Write(of(after, "last"))
		ms, n := messages(1), 0
		for ; ; n++ {
			if _, err := after.ReadBatch(ms, 0); err != nil {
				t.Fatal(err)
			}
			if bytes.HasSuffix(ms[0].Buffers[0][:ms[0].N], []byte("last")) {
				break
			}
		}
		if handed != want || n != 1-want {
			t.Errorf("%s: %d handed on and %d read, want %d", what, handed, n, want)
		}
	}
	mine, his := after.ID(), before.ID()
	is("an Initial with the mark", long(1, 0, his[:]), 1)
	is("an Initial without", long(1, 0, mine[:]), 0)
	is("an Initial with the mark in a longer ID", long(1, 0, append(his[:], 1)), 0)
	after.Late()
	is("an Initial with the mark, late", long(1, 0, his[:]), 0)
	is("0-RTT with the mark, late", long(1, 1, his[:]), 0)
	is("a Handshake with the mark, late", long(1, 2, his[:]), 1)
	is("a short one, late", short(his[:], "x"), 1)
}

// When Detach returns nothing is read of the socket, though somebody was waiting for it; what Deliver brings is.
func TestDetach_ReadsNothingMore(t *testing.T) {
	before, after := two(t, "127.0.0.1:0")
	u := client(t, before)
	type batch struct {
		texts []string
		err   error
	}
	got := make(chan batch)
	go func() {
		for {
			ms := messages(8)
			n, err := before.ReadBatch(ms, 0)
			var b batch
			for _, m := range ms[:n] {
				b.texts = append(b.texts, string(m.Buffers[0][1+ferry.IDLen:m.N]))
			}
			b.err = err
			got <- b
			if err != nil {
				return
			}
		}
	}()
	u.Write(of(before, "first"))
	if b := <-got; fmt.Sprint(b.texts) != "[first]" {
		t.Fatalf("got %v", b)
	}
	time.Sleep(10 * time.Millisecond) // it waits again
	if err := before.Detach(); err != nil || !before.Detached() {
		t.Fatal(err)
	}
	for i := range 100 {
		u.Write(of(before, fmt.Sprint(i)))
	}
	for i := range 100 {
		if text := read(t, after, time.Minute); text != fmt.Sprint(i) {
			t.Fatalf("the successor reads %q, want %d", text, i)
		}
	}
	select {
	case b := <-got:
		t.Fatalf("it read %v", b)
	default:
	}
	from := &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 7}
	before.Deliver(ferry.Frame(of(before, "delivered"), nil, from))
	if b := <-got; fmt.Sprint(b.texts) != "[delivered]" {
		t.Fatalf("got %v", b)
	}
	if err := before.Detach(); err != nil {
		t.Errorf("once more: %v", err)
	}
	if n, err := before.WriteTo([]byte("answer"), u.LocalAddr()); n != 6 || err != nil {
		t.Errorf("it writes: %d, %v", n, err)
	}
	b := make([]byte, 100)
	u.SetReadDeadline(time.Now().Add(time.Minute))
	if n, err := u.Read(b); err != nil || string(b[:n]) != "answer" {
		t.Errorf("what it writes: %q, %v", b[:n], err)
	}
	before.Close()
	if b := <-got; !errors.Is(b.err, net.ErrClosed) {
		t.Errorf("when it is closed: %v", b.err)
	}
	if _, err := before.WriteTo([]byte("answer"), u.LocalAddr()); !errors.Is(err, net.ErrClosed) {
		t.Errorf("it writes when it is closed: %v", err)
	}
}

// A deadline ends a read from either source, and one that is set while Detach goes from the one to the other.
func TestConn_Deadlines(t *testing.T) {
	before, _ := two(t, "127.0.0.1:0")
	over := func(what string, within time.Duration) {
		t.Helper()
		before.SetReadDeadline(time.Now().Add(within))
		ended := make(chan error, 1)
		go func() { _, err := before.ReadBatch(messages(1), 0); ended <- err }()
		select {
		case err := <-ended:
			if e, ok := err.(net.Error); !ok || !e.Timeout() || !e.Temporary() { // as quic-go asks
				t.Errorf("%s: got %v", what, err)
			}
		case <-time.After(time.Minute):
			t.Fatalf("%s: it waits", what)
		}
	}
	over("attached, soon", time.Millisecond)
	over("attached, past", -time.Second)
	before.SetReadDeadline(time.Time{})
	ended := make(chan error, 1)
	go func() { _, err := before.ReadBatch(messages(1), 0); ended <- err }()
	before.Detach()
	before.SetReadDeadline(time.Now())
	if err := <-ended; !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("while it detached: %v", err)
	}
	over("detached, soon", time.Millisecond)
	over("detached, past", -time.Second)
	before.SetReadDeadline(time.Now().Add(time.Hour))
	before.Deliver(ferry.Frame(of(before, "x"), nil, &net.UDPAddr{IP: net.IPv4zero, Port: 1}))
	if got := read(t, before, time.Hour); got != "x" {
		t.Errorf("got %q", got)
	}
}

// More than the queue holds is lost, and counted; then it goes on.
func TestDeliver_DropsAndRecovers(t *testing.T) {
	before, _ := two(t, "127.0.0.1:0")
	before.Detach()
	from := &net.UDPAddr{IP: net.IPv6loopback, Port: 9, Zone: "lo"}
	for i := range ferry.QueueMost + 10 {
		if err := before.Deliver(ferry.Frame(of(before, fmt.Sprint(i)), []byte("control"), from)); err != nil {
			t.Fatal(err)
		}
	}
	if c := before.Counts(); c.Dropped != 10 || c.Delivered != ferry.QueueMost+10 {
		t.Errorf("%+v", c)
	}
	ms := messages(8)
	for i := 0; i < ferry.QueueMost; {
		n, err := before.ReadBatch(ms, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range ms[:n] {
			if got := string(m.Buffers[0][1+ferry.IDLen : m.N]); got != fmt.Sprint(i) || string(m.OOB[:m.NN]) != "control" || m.Addr.String() != from.String() {
				t.Fatalf("%d: got %q with %q from %v", i, got, m.OOB[:m.NN], m.Addr)
			}
			i++
		}
	}
	before.Deliver(ferry.Frame(of(before, "again"), nil, from))
	if got := read(t, before, time.Minute); got != "again" {
		t.Errorf("got %q", got)
	}
	for _, b := range [][]byte{nil, make([]byte, 19), make([]byte, 20), append(make([]byte, 18), 9), make([]byte, ferry.FrameMost+1)} {
		if before.Deliver(b) == nil {
			t.Errorf("%d bytes are taken for a frame", len(b))
		}
	}
}

// What comes for the process before the one before goes on to it.
func TestDeliver_GoesOnFurther(t *testing.T) {
	first, second := two(t, "127.0.0.1:0")
	first.Detach()
	second.Divert(first.Mark(), func(b []byte) { first.Deliver(b) })
	second.Detach()
	from := &net.UDPAddr{IP: net.IPv4zero, Port: 1}
	second.Deliver(ferry.Frame(of(first, "first's"), nil, from))
	second.Deliver(ferry.Frame(of(second, "second's"), nil, from))
	if a, b := read(t, first, time.Minute), read(t, second, time.Minute); a != "first's" || b != "second's" {
		t.Errorf("got %q and %q", a, b)
	}
}

// Who writes while the socket is detached, or closed, writes to it or is told: never to what has got its number since.
func TestConn_WritesWhileItChanges(t *testing.T) {
	for _, address := range []string{"127.0.0.1:0", "[::1]:0", ":0"} {
		before, _ := two(t, address)
		u := client(t, before)
		to := u.LocalAddr()
		var writers sync.WaitGroup
		var mu sync.Mutex
		sent := 0
		for range 4 {
			writers.Go(func() {
				for {
					if _, err := before.WriteTo([]byte("x"), to); err != nil {
						if !errors.Is(err, net.ErrClosed) {
							t.Errorf("%s: %v", address, err)
						}
						return
					}
					mu.Lock()
					sent++
					mu.Unlock()
				}
			})
		}
		more := func() {
			t.Helper()
			mu.Lock()
			was := sent
			mu.Unlock()
			for until := time.Now().Add(time.Minute); ; time.Sleep(time.Millisecond) {
				mu.Lock()
				is := sent
				mu.Unlock()
				if is > was+10 {
					return
				} else if time.Now().After(until) {
					t.Fatalf("%s: nobody writes", address)
				}
			}
		}
		more()
		before.Detach()
		more()
		before.Close()
		writers.Wait()
	}
}

// No write fails because Detach comes in between.
func TestDetach_NoWriteFails(t *testing.T) {
	for range 200 {
		before, after := two(t, "127.0.0.1:0")
		to := client(t, before).LocalAddr()
		var writers sync.WaitGroup
		stop, begun := make(chan struct{}), make(chan struct{}, 4)
		for range 4 {
			writers.Go(func() {
				for i := 0; ; i++ {
					if _, err := before.WriteTo([]byte("x"), to); err != nil {
						t.Error(err)
						return
					}
					if i == 0 {
						begun <- struct{}{}
					}
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		<-begun
		before.Detach()
		close(stop)
		writers.Wait()
		before.Close()
		after.Close()
	}
}

// Where nothing is handed on a read costs what the socket's own does.
func TestReadBatch_AllocatesNothingOfItsOwn(t *testing.T) {
	_, after := two(t, "127.0.0.1:0")
	u := client(t, after)
	same, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer same.Close()
	v, err := net.DialUDP("udp", nil, same.LocalAddr().(*net.UDPAddr))
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	plain, ms, packet := ipv4.NewPacketConn(same), messages(8), of(after, "x")
	reads := func(u *net.UDPConn, read func([]ipv4.Message, int) (int, error)) float64 {
		return testing.AllocsPerRun(200, func() {
			u.Write(packet)
			if n, err := read(ms, 0); n != 1 || err != nil {
				t.Fatal(n, err)
			}
		})
	}
	want, got := reads(v, plain.ReadBatch), reads(u, after.ReadBatch)
	if got > want {
		t.Errorf("got %v allocations, the socket's own has %v", got, want)
	}
	after.Divert(1+after.Mark(), func([]byte) {})
	if got := reads(u, after.ReadBatch); got > want {
		t.Errorf("while others' packets are looked for: got %v allocations, the socket's own has %v", got, want)
	}
}
