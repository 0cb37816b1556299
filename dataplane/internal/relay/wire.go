// Package relay owns the border between regions: it is the one place that dials another region's edge, and
// the one that takes what another region's edge sends.
//
// It never chooses where to relay, never relays what it received (one hop), and never reads a body byte
// before both the sender's grant and its own table permit the pair. Nothing survives a crash: sessions and
// flights end with the process, and a receiver takes every grant for new again, for at most its lifetime.
// Client and Server may be used from any number of goroutines at once.
package relay

import (
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/regions/grant"
)

// Headers between two edges. They are stripped from what clients and upstreams send.
const (
	HeaderAPI         = "Bailiwick-Relay-Api"         // name of the API in the home zone
	HeaderRoute       = "Bailiwick-Relay-Route"       // for the peer's logs; it matches by itself
	HeaderGrant       = "Bailiwick-Relay-Grant"       // base64 of the syncv1.SignedGrant
	HeaderIncarnation = "Bailiwick-Relay-Incarnation" // which run of the sending edge this is
	HeaderTrailer     = "Bailiwick-Relay-Trailer"     // behind a body: what the client said there
	HeaderStream      = "Bailiwick-Relay-Stream"      // what is asked for is no answer but a stream both ways; in an answer: it is open
	HeaderClass       = "Bailiwick-Relay-Class"       // priority class of the plan
	HeaderPing        = "Bailiwick-Relay-Ping"        // a sign of life, nothing else
	HeaderBounded     = "Bailiwick-Relay-Bounded"     // where it is taken back the sender asks when the upstream has let go of it; which of the attempts at its request it is
	HeaderAwait       = "Bailiwick-Relay-Await"       // of a sign of life: not before that is so, of the request of this id, and of the attempt that HeaderBounded names
	HeaderHome        = "Bailiwick-Home"              // region that accepted the request
	HeaderRequestID   = "Bailiwick-Request-Id"
	HeaderServed      = "Bailiwick-Served"        // region whose upstream answered, for a kept answer when it came; a row of such a one names none
	HeaderRefused     = "Bailiwick-Refused"       // the rule that forbade it
	HeaderUnsent      = "Bailiwick-Unsent"        // no upstream got a byte of this request: it may be sent elsewhere
	HeaderLeaving     = "Bailiwick-Relay-Leaving" // likewise, and this edge takes no more: another of the region may, or its next process
	HeaderBlameless   = "Bailiwick-Blameless"     // no upstream answered, and that says nothing of the region: the client's doing, or for want of room
	Prefix            = "Bailiwick-"
)

// StreamWebSocket is a stream of frames as a client sends them, and of frames as a server does.
const StreamWebSocket = "websocket"

// StreamTCP is a stream of bytes as they come.
const StreamTCP = "tcp"

// SignedIdentity is the one of Identity that the zone has signed.
const SignedIdentity = "Bailiwick-Identity"

// Identity are the headers in which upstreams are told who asks: customer, subscription, plan, key, and a signed token of all
// of them. They go along to another region of the own zone, never to another zone.
var Identity = [...]string{"Bailiwick-Customer", "Bailiwick-Subscription", "Bailiwick-Plan", "Bailiwick-Key", SignedIdentity}

// Trace are the headers by which services join what they record of a request. Within the zone they go along; to another zone
// nothing does: an id that both zones' records have would join them, and the rest is anybody's text.
var Trace = [...]string{"Traceparent", "Tracestate", "Baggage"}

// What of a body another edge may send before it is taken. Net/http's default is 4 MiB of each answer, and 2,048 of them that a client
// does not read are an eighth of an edge's seats; of uploads it is a MiB of all, and one upstream that reads nothing would hold up
// everybody's. The cost: 256 KiB for each round trip, 12 MiB/s where that takes 20 ms.
const (
	window  = 256 << 10 // of one body
	windows = 1 << 30   // of all uploads of a session: what each may hold says window
)

// What another edge may send at all.
const (
	streamsMost = 10_000    // requests under way on one connection
	headMost    = 256 << 10 // what the home edge accepted, and the grant
)

// Rules of refusal beyond those of failover's grants: stable names.
const (
	RulePair      = grant.NoPair   // the own table has no such pair
	RuleNoGrant   = grant.NoGrant  // no live grant
	RuleNode      = "node-unknown" // the registry does not have the peer, or not in that region
	RuleKind      = "peer-kind"    // the peer is no edge
	RuleHop       = "second-hop"   // the sender is not where the request was accepted
	RuleAPI       = grant.NoAPI    //
	RuleCut       = "cut"          // permitted when it began, not any more
	RuleEvidence  = "evidence"     // the sender could not record it
	RuleMalformed = "malformed"
	RuleSentinel  = "sentinel" // a second opinion, at either end, says no
	RuleOther     = "unnamed"  // the peer's word is none of these
)

var ruleNames = []string{RulePair, RuleNoGrant, RuleNode, RuleKind, RuleHop, RuleAPI, RuleCut, RuleEvidence, RuleMalformed, RuleSentinel,
	grant.NoLeave, grant.Malformed, grant.Zone, grant.Signature, grant.Edge, grant.Twin, grant.From, grant.To, grant.Epoch, grant.Policy, grant.Expired}

// ruleOf is the rule by which a peer says that it refused; "": it does not say so. What it says goes into the log, the
// evidence and to the control plane, so it is a name of the list or it is none.
func ruleOf(said string) string {
	if said == "" || slices.Contains(ruleNames, said) {
		return said
	}
	return RuleOther
}

// Evidence records relays before their first byte, and refusals. An error means that the relay must not happen.
type Evidence interface {
	Relay(requestID, grantID, from, to string) error
	Refuse(rule, from, to, requestID string)
}

// ledger counts refusals and remembers cuts until somebody reports them.
type ledger struct {
	evidence Evidence
	refused  atomic.Int64

	mu    sync.Mutex        // covers all below
	pairs map[pair]struct{} // those of the last table
	cuts  map[string]struct{}
}

type pair struct{ policy, from, to string }

func newLedger(e Evidence) *ledger {
	return &ledger{evidence: e, pairs: map[pair]struct{}{}, cuts: map[string]struct{}{}}
}

func (l *ledger) refuse(rule, from, to, requestID string) {
	l.refused.Add(1)
	l.evidence.Refuse(rule, from, to, requestID)
}

// now takes the pairs of the newest table, after what is not in it has been cut.
func (l *ledger) now(pairs map[pair]struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	for p := range l.pairs {
		if _, still := pairs[p]; !still {
			l.cuts[p.from+">"+p.to] = struct{}{}
		}
	}
	l.pairs = pairs
}

func (l *ledger) takeCuts() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	cuts := slices.Sorted(maps.Keys(l.cuts))
	clear(l.cuts)
	return cuts
}

func outbound(t *policy.Table, region string) map[pair]struct{} {
	out := map[pair]struct{}{}
	for _, host := range t.Hosts() {
		p := t.API(host).Policy
		for _, x := range t.Pairs(p, region) {
			out[pair{p, x.From, x.To}] = struct{}{}
		}
	}
	return out
}

func inbound(t *policy.Table) map[pair]struct{} {
	in := map[pair]struct{}{}
	for _, x := range t.Inbound() {
		in[pair{x.Policy, x.From, x.To}] = struct{}{}
	}
	return in
}

// Error is why a relay did not bring an answer of an upstream.
type Error struct {
	Rule string // refused by this rule; blank: it failed
	To   string
	// Sent says that the request may have reached an upstream, so that only one which can be repeated may be.
	Sent bool
	// Unreachable says that no edge of the region answers; Down that one did, and that it serves nobody of this API now:
	// its upstream is down, or a rule there forbids it.
	Unreachable, Down bool
	// Leaving says that the edge which was asked takes no more relays, and that the next one is sent to another, or to its successor.
	Leaving bool
	Err     error

	back *takenBack // nil: nobody asked for it, or it was not taken back
}

func (e *Error) Error() string {
	var b strings.Builder
	b.WriteString("relay to " + e.To)
	if e.Rule != "" {
		b.WriteString(": refused by rule " + e.Rule)
	}
	if e.Err != nil {
		b.WriteString(": " + e.Err.Error())
	}
	b.WriteString(" (sent " + strconv.FormatBool(e.Sent) + ")")
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }
