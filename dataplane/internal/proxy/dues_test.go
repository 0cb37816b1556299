package proxy_test

import (
	"crypto/tls"
	"io"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/status"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// paid are the units in rows so far: all that is left of what passed when the edge is killed now.
func (m *meter) paid() (units int64) {
	for _, r := range m.since(0) {
		units += r.Units
	}
	return units
}

// Whatever has come to either side of a connection that lasts is in a row already, to its last unit, so that killing the edge at
// any moment loses none.
func TestDues_ASocketsUnitsAreInRowsBeforeTheyPass(t *testing.T) {
	w := newLive(t, nil, nil) // two messages a unit
	c := w.open(w.west)
	c.hear()
	for n := int64(1); n < 20; n += 2 { // messages that have passed
		if got, want := w.west.meter.paid(), (n+1)/2; got != want {
			t.Fatalf("%d messages passed, %d units are in rows, want %d", n, got, want)
		}
		if op, _, err := c.ask("more"); op != 1 || err != nil {
			t.Fatal(op, err)
		}
	}
	c.Close()
	w.final()
	if got := w.west.meter.paid(); got != 11 { // 21 messages
		t.Errorf("at its end it was %d units, want 11", got)
	}
}

func TestDues_AConnectionsBytesAreInRowsBeforeTheyPass(t *testing.T) {
	w := newLines(t) // ten bytes a unit
	conn, r, err := w.dial(&tls.Config{Certificates: []tls.Certificate{w.cert}})
	if err != nil {
		t.Fatal(err)
	}
	passed := int64(0)
	for range 10 {
		n, _ := io.WriteString(conn, "hello\n")
		said, err := r.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		passed += int64(n + len(said))
		if got, want := w.west.meter.paid(), (passed+9)/10; got != want {
			t.Fatalf("%d bytes passed, %d units are in rows, want %d", passed, got, want)
		}
	}
}

func TestDues_AStreamsMessagesAreInRowsBeforeTheyPass(t *testing.T) {
	w, l := metered(t, 100, patient)
	_, addr := speaking(t, w, func(a *table.API) {
		a.Routes = []table.Route{{Name: "all", Timeout: time.Minute, Units: &table.Units{PerMessages: 1, Most: 30}}}
	})
	c, ctx := dialGRPC(t, w, addr)
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	const rounds = 10
	for n := range int64(rounds) {
		if err := both.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("hello")}}); err != nil {
			t.Fatal(err)
		}
		if _, err := both.Recv(); err != nil {
			t.Fatal(err)
		}
		if got, want := w.west.meter.paid(), 2*(n+1); got != want {
			t.Fatalf("%d messages passed, %d units are in rows, want %d", want, got, want)
		}
	}
	both.CloseSend()
	if _, err := both.Recv(); err != io.EOF {
		t.Fatal(err)
	}
	if row := w.final(); row.Outcome != usage.OutcomeSuccess {
		t.Errorf("the last row says %v", row.Outcome)
	}
	if got := w.west.meter.paid(); got != 2*rounds {
		t.Errorf("%d units in rows, want %d", got, 2*rounds)
	}
	for _, r := range w.west.meter.since(0) {
		if r.Units > 0 && r.Period == 0 {
			t.Errorf("a row of %d units is of no lease", r.Units)
		}
	}
	l.said(t, 2*rounds, 0)
}

// A call that fails behind its head has what it asked in the row that says so, as one has that fails without a head: a row of
// success beside it would be billed. One that goes on has it in a row within moments, whether anything follows or not.
func TestDues_AFailedCallsUnitsAreInTheRowThatSaysSo(t *testing.T) {
	w := newWorld(t, patient)
	_, addr := speaking(t, w, func(a *table.API) {
		a.Routes = []table.Route{{Name: "all", Timeout: time.Minute, Units: &table.Units{PerMessages: 1, Most: 30}}}
	})
	c, ctx := dialGRPC(t, w, addr)
	for _, text := range []string{"begun and unavailable", "unavailable"} {
		before := w.west.meter.len()
		if _, err := c.UnaryCall(ctx, payload(text)); status.Code(err) != codes.Unavailable {
			t.Fatalf("%s: got %v", text, err)
		}
		rows := w.west.meter.since(before)
		if len(rows) != 1 || rows[0].Outcome != usage.OutcomeUpstreamError || rows[0].Status != 503 || rows[0].Units != 1 || rows[0].Requests != 1 {
			t.Errorf("%s: got rows %+v, want one of an upstream's error with one unit", text, rows)
		}
	}
	before := w.west.meter.paid()
	out, err := c.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("begun")}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := out.Header(); err != nil {
		t.Fatal(err)
	}
	eventually(t, 20*time.Second, "what was asked to be in a row", func() bool { return w.west.meter.paid()-before == 1 })
}

// Nothing passes whose units no row can hold.
func TestDues_AStreamEndsWhenItCannotBeCounted(t *testing.T) {
	w := newWorld(t, func(c *proxy.Config) { patient(c) })
	_, addr := speaking(t, w, func(a *table.API) {
		a.Routes = []table.Route{{Name: "all", Timeout: time.Minute, Units: &table.Units{PerMessages: 1, Most: 30}}}
	})
	c, ctx := dialGRPC(t, w, addr)
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	say := func() error {
		if err := both.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("hello")}}); err != nil {
			return err
		}
		_, err := both.Recv()
		return err
	}
	if err := say(); err != nil {
		t.Fatal(err)
	}
	w.west.meter.mu.Lock()
	w.west.meter.err = io.ErrShortWrite
	w.west.meter.mu.Unlock()
	if err := say(); err == nil {
		t.Error("a message came back that nobody can be charged for")
	}
}
