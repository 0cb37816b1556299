// Package quota owns an edge's share of its customers' quotas and rate limits: how many units the zone ledger
// has leased to this edge, how many requests have taken, and the one background exchange that asks for more
// and gives back.
//
// It never calls anybody on the request path: Account.Take is a compare-and-swap, and a request that finds
// nothing leased and nothing known waits, for a bounded time, for the exchange that runs anyway. It never
// decides who is asked for a unit (gate does) nor what a unit costs. Nothing survives a crash: what the
// process had leased belongs to its spool's epoch, and the ledger settles that epoch from the blocks. A Book
// and everything reached from it may be used from any number of goroutines at once; Run is called once.
package quota

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"bailiwick/dataplane/internal/beat"
	"bailiwick/dataplane/internal/policy"
)

// Leader is the zone ledger's leader, however it is reached. A call is one attempt: whoever tries again after
// an error does so with a new sequence, or an attempt that was only delayed could undo a newer answer.
type Leader interface {
	Exchange(ctx context.Context, r *Request) (*Response, error)
}

// Request is what the edge says and asks.
type Request struct {
	Epoch    uint64 // of the spool
	Sequence uint64 // grows with every request of the epoch
	Pending  []Pending
	Asks     []Ask
}

// Pending is an older epoch with blocks that the ledger has not acknowledged.
type Pending struct{ Epoch, Sealed uint64 }

// Ask is one account's state here.
type Ask struct {
	ID
	Plan     string
	Period   int64 // 0: not known yet
	Ceiling  int64 // never more than this will have been spent in (epoch, period), unless more is leased
	Spent    int64 // by rows in the spool
	InFlight int64 // taken by requests that have not finished, or whose row was lost with the disk
	Want     int64 // further units
	Demand   int64 // requests offered under the rate limit, per 1000 s
	Starving bool  // requests wait for the answer
}

// Response is the leader's word.
type Response struct {
	Sequence  uint64 // of the request answered
	LiveEdges int64  // of this region
	States    []State
	Recalled  []ID // somebody starves for what is held here of these, which were not asked about
}

// State is one account in its current period.
type State struct {
	ID
	Period    int64
	PeriodEnd int64 // unix s; 0: it does not end, or slides
	Leased    int64 // all that (edge, epoch) may spend in the period
	Limit     int64 // of the whole quota
	Used      int64 // by all edges, as far as known
	UsedHere  int64 // of it, by (edge, epoch)
	Leases    bool  // units must be leased; false: they are only watched, or there is no quota
	None      bool  // the plan has no quota
	Recall    bool  // somebody starves: give back what is not in use
	Exhausted bool  // nothing is left to lease
	Share     int64 // of the rate limit, in millionths; 0: limit / live edges
}

// Leases says whether a plan's units must be leased. Those of a soft quota without grace are only watched.
func Leases(p *policy.Plan) bool {
	return p.QuotaMode == "strict" || p.QuotaMode == "elastic" || p.QuotaMode == "soft" && p.QuotaGrace > 0
}

// Limits that are not configured: each is a compromise between an idle edge's traffic and a busy one's waits.
const (
	tick         = 100 * time.Millisecond // accounts in use are exchanged so often
	watchEvery   = 250 * time.Millisecond // those that hold no lease, and those known to be exhausted
	beatEvery    = time.Second            // an edge with nothing to say is heard so often
	pollEvery    = 200 * time.Millisecond // and one that holds what it is not about to speak of: less than a request waits, so that who starves gets it in time
	idleAfter    = time.Second            // then unspent units go back
	starveEvery  = 20 * time.Millisecond  // while requests wait and the answer brought nothing
	doubtEvery   = 30 * time.Millisecond  // while a leader may not know of another plan yet
	doubtFor     = time.Second            //
	gap          = 2 * time.Millisecond   // between two exchanges: requests that arrive together ask together
	retryFirst   = 50 * time.Millisecond  // after a failed exchange, doubled up to
	retryMost    = time.Second            //
	dropAfter    = 10 * time.Minute       // an account nobody uses
	maxAsks      = 1024                   // in one exchange; the rest goes into the next
	horizon      = 2                      // seconds of demand that an edge wants to hold
	eagerFirst   = 16                     // times what is needed, wanted by who waits for the second time within a second
	growth       = 4                      // and so many times as much each time after that, up to
	eagerMost    = 4096                   // units
	plentyShift  = 16                     // what is at most the 65,536th part of a quota's rest is plenty: it stays where it is
	floorMost    = 16                     // units that an account in use holds at least where they are plenty
	keepFor      = time.Minute            // units that are plenty stay with who is silent
	lookEvery    = 5 * time.Second        // and whether they still are, and nobody misses them, is looked at so often
	millionths   = 1_000_000
	exchangeTime = 750 * time.Millisecond // one attempt
	youngFor     = 5 * time.Second        // after a Book was made, requests wait for a first answer as long as Config.Young says
	letTime      = 500 * time.Millisecond // within which a Sublet answers one, whoever starves
)

// Config of a Book. Fields without a default are required.
type Config struct {
	Leader  Leader
	Epoch   uint64           // of the spool whose rows spend what is leased
	Pending func() []Pending // older epochs with blocks not acknowledged; nil: never any
	Logger  *slog.Logger

	Wait      time.Duration // a request waits so long for a first answer; 0: not at all, it is refused at once
	Young     time.Duration // if that is longer, so long in the 5 s after New, where Wait is not 0
	MaxParked int           // requests that wait at once; 0: 4096

	Beat *beat.Beat // nil: its own
}

// DefaultWait is what an edge sets Wait to unless it is told otherwise.
const DefaultWait = 250 * time.Millisecond

// TakeoverWait is what an edge sets Young to when it takes another process's place: requests that come have waited for it already, and
// it has leased nothing, and asks all that it asks for the first time.
const TakeoverWait = 2 * time.Second

// Validate says what is missing or absurd.
func (c Config) Validate() error {
	switch {
	case c.Leader == nil || c.Logger == nil || c.Epoch == 0:
		return errors.New("quota config: Leader, Epoch and Logger are required")
	case c.Wait < 0 || c.Wait > 10*time.Second || c.Young < 0 || c.Young > 10*time.Second:
		return errors.New("quota config: Wait and Young are 0 to 10 s")
	case c.MaxParked < 0:
		return errors.New("quota config: MaxParked is negative")
	}
	return nil
}
