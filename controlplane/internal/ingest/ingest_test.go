package ingest_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/quic-go/quic-go"

	"bailiwick/controlplane/internal/ingest"
	"bailiwick/controlplane/internal/ledger"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

func TestServer_BlocksCountOnceWhateverIsLost(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport, w *world) {
		c := &chain{edge: "e1", epoch: 5}
		var bs []usage.Block
		for range 30 {
			bs = append(bs, c.next(payload("acme", base, 2)))
		}
		l := tr.dial(t, w, "e1/eu-west")
		l.send(t, hello(5, 1, 20, bs[19].Hash[:]))
		wantMark(t, l, 5, 0)
		for _, b := range bs[:20] { // many ahead of their acks
			l.send(t, carry(b))
		}
		if m := wantMark(t, l, 5, 20); !bytes.Equal(m.Head, bs[19].Hash[:]) || m.LedgerIndex == 0 {
			t.Errorf("watermark: got head %x at index %d, want block 20's", m.Head, m.LedgerIndex)
		}
		l.drop() // these acks never reached the edge, as far as it knows

		l = tr.dial(t, w, "e1/eu-west")
		l.send(t, hello(5, 1, 30, bs[29].Hash[:]))
		wantMark(t, l, 5, 20)
		for _, b := range bs { // all again
			l.send(t, carry(b))
		}
		wantMark(t, l, 5, 30)
		l.send(t, hello(6, 1, 0, nil)) // the next epoch in the same session
		wantMark(t, l, 6, 0)
		n := &chain{edge: "e1", epoch: 6}
		l.send(t, carry(n.next(payload("acme", base, 100))))
		wantMark(t, l, 6, 1)
		l.finish()
		if err := wantEnd(t, l); !errors.Is(err, io.EOF) {
			t.Errorf("end of an orderly session: got %v, want EOF", err)
		}
		if got := w.requests(t, "acme"); got != 160 {
			t.Errorf("requests: got %d, want 160", got)
		}
		edges, err := w.ledger.Edges(t.Context())
		if err != nil || len(edges) != 2 || edges[0].Edge != "e1" || edges[0].Region != "eu-west" {
			t.Errorf("edges: got %+v, %v, want e1 of eu-west twice", edges, err)
		}
	})
}

func TestServer_Refusals(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport, w *world) {
		// Each row brings one thing to a session whose ledger holds block 1 of epoch 1.
		for name, c := range map[string]struct {
			bad    func(edge string, c *chain) *usagev1.UploadRequest
			reason string
			epoch  uint64
			seq    uint64
			ends   bool
		}{
			"false hash": {func(_ string, c *chain) *usagev1.UploadRequest {
				b := c.next(payload("acme", base, 1))
				b.Hash[3]++
				return carry(b)
			}, "WRONG_CHAIN", 1, 2, false},
			"wrong prev": {func(e string, c *chain) *usagev1.UploadRequest {
				return carry(usage.NewBlock(e, 1, 2, [32]byte{9}, payload("acme", base, 1)))
			}, "FORK", 1, 2, false},
			"another edge's block": {func(_ string, c *chain) *usagev1.UploadRequest {
				return carry(usage.NewBlock("somebody", 1, 2, c.head, payload("acme", base, 1)))
			}, "WRONG_CHAIN", 1, 2, false},
			"gap": {func(e string, c *chain) *usagev1.UploadRequest {
				return carry(usage.NewBlock(e, 1, 7, c.head, payload("acme", base, 1)))
			}, "GAP", 1, 7, false},
			"fork": {func(e string, c *chain) *usagev1.UploadRequest {
				return carry(usage.NewBlock(e, 1, 1, [32]byte{}, payload("acme", base, 77)))
			}, "FORK", 1, 1, false},
			"foreign customer": {func(_ string, c *chain) *usagev1.UploadRequest { return carry(c.next(payload("us-acme", base, 1))) },
				"FOREIGN_CUSTOMER", 1, 2, false},
			"future": {func(_ string, c *chain) *usagev1.UploadRequest {
				return carry(c.next(payload("acme", base.Add(2*time.Hour), 1)))
			}, "MALFORMED", 1, 2, false},
			"garbage payload": {func(_ string, c *chain) *usagev1.UploadRequest { return carry(c.next([]byte("garbage"))) }, "MALFORMED", 1, 2, false},
			"short hash": {func(_ string, c *chain) *usagev1.UploadRequest {
				m := carry(c.next(payload("acme", base, 1)))
				m.GetBlock().Hash = m.GetBlock().Hash[:31]
				return m
			}, "MALFORMED", 1, 2, false},
			"number zero": {func(e string, c *chain) *usagev1.UploadRequest {
				return carry(usage.NewBlock(e, 1, 0, [32]byte{}, payload("acme", base, 1)))
			}, "MALFORMED", 1, 0, false},
			"block before its hello": {func(e string, c *chain) *usagev1.UploadRequest {
				return carry(usage.NewBlock(e, 9, 1, [32]byte{}, payload("acme", base, 1)))
			}, "MALFORMED", 9, 1, false},
			"payload too large": {func(_ string, c *chain) *usagev1.UploadRequest {
				return carry(c.next(make([]byte, usage.MaxPayload+1)))
			}, "MALFORMED", 1, 2, false},
			"message too large": {func(_ string, c *chain) *usagev1.UploadRequest {
				return carry(c.next(make([]byte, ingest.MaxMessage+1)))
			}, "MALFORMED", 0, 0, true},
			"hello of epoch zero": {func(string, *chain) *usagev1.UploadRequest { return hello(0, 0, 0, nil) }, "MALFORMED", 0, 0, false},
			"sealed in the future": {func(string, *chain) *usagev1.UploadRequest {
				return through(1, 1, base.Add(2*time.Hour).UnixMilli())
			}, "MALFORMED", 1, 1, false},
			"empty message": {func(string, *chain) *usagev1.UploadRequest { return &usagev1.UploadRequest{} }, "MALFORMED", 0, 0, false},
		} {
			t.Run(name, func(t *testing.T) {
				edge := "edge-" + strings.ReplaceAll(name, " ", "-")
				k := &chain{edge: edge, epoch: 1}
				l := tr.dial(t, w, edge+"/eu-west")
				l.send(t, hello(1, 1, 1, nil))
				wantMark(t, l, 1, 0)
				l.send(t, carry(k.next(payload("acme-"+edge, base, 1))))
				wantMark(t, l, 1, 1)
				good := *k
				bad := c.bad(edge, k)
				if c.ends { // the server stops reading in the midst of it
					go func() {
						switch l := l.(type) {
						case *quicLine:
							l.st.Write(frame(bad))
						case *connectLine:
							l.st.Send(bad)
						}
					}()
				} else {
					l.send(t, bad)
				}
				r := wantRefusal(t, l, c.reason, c.epoch, c.seq)
				if c.reason == "GAP" && r.ExpectedSeq != 2 {
					t.Errorf("expected_seq: got %d, want 2", r.ExpectedSeq)
				}
				if c.ends {
					wantEnd(t, l)
					l = tr.dial(t, w, edge+"/eu-west") // and the process lives
					l.send(t, hello(1, 1, 1, nil))
					wantMark(t, l, 1, 1)
				}
				l.send(t, carry(good.next(payload("acme-"+edge, base, 10))))
				if c.reason == "FORK" { // and whoever is the copy, neither may drop what it has
					wantRefusal(t, l, "QUARANTINED", 1, 2)
					return
				}
				wantMark(t, l, 1, 2)
				if got := w.requests(t, "acme-"+edge); got != 11 {
					t.Errorf("requests: got %d, want 11: the refused block changed nothing", got)
				}
			})
		}
	})
}

// Refusals are facts of the ledger: whoever looks at another node, or later, sees them.
func TestServer_RefusalsAreRecorded(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport, w *world) {
		c := &chain{edge: "e1", epoch: 1}
		l := tr.dial(t, w, "e1/eu-west")
		l.send(t, hello(1, 1, 2, nil))
		wantMark(t, l, 1, 0)
		for range 3 {
			l.send(t, carry(usage.NewBlock("e1", 1, 9, [32]byte{}, payload("acme", base, 1))))
			wantRefusal(t, l, "GAP", 1, 9)
		}
		l.send(t, carry(c.next(payload("us-acme", base, 1))))
		wantRefusal(t, l, "FOREIGN_CUSTOMER", 1, 1)
		deadline := time.Now().Add(time.Minute)
		for {
			v, err := w.ledger.View(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			list, err := v.Refusals(t.Context())
			v.Close()
			if err != nil {
				t.Fatal(err)
			}
			got := map[string]int64{}
			for _, r := range list {
				got[r.Edge+" "+r.Reason] = r.Count
				if r.Detail == "" || !r.Last.Equal(base) || strings.Contains(r.Detail, "us-acme") {
					t.Errorf("refusal: got %+v, want a detail that names no customer, and the time", r)
				}
			}
			if got["e1 GAP"] == 3 && got["e1 FOREIGN_CUSTOMER"] == 1 {
				return
			}
			if time.Now().After(deadline) {
				t.Fatalf("refusals: got %v", got)
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
}

func TestServer_HelloFindsForksAndLostBlocks(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport, w *world) {
		c := &chain{edge: "e1", epoch: 1}
		l := tr.dial(t, w, "e1/eu-west")
		l.send(t, hello(1, 1, 2, nil))
		wantMark(t, l, 1, 0)
		l.send(t, carry(c.next(payload("acme", base, 1))))
		l.send(t, carry(c.next(payload("acme", base, 1))))
		wantMark(t, l, 1, 2)
		l.send(t, hello(1, 1, 2, make([]byte, 32)))
		wantMark(t, l, 1, 2)
		wantRefusal(t, l, "FORK", 1, 2)
		l.send(t, hello(1, 1, 2, nil))
		wantMark(t, l, 1, 2)
		wantRefusal(t, l, "QUARANTINED", 1, 2)
		other := &chain{edge: "e2", epoch: 1}
		l2 := tr.dial(t, w, "e2/eu-west")
		l2.send(t, hello(1, 1, 2, nil))
		wantMark(t, l2, 1, 0)
		l2.send(t, carry(other.next(payload("acme", base, 1))))
		l2.send(t, carry(other.next(payload("acme", base, 1))))
		wantMark(t, l2, 1, 2)
		l, c = l2, other
		l.send(t, hello(1, 5, 9, nil))
		wantMark(t, l, 1, 2)
		if r := wantRefusal(t, l, "GAP", 1, 9); r.ExpectedSeq != 3 {
			t.Errorf("expected_seq: got %d, want 3", r.ExpectedSeq)
		}
		if _, err := w.ledger.CloseEpoch(t.Context(), ledger.Closing{Edge: "e2", Epoch: 1}); err != nil {
			t.Fatal(err)
		}
		l.send(t, hello(1, 5, 9, nil))
		wantMark(t, l, 1, 2)
		wantRefusal(t, l, "EPOCH_CLOSED", 1, 9)
		l.send(t, carry(c.next(payload("acme", base, 1))))
		wantRefusal(t, l, "EPOCH_CLOSED", 1, 3)
	})
}

func TestServer_SealedThroughMakesSilenceKnown(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport, w *world) {
		c := &chain{edge: "e1", epoch: 1}
		l := tr.dial(t, w, "e1/eu-west")
		l.send(t, hello(1, 1, 1, nil))
		wantMark(t, l, 1, 0)
		complete := func() time.Time {
			at, err := w.ledger.CompleteThrough(t.Context(), []string{"e1"})
			if err != nil {
				t.Fatal(err)
			}
			return at
		}
		l.send(t, through(1, 1, base.UnixMilli())) // says so before its block arrives
		eventually(t, "the sealed number is committed", func() bool {
			e, err := w.ledger.Edges(t.Context())
			return err == nil && len(e) == 1 && e[0].Sealed == 1
		})
		if at := complete(); !at.IsZero() {
			t.Errorf("complete through before the block: got %v, want not known", at)
		}
		l.send(t, carry(c.next(payload("acme", base, 1))))
		wantMark(t, l, 1, 1)
		eventually(t, "complete through the block", func() bool { return complete().Equal(base) })
		l.send(t, through(1, 1, base.Add(time.Minute).UnixMilli()))
		eventually(t, "complete through silence", func() bool { return complete().Equal(base.Add(time.Minute)) })
	})
}

func TestServer_WithdrawnEdge(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport, w *world) {
		a, b := tr.dial(t, w, "a/eu-west"), tr.dial(t, w, "b/eu-west")
		a.send(t, hello(1, 1, 0, nil))
		b.send(t, hello(1, 1, 0, nil))
		wantMark(t, a, 1, 0)
		wantMark(t, b, 1, 0)
		w.withdraw("a")
		w.server.Recheck()
		start := time.Now()
		wantEnd(t, a)
		if d := time.Since(start); d > time.Second {
			t.Errorf("a withdrawn edge was cut after %v", d)
		}
		c := &chain{edge: "b", epoch: 1}
		b.send(t, carry(c.next(payload("acme", base, 1))))
		wantMark(t, b, 1, 1) // the others go on
		w.withdraw("b")
		b.send(t, carry(c.next(payload("acme", base, 1)))) // before anybody rechecks
		wantRefusal(t, b, "WITHDRAWN", 1, 2)
		wantEnd(t, b)
		again := tr.dial(t, w, "a/eu-west")
		wantFirstWord(t, again)
		wantRefusal(t, again, "WITHDRAWN", 0, 0)
		wantEnd(t, again)
		if got := w.requests(t, "acme"); got != 1 {
			t.Errorf("requests: got %d, want 1", got)
		}
		if n := w.server.Stats().Refused["WITHDRAWN"]; n < 2 {
			t.Errorf("refused: got %d WITHDRAWN, want at least 2", n)
		}
	})
}

func TestServer_NothingIsAckedWithoutTheLedger(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport, w *world) {
		c := &chain{edge: "e1", epoch: 1}
		l := tr.dial(t, w, "e1/eu-west")
		l.send(t, hello(1, 1, 0, nil))
		wantMark(t, l, 1, 0)
		w.replica.setDown(fault.New(fault.Unavailable, "NO_LEADER", "no leader"))
		b := c.next(payload("acme", base, 1))
		l.send(t, carry(b))
		if m, err := l.receive(); err == nil {
			t.Fatalf("without a quorum: got %v, want the session's end", m)
		}
		w.replica.setDown(nil)
		l = tr.dial(t, w, "e1/eu-west")
		l.send(t, hello(1, 1, 1, nil))
		wantMark(t, l, 1, 0)
		l.send(t, carry(b))
		wantMark(t, l, 1, 1)
	})
}

func TestServer_NewerSessionReplacesTheOlder(t *testing.T) {
	w := quicWorld(t)
	old := dialQUIC(t, w, "e1/eu-west")
	old.send(t, hello(1, 1, 0, nil))
	wantMark(t, old, 1, 0)
	young := dialQUIC(t, w, "e1/eu-west")
	young.send(t, hello(1, 1, 0, nil))
	wantMark(t, young, 1, 0)
	wantEnd(t, old)
	gone := old.(*quicLine).conn.Context()
	<-gone.Done()
	if app, ok := errors.AsType[*quic.ApplicationError](context.Cause(gone)); !ok || app.ErrorCode != 4 {
		t.Errorf("the older session's connection: got %v, want code 4", context.Cause(gone))
	}
	young.send(t, carry((&chain{edge: "e1", epoch: 1}).next(payload("acme", base, 1))))
	wantMark(t, young, 1, 1)
	eventually(t, "one session is left", func() bool { return w.server.Stats().Sessions == 1 })
}

func TestServer_QuietSessionIsEnded(t *testing.T) {
	for _, tr := range transports {
		t.Run(tr.name, func(t *testing.T) {
			w := newWorld(t, func(c *ingest.Config) {
				c.Quiet = 100 * time.Millisecond
				if tr.name == "quic" {
					pc, err := net.ListenPacket("udp", "127.0.0.1:0")
					if err != nil {
						t.Fatal(err)
					}
					c.Conn = pc
					return
				}
				c.PeerFromContext = func(context.Context) (string, string, error) { return "e1", "eu-west", nil }
			})
			l := tr.dial(t, w, "e1/eu-west")
			l.send(t, hello(1, 1, 0, nil))
			wantMark(t, l, 1, 0)
			wantEnd(t, l)
			eventually(t, "the session is gone", func() bool { return w.server.Stats().Sessions == 0 })
		})
	}
}

func TestServer_StrangersAreToldWhy(t *testing.T) {
	w := quicWorld(t)
	c, err := openQUIC(t, w, w.ca.issue(t, "stranger/eu-west"), ingest.ALPN)
	if err == nil {
		<-c.Context().Done()
		err = context.Cause(c.Context())
	}
	app, ok := errors.AsType[*quic.ApplicationError](err)
	if !ok || app.ErrorCode != 1 || !strings.Contains(app.ErrorMessage, "NODE_UNKNOWN") {
		t.Errorf("an unknown edge: got %v, want code 1 with NODE_UNKNOWN", err)
	}
	for name, cert := range map[string]tls.Certificate{"no certificate": {}, "another authority's": newAuthority(t).issue(t, "e1/eu-west")} {
		c, err := openQUIC(t, w, cert, ingest.ALPN)
		if err == nil { // TLS 1.3: the client learns of it after its own side is done
			select {
			case <-c.Context().Done():
				err = context.Cause(c.Context())
			case <-time.After(30 * time.Second):
			}
		}
		if tr, ok := errors.AsType[*quic.TransportError](err); !ok || !tr.ErrorCode.IsCryptoError() {
			t.Errorf("%s: got %v, want a TLS alert", name, err)
		}
	}
	if _, err := openQUIC(t, w, w.ca.issue(t, "e1/eu-west"), "h3"); err == nil {
		t.Error("another protocol: got a connection, want none")
	}

	cw := connectWorld(t)
	l := dialConnect(t, cw, "stranger/eu-west")
	wantFirstWord(t, l)
	if err := wantEnd(t, l); connect.CodeOf(err) != connect.CodePermissionDenied || !strings.Contains(err.Error(), "not registered") {
		t.Errorf("an unknown edge over Connect: got %v, want permission denied and why", err)
	}
}

func TestServer_GarbageOnTheStream(t *testing.T) {
	w := quicWorld(t)
	for name, raw := range map[string][]byte{
		"not a message":       append(binary.AppendUvarint(nil, 4), 0xff, 0xff, 0xff, 0xff),
		"a length of 2^63":    binary.AppendUvarint(nil, 1<<63),
		"an endless length":   bytes.Repeat([]byte{0xff}, 11),
		"a length over limit": binary.AppendUvarint(nil, ingest.MaxMessage+1),
		"cut short":           {10, 1, 2},
	} {
		t.Run(name, func(t *testing.T) {
			l := dialQUIC(t, w, "e1/eu-west").(*quicLine)
			if _, err := l.st.Write(raw); err != nil {
				t.Fatal(err)
			}
			if name == "cut short" {
				l.finish()
			}
			wantRefusal(t, l, "MALFORMED", 0, 0)
			wantEnd(t, l)
		})
	}
	l := dialQUIC(t, w, "e1/eu-west")
	l.send(t, hello(1, 1, 0, nil))
	wantMark(t, l, 1, 0)
}

func TestServer_UnsureAboutAnEdgeIsNoRefusal(t *testing.T) {
	onBoth(t, func(t *testing.T, tr transport, w *world) {
		w.mu.Lock()
		w.unsure = errors.New("the registry is not read yet")
		w.mu.Unlock()
		l := tr.dial(t, w, "e1/eu-west")
		wantFirstWord(t, l)
		if m, err := l.receive(); err == nil {
			t.Errorf("got %v, want the session's end without a refusal", m)
		}
	})
}

func TestConfig_Validate(t *testing.T) {
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	ok := ingest.Config{Ledger: fakeLedger{}, Allow: (&world{}).allow, Conn: pc, Peer: peer, TLS: &tls.Config{ClientAuth: tls.RequireAndVerifyClientCert}}
	for name, change := range map[string]func(*ingest.Config){
		"no ledger": func(c *ingest.Config) { c.Ledger = nil }, "no allow": func(c *ingest.Config) { c.Allow = nil },
		"no tls": func(c *ingest.Config) { c.TLS = nil }, "no peer": func(c *ingest.Config) { c.Peer = nil },
		"anybody": func(c *ingest.Config) { c.TLS = &tls.Config{} }, "no door": func(c *ingest.Config) { c.Conn = nil },
	} {
		c := ok
		change(&c)
		if _, err := ingest.New(c); err == nil {
			t.Errorf("%s: got nil, want an error", name)
		}
	}
	if _, err := ingest.New(ok); err != nil {
		t.Errorf("valid: got %v, want nil", err)
	}
}
