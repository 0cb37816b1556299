package dataplane

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/ferry"
	"bailiwick/dataplane/internal/handover"
	"bailiwick/dataplane/internal/linger"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/quota"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/durable"
)

// DefaultLinger is Config.Linger where the edge is told nothing.
const DefaultLinger = linger.DefaultTime

// lingering is the process before this one, if requests go on there.
type lingering struct {
	conn     *handover.Lingering // nil: none do
	keeper   *linger.Keeper      // nil likewise
	marks    []ferry.Mark        // of its connections over QUIC
	forsaken atomic.Bool         // nothing is lent to its relays any more

	twinFirst, twinLast time.Time // when the zone took it for another machine; of the goroutine that asks for grants
}

const (
	unsealed    = 1 << 16 // more blocks than rows can make that a spool held when it was closed
	unheardFile = "unheard.json"
	unheardMost = 64
)

// keep begins to count for the process before. It comes when the spool and the leases are this one's, before anybody is served.
func (e *Edge) keep() {
	path := filepath.Join(e.cfg.Dir, "run", unheardFile)
	unheard := e.unheard(path)
	if e.before.conn == nil {
		e.quotas.Adopt(unheard, nil, nil)
		return
	}
	said, err := linger.Decode(e.before.conn.Said)
	if err != nil {
		e.log.Error("what goes on in the process before is cut", "error", err)
		e.before.conn.Close()
		e.quotas.Adopt(unheard, nil, nil)
		return
	}
	unheard = append(append(unheard, said.Unheard...), quota.Pending{Epoch: said.Epoch, Sealed: said.Sealed + unsealed})
	slices.SortFunc(unheard, func(a, b quota.Pending) int { return cmp.Compare(a.Epoch, b.Epoch) })
	unheard = slices.CompactFunc(unheard, func(a, b quota.Pending) bool { return a.Epoch == b.Epoch })
	unheard = unheard[max(0, len(unheard)-unheardMost):]
	raw, err := json.Marshal(unheard)
	if err == nil {
		err = durable.WriteFileAtomic(durable.OS(), path, raw, durable.FilePerm)
	}
	if err != nil { // all the same: it matters if this process is killed before the ledger has answered it once
		e.log.Error("which epochs' units are adopted cannot be written down", "error", err)
	}
	sublet := e.quotas.Adopt(unheard, said.Holding, func(name string) *policy.Plan {
		if t := e.tables.Load(); t != nil {
			return t.Plan(name)
		}
		return nil
	})
	e.before.keeper = linger.NewKeeper(linger.KeeperConfig{Conn: e.before.conn, Append: e.meter.Append, Sublet: sublet, Fresh: e.follow.Fresh, Logger: e.log,
		Lend: e.lend, Since: e.position(), Heard: e.toldOf})
	e.before.marks = said.Marks
	e.log.Info("requests go on in the process before", "held", sublet.Held())
	go e.before.keeper.Run()
}

// unheard reads which epochs a process adopted units of that may not have got to tell the ledger. They are of no interest once all
// rows since have been acknowledged.
func (e *Edge) unheard(path string) (list []quota.Pending) {
	raw, err := durable.ReadFile(durable.OS(), path, 1<<16)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err == nil {
		err = json.Unmarshal(raw, &list)
	}
	if err != nil {
		e.log.Error("which epochs' units were adopted cannot be read", "error", err)
		return nil
	}
	var newest uint64
	for _, p := range e.pendingEpochs() {
		newest = max(newest, p.Epoch)
	}
	return slices.DeleteFunc(list, func(p quota.Pending) bool { return p.Epoch > newest })
}

// table hands an update on.
func (l *lingering) table(parts []*syncv1.Signed) {
	if l.keeper != nil {
		l.keeper.Table(parts)
	}
}

// divert has it get what comes for its connections over QUIC, until it is gone.
func (l *lingering) divert(h3 *ferry.Conn) {
	if l.keeper == nil {
		return
	}
	for _, mark := range l.marks {
		h3.Divert(mark, l.keeper.Packet)
	}
	go func() {
		<-l.keeper.Gone()
		for _, mark := range l.marks {
			h3.Divert(mark, nil)
		}
	}()
}

// processes is how many linger.
func (l *lingering) processes() int {
	if l.keeper == nil {
		return 0
	}
	select {
	case <-l.keeper.Gone():
		return 0
	default:
		return l.keeper.Before()
	}
}

// relays is how many go on there; false: it has not said.
func (l *lingering) relays() (out, in int, known bool) {
	if l.keeper == nil {
		return 0, 0, true
	}
	return l.keeper.Relays()
}

// forsake lends its relays nothing any more, and returns when there are none, or none can go by what was lent before.
func (l *lingering) forsake() {
	l.forsaken.Store(true)
	for until := time.Now().Add(linger.LentTime + settleTime); time.Now().Before(until); time.Sleep(10 * time.Millisecond) {
		if out, in, known := l.relays(); known && out+in == 0 {
			return
		}
	}
}

// connections is how many the process before has.
func (l *lingering) connections() int64 {
	if l.keeper == nil {
		return 0
	}
	return l.keeper.Connections()
}

// rows is how many of its rows were counted here.
func (l *lingering) rows() int64 {
	if l.keeper == nil {
		return 0
	}
	return l.keeper.Rows()
}

// hurry has it end within a time.
func (l *lingering) hurry(within time.Duration) {
	if l.keeper != nil {
		l.keeper.Hurry(within)
	}
}

// older has the oldest that lingers end within a time. false: none does.
func (l *lingering) older(within time.Duration) bool {
	if l.processes() == 0 {
		return false
	}
	l.keeper.HurryOldest(within)
	return true
}

// endBefore waits, when this process stops for good, until the one before has ended: it was told to when the doors shut. What it breaks
// off then is counted here still, so there is some time for that.
func (e *Edge) endBefore(ctx context.Context) error {
	<-ctx.Done()
	if e.before.keeper == nil || e.still.on.Load() {
		return nil
	}
	patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), e.grace()+brokenTime)
	defer cancel()
	e.before.keeper.End(patience, e.grace())
	return nil
}

// stays is what goes on in this process when another has taken its place.
type stays struct {
	on atomic.Bool

	mu   sync.Mutex // covers ends
	ends []func()   // of what lasts as long, the first to end first
}

// lasting is a part that requests need which go on: it ends with them.
func (e *Edge) lasting(run func(context.Context) error) func(context.Context) error {
	return func(ctx context.Context) error {
		own, end := context.WithCancel(context.WithoutCancel(ctx))
		ended := make(chan error, 1)
		go func() { ended <- run(own) }()
		select {
		case err := <-ended:
			end()
			return err
		case <-ctx.Done():
		}
		if !e.still.on.Load() {
			end()
			return <-ended
		}
		e.still.mu.Lock()
		defer e.still.mu.Unlock()
		e.still.ends = append(e.still.ends, func() { end(); <-ended })
		return nil
	}
}

// end is when nothing goes on any more, or nobody counts for it: err says why.
func (s *stays) end(e *Edge, err error) {
	if err != nil {
		e.meter.Fail(err)
		gone, cancel := context.WithCancel(context.Background())
		cancel()
		e.endDoors(gone)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, end := range s.ends {
		end()
	}
	e.ups.CloseIdle()
}

// settle shuts the doors in favour of another process: what ends within settleTime ends here, and what does not goes on beside it;
// relays too, if it lends them what they go by. Clients over HTTP/3 are served on meanwhile: from when the
// socket is let go of they are not heard until the other process reads it.
func (e *Edge) settle(ctx context.Context) {
	soon, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	if e.before.processes() >= linger.MostBefore {
		e.before.older(drainTime)
	}
	stays := e.offer.LetsRelays()
	if stays {
		if err := e.stay(); err != nil {
			e.log.Error("relays that do not end soon are cut", "error", err)
			stays = false
		}
	}
	var drain sync.WaitGroup
	for _, s := range []*proxy.Door{e.servers.HTTPS, e.servers.HTTP} {
		drain.Go(func() { s.Settle(soon) })
	}
	if stays {
		e.inbound.Leave()
	} else {
		drain.Go(func() { e.inbound.Drain(ctx) })
		drain.Go(func() {
			for wait := time.Millisecond; e.relays.InFlight() > 0 && ctx.Err() == nil; wait = min(2*wait, 50*time.Millisecond) {
				select {
				case <-ctx.Done():
				case <-time.After(wait):
				}
			}
		})
	}
	drain.Wait()
	if err := e.h3.Detach(); err != nil {
		e.log.Error("connections over HTTP/3 are cut", "error", err)
		e.servers.H3.End(ctx)
	}
	now, cancel := context.WithCancel(ctx)
	cancel()
	e.servers.H3.Shutdown(now) // clients hear of it
	e.relays.Retire()
	if !stays { // what is left had its time, here and behind
		e.goBy(&grant.Held{})
		e.before.forsake()
	}
	e.staying()
	e.records.close()
	// Peers with sessions are told for a second that this edge leaves: nothing more is relayed over them.
	e.still.on.Store(e.left() > 0 || e.servers.H3.Busy() || e.before.processes() > 0 || e.inbound.Sessions() > 0)
	e.access.Share()
}

// left is how many connections there are.
func (e *Edge) left() int64 { return e.servers.Connections().Open }

// marks are those of connections over QUIC here, and in processes before.
func (e *Edge) marks() []ferry.Mark {
	if e.before.processes() == 0 {
		return []ferry.Mark{e.h3.Mark()}
	}
	return append([]ferry.Mark{e.h3.Mark()}, e.before.marks...)
}

// endDoors waits until nothing goes on behind the doors; what does when ctx ends is told, and cut.
func (e *Edge) endDoors(ctx context.Context) {
	var drain sync.WaitGroup
	for _, s := range []*proxy.Door{e.servers.HTTPS, e.servers.HTTP} {
		drain.Go(func() { s.Outlast(ctx) })
	}
	drain.Go(func() { e.servers.H3.End(ctx) })
	drain.Go(func() { e.inbound.Outlast(ctx) })
	drain.Wait()
	e.h3.Close()
}

// goOn tells the successor what goes on, and returns when it has ended: by itself, after Config.Linger, or because nobody counts for it any
// more.
func (e *Edge) goOn(ctx context.Context) error {
	stats := e.spool.Stats()
	said, err := (&linger.Said{Epoch: stats.Epoch, Sealed: stats.Seq, Holding: e.quotas.Holding(), Unheard: e.quotas.Unheard(), Marks: e.marks()}).Encode()
	if err != nil {
		return err
	}
	conn, err := e.offer.Still(said)
	if err != nil {
		return err
	}
	link := linger.NewLink(linger.LinkConfig{Conn: conn, Table: e.follow.Take, Fresh: e.follow.Confirmed, Older: e.before.older, Packet: e.h3.Deliver,
		Left: func() (int64, int) { return e.left(), e.before.processes() }, Heed: e.heed, At: e.position, Lent: e.borrow})
	e.meter.Through(link)
	began := time.Now()
	e.log.Info("another process serves; requests under way go on here", "flights", e.left(), "limit", e.cfg.Linger)
	life, cancel := context.WithTimeoutCause(context.WithoutCancel(ctx), e.cfg.Linger, errors.New("they may go on no longer"))
	defer cancel()
	end, over := context.WithCancelCause(life)
	defer over(nil)
	lost, cut := context.WithCancel(context.WithoutCancel(ctx))
	defer cut()
	var parts sync.WaitGroup
	parts.Go(func() {
		if err := link.Run(); err != nil { // at once: what is served from here on is not counted
			cut()
			e.endRelays()
			e.servers.HTTPS.Close()
			e.servers.HTTP.Close()
			e.servers.H3.Close()
			over(err)
		}
	})
	var quotas sync.WaitGroup
	quotas.Go(func() { e.quotas.RunUnder(end, link) })
	parts.Go(func() {
		var within time.Duration
		select {
		case <-end.Done():
			return
		case within = <-link.Ending():
		case <-ctx.Done():
			within = drainTime
		}
		e.before.hurry(within)
		select {
		case <-end.Done():
		case <-time.After(within):
			over(errors.New("the process that serves ends, or has too many before it"))
		}
	})
	e.endDoors(end)
	if k := e.before.keeper; k != nil { // the process before counts through this one
		select {
		case <-k.Gone():
		case <-end.Done():
			patience, cancel := context.WithTimeout(context.WithoutCancel(ctx), brokenTime)
			stop := context.AfterFunc(lost, cancel)
			k.End(patience, 0)
			stop()
			cancel()
		}
	}
	why := context.Cause(end)
	over(nil)
	quotas.Wait() // it has a last word
	e.endRelays()
	link.Close()
	parts.Wait()
	e.log.Info("what went on here has ended", "after", time.Since(began).Round(time.Millisecond), "reason", why)
	return nil
}
