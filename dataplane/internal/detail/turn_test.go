package detail_test

import (
	"bytes"
	"context"
	"io"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"bailiwick/dataplane/internal/detail"
	"bailiwick/shared/durable/durabletest"
)

// holds counts the files in which the payload of a piece lies.
func holds(t *testing.T, m *durabletest.FS, payload []byte) (n int) {
	t.Helper()
	for _, name := range m.Files("/d") {
		f, err := m.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := io.ReadAll(f)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		if bytes.Contains(b, payload) {
			n++
		}
	}
	return n
}

// At low traffic a file is full after days: what is stored elsewhere must not wait for that.
func TestRun_LetsGoOfWhatIsStoredThoughItsFileIsNotFull(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := durabletest.New()
		s := open(t, m, detail.Config{})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		defer func() {
			stop()
			if err := <-done; err != nil {
				t.Error(err)
			}
		}()
		s.Keep(7, 1, 10, rows(1, 10))
		s.Keep(7, 2, 20, rows(11, 20))
		first, _, _ := s.Next(7, 1)
		second, _, _ := s.Next(7, 2)
		if holds(t, m, first.Piece.Payload) != 1 {
			t.Fatal("the piece is not on disk: the test cannot see it go")
		}
		files := len(m.Files("/d"))
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if got := len(m.Files("/d")); got != files {
			t.Errorf("%d files, %d before: nothing was stored meanwhile", got, files)
		}
		if err := s.Mark(7, 1); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		if kept, lost := walk(t, s, 7, 10, 20); kept != 10 || lost != 0 {
			t.Errorf("%d kept and %d lost of what is not stored, want 10 and 0", kept, lost)
		}
		if err := s.Mark(7, 2); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute + time.Second)
		synctest.Wait()
		for i, p := range [][]byte{first.Piece.Payload, second.Piece.Payload} {
			if n := holds(t, m, p); n != 0 {
				t.Errorf("piece %d is stored, and lies in %d files a minute later", i+1, n)
			}
		}
		m.Crash() // what is gone does not come back, and numbers go on
		s = open(t, m, detail.Config{})
		s.Keep(7, 3, 30, rows(21, 30))
		if es := s.Epochs(); len(es) != 1 || es[0] != (detail.Epoch{Epoch: 7, Oldest: 3, Written: 3}) {
			t.Errorf("epochs = %+v, want 7 with number 3 alone", es)
		}
	})
}

func TestRun_TurnsOnceThereIsSpace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := durabletest.New()
		s := open(t, m, detail.Config{})
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan error, 1)
		go func() { done <- s.Run(ctx) }()
		s.Keep(7, 1, 10, rows(1, 10))
		p, _, _ := s.Next(7, 1)
		if err := s.Mark(7, 1); err != nil {
			t.Fatal(err)
		}
		m.Inject(func(op, _ string) error {
			if op == "sync" {
				return unix.ENOSPC
			}
			return nil
		})
		time.Sleep(90 * time.Second)
		synctest.Wait()
		if holds(t, m, p.Piece.Payload) == 0 {
			t.Fatal("the file is gone before another could be begun: its marks are nowhere")
		}
		m.Inject(nil)
		s.Keep(7, 2, 20, rows(11, 20))
		if kept, _ := walk(t, s, 7, 10, 20); kept != 10 {
			t.Errorf("%d rows kept after a turn that failed, want 10", kept)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := s.Mark(7, 2); err != nil {
			t.Fatal(err)
		}
		if n := holds(t, m, p.Piece.Payload); n != 0 {
			t.Errorf("the piece lies in %d files", n)
		}
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
