package main

import (
	"time"

	"bailiwick/regions/grant"
)

// What must come right once nothing breaks any more.
const (
	settled = 8 * time.Second // after which all is granted and every request answered
	watched = 4 * time.Second
)

// halves of a pair, by whose acknowledgements a record came about.
var halves = [...]string{"senders", "receivers"}

// leaves fails if a record by the senders says that nothing leaves over the pair any more. A byte that a receiver
// refuses has still left, unless the record rests on the receivers.
func (w *world) leaves(p pair) {
	for i := range w.zones {
		if r := w.zones[i].closed[p.policy][p.from][p.to]; r.by == "senders" {
			w.fail("a first byte leaves over %v, which zone %s has recorded as closed at %v", p, zoneNames[i], r.at)
		}
	}
}

// arrives fails if what is accepted was sent after a record. The ends may know different policies of the API, whose
// policy was changed: the senders' half is about what they believe to send, the receivers' about what they believe to
// take.
func (w *world) arrives(sent, taken pair, at time.Duration) {
	for i := range w.zones {
		for half, p := range [...]pair{sent, taken} {
			if r := w.zones[i].closed[p.policy][p.from][p.to]; r.by == halves[half] && r.at <= at {
				w.fail("a relay over %v is accepted, sent at %v, after zone %s recorded the pair as closed at %v by %s", p, at, zoneNames[i], r.at, r.by)
			}
		}
	}
}

// inForce is the instant of a record: from here on nothing may move over the pair.
func (w *world) inForce(zone int, p pair, by string) {
	w.stats.records++
	if w.trace != nil {
		w.log("%v in force in %s by %s", p, zoneNames[zone], by)
	}
	w.zones[zone].closed[p.policy][p.from][p.to] = record{by, w.now}
	w.flights = keep(w.flights, w.moves)
	for _, f := range w.flights {
		if f.from != p.from || f.to != p.to || by == "senders" && policyID(f.Policy) != p.policy || by == "receivers" && f.policy != p.policy {
			continue
		}
		receiver := &w.edges[f.receiver]
		if !f.arrived && by == "receivers" && (!f.taken().Stands(&receiver.table) || !receiver.grants.Takes(f.grant, receiver.clock.at(w.now))) {
			continue // it will be refused
		}
		if w.senderEnded(f) || w.receiverEnded(f) {
			w.end(f)
			continue
		}
		w.fail("a relay over %v is under way when zone %s records it as closed everywhere, by %s", p, zoneNames[zone], by)
	}
}

// turning says whether the legal basis ended just now by some node's clock: then rules change although nothing breaks.
func (w *world) turning() bool {
	for i := range w.nodes {
		if since := w.nodes[i].clock.wall(w.now).Sub(basisEnds); since > -time.Second && since < settled {
			return true
		}
	}
	return false
}

// granted fails if an edge has no grant for what its table and a healthy peer's permit, long after the last trouble.
func (w *world) granted(e *edge, f grant.Flight) {
	for to := range nRegions {
		f.To = regionNames[to]
		if to == e.region || !f.Stands(&e.table) {
			continue
		}
		if e.grants.Live(f.Policy, f.To, e.table.at, e.clock.at(w.now)) == nil {
			w.fail("%s has no grant to %s, %v after the last trouble", edgeNames[e.as], f.To, w.now-w.set.calm)
		}
	}
}

// live fails if, at the end of a schedule whose trouble ended, anything is left to be done. What a machine held that
// was lost, and came back from an old copy of its disk, lapses by time; a leader since then takes it for given when its
// term began.
func (w *world) live() {
	for i := range w.zones {
		z := &w.zones[i]
		held := w.lost
		if held >= 0 {
			held = max(held, z.led)
		}
		for _, t := range z.last().tightening {
			if !t.done && w.now-t.at > settled && w.now-held > grant.Slack(max(w.set.offline, w.set.ttl))*51/50+2*time.Second { // a legal basis may have ended just now, by the leader's clock
				if w.trace != nil {
					by, waiting := z.leader.book.InForce(grant.Tightening{From: t.From, To: t.To, Epoch: t.epoch, Barrier: t.index, Now: z.last().rev.Epoch}, ground[i], z.leader.clock.at(w.now))
					w.log("by %q, waiting for %v", by, waiting)
				}
				w.fail("the tightening of %v of zone %s, recorded at %d.%d, is not in force %v after the last trouble", pairOf(t.Pair), zoneNames[i], t.epoch, t.index, w.now-w.set.calm)
			}
		}
	}
	for i := range nEdges {
		e := &w.edges[i]
		last := w.zones[e.zone()].last()
		late := w.now-last.changedAt > settled
		if !e.up || late && (e.table.at.Store.Epoch != last.rev.Epoch || e.table.at.Store.Index < last.changed) || e.table.at.Catalog != w.catalog[len(w.catalog)-1].rev {
			w.fail("%s holds %v and %v %v after the last trouble, its zone changed its pairs at %d.%d", edgeNames[e.as], e.table.at.Catalog, e.table.at.Store, w.now-w.set.calm, last.rev.Epoch, last.changed)
		}
	}
}
