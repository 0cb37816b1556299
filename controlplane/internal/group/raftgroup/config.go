// Package raftgroup owns the embedded engine of group.Store, and the replicated
// Node that it and the ledger are built on; it alone imports hashicorp/raft.
//
// It never resolves an address, checks a certificate or decides who may be a
// member: it dials node names through the Stream it is given. Everything a node
// has acknowledged survives a crash: log, term and vote are fsynced before they
// count, snapshots are verified before a log entry is dropped. A log whose
// records do not match their checksums is never read past: the node stops.
// All methods of Node and Store may be called from any goroutine at once.
package raftgroup

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"slices"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
)

// Timing is how patient the members of a group are with each other. All members
// of a group use the same.
type Timing struct {
	Heartbeat time.Duration // a follower that hears nothing this long seeks votes
	Election  time.Duration // a candidate that has not won this long tries again
	Lease     time.Duration // a leader that has not heard a quorum this long steps down; at most Heartbeat
	Commit    time.Duration // how long a follower may learn late that an entry is committed
}

// The three timings in use. Global is what Consul's author advised for a group
// stretched over continents (dependencies.md §1.1).
func Local() Timing {
	return Timing{200 * time.Millisecond, 200 * time.Millisecond, 100 * time.Millisecond, 10 * time.Millisecond}
}
func Regional() Timing {
	return Timing{time.Second, time.Second, 500 * time.Millisecond, 50 * time.Millisecond}
}
func Global() Timing {
	return Timing{5 * time.Second, 5 * time.Second, 2500 * time.Millisecond, 100 * time.Millisecond}
}

// Stream carries the group's connections. Whoever supplies it resolves names and
// has verified, in both directions, that the peer's certificate says its name
// and that it is a member of this group.
type Stream interface {
	Dial(ctx context.Context, node string) (net.Conn, error)
	Accept() (net.Conn, error)
	Close() error
}

// Forwarder carries a request to the door (HandlePropose, HandleReadIndex,
// Status) of another node of the group. One hop: the door never forwards again.
type Forwarder interface {
	Propose(ctx context.Context, node, group string, cmd []byte) ([]byte, error)
	ReadIndex(ctx context.Context, node, group string) (uint64, error)
	Describe(ctx context.Context, node, group string) (Status, error)
}

// Machine is the state that the group replicates.
//
// Apply, Snapshot and Restore are called from one goroutine, never at once; the
// function that Snapshot returns runs beside later Applies; Applied is called
// from any goroutine. Apply must read nothing but its arguments and the state:
// no clock, randomness, map order or environment.
type Machine interface {
	// Apply makes one committed command part of the state and returns its
	// result. at is the leader's stamp and never decreases. The same cmd may
	// arrive twice, when a proposer retried after an unknown outcome: the
	// Machine must recognise it (by an id inside) and return the first result.
	// An error means that this node cannot go on (unknown command version, disk
	// error): it is fenced and stops. It never means that a command is refused:
	// a refusal is a result.
	Apply(index uint64, at time.Time, cmd []byte) ([]byte, error)
	// Snapshot captures the state at once; write streams it later; release is
	// called in the end whether or not write was. A Machine that keeps its own
	// files must have them synced as far as the captured state when write
	// returns: log entries up to it are dropped afterwards.
	Snapshot() (write func(io.Writer) error, release func(), err error)
	// Restore replaces the state by what write wrote. It must read r to its end,
	// where checksum and count are verified, before it replaces anything.
	Restore(r io.Reader) error
	// Applied is the index of the last Apply that is part of the state, also
	// after a restart. The node skips entries and snapshots at or below it. A
	// Machine in memory starts at 0.
	Applied() uint64
}

// Checker is an optional part of a Machine: the leader calls Check before it
// proposes cmd, so that bytes no Machine can apply never reach a log, where they
// would stop every node. Called from any goroutine.
type Checker interface {
	Check(cmd []byte) error
}

// Config describes one node's part in one group.
type Config struct {
	Group string // required; also the Store's name
	Node  string // required; this node's name
	Dir   string // required; of this group alone

	// Voters and Nonvoters are the group's members at its birth: the same lists
	// on every node. Every voter bootstraps with them if it holds no state; a
	// node that is in neither has a part only if its directory says so.
	Voters    []string // required
	Nonvoters []string

	Timing Timing // zero: Regional
	// Listen opens the group's connections under a name that peers must offer
	// too: the group's, with the incarnation after a recovery. Required, like
	// Forward, unless this node is the only member.
	Listen  func(wire string) Stream
	Forward Forwarder
	Version string // of the program; the others are told
	Logger  *slog.Logger

	SnapshotThreshold uint64        // log entries between snapshots; 0: 65,536
	SnapshotInterval  time.Duration // how often that is looked at; 0: 2 min
	TrailingLogs      uint64        // entries kept behind a snapshot; 0: 131,072
	StallLimit        time.Duration // a disk write lasting longer stops the node; 0: 5 s
	ProbeAfter        time.Duration // a leader that wrote nothing for so long writes an empty entry, or a hung disk would go unnoticed; 0: 1 s
	CheckEvery        uint64        // revisions between hashes of a Store's state, which nodes compare, fewer where it is large and they come quickly; 0: 1,000
	LookEvery         time.Duration // between looks at the other members; 0: 5 s
	WatchWindow       int           // events remembered for watches; 0: group.RememberedEvents

	// OnFatal is called once, after the node has been fenced, when it can no
	// longer take part: a stalled or failed disk, corruption, an unknown command.
	// The program must end: a thread stuck in a disk write cannot be recalled.
	OnFatal func(error)

	knows    uint32          // tests: another newest version of the store's commands
	wrapDisk func(disk) disk // tests put faults between raft and the disk
}

// Validate says what is missing or contradictory.
func (c Config) Validate() error {
	switch {
	case c.Group == "":
		return fmt.Errorf("group config: Group is required")
	case c.Node == "":
		return fmt.Errorf("group %s: Node is required", c.Group)
	case c.Dir == "":
		return fmt.Errorf("group %s: Dir is required", c.Group)
	case len(c.Voters) == 0:
		return fmt.Errorf("group %s: Voters is required", c.Group)
	}
	members := slices.Concat(c.Voters, c.Nonvoters)
	seen := make(map[string]bool, len(members))
	for _, m := range members {
		if m == "" || seen[m] {
			return fmt.Errorf("group %s: member %q is blank or listed twice", c.Group, m)
		}
		seen[m] = true
	}
	if !c.alone() && (c.Listen == nil || c.Forward == nil) {
		return fmt.Errorf("group %s: Listen and Forward are required for a group of %d", c.Group, len(members))
	}
	t := c.withDefaults().Timing
	if t.Lease > t.Heartbeat || t.Heartbeat > t.Election || t.Lease < 5*time.Millisecond || t.Commit < time.Millisecond {
		return fmt.Errorf("group %s: timing %v: lease ≤ heartbeat ≤ election is required", c.Group, t)
	}
	return nil
}

func (c Config) alone() bool {
	return len(c.Voters) == 1 && c.Voters[0] == c.Node && len(c.Nonvoters) == 0
}

// born says whether the node is a member since the group's birth.
func (c Config) born() bool {
	return slices.Contains(c.Voters, c.Node) || slices.Contains(c.Nonvoters, c.Node)
}

func (c Config) withDefaults() Config {
	def := func(v *uint64, d uint64) {
		if *v == 0 {
			*v = d
		}
	}
	if c.Timing == (Timing{}) {
		c.Timing = Regional()
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.SnapshotInterval == 0 {
		c.SnapshotInterval = 2 * time.Minute
	}
	if c.StallLimit == 0 {
		c.StallLimit = 5 * time.Second
	}
	if c.ProbeAfter == 0 {
		c.ProbeAfter = time.Second
	}
	if c.WatchWindow == 0 {
		c.WatchWindow = group.RememberedEvents
	}
	if c.LookEvery == 0 {
		c.LookEvery = 5 * time.Second
	}
	def(&c.CheckEvery, 1000)
	def(&c.SnapshotThreshold, 65_536)
	def(&c.TrailingLogs, 131_072)
	c.Logger = c.Logger.With("group", c.Group)
	return c
}

func (c Config) raftConfig(server string, notify chan<- bool) *raft.Config {
	rc := raft.DefaultConfig()
	rc.LocalID = raft.ServerID(server)
	rc.HeartbeatTimeout = c.Timing.Heartbeat
	rc.ElectionTimeout = c.Timing.Election
	rc.LeaderLeaseTimeout = c.Timing.Lease
	rc.CommitTimeout = c.Timing.Commit
	rc.SnapshotThreshold = c.SnapshotThreshold
	rc.SnapshotInterval = c.SnapshotInterval
	rc.TrailingLogs = c.TrailingLogs
	rc.NotifyCh = notify
	rc.LogLevel = "INFO"
	rc.Logger = newHclog(c.Logger)
	rc.NoLegacyTelemetry = true
	return rc
}

// servers is the configuration every voter bootstraps with.
func (c Config) servers() raft.Configuration {
	var out raft.Configuration
	add := func(names []string, s raft.ServerSuffrage) {
		for _, n := range slices.Sorted(slices.Values(names)) {
			out.Servers = append(out.Servers, raft.Server{Suffrage: s, ID: raft.ServerID(n), Address: raft.ServerAddress(n)})
		}
	}
	add(c.Voters, raft.Voter)
	add(c.Nonvoters, raft.Nonvoter)
	return out
}
