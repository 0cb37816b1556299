package park_test

import (
	"crypto/tls"
	"io"
	"net"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"bailiwick/dataplane/internal/park"
)

// guest counts how often it was roused.
type guest struct {
	place  park.Place
	c, far net.Conn
	roused chan struct{}
}

func (g *guest) Rouse() { g.roused <- struct{}{} }

func (g *guest) up(t *testing.T) {
	t.Helper()
	select {
	case <-g.roused:
	case <-time.After(time.Minute):
		t.Fatal("nobody roused the owner")
	}
}

func (g *guest) asleep(t *testing.T) {
	t.Helper()
	if len(g.roused) > 0 {
		t.Fatal("the owner was roused")
	}
}

func newLot(t *testing.T) *park.Lot {
	t.Helper()
	lot, err := park.New()
	if err != nil {
		t.Skip(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- lot.Run() }()
	t.Cleanup(func() {
		lot.Close()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return lot
}

func newGuest(t *testing.T) *guest {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	far, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close(); far.Close() })
	return &guest{c: c, far: far, roused: make(chan struct{}, 10)}
}

const long = time.Hour

func (g *guest) park(t *testing.T, lot *park.Lot, d time.Duration) {
	t.Helper()
	if !lot.Park(&g.place, g.c, g, time.Now().Add(d)) {
		t.Fatal("it is not parked")
	}
}

func TestLot_RousesWhenSomethingComes(t *testing.T) {
	lot := newLot(t)
	g, other := newGuest(t), newGuest(t)
	other.park(t, lot, long)
	b := make([]byte, 8)
	for range 50 {
		g.park(t, lot, long)
		io.WriteString(g.far, "hello")
		g.up(t)
		if n, err := g.c.Read(b); string(b[:n]) != "hello" {
			t.Fatalf("read %q, %v", b[:n], err)
		}
		if lot.Take(&g.place) {
			t.Fatal("one that was roused is still parked")
		}
	}
	// What came before counts as well, and so does the end.
	io.WriteString(g.far, "early")
	g.park(t, lot, long)
	g.up(t)
	g.c.Read(b)
	g.park(t, lot, long)
	g.far.Close()
	g.up(t)
	g.asleep(t)
	other.asleep(t)
	if n := lot.Count(); n != 1 {
		t.Errorf("%d are parked, want 1", n)
	}
}

func TestLot_RousesWhenTheTimeIsOver(t *testing.T) {
	lot := newLot(t)
	late, soon, sooner := newGuest(t), newGuest(t), newGuest(t)
	late.park(t, lot, long)
	soon.park(t, lot, 20*time.Millisecond)
	sooner.park(t, lot, 0)
	soon.up(t)
	sooner.up(t)
	late.asleep(t)
	soon.park(t, lot, time.Millisecond)
	soon.up(t)
}

// Whoever takes one out, a byte, a caller or the end of all: its owner is roused once.
func TestLot_RousesOnce(t *testing.T) {
	lot := newLot(t)
	const n = 40
	guests := make([]*guest, n)
	for i := range guests {
		guests[i] = newGuest(t)
	}
	for range 20 {
		var wg sync.WaitGroup
		for _, g := range guests {
			g.park(t, lot, long)
			wg.Go(func() { io.WriteString(g.far, "x") })
			wg.Go(func() { lot.Take(&g.place) })
		}
		wg.Wait()
		for _, g := range guests {
			g.up(t)
			g.c.Read(make([]byte, 1))
			g.asleep(t)
		}
	}
	for i, g := range guests {
		g.park(t, lot, long+time.Duration(n-i)*time.Minute)
	}
	for i := range n / 2 { // the last has the shortest time
		if o := lot.Oldest(); o != guests[n-1-i] {
			t.Fatalf("%d: another goes first", i)
		}
	}
	lot.Close()
	for i, g := range guests {
		if i < n/2 {
			g.up(t)
		}
		g.asleep(t)
	}
	if lot.Park(&guests[0].place, guests[0].c, guests[0], time.Now().Add(long)) {
		t.Error("a closed lot takes one")
	}
}

// A connection that is closed rouses nobody; its place is free once it was taken, also if its number is another's by then.
func TestLot_ForgetsWhatIsClosed(t *testing.T) {
	lot := newLot(t)
	g := newGuest(t)
	g.park(t, lot, long)
	g.c.Close()
	for range 10 {
		other := newGuest(t)
		other.park(t, lot, long)
		io.WriteString(other.far, "x")
		other.up(t)
	}
	g.asleep(t)
	if !lot.Take(&g.place) {
		t.Error("it is not parked any more")
	}
	g.up(t)
	if lot.Park(&g.place, g.c, g, time.Now().Add(long)) {
		t.Error("a closed connection is parked")
	}
	near, far := net.Pipe()
	defer near.Close()
	defer far.Close()
	if lot.Park(new(park.Place), near, g, time.Now().Add(long)) {
		t.Error("a pipe is parked")
	}
}

// A connection over TLS goes on as if nothing had been taken from it, also in the middle of a record.
func TestSlim_TakesNothingThatIsNeeded(t *testing.T) {
	if park.Buffers() != 2 {
		t.Errorf("this version of Go has %d of the 2 buffers: idle connections are larger than they need be", park.Buffers())
	}
	server := httptest.NewUnstartedServer(nil)
	server.StartTLS()
	defer server.Close()
	g := newGuest(t)
	near := tls.Server(g.c, &tls.Config{Certificates: server.TLS.Certificates})
	cut := &cutter{Conn: g.far}
	far := tls.Client(cut, &tls.Config{InsecureSkipVerify: true})
	var wg sync.WaitGroup
	wg.Go(func() { near.Handshake() })
	if err := far.Handshake(); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	b := make([]byte, 64)
	for range 3 {
		park.Slim(near)
		cut.first = 9
		io.WriteString(far, "in two parts")
		near.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if n, err := near.Read(b); err == nil {
			t.Fatalf("half a record reads as %q", b[:n])
		}
		park.Slim(near)
		near.SetReadDeadline(time.Now().Add(time.Minute))
		g.far.Write(cut.rest)
		if n, err := near.Read(b); string(b[:n]) != "in two parts" {
			t.Fatalf("read %q, %v", b[:n], err)
		}
		park.Slim(near)
		wg.Go(func() { io.WriteString(near, "answer") })
		if n, err := far.Read(b); string(b[:n]) != "answer" {
			t.Fatalf("the client read %q, %v", b[:n], err)
		}
		wg.Wait()
	}
}

// cutter keeps what is written behind the first bytes to itself.
type cutter struct {
	net.Conn
	first int
	rest  []byte
}

func (c *cutter) Write(b []byte) (int, error) {
	if c.first == 0 {
		return c.Conn.Write(b)
	}
	n := c.first
	c.first, c.rest = 0, append([]byte(nil), b[n:]...)
	c.Conn.Write(b[:n])
	return len(b), nil
}
