package ship

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"bailiwick/dataplane/internal/spool"
	usagev1 "bailiwick/proto/gen/bailiwick/usage/v1"
	"bailiwick/shared/usage"
)

// session is one stream to one control node, from its first Hello to its end.
type session struct {
	s      *Shipper
	l      ledgerLink
	addr   string
	epochs map[uint64]*progress
	told   spool.Through // last heartbeat
	since  time.Time     // of the last answer, or of the first thing unanswered
	ok     bool          // something was answered
	begun  chan struct{} // closes then
}

// progress is one epoch's place in the session.
type progress struct {
	hello    bool   // sent
	welcomed bool   // its watermark has come
	next     uint64 // number of the block to send
	applied  uint64 // by the ledger
	resyncs  int    // Hellos since the last progress, after a GAP
	disputed uint64 // the highest block of the ledger's that it was told is not ours
	onWay    []flight
}

type flight struct {
	seq  uint64
	size int
}

// session runs until something fails; answered says whether the ledger said
// anything. It returns only after its goroutine has.
func (s *Shipper) session(ctx context.Context, addr string, l *line) (answered bool, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, l.Abort)
	defer stop()
	e := &session{s: s, l: l, addr: addr, epochs: map[uint64]*progress{}, begun: make(chan struct{})}
	defer s.gate.set(false)
	answers := make(chan *usagev1.UploadResponse, 64)
	var rerr error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(answers)
		for {
			m, err := l.Receive()
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
	if s.cfg.Detail != nil {
		wg.Go(func() {
			select {
			case <-e.begun: // the node knows a stream by its being the first
				s.details(ctx, l)
			case <-ctx.Done():
			}
		})
	}
	err = e.loop(ctx, answers)
	cancel()
	l.Abort()
	for range answers {
	}
	wg.Wait()
	if errors.Is(err, errEnded) {
		err = fmt.Errorf("the usage session ended: %w", rerr)
	}
	return e.ok, err
}

var errEnded = errors.New("stream ended")

// together is what the periods of an edge's beat are whole numbers of: what is due with others wakes nobody by itself.
const together = 50 * time.Millisecond

func (e *session) loop(ctx context.Context, answers <-chan *usagev1.UploadResponse) error {
	heart := e.s.cfg.Beat.Patient(e.s.cfg.Heartbeat)
	defer heart.Stop()
	look := max(e.s.cfg.Patience/8, time.Millisecond)
	if look > together {
		look = look.Truncate(together)
	}
	watch := e.s.cfg.Beat.Patient(look)
	defer watch.Stop()
	bye, began := e.s.bye, time.Now()
	for {
		changed := e.s.cfg.Spool.Changed()
		// Answers that are there go first: they free the window and may refuse.
		if err := e.drain(answers); err != nil {
			return err
		}
		e.s.gate.set(true)
		more, err := e.pump()
		if err != nil {
			return err
		}
		if more {
			continue
		}
		e.s.gate.set(false) // what is not sent now waits for the ledger, not for the line
		select {
		case <-ctx.Done():
			return ctx.Err()
		case m, ok := <-answers:
			if !ok {
				return errEnded
			}
			if err := e.answer(m); err != nil {
				return err
			}
		case <-changed:
		case <-bye:
			bye, e.told = nil, spool.Through{}
			if err := e.heartbeat(); err != nil {
				return err
			}
		case <-heart.C:
			heart.Again()
			e.told = spool.Through{} // also when it stays put: a silent session looks dead
			if err := e.heartbeat(); err != nil {
				return err
			}
			if waits, _ := e.unanswered(); !waits && e.abroad() && time.Since(began) > e.s.cfg.RetryHome {
				return errHome
			}
		case <-watch.C:
			watch.Again()
			if waits, bytes := e.unanswered(); waits && time.Since(e.since) > e.s.cfg.Patience+allowance(bytes) {
				return errStalled
			}
		}
	}
}

// abroad: another node than the one that detail should go to.
func (e *session) abroad() bool {
	addrs := e.s.cfg.Addrs()
	return len(addrs) > 0 && addrs[0] != e.addr
}

// allowance lets a large block pass a slow link: 128 KiB/s is enough to count
// as progress.
func allowance(bytes int) time.Duration {
	return time.Duration(bytes) * time.Second / (128 << 10)
}

func (e *session) drain(answers <-chan *usagev1.UploadResponse) error {
	for {
		select {
		case m, ok := <-answers:
			if !ok {
				return errEnded
			}
			if err := e.answer(m); err != nil {
				return err
			}
		default:
			return nil
		}
	}
}

func (e *session) unanswered() (waits bool, bytes int) {
	for _, p := range e.epochs {
		waits = waits || p.hello && !p.welcomed || len(p.onWay) > 0
		for _, f := range p.onWay {
			bytes += f.size
		}
	}
	return waits, bytes
}

// send gives up on a peer that does not read.
func (e *session) send(m *usagev1.UploadRequest, size int) error {
	if waits, _ := e.unanswered(); !waits {
		e.since = time.Now()
	}
	t := time.AfterFunc(e.s.cfg.Patience+allowance(size), e.l.Abort)
	err := e.l.Send(m)
	if !t.Stop() {
		return errStalled
	}
	if err != nil {
		return fmt.Errorf("send usage: %w", err)
	}
	return nil
}

// pump sends what may be sent. Epochs go strictly oldest first: the ledger
// closes an epoch of which it has nothing once a newer one has begun. For the
// same reason a refused epoch of which the ledger has nothing, and that might
// yet be taken, holds up the newer ones: late usage can be billed, closed
// epochs cannot. more: there is more to do at once.
func (e *session) pump() (more bool, err error) {
	epochs := e.s.cfg.Spool.Epochs()
	for i := range epochs {
		ep := &epochs[i]
		p := e.epochs[ep.Epoch]
		if p == nil {
			p = &progress{}
			e.epochs[ep.Epoch] = p
		}
		if !p.hello {
			if err := e.hello(ep, p); err != nil {
				return false, err
			}
		}
	}
	for i := range epochs {
		ep := &epochs[i]
		p := e.epochs[ep.Epoch]
		if r, ok := e.s.standing(ep.Epoch); ok {
			if r.hold {
				return false, nil
			}
			continue
		}
		if ep.Oldest > ep.Sealed {
			continue // nothing waits
		}
		if !p.welcomed {
			return false, nil
		}
		p.next = max(p.next, ep.Oldest)
		if p.next > ep.Sealed {
			return false, nil // all is on its way; the next epoch begins when it has arrived
		}
		return e.blocks(ep.Epoch, p)
	}
	return false, nil
}

func (e *session) hello(ep *spool.Epoch, p *progress) error {
	h := &usagev1.Hello{Epoch: ep.Epoch, OldestSeq: ep.Oldest, SealedSeq: ep.Sealed}
	if ep.Sealed > 0 {
		h.Head = ep.Head[:]
	}
	err := e.send(&usagev1.UploadRequest{Message: &usagev1.UploadRequest_Hello{Hello: h}}, 0)
	p.hello, p.welcomed, p.onWay = true, false, nil
	return err
}

// contest tells the ledger that its newest block is not this spool's, which has another one by that number, or
// none yet. It cannot know otherwise: nothing more is sent of the epoch, and all that the ledger has of it agrees
// with itself. Zeros stand for the hash of a block that was never sealed.
func (e *session) contest(w *usagev1.Watermark, ep *spool.Epoch, p *progress) error {
	if w.AppliedSeq <= p.disputed {
		return nil
	}
	p.disputed = w.AppliedSeq
	h := &usagev1.Hello{Epoch: w.Epoch, OldestSeq: ep.Oldest, SealedSeq: w.AppliedSeq, Head: make([]byte, 32)}
	if ep.Sealed == w.AppliedSeq {
		h.Head = ep.Head[:]
	}
	return e.send(&usagev1.UploadRequest{Message: &usagev1.UploadRequest_Hello{Hello: h}}, 0)
}

// blocks sends one window's worth at most.
func (e *session) blocks(epoch uint64, p *progress) (more bool, err error) {
	used := 0
	for _, f := range p.onWay {
		used += f.size
	}
	if len(p.onWay) >= e.s.cfg.Window || used >= e.s.cfg.WindowBytes {
		return false, nil
	}
	list, err := e.s.cfg.Spool.Blocks(epoch, p.next, min(e.s.cfg.WindowBytes-used, 1<<20))
	if err != nil { // its disk is damaged there: the rest cannot follow without it
		return false, err
	}
	for i := range list[:min(len(list), e.s.cfg.Window-len(p.onWay))] {
		b := &list[i]
		if b.Seq != p.next {
			return false, fmt.Errorf("the spool gave usage block %d/%d, want %d", epoch, b.Seq, p.next)
		}
		if err := e.block(b, p); err != nil {
			return false, err
		}
	}
	return len(list) > 0, nil
}

func (e *session) block(b *usage.Block, p *progress) error {
	m := &usagev1.Block{Epoch: b.Epoch, Seq: b.Seq, Prev: b.Prev[:], Payload: b.Payload, Hash: b.Hash[:]}
	if err := e.send(&usagev1.UploadRequest{Message: &usagev1.UploadRequest_Block{Block: m}}, len(b.Payload)); err != nil {
		return err
	}
	p.onWay = append(p.onWay, flight{b.Seq, len(b.Payload)})
	p.next = b.Seq + 1
	again := b.Seq <= e.s.highest[b.Epoch]
	e.s.highest[b.Epoch] = max(e.s.highest[b.Epoch], b.Seq)
	e.s.count(func(st *Stats) {
		st.BlocksSent++
		st.BytesSent += int64(len(b.Payload))
		if again {
			st.BlocksResent++
		}
	})
	return nil
}

// heartbeat says how far the usage is sealed: without it silence could not be
// told from absence of usage.
func (e *session) heartbeat() error {
	t := e.s.cfg.Spool.SealedThrough()
	p := e.epochs[t.Epoch]
	if p == nil || !p.welcomed || t == e.told {
		return nil
	}
	e.told = t
	return e.send(&usagev1.UploadRequest{Message: &usagev1.UploadRequest_SealedThrough{
		SealedThrough: &usagev1.SealedThrough{Epoch: t.Epoch, Seq: t.Seq, UnixMs: t.At.UnixMilli()}}}, 0)
}

func (e *session) answer(m *usagev1.UploadResponse) error {
	e.since = time.Now()
	if !e.ok {
		e.ok = true
		close(e.begun)
		e.s.count(func(st *Stats) {
			st.Sessions++
			st.Err, st.Transport, st.Addr = "", e.l.Transport(), e.addr
		})
		e.s.cfg.Logger.Info("usage session begins", "addr", e.addr, "transport", e.l.Transport())
	}
	switch {
	case m.GetWatermark() != nil:
		return e.watermark(m.GetWatermark())
	case m.GetRefusal() != nil:
		return e.refusal(m.GetRefusal())
	}
	return nil // a kind of a later version
}

func (e *session) watermark(w *usagev1.Watermark) error {
	p := e.epochs[w.Epoch]
	if p == nil {
		return fmt.Errorf("the ledger acknowledges epoch %d, which it was not told of", w.Epoch)
	}
	ep, here := e.epoch(w.Epoch)
	if !here {
		p.welcomed, p.onWay = true, nil
		return nil // acknowledged before
	}
	if w.AppliedSeq > 0 {
		if len(w.Head) != 32 {
			return fmt.Errorf("the ledger acknowledges %d/%d without a hash", w.Epoch, w.AppliedSeq)
		}
		switch err := e.s.cfg.Spool.Ack(w.Epoch, w.AppliedSeq, [32]byte(w.Head)); {
		case errors.Is(err, spool.ErrFork):
			p.welcomed, p.onWay = true, nil
			e.s.refuse(Refusal{Epoch: w.Epoch, Seq: w.AppliedSeq, Reason: ReasonFork, Detail: err.Error()}, false, true)
			return e.contest(w, &ep, p)
		case err != nil:
			return err
		}
	}
	if w.AppliedSeq+1 < ep.Oldest {
		p.welcomed, p.onWay = true, nil
		e.s.refuse(Refusal{Epoch: w.Epoch, Seq: ep.Oldest, Reason: ReasonGap,
			Detail: fmt.Sprintf("the ledger has blocks up to %d, but acknowledged up to %d before: it lost usage", w.AppliedSeq, ep.Oldest-1)}, false, false)
		return nil
	}
	if !p.welcomed {
		p.next = w.AppliedSeq + 1
	}
	p.welcomed = true
	p.onWay = slices.DeleteFunc(p.onWay, func(f flight) bool { return f.seq <= w.AppliedSeq })
	if w.AppliedSeq > p.applied {
		p.applied, p.resyncs = w.AppliedSeq, 0
		e.s.pardon(w.Epoch)
	}
	e.s.count(func(st *Stats) { st.Acks, st.LastAck = st.Acks+1, e.since })
	return e.heartbeat()
}

func (e *session) epoch(n uint64) (spool.Epoch, bool) {
	for _, ep := range e.s.cfg.Spool.Epochs() {
		if ep.Epoch == n {
			return ep, true
		}
	}
	return spool.Epoch{}, false
}

func (e *session) refusal(r *usagev1.Refusal) error {
	e.s.count(func(st *Stats) { st.Refusals++ })
	if r.Reason == ReasonWithdrawn {
		e.s.count(func(st *Stats) { st.Withdrawn = true })
		e.s.cfg.Logger.Error("the ledger takes no usage from this edge: it is withdrawn", "detail", r.Detail)
		return errWithdrawn
	}
	p := e.epochs[r.Epoch]
	if p == nil {
		return fmt.Errorf("the ledger refuses the session: %s: %s", r.Reason, r.Detail)
	}
	ep, here := e.epoch(r.Epoch)
	if !here {
		return nil
	}
	if _, standing := e.s.standing(r.Epoch); standing {
		return nil // what was on its way behind the block that was refused
	}
	if r.Reason == ReasonGap && r.ExpectedSeq >= ep.Oldest && r.ExpectedSeq <= ep.Sealed+1 {
		if !p.welcomed {
			return nil // a Hello for it is on its way; these are blocks sent before
		}
		if p.resyncs++; p.resyncs > 3 {
			return fmt.Errorf("the ledger asks for usage block %d/%d again and again", r.Epoch, r.ExpectedSeq)
		}
		return e.hello(&ep, p) // answered behind all refusals that are on their way
	}
	if r.Reason == ReasonMalformed && !slices.ContainsFunc(p.onWay, func(f flight) bool { return f.seq == r.Seq }) {
		e.s.cfg.Logger.Error("the ledger refuses a usage heartbeat: look at this edge's clock", "epoch", r.Epoch, "detail", r.Detail)
		return nil
	}
	p.onWay = nil
	begun := p.applied > 0 || ep.Oldest > 1
	mayHeal := r.Reason != ReasonGap && r.Reason != ReasonFork && r.Reason != ReasonQuarantined && r.Reason != ReasonEpochClosed
	p.next = 0 // if it is tried again: from the oldest
	e.s.refuse(Refusal{Epoch: r.Epoch, Seq: r.Seq, Reason: r.Reason, Detail: r.Detail}, mayHeal && !begun, r.Reason == ReasonEpochClosed)
	return nil
}
