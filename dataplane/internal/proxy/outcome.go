package proxy

import (
	"cmp"
	"hash/maphash"
	"math/bits"
	"net/http"
	"slices"
	"sync/atomic"

	"bailiwick/shared/revision"
)

// Kinds of failures, told apart so that customers over their limits do not hide a route that is gone.
const (
	KindOther = iota
	KindUnrouted
	KindDenied
	KindLimited
	KindUnserved
	kinds
)

// tally counts how requests ended, and remembers of whose they were a bit each.
type tally struct {
	requests atomic.Int64
	failed   [kinds]atomic.Int64
	asked    atomic.Uint64 // customers
	met      [kinds]atomic.Uint64
}

// several is how many customers ask, at least, where the failures of one of them alone tell nothing: one who asks for what is not
// there, or for more than his plan allows, must not take a change back for all. With fewer nobody can be told from all.
const several = 4

// told is how many requests failed so, as far as it tells of the API's configuration.
func (t *tally) told(kind int) int64 {
	if bits.OnesCount64(t.asked.Load()) >= several && bits.OnesCount64(t.met[kind].Load()) < 2 {
		return 0
	}
	return t.failed[kind].Load()
}

// note counts one, of a customer; kind < 0: it did not fail.
func (t *tally) note(customer string, kind int) {
	t.requests.Add(1)
	bit := uint64(1) << (maphash.String(hashed, customer) % 64)
	mark(&t.asked, bit)
	if kind >= 0 {
		t.failed[kind].Add(1)
		mark(&t.met[kind], bit)
	}
}

var hashed = maphash.MakeSeed()

func mark(of *atomic.Uint64, bit uint64) {
	if of.Load()&bit == 0 {
		of.Or(bit)
	}
}

// Outcome is how many requests to one API failed in one way under the catalog's objects that are in force, and under those
// before.
type Outcome struct {
	API                           string
	Kind                          int
	Requests, Failed              int64
	BeforeRequests, BeforeFailing int64
}

const (
	outcomesTold = 64 // APIs and kinds
	enough       = 50 // requests before a tally tells something by itself
)

// Turn begins to count anew when other objects of the catalog came into force. Call it after each swap of the table.
func (p *Proxy) Turn() {
	t := p.cfg.Tables.Load()
	sum := t.Catalog().Sum
	old := p.turned.Swap(&sum)
	if old == nil || *old == sum {
		return
	}
	p.budgets.forget(t)
	for _, b := range p.budgets.all() {
		requests := b.now.requests.Swap(0)
		if requests >= enough { // else too few to stand for what was
			b.before.requests.Store(0)
		}
		b.before.requests.Add(requests)
		b.now.asked.Store(0)
		for i := range b.now.failed {
			failed := b.now.failed[i].Swap(0)
			b.now.met[i].Store(0)
			if requests >= enough {
				b.before.failed[i].Store(0)
			}
			b.before.failed[i].Add(failed)
		}
	}
}

// Outcomes are those of the objects whose sum it says: the APIs with most failures, at most 64.
func (p *Proxy) Outcomes() (sum revision.Sum, out []Outcome) {
	if at := p.turned.Load(); at != nil {
		sum = *at
	}
	for name, b := range p.budgets.all() {
		requests, before := b.now.requests.Load(), b.before.requests.Load()
		for i := range b.now.failed {
			o := Outcome{name, i, requests, b.now.told(i), before, b.before.failed[i].Load()}
			if o.Failed > 0 || o.BeforeFailing > 0 || i == KindUnserved && requests+before > 0 { // one at least, for the requests
				out = append(out, o)
			}
		}
	}
	slices.SortFunc(out, func(a, b Outcome) int {
		return cmp.Or(cmp.Compare(b.Failed, a.Failed), cmp.Compare(b.Requests, a.Requests), cmp.Compare(a.API, b.API), cmp.Compare(a.Kind, b.Kind))
	})
	return sum, out[:min(len(out), outcomesTold)]
}

// outcome counts a request that a client brought, under the objects that decided it.
func (c *call) outcome() {
	if c.relayed || c.v.API == nil || c.v.API.Foreign || c.status == 0 && !c.broken || c.keptOnly || c.rushed(c.status) || c.hurried() || c.v.Stranger {
		return // another edge counts it; nobody's; the client left, wanted no upstream asked, gave it no time, or is nobody's
	}
	b := c.budget
	if b == nil {
		b = c.p.budget(c.v.API)
	}
	t := &b.now
	sum := c.table.Catalog().Sum
	if at := c.p.turned.Load(); at == nil {
		c.p.turned.CompareAndSwap(nil, new(sum))
	} else if *at != sum {
		t = &b.before
	}
	kind := -1
	if c.broken || c.served != "" && c.status >= 500 || c.served == "" && !c.hit && ours(c.status) {
		kind = kindOf(c.status, c.broken)
	}
	t.note(c.v.Customer, kind)
}

func kindOf(status int, broken bool) int {
	switch {
	case broken || status >= 500:
		return KindUnserved
	case status == http.StatusNotFound, status == http.StatusMethodNotAllowed, status == http.StatusMisdirectedRequest:
		return KindUnrouted
	case status == http.StatusForbidden:
		return KindDenied
	case status == http.StatusTooManyRequests, status == http.StatusPaymentRequired:
		return KindLimited
	}
	return KindOther
}

// ours says whether an answer of the edge itself may be the doing of its configuration. What a client sent in a way that
// cannot be read, or with a key that is none, is not: strangers could take a change back.
func ours(status int) bool {
	return status >= 400 && status != http.StatusBadRequest && status != http.StatusUnauthorized && status != http.StatusRequestTimeout
}
