package ingest_test

import (
	"bufio"
	"context"
	"encoding/binary"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/controlplane/internal/detail"
	"bailiwick/controlplane/internal/ingest"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/proto/gen/bailiwick/usage/v1/usagev1connect"
	"bailiwick/shared/usage"
)

// detailLine is an edge's side of a detail stream.
type detailLine struct {
	send    func(*usagev1.UploadDetailRequest) error
	receive func() (*usagev1.UploadDetailResponse, error)
}

// dialDetail opens a detail stream: over QUIC beside a ledger session that has said its hello.
func dialDetail(t *testing.T, tr transport, w *world, name string) (line, detailLine) {
	t.Helper()
	if tr.name == "quic" {
		l := dialQUIC(t, w, name).(*quicLine)
		l.send(t, hello(1, 1, 0, nil))
		wantMark(t, l, 1, 0)
		st, err := l.conn.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		st.SetReadDeadline(time.Now().Add(10 * time.Second))
		in := bufio.NewReader(st)
		return l, detailLine{func(m *usagev1.UploadDetailRequest) error {
			_, err := st.Write(frame(m))
			return err
		}, func() (*usagev1.UploadDetailResponse, error) {
			n, err := binary.ReadUvarint(in)
			if err != nil {
				return nil, err
			}
			b := make([]byte, n)
			if _, err := io.ReadFull(in, b); err != nil {
				return nil, err
			}
			m := new(usagev1.UploadDetailResponse)
			return m, proto.Unmarshal(b, m)
		}}
	}
	url, client := connectURL(t, w)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	c := usagev1connect.NewIngestServiceClient(client(w.ca.issue(t, name)), url)
	st, err := c.UploadDetail(ctx)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cancel(); st.CloseResponse(); st.CloseRequest() })
	up, err := c.Upload(ctx)
	if err != nil {
		t.Fatal(err)
	}
	l := &connectLine{up, cancel}
	t.Cleanup(l.drop)
	l.send(t, hello(1, 1, 0, nil))
	wantMark(t, l, 1, 0)
	return l, detailLine{st.Send, st.Receive}
}

func detailHello(epoch, oldest uint64) *usagev1.UploadDetailRequest {
	return &usagev1.UploadDetailRequest{Message: &usagev1.UploadDetailRequest_Hello{Hello: &usagev1.DetailHello{Epoch: epoch, Oldest: oldest}}}
}

func detailPiece(edge string, epoch, number uint64, at time.Time, customer string) *usagev1.UploadDetailRequest {
	payload := usage.EncodeDetail([]usage.Row{{EndUnixMS: at.UnixMilli(), Customer: customer, Outcome: usage.OutcomeSuccess, Requests: 1, Units: 1, LatencyUS: 9}})
	hash := usage.HashDetail(edge, epoch, number, number, payload)
	return &usagev1.UploadDetailRequest{Message: &usagev1.UploadDetailRequest_Block{Block: &usagev1.DetailBlock{Epoch: epoch, Number: number, Seq: number, Payload: payload, Hash: hash[:]}}}
}

func (l detailLine) want(t *testing.T, m *usagev1.UploadDetailRequest, want string) {
	t.Helper()
	if m != nil {
		if err := l.send(m); err != nil {
			t.Fatalf("send: %v", err)
		}
	}
	r, err := l.receive()
	if err != nil {
		t.Fatalf("receive: %v, want %s", err, want)
	}
	got := r.GetRefusal().GetReason()
	if r.GetRefusal() == nil {
		got = describe("MARK", r.GetMark().GetEpoch(), r.GetMark().GetStored())
	} else {
		got = describe(got, r.GetRefusal().GetEpoch(), r.GetRefusal().GetExpected())
	}
	if got != want {
		t.Errorf("got %s (%s), want %s", got, r.GetRefusal().GetDetail(), want)
	}
}

func withDetail(t *testing.T, tr transport, d ingest.Detail) *world {
	allow := func(edge, _ string, customers []string) (string, error) {
		if edge == "gone" {
			return ingest.ReasonWithdrawn, nil
		}
		for _, c := range customers {
			if strings.HasPrefix(c, "us-") {
				return ingest.ReasonForeignCustomer, nil
			}
		}
		return "", nil
	}
	extra = func(c *ingest.Config) { c.Detail, c.AllowDetail = d, allow }
	defer func() { extra = func(*ingest.Config) {} }()
	return tr.world(t)
}

func TestServer_DetailIsStoredOnceAndJudged(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			store, err := detail.Open(detail.Config{Dir: t.TempDir(), Erased: func(string) bool { return false }, Now: func() time.Time { return base }})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(context.Background())
			ended := make(chan error, 1)
			go func() { ended <- store.Run(ctx) }()
			t.Cleanup(func() { cancel(); <-ended })
			w := withDetail(t, tr, store)
			_, l := dialDetail(t, tr, w, "edge-1/eu-west")
			l.want(t, detailPiece("edge-1", 7, 1, base, "acme"), "MALFORMED at 7/0") // no hello yet
			l.want(t, detailHello(7, 1), "MARK at 7/0")
			l.want(t, detailPiece("edge-1", 7, 1, base, "acme"), "MARK at 7/1")
			l.want(t, detailPiece("edge-1", 7, 1, base, "acme"), "MARK at 7/1")
			l.want(t, detailPiece("edge-1", 7, 3, base, "acme"), "GAP at 7/2")
			l.want(t, detailPiece("edge-2", 7, 2, base, "acme"), "MALFORMED at 7/0") // another edge's hash
			l.want(t, detailPiece("edge-1", 7, 2, base.Add(2*time.Hour), "acme"), "MALFORMED at 7/0")
			l.want(t, detailPiece("edge-1", 7, 2, base, "us-corp"), "FOREIGN_CUSTOMER at 7/0")
			spoilt := detailPiece("edge-1", 7, 2, base, "acme")
			spoilt.GetBlock().Payload[1] ^= 1
			l.want(t, spoilt, "MALFORMED at 7/0")
			lost := &usagev1.DetailLost{Epoch: 7, From: 2, To: 5, Rows: 4, SinceUnixMs: base.UnixMilli(), UntilUnixMs: base.UnixMilli()}
			l.want(t, &usagev1.UploadDetailRequest{Message: &usagev1.UploadDetailRequest_Lost{Lost: lost}}, "MARK at 7/5")
			l.want(t, detailPiece("edge-1", 7, 6, base, "acme"), "MARK at 7/6")
			l.want(t, detailHello(8, 40), "MARK at 8/0") // what is below 40 rests with another node
			l.want(t, detailPiece("edge-1", 8, 40, base, "acme"), "MARK at 8/40")
			found, err := store.Trace(t.Context(), detail.Query{Customer: "acme", Since: base.Add(-time.Hour), Until: base.Add(time.Hour)}, 10)
			if err != nil || len(found.Rows) != 3 || len(found.Facts.Lost) != 1 || found.Rows[0].Edge != "edge-1" || found.Rows[0].Region != "eu-west" {
				t.Errorf("stored %d rows, %v, %v; want 3 of edge-1 and one loss", len(found.Rows), found.Facts.Lost, err)
			}
			_, gone := dialDetail(t, tr, w, "gone/eu-west")
			_ = gone.send(detailHello(1, 1)) // it may have been refused before it spoke
			gone.want(t, nil, "WITHDRAWN at 0/0")
		})
	}
}

// stuck is a store whose disk does not answer.
type stuck struct{ release chan struct{} }

func (s stuck) Mark(string, uint64) uint64 { return 0 }
func (s stuck) Append(ctx context.Context, _ string, _ uint64, e ...detail.Entry) ([]detail.Answer, error) {
	select {
	case <-s.release:
	case <-ctx.Done():
	}
	return make([]detail.Answer, len(e)), ctx.Err()
}

// The invariant: detail that stands still, and fills whatever it may fill, takes nothing from the ledger.
func TestServer_DetailNeverDelaysTheLedger(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			s := stuck{make(chan struct{})}
			w := withDetail(t, tr, s)
			up, l := dialDetail(t, tr, w, "edge-1/eu-west")
			l.want(t, detailHello(1, 1), "MARK at 1/0")
			var rows []usage.Row
			for i := range usage.MaxDetailRows {
				r := usage.Row{EndUnixMS: base.UnixMilli() + int64(i*7919%1000), Customer: "acme", Outcome: usage.OutcomeSuccess, Requests: 1, BytesOut: int64(i * i * 7919), LatencyUS: int64(i * 31337)}
				binary.BigEndian.PutUint64(r.RequestID[:], uint64(i)*0x9e3779b97f4a7c15)
				binary.BigEndian.PutUint64(r.RequestID[8:], uint64(i)*0xbf58476d1ce4e5b9)
				rows = append(rows, r)
			}
			payload := usage.EncodeDetail(rows)
			sent := make(chan int, 1)
			go func() { // until nothing more goes in
				n := 0
				for number := uint64(1); n < 64<<20; number++ {
					hash := usage.HashDetail("edge-1", 1, number, number, payload)
					if l.send(&usagev1.UploadDetailRequest{Message: &usagev1.UploadDetailRequest_Block{Block: &usagev1.DetailBlock{Epoch: 1, Number: number, Seq: number, Payload: payload, Hash: hash[:]}}}) != nil {
						break
					}
					n += len(payload)
				}
				sent <- n
			}()
			time.Sleep(time.Second)
			select {
			case n := <-sent:
				t.Fatalf("%d bytes of detail went in while the disk does not answer: nothing bounds them", n)
			default:
			}
			c := chain{edge: "edge-1", epoch: 1}
			began := time.Now()
			for n := uint64(1); n <= 20; n++ {
				up.send(t, carry(c.next(payload1(t, n))))
				wantMark(t, up, 1, n)
			}
			if took := time.Since(began); took > 30*time.Second { // without room of their own they wait for ever
				t.Errorf("20 blocks took %v beside detail that stands still", took)
			}
			close(s.release)
			up.drop()
			<-sent
		})
	}
}

// payload1 is a ledger part of some size.
func payload1(t *testing.T, n uint64) []byte {
	t.Helper()
	cells := map[usage.Cell]usage.Sums{}
	for i := range 2000 {
		cells[usage.Cell{Start: usage.CellStart(base.UnixMilli()), Customer: "acme", Subscription: "s", Plan: "gold", PlanRev: uint64(i)*0x9e3779b97f4a7c15 + n, Product: "core", API: "orders",
			Route: "r", Outcome: usage.OutcomeSuccess}] = usage.Sums{Requests: 1, Units: 1}
	}
	return usage.EncodePayload(cells)
}
