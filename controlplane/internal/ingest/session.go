package ingest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"golang.org/x/sync/errgroup"
	"golang.org/x/sync/semaphore"

	"bailiwick/controlplane/internal/ledger"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/usage"
)

// link carries the protocol's messages. Receive and Send each belong to one
// goroutine; Abort ends a Receive that is waiting, from any.
type link[In, Out any] interface {
	// Receive returns io.EOF when the edge has ended its side in order, and an
	// error that is errMalformed for what cannot be a message.
	Receive() (*In, error)
	Send(*Out) error
	Abort()
}

type ledgerLink = link[usagev1.UploadRequest, usagev1.UploadResponse]

var (
	errMalformed = errors.New("the message is malformed")
	errWithdrawn = errors.New("the edge may not bring usage")
	errCut       = fmt.Errorf("%w any more", errWithdrawn) // while a session was open
	errReplaced  = errors.New("a newer session of this edge has begun")
	errStopping  = errors.New("this node is stopping")
	errLedger    = errors.New("the ledger cannot answer now")
)

const (
	batchBytes = 512 << 10 // of blocks handed to the ledger at once: one raft entry
	queueBytes = 8 << 20   // of one session in memory; more waits in the network
	queueItems = 256
)

// session is one edge's stream. The reader checks and queues, the writer alone
// talks to the ledger and answers, in the order of arrival: so an edge may send
// many blocks ahead, and they share raft entries.
type session struct {
	s            *Server
	link         ledgerLink
	edge, region string

	opened map[uint64]bool // epochs that had their Hello; the reader's
	queue  chan item
	room   *semaphore.Weighted // of queueBytes
}

// item is something to answer, exactly one of the three.
type item struct {
	hello   *usagev1.Hello
	block   *ledger.Block
	refusal *usagev1.Refusal
	weight  int64
}

// serve runs one session of the ledger to its end. nil: the edge ended it.
func (s *Server) serve(ctx context.Context, l ledgerLink, transport, edge, region string) error {
	e := &session{s: s, link: l, edge: edge, region: region, opened: make(map[uint64]bool),
		queue: make(chan item, queueItems), room: semaphore.NewWeighted(queueBytes)}
	return s.hold(ctx, sessionKey{transport: transport, edge: edge}, region, "usage", l.Abort, e.read, e.write, func() { close(e.queue) })
}

// hold runs a session of either kind: read ends when the edge does, and closes
// the queue, which write then drains.
func (s *Server) hold(ctx context.Context, k sessionKey, region, kind string, abort func(), read, write func(context.Context) error, readAll func()) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	o := &open{region, cancel}
	s.admit(k, o)
	defer s.dismiss(k, o)
	select {
	case <-s.stop:
		return errStopping
	default:
	}
	log := s.cfg.Logger.With("edge", k.edge, "region", region, "transport", k.transport)
	log.Info(kind + " session begins")
	// The reader sits in Receive, which knows no context.
	stop := context.AfterFunc(ctx, abort)
	defer stop()

	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() error {
		err := write(gctx)
		if err != nil {
			abort()
		}
		return err
	})
	rerr := read(gctx)
	readAll()
	err := g.Wait() // the writer failing ends the reader, not the reverse
	if err == nil {
		err = rerr
	}
	if cause := context.Cause(ctx); cause != nil && ctx.Err() != nil {
		err = cause
	}
	if errors.Is(err, io.EOF) {
		err = nil
	}
	log.Info(kind+" session ends", "error", err)
	return err
}

func (e *session) put(ctx context.Context, it item) error {
	it.weight = min(it.weight+256, queueBytes)
	if err := e.room.Acquire(ctx, it.weight); err != nil {
		return err
	}
	select {
	case e.queue <- it:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (e *session) refuse(ctx context.Context, epoch, seq uint64, reason, detail string) error {
	return e.put(ctx, item{refusal: &usagev1.Refusal{Epoch: epoch, Seq: seq, Reason: reason, Detail: detail}})
}

// read takes messages until the stream ends. What the ledger need not see to
// refuse is refused here, and its answer queued behind those before it.
func (e *session) read(ctx context.Context) error {
	if reason, _, err := e.s.cfg.Allow(e.edge, e.region, 0, nil); err != nil {
		return fmt.Errorf("%w: %w", errLedger, err)
	} else if reason != "" {
		return errors.Join(errWithdrawn, e.refuse(ctx, 0, 0, reason, "this edge may not bring usage"))
	}
	for {
		m, err := e.link.Receive()
		switch {
		case errors.Is(err, errMalformed):
			return errors.Join(err, e.refuse(ctx, 0, 0, ledger.ReasonMalformed, err.Error()))
		case err != nil:
			return err
		}
		switch {
		case m.GetHello() != nil:
			h := m.GetHello()
			if h.Epoch == 0 || len(h.Head) != 0 && len(h.Head) != 32 {
				err = e.refuse(ctx, h.Epoch, 0, ledger.ReasonMalformed, "hello needs an epoch from 1 and a head of 0 or 32 bytes")
				break
			}
			e.opened[h.Epoch] = true
			if len(e.opened) > 1024 {
				return errors.Join(errMalformed, e.refuse(ctx, h.Epoch, 0, ledger.ReasonMalformed, "too many epochs in one session"))
			}
			err = e.put(ctx, item{hello: h})
		case m.GetBlock() != nil:
			err = e.block(ctx, m.GetBlock())
		case m.GetSealedThrough() != nil:
			err = e.sealed(ctx, m.GetSealedThrough())
		default:
			err = e.refuse(ctx, 0, 0, ledger.ReasonMalformed, "the message is of a kind this node does not know")
		}
		if err != nil {
			return err
		}
	}
}

func (e *session) sealed(ctx context.Context, m *usagev1.SealedThrough) error {
	at := time.UnixMilli(m.UnixMs)
	if !e.opened[m.Epoch] || m.UnixMs <= 0 || at.After(e.s.cfg.Now().Add(e.s.cfg.Future)) {
		return e.refuse(ctx, m.Epoch, m.Seq, ledger.ReasonMalformed, "sealed-through needs its epoch's hello and a time that is not in the future")
	}
	e.s.cfg.Ledger.NoteSealed(e.edge, m.Epoch, m.Seq, m.Seq, at)
	return nil
}

func (e *session) block(ctx context.Context, m *usagev1.Block) error {
	reason, detail, err := e.judge(m)
	if err != nil {
		return err
	}
	if reason != "" {
		err := e.refuse(ctx, m.Epoch, m.Seq, reason, detail)
		if reason == ReasonWithdrawn {
			return errors.Join(errWithdrawn, err)
		}
		return err
	}
	b := &ledger.Block{Region: e.region}
	b.Edge, b.Epoch, b.Seq, b.Payload = e.edge, m.Epoch, m.Seq, m.Payload
	b.Prev, b.Hash = [32]byte(m.Prev), [32]byte(m.Hash)
	return e.put(ctx, item{block: b, weight: int64(len(m.Payload))})
}

func (e *session) judge(m *usagev1.Block) (reason, detail string, err error) {
	switch {
	case !e.opened[m.Epoch]:
		return ledger.ReasonMalformed, "a block needs its epoch's hello first", nil
	case m.Seq == 0 || len(m.Prev) != 32 || len(m.Hash) != 32:
		return ledger.ReasonMalformed, "a block needs a number from 1, and prev and hash of 32 bytes", nil
	case len(m.Payload) > usage.MaxPayload:
		return ledger.ReasonMalformed, fmt.Sprintf("the payload holds %d bytes, at most %d are allowed", len(m.Payload), usage.MaxPayload), nil
	case usage.HashBlock(e.edge, m.Epoch, m.Seq, [32]byte(m.Prev), m.Payload) != [32]byte(m.Hash):
		return ledger.ReasonWrongChain, "the hash is not this block's", nil
	}
	cells, err := usage.DecodePayload(m.Payload)
	if err != nil {
		return ledger.ReasonMalformed, "the payload does not decode", nil
	}
	limit := e.s.cfg.Now().Add(e.s.cfg.Future).Unix()
	for c := range cells {
		if c.Start > limit {
			return ledger.ReasonMalformed, "a cell lies in the future: look at the edge's clock", nil
		}
	}
	if reason, detail, err = e.s.cfg.Allow(e.edge, e.region, m.Epoch, cells); err != nil {
		return "", "", fmt.Errorf("%w: %w", errLedger, err)
	}
	if reason == ReasonWithdrawn {
		detail = "this edge may not bring usage"
	}
	return reason, detail, nil
}

// write answers until the queue is closed and drained.
func (e *session) write(ctx context.Context) error {
	var held *item
	for {
		var it item
		if held != nil {
			it, held = *held, nil
		} else {
			var ok bool
			select {
			case it, ok = <-e.queue:
			case <-ctx.Done():
				return ctx.Err()
			}
			if !ok {
				return nil
			}
		}
		var err error
		switch {
		case it.hello != nil:
			err = e.welcome(ctx, it.hello)
		case it.refusal != nil:
			err = e.sendRefusal(it.refusal)
		default:
			batch, weight := []ledger.Block{*it.block}, it.weight
			size := len(it.block.Payload)
		gather:
			for {
				select {
				case next, ok := <-e.queue:
					if !ok {
						break gather
					}
					if next.block == nil || size+len(next.block.Payload) > batchBytes {
						held = &next
						break gather
					}
					batch, weight = append(batch, *next.block), weight+next.weight
					size += len(next.block.Payload)
				default:
					break gather
				}
			}
			err = e.commit(ctx, batch)
			e.room.Release(weight - it.weight)
		}
		e.room.Release(it.weight)
		if err != nil {
			return err
		}
	}
}

// commit brings blocks to the ledger and answers: one watermark for what was
// taken in a row, one refusal for each that was not.
func (e *session) commit(ctx context.Context, blocks []ledger.Block) error {
	acks, err := e.s.cfg.Ledger.Append(ctx, blocks...)
	if err != nil {
		return fmt.Errorf("%w: %w", errLedger, err)
	}
	for i := range acks {
		a := &acks[i]
		if a.Reason != "" {
			r := &usagev1.Refusal{Epoch: a.Epoch, Seq: blocks[i].Seq, Reason: a.Reason, Detail: a.Detail, ExpectedSeq: a.Expected()}
			if err := e.sendRefusal(r); err != nil {
				return err
			}
			continue
		}
		e.s.count(func(s *Stats) { s.Blocks++ })
		if last := i == len(acks)-1; last || acks[i+1].Reason != "" || acks[i+1].Epoch != a.Epoch {
			if err := e.sendWatermark(a.Watermark); err != nil {
				return err
			}
		}
	}
	return nil
}

// welcome answers a Hello from a linearizable read: a lower watermark than the
// truth would only cost repeats, but a stale FORK or GAP would alarm somebody.
func (e *session) welcome(ctx context.Context, h *usagev1.Hello) error {
	w, err := e.s.cfg.Ledger.Watermark(ctx, e.edge, h.Epoch)
	if err != nil {
		return fmt.Errorf("%w: %w", errLedger, err)
	}
	if h.SealedSeq > w.Applied {
		e.s.cfg.Ledger.NoteSealed(e.edge, h.Epoch, h.SealedSeq, 0, time.Time{})
	}
	if err := e.sendWatermark(w); err != nil {
		return err
	}
	r := &usagev1.Refusal{Epoch: h.Epoch, Seq: h.SealedSeq, ExpectedSeq: w.Applied + 1}
	switch {
	case w.Closed && h.SealedSeq > w.Applied:
		r.Reason, r.Detail = ledger.ReasonEpochClosed, "an operator closed this epoch; what it still holds will not be counted"
	case w.Quarantined:
		r.Reason, r.Detail = ledger.ReasonQuarantined, "two spools speak for this epoch: an operator must close it; what is here stays here"
	case h.SealedSeq == w.Applied && w.Applied > 0 && len(h.Head) == 32 && [32]byte(h.Head) != w.Head:
		r.Reason, r.Detail = ledger.ReasonFork, "the ledger holds another block with this number: this spool is a copy of another"
	case h.OldestSeq > w.Applied+1 && h.SealedSeq > w.Applied:
		r.Reason, r.Detail = ledger.ReasonGap, "the oldest block that this edge still holds is not the next: blocks are lost; an operator may close the epoch"
	default:
		return nil
	}
	if r.Reason == ledger.ReasonFork {
		if err := e.s.cfg.Ledger.NoteFork(ctx, e.edge, h.Epoch, h.SealedSeq, [32]byte(h.Head)); err != nil {
			return fmt.Errorf("%w: %w", errLedger, err)
		}
	}
	return e.sendRefusal(r)
}

func (e *session) sendWatermark(w ledger.Watermark) error {
	return e.link.Send(&usagev1.UploadResponse{Message: &usagev1.UploadResponse_Watermark{Watermark: &usagev1.Watermark{
		Epoch: w.Epoch, AppliedSeq: w.Applied, Head: w.Head[:], LedgerIndex: w.Index}}})
}

func (e *session) sendRefusal(r *usagev1.Refusal) error {
	e.s.count(func(s *Stats) { s.Refused[r.Reason]++ })
	e.s.cfg.Ledger.NoteRefused(e.edge, r.Epoch, r.Seq, r.Reason, r.Detail, e.s.cfg.Now())
	e.s.cfg.Logger.Warn("usage refused", "edge", e.edge, "epoch", r.Epoch, "seq", r.Seq, "reason", r.Reason)
	return e.link.Send(&usagev1.UploadResponse{Message: &usagev1.UploadResponse_Refusal{Refusal: r}})
}
