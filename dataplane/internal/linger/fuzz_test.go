package linger_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"testing"
	"time"

	"bailiwick/dataplane/internal/linger"
	"bailiwick/dataplane/internal/quota"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/usage"
)

// said is a connection on which all has been said.
type said struct{ io.Reader }

func (said) Write(b []byte) (int, error)      { return len(b), nil }
func (said) Close() error                     { return nil }
func (said) LocalAddr() net.Addr              { return nil }
func (said) RemoteAddr() net.Addr             { return nil }
func (said) SetDeadline(time.Time) error      { return nil }
func (said) SetReadDeadline(time.Time) error  { return nil }
func (said) SetWriteDeadline(time.Time) error { return nil }

func frame(kind byte, payload any) []byte {
	b, ok := payload.([]byte)
	if !ok {
		b, _ = json.Marshal(payload)
	}
	return append(append(binary.BigEndian.AppendUint32(nil, uint32(len(b))), kind), b...)
}

// Whatever the older process says, of another version perhaps: what is kept is a row as it was said, and the end takes back what it held.
func FuzzKeeper(f *testing.F) {
	r := row(1)
	f.Add(frame(1, map[string]any{"n": 1, "row": r}))
	f.Add(append(frame(2, &quota.Request{Sequence: 1, Asks: []quota.Ask{{ID: quota.ID{Customer: "acme", Subscription: "main"}, Plan: "p", Want: 1}}}), frame(3, map[string]any{"connections": -1, "before": 1 << 40})...))
	f.Add(append(heedOf(1, 2, 3, place(5, 7)), heedOf(2, 0, 0, place(6, 8))...))
	f.Add(frame(10, map[string]any{"n": 3, "out": -1, "in": 1 << 40, "cuts": make([]string, 65), "refused": []linger.Refusal{{Rule: "relay-cut", From: "a", To: "b", Sample: "s", Count: -1}}}))
	f.Add(frame(99, []byte("what is that")))
	f.Add([]byte{255, 255, 255, 255, 1})
	f.Fuzz(func(t *testing.T, b []byte) {
		s := sublet(t, quota.Ask{ID: quota.ID{Customer: "acme", Subscription: "main"}, Plan: "p", Period: 1000, Ceiling: 15, Spent: 5})
		kept := int64(0)
		k := linger.NewKeeper(linger.KeeperConfig{Conn: said{bytes.NewReader(b)}, Append: func(r *usage.Row) error {
			if err := r.Check(); err != nil {
				return err
			}
			kept++
			return nil
		}, Sublet: s, Fresh: func() time.Time { return time.Time{} }, Logger: quiet, Since: place(5, 7), Lend: func(time.Time) (grant.Lent, bool) { return oneTo("central"), true }, Heard: func(h linger.Heed) {
			if h.Out < 0 || h.In < 0 || len(h.Cuts) > 64 || len(h.Refused) > 64 {
				t.Errorf("it hands on %d and %d relays, %d cuts, %d refusals", h.Out, h.In, len(h.Cuts), len(h.Refused))
			}
		}})
		k.Run()
		k.Tighten(place(9, 9)) // waits for nobody who is gone
		if k.Rows() != kept || s.Held() != 0 || k.Before() < 1 || k.Before() > 1+linger.MostBefore || k.Connections() != 0 {
			t.Errorf("%d rows of %d, %d units, %d processes, %d connections", k.Rows(), kept, s.Held(), k.Before(), k.Connections())
		}
	})
}

// Whatever the newer process says: the Link ends, and says why.
func FuzzLink(f *testing.F) {
	f.Add(append(frame(4, map[string]any{"n": 1}), frame(6, []byte("\x0a\x01x"))...))
	f.Add(append(frame(5, []byte("{}")), frame(7, []byte("12345678"))...))
	f.Add(append(frame(8, map[string]any{"within": -5}), frame(9, []byte("a frame"))...))
	f.Add(append(frame(11, map[string]any{"n": 1, "lent": oneTo("central")}), frame(11, map[string]any{"n": 1 << 40})...))
	f.Add(frame(11, []byte(`{"n":1,"lent":{"take_age":-1,"take_lasts":1}}`)))
	f.Add(frame(7, []byte("1")))
	f.Fuzz(func(t *testing.T, b []byte) {
		began := time.Now()
		l := linger.NewLink(linger.LinkConfig{Conn: said{bytes.NewReader(b)}, Table: func(*syncv1.Signed) error { return nil }, Fresh: func(at time.Time) {
			if at.IsZero() {
				t.Error("what is not known is told")
			}
		}, Left: func() (int64, int) { return 0, 0 }, Packet: func([]byte) error { return nil }, Heed: func() linger.Heed { return linger.Heed{Out: 1} }, At: func() grant.At { return place(5, 7) }, Lent: func(_ grant.Lent, asked time.Time) {
			if asked.Before(began) || asked.After(time.Now()) {
				t.Errorf("what is lent counts from %v", asked)
			}
		}})
		if err := l.Run(); !errors.Is(err, linger.ErrLost) {
			t.Errorf("it ends with %v", err)
		}
		select {
		case within := <-l.Ending():
			if within < 0 {
				t.Errorf("it is to end within %s", within)
			}
		default:
		}
		r := row(1)
		if err := l.Append(&r); !errors.Is(err, linger.ErrLost) {
			t.Errorf("then a row is kept: %v", err)
		}
	})
}
