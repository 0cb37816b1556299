package evidence

import (
	"context"
	"fmt"
	"log/slog"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/model"
)

// Over real groups: what is written to the catalog is in the zone's log, from the first transaction on, whole, through a
// recovery of the catalog and a restart of the log; and the log judges itself sound.
func TestLog_TellsTheCatalogsHistory(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{}, 3)
	store := func(name string) *raftgroup.Store {
		s, err := raftgroup.NewStore(raftgroup.Config{Group: name, Node: "n1", Dir: t.TempDir(), Voters: []string{"n1"}, Timing: raftgroup.Local(), Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		go func() { _ = s.Run(ctx); ended <- struct{}{} }()
		return s
	}
	catalog, zone := store("catalog"), store("store/emea")
	defer func() { cancel(); <-ended; <-ended }()
	dir := t.TempDir()
	run := func() (*Log, func()) {
		l, err := New(Config{Zone: "emea", Dir: dir, Store: zone, Catalog: catalog, Signer: keyOf("emea"), Mask: []byte("0123456789abcdef"), Every: 50 * time.Millisecond,
			Peers: func(context.Context, int64) (Piece, error) { return Piece{}, nil }, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, stop := context.WithCancel(ctx)
		done := make(chan struct{})
		go func() { _ = l.Run(ctx); close(done) }()
		return l, func() { stop(); <-done }
	}
	write := func(n int) {
		t.Helper()
		if _, err := catalog.Txn(ctx, group.Txn{Ops: []group.Op{{Key: model.PrefixPolicy + "p", Value: model.Encode(model.Policy{Name: "p", Zone: fmt.Sprint(n)})},
			{Key: model.KeyAudit, Value: model.Encode(model.Audit{Operator: "emea/ff", Call: fmt.Sprint(n)})}}}); err != nil {
			t.Fatal(err)
		}
	}
	told := func(l *Log) (calls []string, gap bool) {
		p, err := l.Leaves(0, 1000)
		if err != nil {
			t.Fatal(err)
		}
		for _, leaf := range p.Leaves {
			if r, err := Decode(leaf); err == nil && r.Kind == KindCatalog {
				s, err := model.Decode[model.CatalogSeen](r.Kind, r.Value)
				if err != nil {
					t.Fatal(err)
				}
				gap = gap || s.Gap
				for _, w := range s.Writes {
					calls = append(calls, w.Call)
				}
			}
		}
		return calls, gap
	}
	want := func(l *Log, n int) {
		t.Helper()
		var calls []string
		for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			var gap bool
			if calls, gap = told(l); gap {
				t.Fatal("a gap, and nothing is missing")
			}
			if len(calls) == n {
				break
			}
		}
		for i := range n {
			if len(calls) != n || calls[i] != fmt.Sprint(i+1) {
				t.Fatalf("told: %v, want 1 to %d", calls, n)
			}
		}
	}
	write(1)
	write(2)
	l, stop := run()
	want(l, 2)
	write(3)
	want(l, 3)
	stop()
	write(4)
	if _, err := catalog.OpenEpoch(ctx); err != nil {
		t.Fatal(err)
	}
	l, stop = run()
	defer stop()
	time.Sleep(2 * pause)
	write(5)
	calls, gap := told(l)
	for end := time.Now().Add(time.Minute); time.Now().Before(end) && (len(calls) == 0 || calls[len(calls)-1] != "5"); time.Sleep(10 * time.Millisecond) {
		calls, gap = told(l)
	}
	// 4 was told by nobody before the recovery: it is in the log, or the log says that something is missing.
	if len(calls) == 0 || calls[len(calls)-1] != "5" || len(calls) != 5 && !gap {
		t.Errorf("told: %v, gap %v", calls, gap)
	}
	w := newReplay("emea", l.key)
	p, err := l.Leaves(0, 1000)
	if err != nil {
		t.Fatal(err)
	}
	for _, leaf := range p.Leaves {
		r, err := Decode(leaf)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range w.apply(r.open()) {
			t.Errorf("record %s: %s", r.Kind, p)
		}
	}
}
