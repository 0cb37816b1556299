package subscribe_test

import (
	"crypto/ed25519"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/subscribe"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

func keyOf(id string) table.ObjectKey { return table.ObjectKey{Kind: table.KindKey, ID: id} }

func TestRun_SnapshotDeltaRestart(t *testing.T) {
	src, n, fs := newSource(t), newNode(t), memory(t)
	e := run(t, src, n, fs, nil)
	s := n.next()
	if h := s.recv().GetHello(); h == nil || h.Zone != nil || h.Protocol != 1 || h.Version != "1.0" {
		t.Fatalf("got %v, want a hello that holds nothing", h)
	}
	select {
	case <-e.client.Ready():
		t.Fatal("ready without a table")
	default:
	}
	s.send(src.parts(3)...)
	s.ack(src)
	<-e.client.Ready()
	s.send(src.delta([]table.Object{src.key("k2", "gold")}, keyOf("k1")))
	s.ack(src)
	if tab := e.holder.Load(); tab.Key("k2") == nil || tab.Key("k1") != nil || tab.API("orders.test") == nil {
		t.Error("the table in force is not what was sent")
	}
	s.put(src.beat())
	s.end()
	s = n.next() // reconnects by itself
	if h := s.recv().GetHello(); !proto.Equal(h.Zone, pos(src.zon)) || !proto.Equal(h.Catalog, pos(src.cat)) {
		t.Fatalf("second stream: got %v, want the positions held", h)
	}
	e.stop()
	fs.Crash()

	f := run(t, src, nil, fs, nil)
	<-f.client.Ready()
	if tab := f.holder.Load(); !at(tab, src) || tab.Key("k2") == nil {
		t.Errorf("after a crash: got %s, want %s", tab.Zone(), src.zon)
	}
	if f.client.Fresh().IsZero() || time.Since(f.client.Fresh()) > time.Minute {
		t.Errorf("fresh: got %v, want about now", f.client.Fresh())
	}
}

// Every refusal leaves the table as it was.
// A node of the release before signs payloads whole, and names the edge in them; what it sent rests on the disk beside what
// others send.
func TestRun_TakesWhatAProgramFromBeforeSigns(t *testing.T) {
	src, n, fs := newSource(t), newNode(t), memory(t)
	e := run(t, src, n, fs, nil)
	s := n.next()
	if m := s.recv(); !m.GetHello().GetHashed() {
		t.Errorf("got %v, want a Hello that asks for signatures of hashes", m)
	}
	for i := range 6 {
		src.whole = i%2 == 0
		m := src.delta([]table.Object{src.key(fmt.Sprint("n", i), "gold")})
		if i == 0 {
			m = src.snapshot()
		}
		s.send(m)
		s.ack(src)
	}
	e.stop()
	if tab := loaded(t, src, fs); tab.Zone() != src.zon || tab.Key("n5") == nil {
		t.Errorf("on disk: got %s, want %s", tab.Zone(), src.zon)
	}
}

func TestRun_Refuses(t *testing.T) {
	for _, c := range []struct {
		name     string
		bad      func(src *source) *syncv1.Signed
		reason   string
		snapshot bool // asks for one and keeps the stream; otherwise, if leaves is set, it goes elsewhere
		leaves   bool
	}{
		{"signature", func(src *source) *syncv1.Signed {
			m := src.delta(nil)
			m.Signature[3] ^= 1
			return m
		}, subscribe.ReasonSignature, false, true},
		{"payload", func(src *source) *syncv1.Signed {
			m := src.delta([]table.Object{src.key("k9", "gold")})
			m.Payload[len(m.Payload)-1] ^= 1
			return m
		}, subscribe.ReasonSignature, false, true},
		{"another zone's signer", func(src *source) *syncv1.Signed {
			_, src.priv, _ = ed25519.GenerateKey(nil)
			return src.delta(nil)
		}, subscribe.ReasonSignature, false, true},
		{"a neighbour's message", func(src *source) *syncv1.Signed { src.edge = "w2"; return src.snapshot() }, subscribe.ReasonSignature, false, true},
		{"a neighbour's message of a program from before", func(src *source) *syncv1.Signed { src.edge, src.whole = "w2", true; return src.snapshot() }, subscribe.ReasonSignature, false, true},
		{"one signed for this edge that names another", func(src *source) *syncv1.Signed {
			u := new(syncv1.TableUpdate)
			proto.Unmarshal(src.delta(nil).Payload, u)
			u.Edge = "w2"
			payload, _ := proto.Marshal(u)
			return &syncv1.Signed{Payload: payload, Signature: ed25519.Sign(src.priv, table.SignedBytes("w1", sha256.Sum256(payload))), Hashed: true}
		}, subscribe.ReasonWrongEdge, false, true},
		{"a signature of a hash for one of the whole", func(src *source) *syncv1.Signed { m := src.delta(nil); m.Hashed = false; return m }, subscribe.ReasonSignature, false, true},
		{"another region", func(src *source) *syncv1.Signed { src.region = "eu-central"; return src.snapshot() }, subscribe.ReasonWrongEdge, false, true},
		{"older snapshot", func(src *source) *syncv1.Signed { src.zon.Index -= 2; return src.snapshot() }, subscribe.ReasonStale, false, true},
		{"older catalog", func(src *source) *syncv1.Signed { src.cat.Index--; return src.snapshot() }, subscribe.ReasonStale, false, true},
		{"older epoch", func(src *source) *syncv1.Signed { src.zon.Epoch--; src.zon.Index += 99; return src.snapshot() }, subscribe.ReasonStale, false, true},
		{"a gap", func(src *source) *syncv1.Signed { src.delta(nil); return src.delta(nil) }, subscribe.ReasonPosition, true, false},
		{"a lost object", func(src *source) *syncv1.Signed {
			src.zon.Sum[7] ^= 1
			m := src.delta(nil)
			u := new(syncv1.TableUpdate)
			proto.Unmarshal(m.Payload, u)
			u.ZoneFrom.Sum[7] ^= 1
			return src.sign(u)
		}, policy.ReasonSumMismatch, true, false},
		{"too many malformed objects", func(src *source) *syncv1.Signed {
			var bad []table.Object
			for i := range policy.MaxQuarantined + 1 {
				bad = append(bad, table.Object{Kind: table.KindPlan, ID: fmt.Sprint("p", i), Data: []byte("{")})
			}
			return src.delta(bad)
		}, policy.ReasonQuarantineFull, false, false},
		{"a blank snapshot", func(src *source) *syncv1.Signed {
			src.cat.Index++
			u := &syncv1.TableUpdate{Snapshot: true, CatalogTo: pos(src.cat), ZoneTo: pos(src.zon)}
			u.CatalogTo.Sum, u.ZoneTo.Sum = make([]byte, 32), make([]byte, 32)
			return src.sign(u)
		}, "SETTINGS_MISSING", false, false},
		{"no positions", func(src *source) *syncv1.Signed { return src.sign(&syncv1.TableUpdate{Snapshot: true}) }, subscribe.ReasonMalformed, false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			src, n, fs := newSource(t), newNode(t), memory(t)
			e := run(t, src, n, fs, nil)
			s := n.next()
			s.recv()
			s.send(src.snapshot())
			s.ack(src)
			held := e.holder.Load()
			good := *src
			s.send(c.bad(src))
			s.nack(c.reason, c.snapshot)
			if e.holder.Load() != held {
				t.Error("the table in force changed")
			}
			if c.leaves {
				if m := s.recv(); m != nil {
					t.Errorf("got %v, want the end of the stream", m)
				}
			}
			e.stop()
			if tab := loaded(t, &good, fs); tab.Catalog() != held.Catalog() || tab.Zone() != held.Zone() {
				t.Errorf("on disk: got %s, want %s", tab.Zone(), held.Zone())
			}
		})
	}
}

func TestRun_LossIsNoticedByHeartbeatAndHealed(t *testing.T) {
	src, n := newSource(t), newNode(t)
	e := run(t, src, n, memory(t), nil)
	s := n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	src.delta([]table.Object{src.key("k2", "gold")}) // never sent
	s.put(src.beat())
	s.nack(subscribe.ReasonLost, true)
	s.send(src.delta(nil)) // was under way: not another complaint
	s.send(src.parts(2)...)
	s.ack(src)
	if e.holder.Load().Key("k2") == nil {
		t.Error("not healed")
	}
	src.delta(nil)
	for range 4 { // a snapshot that never comes is asked for again
		s.put(src.beat())
	}
	s.nack(subscribe.ReasonLost, true)
	s.nack(subscribe.ReasonLost, true)
}

func TestRun_NewEpochMayStartLower(t *testing.T) {
	src, n := newSource(t), newNode(t)
	e := run(t, src, n, memory(t), nil)
	s := n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	src.zon.Epoch, src.zon.Index = 2, 1
	s.send(src.snapshot())
	s.ack(src)
	if e.holder.Load().Epoch() != 2 {
		t.Errorf("epoch: got %d, want 2", e.holder.Load().Epoch())
	}
}

func TestRun_WithdrawnEdgeKeepsNothing(t *testing.T) {
	src, n, fs := newSource(t), newNode(t), memory(t)
	e := run(t, src, n, fs, nil)
	s := n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	for range 2 {
		s.put(&syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_Withdrawn{Withdrawn: &syncv1.Withdrawn{Reason: "EDGE_WITHDRAWN"}}})
		s = n.next()
	}
	if got := <-e.gone; got != "EDGE_WITHDRAWN" || e.holder.Load() != nil || len(e.gone) != 0 {
		t.Errorf("got %q and %d more, a table: %v, want the reason once and no table", got, len(e.gone), e.holder.Load() != nil)
	}
	if files := fs.Files("/table"); len(files) != 1 {
		t.Errorf("files: got %v, want the mark alone", files)
	}
	e.stop()
	if loaded(t, src, fs) != nil {
		t.Error("a restarted edge serves what was taken from it")
	}
	// Let in again it must not go back behind what it had.
	e = run(t, src, n, fs, nil)
	s = n.next()
	if h := s.recv().GetHello(); h.Zone != nil {
		t.Errorf("hello: got %v, want nothing held", h)
	}
	src.zon.Index--
	s.send(src.snapshot())
	s.nack(subscribe.ReasonStale, false)
	src.zon.Index++
	s = n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	<-e.client.Ready()
}

func TestRun_SilentNodeIsLeft(t *testing.T) {
	src, n := newSource(t), newNode(t)
	run(t, src, n, memory(t), func(c *subscribe.Config) { c.FirstFrame, c.Silence = 30*time.Millisecond, 60*time.Millisecond })
	n.next() // says nothing at all
	s := n.next()
	s.recv()
	begin := time.Now()
	s.send(src.snapshot())
	s.ack(src)
	n.next() // said something once
	if took := time.Since(begin); took < 50*time.Millisecond {
		t.Errorf("left after %v, want 60 ms of silence", took)
	}
}

func TestRun_StreamIsRenewed(t *testing.T) {
	src, n := newSource(t), newNode(t)
	e := run(t, src, n, memory(t), func(c *subscribe.Config) { c.RenewAfter = 500 * time.Millisecond })
	s := n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	s = n.next()
	if h := s.recv().GetHello(); !proto.Equal(h.Zone, pos(src.zon)) || e.holder.Load() == nil {
		t.Errorf("got %v, want the positions held", h)
	}
}

func TestRun_LongLogAsksForANewBase(t *testing.T) {
	src, n, fs := newSource(t), newNode(t), memory(t)
	e := run(t, src, n, fs, func(c *subscribe.Config) { c.LogRecords = 5 })
	s := n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	for i := range 6 {
		s.send(src.delta([]table.Object{src.key(fmt.Sprint("n", i), "gold")}))
		s.ack(src)
	}
	if h := s.recv().GetHello(); h == nil || h.Zone != nil {
		t.Fatalf("got %v, want a hello without positions", h)
	}
	s.send(src.snapshot())
	s.ack(src)
	s.send(src.delta([]table.Object{src.key("last", "gold")}))
	s.ack(src)
	if files := fs.Files("/table"); len(files) != 3 {
		t.Errorf("files: got %v, want base, log and mark of one generation", files)
	}
	e.stop()
	if tab := loaded(t, src, fs); tab.Key("last") == nil || tab.Key("n5") == nil || !at(tab, src) {
		t.Error("the new base and log do not hold the table")
	}
}

// A full disk must not keep a revocation from taking effect, and nothing unsaved is acked: also where there is room
// for the mark and none for the update.
func TestRun_DiskFull(t *testing.T) {
	for _, only := range []string{"", "/log-"} {
		t.Run("of "+only, func(t *testing.T) { diskFull(t, only) })
	}
}

func diskFull(t *testing.T, only string) {
	src, n, fs := newSource(t), newNode(t), memory(t)
	var enforced atomic.Int64
	e := run(t, src, n, fs, func(cfg *subscribe.Config) { cfg.Enforce = func() { enforced.Add(1) } })
	s := n.next()
	s.recv()
	s.send(src.snapshot())
	s.ack(src)
	fs.Inject(func(op, path string) error {
		if op == "write" && strings.Contains(path, only) {
			return errors.New("no space left on device")
		}
		return nil
	})
	s.send(src.delta(nil, keyOf("k1")))
	s.nack(subscribe.ReasonPersist, false)
	if e.holder.Load().Key("k1") != nil {
		t.Error("the revocation is not in force")
	}
	if n := enforced.Load(); n != 2 {
		t.Errorf("what a table forbids was ended %d times, want it for both tables in force", n)
	}
	fs.Inject(nil)
	s = n.next()
	if h := s.recv().GetHello(); h.Zone != nil {
		t.Fatalf("got %v, want a hello that asks for a snapshot", h)
	}
	s.send(src.snapshot())
	s.ack(src)
	s.send(src.delta([]table.Object{src.key("k2", "gold")}))
	s.ack(src)
	e.stop()
	if tab := loaded(t, src, fs); tab.Key("k2") == nil || tab.Key("k1") != nil {
		t.Error("on disk is not what was acked")
	}
}

// Updates of which many are dropped, doubled and swapped: what the edge acknowledges it holds, a loss never goes unnoticed
// past the next heartbeat, and at the end it holds what the zone has. BAILIWICK_DELTAS and BAILIWICK_SEED choose how many
// and which (make fuzz-sync).
func TestRun_ManyUpdatesUnderFaults(t *testing.T) {
	deltas, seed := 10_000, uint64(time.Now().UnixNano())
	for name, set := range map[string]func(uint64){"BAILIWICK_DELTAS": func(n uint64) { deltas = int(n) }, "BAILIWICK_SEED": func(n uint64) { seed = n }} {
		if text := os.Getenv(name); text != "" {
			n, err := strconv.ParseUint(text, 10, 64)
			if err != nil {
				t.Fatalf("%s: %v", name, err)
			}
			set(n)
		}
	}
	t.Logf("%d deltas, seed %d", deltas, seed)
	r := rand.New(rand.NewPCG(seed, 5))
	src, n, fs := newSource(t), newNode(t), memory(t)
	e := run(t, src, n, fs, nil)
	var s *stream
	known := map[[2]revision.Revision]bool{} // positions that the zone has been at
	acks := 0
	open := func() {
		s = n.next()
		s.recv()
		s.send(src.snapshot())
	}
	known[[2]revision.Revision{src.cat, src.zon}] = true
	open()
	// serve answers what came up; false if the edge left.
	serve := func() bool {
		for {
			select {
			case m, ok := <-s.up:
				if !ok {
					return false
				}
				if a := m.GetAck(); a != nil {
					if acks++; !known[[2]revision.Revision{positionOf(a.Catalog), positionOf(a.Zone)}] {
						t.Fatalf("it acknowledges %v, where the zone never was", a)
					}
				}
				if m.GetNack().GetWantSnapshot() || m.GetHello() != nil {
					s.send(src.snapshot())
				}
			default:
				return true
			}
		}
	}
	var held *syncv1.Signed
	faults := 0
	for i := range deltas {
		id := fmt.Sprintf("k%02d", r.IntN(50))
		var m *syncv1.Signed
		if r.IntN(3) == 0 {
			m = src.delta(nil, keyOf(id))
		} else {
			m = src.delta([]table.Object{src.key(id, fmt.Sprint("p", i))})
		}
		known[[2]revision.Revision{src.cat, src.zon}] = true
		switch r.IntN(40) {
		case 0: // dropped
			faults++
		case 1: // doubled
			s.send(m, m)
			faults++
		case 2: // swapped with a later one
			held = m
			faults++
		default:
			s.send(m)
			if held != nil {
				s.send(held)
				held = nil
			}
		}
		if r.IntN(20) == 0 {
			s.put(src.beat())
		}
		if r.IntN(200) == 0 {
			s.end()
		}
		if !serve() {
			open()
		}
	}
	eventually(t, "equal sums", func() bool {
		s.put(src.beat())
		if !serve() {
			open()
		}
		return at(e.holder.Load(), src)
	})
	for i := range 50 { // the sums say so; see for yourself
		id := fmt.Sprintf("k%02d", i)
		o, want := src.objects[keyOf(id)]
		if k := e.holder.Load().Key(id); (k != nil) != want || want && !strings.Contains(string(o.Data), `"plan":"`+k.Plan+`"`) {
			t.Errorf("key %s is not what the zone has", id)
		}
	}
	t.Logf("%d acks, %d faults, %d snapshots, %d deltas, %d nacks", acks, faults, e.client.Stats().Snapshots.Load(), e.client.Stats().Deltas.Load(), e.client.Stats().Nacks.Load())
	if e.client.Stats().Nacks.Load() == 0 || e.client.Stats().Deltas.Load() < 100 {
		t.Error("hardly anything was refused or applied: the test proves nothing")
	}
	e.stop()
	fs.Crash()
	if tab := loaded(t, src, fs); tab == nil || !at(tab, src) {
		t.Error("the disk holds another table")
	}
}

func positionOf(p *syncv1.Position) revision.Revision {
	return revision.Revision{Epoch: p.GetEpoch(), Index: p.GetIndex(), Sum: revision.Sum(p.GetSum())}
}

// A snapshot whose stream breaks again and again goes on each time where it was, whichever place in the logs it has by
// then, and is whole on disk. What it must not rest on, it does not.
func TestRun_ASnapshotGoesOnWhereItBroke(t *testing.T) {
	src, n, fs := newSource(t), newNode(t), memory(t)
	var many []table.Object
	for i := range 200 {
		many = append(many, src.key(fmt.Sprintf("key%03d", i), "gold"))
	}
	src.delta(many)
	e := run(t, src, n, fs, nil)
	total, have := len(src.objects), 0
	for turn := range 9 {
		s := n.next()
		r := s.recv().GetHello().GetResume()
		if int(r.GetObjects()) != have {
			t.Fatalf("turn %d: it has %d objects of the snapshot, want %d", turn, r.GetObjects(), have)
		}
		parts := src.behind(have, 4)
		s.send(parts[0])
		s.put(&syncv1.SubscribeResponse{Message: &syncv1.SubscribeResponse_Heartbeat{Heartbeat: &syncv1.Heartbeat{}}})
		have += (total - have) / 4
		s.end()
		src.zon.Index++ // grants were logged meanwhile
	}
	if have*10 < total*9 {
		t.Fatalf("the test reached %d of %d objects", have, total)
	}
	s := n.next()
	if r := s.recv().GetHello().GetResume(); int(r.GetObjects()) != have || !proto.Equal(&syncv1.Position{Epoch: r.Zone.Epoch, Sum: r.Zone.Sum}, &syncv1.Position{Epoch: 1, Sum: src.zon.Sum[:]}) {
		t.Fatalf("it says it has %v", r)
	}
	s.send(src.behind(have, 2)...)
	s.ack(src)
	if got := e.client.Stats().Resumed.Load(); got != 9 {
		t.Errorf("%d snapshots went on, want 9", got)
	}
	e.stop()
	if tab := loaded(t, src, fs); tab == nil || !at(tab, src) {
		t.Error("on disk is not what was acked")
	}
}

func TestRun_ASnapshotOfOtherObjectsBeginsAnew(t *testing.T) {
	for name, again := range map[string]func(*source) []*syncv1.Signed{
		"changed meanwhile":                           func(s *source) []*syncv1.Signed { s.delta([]table.Object{s.key("k9", "gold")}); return s.behind(0, 3) },
		"from the beginning although nothing changed": func(s *source) []*syncv1.Signed { return s.behind(0, 3) },
		"another epoch":                               func(s *source) []*syncv1.Signed { s.zon.Epoch++; return s.behind(0, 1) },
	} {
		t.Run(name, func(t *testing.T) {
			src, n := newSource(t), newNode(t)
			e := run(t, src, n, memory(t), nil)
			s := n.next()
			s.recv()
			s.send(src.behind(0, 3)[0])
			s.end()
			s = n.next()
			s.recv()
			s.send(again(src)...)
			s.ack(src)
			if k, o := e.holder.Load().Size(); k+o != len(src.objects) {
				t.Errorf("it holds %d objects, want %d", k+o, len(src.objects))
			}
		})
	}
	t.Run("behind what is not there", func(t *testing.T) {
		src, n := newSource(t), newNode(t)
		run(t, src, n, memory(t), nil)
		s := n.next()
		s.recv()
		s.send(src.behind(1, 1)...)
		s.nack(subscribe.ReasonPosition, false)
	})
}

// An acknowledgement says that what the table forbids has ended, so it must have.
func TestRun_EndsWhatIsForbiddenBeforeItAcks(t *testing.T) {
	src, n := newSource(t), newNode(t)
	began, end := make(chan struct{}), make(chan struct{})
	var e *edge
	e = run(t, src, n, memory(t), func(cfg *subscribe.Config) {
		holder := cfg.Holder
		cfg.Enforce = func() {
			if holder.Load() == nil || !at(holder.Load(), src) {
				t.Error("asked to end what a table forbids that is not in force")
			}
			began <- struct{}{}
			<-end
		}
	})
	s := n.next()
	s.recv() // hello
	s.send(src.snapshot())
	acked := make(chan struct{})
	go func() { s.ack(src); close(acked) }()
	<-began
	select {
	case <-acked:
		t.Error("acknowledged while relays were still being cut")
	case <-time.After(100 * time.Millisecond):
	}
	close(end)
	<-acked
	e.stop()
}
