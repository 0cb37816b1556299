package evidence

import (
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/checkpoint"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// DefaultEvery is how often the leader signs a head of a log that has grown.
const DefaultEvery = 5 * time.Second

// Config of a Log; every field but Every and FS is required.
type Config struct {
	Zone   string
	Dir    string
	Store  group.Store        // the zone store
	Signer ed25519.PrivateKey // the zone's
	Mask   []byte             // the zone's key under which names and contents become digests
	// Peers asks the zone's other nodes for leaves from number on, when this node's own store no longer has them. It
	// returns what one of them knows and the revision through which that is all; nil leaves: nobody knows more.
	Peers  func(ctx context.Context, from int64) (leaves [][]byte, through uint64, err error)
	Every  time.Duration // 0: DefaultEvery
	FS     durable.FS    // nil: durable.OS()
	Logger *slog.Logger
}

// Validate fills in defaults.
func (c Config) Validate() (Config, error) {
	if c.Zone == "" || c.Dir == "" || c.Store == nil || len(c.Signer) != ed25519.PrivateKeySize || len(c.Mask) < 16 || c.Peers == nil || c.Logger == nil {
		return c, errors.New("evidence: Zone, Dir, Store, Signer, Mask, Peers and Logger are required")
	}
	if c.Every == 0 {
		c.Every = DefaultEvery
	}
	if c.FS == nil {
		c.FS = durable.OS()
	}
	return c, nil
}

// The file holds leaves, heads as they were committed, and marks of how far the store was looked through.
const (
	tagLeaf  = 'L'
	tagHead  = 'H'
	tagMark  = 'M'
	markEach = 1000 // transactions without a leaf between two marks
)

const fileName = "evidence.log"

var header = durable.Header{Magic: "bwtlog", Version: 1, Program: "bailiwick-control"}

// head is a committed checkpoint.
type head struct {
	note []byte
	checkpoint.Checkpoint
}

// Log is one node's copy of the zone's log.
type Log struct {
	cfg  Config
	key  ed25519.PublicKey
	mask masker

	// mu covers everything below; appends to file happen under it too, since whoever reads a leaf must find it, but
	// syncs do not.
	mu      sync.Mutex
	file    *durable.Log
	tree    tree
	offsets []int64 // of leaves in the file
	times   []int64 // of leaves, unix ms
	states  []int64 // numbers of state leaves
	heads   []head
	through uint64 // transactions up to this one are in the log, whole
	last    uint64 // transaction of the newest leaf, and how many of its leaves there are
	of      int
	marked  uint64
	replay  *replay
	broken  error // the zone's signed history is not this one
}

// New opens the node's copy. A torn tail is cut off and said so; damage inside is an error that names the file: remove
// it, and the node fetches the log from another.
func New(cfg Config) (*Log, error) {
	cfg, err := cfg.Validate()
	if err != nil {
		return nil, err
	}
	if err := cfg.FS.MkdirAll(cfg.Dir, durable.DirPerm); err != nil {
		return nil, fmt.Errorf("open evidence log: %w", err)
	}
	key := cfg.Signer.Public().(ed25519.PublicKey)
	l := &Log{cfg: cfg, key: key, mask: masker(cfg.Mask), replay: newReplay(cfg.Zone, key)}
	file, st, err := durable.OpenLog(cfg.FS, filepath.Join(cfg.Dir, fileName), header, l.load)
	if err != nil {
		return nil, fmt.Errorf("open evidence log: %w; if it is damaged, remove it and this node fetches the log from another of its zone", err)
	}
	if st.Torn > 0 {
		cfg.Logger.Warn("evidence log had a torn tail, cut off", "bytes", st.Torn)
	}
	l.file = file
	l.marked = l.through
	return l, nil
}

func (l *Log) load(off int64, p []byte) error {
	if len(p) == 0 {
		return errors.New("an empty entry")
	}
	switch body := p[1:]; p[0] {
	case tagLeaf:
		r, err := Decode(body)
		if err != nil {
			return err
		}
		return l.take(r, body, off)
	case tagHead:
		c, err := checkpoint.Open(l.cfg.Zone, l.key, body)
		if err != nil {
			return err
		}
		l.heads = append(l.heads, head{append([]byte(nil), body...), c})
	case tagMark:
		var n uint64
		if _, err := fmt.Sscanf(string(body), "%d", &n); err != nil {
			return fmt.Errorf("mark: %w", err)
		}
		l.through = max(l.through, n)
	default:
		return fmt.Errorf("an entry of unknown kind %q: a newer bailiwick-control wrote it", p[0])
	}
	return nil
}

// take puts a leaf that is in the file, or about to be, into the tree.
func (l *Log) take(r Record, leaf []byte, off int64) error {
	if err := l.tree.add(leaf); err != nil {
		return err
	}
	if r.Kind == KindState {
		l.states = append(l.states, l.tree.size-1)
	}
	for _, p := range l.replay.apply(r.open()) {
		// What it judges is this zone's own doing. It stands in the log for good, and verification will say so.
		l.cfg.Logger.Error("evidence: a decision does not follow from the rules", "record", l.tree.size-1, "kind", r.Kind, "key", r.Key, "problem", p)
	}
	l.offsets, l.times = append(l.offsets, off), append(l.times, r.At.UnixMilli())
	if r.Index != l.last {
		l.last, l.of = r.Index, 0
		// More leaves of this transaction may follow, or have been lost with the process.
		l.through = max(l.through, r.Index-1)
	}
	if r.Kind != KindState {
		l.of++
	}
	return nil
}

func (l *Log) write(tag byte, body []byte) (off int64, err error) {
	off = l.file.Size()
	return off, l.file.Append(append([]byte{tag}, body...))
}

// lastState is the number of the newest state, or of the place where one would have been.
func (l *Log) lastState() int64 {
	if n := len(l.states); n > 0 {
		return l.states[n-1]
	}
	return 0
}

// transaction appends what one transaction comes to.
func (l *Log) transaction(events []group.Event, epoch uint64) error {
	records, err := recordsOf(events, epoch, l.mask)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if events[0].Index == l.last { // begun before a crash, or by a neighbour's answer that ended here
		records = records[min(l.of, len(records)):]
	}
	if len(records) > 0 && l.tree.size-l.lastState() >= StateEvery {
		first := records[0]
		s := Record{Kind: KindState, Epoch: first.Epoch, Index: first.Index, At: first.At, Value: model.Encode(l.replay.snapshot(first.At))}
		records = append([]Record{s}, records...)
	}
	for _, r := range records {
		leaf := r.encode()
		off, err := l.write(tagLeaf, leaf)
		if err != nil {
			return err
		}
		if err := l.take(r, leaf, off); err != nil {
			return err
		}
	}
	l.through = max(l.through, events[0].Index)
	for _, e := range events {
		if e.KV.Key == model.KeyCheckpoint && !e.Delete {
			if err := l.committed(e.KV.Value); err != nil {
				return err
			}
		}
	}
	return nil
}

// committed compares the head that the leader signed with this node's own. The caller holds mu.
func (l *Log) committed(value []byte) error {
	c, err := model.Decode[model.Checkpoint](model.KeyCheckpoint, value)
	if err != nil {
		return err
	}
	h, err := checkpoint.Open(l.cfg.Zone, l.key, []byte(c.Note))
	if err != nil {
		return err
	}
	own, err := l.tree.root(h.Size)
	if err != nil || own != h.Root {
		l.broken = fault.New(fault.Internal, "EVIDENCE_SPLIT", "this node's log of %d records is not the one whose head of %d the zone has signed; remove the file evidence.log of this node while it is stopped, and it fetches the log anew", l.tree.size, h.Size)
		l.cfg.Logger.Error("evidence log differs from the zone's", "records", l.tree.size, "signed", h.Size, "error", err)
		return nil
	}
	if _, err := l.write(tagHead, []byte(c.Note)); err != nil {
		return err
	}
	l.heads = append(l.heads, head{[]byte(c.Note), h})
	return nil
}

// lookedAt says that all up to a transaction is in the log, and marks it now and then.
func (l *Log) lookedAt(index uint64) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.through = max(l.through, index)
	if l.through < l.marked+markEach {
		return nil
	}
	l.marked = l.through
	_, err := l.write(tagMark, fmt.Appendf(nil, "%d", l.through))
	return err
}

// Checkpoint is the newest head, "" while there is none, with the proof that it continues the log of since records.
func (l *Log) Checkpoint(since int64) (note []byte, proof []tlog.Hash, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.heads) == 0 || l.broken != nil {
		return nil, nil, l.broken
	}
	newest := l.heads[len(l.heads)-1]
	if since > 0 && since < newest.Size {
		if proof, err = tlog.ProveTree(newest.Size, since, &l.tree); err != nil {
			return nil, nil, err
		}
	}
	return newest.note, proof, nil
}

// Head is Checkpoint for an edge: nothing if it holds the newest already, and a proof as it goes over the wire. A since
// that this log never had gets the head without a proof, which such an edge refuses and reports.
func (l *Log) Head(since int64) (note []byte, proof [][]byte) {
	l.mu.Lock()
	current := len(l.heads) > 0 && l.heads[len(l.heads)-1].Size == since
	l.mu.Unlock()
	if current {
		return nil, nil
	}
	note, hashes, err := l.Checkpoint(since)
	if err != nil {
		return nil, nil // said where it broke
	}
	for _, h := range hashes {
		proof = append(proof, h[:])
	}
	return note, proof
}

// Leaves gives leaves from number on, at most max and a few megabytes, and the revision through which they and all
// before them are everything; 0 if more follow.
func (l *Log) Leaves(from int64, limit int) (leaves [][]byte, through uint64, err error) {
	l.mu.Lock()
	if l.broken != nil || from < 0 || from > l.tree.size {
		defer l.mu.Unlock()
		return nil, 0, l.broken
	}
	end := min(l.tree.size, from+int64(limit))
	offsets := l.offsets[from:end:end] // only ever appended to
	if end == l.tree.size {
		through = l.through
	}
	l.mu.Unlock()
	size := 0
	for _, off := range offsets {
		p, err := l.file.Record(off)
		if err != nil {
			return nil, 0, err
		}
		leaves = append(leaves, p[1:])
		if size += len(p); size > 2<<20 && int64(len(leaves)) < int64(len(offsets)) {
			return leaves, 0, nil
		}
	}
	return leaves, through, nil
}

// Size is the number of records, Broken why the log serves nobody.
func (l *Log) Size() (size int64, broken error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.size, l.broken
}

// Copy gives each entry of the log up to and including a transaction, in order, as Write takes them: what a backup of the
// zone store as of that transaction has beside it. It waits until the log is that far.
func (l *Log) Copy(ctx context.Context, through uint64, each func(entry []byte) error) error {
	for {
		l.mu.Lock()
		at, broken := l.through, l.broken
		l.mu.Unlock()
		if broken != nil {
			return broken
		}
		if at >= through {
			break
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return fmt.Errorf("copy evidence log: it has followed the zone store to %d of %d: %w", at, through, ctx.Err())
		}
	}
	l.mu.Lock()
	offsets := l.offsets[:len(l.offsets):len(l.offsets)]
	heads := slices.Clone(l.heads)
	l.mu.Unlock()
	n := int64(0)
	for _, off := range offsets {
		p, err := l.file.Record(off)
		if err != nil {
			return err
		}
		r, err := Decode(p[1:])
		if err != nil {
			return err
		}
		if r.Index > through {
			break
		}
		n++
		if err := each(p); err != nil {
			return err
		}
	}
	for _, h := range heads { // after the leaves: what matters is that they are of this log
		if h.Size > n {
			break
		}
		if err := each(append([]byte{tagHead}, h.note...)); err != nil {
			return err
		}
	}
	return each(fmt.Appendf([]byte{tagMark}, "%d", through))
}

// Write makes the file of a log in dir, which must hold none, from the entries that Copy gave.
func Write(fsys durable.FS, dir string, next func() (entry []byte, err error)) (err error) {
	if err := fsys.MkdirAll(dir, durable.DirPerm); err != nil {
		return fmt.Errorf("write evidence log: %w", err)
	}
	file, _, err := durable.OpenLog(fsys, filepath.Join(dir, fileName), header, func(int64, []byte) error {
		return errors.New("there is a log already: set it aside first")
	})
	if err != nil {
		return fmt.Errorf("write evidence log: %w", err)
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for {
		entry, err := next()
		if errors.Is(err, io.EOF) {
			return file.Sync()
		}
		if err != nil {
			return err
		}
		if err := file.Append(entry); err != nil {
			return fmt.Errorf("write evidence log: %w", err)
		}
	}
}
