package linger

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/quota"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/regions/grant"
	"bailiwick/shared/usage"
)

// ErrLost answers whoever wants to count when the owner is gone.
var ErrLost = errors.New("the process that took this one's place does nothing for it any more")

// LinkConfig describes a Link. All but Older, Packet and what is of relays are required.
type LinkConfig struct {
	Conn   net.Conn
	Table  func(*syncv1.Signed) error // takes parts of updates in their order; an error ends the Link
	Fresh  func(time.Time)
	Left   func() (connections int64, before int)
	Older  func(within time.Duration) bool // has the oldest process that lingers behind this one end; false: there is none. nil: there never is
	Packet func(frame []byte) error        // takes a frame of package ferry, which is valid during the call; an error ends the Link

	// Heed is what relays do here, and At by which table all has been cut that it forbids, asked after each call of Table. Lent takes
	// what they go by, from when they were spoken of; nothing, at once when the connection has ended. nil: there are none.
	Heed func() Heed
	At   func() grant.At
	Lent func(l grant.Lent, asked time.Time)
}

// Link is the older process's end.
type Link struct {
	cfg     LinkConfig
	wire    wire
	heeding heeding

	lost   chan struct{} // closed when nothing can be counted any more
	ending chan time.Duration
	lents  chan lentAt // holds the newest

	mu      sync.Mutex // covers the rest
	why     error
	n       uint64
	waiting map[uint64]chan error
	asking  *asking          // who waits for the answer to an exchange; nil: nobody
	parts   []*syncv1.Signed // of updates that are not in force yet
	behind  int              // bytes of them
	wake    chan struct{}    // holds one: there are parts
}

// asking is an exchange under way. Of an older one, which was given up, an answer may still come.
type asking struct {
	sequence uint64
	answer   chan *quota.Response // holds one
}

type lentAt struct {
	lent  grant.Lent
	asked time.Time
}

// row is one row on its way.
type row struct {
	N   uint64    `json:"n"`
	Row usage.Row `json:"row"`
}

// NewLink makes a Link; Run must run for anything to be answered.
func NewLink(cfg LinkConfig) *Link {
	l := &Link{cfg: cfg, wire: newWire(cfg.Conn), lost: make(chan struct{}), ending: make(chan time.Duration, 1), lents: make(chan lentAt, 1), wake: make(chan struct{}, 1), waiting: map[uint64]chan error{}}
	l.heeding.soon = make(chan struct{}, 1)
	if cfg.At != nil {
		l.heeding.at = cfg.At()
	}
	return l
}

// Lost is closed when nothing can be counted any more.
func (l *Link) Lost() <-chan struct{} { return l.lost }

// Ending says how much time is left when the owner ends too, or another has too many before it.
func (l *Link) Ending() <-chan time.Duration { return l.ending }

// Healthy says why nothing can be counted.
func (l *Link) Healthy() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.why
}

// Close ends it, with a last word on relays, of which the caller has cut those that were left: who has heard that there are none waits
// for none.
func (l *Link) Close() {
	if l.cfg.Heed != nil && l.Healthy() == nil {
		l.wire.sendJSON(frameHeed, l.heeding.next(l.cfg.Heed()))
	}
	l.lose(net.ErrClosed)
}

func (l *Link) lose(why error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.why != nil {
		return
	}
	l.why = fmt.Errorf("%w: %w", ErrLost, why)
	close(l.lost)
	l.wire.Close()
}

// Append has the owner keep a row: nil when it is in its spool, as after spool.Append. An error says that it is not, or that nobody
// knows, as after an error of a disk; it is not sent again.
func (l *Link) Append(r *usage.Row) error {
	done := make(chan error, 1)
	l.mu.Lock()
	if l.why != nil {
		defer l.mu.Unlock()
		return fmt.Errorf("append usage row: %w", l.why)
	}
	l.n++
	n := l.n
	l.waiting[n] = done
	l.mu.Unlock()
	if err := l.wire.sendJSON(frameRow, row{n, *r}); err != nil {
		l.lose(err)
	}
	late := time.NewTimer(answerTime)
	defer late.Stop()
	select {
	case err := <-done:
		return err
	case <-late.C:
		l.lose(fmt.Errorf("a row was not answered for %s", answerTime))
	case <-l.lost:
	}
	select {
	case err := <-done: // it came with the end
		return err
	default:
		return fmt.Errorf("append usage row: %w", l.Healthy())
	}
}

// Exchange implements quota.Leader. A Book makes one at a time.
func (l *Link) Exchange(ctx context.Context, r *quota.Request) (*quota.Response, error) {
	k := &asking{r.Sequence, make(chan *quota.Response, 1)}
	l.mu.Lock()
	l.asking = k
	l.mu.Unlock()
	if err := l.wire.sendJSON(frameAsk, r); err != nil {
		l.lose(err)
	}
	select {
	case out := <-k.answer:
		return out, nil
	case <-l.lost:
		return nil, l.Healthy()
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// Run works until the connection ends, which it says why.
func (l *Link) Run() error {
	told := make(chan struct{})
	var helpers sync.WaitGroup
	helpers.Go(func() { // beside who reads: a whole table takes seconds to build, and rows are answered meanwhile
		for {
			select {
			case <-told:
				return
			case <-l.wake:
			}
			for _, signed := range l.take() {
				if l.Healthy() != nil {
					return
				}
				if err := l.cfg.Table(signed); err != nil {
					l.lose(err)
					return
				}
				if l.cfg.At != nil {
					l.heeding.obeys(l.cfg.At())
				}
			}
		}
	})
	helpers.Go(func() {
		tick := time.NewTicker(tellEvery)
		defer tick.Stop()
		for {
			connections, before := l.cfg.Left()
			if err := l.wire.sendJSON(frameLeft, left{connections, before}); err != nil {
				l.lose(err)
				return
			}
			select {
			case <-told:
				return
			case <-tick.C:
			}
		}
	})
	helpers.Go(func() { l.heed(told) })
	helpers.Go(func() { // likewise: it may close connections
		for {
			select {
			case <-l.lost: // whoever starts next may say that what was lent has ended, whatever is being put in force here
				if l.cfg.Lent != nil {
					l.cfg.Lent(grant.Lent{}, time.Now())
				}
				return
			case m := <-l.lents:
				l.cfg.Lent(m.lent, m.asked)
			}
		}
	})
	l.lose(l.read())
	close(told)
	helpers.Wait()
	return l.Healthy()
}

// add puts a part of an update behind those that wait. It waits for nothing: rows and relays are answered meanwhile.
func (l *Link) add(signed *syncv1.Signed) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.parts, l.behind = append(l.parts, signed), l.behind+len(signed.GetPayload())
	if l.behind > maxBehind {
		return fmt.Errorf("%d bytes of tables wait to be put in force", l.behind)
	}
	select {
	case l.wake <- struct{}{}:
	default:
	}
	return nil
}

func (l *Link) take() []*syncv1.Signed {
	l.mu.Lock()
	defer l.mu.Unlock()
	parts := l.parts
	l.parts, l.behind = nil, 0
	return parts
}

// heed speaks of relays until there are none: more do not begin.
func (l *Link) heed(told <-chan struct{}) {
	if l.cfg.Heed == nil {
		return
	}
	tick := time.NewTicker(heedEvery)
	defer tick.Stop()
	for {
		said := l.cfg.Heed()
		if err := l.wire.sendJSON(frameHeed, l.heeding.next(said)); err != nil {
			l.lose(err) // who reads may wait for a table to be put in force
			return
		}
		if said.Out+said.In == 0 {
			return
		}
		select {
		case <-told:
			return
		case <-tick.C:
		case <-l.heeding.soon: // keys change hundreds of times a second
			select {
			case <-told:
				return
			case <-time.After(heedSoon):
			}
		}
	}
}

func (l *Link) read() error {
	r := bufio.NewReaderSize(l.wire.Conn, 64<<10)
	room := make([]byte, 4<<10)
	for {
		kind, b, err := l.wire.receive(r, room)
		if err != nil {
			return err
		}
		switch kind {
		case frameKept:
			err = l.kept(b)
		case frameStates:
			err = l.states(b)
		case frameTable:
			signed := &syncv1.Signed{}
			if err = proto.Unmarshal(append([]byte(nil), b...), signed); err == nil {
				err = l.add(signed)
			}
		case frameLent:
			var m lent
			if err = json.Unmarshal(b, &m); err != nil {
				break
			}
			if asked, newer := l.heeding.answered(m.N); newer && l.cfg.Lent != nil {
				select {
				case <-l.lents:
				default:
				}
				l.lents <- lentAt{m.Lent, asked} // nobody else sends
			}
		case frameFresh:
			if len(b) != 8 {
				return errFrame
			}
			if at := binary.BigEndian.Uint64(b); at != 0 {
				l.cfg.Fresh(time.UnixMilli(int64(at)))
			}
		case frameEnd:
			var e ending
			if err = json.Unmarshal(b, &e); err != nil {
				break
			}
			e.Within = max(0, e.Within)
			if e.Oldest && l.cfg.Older != nil && l.cfg.Older(e.Within) {
				break
			}
			select {
			case l.ending <- e.Within:
			default:
			}
		case framePacket:
			if l.cfg.Packet != nil {
				err = l.cfg.Packet(b)
			}
		}
		if err != nil {
			return err
		}
	}
}

func (l *Link) states(b []byte) error {
	out := &quota.Response{}
	if err := json.Unmarshal(b, out); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if k := l.asking; k != nil && k.sequence == out.Sequence {
		k.answer <- out
		l.asking = nil
	}
	return nil
}

func (l *Link) kept(b []byte) error {
	var k rowKept
	if err := json.Unmarshal(b, &k); err != nil {
		return fmt.Errorf("%w: %w", errFrame, err)
	}
	l.mu.Lock()
	done := l.waiting[k.N]
	delete(l.waiting, k.N)
	l.mu.Unlock()
	if done == nil {
		return nil
	}
	if k.Error != "" {
		done <- errors.New(k.Error)
	} else {
		done <- nil
	}
	return nil
}
