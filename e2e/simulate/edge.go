package main

import (
	"fmt"
	"slices"
	"time"

	"bailiwick/regions"
	"bailiwick/regions/grant"
)

func (e *edge) party() grant.Party {
	return grant.Party{Zone: zoneNames[zoneOf(e.id)], Region: regionNames[e.id], Edge: edgeNames[e.id]}
}

// edgeTick asks again in time, moves to another node when its own is silent, and gives up on open questions.
func (w *world) edgeTick(e *edge) {
	if e.up {
		if e.question != 0 && w.now-e.lastAsked > time.Second {
			e.question = 0
			e.grants = e.grants.Step(grant.Silent, nil, e.clock.at(w.now))
			e.control = w.rng.IntN(3)
		}
		if e.question == 0 && w.now-e.lastAsked > w.set.ttl/3 {
			w.ask(e)
		}
	}
	w.after(w.between(200*time.Millisecond, 500*time.Millisecond), func() { w.edgeTick(e) })
}

// ask carries a question for grants to whom the edge's node takes for the leader.
func (w *world) ask(e *edge) {
	if !e.up || !e.table.exists {
		return
	}
	w.ids++
	number, life := w.ids, e.life
	e.question, e.asked, e.lastAsked = number, e.clock.at(w.now), w.now
	asked, at := e.asked, e.table.at
	n := w.nodes[3*zoneOf(e.id)+e.control]
	answer := func(from *node, a grant.Answer, given []*grant.Grant) {
		w.send(from.id, n.id, func() {
			w.send(n.id, e.id, func() {
				if !e.up || e.life != life || e.question != number {
					return
				}
				e.question = 0
				var mine []*grant.Grant
				for _, g := range given {
					p := e.party()
					if g.Mine(p.Zone, p.Edge, p.Region, e.table.at) == "" {
						copied := *g
						copied.Asked = asked
						mine = append(mine, &copied)
					}
				}
				e.grants = e.grants.Step(a, mine, e.clock.at(w.now))
				w.log("%s asked at %v, answer %d with %d grants", edgeNames[e.id], asked.Sub(e.clock.at(w.now)), a, len(mine))
			})
		})
	}
	w.send(e.id, n.id, func() {
		to := w.zones[n.zone].leader
		if w.chance(0.2) { // a node that has not heard of the new leader yet
			to = w.nodes[3*n.zone+w.rng.IntN(3)]
		}
		w.send(n.id, to.id, func() { w.grant(to, e, at, answer) })
	})
}

// grant is border's Grant, with time for anything to happen between its steps.
func (w *world) grant(n *node, e *edge, table grant.At, answer func(*node, grant.Answer, []*grant.Grant)) {
	z := w.zones[n.zone]
	if n.book == nil {
		return // NOT_LEADER: the caller takes it for silence
	}
	term := n.term
	read := z.log[n.applied]
	if read.changed == 0 || !grant.FreshTable(table.Store.Epoch, table.Store.Index, read.rev.Epoch, read.changed) {
		answer(n, grant.Behind, nil)
		return
	}
	outbound := func(state *entry) []regions.Permitted {
		return slices.DeleteFunc(w.permitted(n.zone, state, n.clock.at(w.now).Add(n.clock.wall)), func(p regions.Permitted) bool { return p.From != regionNames[e.id] })
	}
	var grants []*grant.Grant
	var given []grant.Life
	for _, p := range grant.Noticed(outbound(&read), read.baseline) {
		w.ids++
		g := &grant.Grant{ID: fmt.Sprint("g", w.ids), Zone: zoneNames[n.zone], Edge: edgeNames[e.id], From: p.From, To: p.To, Policies: []string{p.Policy},
			Catalog: w.catalog[read.adopted].rev, Store: read.rev, TTL: w.set.ttl, OfflineTTL: max(w.set.ttl, p.OfflineGrant)}
		grants = append(grants, g)
		given = append(given, grant.Life{To: g.To, Lasts: g.OfflineTTL})
	}
	if len(grants) == 0 {
		answer(n, grant.Given, nil)
		return
	}
	record := n.book.Give(edgeNames[e.id], regionNames[e.id], given, n.clock.at(w.now))
	w.after(w.between(0, 100*time.Millisecond), func() {
		if n.term != term || !w.commit(n, func(s *entry) bool {
			if s.changed != read.changed {
				return false
			}
			s.records[e.id] = record
			return true
		}) {
			if n.term == term && z.term == term {
				answer(n, grant.Behind, nil) // RULES_CHANGED
			}
			return
		}
		for _, g := range grants {
			w.logged[g.ID] = true
		}
		w.after(w.between(0, 100*time.Millisecond), func() {
			if n.term != term || z.leader != n || z.term != term || !w.majority(n) {
				return // VerifyLeader fails
			}
			still := outbound(&z.log[n.applied])
			grants = slices.DeleteFunc(grants, func(g *grant.Grant) bool {
				return !slices.ContainsFunc(still, func(p regions.Permitted) bool { return p.To == g.To && g.Covers(p.Policy) })
			})
			answer(n, grant.Given, grants)
		})
	})
}

// requests come to an edge; some find its upstream down, and some of those are hedged or tried again.
func (w *world) requests(e *edge) {
	if e.up && e.table.exists {
		w.stats.requests++
		if !e.homeDown {
			w.stats.home++
		} else {
			w.relay(e, 0, w.chance(0.1))
		}
	}
	w.after(w.between(50*time.Millisecond, 600*time.Millisecond), func() { w.requests(e) })
}

// permits is the sender's half: the newest table, and a live grant.
func (w *world) permits(e *edge, to int) *grant.Grant {
	if !e.table.pairs[e.id][to] {
		return nil
	}
	return e.grants.Live(zoneNames[zoneOf(e.id)], regionNames[to], e.table.at, e.clock.at(w.now))
}

// relay makes one attempt at the regions from the given one on.
func (w *world) relay(e *edge, first int, hedge bool) {
	for to := first; to < nRegions; to++ {
		if to == e.id || w.permits(e, to) == nil {
			continue
		}
		peer := w.edges[to]
		good := peer.up && !peer.homeDown && !w.cut[e.id][to] && !w.cut[to][e.id] && peer.table.pairs[e.id][to]
		if good {
			w.stats.wanted++
		}
		life := e.life
		// A dial and an fsync, then the question again.
		w.after(w.between(0, 30*time.Millisecond), func() {
			g := w.permits(e, to)
			if g == nil || !e.up || e.life != life {
				if good {
					w.stats.wanted-- // it was no longer granted
				}
				w.relay(e, to+1, false)
				return
			}
			w.emit(e, peer, g, good)
		})
		if hedge {
			w.relay(e, to+1, false)
		}
		return
	}
}

// emit is the first byte that leaves the region.
func (w *world) emit(e, peer *edge, g *grant.Grant, good bool) {
	pair := link{e.id, peer.id}
	sent := w.now
	life := e.life
	w.leaves(pair)
	if !w.logged[g.ID] {
		w.fail("a relay over %v under grant %s, which is in no log", pair, g.ID)
	}
	if w.cut[e.id][peer.id] {
		if good {
			w.stats.wanted--
		}
		return
	}
	f := &flight{link: pair, until: w.now + grant.Cut, fromLife: e.life, toLife: peer.life}
	w.flights = append(w.flights, f)
	w.after(w.between(time.Millisecond, 80*time.Millisecond), func() {
		if f.cut {
			if good {
				w.stats.wanted-- // its pair was closed under way
			}
			return
		}
		if !peer.up || w.cut[e.id][peer.id] || e.life != life {
			if good {
				w.stats.wanted--
			}
			return
		}
		at := peer.clock.at(w.now)
		if g.Fits(e.party(), peer.party(), peer.table.at) != "" || !peer.table.pairs[e.id][peer.id] || !peer.seen.Fresh(g, at) {
			w.stats.refusedAtReceiver++
			f.cut = true
			if good && (!peer.table.pairs[e.id][peer.id] || g.Fits(e.party(), peer.party(), peer.table.at) != "") {
				w.stats.wanted-- // closed, or recovered, under way
			}
			w.relay(e, peer.id+1, false)
			return
		}
		w.stats.relayed++
		if good {
			w.stats.served++
		}
		w.arrives(pair, sent)
		w.log("relay over %v under %s of %v", pair, g.ID, g.Store)
		f.until, f.toLife, f.arrived = w.now+w.between(0, 8*time.Second), peer.life, true
	})
}

// leaves fails if a record by the senders says that nothing leaves over the pair any more. A byte that a receiver
// refuses has still left, unless the record rests on the receivers.
func (w *world) leaves(pair link) {
	for i, z := range w.zones {
		if r := z.closed[pair.from][pair.to]; r.by == "senders" {
			w.fail("a first byte leaves over %v, which zone %s has recorded as closed at %v", pair, zoneNames[i], r.at)
		}
	}
}

// arrives fails if what is accepted was sent after a record.
func (w *world) arrives(pair link, sent time.Duration) {
	for i, z := range w.zones {
		if r := z.closed[pair.from][pair.to]; r.by != "" && r.at <= sent {
			w.fail("a relay over %v is accepted, sent at %v, after zone %s recorded the pair as closed at %v", pair, sent, zoneNames[i], r.at)
		}
	}
}

// enforce is relay's: what the newest table does not permit is cut before it is acknowledged.
func (w *world) enforce(e *edge) {
	for _, f := range w.flights {
		if (f.from == e.id || f.to == e.id) && !e.table.pairs[f.from][f.to] {
			w.end(f)
		}
	}
}

func (w *world) end(f *flight) {
	if !f.cut {
		f.cut = true
		w.stats.cutFlights++
	}
}

// inForce is the instant of a record: from here on nothing may move over the pair.
func (w *world) inForce(zone int, pair link, by string) {
	w.stats.records++
	w.log("%v in force in %s by %s", pair, zoneNames[zone], by)
	w.zones[zone].closed[pair.from][pair.to] = record{by, w.now}
	w.flights = slices.DeleteFunc(w.flights, func(f *flight) bool { return f.cut || f.until < w.now })
	sender, receiver := w.edges[pair.from], w.edges[pair.to]
	for _, f := range w.flights {
		if f.link != pair || f.fromLife != sender.life || f.toLife != receiver.life {
			continue
		}
		if !f.arrived && by == "receivers" && !receiver.table.pairs[pair.from][pair.to] {
			continue // it will be refused
		}
		// Grants end by time, which tells nobody: the sender looks every 200 ms.
		if sender.grants.Live(zoneNames[zoneOf(pair.from)], regionNames[pair.to], sender.table.at, sender.clock.at(w.now-200*time.Millisecond)) == nil {
			w.end(f)
			continue
		}
		w.fail("a relay over %v is under way when zone %s records it as closed everywhere, by %s", pair, zoneNames[zone], by)
	}
}
