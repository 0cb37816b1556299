package linger

import (
	"sync"
	"time"

	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
)

const (
	heedEvery = 250 * time.Millisecond // relays that go on are spoken of so often, while there are any
	heedSoon  = 20 * time.Millisecond  // and so soon after a table was put in force

	// LentTime is how long relays may go on by what the newer process last lent.
	LentTime = 3 * time.Second

	// lentSlack is for clocks of two processes, which are the same one read twice.
	lentSlack = 100 * time.Millisecond

	maxTold = 64 // refusals, and pairs cut, in one frame
)

// Rests says whether relays under way may go by what this run of the edge was granted itself: nothing was lent yet (a zero time), or
// processes linger behind, which may have until now what this one lent them of its own before.
func Rests(relays int, lent time.Time, behind int, now time.Time) bool {
	return relays > 0 && (lent.IsZero() || behind > 0 && now.Sub(lent) <= 2*LentTime)
}

// Heed is what the older process says of its relays.
type Heed struct {
	Out, In int       // under way, here and in processes that linger behind
	Cuts    []string  // pairs cut since the last one, "from>to"
	Refused []Refusal // since the last one
}

// Refusal is a relay that was refused or cut there, and how often.
type Refusal struct {
	Rule   string `json:"rule"`
	From   string `json:"from"`
	To     string `json:"to"`
	Sample string `json:"sample"` // id of the newest request
	Count  int    `json:"count"`
}

// heed and lent pass on the connection. What is lent counts from when the heed that it answers was sent.
type heed struct {
	N       uint64    `json:"n"`
	Out     int       `json:"out"`
	In      int       `json:"in"`
	Catalog place     `json:"catalog"` // of the table by which relays were cut
	Zone    place     `json:"zone"`
	Cuts    []string  `json:"cuts,omitempty"`
	Refused []Refusal `json:"refused,omitempty"`
}

type lent struct {
	N    uint64     `json:"n"`
	Lent grant.Lent `json:"lent"`
}

type place struct {
	Epoch uint64 `json:"epoch"`
	Index uint64 `json:"index"`
}

func placeOf(r revision.Revision) place { return place{r.Epoch, r.Index} }

func (h *heed) at() grant.At {
	return grant.At{Catalog: revision.Revision{Epoch: h.Catalog.Epoch, Index: h.Catalog.Index}, Store: revision.Revision{Epoch: h.Zone.Epoch, Index: h.Zone.Index}}
}

// heeding is the older process's end of it.
type heeding struct {
	mu    sync.Mutex // covers the rest
	at    grant.At   // of the newest table by which all has been cut that it forbids
	n     uint64
	asked [LentTime / heedEvery]time.Time // when the newest were sent, n at n modulo their number
	heard uint64                          // the newest that was answered
	soon  chan struct{}                   // holds one: the table has changed, which somebody may wait for
}

func (h *heeding) obeys(at grant.At) {
	h.mu.Lock()
	h.at = at
	h.mu.Unlock()
	select {
	case h.soon <- struct{}{}:
	default:
	}
}

func (h *heeding) next(said Heed) heed {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.n++
	h.asked[h.n%uint64(len(h.asked))] = time.Now()
	return heed{N: h.n, Out: said.Out, In: said.In, Catalog: placeOf(h.at.Catalog), Zone: placeOf(h.at.Store), Cuts: said.Cuts, Refused: said.Refused}
}

// answered is when the heed was sent that is answered; false: a newer one was answered before, or what was lent is over.
func (h *heeding) answered(n uint64) (asked time.Time, newer bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if n <= h.heard || n > h.n || h.n-n >= uint64(len(h.asked)) {
		return time.Time{}, false
	}
	h.heard = n
	return h.asked[n%uint64(len(h.asked))], true
}

// lending is the newer process's end.
type lending struct {
	mu    sync.Mutex // covers the rest
	need  grant.At   // nothing is lent to who has not cut by a table as new as this
	said  *heed      // the newest; nil: none yet
	last  time.Time  // when something was last lent; zero: never
	heard chan struct{}
}

// hear takes a heed, and says whether anything may be lent for it.
func (l *lending) hear(h *heed) (may bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.said != nil && h.N <= l.said.N {
		return false // the last word came before
	}
	l.said = h
	if l.heard != nil {
		close(l.heard)
		l.heard = nil
	}
	return h.at().Behind(l.need) == ""
}

// lend calls f and notes that something was lent, if nothing newer is needed meanwhile.
func (l *lending) lend(h *heed, f func(now time.Time) (grant.Lent, bool)) (grant.Lent, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h.at().Behind(l.need) != "" {
		return grant.Lent{}, false
	}
	now := time.Now()
	out, ok := f(now)
	if ok {
		l.last = now
	}
	return out, ok
}

// relays is how many are under way there, as it last said; false: it has not said so yet. When the connection has ended that stands
// until all that was lent is over: it may be this end that gave it up.
func (l *lending) relays(gone bool) (out, in int, known bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case gone && (l.last.IsZero() || time.Since(l.last) > LentTime+lentSlack):
		return 0, 0, true
	case l.said == nil:
		return 0, 0, false
	}
	return l.said.Out, l.said.In, true
}

// tighten lends no more to who has not cut by a table as new as at, and returns when the other process has, or can go by nothing
// any more that was lent before. That the connection has ended says nothing: it may be this end that gave it up.
func (l *lending) tighten(at grant.At) {
	for {
		l.mu.Lock()
		if at.Behind(l.need) == "" {
			l.need = at
		}
		obeyed := l.said != nil && (l.said.at().Behind(at) == "" || l.said.Out+l.said.In == 0)
		left := time.Until(l.last.Add(LentTime + lentSlack))
		if obeyed || l.last.IsZero() || left <= 0 {
			l.mu.Unlock()
			return
		}
		if l.heard == nil {
			l.heard = make(chan struct{})
		}
		heard := l.heard
		l.mu.Unlock()
		timer := time.NewTimer(left)
		select {
		case <-heard:
		case <-timer.C:
		}
		timer.Stop()
	}
}
