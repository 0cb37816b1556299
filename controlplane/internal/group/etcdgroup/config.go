// Package etcdgroup owns the engine of group.Store that keeps a group below a
// prefix of an external etcd cluster; it alone imports the etcd client.
//
// It never runs etcd, compacts it, backs it up or restores it: that is its
// operator's. Everything acknowledged is in etcd, committed by its quorum; a
// node keeps a copy in memory, rebuilt at start. All methods of Store may be
// called from any goroutine at once. DESIGN.md says what lies below the prefix.
package etcdgroup

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"strings"
	"time"
	"unicode/utf8"

	"bailiwick/controlplane/internal/group"
)

// What this engine needs of etcd. Both are etcd's defaults.
const (
	NeedTxnOps       = 128         // --max-txn-ops
	NeedRequestBytes = 1536 * 1024 // --max-request-bytes
)

// Config describes one node's part in one group.
type Config struct {
	Name string // required; of the group
	Node string // required; this node's name, unique in the group

	Endpoints []string // required; of one cluster, as etcd's client takes them: https://host:2379
	Prefix    string   // required; of this group alone, ending with "/"

	TLS                *tls.Config // nil: plain text, for loopback only
	Username, Password string      // etcd's own, if it asks for them

	// Claim says whose the prefix is; nil: nobody asks.
	Claim *Claim

	// Observer: the node reads and writes as the others do, and never leads.
	Observer bool
	// LeaseTTL is how long leadership outlives a leader that died, in whole
	// seconds; etcd raises less than one and a half of its election timeouts to
	// that. 0: 5 s.
	LeaseTTL time.Duration
	// LookEvery is how often a node compares its copy with etcd although no
	// watch told it of anything. 0: 5 s.
	LookEvery time.Duration
	// WatchWindow is how many events are remembered for watches; 0: group.RememberedEvents.
	WatchWindow int

	// Seen is a file in which this node remembers how far it has seen the group,
	// so that an etcd that was set back while it was stopped does not go unnoticed. "": it relies on what etcd
	// itself says of its past.
	Seen string
	// ClockAgrees says whether most nodes' clocks say what this one's does: it is asked where the group's time would leap by
	// more than has passed (30 s). nil: this node's clock is believed.
	ClockAgrees func() bool
	// Restored is asked what a new epoch begins with, after etcd was found to
	// have been set back. Whatever it returns is committed together with the
	// new epoch; an error is logged, and it is asked again. Nil: with nothing.
	Restored func(Restored) ([]group.Op, error)

	Logger *slog.Logger
	// OnFatal is called once when this node can no longer take part: data of a
	// newer program, another group's prefix, limits of etcd that are too low.
	OnFatal func(error)
}

// Restored says how it was noticed that etcd does not hold what it held.
type Restored struct {
	Why    string         // for people
	Seen   group.Revision // the newest this node knows of, zero if it was just started
	Found  group.Revision // what etcd holds
	Opened group.Revision // the epoch about to begin
}

// Validate says what is missing or contradictory.
func (c Config) Validate() error {
	switch {
	case c.Name == "":
		return fmt.Errorf("group config: Name is required")
	case c.Node == "":
		return fmt.Errorf("group %s: Node is required", c.Name)
	case len(c.Endpoints) == 0:
		return fmt.Errorf("group %s: Endpoints of etcd are required", c.Name)
	case c.Prefix == "" || !strings.HasSuffix(c.Prefix, "/") || strings.IndexByte(c.Prefix, 0) >= 0 || !utf8.ValidString(c.Prefix):
		return fmt.Errorf("group %s: etcd prefix %q: text that ends with / is required", c.Name, c.Prefix)
	case len(c.Prefix) > 256:
		return fmt.Errorf("group %s: the etcd prefix holds %d bytes, at most 256 are allowed", c.Name, len(c.Prefix))
	case (c.Username == "") != (c.Password == ""):
		return fmt.Errorf("group %s: Username and Password of etcd come together", c.Name)
	case c.LeaseTTL < 0 || c.LeaseTTL > 0 && c.LeaseTTL < time.Second || c.LeaseTTL > time.Minute:
		return fmt.Errorf("group %s: lease %s: 1s to 1m are allowed", c.Name, c.LeaseTTL)
	case c.LookEvery < 0 || c.WatchWindow < 0:
		return fmt.Errorf("group %s: LookEvery and WatchWindow must not be negative", c.Name)
	}
	if l := c.Claim; l != nil && (l.Key == "" || strings.HasPrefix(l.Key, c.Prefix) || len(l.Value) == 0 || l.Judge == nil) {
		return fmt.Errorf("group %s: a claim needs a Key beside the prefix, a Value and a Judge", c.Name)
	}
	for _, e := range c.Endpoints {
		scheme, rest, ok := strings.Cut(e, "://")
		switch {
		case e == "" || ok && rest == "":
			return fmt.Errorf("group %s: etcd endpoint %q is blank", c.Name, e)
		case c.TLS == nil && (scheme == "https" || scheme == "unixs"):
			return fmt.Errorf("group %s: etcd endpoint %s asks for TLS, and none is configured", c.Name, e)
		case c.TLS != nil && (scheme == "http" || scheme == "unix"):
			return fmt.Errorf("group %s: etcd endpoint %s is plain text although TLS is configured", c.Name, e)
		}
	}
	return nil
}

func (c Config) withDefaults() Config {
	if c.LeaseTTL == 0 {
		c.LeaseTTL = 5 * time.Second
	}
	if c.LookEvery == 0 {
		c.LookEvery = 5 * time.Second
	}
	if c.WatchWindow == 0 {
		c.WatchWindow = group.RememberedEvents
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Logger = c.Logger.With("group", c.Name)
	return c
}
