package evidence

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"fmt"
	"log/slog"
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

// Defaults.
const (
	DefaultEvery  = 5 * time.Second // how often the leader signs a head of a log that has grown
	DefaultKeep   = 400 * 24 * time.Hour
	DefaultBudget = 32 << 30
)

// Piece is what another node of the zone tells of its log.
type Piece struct {
	Leaves  [][]byte
	Through uint64 // revision through which they and all before them are everything; 0: ask on
	// First is where Leaves begin if the other's copy begins after what was asked, with the frontier of the log so far.
	First    int64
	Frontier []tlog.Hash
}

// Config of a Log; every field with a default may be zero, all others are required.
type Config struct {
	Zone  string
	Dir   string
	Store group.Store // the zone store
	// Catalog, if there, is logged in the zone's log too; Pepper tells which of the zone's operators wrote to it.
	Catalog group.Store
	Pepper  []byte
	Signer  ed25519.PrivateKey // the zone's
	Mask    []byte             // the zone's key under which names and contents become digests
	// Peers asks the zone's other nodes for leaves from number on, when this node's own store or disk no longer has them. It
	// returns what one of them knows; no leaves: nobody knows more.
	Peers  func(ctx context.Context, from int64) (Piece, error)
	Every  time.Duration // 0: DefaultEvery
	Keep   time.Duration // how old records may get; 0: DefaultKeep
	Budget int64         // bytes of all segments; beyond it the oldest go before their time, and that is said; 0: DefaultBudget
	FS     durable.FS    // nil: durable.OS()
	Logger *slog.Logger

	stateEvery, segmentRecords int64 // smaller in tests; all nodes of a zone must have the same states. 0: the constants
}

// Validate fills in defaults.
func (c Config) Validate() (Config, error) {
	if c.Zone == "" || c.Dir == "" || c.Store == nil || len(c.Signer) != ed25519.PrivateKeySize || len(c.Mask) < 16 || c.Peers == nil || c.Logger == nil {
		return c, errors.New("evidence: Zone, Dir, Store, Signer, Mask, Peers and Logger are required")
	}
	if c.Every == 0 {
		c.Every = DefaultEvery
	}
	if c.Keep == 0 {
		c.Keep = DefaultKeep
	}
	if c.Budget == 0 {
		c.Budget = DefaultBudget
	}
	if c.stateEvery == 0 {
		c.stateEvery, c.segmentRecords = StateEvery, segmentRecords
	}
	if c.FS == nil {
		c.FS = durable.OS()
	}
	return c, nil
}

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

	// mu covers everything below; appends to file happen under it too, since whoever reads a leaf must find it, and so do
	// looks at single hashes, but syncs do not. Only the goroutine that follows the store writes.
	mu       sync.Mutex
	file     *durable.Log // the newest segment
	segments []segment    // oldest first; never empty
	tree     *tree
	state    int64  // number of the newest state, or of the first record
	newest   head   // no note: none is signed yet
	through  uint64 // transactions up to this one are in the log, whole
	last     uint64 // transaction of the newest leaf, and how many of its leaves there are
	of       int
	marked   uint64
	replay   *replay
	broken   error // the zone's signed history is not this one
}

// New opens the node's copy, of which it reads the newest segment. What is damaged there is set aside, said, and comes again
// from the store or another node.
func New(cfg Config) (*Log, error) {
	cfg, err := cfg.Validate()
	if err != nil {
		return nil, err
	}
	if err := takeCut(cfg.FS, cfg.Dir, time.Now()); err != nil {
		return nil, fmt.Errorf("open evidence log: take what was cut: %w", err)
	}
	if err := cfg.FS.MkdirAll(cfg.Dir, durable.DirPerm); err != nil {
		return nil, fmt.Errorf("open evidence log: %w", err)
	}
	l := &Log{cfg: cfg, key: cfg.Signer.Public().(ed25519.PublicKey), mask: masker(cfg.Mask)}
	if l.tree, err = openTree(cfg.FS, cfg.Dir); err != nil {
		return nil, err
	}
	if err := l.open(); err != nil {
		l.tree.file.Close()
		return nil, fmt.Errorf("open evidence log: %w", err)
	}
	l.marked = l.through
	return l, nil
}

func (l *Log) load(_ int64, p []byte) error {
	if len(p) == 0 {
		return errors.New("an empty entry")
	}
	switch body := p[1:]; p[0] {
	case tagBegin:
		b, err := parseBeginning(p)
		if err != nil || b.Head == "" {
			return err
		}
		c, err := checkpoint.Open(l.cfg.Zone, l.key, []byte(b.Head))
		if err != nil {
			return err
		}
		l.newest = head{[]byte(b.Head), c}
	case tagLeaf:
		r, err := Decode(body)
		if err != nil {
			return err
		}
		return l.take(r, body)
	case tagHead:
		c, err := checkpoint.Open(l.cfg.Zone, l.key, body)
		if err != nil {
			return err
		}
		l.newest = head{bytes.Clone(body), c}
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
func (l *Log) take(r Record, leaf []byte) error {
	if err := l.tree.add(leaf); err != nil {
		return err
	}
	if r.Kind == KindState {
		l.state = l.tree.size - 1
	}
	for _, p := range l.replay.apply(r.open()) {
		// What it judges is this zone's own doing. It stands in the log for good, and verification will say so.
		l.cfg.Logger.Error("evidence: a decision does not follow from the rules", "record", l.tree.size-1, "kind", r.Kind, "key", r.Key, "problem", p)
	}
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

func (l *Log) write(tag byte, body []byte) error { return l.file.Append(append([]byte{tag}, body...)) }

// put appends a leaf. A segment that is full ends before a state. The caller holds mu.
func (l *Log) put(r Record, leaf []byte) error {
	if r.Kind == KindState && l.tree.size-l.current().first >= l.cfg.segmentRecords {
		if err := l.roll(r.At); err != nil {
			return err
		}
	}
	if err := l.write(tagLeaf, leaf); err != nil {
		return err
	}
	return l.take(r, leaf)
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
	// Not within a transaction that a crash has parted: all nodes have states at the same places.
	if len(records) > 0 && l.tree.size-l.state >= l.cfg.stateEvery && !(events[0].Index == l.last && l.of > 0) {
		first := records[0]
		s := Record{Kind: KindState, Epoch: first.Epoch, Index: first.Index, At: first.At, Value: model.Encode(l.replay.snapshot(first.At))}
		records = append([]Record{s}, records...)
	}
	for _, r := range records {
		if err := l.put(r, r.encode()); err != nil {
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
		l.broken = fault.New(fault.Internal, "EVIDENCE_SPLIT", "this node's log of %d records is not the one whose head of %d the zone has signed; remove the directory evidence of this node while it is stopped, and it fetches the log anew", l.tree.size, h.Size)
		l.cfg.Logger.Error("evidence log differs from the zone's", "records", l.tree.size, "signed", h.Size, "error", err)
		return nil
	}
	if err := l.write(tagHead, []byte(c.Note)); err != nil {
		return err
	}
	l.newest = head{[]byte(c.Note), h}
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
	return l.write(tagMark, fmt.Appendf(nil, "%d", l.through))
}

// Checkpoint is the newest head, "" while there is none, with the proof that it continues the log of since records.
func (l *Log) Checkpoint(since int64) (note []byte, proof []tlog.Hash, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	newest := l.newest
	if newest.note == nil || l.broken != nil {
		return nil, nil, l.broken
	}
	if since > 0 && since < newest.Size {
		if proof, err = tlog.ProveTree(newest.Size, since, l.tree); err != nil {
			return nil, nil, err
		}
	}
	return newest.note, proof, nil
}

// Head is Checkpoint for an edge: nothing if it holds the newest already, and a proof as it goes over the wire. A since
// that this log never had gets the head without a proof, which such an edge refuses and reports.
func (l *Log) Head(since int64) (note []byte, proof [][]byte) {
	l.mu.Lock()
	current := l.newest.note != nil && l.newest.Size == since
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

// Leaves gives leaves from number on, at most max and a few megabytes.
func (l *Log) Leaves(from int64, limit int) (Piece, error) {
	if _, ahead, err := l.kept(); ahead || err != nil { // what it has beyond never was, by the store: nobody goes on from it
		return Piece{}, errors.Join(err, fault.New(fault.Unavailable, ReasonSetBack, "this node's log of evidence is being cut: the zone's store was set back"))
	}
	l.mu.Lock()
	size, through, segments := l.tree.size, l.through, slices.Clone(l.segments)
	broken := l.broken
	l.mu.Unlock()
	var c Piece
	if broken != nil || from < 0 || from > size {
		return c, broken
	}
	if from < segments[0].first {
		c.First, c.Frontier = segments[0].first, segments[0].frontier
		from = c.First
	}
	bytes := 0
	err := l.scan(segments, from, func(tag byte, number int64, body []byte) error {
		if number >= size || len(c.Leaves) >= limit || bytes > 2<<20 {
			return durable.ErrStop
		}
		if tag == tagLeaf && number >= from {
			c.Leaves = append(c.Leaves, slices.Clone(body))
			bytes += len(body)
		}
		return nil
	})
	if from+int64(len(c.Leaves)) == size {
		c.Through = through
	}
	return c, err
}

// Size is the number of records, Broken why the log serves nobody.
func (l *Log) Size() (size int64, broken error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.tree.size, l.broken
}
