// Package subscribe owns how an edge comes by its policy table: the stream from a control node of its own
// zone, the checks on what arrives, and the copy on disk from which the edge serves while the control plane
// is away, restarts included.
//
// It never decides a request and never serves less than it had: what does not check out is refused with a
// reason (NACK) and the last good table stays. An update is on disk, fsynced, before it is in force and acked,
// so what a Client applied never goes backwards within an epoch (invariant 5). Every byte of the files is
// covered by a checksum and every message in them by the zone's signature; files that do not check out are set
// aside and the edge starts without a table. A Client's methods may be called at once; Run once.
package subscribe

import (
	"context"
	"crypto/ed25519"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/durable"
	"bailiwick/shared/revision"
)

// Config of a Client.
type Config struct {
	// Addrs are the control nodes of the own zone, host:port of their peer ports. Asked before each round of
	// attempts. An address with a scheme is taken as a URL. Required.
	Addrs func() []string
	// HTTPClient speaks HTTP/2 over mutual TLS with the node at addr, without a Timeout. Required.
	HTTPClient func(addr string) *http.Client
	Dir        string            // required: the table directory
	Edge       string            // required, as are the next two: whose table it is
	Region     string            //
	Zone       string            //
	SigningKey ed25519.PublicKey // required: the zone's
	Holder     *policy.Holder    // required: where the table is put in force

	Incarnation string          // which run of the edge this is; "": a test's
	Dead        func() []string // earlier runs that have certainly ended; nil: none

	Status     func() *syncv1.Status                                                                                // what to report; nil: nothing
	Rows       func(ctx context.Context, wanted *syncv1.RowsWanted, tell func(*syncv1.TellRowsRequest) error) error // hands out rows of relays; nil: this edge has none
	Checkpoint func(from int64, note []byte, proof [][]byte) error                                                  // takes heads of the zone's log, and reports what it refuses itself; nil: they are not looked at
	// Enforce ends at once what the table just put in force forbids. It is called before the table is acknowledged:
	// the zone takes an acknowledgement for the word that no byte of a closed pair moves any more. nil: nothing.
	Enforce     func()
	Updated     func(parts []*syncv1.Signed) // what was just put in force, for a process that this one has taken the place of; it waits for nothing. nil: nothing
	OnWithdrawn func(reason string)          // called after the table is out of force and off the disk; nil: nothing
	Logger      *slog.Logger                 // nil: slog.Default()
	Version     string                       // of the program; "": "dev"
	FS          durable.FS                   // nil: durable.OS()
	Now         func() time.Time             // nil: time.Now

	FirstFrame  time.Duration // a stream must speak within; 0: 5 s
	Silence     time.Duration // and never be silent for longer; 0: 15 s
	StatusEvery time.Duration // between reports; 0: 5 s
	BackoffMin  time.Duration // upper end of the first wait, which is random from 0; 0: 100 ms
	BackoffMax  time.Duration // and of the longest; 0: 5 s
	RenewAfter  time.Duration // a stream is renewed, so that load spreads again; 0: 1 h
	MaxBytes    int64         // of one update; 0: 1 GiB
	LogRecords  int           // updates in the log before a new base is asked for; 0: 1,000
}

// Validate fills in defaults.
func (c Config) Validate() (Config, error) {
	switch {
	case c.Addrs == nil || c.HTTPClient == nil || c.Holder == nil:
		return c, errors.New("subscribe config: Addrs, HTTPClient and Holder are required")
	case c.Dir == "" || c.Edge == "" || c.Region == "" || c.Zone == "":
		return c, errors.New("subscribe config: Dir, Edge, Region and Zone are required")
	case len(c.SigningKey) != ed25519.PublicKeySize:
		return c, errors.New("subscribe config: the signing key is no Ed25519 public key")
	}
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	if c.Version == "" {
		c.Version = "dev"
	}
	if c.FS == nil {
		c.FS = durable.OS()
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&c.FirstFrame, 5*time.Second)
	def(&c.Silence, 15*time.Second)
	def(&c.StatusEvery, 5*time.Second)
	def(&c.BackoffMin, 100*time.Millisecond)
	def(&c.BackoffMax, 5*time.Second)
	def(&c.RenewAfter, time.Hour)
	if c.MaxBytes == 0 {
		c.MaxBytes = 1 << 30
	}
	if c.LogRecords == 0 {
		c.LogRecords = 1000
	}
	return c, nil
}

// Stats are counts since the start, for metrics.
type Stats struct {
	Streams   atomic.Int64 // opened
	Connected atomic.Int64 // 1 while a stream has spoken
	Snapshots atomic.Int64 // applied
	Deltas    atomic.Int64 // applied
	Resumed   atomic.Int64 // snapshots that went on where a stream had broken them off
	Nacks     atomic.Int64
	Refused   atomic.Int64 // files of the table that did not check out
}

// Client follows the table of one edge.
type Client struct {
	cfg          Config
	stats        Stats
	ready        chan struct{}
	fresh        atomic.Pointer[time.Time]
	objectsSince atomic.Pointer[time.Time] // when other objects of the catalog came into force; nil: not since the start

	// All below belongs to the goroutine of Run.
	disk     *disk
	table    *policy.Table
	floor    [2]revision.Revision // catalog and zone position below which nothing is taken within an epoch
	staged   *staged              // the parts of an update so far; of a snapshot they outlive the stream
	needBase bool                 // what is in force is not on disk: only a snapshot brings them together
	isReady  bool
	isGone   bool // withdrawn, and told so
}

// New makes a Client; Run starts it.
func New(cfg Config) (*Client, error) {
	cfg, err := cfg.Validate()
	if err != nil {
		return nil, err
	}
	c := &Client{cfg: cfg, ready: make(chan struct{})}
	c.disk = &disk{fs: cfg.FS, dir: cfg.Dir, log: cfg.Logger, stats: &c.stats, maxRecords: cfg.LogRecords,
		program: "bailiwick-edge " + cfg.Version}
	return c, nil
}

// Ready closes once a full table is in force, from disk or from a control node. After a withdrawal it stays
// closed while Holder.Load answers nil.
func (c *Client) Ready() <-chan struct{} { return c.ready }

// Stats are live counters.
func (c *Client) Stats() *Stats { return &c.stats }

// Fresh is when a control node last confirmed the table in force, to the minute across a restart; zero if never.
// Keys of a plan with max_key_staleness end that long after it.
func (c *Client) Fresh() time.Time {
	if t := c.fresh.Load(); t != nil {
		return *t
	}
	return time.Time{}
}

func (c *Client) confirmed() {
	c.Confirmed(c.cfg.Now())
}

// Confirmed is when a control node confirmed the table in force, on the word of the process that took this one's place.
func (c *Client) Confirmed(at time.Time) { c.fresh.Store(&at) }

// Run loads the table from disk and then follows control nodes until ctx ends. It returns an error only if a
// newer program wrote the files.
func (c *Client) Run(ctx context.Context) error {
	if err := c.load(); err != nil {
		return err
	}
	defer c.disk.close()
	defer func() { c.staged = nil }() // for Take
	for round := 0; ; round++ {
		addrs := append([]string(nil), c.cfg.Addrs()...)
		rand.Shuffle(len(addrs), func(i, j int) { addrs[i], addrs[j] = addrs[j], addrs[i] })
		for _, addr := range addrs {
			heard, err := c.session(ctx, addr)
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, errRenew) {
				round = 0
				continue
			}
			c.cfg.Logger.Info("policy stream ended", "addr", addr, "heard", heard, "error", err)
			if heard {
				round = 0
			}
			// Within a round the next node is tried soon: it is another one.
			if !c.pause(ctx, min(c.cfg.BackoffMin<<min(round, 16), c.cfg.BackoffMax)) {
				return nil
			}
		}
		if len(addrs) == 0 && !c.pause(ctx, c.cfg.BackoffMax) {
			return nil
		}
	}
}

// pause waits a random part of limit (full jitter: an outage must not end in step for all edges).
func (c *Client) pause(ctx context.Context, limit time.Duration) bool {
	t := time.NewTimer(rand.N(limit) + time.Millisecond)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (c *Client) load() error {
	if err := c.cfg.FS.MkdirAll(c.cfg.Dir, durable.DirPerm); err != nil {
		return err
	}
	t, m, err := c.disk.load(c.open)
	if err != nil {
		return err
	}
	c.floor = [2]revision.Revision{m.Catalog, m.Zone}
	if m.Confirmed != 0 {
		at := time.Unix(m.Confirmed, 0)
		c.fresh.Store(&at)
	}
	if t == nil {
		return nil
	}
	c.cfg.Logger.Info("table loaded from disk", "catalog", t.Catalog().String(), "zone", t.Zone().String())
	c.put(t)
	return nil
}

// put brings a table in force.
func (c *Client) put(t *policy.Table) {
	if c.table != nil && c.table.Catalog().Sum != t.Catalog().Sum {
		now := c.cfg.Now()
		c.objectsSince.Store(&now)
	}
	c.table, c.isGone = t, false
	c.floor = [2]revision.Revision{t.Catalog(), t.Zone()}
	c.cfg.Holder.Swap(t)
	if !c.isReady {
		c.isReady = true
		close(c.ready)
	}
}

// withdrawn takes everything away: the zone has said that this edge is none of its own any more.
func (c *Client) withdrawn(reason string) {
	if c.isGone {
		return
	}
	c.isGone = true
	c.cfg.Logger.Error("edge is withdrawn by its zone, the table is dropped", "reason", reason)
	c.cfg.Holder.Swap(nil)
	c.table, c.staged, c.needBase = nil, nil, false
	if err := c.disk.erase(c.floor); err != nil {
		c.cfg.Logger.Error("table files stay on disk", "error", err)
	}
	if c.cfg.OnWithdrawn != nil {
		c.cfg.OnWithdrawn(reason)
	}
}
