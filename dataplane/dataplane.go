// Package dataplane assembles an edge from its parts: the table that control nodes push, the request path in
// front of it, and the spool that usage leaves through. It is wiring and nothing else; each part says for
// itself what it owns and what survives a crash. New opens a data directory that no other process may use;
// Run is called once.
package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/accesslog"
	"bailiwick/dataplane/internal/attest"
	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/cache"
	"bailiwick/dataplane/internal/detail"
	"bailiwick/dataplane/internal/dns"
	"bailiwick/dataplane/internal/ebb"
	"bailiwick/dataplane/internal/edgetls"
	"bailiwick/dataplane/internal/enroll"
	"bailiwick/dataplane/internal/evidence"
	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/ferry"
	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/handover"
	"bailiwick/dataplane/internal/incarnation"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/linger"
	"bailiwick/dataplane/internal/observe"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/profile"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/pseudonym"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/dataplane/internal/relay"
	"bailiwick/dataplane/internal/sentinel"
	"bailiwick/dataplane/internal/ship"
	"bailiwick/dataplane/internal/spool"
	"bailiwick/dataplane/internal/subscribe"
	"bailiwick/dataplane/internal/token"
	"bailiwick/dataplane/internal/trace"
	"bailiwick/dataplane/internal/upstream"
	"bailiwick/dataplane/internal/witness"
	"bailiwick/shared/apikey"
	"bailiwick/shared/identity"
	"bailiwick/shared/lifecycle"
	"bailiwick/shared/usage"
)

// Config of an edge. Zero values mean the default in the comment.
type Config struct {
	Dir    string // required: data directory
	Name   string // required: the node's name, as its join token says
	Region string // required, likewise

	HTTPS string // host:port for HTTP/1.1 and HTTP/2 over TCP and HTTP/3 over UDP; required
	HTTP  string // host:port for cleartext HTTP/1.1; "": none
	Relay string // host:port where edges of other regions relay to; required
	Admin string // host:port for health and metrics; keep it on loopback; "": none
	// RelayAdvertise is the address that other edges are told; "": Relay.
	RelayAdvertise string

	// Where clients reach this edge, for DNS answers of the whole zone.
	Public          []netip.Addr // none: clients are not led here; at most 8
	PublicHTTPSPort int          // 0: that of HTTPS
	DNS             DNS

	// Needed for the first start only.
	ControlURLs   []string // admin URLs of the zone's control nodes
	CAFile        string   // the installation's roots
	JoinTokenFile string

	// QuotaWait is how long a request waits for the first word on its quota; 0: not at all, it is refused.
	QuotaWait time.Duration

	// BusyPoll is for how long the edge looks again and again for an upstream's answer before it sleeps, while there is little else
	// to do; 0: not at all; at most 1 ms.
	BusyPoll time.Duration

	MaxConnections         int           // of clients over TCP; 0: three quarters of the files that the process may open
	MaxPerAddress          int           // of them, of one address (of IPv6 one /64), this machine's own apart; 0: an eighth
	UploadRate             int64         // bytes a second that a client brings of a body, at least; 0: 1 KiB
	UpstreamDrain          time.Duration // for which what lasts goes on at an upstream that was taken out of the catalog; 0: 5 min
	MaxStreams             int           // WebSockets, and connections of APIs that are tcp; 0: 16,384
	MaxInFlight            int           // requests of clients under way, of which a plan's class may take its share; 0: 16,384
	DetailBytes            int64         // of disk for detail that no control node has stored yet; beyond it the oldest is given up, counted; 0: 3 GiB
	RelayRowsBytes         int64         // of disk for rows of relays, beyond which the oldest go, counted; 0: 256 MiB
	RelayRowsKeep          time.Duration // how long they are kept; 0: 90 days
	OnSpoolError           string        // proxy.RefuseNew (default) or proxy.ServeUnbilled
	AllowLoopbackUpstreams bool
	// UpstreamAllow are addresses that upstreams may have besides public ones: "private" and "loopback" stand for those
	// ranges, others are CIDR blocks. Comma-separated; "": none.
	UpstreamAllow string
	// UpstreamAllowForeign are those of APIs of other zones, which are relayed here.
	UpstreamAllowForeign string
	AccessLog            string        // file of a line of JSON for each request; "": none
	AccessLogSample      float64       // of requests, 0 to 1; 0: all. Those that ended with 5xx are always in it
	AccessLogBytes       int64         // of the file, which is then moved to .1; 0: 256 MiB
	Traces               Traces        // where traces of requests go; zero: there are none
	Pprof                string        // host:port, of loopback, for profiles; "": none
	CacheBytes           int64         // of memory for answers of routes that have a cache; 0: 64 MiB
	UpstreamCerts        string        // directory of the client certificates that manifests name, NAME.crt and NAME.key; "": none
	UpstreamRefresh      time.Duration // how often names of upstreams under discovery are resolved; 0: 5 s, at least 1 s
	ACME                 ACME
	// Takeover makes this process take the place of the one that serves in Dir: its listening sockets, and once it has ended
	// all else. Where there is none it is a start like any other.
	Takeover bool
	// Linger is how long requests under way may go on in this process when another takes its place; 0: as long as they may at a
	// takeover without it, at most linger.TimeMost.
	Linger  time.Duration
	Inherit []Inherited // listening sockets that a supervisor opened
	Serving func()      // called once the doors are open; nil: nothing
	Version string
	Logger  *slog.Logger // required
}

// DNS is the authoritative server for the names of the zone's APIs.
type DNS struct {
	Listen      string        // host:port for UDP and TCP; "": none
	Domains     []string      // delegated to the zone's edges as a whole; none: each host for itself
	CAA         string        // certification authority that may issue for the hosts; "": none is named
	TTL         time.Duration // of addresses; 0: 20 s; at most 30 s
	NegativeTTL time.Duration // of "there is none"; 0: 30 s
	Ramp        time.Duration // over which a region that returns comes to its full share of the answers; 0: at once; at most 1 h
}

// Traces says which requests have one, and who is told.
type Traces struct {
	Endpoint  string // URL of an OTLP/HTTP receiver in the zone; "": nobody
	Ratio     float64
	PerSecond int // 0: trace.DefaultPerSecond
	Header    http.Header
	RootsPEM  []byte // trusted for the receiver; nil: the system's
}

// ACME makes the edge get its hosts' certificates from an ACME authority in place of the installation's own.
type ACME struct {
	Directory string // URL; "": the installation's authority
	Email     string
	RootsPEM  []byte // trusted for the directory's own TLS; nil: the system's
}

// Inherited is a listening socket by its name: https, http, h3, relay, admin, pprof, dns-udp or dns-tcp. It is used if it has the
// address that the configuration says, and closed otherwise.
type Inherited struct {
	Name string
	File *os.File
}

// Validate says what is missing.
func (c Config) Validate() error {
	switch {
	case c.Dir == "" || c.Name == "" || c.Region == "" || c.Logger == nil:
		return errors.New("edge: Dir, Name, Region and Logger are required")
	case c.HTTPS == "" || c.Relay == "":
		return errors.New("edge: HTTPS and Relay are required")
	case len(c.Public) > 8:
		return fmt.Errorf("edge: %d public addresses; at most 8", len(c.Public))
	case len(c.Public) > 0 && c.publicPort() == 0:
		return fmt.Errorf("edge: HTTPS %q names no port, so PublicHTTPSPort is required with Public", c.HTTPS)
	case c.DNS.Ramp < 0 || c.DNS.Ramp > time.Hour:
		return fmt.Errorf("edge: DNS.Ramp is %s; at least 0 and at most 1h", c.DNS.Ramp)
	case c.BusyPoll < 0 || c.BusyPoll > time.Millisecond:
		return fmt.Errorf("edge: BusyPoll is %s; at least 0 and at most 1ms", c.BusyPoll)
	case c.Linger < 0 || c.Linger > linger.TimeMost:
		return fmt.Errorf("edge: Linger is %s; at least 0 and at most %s", c.Linger, linger.TimeMost)
	case c.QuotaWait < 0 || c.QuotaWait > 10*time.Second:
		return fmt.Errorf("edge: QuotaWait is %s; at least 0 and at most 10s", c.QuotaWait)
	case c.OnSpoolError != "" && c.OnSpoolError != proxy.RefuseNew && c.OnSpoolError != proxy.ServeUnbilled:
		return fmt.Errorf("edge: OnSpoolError is %q; %s or %s", c.OnSpoolError, proxy.RefuseNew, proxy.ServeUnbilled)
	}
	if err := (detail.Config{Dir: c.Dir, Edge: c.Name, Budget: c.DetailBytes}).Validate(); err != nil {
		return err
	}
	if c.Pprof != "" {
		return profile.Check(c.Pprof)
	}
	return nil
}

// Edge is a data plane process.
type Edge struct {
	cfg   Config
	log   *slog.Logger
	state *enroll.State
	self  identity.Name
	run   *incarnation.Run

	control  *enroll.Client
	tables   *policy.Holder
	evidence *evidence.Log
	records  records // the way to it
	witness  *witness.Witness
	began    time.Time
	beat     *beat.Beat // of all that ticks
	stopped  toldCounts
	access   *accesslog.Log // nil: none is kept
	traces   *trace.Tracer  // nil: there are none
	pseudo   *pseudonym.Keys
	detail   *detail.Spool
	spool    *spool.Spool
	ship     *ship.Shipper
	follow   *subscribe.Client
	monitor  *failover.Monitor
	grants   *failover.Grants
	quotas   *quota.Book
	sentinel *sentinel.Sentinel
	relays   *relay.Client
	inbound  *relay.Server
	tls      *edgetls.Manager
	tokens   *token.Verifier
	proxy    *proxy.Proxy
	dialer   *upstream.Dialer
	allow    []netip.Prefix // besides public addresses
	foreign  []netip.Prefix // likewise, of other zones' APIs
	ups      *proxy.Upstreams
	names    *upstream.Names
	cache    *cache.Cache
	servers  proxy.Servers
	observe  *observe.Observer
	dns      *dns.Server // nil: none

	sockets            *handover.Sockets
	offer              *handover.Offer
	taken              atomic.Bool   // another process takes this one's place
	meter              *linger.Meter // the spool, or the way to it
	took               bool          // this process has taken another's place
	before             lingering     // the process that this one has taken the place of
	still              stays         // what goes on here when another has taken this one's place
	borrowed           borrowed      // what its relays go by
	rules              rules         // those of the last table
	open               chan struct{} // closed once the doors are
	https, http, admin net.Listener
	pprof              net.Listener // nil: none
	h3                 *ferry.Conn

	serving   atomic.Bool
	opened    atomic.Bool // it has served once since its start
	withdrawn chan string
}

// New joins, if the edge has not yet, and opens everything; nothing is served before Run.
func New(ctx context.Context, cfg Config) (_ *Edge, err error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.RelayAdvertise == "" {
		cfg.RelayAdvertise = cfg.Relay
	}
	e := &Edge{cfg: cfg, log: cfg.Logger, began: time.Now(), beat: beat.New(), tables: &policy.Holder{}, withdrawn: make(chan string, 1), open: make(chan struct{})}
	e.state, err = enroll.Enroll(ctx, enroll.Config{Dir: cfg.Dir, Name: cfg.Name, Region: cfg.Region, RelayAddr: cfg.RelayAdvertise,
		TokenFile: cfg.JoinTokenFile, ControlURLs: cfg.ControlURLs, CAFile: cfg.CAFile, Logger: cfg.Logger})
	if err != nil {
		return nil, err
	}
	e.self = e.state.Source.Name()
	e.control = e.state.NewClient()
	if err := e.succeed(ctx); err != nil {
		return nil, err
	}
	if e.run, err = incarnation.Begin(filepath.Join(cfg.Dir, "run"), incarnation.Boot(), cfg.Logger); err != nil {
		return nil, err
	}
	if err := e.openUsage(); err != nil {
		return nil, err
	}
	if err := e.openPath(); err != nil {
		return nil, err
	}
	if cfg.Admin != "" {
		if e.admin, err = e.sockets.Listen("admin", cfg.Admin); err != nil {
			return nil, fmt.Errorf("listen for health and metrics: %w", err)
		}
	}
	if cfg.Pprof != "" {
		if e.pprof, err = e.sockets.Listen("pprof", cfg.Pprof); err != nil {
			return nil, fmt.Errorf("listen for profiles: %w", err)
		}
	}
	return e, nil
}

func (e *Edge) openUsage() (err error) {
	if e.evidence, err = evidence.Open(evidence.Config{Dir: filepath.Join(e.cfg.Dir, "evidence"), Budget: e.cfg.RelayRowsBytes, Keep: e.cfg.RelayRowsKeep, Beat: e.beat, Logger: e.log}); err != nil {
		return err
	}
	e.records.log = e.evidence
	if e.witness, err = witness.Open(witness.Config{Dir: filepath.Join(e.cfg.Dir, "evidence"), Zone: e.self.Zone, Key: e.state.TableSigningKey, Logger: e.log}); err != nil {
		return err
	}
	program := "bailiwick-edge " + e.cfg.Version
	if e.pseudo, err = pseudonym.Open(pseudonym.Config{Dir: filepath.Join(e.cfg.Dir, "detail"), Logger: e.log}); err != nil {
		return err
	}
	e.detail, err = detail.Open(detail.Config{Dir: filepath.Join(e.cfg.Dir, "detail"), Edge: e.self.Node, Budget: e.cfg.DetailBytes, Logger: e.log, Program: program})
	if err != nil {
		return err
	}
	e.spool, err = spool.Open(spool.Config{Dir: filepath.Join(e.cfg.Dir, "spool"), Edge: e.self.Node, Detail: switchedDetail{e}, Beat: e.beat.Between(50 * time.Millisecond), Logger: e.log, Program: program})
	if err != nil {
		return err
	}
	e.meter = linger.NewMeter(e.spool)
	e.ship, err = e.newShipper()
	return err
}

func (e *Edge) openPath() (err error) {
	e.follow, err = subscribe.New(subscribe.Config{Addrs: e.controlAddrs, HTTPClient: e.controlHTTP, Dir: filepath.Join(e.cfg.Dir, "table"),
		Edge: e.self.Node, Region: e.self.Region, Zone: e.self.Zone, SigningKey: e.state.TableSigningKey, Holder: e.tables,
		Status: e.status, Checkpoint: e.witness.Take, Rows: e.rows, OnWithdrawn: e.onWithdrawn, Enforce: e.cut, Updated: e.before.table,
		Incarnation: e.run.ID, Dead: e.run.Dead, Logger: e.log, Version: e.cfg.Version})
	if err != nil {
		return err
	}
	e.sentinel, err = sentinel.New(sentinel.Config{Tables: e.tables, Zone: e.self.Zone, Region: e.self.Region, Edge: e.self.Node, Logger: e.log})
	if err != nil {
		return err
	}
	networks := func() []netip.Prefix { return e.tables.Load().UpstreamNetworks() }
	if e.names, err = upstream.NewNames(upstream.NamesConfig{Allow: e.allow, Networks: networks, Refresh: e.cfg.UpstreamRefresh, Logger: e.log}); err != nil {
		return err
	}
	e.dialer = upstream.NewDialer(upstream.Config{Allow: e.allow, AllowForeign: e.foreign, Networks: networks, Permit: e.sentinel.Upstream, Certs: upstream.NewCerts(e.cfg.UpstreamCerts)})
	e.ups = proxy.NewUpstreams(proxy.UpstreamConfig{Dialer: e.dialer})
	if e.monitor, err = failover.New(failover.Config{Tables: e.tables, Prober: e.ups, Names: e.names, Left: e.ups.Left, Places: e.cfg.MaxInFlight, Logger: e.log}); err != nil {
		return err
	}
	e.grants, err = failover.NewGrants(failover.GrantsConfig{Requester: &requester{e: e}, Untold: e.untold, Tables: e.tables, Self: e.self,
		Incarnation: e.run.ID, Dead: e.run.Dead, Twin: e.twin, Logger: e.log})
	if err != nil {
		return err
	}
	e.relays, err = relay.NewClient(relay.ClientConfig{Identity: e.state.Source, Incarnation: e.run.ID, Tables: e.tables, Grants: e.grants, Evidence: &e.records, Sentinel: e.sentinel, Beat: e.beat, Logger: e.log})
	if err != nil {
		return err
	}
	var young time.Duration
	if e.took {
		young = quota.TakeoverWait
	}
	e.quotas, err = quota.New(quota.Config{Leader: e.newLessor(), Epoch: e.spool.Stats().Epoch, Pending: e.pendingEpochs, Wait: e.cfg.QuotaWait, Young: young, Beat: e.beat, Logger: e.log})
	if err != nil {
		return err
	}
	e.keep()
	if e.tokens, err = token.New(token.Config{Tables: e.tables, Client: e.dialer.Fetches(), Logger: e.log}); err != nil {
		return err
	}
	signer, err := attest.New(e.self.Zone, e.self.Region, e.state.Pepper)
	if err != nil {
		return err
	}
	e.proxy, err = proxy.New(proxy.Config{Region: e.self.Region, Tables: e.tables,
		Gate: &gate.Gate{Hasher: apikey.NewHasher(e.state.Pepper), Limits: limit.NewMap(), Tokens: e.tokens, Quotas: e.quotas},
		Beat: e.beat, Cache: e.cache, Monitor: e.monitor, Grants: e.grants, Relay: e.relays, Upstreams: e.ups, Meter: e.meter, Signer: signer, Traces: e.traces, Access: e.access, Pseudonyms: e.pseudo, Logger: e.log,
		TableAge: e.tableAge, OnSpoolError: e.cfg.OnSpoolError, MaxInFlight: e.cfg.MaxInFlight, MaxStreams: e.cfg.MaxStreams,
		UploadRate: e.cfg.UploadRate, UpstreamDrain: e.cfg.UpstreamDrain})
	if err != nil {
		return err
	}
	e.inbound, err = relay.NewServer(relay.ServerConfig{Identity: e.state.Source, Tables: e.tables, Leave: e.grants, Local: e.proxy, Evidence: &e.records, Sentinel: e.sentinel, Beat: e.beat, Logger: e.log})
	if err != nil {
		return err
	}
	e.servers = proxy.NewServers(proxy.ServersConfig{Handler: e.proxy, MaxConnections: e.cfg.MaxConnections, MaxPerAddress: e.cfg.MaxPerAddress, BusyPoll: e.cfg.BusyPoll, TLS: e.tls.TLSConfig(), NoH3: func() bool { return e.tables.Load().Off("http3") }, ResetKey: e.resetKey(), Logger: e.log})
	e.servers.HTTP.Handler = e.tls.HTTPHandler(e.proxy) // answers ACME's HTTP-01 challenges, when there are any
	e.observe.Attach(e.servers.HTTPS.Others)
	return nil
}

func (e *Edge) runAccessLog(ctx context.Context) error {
	if e.access == nil {
		<-ctx.Done()
		return nil
	}
	return e.access.Run(ctx)
}

// switchedDetail keeps rows one by one unless that is turned off. What it passes over is counted as lost detail.
type switchedDetail struct{ e *Edge }

func (d switchedDetail) Keep(epoch, seq, through uint64, rows *usage.Batch) {
	if !d.e.tables.Load().Off("detail") {
		d.e.detail.Keep(epoch, seq, through, rows)
	}
}

// openDoors listens for clients. Not before there is a whole table: a connection that nobody accepts hangs,
// while a refused one sends the client to the next edge at once.
func (e *Edge) openDoors() (err error) {
	if e.https, err = e.sockets.Listen("https", e.cfg.HTTPS); err != nil {
		return fmt.Errorf("listen for HTTPS: %w", err)
	}
	if e.cfg.HTTP != "" {
		if e.http, err = e.sockets.Listen("http", e.cfg.HTTP); err != nil {
			return fmt.Errorf("listen for HTTP: %w", err)
		}
	}
	packets, err := e.sockets.ListenPacket("h3", e.https.Addr().String())
	if err != nil {
		return fmt.Errorf("listen for HTTP/3: %w", err)
	}
	udp, ok := packets.(*net.UDPConn)
	if !ok {
		return fmt.Errorf("listen for HTTP/3: %T is no UDP socket", packets)
	}
	if e.h3, err = ferry.New(udp, e.before.marks...); err != nil {
		return fmt.Errorf("listen for HTTP/3: %w", err)
	}
	e.before.divert(e.h3)
	e.sockets.Forget()
	return nil
}

// serveRelays takes relays from other regions, likewise not before there is a table to judge them by.
func (e *Edge) serveRelays(ctx context.Context) error {
	l, err := e.sockets.Listen("relay", e.cfg.Relay)
	if err != nil {
		return fmt.Errorf("listen for relays: %w", err)
	}
	return e.inbound.Serve(ctx, l)
}

// tableAge is how long ago a control node last confirmed the table. Not known is for ever: a key that a plan
// lets live only so long without confirmation must not live on because its date was lost.
func (e *Edge) tableAge(now time.Time) time.Duration {
	fresh := e.follow.Fresh()
	if fresh.IsZero() {
		return math.MaxInt64
	}
	return now.Sub(fresh)
}

// cut ends what the table in force does not permit: relays, at both of this edge's ends of them, and those that go on in processes
// before this one. What requests come to is counted anew from here.
func (e *Edge) cut() {
	e.proxy.Turn()
	e.relays.Enforce()
	e.inbound.Enforce()
	e.tighten()
}

// ErrWithdrawn ends an edge that the node registry no longer holds.
var ErrWithdrawn = errors.New("this edge was removed from the node registry")

func (e *Edge) onWithdrawn(reason string) {
	select {
	case e.withdrawn <- reason:
	default:
	}
}

// Run serves until ctx ends or the edge is withdrawn. Parts stop in reverse: doors first, then what drains
// behind them, the shipper near the end so that the last rows still leave.
func (e *Edge) Run(ctx context.Context) error {
	parts := []lifecycle.Part{
		{Name: "evidence", Run: e.evidence.Run, Why: "relays record into it until the doors are shut"},
		{Name: "access log", Run: e.lasting(e.runAccessLog), Why: "it writes what requests leave behind, so it ends after them"},
		{Name: "traces", Run: e.lasting(e.runTraces), Why: "likewise"},
		{Name: "pseudonyms", Run: e.pseudo.Run, Why: "yesterday's key goes when its day is over"},
		{Name: "detail", Run: e.detail.Run, Why: "rows that are stored elsewhere go from here while the shipper works"},
		{Name: "ship", Run: e.ship.Run, Why: "takes the last block away, which the spool seals when it stops"},
		{Name: "spool", Run: e.spool.Run, Why: "requests count into it until the doors are shut"},
		{Name: "admin", Run: e.serveAdmin, Why: "says why the edge is not ready while the rest comes up"},
		{Name: "profiles", Run: e.servePprof, Why: "a start can be looked at too"},
		{Name: "identity", Run: e.control.Renewer(e.state.Source, e.log).Run, Why: "every connection to other nodes uses it"},
		{Name: "table", Run: e.follow.Run, Ready: e.follow.Ready(), Why: "no door opens before there is a whole table"},
		{Name: "certificates", Run: e.runTLS, Why: "HTTPS needs them"},
		{Name: "upstream names", Run: e.lasting(e.names.Run), Why: "requests never wait for a resolver where names are discovered"},
		{Name: "upstream health", Run: e.lasting(e.monitor.Run), Why: "requests choose by it"},
		{Name: "tokens", Run: e.tokens.Run, Why: "callers are known by what their issuers sign"},
		{Name: "quotas", Run: e.quotas.Run, Why: "requests take from its leases"},
		{Name: "process before", Run: e.endBefore, StopTimeout: 20 * time.Second, Why: "what goes on there takes of the leases and counts into the spool"},
		{Name: "grants", Run: e.grants.Run, Why: "relays need them"},
		{Name: "relays out", Run: e.lasting(e.relays.Run), Why: "requests leave through it"},
		{Name: "earlier runs", Run: e.bury, Why: "the zone gives back what they held"},
		{Name: "relays in", Run: e.lasting(e.serveRelays), Why: "other regions send here; drained with the doors, it tells them so until then"},
		{Name: "outlook", Run: e.observe.Run, Why: "DNS answers follow it"},
		{Name: "dns", Run: e.serveDNS, Why: "shut after the doors: meanwhile it names the other edges"},
		{Name: "answers", Run: e.lasting(e.proxy.Run), Why: "asks anew for answers that were given though stale"},
		{Name: "doors", Run: e.serve, StopTimeout: 15 * time.Second, Why: "last open, first shut, and relays with them"},
		{Name: "memory", Run: ebb.New(ebb.Config{Logger: e.log, Counts: e.crowds(), Beat: e.beat}).Run, Why: "gives back what a crowd behind the doors held"},
		{Name: "registry", Run: e.watchWithdrawal, Why: "a withdrawn edge shuts its doors at once"},
		{Name: "succession", Run: e.awaitSuccessor, Why: "offers the sockets once all of them are open"},
	}
	alive := e.counted(parts)
	err := lifecycle.Run(ctx, e.log, parts...)
	if errors.Is(err, handover.ErrTaken) {
		return e.giveUp(ctx, alive)
	}
	if err == nil {
		// Everything has returned, so nothing of this run goes on: the next one may say so, wherever it starts.
		err = e.run.End()
	}
	return err
}

func (e *Edge) watchWithdrawal(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return nil
	case reason := <-e.withdrawn:
		return fmt.Errorf("%w: %s", ErrWithdrawn, reason)
	}
}
