package controlplane

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/backup"
	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

const (
	backupDir  = "backups" // below the data directory: a backup stays in its zone unless an operator carries it away
	backupKeep = 8         // newest backups of each group on a node; older ones go
	backupExt  = ".bwbackup"
	maxEntry   = 8 << 20 // bytes of one entry of an evidence log
)

// Backup takes a backup of one of this node's groups and keeps it on this node.
func (n *Node) Backup(ctx context.Context, name string) (adminapi.Backup, error) {
	if err := n.inEtcd(name, "back up", "take a snapshot with etcdctl snapshot save, and keep it in the zone"); err != nil {
		return adminapi.Backup{}, err
	}
	node, err := n.replicaOf(name)
	if err != nil {
		return adminapi.Backup{}, err
	}
	n.backing.Lock() // one at a time: each reads a whole state
	defer n.backing.Unlock()
	at, state, err := node.Capture(ctx)
	if err != nil {
		return adminapi.Backup{}, err
	}
	defer state.Close()
	info := backup.Info{Program: "bailiwick-control " + n.cfg.Version, Installation: n.in.Name, Zone: n.self.Zone, Group: name, Node: n.self.Name, TakenAt: takenAt(time.Now()),
		Incarnation: at.Incarnation, Entry: at.Entry, Term: at.Term, Epoch: at.Revision.Epoch, Index: at.Revision.Index, State: at.Size}
	out, err := keepBackup(n.cfg.Dir, n.secrets.Backup, info, func(w io.Writer) error {
		if _, err := io.CopyN(w, state, at.Size); err != nil {
			return err
		}
		if name != storeGroup(n.self.Zone) {
			return nil
		}
		return n.evidence.Copy(ctx, info.Index, entriesTo(w))
	})
	if err == nil {
		n.log.Info("backup taken", "group", name, "bytes", out.Bytes)
	}
	return out, err
}

// entriesTo writes entries of an evidence log as entriesOf reads them.
func entriesTo(w io.Writer) func(entry []byte) error {
	return func(entry []byte) error {
		_, err := w.Write(append(binary.BigEndian.AppendUint32(nil, uint32(len(entry))), entry...))
		return err
	}
}

func takenAt(now time.Time) time.Time { return now.UTC().Truncate(time.Millisecond) }

// keepBackup writes a backup below the data directory, and drops those that are too many.
func keepBackup(dataDir string, key []byte, info backup.Info, body func(io.Writer) error) (out adminapi.Backup, err error) {
	dir := filepath.Join(dataDir, backupDir)
	if err := durable.OS().MkdirAll(dir, durable.DirPerm); err != nil {
		return out, err
	}
	base := strings.ReplaceAll(info.Group, "/", "-")
	out = adminapi.Backup{Node: info.Node, Group: info.Group, Path: filepath.Join(dir, base+"-"+info.TakenAt.Format("20060102T150405.000Z")+backupExt), Epoch: info.Epoch, Index: info.Index, TakenAt: info.TakenAt}
	if out.Bytes, out.SHA256, err = writeBackup(out.Path, key, info, body); err != nil {
		return adminapi.Backup{}, err
	}
	return out, forgetBackups(dir, base)
}

// writeBackup makes the file under another name first: what has the name is whole.
func writeBackup(path string, key []byte, info backup.Info, body func(io.Writer) error) (size int64, sum string, err error) {
	making := path + ".part"
	f, err := os.OpenFile(making, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, durable.FilePerm)
	if err != nil {
		return 0, "", err
	}
	h := sha256.New()
	err = backup.Write(io.MultiWriter(f, h), key, info, body)
	if err == nil {
		err = f.Sync()
	}
	if st, e := f.Stat(); e == nil {
		size = st.Size()
	}
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(making, path)
	}
	if err == nil {
		err = durable.OS().SyncDir(filepath.Dir(path))
	}
	if err != nil {
		return 0, "", errors.Join(err, os.RemoveAll(making))
	}
	return size, hex.EncodeToString(h.Sum(nil)), nil
}

func forgetBackups(dir, base string) error {
	found, err := filepath.Glob(filepath.Join(dir, base+"-*"+backupExt))
	if err != nil {
		return err
	}
	slices.Sort(found)
	for len(found) > backupKeep {
		err = errors.Join(err, os.Remove(found[0]))
		found = found[1:]
	}
	return err
}

// evidenceLimit is how long a stopped node's log of evidence may take to follow what its store holds.
const evidenceLimit = 10 * time.Minute

// Backup takes a backup of one of the stopped node's groups and keeps it on this node, beside those that were taken while it
// ran. It holds what the node knows to be committed; left is how many entries of the log it does not hold.
func (o *Offline) Backup(ctx context.Context, name, version string, now time.Time) (out adminapi.Backup, left uint64, err error) {
	if err := o.outside(name, "back up", "take a snapshot with etcdctl snapshot save, and keep it in the zone"); err != nil {
		return out, 0, err
	}
	dir := ""
	for _, g := range groupsOf(o.name.Zone) {
		if g.Name == name {
			dir = g.Dir
		}
	}
	if dir == "" {
		return out, 0, fault.New(fault.NotFound, "GROUP_NOT_HERE", "back up: this node has no part in group %q: it has the catalog, %s and %s", name, storeGroup(o.name.Zone), ledgerGroup(o.name.Zone))
	}
	if err := stopped(o.Dir); err != nil {
		return out, 0, err
	}
	var machine raftgroup.Machine // of a store: its own
	if name == ledgerGroup(o.name.Zone) {
		cells, err := ledger.OpenMachine(ledger.MachineConfig{Dir: filepath.Join(o.Dir, "ledger", "cells")})
		if err != nil {
			return out, 0, err
		}
		defer func() { err = errors.Join(err, cells.Close()) }()
		machine = cells
	}
	at, err := raftgroup.OpenStopped(raftgroup.Config{Group: name, Node: o.name.Node, Dir: filepath.Join(o.Dir, dir)}, machine)
	if err != nil {
		return out, 0, err
	}
	defer func() { err = errors.Join(err, at.Close()) }()
	info := backup.Info{Program: "bailiwick-control " + version, Installation: o.in.Name, Zone: o.name.Zone, Group: name, Node: o.name.Node, TakenAt: takenAt(now),
		Incarnation: at.Incarnation, Entry: at.Entry, Term: at.Term, Epoch: at.Revision.Epoch, Index: at.Revision.Index, State: at.Size}
	out, err = keepBackup(o.Dir, o.secrets.Backup, info, func(w io.Writer) error {
		if err := at.Write(w); err != nil || name != storeGroup(o.name.Zone) {
			return err
		}
		return o.copyEvidence(ctx, at.Store(), info.Index, entriesTo(w))
	})
	return out, at.Beyond, err
}

// copyEvidence gives the entries of the stopped node's log of evidence through a transaction. The log first follows what the
// store holds, as at the node's next start: a node that was killed may have written less.
func (o *Offline) copyEvidence(ctx context.Context, store group.Store, through uint64, each func([]byte) error) error {
	mask, err := evidence.MaskKey(o.secrets.Pepper)
	if err != nil {
		return err
	}
	nobody := func(context.Context, int64) (evidence.Piece, error) {
		return evidence.Piece{}, fault.New(fault.Unavailable, "NODE_STOPPED", "a stopped node asks nobody: back up a node that runs, or start this one first")
	}
	log, err := evidence.New(evidence.Config{Zone: o.name.Zone, Dir: filepath.Join(o.Dir, "evidence"), Store: store, Signer: o.secrets.Signer, Mask: mask, Peers: nobody,
		Keep: math.MaxInt64, Budget: math.MaxInt64, Logger: slog.New(slog.DiscardHandler)}) // nothing is dropped here
	if err != nil {
		return err
	}
	running, stop := context.WithCancel(ctx)
	var wg sync.WaitGroup
	var ran error
	wg.Go(func() { ran = log.Run(running) })
	limited, cancel := context.WithTimeout(ctx, evidenceLimit)
	err = log.Copy(limited, through, each)
	cancel()
	stop()
	wg.Wait()
	return errors.Join(err, ran)
}

// Restoring is what an operator decides when a backup takes a group's place.
type Restoring struct {
	File             string
	Operator, Reason string
}

// InspectBackup says what a backup is; no key is needed. If it is of this node's zone, all of it is read and proved.
func (o *Offline) InspectBackup(path string) (backup.Info, error) {
	f, err := os.Open(path)
	if err != nil {
		return backup.Info{}, err
	}
	defer f.Close()
	info, body, err := backup.Open(f, o.secrets.Backup)
	if err == nil && info.Zone == o.name.Zone {
		_, err = io.Copy(io.Discard, body)
	}
	return info, err
}

// Restore puts a backup in the place of this node's part in its group, as the group's only member, in a new epoch. What
// was there is set aside, not removed. The returned paths are what was.
func (o *Offline) Restore(r Restoring, now time.Time) (record model.Recovery, aside []string, err error) {
	if err := accounted("restore", r.Operator, r.Reason); err != nil {
		return record, nil, err
	}
	if err := stopped(o.Dir); err != nil {
		return record, nil, err
	}
	f, err := os.Open(r.File)
	if err != nil {
		return record, nil, err
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return record, nil, err
	}
	info, err := o.InspectBackup(r.File) // before anything is moved
	if err == nil {
		err = o.mine(info)
	}
	if err != nil {
		return record, nil, err
	}
	if _, err := f.Seek(0, io.SeekStart); err != nil {
		return record, nil, err
	}
	_, body, err := backup.Open(f, o.secrets.Backup)
	if err != nil {
		return record, nil, err
	}
	record = model.Recovery{Zone: o.name.Zone, Node: o.name.Node, Operator: r.Operator, Reason: r.Reason, At: now.UTC().Truncate(time.Millisecond)}
	dirs := map[string][]string{catalogGroup: {"catalog"}, storeGroup(o.name.Zone): {"zone", "evidence"}, ledgerGroup(o.name.Zone): {filepath.Join("ledger", "raft"), filepath.Join("ledger", "cells")}}[info.Group]
	for _, d := range dirs {
		from := filepath.Join(o.Dir, d)
		to := from + ".aside-" + now.UTC().Format("20060102T150405")
		switch err := os.Rename(from, to); {
		case err == nil:
			aside = append(aside, to)
		case !errors.Is(err, os.ErrNotExist):
			return record, aside, err
		}
	}
	if err := durable.OS().MkdirAll(filepath.Dir(filepath.Join(o.Dir, dirs[0])), durable.DirPerm); err != nil {
		return record, aside, err
	}
	made := model.RecoveredGroup{Group: info.Group, Last: info.Entry, Backup: hex.EncodeToString(sum.Sum(nil)), TakenAt: info.TakenAt.Format(time.RFC3339)}
	var open func(raftgroup.Recovered) ([]group.Op, error)
	switch info.Group {
	case catalogGroup:
		open = func(raftgroup.Recovered) ([]group.Op, error) { return nil, nil }
	case storeGroup(o.name.Zone):
		open = func(got raftgroup.Recovered) ([]group.Op, error) {
			made.Incarnation = got.Incarnation
			record.Groups = []model.RecoveredGroup{made}
			return o.recoveryOps(&record, got.Incarnation), nil
		}
	}
	got, err := raftgroup.Restore(raftgroup.Config{Group: info.Group, Node: o.name.Node, Dir: filepath.Join(o.Dir, dirs[0])},
		o.server, raftgroup.Captured{Entry: info.Entry, Term: info.Term, Incarnation: info.Incarnation}, io.LimitReader(body, info.State), open, now)
	if err != nil {
		return record, aside, err
	}
	if info.Group == storeGroup(o.name.Zone) {
		err = evidence.Write(durable.OS(), filepath.Join(o.Dir, "evidence"), entriesOf(body))
	} else {
		made.Incarnation = got.Incarnation
		record.Groups = []model.RecoveredGroup{made}
		o.sign(&record)
	}
	return record, aside, errors.Join(err, o.keep(record))
}

// mine refuses a backup that has no place on this node.
func (o *Offline) mine(info backup.Info) error {
	switch {
	case info.Installation != o.in.Name:
		return fault.New(fault.Invalid, "BACKUP_OF_ANOTHER_INSTALLATION", "restore: the backup is of installation %s, this node is of %s", info.Installation, o.in.Name)
	case info.Zone != o.name.Zone:
		return fault.New(fault.WrongZone, "BACKUP_OF_ANOTHER_ZONE", "restore: the backup is of zone %s, this node is of %s: what a zone keeps never rests in another; restore it on a node of %s", info.Zone, o.name.Zone, info.Zone)
	case slices.Contains(o.Outside(), info.Group):
		return o.outside(info.Group, "restore", "put a snapshot of etcd back with etcdutl snapshot restore")
	case info.Group == catalogGroup && o.name.Zone != o.in.PrimaryZone:
		return fault.New(fault.Invalid, "NOT_PRIMARY_ZONE", "restore the catalog: only nodes of the primary zone %s vote on it: restore it there", o.in.PrimaryZone)
	case info.Group != catalogGroup && info.Group != storeGroup(o.name.Zone) && info.Group != ledgerGroup(o.name.Zone):
		return fault.New(fault.Invalid, "BACKUP_NEWER", "restore: group %s is unknown: %s wrote the backup: restore it with that program", info.Group, info.Program)
	}
	return nil
}

func entriesOf(r io.Reader) func() ([]byte, error) {
	return func() ([]byte, error) {
		var size [4]byte
		if _, err := io.ReadFull(r, size[:]); err != nil {
			return nil, err // io.EOF at the end
		}
		n := binary.BigEndian.Uint32(size[:])
		if n > maxEntry {
			return nil, fmt.Errorf("read the evidence log in the backup: an entry of %d bytes is too long", n)
		}
		entry := make([]byte, n)
		_, err := io.ReadFull(r, entry)
		return entry, err
	}
}
