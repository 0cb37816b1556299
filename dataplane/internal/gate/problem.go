package gate

import (
	"encoding/json"
	"maps"
	"slices"

	"bailiwick/shared/table/schema"
)

// Reasons an edge refuses or fails a request for. They are interface: programs match on them, so none ever
// changes. The problem type is TypePrefix + reason.
const (
	ReasonBadRequest    = "bad-request"
	ReasonPathAmbiguous = "path-ambiguous"     // two parsers could read the path as two paths
	ReasonMethod        = "method-refused"     // CONNECT, TRACE and what is not in capitals
	ReasonExpectation   = "expectation-failed" // Expect names something else than 100-continue
	ReasonUpgrade       = "upgrade-refused"    // protocols this edge does not switch to
	ReasonSNI           = "sni-mismatch"       // TLS was set up for another host
	ReasonHostUnknown   = "host-unknown"       //
	ReasonHostForeign   = "host-foreign"       // the host belongs to another zone
	ReasonNotHome       = "region-not-home"    // the API is not deployed in this region
	ReasonRouteUnknown  = "route-unknown"      //
	ReasonMethodUnknown = "method-not-routed"  // the path has routes, none with this method
	ReasonKeyMissing    = "key-missing"
	ReasonKeyInvalid    = "key-invalid"     // malformed, unknown, revoked or wrong: on purpose not told apart
	ReasonTokenInvalid  = "token-invalid"   // why stands in the detail: whoever made the token may know
	ReasonKeyConflict   = "key-conflict"    // more than one key, or one twice
	ReasonKeyForeign    = "key-foreign"     // the key belongs to another zone
	ReasonKeySuspended  = "key-suspended"   //
	ReasonKeyEnded      = "key-ended"       // it was rotated and its overlap is over
	ReasonKeyStale      = "key-stale"       // the edge has not heard from its control plane for longer than the plan allows
	ReasonNotEntitled   = "not-entitled"    // the plan does not include the API
	ReasonScope         = "scope-missing"   // the key was not given the scope that the route asks for
	ReasonAddress       = "address-refused" // the key does not work from there
	ReasonRateExceeded  = "rate-exceeded"
	ReasonCrowded       = "too-many-concurrent" // as many as the plan allows are under way
	ReasonAnswerLarge   = "answer-too-large"    // longer than the route lets through
	ReasonOverdue       = "payment-overdue"
	ReasonQuotaExceeded = "quota-exceeded"
	ReasonPrepaid       = "prepaid-exhausted"
	ReasonUnconfirmed   = "quota-unconfirmed" // nobody said in time whether units are left
	ReasonBodyTooLarge  = "body-too-large"
	ReasonHeadTooLarge  = "head-too-large"  // for the upstream, which says how much it takes
	ReasonBodySlow      = "body-slow"       // the client sends its body too slowly
	ReasonBodyBroken    = "body-broken"     // the client's body ended early, or is malformed
	ReasonInvalid       = "request-invalid" // not as the API's document says; errors name where
	ReasonQuery         = "query-refused"   // a GraphQL document asks too much, or is none
	ReasonNotReady      = "not-ready"       // the edge has no table yet
	ReasonUsage         = "usage-unavailable"
	ReasonOverloaded    = "overloaded"           // an upstream or the edge is short, and higher classes go first
	ReasonNoRegion      = "no-compatible-region" // no permitted region is healthy
	ReasonUpstream      = "upstream-failed"
	ReasonUpstreamLate  = "upstream-timeout"
	ReasonRetriesSpent  = "retry-budget-spent"
	ReasonNotCached     = "not-cached"    // the client wants a kept answer or none
	ReasonBusy          = "upstream-busy" // all upstreams have as many requests as they may, and so has the line before them
	ReasonResidency     = "residency"     // a relay that some rule forbids
	ReasonSwitchedOff   = "switched-off"  // an operator has turned the protocol off
)

// TypePrefix begins every problem type: a name, not an address, so that it stays true wherever the
// documentation moves.
const TypePrefix = "urn:bailiwick:problem:"

// Problem is an answer of the edge itself (RFC 9457). A zero Status is none.
type Problem struct {
	Status int
	Reason string
	Title  string           // the same for every occurrence of a reason
	Detail string           // what to do next; never personal data, never key material
	Hosts  []string         // where the request belongs instead (421)
	Errors []schema.Finding // what is wrong with it (400)
}

var titles = map[string]string{
	ReasonBadRequest:    "The request is malformed",
	ReasonPathAmbiguous: "The path is ambiguous",
	ReasonMethod:        "The method is not served",
	ReasonExpectation:   "The expectation cannot be met",
	ReasonUpgrade:       "The protocol upgrade is not served",
	ReasonSNI:           "The connection was made for another host",
	ReasonHostUnknown:   "No API at this host",
	ReasonHostForeign:   "The host belongs to another zone",
	ReasonNotHome:       "The API is not deployed in this region",
	ReasonRouteUnknown:  "No route at this path",
	ReasonMethodUnknown: "The route does not take this method",
	ReasonSwitchedOff:   "The protocol is turned off",
	ReasonKeyMissing:    "An API key is needed",
	ReasonKeyInvalid:    "The API key is not valid",
	ReasonTokenInvalid:  "The token is not valid",
	ReasonKeyConflict:   "More than one API key was sent",
	ReasonKeyForeign:    "The API key belongs to another zone",
	ReasonKeySuspended:  "The API key is suspended",
	ReasonKeyEnded:      "The API key has ended",
	ReasonKeyStale:      "The API key cannot be confirmed",
	ReasonNotEntitled:   "The plan does not include this API",
	ReasonScope:         "The API key lacks the scope",
	ReasonAddress:       "The API key does not work from here",
	ReasonRateExceeded:  "The plan's rate limit is exceeded",
	ReasonCrowded:       "Too many requests at once",
	ReasonAnswerLarge:   "The upstream's answer is too large",
	ReasonOverdue:       "The subscription's payment is overdue",
	ReasonQuotaExceeded: "The plan's quota is used up",
	ReasonPrepaid:       "The prepaid balance is used up",
	ReasonUnconfirmed:   "The quota cannot be confirmed",
	ReasonBodyTooLarge:  "The request body is too large",
	ReasonHeadTooLarge:  "The request's head is too large",
	ReasonBodySlow:      "The request body comes too slowly",
	ReasonBodyBroken:    "The request body is not whole",
	ReasonInvalid:       "The request is not as the API describes it",
	ReasonQuery:         "The query is not taken",
	ReasonNotReady:      "The edge is not ready",
	ReasonUsage:         "Usage cannot be recorded",
	ReasonOverloaded:    "Too much to do at once",
	ReasonNoRegion:      "No compatible region is healthy",
	ReasonUpstream:      "The upstream failed",
	ReasonUpstreamLate:  "The upstream did not answer in time",
	ReasonRetriesSpent:  "Too many requests are being retried",
	ReasonResidency:     "The residency policy forbids this relay",
	ReasonNotCached:     "No answer is kept",
	ReasonBusy:          "The upstreams are busy",
}

// Reasons are all that an answer of the edge may have.
func Reasons() []string { return slices.Sorted(maps.Keys(titles)) }

// NewProblem is a problem with the title of its reason.
func NewProblem(status int, reason, detail string) Problem {
	return Problem{Status: status, Reason: reason, Title: titles[reason], Detail: detail}
}

// ProblemType is the media type of JSON.
const ProblemType = "application/problem+json"

// JSON is the body of the answer.
func (p *Problem) JSON(requestID string) []byte {
	data, err := json.Marshal(struct {
		Type      string           `json:"type"`
		Title     string           `json:"title"`
		Status    int              `json:"status"`
		Detail    string           `json:"detail,omitempty"`
		Reason    string           `json:"reason"`
		RequestID string           `json:"request_id,omitempty"`
		Hosts     []string         `json:"hosts,omitempty"`
		Errors    []schema.Finding `json:"errors,omitempty"`
	}{TypePrefix + p.Reason, p.Title, p.Status, p.Detail, p.Reason, requestID, p.Hosts, p.Errors})
	if err != nil { // strings and numbers always marshal
		panic(err)
	}
	return data
}
