package raftgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"time"

	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// Status is what one node says of its part in a group.
type Status struct {
	Node        string
	Server      string
	Incarnation uint64
	Version     string // of the program
	State       string // as in Stats
	Leader      string
	Term        uint64
	FirstLog    uint64
	LastLog     uint64
	Applied     uint64
	Snapshot    uint64
	Commands    uint32 // the newest version of the group's commands that the node applies
	Checkpoints []Checkpoint
	ClockMs     int64         // the node's clock when it answered, Unix milliseconds; 0: it does not say
	Ahead       time.Duration // of whose clock that is, as whoever asked saw it; within lookLimit/2
}

// Reasons for which a node stops itself after a look at the others.
const (
	ReasonSuperseded = "GROUP_RECOVERED" // kind Conflict
)

// lookLimit is how long a look at another member may take.
const lookLimit = time.Second

// Status is cheap but not free: a read of the log file.
func (n *Node) Status() Status {
	s := n.Stats()
	var made []Checkpoint
	var newest uint32
	if v, ok := n.machine.(Versioned); ok {
		_, newest = v.Commands()
	}
	if m, ok := n.machine.(*memory); ok {
		made = m.checks.newest()
	}
	return Status{ClockMs: time.Now().UnixMilli(), Checkpoints: made, Commands: newest, Node: n.cfg.Node, Server: n.member.Server, Incarnation: n.member.Incarnation, Version: n.cfg.Version,
		State: s.State, Leader: s.Leader, Term: s.Term, FirstLog: s.FirstLog, LastLog: s.LastLog, Applied: s.Applied, Snapshot: s.Snapshot}
}

// Member is what this node is in the group.
func (n *Node) Member() Member { return n.member }

// others are the names of all members that this node knows of, itself left out: those of the configuration, and
// those of the birth, which a node that comes back after a recovery has to ask.
func (n *Node) others() []string {
	names := slices.Concat(n.cfg.Voters, n.cfg.Nonvoters)
	for _, m := range n.Members() {
		names = append(names, m.Node)
	}
	slices.Sort(names)
	names = slices.Compact(names)
	return slices.DeleteFunc(names, func(name string) bool { return name == n.cfg.Node })
}

// Members is the group's configuration as this node knows it.
func (n *Node) Members() []GroupMember {
	return members(n.raft.GetConfiguration().Configuration())
}

// Around asks every other member for its status; who does not answer is left out.
func (n *Node) Around(ctx context.Context) map[string]Status {
	var mu sync.Mutex // covers out
	out := make(map[string]Status)
	var wg sync.WaitGroup
	for _, name := range n.others() {
		wg.Go(func() {
			s, err := n.ask(ctx, name)
			if err != nil {
				return
			}
			mu.Lock()
			defer mu.Unlock()
			out[name] = s
		})
	}
	wg.Wait()
	return out
}

func (n *Node) ask(ctx context.Context, name string) (Status, error) {
	ctx, cancel := context.WithTimeout(ctx, lookLimit)
	defer cancel()
	asked := time.Now()
	s, err := n.cfg.Forward.Describe(ctx, name, n.cfg.Group)
	s.Ahead = time.UnixMilli(s.ClockMs).Sub(asked.Add(time.Since(asked) / 2).Round(0))
	return s, err
}

// look stops this node if the group went on without it: a disk that comes back after a recovery must not vote, nor
// make a quorum with others of its kind. A node that reaches nobody cannot know; when it does, it stops.
func (n *Node) look(ctx context.Context, first bool) {
	around := n.Around(ctx)
	if first {
		n.refuseSkew(around)
	}
	for name, s := range around {
		if s.Incarnation > n.member.Incarnation && !n.votes() {
			n.leaveBehind(s.Incarnation)
			return
		}
		if s.Incarnation > n.member.Incarnation {
			n.fail(fault.New(fault.Conflict, ReasonSuperseded,
				"the group was recovered or restored at %s, node %s says, and this node's directory %s is of before: it has no part in the group any more; let the node join anew (bailiwick-control join), which sets the directory aside",
				time.Unix(int64(s.Incarnation), 0).UTC().Format(time.RFC3339), name, n.cfg.Dir))
			return
		}
	}
	n.levels.learn(around)
	n.compare(around)
}

func (n *Node) votes() bool {
	return slices.ContainsFunc(n.Members(), func(m GroupMember) bool { return m.Server == n.member.Server && m.Voter })
}

// supersededMark, in a group's directory, holds the incarnation in which the node begins anew when it next starts.
const supersededMark = "superseded"

// leaveBehind is for a member without a vote: its copy bears no authority, and what rests on it, the control plane of
// another zone for the catalog, goes on with it as it is. It begins anew, empty, when the node next starts.
func (n *Node) leaveBehind(incarnation uint64) {
	if n.fence.up() {
		return
	}
	n.left.Store(true)
	n.fence.raise()
	err := durable.WriteFileAtomic(durable.OS(), filepath.Join(n.cfg.Dir, supersededMark), strconv.AppendUint(nil, incarnation, 10), durable.FilePerm)
	n.cfg.Logger.Error("the group was recovered: this node keeps the copy of before until it is restarted, and then begins anew", "err", err)
}

// LeftBehind says that the group was recovered and that this node goes on with its copy of before.
func (n *Node) LeftBehind() bool { return n.left.Load() }

// beginAnew does what leaveBehind left to do: the copy of before is set aside.
func (c Config) beginAnew() error {
	text, err := durable.ReadFile(durable.OS(), filepath.Join(c.Dir, supersededMark), 32)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	incarnation, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil {
		return fmt.Errorf("read %s: %w", supersededMark, err)
	}
	in, err := Inspect(c.Dir, c.Group)
	if err != nil {
		return err
	}
	server := in.Member.Server
	if in.Born {
		server = c.Node
	}
	if err := os.Rename(c.Dir, fmt.Sprintf("%s.aside-%d", c.Dir, incarnation)); err != nil {
		return err
	}
	return Join(c.Dir, Member{Server: server, Incarnation: incarnation, Since: time.Unix(int64(incarnation), 0).UTC()})
}

// lookAround looks once, then lets the node take part, then looks from time to time.
func (n *Node) lookAround(ctx context.Context) {
	if n.fence == nil {
		return
	}
	n.look(ctx, true)
	n.fence.lower()
	tick := time.NewTicker(n.cfg.LookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-n.halted:
			return
		case <-tick.C:
			n.look(ctx, false)
		}
	}
}
