// Package gate owns the decision whether a request is admitted, and on whose account: route, key
// (or token, or certificate, where the API takes them), what the key is bound to, entitlement, staleness, payment, limits,
// quota, in that order.
//
// It never sees net/http, never touches a network or disk, reads no clock and counts nothing but the units it
// takes from a lease: the same
// logical request over HTTP/1.1, HTTP/2 and HTTP/3 becomes the same Request and gets the same Verdict. A
// flood of random keys costs it no memory. Nothing survives a crash but what its callers hold. A Gate may be
// used from any number of goroutines at once.
package gate

import (
	"math"
	"strings"
	"time"

	"bailiwick/dataplane/internal/limit"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// Gate admits.
type Gate struct {
	Hasher *apikey.Hasher // required; under the zone's pepper
	Limits *limit.Map     // required; outlives tables
	Tokens Tokens         // nil: none are taken
	Quotas *quota.Book    // likewise; nil: no quota is enforced, and no rate limit is shared
}

// Request is what a decision rests on.
type Request struct {
	Host          string   // lower case, no port
	Method        string   //
	Path          string   // decoded; the proxy has refused what is ambiguous
	Authorization []string // values as received
	APIKey        []string // values of X-API-Key as received
	Remote        string   // host:port of who speaks to this edge
	Shown         Shown    // nil: nothing else
	TCP           bool     // it is a connection of which nothing is known but its bytes
	Socket        bool     // it asks for a WebSocket
	Says          bool     // it has a query or a body
	// TableAge is how long ago the control plane last confirmed the table.
	TableAge time.Duration
	Unix     int64 // the time of day, s
}

// Verdict is the answer. It is admitted if Problem.Status is 0 and it is not Parked.
type Verdict struct {
	Problem Problem
	API     *policy.API   // set from the host on
	Route   *policy.Route // set from the path on

	// Set once the key is valid; a request with Counted gets exactly one usage row, and when it is not
	// admitted Outcome is that row's.
	Counted      bool
	Outcome      usage.Outcome
	KeyID        string
	Customer     string
	Subscription string
	Plan         string
	PlanRev      uint64
	Product      string
	Stranger     bool // there is no such route, and who asked showed nothing that is valid
	KeyInBearer  bool // the key came as Authorization, which must then not go upstream
	Flags        usage.Flags

	Class priority.Class // of the plan
	// Units are kept aside for the request: it costs no more.
	Units int64

	// Pass is the request's place among those of its subscription that are under way. Whoever has the verdict leaves it when
	// the request is over, admitted or not.
	Pass limit.Pass
	// Ticket holds the request's units. Whoever has the verdict spends it when the row that counts them is kept,
	// and releases it when no upstream answered.
	Ticket quota.Ticket
	// Parked: whether units are left is not known yet. The caller waits with Account.Park and calls Settle.
	Parked  bool
	Account *quota.Account // of the subscription, if the plan has a quota or a limit
	Leased  bool           // the plan's units must be leased

	// Answer headers; none means none. Limits has two more.
	RetryAfter time.Duration
	Allow      []string // methods, with a 405

	plan    *policy.Plan
	share   int64 // of its limits, under which they were taken from; 0: they were not
	rate    limit.Result
	windows [limit.MaxWindows]limit.Result
	overdue bool
	bounds  *policy.Bounds
	owner   *policy.Owner
	found   found
	shown   credential

	limits   [768]byte // written by describe: in the verdict, since a request should cost no memory
	cut, end uint16    // of the policy, and of the limit behind it
}

// Admitted says whether the request goes on.
func (v *Verdict) Admitted() bool { return v.Problem.Status == 0 && !v.Parked }

// ByToken says whether a token told who asks.
func (v *Verdict) ByToken() bool { return v.shown.token }

// ByCertificate says whether nothing but a TLS client certificate told who asks, which a browser shows for any page.
func (v *Verdict) ByCertificate() bool { return v.shown.kind == apikey.KindCertificate }

// Sit counts the request among those of its key's owner that are under way; false: so many are. A plan that says how many may be
// (max_concurrent) is asked and not most. Whoever has the verdict calls Rise when the request is over, if it sits.
func (v *Verdict) Sit(most int) bool {
	if v.owner == nil || v.owner.UnderWay.Add(1) <= int32(most) || v.plan != nil && v.plan.MaxConcurrent > 0 {
		return true
	}
	v.owner.UnderWay.Add(-1)
	return false
}

// Rise ends what Sit began.
func (v *Verdict) Rise() {
	if v.owner != nil {
		v.owner.UnderWay.Add(-1)
	}
}

func (v *Verdict) refuse(status int, reason, detail string) {
	v.Problem = NewProblem(status, reason, detail)
}

// Admit decides one request under one table, at a monotonic reading from any fixed origin. t may be nil:
// an edge without a table admits nobody.
func (g *Gate) Admit(t *policy.Table, r *Request, now time.Duration) (v Verdict) {
	g.AdmitTo(&v, t, r, now)
	return v
}

// AdmitTo puts what Admit says into v, which is a zero Verdict: it is large to hand around.
func (g *Gate) AdmitTo(v *Verdict, t *policy.Table, r *Request, now time.Duration) {
	if t == nil {
		v.refuse(503, ReasonNotReady, "The edge has no policy table yet; try again shortly.")
		v.RetryAfter = time.Second
		return
	}
	if v.API = t.API(r.Host); v.API == nil {
		if d := t.DirectoryByHost(r.Host); d != nil {
			v.refuse(421, ReasonHostForeign, "This host is served by the edges of another zone.")
			v.Problem.Hosts = d.Hosts
			return
		}
		v.refuse(421, ReasonHostUnknown, "No API is published at this host here.")
		return
	}
	if (v.API.TCP != nil) != r.TCP {
		v.refuse(421, ReasonHostUnknown, "No HTTP is spoken at this host: its API is tcp.")
		return
	}
	// Accepting is what a home region does, and a region without the API is home to none of its requests.
	if !t.Home(v.API) {
		v.refuse(421, ReasonNotHome, "Use an edge of a region where the API is deployed.")
		v.Problem.Hosts = v.API.Hosts
		return
	}
	route, match := v.API.Route(r.Method, r.Path)
	switch v.Route = route; match {
	case policy.RouteNotFound:
		g.meet(t, r, v)
		v.refuse(404, ReasonRouteUnknown, "The API has no route at this path.")
		return
	case policy.MethodNotAllowed:
		g.meet(t, r, v)
		v.refuse(405, ReasonMethodUnknown, "The Allow header names the methods of this path.")
		v.Allow = v.API.Allowed(r.Path)
		return
	}
	if !g.authenticate(t, r, v) {
		return
	}
	plan := t.Plan(v.Plan)
	v.Counted, v.Outcome = true, usage.OutcomeRefused
	if plan != nil {
		v.PlanRev = plan.Rev
	}
	if !v.bound(v.bounds, r.Remote) {
		return
	}
	product, entitled := "", false
	if plan != nil {
		product, entitled = plan.Includes(v.API.Name)
	}
	if !entitled { // a plan that is not there sells nothing
		v.refuse(403, ReasonNotEntitled, "The subscription's plan does not include this API.")
		return
	}
	v.Product = product
	if plan.MaxKeyStaleness > 0 && r.TableAge > plan.MaxKeyStaleness {
		v.refuse(403, ReasonKeyStale, "This edge has been cut off from its control plane for longer than the plan allows keys to go unconfirmed.")
		return
	}
	if v.overdue {
		v.refuse(402, ReasonOverdue, "The subscription's invoice is overdue; pay it, or ask the provider of the API.")
		return
	}
	v.found = g.recall(v.owner)
	v.plan, v.Class, v.Units = plan, priority.ParseClass(plan.Class), units(r, v.API, v.Route)
	if v.Units == 0 {
		v.Product = "" // what is booked on no product is not for sale
	}
	if g.Quotas != nil && (limited(plan) || plan.QuotaMode != "") {
		if v.Account = g.Quotas.Again(v.found.account, plan); v.Account == nil {
			v.Account = g.Quotas.Account(quota.ID{Customer: v.Customer, Subscription: v.Subscription}, plan)
			v.found.account = v.Account.Found()
		}
	}
	g.limit(plan, now, v)
	g.remember(v)
	if v.Problem.Status != 0 {
		v.describe(r.Unix)
		return
	}
	if plan.QuotaMode == "" || v.Account == nil || v.Units == 0 {
		v.describe(r.Unix)
		return
	}
	v.Leased = quota.Leases(plan)
	ticket, decision := v.Account.Take(v.Units, v.Leased, r.Unix)
	if v.Parked = decision == quota.Wait; !v.Parked {
		g.Settle(v, ticket, decision, r.Unix)
	}
}

// found is what was looked up by the names of a key's owner, and is kept with it: looking it up anew hashes eight texts a request.
// It lasts as long as the key is in the table, so it keeps no account alive that its book has let go. A limiter it does keep: that
// is one number, no more than a weak pointer to it would take.
type found struct {
	gate    *Gate // whose; an owner is shared by all of a process
	account *quota.Found
	limiter *limit.Limiter
}

func (g *Gate) recall(o *policy.Owner) found {
	if f, _ := o.Found.Load().(*found); f != nil && f.gate == g {
		return *f
	}
	return found{}
}

// remember keeps what was found, if it is new, unless another gate's is kept.
func (g *Gate) remember(v *Verdict) {
	old, _ := v.owner.Found.Load().(*found)
	if old == nil && v.found == (found{}) || old != nil && (old.gate != g || old.account == v.found.account && old.limiter == v.found.limiter) {
		return
	}
	f := v.found
	f.gate = g
	v.owner.Found.Store(&f)
}

// units is what may become of a request that an upstream answers. What only asks for what it may ask is free, and so is who looks
// whether the API is well, under the path under which edges look, unless the route says what its requests cost.
func units(r *Request, api *policy.API, route *policy.Route) int64 {
	switch {
	case r.Method == "OPTIONS" || route.Free:
		return 0
	case route.Units != nil:
		return max(1, route.Units.Most)
	case (r.Method == "GET" || r.Method == "HEAD") && !r.Socket && !r.Says && looks(r.Path, api, route):
		return 0
	}
	return 1
}

// looks says whether that path is where the API says how it is. The root is not, whoever looks there: it is most APIs' first page.
// Nor is what the route moves elsewhere, or takes for a document of GraphQL, nor what has a query or a body: many servers answer
// those under any path.
func looks(path string, api *policy.API, route *policy.Route) bool {
	page := api.HealthPath
	if page == "" {
		page = table.DefaultHealthPath
	}
	if w := route.Rewrite; w != nil && (w.Strip != "" || w.Put != "") || route.GraphQL != nil {
		return false
	}
	return path == page && path != "/"
}

// meet says of a request that is refused without asking who sent it whose it is: what strangers ask for tells nothing of an API.
// It is not counted, and what is shown is not told.
func (g *Gate) meet(t *policy.Table, r *Request, v *Verdict) {
	of := Verdict{API: v.API}
	v.Stranger = !g.authenticate(t, r, &of)
	v.Customer = of.Customer
}

// authenticate finds whose key was presented; false leaves a problem in v.
func (g *Gate) authenticate(t *policy.Table, r *Request, v *Verdict) bool {
	shown, problem := g.show(r, v.API)
	if problem.Status != 0 {
		v.Problem = problem
		return false
	}
	var key policy.Key
	if !g.key(t, &shown, v, &key) {
		if v.Problem.Status == 0 {
			v.Problem = shown.unknown()
		}
		return false
	}
	if key.Ends != 0 && r.Unix >= int64(key.Ends) { // told to who proved that he holds it, and not counted: as if it were revoked
		v.refuse(401, ReasonKeyEnded, "The key was replaced and its time is over; use the key that took its place.")
		return false
	}
	v.KeyID, v.Customer, v.Subscription, v.Plan, v.KeyInBearer, v.overdue = key.ID, key.Customer, key.Subscription, key.Plan, shown.bearer, key.Overdue
	v.bounds, v.shown, v.owner = key.Bounds, shown, key.Owner
	if key.Suspended {
		if plan := t.Plan(v.Plan); plan != nil {
			v.PlanRev = plan.Rev
		}
		v.Counted, v.Outcome = true, usage.OutcomeRefused
		v.refuse(403, ReasonKeySuspended, "The subscription is suspended; ask the provider of the API.")
		return false
	}
	return true
}

// present takes the one key of a request. Two that differ are refused, not chosen from: whoever stands
// before or behind this edge might choose the other. Authorization of another scheme is the upstream's
// business, and no key.
func present(r *Request) (text string, bearer bool, p Problem) {
	if len(r.Authorization) > 1 || len(r.APIKey) > 1 {
		return "", false, NewProblem(401, ReasonKeyConflict, "Send one Authorization: Bearer or one X-API-Key header, once.")
	}
	if len(r.Authorization) == 1 {
		const scheme = "bearer "
		if a := r.Authorization[0]; len(a) > len(scheme) && strings.EqualFold(a[:len(scheme)], scheme) {
			text, bearer = strings.TrimSpace(a[len(scheme):]), true
		}
	}
	if len(r.APIKey) == 1 {
		k := strings.TrimSpace(r.APIKey[0])
		if bearer && k != text {
			return "", false, NewProblem(401, ReasonKeyConflict, "Authorization and X-API-Key hold two different keys; send one.")
		}
		text = k
	}
	return text, bearer, p
}

// Seconds rounds up to whole seconds, at least 1: what a header can carry without inviting a client too early.
func Seconds(d time.Duration) int64 {
	return max(1, int64(math.Ceil(d.Seconds())))
}
