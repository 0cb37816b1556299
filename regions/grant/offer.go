package grant

import (
	"slices"
	"time"

	"bailiwick/regions"
)

// Offer is a grant in the making, before it is logged and signed.
type Offer struct {
	To              string
	Policies        []string
	TTL, OfflineTTL time.Duration
}

// Offers are the grants for what may leave a region: one for each target that has somebody to receive it. One may
// carry several policies, and lives no longer unasked than the strictest of them allows.
func Offers(permitted []regions.Permitted, from string, ttl time.Duration, reachable func(to string) bool) []Offer {
	var out []Offer
	for _, p := range permitted {
		if p.From != from || !reachable(p.To) {
			continue
		}
		i := slices.IndexFunc(out, func(o Offer) bool { return o.To == p.To })
		if i < 0 {
			out = append(out, Offer{To: p.To, TTL: ttl, OfflineTTL: p.OfflineGrant})
			i = len(out) - 1
		}
		out[i].Policies = append(out[i].Policies, p.Policy)
		out[i].OfflineTTL = min(out[i].OfflineTTL, p.OfflineGrant)
	}
	for i := range out {
		out[i].OfflineTTL = max(out[i].OfflineTTL, out[i].TTL)
	}
	return out
}

// Lives is what the leader reckons with for offers that it is about to log.
func Lives(offers []Offer) []Life {
	out := make([]Life, 0, len(offers))
	for _, o := range offers {
		out = append(out, Life{o.To, o.OfflineTTL})
	}
	return out
}

// Confirm leaves of an offer, once it is logged and its leader has been verified, the policies that are permitted
// still; false: none.
func (o *Offer) Confirm(from string, still []regions.Permitted) bool {
	o.Policies = slices.DeleteFunc(o.Policies, func(policy string) bool {
		return !slices.ContainsFunc(still, func(p regions.Permitted) bool {
			return p.Policy == policy && p.From == from && p.To == o.To
		})
	})
	return len(o.Policies) > 0
}

// Takes is for how long an edge of a region may take relays after it asked: as long as any of the pairs that lead there
// may go unasked; 0 if none does.
func Takes(permitted []regions.Permitted, to string, ttl time.Duration) (lasts time.Duration) {
	for _, p := range permitted {
		if p.To == to {
			lasts = max(lasts, p.OfflineGrant, ttl)
		}
	}
	return lasts
}
