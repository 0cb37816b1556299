package http2

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	theirs "golang.org/x/net/http2"
)

// rooms has each stream of a connection served by serve, in virtual time.
func rooms(t *testing.T, serve func(s *Stream), settings ...theirs.Setting) (c *client, conn *Conn, done func()) {
	c, conn, done = pipe(t, nil, settings...)
	conn.serve = serve
	return c, conn, done
}

// Room that a stream was given is its own: no other has it, in the connection's window or in its queue, before it is used or given
// back, and who waits for it then gets it.
func TestStream_RoomIsItsOwn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first, second := make(chan struct{}), make(chan struct{})
		var order []string
		var mu sync.Mutex
		say := func(what string) { mu.Lock(); order = append(order, what); mu.Unlock() }
		c, conn, done := rooms(t, func(s *Stream) {
			if s.id == 1 {
				time.Sleep(time.Second) // nothing is queued any more
				n, err := s.Room(1<<20, time.Time{})
				if err != nil || n != 65535 { // the connection's window
					t.Errorf("the first gets %d, %v", n, err)
				}
				close(first)
				<-second
				s.Waive()
				say("waived")
				<-time.After(time.Second)
				s.Answer(AppendStatus(nil, 200), nil)
				return
			}
			<-first
			if n, err := s.Room(1, time.Time{}); n != 0 || err != nil {
				t.Errorf("the second gets %d, %v of what the first has", n, err)
			}
			close(second)
			n, err := s.Room(10, time.Now().Add(time.Minute))
			say("given")
			if err != nil || n != 10 {
				t.Errorf("the second gets %d, %v when the first has given it back", n, err)
			}
			if err := s.Part(AppendStatus(nil, 200), []byte("0123456789"), nil, true, time.Now().Add(time.Minute)); err != nil {
				t.Error(err)
			}
		}, theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 1 << 20})
		defer done()
		c.open(1, true, usual...)
		c.open(3, true, usual...)
		if got, err := c.answer(3); err != nil || got != "200 0123456789" {
			t.Errorf("got %q %v", got, err)
		}
		if got, err := c.answer(1); err != nil || got != "200" {
			t.Errorf("got %q %v", got, err)
		}
		if strings.Join(order, " ") != "waived given" {
			t.Errorf("got %v", order)
		}
		synctest.Wait()
		conn.mu.Lock()
		defer conn.mu.Unlock()
		if conn.promised != 0 || conn.outWindow != 65535-10 {
			t.Errorf("%d bytes are promised to nobody, and %d of the window are left", conn.promised, conn.outWindow)
		}
	})
}

// Who has room has it whatever others queue meanwhile, and whoever stands in the line before it: sending waits for nothing.
func TestStream_WhoHasRoomDoesNotWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		has := make(chan struct{})
		c, conn, done := rooms(t, func(s *Stream) { // of a client that reads nothing for a while
			if s.id == 3 {
				<-has
				s.Part(AppendStatus(nil, 200), make([]byte, 4*queueMost), nil, true, time.Now().Add(time.Hour))
				return
			}
			if n, err := s.Room(1000, time.Time{}); n != 1000 || err != nil {
				t.Errorf("got %d, %v", n, err)
			}
			close(has)
			began := time.Now().Add(time.Second)
			time.Sleep(time.Second)
			conn := s.c
			conn.mu.Lock()
			if conn.queued() < queueMost || len(conn.line) == 0 {
				t.Errorf("%d bytes are queued, and %d wait in the line", conn.queued(), len(conn.line))
			}
			conn.mu.Unlock()
			if err := s.Part(AppendStatus(nil, 200), make([]byte, 1000), nil, true, began.Add(time.Minute)); err != nil {
				t.Error(err)
			}
			if d := time.Since(began); d != 0 {
				t.Errorf("it waited %v", d)
			}
		}, theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 1 << 20})
		defer done()
		c.WriteWindowUpdate(0, 1<<20)
		c.open(1, true, usual...)
		c.open(3, true, usual...)
		time.Sleep(2 * time.Second)
		if got, err := c.answer(3); err != nil || len(got) != 4+4*queueMost {
			t.Errorf("got %d bytes, %v", len(got), err)
		}
		conn.mu.Lock()
		defer conn.mu.Unlock()
		if conn.promised != 0 {
			t.Errorf("%d bytes are promised", conn.promised)
		}
	})
}

// Waiting for room ends with the time for it, with the stream, and where sending is stopped; a stream that ends gives back what it
// has not used.
func TestStream_RoomEnds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ended := make(chan error, 3)
		c, conn, done := rooms(t, func(s *Stream) {
			switch s.id {
			case 1:
				_, err := s.Room(10, time.Now().Add(time.Minute))
				if !errors.Is(err, os.ErrDeadlineExceeded) {
					t.Errorf("got %v", err)
				}
			case 3:
				_, err := s.Room(10, time.Now().Add(time.Hour))
				ended <- err
			case 5:
				began := time.Now()
				time.AfterFunc(time.Second, s.Stop)
				_, err := s.Room(10, began.Add(time.Hour))
				if d := time.Since(began); d != time.Second {
					t.Errorf("stopped after a second, it waited %v", d)
				}
				ended <- err
			case 7:
				n, err := s.Room(10, time.Now().Add(time.Hour))
				if n != 10 || err != nil {
					t.Errorf("got %d, %v", n, err)
				}
				return // a handler that panics, say
			}
			s.Reset(InternalError)
		}, theirs.Setting{ID: theirs.SettingInitialWindowSize, Val: 0})
		defer done()
		for id := uint32(1); id <= 7; id += 2 {
			c.open(id, true, usual...)
		}
		go c.answer(99)
		synctest.Wait()
		c.WriteWindowUpdate(7, 100)
		c.WriteRSTStream(3, theirs.ErrCodeCancel)
		for range 2 {
			if err := <-ended; err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("got %v", err)
			}
		}
		time.Sleep(2 * time.Minute)
		conn.mu.Lock()
		if conn.promised != 0 || conn.outWindow != 65535 {
			t.Errorf("%d bytes are promised, and %d of the window are left", conn.promised, conn.outWindow)
		}
		conn.mu.Unlock()
		c.conn.Close()
	})
}
