// Package ledger owns a zone's usage: cells of 15 minutes, and for each epoch of
// each edge the watermark that makes a block count exactly once. It alone
// imports pebble.
//
// It never authenticates an edge, judges whose customer a row names, prices
// anything or reads a clock in Apply. A block it has acknowledged is in the raft
// log of a quorum; cells, watermark and raft index change in one atomic batch,
// so after a crash a Machine is at some earlier index, whole, and the log
// replays the rest. Machine's Apply, Snapshot and Restore belong to raftgroup's
// one goroutine; everything else may be called at once.
package ledger

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

// Replica commits commands and proves reads fresh; *raftgroup.Node is one.
type Replica interface {
	// Propose returns the Machine's result once cmd is committed and applied.
	Propose(ctx context.Context, cmd []byte) ([]byte, error)
	// ReadIndex is the index that a read begun now must see applied.
	ReadIndex(ctx context.Context) (uint64, error)
	WaitApplied(ctx context.Context, index uint64) error
}

// Config tunes a Ledger.
type Config struct {
	Machine *Machine // required: the state that Replica applies to
	Replica Replica  // required
	Logger  *slog.Logger

	EntryBytes   int           // blocks of one raft entry, together; a larger block goes alone; 0: 512 KiB
	SealInterval time.Duration // between entries that say how far edges have sealed; 0: 5 s
	Timeout      time.Duration // for one proposal, elections included; 0: 15 s
}

// Validate says what is missing.
func (c Config) Validate() error {
	if c.Machine == nil || c.Replica == nil {
		return errors.New("ledger config: Machine and Replica are required")
	}
	return nil
}

// Ledger is one node's door to the zone ledger. Blocks of all sessions are
// committed together, one entry at a time: while one entry is on its way the
// next gathers, so a busy ledger makes fewer, larger entries by itself.
type Ledger struct {
	cfg  Config
	jobs chan *job

	mu      sync.Mutex // covers seals and refused
	seals   map[epochKey]seal
	refused map[refusedKey]Refused
}

type job struct {
	ctx    context.Context
	blocks []Block
	size   int
	done   chan outcome // buffered: the committer never waits for a caller
}

type outcome struct {
	acks []Ack
	err  error
}

// New returns a Ledger that works while Run does.
func New(cfg Config) (*Ledger, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.EntryBytes == 0 {
		cfg.EntryBytes = 512 << 10
	}
	if cfg.SealInterval == 0 {
		cfg.SealInterval = 5 * time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 15 * time.Second
	}
	return &Ledger{cfg: cfg, jobs: make(chan *job, 64), seals: make(map[epochKey]seal), refused: make(map[refusedKey]Refused)}, nil
}

// Run commits what Append and NoteSealed bring until ctx ends.
func (l *Ledger) Run(ctx context.Context) error {
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { l.commitBlocks(ctx); return nil })
	g.Go(func() error { l.commitSeals(ctx); return nil })
	return g.Wait()
}

func (l *Ledger) commitBlocks(ctx context.Context) {
	var carry *job
	for {
		var batch []*job
		size := 0
		if carry != nil {
			batch, size, carry = append(batch, carry), carry.size, nil
		} else {
			select {
			case j := <-l.jobs:
				batch, size = append(batch, j), j.size
			case <-ctx.Done():
				return
			}
		}
	gather:
		for {
			select {
			case j := <-l.jobs:
				if size+j.size > l.cfg.EntryBytes {
					carry = j
					break gather
				}
				batch, size = append(batch, j), size+j.size
			default:
				break gather
			}
		}
		l.commit(ctx, batch)
	}
}

func (l *Ledger) commit(ctx context.Context, batch []*job) {
	var blocks []Block
	live := batch[:0]
	for _, j := range batch {
		if j.ctx.Err() == nil { // else its caller is gone; the edge sends it again
			live, blocks = append(live, j), append(blocks, j.blocks...)
		}
	}
	if len(live) == 0 {
		return
	}
	var acks []Ack
	out, err := l.propose(ctx, encodeAppend(blocks))
	if err == nil {
		acks, err = decodeAcks(out, blocks)
	}
	if err != nil {
		err = fmt.Errorf("commit %d blocks: %w", len(blocks), err)
	}
	for _, j := range live {
		o := outcome{err: err}
		if err == nil {
			o.acks, acks = acks[:len(j.blocks):len(j.blocks)], acks[len(j.blocks):]
		}
		j.done <- o
	}
}

func (l *Ledger) propose(ctx context.Context, cmd []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, l.cfg.Timeout)
	defer cancel()
	return l.cfg.Replica.Propose(ctx, cmd)
}

// Append commits blocks in their order and says for each what became of it: one
// Ack per block. An error means that the outcome is unknown; sending them again
// is always safe. It needs Run.
func (l *Ledger) Append(ctx context.Context, blocks ...Block) ([]Ack, error) {
	acks := make([]Ack, 0, len(blocks))
	for len(blocks) > 0 {
		n, size := 0, 0
		for n < len(blocks) && (n == 0 || size+blocks[n].size() <= l.cfg.EntryBytes) {
			if err := checkBlock(&blocks[n]); err != nil {
				return acks, err
			}
			size += blocks[n].size()
			n++
		}
		j := &job{ctx: ctx, blocks: blocks[:n], size: size, done: make(chan outcome, 1)}
		select {
		case l.jobs <- j:
		case <-ctx.Done():
			return acks, ctx.Err()
		}
		select {
		case o := <-j.done:
			if o.err != nil {
				return acks, o.err
			}
			acks = append(acks, o.acks...)
		case <-ctx.Done():
			return acks, ctx.Err()
		}
		blocks = blocks[n:]
	}
	return acks, nil
}

func checkName(what, s string) error {
	if s == "" || len(s) > maxName || strings.IndexByte(s, 0) >= 0 {
		return fault.New(fault.Invalid, ReasonBadEdge, "the %s's name is blank, too long or holds a zero byte", what)
	}
	return nil
}

// checkBlock refuses what decodeCommand would: one such block must not fail the
// entry it shares with others.
func checkBlock(b *Block) error {
	if len(b.Payload) > usage.MaxPayload {
		return fault.New(fault.TooLarge, ReasonTooLarge, "append block %d of epoch %d of edge %s: its payload holds %d bytes, at most %d are allowed",
			b.Seq, b.Epoch, b.Edge, len(b.Payload), usage.MaxPayload)
	}
	return errors.Join(checkName("edge", b.Edge), checkName("region", b.Region))
}

// NoteSealed remembers an edge's word that all blocks of an epoch up to sealed
// exist and, if at is not zero, that every row which finished before at is in a
// block with a number at most seq. Run commits the words of all edges of this
// node in one entry an interval; what a crash loses the edge says again.
func (l *Ledger) NoteSealed(edge string, number, sealed, seq uint64, at time.Time) {
	if checkName("edge", edge) != nil {
		return
	}
	s := seal{Edge: edge, Epoch: number, Sealed: sealed}
	if ms := at.UnixMilli(); !at.IsZero() && ms > 0 {
		s.Seq, s.MS = seq, ms
	}
	l.note(s)
}

func (l *Ledger) note(s seal) {
	l.mu.Lock()
	defer l.mu.Unlock()
	k := epochKey{s.Edge, s.Epoch}
	old := l.seals[k]
	sealed := max(old.Sealed, s.Sealed)
	if s.MS <= old.MS {
		s = old
	}
	s.Edge, s.Epoch, s.Sealed = k.edge, k.epoch, sealed
	l.seals[k] = s
}

func (l *Ledger) commitSeals(ctx context.Context) {
	tick := time.NewTicker(l.cfg.SealInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
		if err := errors.Join(l.flushSeals(ctx), l.flushRefused(ctx)); err != nil && ctx.Err() == nil {
			l.cfg.Logger.Warn("sealed-through times and refusals are not committed, will retry", "error", err)
		}
	}
}

func (l *Ledger) flushSeals(ctx context.Context) error {
	l.mu.Lock()
	said := l.seals
	l.seals = make(map[epochKey]seal)
	l.mu.Unlock()
	if len(said) == 0 {
		return nil
	}
	seals := make([]seal, 0, len(said))
	for _, s := range said {
		seals = append(seals, s)
	}
	_, err := l.propose(ctx, encodeSealed(seals))
	if err != nil {
		for _, s := range seals {
			l.note(s)
		}
	}
	return err
}

// View is linearizable: it holds whatever was acknowledged before the call.
func (l *Ledger) View(ctx context.Context) (*View, error) {
	index, err := l.cfg.Replica.ReadIndex(ctx)
	if err != nil {
		return nil, fmt.Errorf("read ledger: %w", err)
	}
	if err := l.cfg.Replica.WaitApplied(ctx, index); err != nil {
		return nil, fmt.Errorf("read ledger: %w", err)
	}
	return l.cfg.Machine.View()
}

func read[T any](ctx context.Context, l *Ledger, ask func(*View) (T, error)) (T, error) {
	v, err := l.View(ctx)
	if err != nil {
		var zero T
		return zero, err
	}
	defer v.Close()
	return ask(v)
}

// Each of these asks one linearizable View; see there.
func (l *Ledger) Usage(ctx context.Context, customer string, since, until time.Time) (Report, error) {
	return read(ctx, l, func(v *View) (Report, error) { return v.Usage(ctx, customer, since, until) })
}

func (l *Ledger) Totals(ctx context.Context, since, until time.Time) (Totals, error) {
	return read(ctx, l, func(v *View) (Totals, error) { return v.Totals(ctx, since, until) })
}

func (l *Ledger) CompleteThrough(ctx context.Context, edges []string) (time.Time, error) {
	return read(ctx, l, func(v *View) (time.Time, error) { return v.CompleteThrough(ctx, edges) })
}

func (l *Ledger) Watermark(ctx context.Context, edge string, number uint64) (Watermark, error) {
	return read(ctx, l, func(v *View) (Watermark, error) { return v.Watermark(edge, number) })
}

func (l *Ledger) Edges(ctx context.Context) ([]EdgeEpoch, error) {
	return read(ctx, l, func(v *View) ([]EdgeEpoch, error) { return v.Edges(ctx) })
}

func (l *Ledger) Gaps(ctx context.Context) ([]Gap, error) {
	return read(ctx, l, func(v *View) ([]Gap, error) { return v.Gaps(ctx) })
}
