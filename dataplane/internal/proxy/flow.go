package proxy

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"strings"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/shared/usage"
)

// sit takes the call's seat at this edge. Which calls have to go without says their plan's class; and a customer whose plan does
// not say how many requests it may have under way has no more than a part of all seats: who opens thousands of requests and ends none
// would else take the upstreams from everybody.
func (c *call) sit() gate.Problem {
	if most := seatsOfOne(c.p.seats.Most()); !c.v.Sit(most) {
		c.v.RetryAfter, c.v.Flags = time.Second, c.v.Flags|usage.FlagRateLimited
		return gate.NewProblem(429, gate.ReasonCrowded, "This edge has as many requests of the subscription under way as it takes of one whose plan says nothing of it ("+strconv.Itoa(most)+"); wait for some to end, or ask for a plan with a max_concurrent.")
	}
	if c.seated = c.p.seats.Take(c.v.Class); !c.seated {
		c.v.Rise()
		return c.overloaded("This edge has as many requests under way as it takes of the plan's priority class; try again shortly.")
	}
	return gate.Problem{}
}

// seatsOfOne is how many seats one customer may have whose plan does not say.
func seatsOfOne(all int64) int { return int(max(64, all/8)) }

func (c *call) stand() {
	if c.seated {
		c.seated = false
		c.p.seats.Leave()
		c.v.Rise()
	}
}

// wait takes the call's place at the upstreams of its API, where the API bounds how many requests they work on.
func (c *call) wait(ctx context.Context) gate.Problem {
	bounds := c.v.API.Concurrency
	if bounds == nil {
		return gate.Problem{}
	}
	var ok bool
	if c.place, ok = c.budget.flow.Enter(ctx, c.v.Class, priority.Bounds{Min: bounds.Min, Max: bounds.Max}); !ok {
		return c.overloaded("The API's upstreams have as much to do as they can, and requests of a higher priority class go first; try again shortly.")
	}
	return gate.Problem{}
}

// squeeze is wait by what nobody waits for: there is a place for it now, or none.
func (c *call) squeeze() (ok bool) {
	if bounds := c.v.API.Concurrency; bounds != nil {
		c.place, ok = c.budget.flow.Spare(priority.Bounds{Min: bounds.Min, Max: bounds.Max})
		return ok
	}
	return true
}

// leave gives the place back, once; how the walk ended is learnt from.
func (c *call) leave(end priority.End) {
	c.place.After(c.body.lag()).Leave(end)
	c.place = priority.Ticket{}
}

func (c *call) overloaded(detail string) gate.Problem {
	c.v.RetryAfter = time.Second
	return gate.NewProblem(503, gate.ReasonOverloaded, detail)
}

// ended is what a walk tells about this region's upstreams: nothing if others answered, or if they were asked twice.
func (x *exchange) ended(res *result) priority.End {
	switch {
	case x.tries.Load() != 1 || x.abroad.Load() || res.resp == nil && (res.client || x.gone() || x.hurried()) || res.resp != nil && x.rushed(res.resp.StatusCode):
	case res.answered():
		return priority.Answered
	case res.resp != nil || res.problem.Status == http.StatusGatewayTimeout:
		return priority.Failed
	}
	return priority.Untold
}

// cost is how many units the call has come to by now, never more than were kept aside for it.
func (c *call) cost() int64 {
	if c.tab != nil && c.tab.per > 0 {
		return c.tab.due(true)
	}
	most := c.v.Units
	if most == 0 || c.v.Route == nil || c.v.Route.Units == nil {
		return most
	}
	switch u := c.v.Route.Units; {
	case u.PerBytes > 0:
		n := c.in + c.body.bytes() + c.outBefore + c.out
		return min(most, max(1, (n+u.PerBytes-1)/u.PerBytes))
	case u.PerMessages > 0:
		return min(most, max(1, (c.messages()+u.PerMessages-1)/u.PerMessages))
	case c.said >= 0:
		return min(most, c.said)
	}
	return 1
}

// units reads what an upstream says that its answer costs, and takes the header out.
func (c *call) units(answer http.Header) {
	if c.relayed || c.v.Route == nil || c.v.Route.Units == nil || c.v.Route.Units.Header == "" {
		return
	}
	name := c.v.Route.Units.Header
	values := answer[name]
	delete(answer, name)
	if len(values) != 1 {
		return
	}
	text := strings.TrimSpace(values[0])
	if n, err := strconv.ParseUint(text, 10, 62); err == nil || errors.Is(err, strconv.ErrRange) && strings.Trim(text, "0123456789") == "" {
		c.said = int64(n) // one that is out of range is the largest there is, and costs the most that one request may
	}
}
