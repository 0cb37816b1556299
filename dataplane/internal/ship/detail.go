package ship

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"bailiwick/dataplane/internal/detail"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/usage"
)

const (
	detailChunk  = 16 << 10  // of a piece, between two looks whether the ledger has something to send
	detailWindow = 256 << 10 // of pieces on their way: a node that is slow to store fills nobody's buffers
)

// gate keeps detail back while the ledger's session has blocks to send: those
// wait for one chunk at most.
type gate struct {
	mu   sync.Mutex    // covers what follows
	open chan struct{} // closed while detail may go
	shut bool
}

func (g *gate) set(shut bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	switch {
	case g.open == nil:
		g.open = make(chan struct{})
		close(g.open)
		fallthrough
	case g.shut != shut:
		if shut && !g.shut {
			g.open = make(chan struct{})
		} else if !shut && g.shut {
			close(g.open)
		}
		g.shut = shut
	}
}

func (g *gate) wait(ctx context.Context) {
	g.mu.Lock()
	open, shut := g.open, g.shut
	g.mu.Unlock()
	if !shut {
		return
	}
	select {
	case <-open:
	case <-ctx.Done():
	}
}

// details opens detail sessions beside a ledger session until ctx ends with it.
func (s *Shipper) details(ctx context.Context, l *line) {
	for attempt := 0; ctx.Err() == nil; attempt++ {
		began := time.Now()
		err := s.detailRound(ctx, l)
		if ctx.Err() != nil {
			return
		}
		if err == nil {
			err = errEnded
		}
		news := false
		s.count(func(st *Stats) { news, st.DetailErr = st.DetailErr != err.Error(), err.Error() })
		if news {
			s.cfg.Logger.Warn("detail session", "error", err)
		}
		if time.Since(began) > time.Minute {
			attempt = 0
		}
		pause := min(s.cfg.Backoff<<min(attempt, 10), 30*time.Second)
		if errors.Is(err, errWithdrawn) {
			pause = s.cfg.RetryRefused
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func (s *Shipper) detailRound(ctx context.Context, l *line) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	d, err := l.openDetail(ctx)
	if err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, d.Abort)
	defer stop()
	defer d.Abort()
	e := &detailSession{s: s, l: d, epochs: map[uint64]*detailProgress{}}
	answers := make(chan *usagev1.UploadDetailResponse, 64)
	var rerr error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(answers)
		for {
			m, err := d.Receive()
			if err != nil {
				rerr = err
				return
			}
			select {
			case answers <- m:
			case <-ctx.Done():
				rerr = ctx.Err()
				return
			}
		}
	})
	err = e.loop(ctx, answers)
	cancel()
	d.Abort()
	for range answers {
	}
	wg.Wait()
	if errors.Is(err, errEnded) {
		err = fmt.Errorf("the detail session ended: %w", rerr)
	}
	return err
}

// detailSession is one stream of detail to one control node. Its pieces are
// answered in order; it may stand still for as long as the node likes, and the
// spool of detail has the space for it, or says what it gave up.
type detailSession struct {
	s      *Shipper
	l      detailLink
	epochs map[uint64]*detailProgress
	reads  uint32 // the newest version of the detail part that the node reads, by its first mark
}

type detailProgress struct {
	welcomed bool // its mark has come
	next     uint64
	onWay    []flight // seq is the last number that the message covers
	resyncs  int
}

func (e *detailSession) loop(ctx context.Context, answers <-chan *usagev1.UploadDetailResponse) error {
	for {
		changed := e.s.cfg.Detail.Changed()
		more, err := e.pump()
		if err != nil {
			return err
		}
		if more {
			select {
			case m, ok := <-answers:
				if !ok {
					return errEnded
				}
				if err := e.answer(m); err != nil {
					return err
				}
			case <-ctx.Done():
				return ctx.Err()
			default:
			}
			continue
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-changed:
		case m, ok := <-answers:
			if !ok {
				return errEnded
			}
			if err := e.answer(m); err != nil {
				return err
			}
		}
	}
}

// pump sends one message, of the oldest epoch that has something. An epoch waits
// for the one before: then a node sees them in order.
func (e *detailSession) pump() (more bool, err error) {
	for _, ep := range e.s.cfg.Detail.Epochs() {
		if ep.Oldest > ep.Written {
			continue
		}
		p := e.epochs[ep.Epoch]
		if p == nil {
			p = &detailProgress{}
			e.epochs[ep.Epoch] = p
			return false, e.hello(&ep)
		}
		p.next = max(p.next, ep.Oldest)
		used := 0
		for _, f := range p.onWay {
			used += f.size
		}
		if !p.welcomed || p.next > ep.Written || used >= detailWindow {
			return false, nil
		}
		it, ok, err := e.s.cfg.Detail.Next(ep.Epoch, p.next)
		if err != nil || !ok {
			return false, err
		}
		return true, e.send(ep.Epoch, p, &it)
	}
	return false, nil
}

func (e *detailSession) hello(ep *detail.Epoch) error {
	return e.l.Send(&usagev1.UploadDetailRequest{Message: &usagev1.UploadDetailRequest_Hello{
		Hello: &usagev1.DetailHello{Epoch: ep.Epoch, Oldest: ep.Oldest, Written: ep.Written}}})
}

func (e *detailSession) send(epoch uint64, p *detailProgress, it *detail.Item) error {
	if l := it.Lost; l != nil {
		m := &usagev1.DetailLost{Epoch: epoch, From: max(l.From, p.next), To: l.To, Rows: l.Rows, SinceUnixMs: l.SinceMS, UntilUnixMs: max(l.SinceMS, l.UntilMS)}
		p.next = l.To + 1
		p.onWay = append(p.onWay, flight{l.To, 64})
		return e.l.Send(&usagev1.UploadDetailRequest{Message: &usagev1.UploadDetailRequest_Lost{Lost: m}})
	}
	d := &it.Piece
	// What cannot be written for an older node goes as it is: it is refused there, and becomes a loss. Nothing waits behind it.
	if payload, err := usage.DetailFor(d.Payload, e.reads); err == nil && len(payload) > 0 && &payload[0] != &d.Payload[0] {
		d.Payload = payload
		d.Hash = usage.HashDetail(d.Edge, d.Epoch, d.Number, d.Seq, payload)
	}
	m := &usagev1.DetailBlock{Epoch: epoch, Number: d.Number, Seq: d.Seq, Payload: d.Payload, Hash: d.Hash[:]}
	p.next = d.Number + 1
	p.onWay = append(p.onWay, flight{d.Number, len(d.Payload)})
	e.s.count(func(st *Stats) {
		st.PiecesSent, st.DetailBytesSent = st.PiecesSent+1, st.DetailBytesSent+int64(len(d.Payload))
	})
	return e.l.Send(&usagev1.UploadDetailRequest{Message: &usagev1.UploadDetailRequest_Block{Block: m}})
}

func (e *detailSession) answer(m *usagev1.UploadDetailResponse) error {
	if k := m.GetMark(); k != nil {
		p := e.epochs[k.Epoch]
		if p == nil {
			return fmt.Errorf("the control node marks detail of epoch %d, which it was not told of", k.Epoch)
		}
		e.reads = k.Reads
		if err := e.s.cfg.Detail.Mark(k.Epoch, k.Stored); err != nil {
			return err
		}
		if !p.welcomed {
			p.welcomed, p.next = true, k.Stored+1
		}
		left := p.onWay[:0]
		for _, f := range p.onWay {
			if f.seq > k.Stored {
				left = append(left, f)
			}
		}
		p.onWay, p.resyncs = left, 0
		e.s.count(func(st *Stats) { st.DetailErr = "" })
		return nil
	}
	r := m.GetRefusal()
	if r == nil {
		return nil // a kind of a later version
	}
	p := e.epochs[r.Epoch]
	switch {
	case r.Reason == ReasonWithdrawn:
		return errWithdrawn
	case p == nil || r.Number == 0:
		return fmt.Errorf("the control node refuses detail: %s: %s", r.Reason, r.Detail)
	case r.Reason == ReasonGap:
		if p.resyncs++; p.resyncs > 3 {
			return fmt.Errorf("the control node asks for detail %d/%d again and again", r.Epoch, r.Expected)
		}
		if len(p.onWay) > 0 && r.Expected > 0 { // all behind it is refused too; the first refusal says where to go on
			p.next, p.onWay = r.Expected, nil
		}
		return nil
	}
	// Refused for what it is: the next session offers it once more, perhaps to
	// another node; then it becomes a loss, or nothing behind it would arrive.
	if key := [2]uint64{r.Epoch, r.Number}; e.s.offered != key {
		e.s.offered = key
	} else if err := e.s.cfg.Detail.GiveUp(r.Epoch, r.Number); err != nil {
		return err
	}
	return fmt.Errorf("the control node refuses detail %d/%d: %s: %s", r.Epoch, r.Number, r.Reason, r.Detail)
}
