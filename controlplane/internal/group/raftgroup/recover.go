package raftgroup

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/hashicorp/raft"

	"bailiwick/controlplane/internal/group"
	"bailiwick/shared/fault"
)

// Inspection is what a stopped node's directory of one group holds. Two nodes of
// one incarnation compare by (LastTerm, Last): the greater has every entry that
// the other was ever told is committed.
type Inspection struct {
	Group  string
	Member Member
	Born   bool // no member record: a member since the group's birth, if the kit lists it

	Term     uint64 // the highest it knows
	First    uint64 // entries of the log; 0: none
	Last     uint64
	LastTerm uint64 // of the last entry
	Commit   uint64 // known to be committed; more may be
	Bytes    int64  // of the log file

	Members   []GroupMember // as the log's end says; committed or not
	Snapshots []SnapshotInfo
}

// GroupMember is one member of a group's configuration.
type GroupMember struct {
	Server string
	Node   string
	Voter  bool
}

// SnapshotInfo is one snapshot, and what is wrong with it.
type SnapshotInfo struct {
	ID    string
	Index uint64
	Term  uint64
	Bytes int64
	Err   error
}

// Inspect proves the files in dir and says what they hold. It changes nothing,
// and is refused while a node runs on them.
func Inspect(dir, groupName string) (Inspection, error) {
	in := Inspection{Group: groupName}
	path := filepath.Join(dir, "raft.db")
	fi, err := os.Stat(path)
	if err != nil {
		return in, fmt.Errorf("inspect group %s: %w", groupName, err)
	}
	in.Bytes = fi.Size()
	if err := proveFile(path); err != nil {
		return in, fmt.Errorf("inspect group %s: %w", groupName, err)
	}
	db, err := openBolt(path, true)
	if err != nil {
		return in, fmt.Errorf("inspect group %s: %w", groupName, err)
	}
	defer db.Close()
	return in, in.read(&boltDisk{db: db, path: path}, dir)
}

// Unused says whether no process holds a group's directory, which need not exist or be sound: for whoever is about to
// move it. A process goes on in a directory that was moved away under it.
func Unused(dir string) error {
	f, err := os.OpenFile(filepath.Join(dir, "raft.db"), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer f.Close() // and with it the lock
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); errors.Is(err, syscall.EWOULDBLOCK) {
		return fault.New(fault.Conflict, "NODE_RUNS", "a process holds %s: stop the node first", dir)
	} else if err != nil {
		return fmt.Errorf("see whether a process holds %s: %w", dir, err)
	}
	return nil
}

func (in *Inspection) read(d *boltDisk, dir string) (err error) {
	joined := false
	if in.Member, joined, err = d.Member(); err != nil {
		return err
	}
	in.Born = !joined
	for _, v := range []struct {
		to   *uint64
		read func() (uint64, error)
	}{
		{&in.Term, func() (uint64, error) {
			term, err := d.GetUint64(termKey)
			if err == errNotFound {
				return 0, nil
			}
			return term, err
		}},
		{&in.First, d.FirstIndex}, {&in.Last, d.LastIndex}, {&in.Commit, d.GetCommitIndex},
	} {
		if *v.to, err = v.read(); err != nil {
			return err
		}
	}
	if err := in.readSnapshots(dir); err != nil {
		return err
	}
	var l raft.Log
	for i := in.First; i > 0 && i <= in.Last; i++ {
		if err := d.GetLog(i, &l); err != nil {
			return err
		}
		if l.Type == raft.LogConfiguration {
			in.Members = members(raft.DecodeConfiguration(l.Data))
		}
	}
	in.LastTerm = l.Term
	for _, s := range in.Snapshots {
		if s.Err != nil {
			continue
		}
		if s.Index > in.Last {
			in.LastTerm = max(in.LastTerm, s.Term)
		}
		in.Commit = max(in.Commit, s.Index)
	}
	return nil
}

// settle counts what a group's only voter has in its log as committed: it is all there is to a majority, whatever the node had
// noted of it by the time it stopped, and nobody else has led since without its vote.
func (in *Inspection) settle(node string) {
	self, voters := in.Member.Server, []string(nil)
	if in.Born {
		self = node
	}
	for _, m := range in.Members {
		if m.Voter {
			voters = append(voters, m.Server)
		}
	}
	if slices.Equal(voters, []string{self}) {
		in.Commit = max(in.Commit, in.Last)
	}
}

func (in *Inspection) readSnapshots(dir string) error {
	if _, err := os.Stat(filepath.Join(dir, "snapshots")); os.IsNotExist(err) {
		return nil
	}
	snaps, err := openSnapshots(dir, in.Group, newHclog(slog.New(slog.DiscardHandler)), func(error) {})
	if err != nil {
		return err
	}
	metas, err := snaps.List()
	if err != nil {
		return err
	}
	for i, m := range metas {
		s := SnapshotInfo{ID: m.ID, Index: m.Index, Term: m.Term, Bytes: m.Size, Err: snaps.verify(m.ID)}
		in.Snapshots = append(in.Snapshots, s)
		if i == 0 {
			in.Members = members(m.Configuration)
		}
	}
	return nil
}

func members(c raft.Configuration) (out []GroupMember) {
	for _, s := range c.Servers {
		out = append(out, GroupMember{Server: string(s.ID), Node: string(s.Address), Voter: s.Suffrage == raft.Voter})
	}
	slices.SortFunc(out, func(a, b GroupMember) int { return cmp.Compare(a.Server, b.Server) })
	return out
}

// Recovered is what Recover made of a group.
type Recovered struct {
	Before      Inspection
	Incarnation uint64
	Term, Last  uint64 // of the log now
	Promoted    uint64 // entries that count as committed now and were not known to be
}

// Recover makes the stopped node in cfg.Dir the only member of its group, in a
// new incarnation: for a group that has lost its quorum for good. Everything in
// this node's log becomes part of the state, entries included of which nobody
// was ever told that they are committed; entries that only other nodes have are
// lost. The other nodes' directories are no part of the group any more. open, if
// not nil, is what the state begins its new epoch with, for a group that is a
// Store. It is all or nothing; repeated, it recovers once more.
//
// raft's own RecoverCluster folds the log into a snapshot: whoever follows the
// store's history (package evidence) would find its end gone.
func Recover(cfg Config, open func(Recovered) ([]group.Op, error), now time.Time) (Recovered, error) {
	r := Recovered{}
	fail := func(err error) (Recovered, error) {
		return r, fmt.Errorf("recover group %s in %s: %w", cfg.Group, cfg.Dir, err)
	}
	if cfg.Group == "" || cfg.Node == "" || cfg.Dir == "" {
		return fail(fmt.Errorf("Group, Node and Dir are required"))
	}
	var err error
	if r.Before, err = Inspect(cfg.Dir, cfg.Group); err != nil {
		return fail(err)
	}
	r.Before.settle(cfg.Node)
	last, term := r.Before.Last, max(r.Before.Term, r.Before.LastTerm)
	for _, s := range r.Before.Snapshots {
		if s.Err == nil {
			last, term = max(last, s.Index), max(term, s.Term)
		}
	}
	if last == 0 {
		return fail(fault.New(fault.Invalid, "NOTHING_TO_RECOVER", "the directory holds no entry and no readable snapshot: restore a backup"))
	}
	mine := r.Before.Member
	if r.Before.Born {
		mine.Server = cfg.Node
	}
	if !slices.ContainsFunc(r.Before.Members, func(m GroupMember) bool { return m.Server == mine.Server }) {
		return fail(fault.New(fault.Invalid, "NOT_A_MEMBER", "%s is no member of the group by its own log: recover on a node that is", mine.Server))
	}
	r.Term, r.Promoted = term+1, last-min(last, r.Before.Commit)
	r.Incarnation = max(mine.Incarnation+1, uint64(now.Unix()))
	r.Last = last + 1
	if open != nil {
		r.Last++
	}
	entries, err := reopening(cfg, mine.Server, r, open, now)
	if err != nil {
		return fail(err)
	}
	d, err := openDisk(filepath.Join(cfg.Dir, "raft.db"))
	if err != nil {
		return fail(err)
	}
	defer d.Close()
	if err := d.reopen(Member{Server: mine.Server, Incarnation: r.Incarnation, Since: now.UTC()}, entries); err != nil {
		return fail(err)
	}
	return r, nil
}

// reopening are the entries with which a group goes on under one member.
func reopening(cfg Config, server string, r Recovered, open func(Recovered) ([]group.Op, error), now time.Time) ([]*raft.Log, error) {
	first := r.Last
	if open != nil {
		first--
	}
	entries := []*raft.Log{{Index: first, Term: r.Term, Type: raft.LogConfiguration, Data: raft.EncodeConfiguration(alone(server, cfg.Node)), AppendedAt: now}}
	if open == nil {
		return entries, nil
	}
	ops, err := open(r)
	if err != nil {
		return nil, err
	}
	t := group.Txn{RequestID: fmt.Sprintf("reopen/%d", r.Incarnation), Ops: ops}
	if err := t.Validate(); err != nil {
		return nil, err
	}
	return append(entries, &raft.Log{Index: r.Last, Term: r.Term, Type: raft.LogCommand, Data: seal(now, encodeReopen(t)), AppendedAt: now}), nil
}
