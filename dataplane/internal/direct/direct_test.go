package direct_test

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"bailiwick/dataplane/internal/direct"
)

// pair is a connection and its other end.
func pair(t *testing.T) (*direct.Conn, *net.TCPConn) {
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
	near, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { near.Close(); far.Close() })
	return direct.New(near).(*direct.Conn), far.(*net.TCPConn)
}

// A connection is what net's is: bytes, its end, deadlines and closing.
func TestConn_IsAConnection(t *testing.T) {
	c, far := pair(t)
	sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<18) // more than any buffer: writing waits
	var wg sync.WaitGroup
	wg.Go(func() {
		if n, err := c.Write(sent); n != len(sent) || err != nil {
			t.Errorf("wrote %d of %d: %v", n, len(sent), err)
		}
		c.CloseWrite()
	})
	got, err := io.ReadAll(far)
	if wg.Wait(); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes came: %v", len(got), len(sent), err)
	}
	wg.Go(func() { far.Write(sent); far.CloseWrite() })
	if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
		t.Fatalf("%d of %d bytes came back: %v", len(got), len(sent), err)
	}
	wg.Wait()

	c, _ = pair(t)
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("reading past its deadline: %v", err)
	}
	c.SetReadDeadline(time.Time{})
	wg.Go(func() {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("reading what is closed meanwhile: %v", err)
		}
	})
	c.Close()
	wg.Wait()
	if _, err := c.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Fatalf("writing to what is closed: %v", err)
	}
}

func TestConn_AskGetsTheAnswer(t *testing.T) {
	c, far := pair(t)
	b := make([]byte, 64)
	for range 200 { // the far end answers before, while and after there is waiting
		done := make(chan error, 1)
		go func() {
			got := make([]byte, 5)
			_, err := io.ReadFull(far, got)
			far.Write(append(got, '!'))
			done <- err
		}()
		written, n, err := c.Ask([]byte("hello"), b)
		if written != 5 || err != nil || string(b[:n]) != "hello!" {
			t.Fatalf("wrote %d, got %q: %v", written, b[:n], err)
		}
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	// Late ones are waited for, and a deadline loses nothing.
	c.SetReadDeadline(time.Now().Add(time.Millisecond))
	if written, n, err := c.Ask([]byte("slow?"), b); written != 5 || n != 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Fatalf("wrote %d, got %q: %v", written, b[:n], err)
	}
	c.SetReadDeadline(time.Time{})
	far.Write([]byte("yes"))
	if n, err := c.Read(b); err != nil || string(b[:n]) != "yes" {
		t.Fatalf("got %q: %v", b[:n], err)
	}
}

// What nobody has asked for is nobody's answer: nothing is written on such a connection.
func TestConn_AskTouchesNothingStale(t *testing.T) {
	for name, before := range map[string]func(*net.TCPConn){
		"bytes": func(far *net.TCPConn) { far.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")) },
		"end":   func(far *net.TCPConn) { far.CloseWrite() },
		"reset": func(far *net.TCPConn) { far.SetLinger(0); far.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			c, far := pair(t)
			if !c.Quiet() {
				t.Fatal("a fresh connection is not quiet")
			}
			before(far)
			for c.Quiet() { // until it has arrived
				time.Sleep(time.Millisecond)
			}
			written, n, err := c.Ask([]byte("GET / HTTP/1.1\r\n\r\n"), make([]byte, 64))
			if written != 0 || n != 0 || err != direct.ErrStale {
				t.Fatalf("wrote %d, read %d: %v", written, n, err)
			}
			if name == "reset" {
				return
			}
			c.Close()
			if got, _ := io.ReadAll(far); len(got) > 0 {
				t.Fatalf("the far end got %q", got)
			}
		})
	}
}

// An end that takes no more leaves the rest to whoever asks.
func TestConn_AskSaysWhatWasWritten(t *testing.T) {
	c, _ := pair(t)
	c.SetDeadline(time.Now().Add(time.Minute))
	ask := make([]byte, 64<<20)
	written, n, err := c.Ask(ask, make([]byte, 64))
	if err != nil || n != 0 || written == 0 || written >= len(ask) {
		t.Fatalf("wrote %d of %d, read %d: %v", written, len(ask), n, err)
	}
}

func TestConn_AllocatesNothing(t *testing.T) {
	c, far := pair(t)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		b := make([]byte, 64)
		for {
			n, err := far.Read(b)
			if err != nil {
				return
			}
			far.Write(b[:n])
		}
	}()
	ask, b := []byte("ask"), make([]byte, 64)
	if n := testing.AllocsPerRun(200, func() {
		c.Ask(ask, b)
		c.Write(ask)
		c.Read(b)
		c.Quiet()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	c.Close()
	<-stop
}
