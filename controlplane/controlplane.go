// Package controlplane assembles a control node from its parts: the groups it has a part in, the border, the
// road down to edges and the road up from them, and the doors for operators and nodes. It is wiring and
// nothing else; each part says for itself what it owns and what survives a crash. New opens a data directory
// that no other process may use; Run is called once.
package controlplane

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/controlplane/internal/alert"
	"bailiwick/controlplane/internal/border"
	"bailiwick/controlplane/internal/carrier"
	"bailiwick/controlplane/internal/certstore"
	"bailiwick/controlplane/internal/detail"
	"bailiwick/controlplane/internal/discovery"
	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/ingest"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/lessor"
	"bailiwick/controlplane/internal/peer"
	"bailiwick/controlplane/internal/pki"
	"bailiwick/controlplane/internal/rollout"
	"bailiwick/controlplane/internal/rotation"
	"bailiwick/controlplane/internal/sink"
	"bailiwick/controlplane/internal/sso"
	"bailiwick/controlplane/internal/syncserver"
	"bailiwick/controlplane/internal/uptime"
	"bailiwick/shared/identity"
	"bailiwick/shared/lifecycle"
)

// Config of a control node. What differs between nodes, name, zone, addresses, keys, is in the kit that
// `bailiwick-control init` put into Dir/identity.
type Config struct {
	Dir         string // required: data directory
	AdminListen string // host:port of the admin port; "": that of the node's admin URL
	PeerListen  string // host:port of the peer port, TCP and UDP; "": that of the node's peer address
	Version     string
	Timing      string // raft timing: "local", "regional" (default) or "global"
	// Discovery is an etcd in the zone that names upstreams of APIs with discovery: etcd, PREFIX ZONE/API/REGION/ANY each a
	// URL; Prefix "" is bailiwick/upstreams/. Without Endpoints none is asked.
	Discovery Etcd
	Stores    Stores       // where the catalog and the zone's store rest; zero: on this node and its like
	Logger    *slog.Logger // required

	// BootstrapExpect, when not 0, must be the number of the zone's control nodes in the kit: a guard against
	// a kit of another installation.
	BootstrapExpect int

	// WebhookAllow opens networks to webhooks that are closed to them (loopback, private, link-local), and plain http
	// there; only ever for tests and sandboxes.
	WebhookAllow []netip.Prefix

	// Sinks are where usage goes besides the ledger: kafka=host:port,host:port/topic. Give all nodes of a zone the same.
	// A sink that was given once keeps its blocks in the ledger's outbox until it is forgotten.
	Sinks       []string
	ForgetSinks []string // by name, as kafka:topic
	OutboxBytes int64    // what the outbox may hold; beyond it a sink falls behind, which is recorded; 0: 1 GiB

	objection time.Duration // tests: in which nodes object to a release of their cluster of etcd; 0: claim.Window

	StateCheck  time.Duration // between comparisons of the zone ledger's state on all its nodes; 0: 10 min
	PeriodGrace time.Duration // after a day's end, then it is closed whoever is silent; 0: 12 h
	FoldAfter   time.Duration // after its end a closed day is compacted; 0: 35 days

	// MaxEdgeRate is how many requests a second one edge can serve at most, by the quarter of an hour; usage that says
	// more is refused as implausible. 0: 250,000.
	MaxEdgeRate int64

	DetailRetention time.Duration // of a row of detail, from when its request ended; 0: 35 days
	DetailBudget    int64         // bytes of detail on disk, beyond which the oldest files go; 0: 20 GiB

	EvidenceKeep  time.Duration // how old records of the zone's Merkle log may get; 0: 400 days
	EvidenceBytes int64         // of the log on disk, beyond which the oldest go before their time, and that is said; 0: 32 GiB

	// SSO lets operators in by an OpenID Connect issuer; nil: by their own tokens alone.
	SSO *sso.Config

	// ReserveBytes of the disk are kept for the day on which it is full: see reserve. 0: DefaultReserve; below 0: none.
	ReserveBytes int64

	// Soak is how long a change of the catalog is watched in each ring; the same on all nodes of an installation.
	Soak rollout.Soak

	// DropDelta is a fault hook of test builds; nil in production.
	DropDelta func() bool
}

// Node is a control node.
type Node struct {
	cfg     Config
	log     *slog.Logger
	in      *pki.Installation
	secrets *pki.ZoneSecrets
	self    pki.ControlNode
	source  *identity.Source

	mux     *peer.Mux
	carrier *carrier.Carrier
	catalog engine
	store   engine
	// clusters of etcd that the two rest in; nil: they are raft's
	clusters *clusters
	parts    []replica // in the groups that are raft's, in their order; the ledger's is always one of them

	leftBehind func() bool // of a catalog that is raft's: it was recovered, and this node has the copy of before

	machine *ledger.Machine
	replica *raftgroup.Node
	ledger  *ledger.Ledger
	days    *ledger.Days
	audit   *ledger.Audit
	pump    *sink.Pump

	closeSinks []func()
	lessor     *lessor.Lessor
	detail     *detail.Store
	keeper     *border.Keeper
	finder     *discovery.Finder // nil: nothing is looked for
	uptime     *uptime.Watch
	conductor  *rollout.Conductor
	rollout    *rollout.Watch
	evidence   *evidence.Log
	chain      string // PEM: why the zone's signing key is the zone's
	sync       *syncserver.Server
	ingest     *ingest.Server
	enroll     *pki.Enroll
	sso        *sso.Verifier // nil: none
	certs      *certstore.Service
	registry   atomic.Pointer[pki.Registry] // nil until the catalog is open
	central    *central
	alerts     *alert.Service
	rotation   *rotation.Sweep

	adminListener net.Listener
	adminTLS      *tls.Config

	reserve reserve
	backing sync.Mutex // held while a backup is taken

	fatalOnce sync.Once
	fatal     chan error // a group that can no longer take part
}

// New opens everything and begins to take part in the groups; nothing is served before Run.
func New(cfg Config) (_ *Node, err error) {
	if cfg.Dir == "" || cfg.Logger == nil {
		return nil, errors.New("control node: Dir and Logger are required")
	}
	if err := cfg.Soak.Validate(); err != nil {
		return nil, err
	}
	n := &Node{cfg: cfg, log: cfg.Logger, fatal: make(chan error, 1)}
	if cfg.SSO != nil {
		if n.sso, err = sso.New(*cfg.SSO); err != nil {
			return nil, err
		}
	}
	home := filepath.Join(cfg.Dir, "identity")
	if n.source, err = identity.Load(home); err != nil {
		return nil, err
	}
	var ca *pki.CA
	if n.in, n.secrets, ca, err = pki.Load(home); err != nil {
		return nil, err
	}
	name := n.source.Name()
	self, ok := n.in.Control(name.Node)
	if !ok {
		return nil, fmt.Errorf("control node %s is not in %s/installation.json", name.Node, home)
	}
	n.self = self
	if want := cfg.BootstrapExpect; want != 0 && want != len(n.in.InZone(self.Zone)) {
		return nil, fmt.Errorf("-bootstrap-expect %d: the kit names %d control nodes in zone %s", want, len(n.in.InZone(self.Zone)), self.Zone)
	}
	if n.cfg.Stores, err = cfg.Stores.resolve(n.in, self.Zone); err != nil {
		return nil, err
	}
	if err := settled(cfg.Dir, n.cfg.Stores.Engine); err != nil {
		return nil, err
	}
	n.reserve = newReserve(cfg.Dir, cfg.ReserveBytes)
	if err := n.reserve.make(); err != nil {
		return nil, err
	}
	adminURL, err := url.Parse(self.Admin)
	if err != nil {
		return nil, fmt.Errorf("admin URL of %s: %w", self.Name, err)
	}
	if n.adminTLS, err = ca.AdminTLS([]string{adminURL.Hostname(), "localhost"}, 0); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			n.closeListeners()
		}
	}()
	if n.adminListener, err = net.Listen("tcp", orElse(cfg.AdminListen, adminURL.Host)); err != nil {
		return nil, fmt.Errorf("listen on the admin port: %w", err)
	}
	if err := n.openPeer(ca); err != nil {
		return nil, err
	}
	return n, nil
}

func orElse(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

func (n *Node) closeListeners() {
	if n.adminListener != nil {
		n.adminListener.Close()
	}
}

// fail takes the first fault after which the process must end; the group has fenced itself by then.
func (n *Node) fail(err error) {
	n.fatalOnce.Do(func() {
		if n.reserve.freeOn(err) {
			n.log.Error("the disk is full: the reserve is given back and this node stops; make room before it is started again", "bytes", n.reserve.bytes)
		}
		n.fatal <- err
	})
}

// Run serves until ctx ends or a part can no longer go on. The order is the order in which parts rest on each
// other; they stop in reverse.
func (n *Node) Run(ctx context.Context) error {
	parts := []lifecycle.Part{
		{Name: "faults", Run: n.watchFaults, Why: "a fenced group must end the process, whatever else runs"},
		{Name: "peer port", Run: n.mux.Run, Why: "groups elect over it, and hand leadership over through it when they stop"},
		{Name: "catalog", Run: n.catalog.Run, Why: "the registry in it says who may connect"},
		{Name: "zone store", Run: n.store.Run, Why: "border, sync and doors read it"},
		{Name: "zone ledger", Run: n.runLedger, StopTimeout: 20 * time.Second, Why: "blocks commit to it"},
		{Name: "ledger commits", Run: n.ledger.Run, Why: "ingest waits for its commits"},
		{Name: "quotas", Run: n.lessor.Run, Why: "edges lease what they serve"},
		{Name: "ledger checkpoints", Run: n.machine.HashCheckpoints, Why: "the audit compares their hashes"},
		{Name: "ledger audit", Run: n.audit.Run, Why: "a node whose state differs must stop"},
		{Name: "sinks", Run: n.runSinks, Why: "they are fed from the ledger's outbox"},
		{Name: "ledger days", Run: n.days.Run, Why: "closing a day commits through the ledger"},
		{Name: "registry", Run: n.followRegistry, Why: "withdrawn nodes must be cut as long as any door is open"},
		{Name: "members", Run: n.steerGroups, Why: "it reads the registry and changes groups that this node leads"},
		{Name: "border", Run: n.keeper.Run, Why: "grants are given through sync"},
		{Name: "evidence", Run: n.evidence.Run, Why: "it follows the zone store, and what stands above it is what it records"},
		{Name: "seed", Run: n.seed, Why: "zones, regions and the first operator come from the kit"},
		{Name: "sync", Run: n.sync.Run, Why: "edges follow it"},
		{Name: "edge reports", Run: n.report, Why: "it reads sync and feeds the border"},
		{Name: "uptime", Run: n.uptime.Run, Why: "it reads edge reports, and evidence records what it commits"},
		{Name: "roll-outs", Run: n.conductor.Run, Why: "it writes what sync reads"},
		{Name: "roll-outs of the zone", Run: n.rollout.Run, Why: "it reads edge reports, and roll-outs go on by what it says"},
		{Name: "detail", Run: n.detail.Run, Why: "ingest waits for what it writes"},
		{Name: "edge doors", Run: n.registerDoors, Why: "it reads sync and writes to the catalog"},
		{Name: "levels", Run: n.registerLevels, Why: "it reads sync and writes to the catalog"},
		{Name: "ingest", Run: n.ingest.Run, Why: "edges ship to it until they are stopped"},
		{Name: "rotation", Run: n.rotation.Run, Why: "it commits to the zone store"},
		{Name: "alerts", Run: n.alerts.Run, Why: "it reads quotas, and what it raises rests in the zone store"},
		{Name: "latency thinning", Run: n.thinLatency, Why: "it commits to the ledger"},
		{Name: "identity", Run: n.renewer().Run, Why: "every connection uses it"},
		{Name: "admin port", Run: n.serveAdmin, Why: "last up, first down: operators see a node only while it works"},
	}
	if n.clusters != nil {
		keep := func(ctx context.Context) error { return n.clusters.keep(ctx, n.catalog, n.log, n.fail) }
		parts = slices.Insert(parts, 3, lifecycle.Part{Name: "cluster of the zone store", Run: keep, Why: "it writes to the catalog, and the zone store waits for it"})
	}
	if n.finder != nil {
		parts = slices.Insert(parts, len(parts)-1, lifecycle.Part{Name: "discovery", Run: n.finder.Run, Why: "it commits to the zone store"})
	}
	if n.sso != nil {
		parts = slices.Insert(parts, len(parts)-1, lifecycle.Part{Name: "single sign-on", Run: n.sso.Run, Why: "the admin port asks it who calls"})
	}
	return lifecycle.Run(ctx, n.log, parts...)
}

// runLedger closes the cells only after the group that writes them has ended.
func (n *Node) runLedger(ctx context.Context) error {
	err := n.replica.Run(ctx)
	return errors.Join(err, n.machine.Close())
}

func (n *Node) watchFaults(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case err := <-n.fatal:
		return err
	}
}

// renewer signs this node's own certificates: a control node holds its zone's authority.
func (n *Node) renewer() *identity.Renewer {
	return &identity.Renewer{Source: n.source, Logger: n.log, Issue: func(_ context.Context, csr []byte) ([]byte, []byte, error) {
		chain, err := n.enroll.RenewFor(n.source.Name(), csr)
		return chain, nil, err
	}}
}
