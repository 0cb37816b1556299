package handover_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/handover"
)

const patience = time.Minute

// offer runs an Offer until it ends, whose word comes on the channel.
func offer(t *testing.T, ctx context.Context, dir string, s *handover.Sockets) (*handover.Offer, <-chan error) {
	t.Helper()
	o := handover.NewOffer(dir, "a program", s)
	ended := make(chan error, 1)
	go func() { ended <- o.Run(ctx) }()
	for {
		if listens(filepath.Join(dir, "successor")) {
			return o, ended
		}
		select {
		case err := <-ended:
			t.Fatalf("the offer ends: %v", err)
		case <-time.After(time.Millisecond):
		}
	}
}

// listens says whether somebody takes connections at a path: it has a name a moment before. Who asks so goes away again, which
// an offer has to bear.
func listens(path string) bool {
	d, err := os.Open(filepath.Dir(path)) // whose path may be longer than a socket's
	if err != nil {
		return false
	}
	defer d.Close()
	c, err := net.Dial("unix", fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), filepath.Base(path)))
	if err != nil {
		return false
	}
	c.Close()
	return true
}

func ask(t *testing.T, dir string, s *handover.Sockets) *handover.Predecessor {
	t.Helper()
	p, err := handover.Ask(t.Context(), dir, s)
	if err != nil || p == nil {
		t.Fatalf("ask: %v, %v; want a predecessor", p, err)
	}
	return p
}

// succeed takes a place in which nothing goes on.
func succeed(ctx context.Context, p *handover.Predecessor, patience time.Duration) error {
	goesOn, err := p.Succeed(ctx, patience)
	if goesOn != nil {
		goesOn.Close()
		return errors.New("something goes on")
	}
	return err
}

// A client that connects while nobody accepts is served by the successor: the socket never shuts.
func TestSockets_AClientBetweenTwoProcessesIsServed(t *testing.T) {
	for name, dir := range map[string]string{"a short path": t.TempDir(), "a path longer than a socket's may be": filepath.Join(t.TempDir(), strings.Repeat("long/", 30))} {
		t.Run(name, func(t *testing.T) {
			if err := os.MkdirAll(dir, 0o700); err != nil {
				t.Fatal(err)
			}
			var first, second handover.Sockets
			l, err := first.Listen("https", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			u, err := first.ListenPacket("h3", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			o, ended := offer(t, t.Context(), dir, &first)
			before := ask(t, dir, &second)
			over := make(chan error, 1)
			go func() { over <- succeed(t.Context(), before, patience) }()
			if err := <-ended; !errors.Is(err, handover.ErrTaken) {
				t.Fatalf("the offer ends with %v, want ErrTaken", err)
			}
			l.Close()
			u.Close()
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				t.Fatalf("between the two: %v", err)
			}
			defer c.Close()
			q, err := net.Dial("udp", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer q.Close()
			q.Write([]byte("q"))
			select {
			case err := <-over:
				t.Fatalf("the successor goes on (%v) before the process said that it is over", err)
			default:
			}
			if err := o.Over(); err != nil {
				t.Fatal(err)
			}
			if err := <-over; err != nil {
				t.Fatal(err)
			}
			l2, err := second.Listen("https", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer l2.Close()
			s, err := l2.Accept()
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(s, "served")
			s.Close()
			if got, err := io.ReadAll(c); string(got) != "served" {
				t.Errorf("the client reads %q (%v)", got, err)
			}
			u2, err := second.ListenPacket("h3", l.Addr().String())
			if err != nil {
				t.Fatal(err)
			}
			defer u2.Close()
			u2.SetReadDeadline(time.Now().Add(patience))
			if n, _, err := u2.ReadFrom(make([]byte, 8)); n != 1 {
				t.Errorf("the packet that came between the two: %d bytes, %v", n, err)
			}
			if _, err := os.Stat(filepath.Join(dir, "successor")); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the socket of the process that ended is still there: %v", err)
			}
		})
	}
}

func TestAsk_NobodyIsThere(t *testing.T) {
	dir := t.TempDir()
	if p, err := handover.Ask(t.Context(), dir, &handover.Sockets{}); p != nil || err != nil {
		t.Errorf("in an empty directory: %v, %v", p, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "successor"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close() // as a kill leaves it
	if p, err := handover.Ask(t.Context(), dir, &handover.Sockets{}); p != nil || err != nil {
		t.Errorf("beside the socket of a process that was killed: %v, %v", p, err)
	}
	offer(t, t.Context(), dir, &handover.Sockets{}) // which is no hindrance
}

// A successor that crashes before it is ready changes nothing, and one that is ready and hears nothing more goes on.
func TestOffer_CrashesOfEither(t *testing.T) {
	dir := t.TempDir()
	var first handover.Sockets
	ctx, kill := context.WithCancel(t.Context())
	defer kill()
	_, ended := offer(t, ctx, dir, &first)
	for range 3 {
		c, err := net.Dial("unix", filepath.Join(dir, "successor"))
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(c, "gone")
		c.Close()
	}
	o2 := ask(t, dir, &handover.Sockets{})
	over := make(chan error, 1)
	go func() { over <- succeed(t.Context(), o2, patience) }()
	if err := <-ended; !errors.Is(err, handover.ErrTaken) {
		t.Fatalf("the offer ends with %v, want ErrTaken: three that left were no successors", err)
	}
}

func TestPredecessor_ThatIsKilledIsGone(t *testing.T) {
	dir := t.TempDir()
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "successor"), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		io.WriteString(c, `{"version":1,"program":"x","sockets":[]}`+"\n")
		io.ReadFull(c, make([]byte, 3))
		c.Close() // killed while it ends
	}()
	if err := succeed(t.Context(), ask(t, dir, &handover.Sockets{}), patience); err != nil {
		t.Errorf("take the place of a process that was killed: %v", err)
	}
}

// A process that does not end is not believed to have.
func TestPredecessor_ThatHangsKeepsItsPlace(t *testing.T) {
	dir := t.TempDir()
	_, ended := offer(t, t.Context(), dir, &handover.Sockets{})
	err := succeed(t.Context(), ask(t, dir, &handover.Sockets{}), 20*time.Millisecond)
	if err == nil {
		t.Error("a process that has not said that it is over has lost its place")
	}
	<-ended
}

func TestSockets_OnlyTheAddressThatIsAskedFor(t *testing.T) {
	var first handover.Sockets
	l, err := first.Listen("https", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	file := func() *os.File {
		f, err := l.(*net.TCPListener).File()
		if err != nil {
			t.Fatal(err)
		}
		return f
	}
	for _, c := range []struct {
		address string
		same    bool
	}{{l.Addr().String(), true}, {"127.0.0.1:0", true}, {"127.0.0.2:0", false}, {":0", false}} {
		s := handover.NewSockets([]string{"https"}, []*os.File{file()})
		got, err := s.Listen("https", c.address)
		if err != nil {
			t.Fatal(err)
		}
		if same := got.Addr().String() == l.Addr().String(); same != c.same {
			t.Errorf("asked for %s, the socket of %s is used: %v, want %v", c.address, l.Addr(), same, c.same)
		}
		got.Close()
	}
	// What nobody asks for is shut: clients would wait there for ever.
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f, _ := other.(*net.TCPListener).File()
	other.Close()
	s := handover.NewSockets([]string{"http"}, []*os.File{f})
	s.Forget()
	if c, err := net.Dial("tcp", other.Addr().String()); err == nil {
		c.Close()
		t.Error("a socket that was inherited and is not used takes connections")
	}
}

func TestFreed_WaitsForLocks(t *testing.T) {
	path := filepath.Join(t.TempDir(), "lock")
	if err := handover.Freed(t.Context(), 0, path); err != nil {
		t.Errorf("a lock that is not there: %v", err)
	}
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	if err := handover.Freed(t.Context(), 10*time.Millisecond, path); err == nil {
		t.Error("a lock that is held is free")
	}
	done := make(chan error, 1)
	go func() { done <- handover.Freed(t.Context(), patience, path) }()
	f.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A process that has no descriptor left for who wants to take its place serves on, and is asked again.
func TestOffer_OutlivesAShortageOfDescriptors(t *testing.T) {
	dir := t.TempDir()
	_, ended := offer(t, t.Context(), dir, &handover.Sockets{})
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	var was unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &was); err != nil {
		t.Fatal(err)
	}
	none := was
	none.Cur = 3 // those that are open stay open
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &none); err != nil {
		t.Fatal(err)
	}
	err = unix.Connect(fd, &unix.SockaddrUnix{Name: filepath.Join(dir, "successor")})
	time.Sleep(50 * time.Millisecond) // it tries to accept; if it comes later there is nothing to see
	if again := unix.Setrlimit(unix.RLIMIT_NOFILE, &was); again != nil || err != nil {
		t.Fatal(again, err)
	}
	unix.Close(fd)
	select {
	case err := <-ended:
		t.Fatalf("the offer ends: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	ask(t, dir, &handover.Sockets{})
}

// Where requests go on the predecessor says what they hold, and the connection stays, with all that follows on it at once. A process of
// a program that knows nothing of it is asked to end all, as ever.
func TestPredecessor_WhatGoesOnIsSaid(t *testing.T) {
	dir := t.TempDir()
	var first handover.Sockets
	o, ended := offer(t, t.Context(), dir, &first)
	before := ask(t, dir, &handover.Sockets{})
	type result struct {
		goesOn *handover.Lingering
		err    error
	}
	over := make(chan result, 1)
	go func() {
		goesOn, err := before.Succeed(t.Context(), patience)
		over <- result{goesOn, err}
	}()
	if err := <-ended; !errors.Is(err, handover.ErrTaken) || !o.Lets() || !o.LetsRelays() {
		t.Fatalf("the offer ends with %v, and lets requests go on: %v, and relays: %v", err, o.Lets(), o.LetsRelays())
	}
	said := strings.Repeat("what it holds\n", 10_000)
	c, err := o.Still([]byte(said))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("and more")); err != nil {
		t.Fatal(err)
	}
	r := <-over
	if r.err != nil || r.goesOn == nil || string(r.goesOn.Said) != said {
		t.Fatalf("it was told %v, %v", r.goesOn, r.err)
	}
	defer r.goesOn.Close()
	more := make([]byte, 8)
	if _, err := io.ReadFull(r.goesOn, more); err != nil || string(more) != "and more" {
		t.Errorf("then comes %q, %v", more, err)
	}
	if _, err := r.goesOn.Write([]byte("yes")); err != nil {
		t.Fatal(err)
	}
	if n, err := c.Read(more); err != nil || string(more[:n]) != "yes" {
		t.Errorf("and back %q, %v", more[:n], err)
	}
}

// A process of an older program is told no word that it does not know.
func TestPredecessor_HearsAWordThatItKnows(t *testing.T) {
	for _, c := range []struct{ name, hello, word string }{
		{"of an older program ends all", `{"version":1,"program":"an older one","sockets":[]}`, "go\n"},
		{"that lingers, but for relays", `{"version":1,"program":"an older one","sockets":[],"lingers":true}`, "go linger\n"},
		{"that lingers, with relays", `{"version":1,"program":"p","sockets":[],"lingers":true,"relays":true}`, "go linger relays\n"},
		{"that cannot be", `{"version":1,"program":"p","sockets":[],"relays":true}`, "go\n"},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "successor"), Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			word := make(chan string, 1)
			go func() {
				conn, err := l.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				fmt.Fprintln(conn, c.hello)
				b := make([]byte, 64)
				n, _ := conn.Read(b)
				word <- string(b[:n])
				fmt.Fprint(conn, "over\n")
			}()
			if err := succeed(t.Context(), ask(t, dir, &handover.Sockets{}), patience); err != nil {
				t.Fatal(err)
			}
			if got := <-word; got != c.word {
				t.Errorf("it was told %q, want the word it knows, %q", got, c.word)
			}
		})
	}
}

// A successor says by its word what it does for what goes on; an older one knows nothing of relays, or of any of it. Any other word takes
// no place.
func TestOffer_GoesByTheSuccessorsWord(t *testing.T) {
	for _, c := range []struct {
		word         string
		takes        bool
		lets, relays bool
	}{
		{"go linger relays\n", true, true, true},
		{"go linger\n", true, true, false},
		{"go\n", true, false, false},
		{"go linger relays and more\n", false, false, false},
		{"go relays\n", false, false, false},
		{"go linger relays", false, false, false}, // broken off
		{"\n", false, false, false},
	} {
		t.Run(strings.TrimSpace(c.word), func(t *testing.T) {
			dir := t.TempDir()
			ctx, stop := context.WithTimeout(t.Context(), 10*time.Second) // if it waits for another word
			defer stop()
			o, ended := offer(t, ctx, dir, &handover.Sockets{})
			conn, err := net.Dial("unix", filepath.Join(dir, "successor"))
			if err != nil {
				t.Fatal(err)
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(10 * time.Second))
			if _, err := bufio.NewReader(conn).ReadString('\n'); err != nil {
				t.Fatal(err)
			}
			if _, err := io.WriteString(conn, c.word); err != nil {
				t.Fatal(err)
			}
			conn.(*net.UnixConn).CloseWrite()
			if !c.takes {
				io.Copy(io.Discard, conn) // until it has given it up
				stop()
			}
			if err := <-ended; errors.Is(err, handover.ErrTaken) != c.takes || o.Lets() != c.lets || o.LetsRelays() != c.relays {
				t.Errorf("the offer ends with %v; requests go on: %v, relays: %v; want %v, %v", err, o.Lets(), o.LetsRelays(), c.lets, c.relays)
			}
		})
	}
}

// A predecessor that dies while it says what goes on, or says more than there may be, is gone: nothing of it goes on.
func TestPredecessor_ThatDiesWhileItSpeaksIsGone(t *testing.T) {
	for name, says := range map[string]string{"in the middle": "over but 100\nsome", "too much": "over but 999999999999\n", "no number": "over but x\n"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Join(dir, "successor"), Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			defer l.Close()
			go func() {
				c, err := l.Accept()
				if err != nil {
					return
				}
				defer c.Close()
				fmt.Fprintf(c, `{"version":1,"program":"p","sockets":[],"lingers":true}`+"\n")
				c.Read(make([]byte, 64))
				fmt.Fprint(c, says)
			}()
			if err := succeed(t.Context(), ask(t, dir, &handover.Sockets{}), patience); err != nil {
				t.Error(err)
			}
		})
	}
}
