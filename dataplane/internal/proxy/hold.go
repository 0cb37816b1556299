package proxy

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/dataplane/internal/relay"
)

// letGoMost is how long an upstream is taken to work on a request that its client took back, if it says nothing.
const letGoMost = 30 * time.Second

// hold is of one attempt that counts against a bound. Where its client takes it back before there is an answer the upstream is
// told, and whatever the request holds is held until the upstream has let go. Else whoever opens and resets requests has as much
// done as he likes. Over HTTP/1.1 it is told by the end of what is sent, and lets go by closing the connection, or by an answer;
// over HTTP/2 by the stream's reset, and lets go by ending the stream itself or by answering what was sent behind that; a receiver
// of relays likewise, and says when its own upstream has (relay.Error.LetGo).
type hold struct {
	wanted func() bool // it is the client's doing that the attempt ends
	state  atomic.Int32
	done   chan struct{} // closed when the upstream has let go
	place  failover.Candidate
}

const (
	holdIdle = iota
	holdBegun
	holdOver
)

// begin says whether the upstream is awaited from now on.
func (h *hold) begin() bool {
	return h != nil && h.wanted() && h.state.CompareAndSwap(holdIdle, holdBegun)
}

// begun says whether it is, or was.
func (h *hold) begun() bool { return h != nil && h.state.Load() != holdIdle }

// over says that the upstream has let go of what it was awaited for.
func (h *hold) over() {
	if h.state.CompareAndSwap(holdBegun, holdOver) {
		close(h.done)
	}
}

// tellEnd ends what is sent to an upstream, which still may answer. false: that cannot be told.
func tellEnd(conn net.Conn) bool {
	half, ok := conn.(interface{ CloseWrite() error })
	return ok && half.CloseWrite() == nil
}

// holds are those of a call, a hedge's too.
type holds struct {
	over func()     // is called when all have let go, and there will be no more; nil: nobody asks
	mu   sync.Mutex // covers all
	all  []*hold
}

func (h *holds) ended() {
	if h != nil && h.over != nil {
		h.over()
	}
}

// bounded says whether something is held of which there is only so much while an upstream works on the call.
func (c *call) bounded() bool {
	return c.v.Pass != limit.Pass{} || c.v.API != nil && (c.v.API.Concurrency != nil || c.v.API.Dispatch.MaxRequests > 0)
}

// holding is of one attempt; nil: nothing is bounded.
func (x *exchange) holding(ctx context.Context) *hold {
	if x.holds == nil {
		return nil
	}
	return &hold{done: make(chan struct{}), wanted: func() bool {
		why := cause(ctx)
		return why != nil && (!errors.Is(why, errLate) || x.hurried())
	}}
}

// abandon ends a connection on which a request was sent and no answer has begun.
func (x *exchange) abandon(conn net.Conn, h *hold) {
	if !h.begin() {
		conn.Close()
		return
	}
	if !tellEnd(conn) {
		conn.Close()
		h.over()
		return
	}
	x.p.held.Go(func() {
		defer h.over()
		defer conn.Close()
		conn.SetReadDeadline(time.Now().Add(letGoMost))
		conn.Read(make([]byte, 1))
	})
}

// lettingGo awaits that an attempt's upstream, or its receiver, has let go.
func (x *exchange) lettingGo(h *hold, wait func(context.Context)) {
	if !h.begin() {
		return
	}
	x.p.held.Go(func() {
		defer h.over()
		ctx, cancel := context.WithTimeout(context.Background(), letGoMost)
		defer cancel()
		wait(ctx)
	})
}

// whose is who takes back what is taken back: a customer, wherever in the zone the request came in; of another zone's, whose
// customers nobody here knows, the region that it comes from.
func (x *exchange) whose() string {
	if x.relayed {
		if customer := x.r.Header.Get(relay.Identity[0]); customer != "" { // the peer of this zone says so; of others it is dropped
			return customer
		}
		return "relays of " + x.from
	}
	return x.v.Customer
}

// forsake ends an attempt that gave no answer.
func (x *exchange) forsake(res *result) {
	if !res.hold.begun() {
		res.leave()
		return
	}
	res.hold.place, res.place = res.place, failover.Candidate{}
	x.holds.mu.Lock()
	x.holds.all = append(x.holds.all, res.hold)
	x.holds.mu.Unlock()
}

// held are the attempts whose upstreams are awaited.
func (c *call) held() []*hold {
	if c.holds == nil {
		return nil
	}
	c.holds.mu.Lock()
	defer c.holds.mu.Unlock()
	return c.holds.all
}

// release gives back what the call holds: at once, or what of it is an upstream's to let go when it has.
func (c *call) release() {
	all := c.held()
	if len(all) == 0 {
		c.v.Pass.Leave()
		c.leave(priority.Untold) // if the answer never did
		c.holds.ended()
		return
	}
	pass, place, of := c.v.Pass, c.place, c.holds
	if c.served != "" { // what is awaited lost to another's answer
		pass.Leave()
		place.Leave(priority.Untold)
		pass, place = limit.Pass{}, priority.Ticket{}
	}
	c.place = priority.Ticket{}
	c.p.held.Go(func() {
		for _, h := range all {
			<-h.done
			h.place.Leave()
		}
		pass.Leave()
		place.Leave(priority.Untold)
		of.ended()
	})
}
