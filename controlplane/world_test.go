package controlplane

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/lifecycle/porttest"
)

// world is an installation of real control nodes in this process, on loopback.
type world struct {
	t     *testing.T
	dir   string
	nodes map[string]*running

	stores    Stores        // of nodes that are started
	objection time.Duration // theirs; 0: a second, where nobody is expected to object
}

type running struct {
	*Node
	stop func() error
	ends chan error // what Run returned
}

// newWorld makes the kits of a zone emea with the named control nodes, and of zones us and apac with those whose names say so;
// none runs yet.
func newWorld(t *testing.T, names ...string) *world {
	t.Helper()
	zones, regions, nodes := "  - {name: emea, jurisdiction: EEA}\n", "  - {name: eu-west, zone: emea, country: IE, jurisdiction: EEA, provider: test}\n", ""
	for _, n := range names {
		zone, region := "emea", "eu-west"
		if z, country := strings.TrimSuffix(n, "-1"), map[string]string{"us-1": "US", "apac-1": "JP"}[n]; country != "" {
			zone, region = z, z+"-east"
			zones += fmt.Sprintf("  - {name: %s, jurisdiction: %s}\n", zone, country)
			regions += fmt.Sprintf("  - {name: %s, zone: %s, country: %s, jurisdiction: %s, provider: test}\n", region, zone, country, country)
		}
		nodes += fmt.Sprintf("  - {name: %s, zone: %s, region: %s, admin: \"https://%s\", peer: \"%s\"}\n", n, zone, region, porttest.Addr(t), porttest.Addr(t))
	}
	spec := "installation: raft.test\nprimary_zone: emea\nzones:\n" + zones + "regions:\n" + regions + "control_nodes:\n" + nodes
	w := &world{t: t, dir: t.TempDir(), nodes: map[string]*running{}}
	if _, _, err := Init([]byte(spec), w.dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		var all sync.WaitGroup
		for _, n := range w.nodes {
			all.Go(func() { _ = n.stop() })
		}
		all.Wait()
	})
	return w
}

func (w *world) path(name string) string { return filepath.Join(w.dir, name) }

func (w *world) config(name string) Config {
	logger := slog.New(slog.DiscardHandler)
	if os.Getenv("NODE_LOG") != "" {
		logger = slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})).With("node", name)
	}
	return Config{Dir: w.path(name), Timing: "local", Version: "v1.0.0", ReserveBytes: 1 << 20, Stores: w.stores, objection: cmp.Or(w.objection, time.Second), Logger: logger}
}

func (w *world) start(name string) *running {
	w.t.Helper()
	n, err := New(w.config(name))
	if err != nil {
		w.t.Fatalf("start %s: %v", name, err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{Node: n, ends: make(chan error, 1)}
	go func() { r.ends <- n.Run(ctx) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-r.ends
	})
	w.nodes[name] = r
	return r
}

func (w *world) stopAll() {
	w.t.Helper()
	var all sync.WaitGroup
	errs := make(chan error, len(w.nodes))
	for _, n := range w.nodes {
		all.Go(func() { errs <- n.stop() })
	}
	all.Wait()
	clear(w.nodes)
	close(errs)
	for err := range errs {
		if err != nil {
			w.t.Errorf("stop: %v", err)
		}
	}
}

func soon(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("never: %s", what)
		}
	}
}

func within(t *testing.T) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return ctx
}

func write(t *testing.T, s group.Store, key, value string) group.Revision {
	t.Helper()
	r, err := s.Txn(within(t), group.Txn{Ops: []group.Op{{Key: key, Value: []byte(value)}}})
	if err != nil {
		t.Fatalf("write %s to %s: %v", key, s.Name(), err)
	}
	return r.Revision
}
