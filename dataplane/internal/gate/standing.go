package gate

import (
	"strings"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/apikey"
)

// Standing is what a request was admitted on that lasts for long: a connection. It holds no secret.
type Standing struct {
	zone, api, host, method, path, remote string

	key, customer, subscription string
	digest                      apikey.Digest
	shown                       credential
}

// Standing is that of a request that was admitted under t.
func (v *Verdict) Standing(t *policy.Table, r *Request) Standing {
	s := Standing{zone: v.API.Zone, api: v.API.Name, host: r.Host, method: r.Method, path: r.Path, remote: r.Remote,
		key: strings.Clone(v.KeyID), customer: v.Customer, subscription: v.Subscription, shown: v.shown}
	s.shown.text, s.shown.bound = "", ""
	if key := t.Key(v.KeyID); key != nil {
		s.digest = key.Digest
	}
	return s
}

// Stands asks again, of the newest table, what admitted the request, and takes nothing of a limit or a quota. age is the table's,
// as in Request; unix the time of day.
func (s *Standing) Stands(t *policy.Table, age time.Duration, unix int64) (api *policy.API, route *policy.Route, p Problem) {
	no := func(status int, reason string) (*policy.API, *policy.Route, Problem) {
		return nil, nil, NewProblem(status, reason, "")
	}
	if api = t.API(s.host); api == nil || api.Zone != s.zone || api.Name != s.api {
		return no(421, ReasonHostUnknown)
	}
	if !t.Home(api) {
		return no(421, ReasonNotHome)
	}
	route, match := api.Route(s.method, s.path)
	if match != policy.RouteFound {
		return no(404, ReasonRouteUnknown)
	}
	key := t.Key(s.key)
	switch {
	case key == nil || !apikey.Equal(key.Digest, s.digest) || key.Customer != s.customer || key.Subscription != s.subscription:
		return no(401, ReasonKeyInvalid)
	case key.Ends != 0 && unix >= int64(key.Ends):
		return no(401, ReasonKeyEnded)
	case key.Suspended:
		return no(403, ReasonKeySuspended)
	case key.Overdue:
		return no(402, ReasonOverdue)
	}
	v := Verdict{Route: route, shown: s.shown}
	if !v.bound(key.Bounds, s.remote) {
		return nil, nil, v.Problem
	}
	if !s.shown.taken(api.Auth, unix) {
		if s.shown.kind == apikey.KindCertificate { // which is then none, as for who asks anew
			return no(401, ReasonKeyMissing)
		}
		return no(401, ReasonTokenInvalid)
	}
	plan := t.Plan(key.Plan)
	if plan == nil {
		return no(403, ReasonNotEntitled)
	}
	if _, entitled := plan.Includes(s.api); !entitled {
		return no(403, ReasonNotEntitled)
	}
	if plan.MaxKeyStaleness > 0 && age > plan.MaxKeyStaleness {
		return no(403, ReasonKeyStale)
	}
	return api, route, Problem{}
}

// More asks for further units of what an admitted request goes on to cost. The zero Ticket, Taken: nobody keeps account of them.
func (v *Verdict) More(units, unix int64) (quota.Ticket, quota.Decision) {
	if v.plan == nil || v.plan.QuotaMode == "" || v.Account == nil || v.Units == 0 {
		return quota.Ticket{}, quota.Taken
	}
	return v.Account.Take(units, v.Leased, unix)
}
