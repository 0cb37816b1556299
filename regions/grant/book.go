package grant

import (
	"slices"
	"time"
)

// Cut is how long an edge may take to cut relays after its table changed.
const Cut = time.Second

// StaleAfter is the age after which an edge's word no longer means that it is connected.
const StaleAfter = 5 * time.Second

// Slack is what the leader adds to a grant's life before it takes it for ended: 1 s and 2 % for clocks that
// run at different speeds. The edge counts from when it asked, which is earlier.
func Slack(d time.Duration) time.Duration { return d + d/50 + time.Second }

// unslack takes that off again, in whole milliseconds rounded up.
func unslack(d time.Duration) time.Duration {
	return ((d-time.Second)*50/51 + time.Millisecond).Truncate(time.Millisecond)
}

// Book is what the leader of a zone knows only by itself: when the grants it gave have certainly ended, and what
// edges acknowledged. Open makes it for a term; nothing of it is handed on but what is in the log.
type Book struct {
	ends  map[leaseKey]lease
	words map[string]*word
}

// leaseKey: by target too, or a pair that ends in seconds would wait for another's offline lifetime.
type leaseKey struct{ edge, to string }

// anywhere: what a new leader assumes although nothing in its log says so.
const anywhere = ""

type lease struct {
	region string
	end    time.Time
}

// Word is what is said of an edge, by the node that it is connected to.
type Word struct {
	Edge, Region string
	By           string // the node
	Connected    bool
	Epoch, Index uint64 // of the zone's log, as the edge's table has it
}

type word struct {
	Word
	at    time.Time
	acked map[place]time.Time // place of a pending tightening → when its ack was first seen
}

// place in the zone's log. A recovery opens an epoch, whose indexes may be lower than those before.
type place struct{ epoch, index uint64 }

// has says whether a table of this word was made from a log that reaches a place.
func (w Word) has(p place) bool {
	return w.Epoch > p.epoch || w.Epoch == p.epoch && w.Index >= p.index
}

// Record is what the log says of the latest grants of an edge.
type Record struct {
	Edge, Region string
	Given        []Life
	Earlier      []Life // how long grants given before these may still last
}

// Life is the longest life of a grant for a target, its offline lifetime included.
type Life struct {
	To    string
	Lasts time.Duration
}

// Past is all that a new leader finds: the edges of the registry and their regions, the grants that the rules
// allow now (without closures: a closed pair may still be granted), targets of tightenings, the log's records.
type Past struct {
	Edges   map[string]string
	Rules   []Life
	Targets []string
	Records []Record
}

// Open begins a term with the worst taken for granted: every edge that may hold a grant got a full one, of
// at least ttl, when the term began, and nobody has acknowledged anything.
func Open(p Past, ttl time.Duration, since time.Time) *Book {
	b := &Book{ends: map[leaseKey]lease{}, words: map[string]*word{}}
	longest := map[string]time.Duration{} // by target
	reckon := func(l Life) { longest[l.To] = max(longest[l.To], l.Lasts, ttl) }
	for _, l := range p.Rules {
		reckon(l)
	}
	for _, to := range p.Targets {
		reckon(Life{To: to})
	}
	edges := map[string]string{}
	for edge, region := range p.Edges {
		edges[edge] = region
	}
	for _, r := range p.Records { // the log remembers edges that left the registry, and pairs that left the rules
		edges[r.Edge] = r.Region
		for _, l := range r.Given {
			reckon(l)
		}
		for _, l := range r.Earlier {
			reckon(l)
		}
	}
	for edge, region := range edges {
		b.ends[leaseKey{edge, anywhere}] = lease{region, since.Add(Slack(ttl))}
		for to, d := range longest {
			b.ends[leaseKey{edge, to}] = lease{region, since.Add(Slack(d))}
		}
	}
	return b
}

// Give enters grants before they are logged: from here on they count as given, whatever becomes of the answer.
// It returns the record to log. That one replaces the edge's last, whose grants may last longer than these, and
// its answer may be lost: what the edge may hold from earlier goes into it.
func (b *Book) Give(edge, region string, given []Life, now time.Time) Record {
	r := Record{Edge: edge, Region: region, Given: given}
	for key, l := range b.ends {
		if left := unslack(l.end.Sub(now)); key.edge == edge && key.to != anywhere && left > 0 {
			r.Earlier = append(r.Earlier, Life{key.to, left})
		}
	}
	for _, g := range given {
		key := leaseKey{edge, g.To}
		end := now.Add(Slack(g.Lasts))
		if old := b.ends[key].end; old.After(end) {
			end = old
		}
		b.ends[key] = lease{region, end}
	}
	return r
}

// Hear takes a word about an edge. false: the word of a node that the edge has left; a living one says otherwise.
func (b *Book) Hear(w Word, now time.Time) bool {
	old := b.words[w.Edge]
	if old == nil {
		old = &word{acked: map[place]time.Time{}}
		b.words[w.Edge] = old
	} else if old.Connected && !w.Connected && old.By != w.By && now.Sub(old.at) < StaleAfter {
		return false
	}
	for p := range old.acked {
		if !w.has(p) {
			delete(old.acked, p) // it went backwards (a cloned or restored disk): its word is void
		}
	}
	old.Word, old.at = w, now
	return true
}

// Connected says whether an edge was heard of lately, as connected.
func (b *Book) Connected(edge string, now time.Time) bool {
	w := b.words[edge]
	return w != nil && w.Connected && now.Sub(w.at) <= StaleAfter
}

// Tightening is a pair that is no longer permitted, and the place in the zone's log from which a table lacks it.
type Tightening struct {
	From, To string
	Epoch    uint64
	Barrier  uint64
}

// Ground is what a leader knows of the place: the zone's own regions, those of other zones, and the registry's
// edges by region.
type Ground struct {
	Own     func(region string) (own, known bool)
	Members func(region string) []string
}

// InForce says which half makes a tightening hold, or for which edges it still waits (the shorter list): all
// senders have acknowledged or their grants have ended, or all receivers have acknowledged; an acknowledgement
// counts after the time to cut. Only the own zone's edges answer to this leader: of a pair from abroad the
// receivers alone count, of one that leads abroad the senders alone.
func (b *Book) InForce(t Tightening, g Ground, now time.Time) (by string, waiting []string) {
	sends, takes := b.own(t.From, g), b.own(t.To, g)
	acked := func(edge string) bool {
		w := b.words[edge]
		shut := place{t.Epoch, t.Barrier}
		if w == nil || !w.has(shut) {
			return false
		}
		first, seen := w.acked[shut]
		if !seen {
			w.acked[shut] = now
			return false
		}
		return now.Sub(first) >= Cut
	}
	var senders, receivers []string
	for key, l := range b.ends { // also edges that were removed: until its end a grant may still be used
		if l.region == t.From && (key.to == t.To || key.to == anywhere) && now.Before(l.end) && !acked(key.edge) {
			senders = append(senders, key.edge)
		}
	}
	slices.Sort(senders)
	senders = slices.Compact(senders)
	known := map[string]bool{} // receivers: of the registry, and of whom a node of this zone speaks
	for _, edge := range g.Members(t.To) {
		known[edge] = true
	}
	for edge, w := range b.words {
		if w.Region == t.To {
			known[edge] = true
		}
	}
	for edge := range known {
		if !acked(edge) {
			receivers = append(receivers, edge)
		}
	}
	if len(known) == 0 { // the registry may not have arrived here yet: nobody has acknowledged anything
		receivers = []string{"edges of " + t.To}
	}
	slices.Sort(receivers)
	switch {
	case sends && len(senders) == 0:
		return "senders", nil
	case takes && len(receivers) == 0:
		return "receivers", nil
	case sends && (!takes || len(senders) <= len(receivers)):
		return "", senders
	}
	return "", receivers
}

// own: a region that the rules do not know any more is known by edges that may hold grants, and those that report.
func (b *Book) own(region string, g Ground) bool {
	if own, known := g.Own(region); known {
		return own
	}
	for _, l := range b.ends {
		if l.region == region {
			return true
		}
	}
	for _, w := range b.words {
		if w.Region == region {
			return true
		}
	}
	return false
}
