package syncserver_test

import (
	"fmt"
	"strings"
	"testing"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// An edge's answer reaches who asked, piece by piece and whole; nobody else's does, and an answer without an end is none.
func TestRows(t *testing.T) {
	w := newWorld(t, nil)
	e := w.edge("w1")
	e.asked = make(chan *syncv1.RowsWanted, 1)
	e.connect()
	eventually(t, "the snapshot", e.at)
	if got := w.server.Connected("eu-west"); len(got) != 1 || got[0] != "w1" {
		t.Fatalf("connected: %v", got)
	}
	tell := func(peer, id string, messages ...*syncv1.TellRowsRequest) error {
		out, err := w.client(peer).TellRows(t.Context())
		if err != nil {
			return err
		}
		for _, m := range messages {
			m.Id = id
			if err := out.Send(m); err != nil {
				break
			}
		}
		_, err = out.CloseAndReceive()
		return err
	}
	row := func(n int) *syncv1.TellRowsRequest {
		return &syncv1.TellRowsRequest{Entry: &syncv1.RelayMinute{Seq: uint64(n)}, Rows: [][]byte{[]byte(fmt.Sprint(n))}}
	}
	for _, c := range []struct {
		name string
		peer string
		send []*syncv1.TellRowsRequest
		rows int
		want string // of the error
	}{
		{"whole", e.peer, []*syncv1.TellRowsRequest{row(1), row(2), {Done: true}}, 2, ""},
		{"failed", e.peer, []*syncv1.TellRowsRequest{row(1), {Failed: "the disk is gone"}}, 1, "the disk is gone"},
	} {
		t.Run(c.name, func(t *testing.T) {
			rows, done := 0, make(chan error, 1)
			go func() {
				done <- w.server.Rows(t.Context(), "w1", 60, 120, func(m *syncv1.TellRowsRequest) error { rows += len(m.GetRows()); return nil })
			}()
			q := <-e.asked
			if q.GetFrom() != 60 || q.GetTo() != 120 {
				t.Errorf("asked for %v", q)
			}
			for _, other := range []struct{ peer, id string }{{"emea/eu-central/edge/c1", q.GetId()}, {e.peer, "another"}} {
				if err := tell(other.peer, other.id, row(9), &syncv1.TellRowsRequest{Done: true}); err == nil || !strings.Contains(err.Error(), "was not asked this") {
					t.Errorf("%s answers question %s: %v", other.peer, other.id, err)
				}
			}
			if err := tell(c.peer, q.GetId(), c.send...); err != nil {
				t.Errorf("the answer: %v", err)
			}
			err := <-done
			if rows != c.rows || (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("%d rows and %v, want %d and %q", rows, err, c.rows, c.want)
			}
		})
	}
	e.disconnect()
	eventually(t, "the edge is gone", func() bool { return len(w.server.Connected("eu-west")) == 0 })
	if err := w.server.Rows(t.Context(), "w1", 0, 1, nil); err == nil || !strings.Contains(err.Error(), "is not connected") {
		t.Errorf("of an edge that is away: %v", err)
	}
}
