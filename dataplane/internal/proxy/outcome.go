package proxy

import (
	"cmp"
	"net/http"
	"slices"
	"sync/atomic"

	"bailiwick/shared/revision"
)

// tally counts how requests ended.
type tally struct{ requests, failed atomic.Int64 }

// Outcome is how requests to one API ended under the catalog's objects that are in force, and under those before.
type Outcome struct {
	API                           string
	Requests, Failed              int64
	BeforeRequests, BeforeFailing int64
}

const (
	outcomesTold = 64 // APIs
	enough       = 50 // requests before a tally tells something by itself
)

// Turn begins to count anew when other objects of the catalog came into force. Call it after each swap of the table.
func (p *Proxy) Turn() {
	sum := p.cfg.Tables.Load().Catalog().Sum
	old := p.turned.Swap(&sum)
	if old == nil || *old == sum {
		return
	}
	p.budgets.Range(func(_, v any) bool {
		b := v.(*budget)
		requests, failed := b.now.requests.Swap(0), b.now.failed.Swap(0)
		if requests < enough { // too few to stand for what was
			b.before.requests.Add(requests)
			b.before.failed.Add(failed)
		} else {
			b.before.requests.Store(requests)
			b.before.failed.Store(failed)
		}
		return true
	})
}

// Outcomes are those of the objects whose sum it says: the APIs with most failures, at most 64.
func (p *Proxy) Outcomes() (sum revision.Sum, out []Outcome) {
	if at := p.turned.Load(); at != nil {
		sum = *at
	}
	p.budgets.Range(func(name, v any) bool {
		b := v.(*budget)
		o := Outcome{name.(string), b.now.requests.Load(), b.now.failed.Load(), b.before.requests.Load(), b.before.failed.Load()}
		if o.Requests > 0 || o.BeforeRequests > 0 {
			out = append(out, o)
		}
		return true
	})
	slices.SortFunc(out, func(a, b Outcome) int {
		return cmp.Or(cmp.Compare(b.Failed, a.Failed), cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.API, b.API))
	})
	return sum, out[:min(len(out), outcomesTold)]
}

// outcome counts a request that a client brought, under the objects that decided it.
func (x *exchange) outcome() {
	if x.relayed || x.v.API == nil || x.v.API.Foreign || x.status == 0 && !x.broken {
		return // another edge counts it; nobody's; or the client left
	}
	b := x.budget
	if b == nil {
		b = x.p.budget(x.v.API.Name)
	}
	t := &b.now
	sum := x.table.Catalog().Sum
	if at := x.p.turned.Load(); at == nil {
		x.p.turned.CompareAndSwap(nil, &sum)
	} else if *at != sum {
		t = &b.before
	}
	t.requests.Add(1)
	if x.broken || x.served != "" && x.status >= 500 || x.served == "" && ours(x.status) {
		t.failed.Add(1)
	}
}

// ours says whether an answer of the edge itself may be the doing of its configuration. What a client sent in a way that
// cannot be read, or with a key that is none, is not: strangers could take a change back.
func ours(status int) bool {
	return status >= 400 && status != http.StatusBadRequest && status != http.StatusUnauthorized
}
