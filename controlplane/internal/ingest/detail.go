package ingest

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/semaphore"

	"bailiwick/controlplane/internal/detail"
	"bailiwick/controlplane/internal/ledger"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/usage"
)

type detailLink = link[usagev1.UploadDetailRequest, usagev1.UploadDetailResponse]

var errDetail = errors.New("this node's store of detail takes nothing now")

const (
	detailBatch = 1 << 20 // of pieces handed to the store at once
	detailQueue = 4 << 20 // of one session in memory
	behindPause = 250 * time.Millisecond
)

// detailSession is one edge's stream of detail, in the manner of session: the
// reader checks and queues, the writer stores and answers in order. It shares
// nothing with the ledger's session but the connection, so it may stand still.
type detailSession struct {
	s            *Server
	link         detailLink
	edge, region string

	floors map[uint64]uint64 // by opened epoch, the oldest number that the edge still has; the reader's
	queue  chan detailItem
	room   *semaphore.Weighted
}

// detailItem is something to answer, exactly one of the three.
type detailItem struct {
	hello   *usagev1.DetailHello
	entry   *detail.Entry
	refusal *usagev1.DetailRefusal
	epoch   uint64 // of entry
	weight  int64
}

// serveDetail runs one session to its end. nil: the edge ended it.
func (s *Server) serveDetail(ctx context.Context, l detailLink, transport, edge, region string) error {
	if s.cfg.Detail == nil {
		return fmt.Errorf("%w: it has none", errDetail)
	}
	e := &detailSession{s: s, link: l, edge: edge, region: region, floors: make(map[uint64]uint64),
		queue: make(chan detailItem, queueItems), room: semaphore.NewWeighted(detailQueue)}
	return s.hold(ctx, sessionKey{transport: transport, edge: edge, detail: true}, region, "detail", l.Abort, e.read, e.write, func() { close(e.queue) })
}

func (e *detailSession) put(ctx context.Context, it detailItem) error {
	it.weight = min(it.weight+256, detailQueue)
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

func (e *detailSession) refuse(ctx context.Context, epoch, number uint64, reason, why string) error {
	return e.put(ctx, detailItem{refusal: &usagev1.DetailRefusal{Epoch: epoch, Number: number, Reason: reason, Detail: why}})
}

func (e *detailSession) read(ctx context.Context) error {
	if reason, err := e.s.cfg.AllowDetail(e.edge, e.region, nil); err != nil {
		return fmt.Errorf("%w: %w", errDetail, err)
	} else if reason != "" {
		return errors.Join(errWithdrawn, e.refuse(ctx, 0, 0, reason, "this edge may not bring detail"))
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
			if h.Epoch == 0 {
				err = e.refuse(ctx, 0, 0, ledger.ReasonMalformed, "hello needs an epoch from 1")
				break
			}
			e.floors[h.Epoch] = h.Oldest
			if len(e.floors) > 1024 {
				return errors.Join(errMalformed, e.refuse(ctx, h.Epoch, 0, ledger.ReasonMalformed, "too many epochs in one session"))
			}
			err = e.put(ctx, detailItem{hello: h})
		case m.GetBlock() != nil:
			err = e.piece(ctx, m.GetBlock())
		case m.GetLost() != nil:
			err = e.lost(ctx, m.GetLost())
		default:
			err = e.refuse(ctx, 0, 0, ledger.ReasonMalformed, "the message is of a kind this node does not know")
		}
		if err != nil {
			return err
		}
	}
}

func (e *detailSession) piece(ctx context.Context, m *usagev1.DetailBlock) error {
	floor, opened := e.floors[m.Epoch]
	p, reason, why, err := e.judge(m, opened)
	if err != nil {
		return err
	}
	if reason != "" {
		err := e.refuse(ctx, m.Epoch, m.Number, reason, why)
		if reason == ReasonWithdrawn {
			return errors.Join(errWithdrawn, err)
		}
		return err
	}
	return e.put(ctx, detailItem{entry: &detail.Entry{Piece: &p, Floor: floor}, epoch: m.Epoch, weight: int64(len(m.Payload))})
}

func (e *detailSession) judge(m *usagev1.DetailBlock, opened bool) (p detail.Piece, reason, why string, err error) {
	malformed := func(why string) (detail.Piece, string, string, error) {
		return detail.Piece{}, ledger.ReasonMalformed, why, nil
	}
	switch {
	case !opened:
		return malformed("a piece needs its epoch's hello first")
	case m.Number == 0 || len(m.Hash) != 32:
		return malformed("a piece needs a number from 1 and a hash of 32 bytes")
	case usage.HashDetail(e.edge, m.Epoch, m.Number, m.Seq, m.Payload) != [32]byte(m.Hash):
		return malformed("the hash is not this piece's")
	}
	if p, err = detail.NewPiece(e.edge, e.region, m.Epoch, m.Number, m.Seq, m.Payload); err != nil {
		return malformed("the payload does not decode")
	}
	if p.Last().After(e.s.cfg.Now().Add(e.s.cfg.Future)) {
		return malformed("a row lies in the future: look at the edge's clock")
	}
	if reason, err = e.s.cfg.AllowDetail(e.edge, e.region, p.Customers); err != nil {
		return p, "", "", fmt.Errorf("%w: %w", errDetail, err)
	}
	switch reason {
	case "":
	case ReasonForeignCustomer:
		why = "a row names a customer that is not of this zone"
	case ReasonWithdrawn:
		why = "this edge may not bring detail"
	}
	return p, reason, why, nil
}

func (e *detailSession) lost(ctx context.Context, m *usagev1.DetailLost) error {
	floor, opened := e.floors[m.Epoch]
	since, until := time.UnixMilli(m.SinceUnixMs).UTC(), time.UnixMilli(m.UntilUnixMs).UTC()
	if !opened || m.From == 0 || m.To < m.From || m.To == 1<<64-1 || m.Rows < 0 || until.Before(since) || until.After(e.s.cfg.Now().Add(e.s.cfg.Future)) {
		return e.refuse(ctx, m.Epoch, m.From, ledger.ReasonMalformed, "lost needs its epoch's hello, numbers and rows that can be, and a time that is not in the future")
	}
	l := &detail.Lost{Edge: e.edge, Epoch: m.Epoch, From: m.From, To: m.To, Rows: m.Rows, Since: since, Until: until}
	return e.put(ctx, detailItem{entry: &detail.Entry{Lost: l, Floor: floor}, epoch: m.Epoch})
}

// write answers until the queue is closed and drained.
func (e *detailSession) write(ctx context.Context) error {
	var held *detailItem
	for {
		var it detailItem
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
		weight := it.weight
		switch {
		case it.hello != nil:
			err = e.sendMark(it.hello.Epoch, e.s.cfg.Detail.Mark(e.edge, it.hello.Epoch))
		case it.refusal != nil:
			err = e.sendRefusal(it.refusal)
		default:
			batch := []detail.Entry{*it.entry}
			size := it.weight
		gather:
			for {
				select {
				case next, ok := <-e.queue:
					if !ok {
						break gather
					}
					if next.entry == nil || next.epoch != it.epoch || size+next.weight > detailBatch {
						held = &next
						break gather
					}
					batch, size = append(batch, *next.entry), size+next.weight
				default:
					break gather
				}
			}
			weight = size
			err = e.store(ctx, it.epoch, batch)
		}
		e.room.Release(weight)
		if err != nil {
			return err
		}
	}
}

// store waits while the node is behind: what waits here waits in the network
// and then at the edge, which has the space for it.
func (e *detailSession) store(ctx context.Context, epoch uint64, batch []detail.Entry) error {
	answers, err := e.s.cfg.Detail.Append(ctx, e.edge, epoch, batch...)
	for fault.ReasonOf(err) == detail.ReasonBehind {
		select {
		case <-time.After(behindPause):
		case <-ctx.Done():
			return ctx.Err()
		}
		answers, err = e.s.cfg.Detail.Append(ctx, e.edge, epoch, batch...)
	}
	if err != nil {
		return fmt.Errorf("%w: %w", errDetail, err)
	}
	for i, a := range answers {
		if a.Gap {
			n := uint64(0)
			if p := batch[i].Piece; p != nil {
				n = p.Number
			} else {
				n = batch[i].Lost.From
			}
			err = e.sendRefusal(&usagev1.DetailRefusal{Epoch: epoch, Number: n, Reason: ledger.ReasonGap, Detail: "numbers before it are missing", Expected: a.Expected})
		} else {
			e.s.count(func(s *Stats) { s.Pieces++ })
			if i == len(answers)-1 || answers[i+1].Gap {
				err = e.sendMark(epoch, a.Stored)
			}
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (e *detailSession) sendMark(epoch, stored uint64) error {
	return e.link.Send(&usagev1.UploadDetailResponse{Message: &usagev1.UploadDetailResponse_Mark{Mark: &usagev1.DetailMark{Epoch: epoch, Stored: stored, Reads: usage.DetailVersion}}})
}

func (e *detailSession) sendRefusal(r *usagev1.DetailRefusal) error {
	e.s.count(func(s *Stats) { s.Refused[r.Reason]++ })
	e.s.cfg.Logger.Warn("detail refused", "edge", e.edge, "epoch", r.Epoch, "number", r.Number, "reason", r.Reason)
	return e.link.Send(&usagev1.UploadDetailResponse{Message: &usagev1.UploadDetailResponse_Refusal{Refusal: r}})
}
