package main

import (
	"slices"
	"strconv"
	"time"

	"bailiwick/regions/grant"
)

// edgeTick asks again in time, moves to another node when its own is silent, and gives up on open questions.
func (w *world) edgeTick(e *edge) {
	if !e.up {
		return
	}
	if e.question != 0 && w.now-e.lastAsked > time.Second {
		e.question = 0
		e.grants = e.grants.Step(grant.Silent, nil, grant.Take{}, e.clock.at(w.now))
		e.control = w.rng.IntN(3)
		e.next = min(w.set.ttl/3, time.Second)
	}
	if e.question == 0 && w.now-e.lastAsked > e.next {
		w.ask(e)
	}
}

// ask carries a question for grants to whom the edge's node takes for the leader.
func (w *world) ask(e *edge) {
	if !e.up || !e.table.exists {
		return
	}
	w.ids++
	q := question{number: w.ids, life: e.life, asked: e.clock.at(w.now), at: e.table.at, edge: e, process: e.process(), dead: e.dead, by: &w.nodes[3*e.zone()+e.control]}
	e.question, e.lastAsked = q.number, w.now
	w.send(e.id, q.by.id, func() {
		to := w.zones[e.zone()].leader
		if w.now < w.set.calm && w.chance(0.2) { // a node that has not heard of the new leader yet
			to = &w.nodes[3*e.zone()+w.rng.IntN(3)]
		}
		w.send(q.by.id, to.id, func() { w.grant(to, &q) })
	})
}

// question is one request for grants.
type question struct {
	number, life int
	asked        time.Time
	at           grant.At
	edge         *edge
	process      grant.Process
	dead         []string
	by           *node
}

// answer carries what became of a question back.
func (w *world) answer(from *node, q *question, a grant.Answer, given []*grant.Grant, takes time.Duration) {
	e := q.edge
	w.send(from.id, q.by.id, func() {
		w.send(q.by.id, e.id, func() {
			if !e.up || e.life != q.life || e.question != q.number {
				return
			}
			e.question = 0
			w.lapse(e)
			p := e.party()
			var mine []*grant.Grant
			for _, g := range given {
				if g.Mine(p, e.table.at) == "" {
					copied := *g
					copied.Asked = q.asked
					mine = append(mine, &copied)
				}
			}
			e.grants = e.grants.Step(a, mine, grant.Take{Asked: q.asked, Lasts: takes}, e.clock.at(w.now))
			if e.next = w.set.ttl / 3; a != grant.Given {
				e.next = min(e.next, time.Second)
			}
			if w.trace != nil {
				w.log("%s asked at %v with a table of %v, answer %d with %d grants", edgeNames[e.as], q.asked.Sub(e.clock.at(w.now)), q.at.Store, a, len(mine))
			}
		})
	})
}

// grant is border's Grant, with time for anything to happen between its steps.
func (w *world) grant(n *node, q *question) {
	z, e := &w.zones[n.zone], q.edge
	if n.book == nil {
		return // NOT_LEADER: the caller takes it for silence
	}
	term := n.term
	read := z.log[n.applied]
	if read.changed == 0 || !grant.FreshTable(q.at.Store.Epoch, q.at.Store.Index, read.rev.Epoch, read.changed) {
		w.answer(n, q, grant.Behind, nil, 0)
		return
	}
	n.book.Bury(q.process.Edge, q.dead, n.clock.at(w.now))
	if n.book.Elder(q.process, n.clock.at(w.now)) != "" {
		w.answer(n, q, grant.Behind, nil, 0) // TWIN
		return
	}
	takes := grant.Takes(w.view(n).permitted, regionNames[e.region], w.set.ttl)
	offers := grant.Offers(w.view(n).permitted, regionNames[e.region], w.set.ttl, func(string) bool { return true })
	if len(offers) == 0 && takes == 0 {
		w.answer(n, q, grant.Given, nil, 0)
		return
	}
	ids := make([]string, len(offers))
	for i := range ids {
		w.ids++
		ids[i] = strconv.Itoa(w.ids)
	}
	record := n.book.Give(q.process, regionNames[e.region], grant.Lives(offers), takes, n.clock.at(w.now))
	w.after(w.between(0, 100*time.Millisecond), func() {
		if n.term != term || !w.commit(n, func(s *entry) bool {
			if s.changed != read.changed || s.rev.Epoch != read.rev.Epoch || s.records[e.as] != read.records[e.as] {
				return false
			}
			s.records[e.as] = &record
			return true
		}) {
			if n.term == term && z.term == term {
				w.answer(n, q, grant.Behind, nil, 0) // RULES_CHANGED
			}
			return
		}
		for _, id := range ids {
			w.logged[id] = true
		}
		w.after(w.between(0, 100*time.Millisecond), func() {
			if n.term != term || z.leader != n || z.term != term || !w.majority(n) {
				return // VerifyLeader fails
			}
			still := w.permitted(n.zone, z.log[n.applied], n.clock.wall(w.now))
			var grants []*grant.Grant
			for i, o := range offers {
				if o.Confirm(regionNames[e.region], still) {
					if zoneOf(regionID(o.To)) != n.zone && w.recovered(read) {
						w.fail("%s gets a grant to %s, whose zone is another's, after a recovery that nobody has approved", edgeNames[e.as], o.To)
					}
					grants = append(grants, &grant.Grant{ID: ids[i], Zone: zoneNames[n.zone], Process: q.process, From: regionNames[e.region], To: o.To, Policies: o.Policies,
						Catalog: w.catalog[read.adopted].rev, Store: read.rev, TTL: o.TTL, OfflineTTL: o.OfflineTTL, Peers: peersOf[regionID(o.To)]})
				}
			}
			w.answer(n, q, grant.Given, grants, min(takes, grant.Takes(still, regionNames[e.region], w.set.ttl)))
		})
	})
}

// request comes to an edge; if its upstream is down it is relayed, and some of those are hedged.
func (w *world) request(e *edge) {
	if !e.up || !e.table.exists {
		return
	}
	w.stats.requests++
	if !e.homeDown {
		w.stats.home++
		return
	}
	zone := zoneNames[e.zone()]
	policy, _ := e.table.PolicyOf(zone, api)
	f := grant.Flight{Zone: zone, API: api, Policy: policy, From: regionNames[e.region]}
	if w.now >= w.set.calm+settled && !w.turning() {
		w.granted(e, f)
	}
	w.relay(e, f, 0, w.chance(0.1))
}

// relay makes one attempt at the regions from the given one on.
func (w *world) relay(e *edge, f grant.Flight, first int, hedge bool) {
	for to := first; to < nRegions; to++ {
		f.To = regionNames[to]
		if to == e.region {
			continue
		}
		g, rule := e.grants.Leave(f, &e.table, e.clock.at(w.now))
		if rule != "" {
			continue
		}
		peer := w.dial(e, g)
		good := w.good(e, peer, f) && peer.grants.Takes(g, peer.clock.at(w.now))
		if good {
			w.stats.wanted++
		}
		life := e.life
		// A dial and an fsync, then the question again.
		w.after(w.between(0, 30*time.Millisecond), func() {
			g, rule := e.grants.Leave(f, &e.table, e.clock.at(w.now))
			if rule != "" || !e.up || e.life != life {
				w.excuse(good) // it is no longer granted
				w.relay(e, f, to+1, false)
				return
			}
			w.emit(e, peer, f, g, good)
		})
		if hedge {
			w.relay(e, f, to+1, false)
		}
		return
	}
}

// dial finds an edge of the grant that answers; the last one if none does.
func (w *world) dial(e *edge, g *grant.Grant) *edge {
	at := edgesOf[regionID(g.To)]
	if t := &w.edges[twin]; t.up && regionNames[t.region] == g.To { // some find the copy where they look for the edge
		at = append(at[:len(at):len(at)], twin)
	}
	start := w.rng.IntN(len(at))
	var peer *edge
	for i := range at {
		peer = &w.edges[at[(start+i)%len(at)]]
		if peer.up && !w.cut[e.id][peer.id] && !w.cut[peer.id][e.id] {
			break
		}
	}
	return peer
}

// good says whether a relay to a peer should succeed: healthy, in reach, and permitted at that end too.
func (w *world) good(e, peer *edge, f grant.Flight) bool {
	return peer.up && !peer.homeDown && !w.cut[e.id][peer.id] && !w.cut[peer.id][e.id] && f.Stands(&peer.table)
}

// excuse takes back that a request had to succeed: the world changed under it. Not in the watched time.
func (w *world) excuse(good bool) {
	if !good {
		return
	}
	w.stats.wanted--
	if w.now >= w.set.calm+settled+time.Second && !w.turning() {
		w.fail("a request is not answered although nothing is broken since %v", w.set.calm)
	}
}

// emit is the first byte that leaves the region.
func (w *world) emit(e, peer *edge, f grant.Flight, g *grant.Grant, good bool) {
	f.Peer = edgeNames[peer.as]
	p := pair{policyID(f.Policy), e.region, peer.region}
	sent := w.now
	w.leaves(p)
	if !w.logged[g.ID] {
		w.fail("a relay over %v under grant %s, which is in no log", p, g.ID)
	}
	if w.cut[e.id][peer.id] {
		w.excuse(good)
		return
	}
	x := &flight{Flight: f, grant: g, pair: p, sender: e.id, receiver: peer.id, until: w.now + grant.Cut, fromLife: e.life, toLife: peer.life}
	w.flights = append(w.flights, x)
	w.after(w.between(time.Millisecond, 80*time.Millisecond), func() {
		if x.cut || !peer.up || w.cut[e.id][peer.id] || e.life != x.fromLife {
			w.excuse(good) // its pair was closed under way, or somebody is gone
			return
		}
		policy, rule := grant.Admit(g, api, e.party(), peer.party(), &peer.table)
		if rule == "" && !peer.grants.Takes(g, peer.clock.at(w.now)) {
			rule = grant.NoLeave
		}
		if rule == "" && !peer.seen.Fresh(g, peer.clock.at(w.now)) {
			rule = grant.Expired
		} else if rule != "" {
			w.excuse(good) // closed, or recovered, under way
		}
		if rule != "" {
			w.stats.refusedAtReceiver++
			x.cut = true
			w.relay(e, f, peer.region+1, false)
			return
		}
		w.stats.relayed++
		if good {
			w.stats.served++
		}
		x.policy = policyID(policy) // the receiver's table may know another one of the API: each end asks its own
		w.arrives(p, x.pair, sent)
		if w.trace != nil {
			w.log("relay over %v under %s of %v", p, g.ID, g.Store)
		}
		x.until, x.toLife, x.arrived = w.now+w.between(0, 8*time.Second), peer.life, true
	})
}

// sweep is relay's Enforce at both ends: what the newest table and grants do not permit is cut.
func (w *world) sweep(e *edge) {
	if !e.up {
		return
	}
	kept := w.flights[:0]
	for _, f := range w.flights {
		if f.cut || f.until < w.now {
			continue
		}
		kept = append(kept, f)
		if f.sender == e.id && !e.grants.Keep(f.Flight, &e.table, e.clock.at(w.now)) ||
			f.receiver == e.id && f.arrived && (!f.taken().Stands(&e.table) || !e.grants.Takes(f.grant, e.clock.at(w.now))) {
			w.end(f)
		}
	}
	clear(w.flights[len(kept):])
	w.flights = kept
}

// lapse cuts what an edge's looks have found without grant or leave before now: a new answer does not bring it back.
func (w *world) lapse(e *edge) {
	for _, f := range w.flights {
		if f.sender == e.id && w.senderEnded(f) || f.receiver == e.id && w.receiverEnded(f) {
			w.end(f)
		}
	}
}

// senderEnded: grants end by time, which tells nobody, and the sender looks every 200 ms.
func (w *world) senderEnded(f *flight) bool {
	e := &w.edges[f.sender]
	return e.grants.Live(f.Policy, f.To, e.table.at, e.clock.at(w.now-200*time.Millisecond)) == nil
}

// receiverEnded: so does leave, for which the receiver looks every 500 ms.
func (w *world) receiverEnded(f *flight) bool {
	e := &w.edges[f.receiver]
	return f.arrived && !e.grants.Takes(f.grant, e.clock.at(w.now-500*time.Millisecond))
}

func (w *world) end(f *flight) {
	if !f.cut {
		f.cut = true
		w.stats.cutFlights++
	}
}

// taken is the flight as its receiver has it.
func (f *flight) taken() grant.Flight {
	x := f.Flight
	x.Policy = policyNames[f.policy]
	return x
}

// moves: sender and receiver may have restarted, and then nothing does any more.
func (w *world) moves(f *flight) bool {
	return !f.cut && f.until >= w.now && f.fromLife == w.edges[f.sender].life && f.toLife == w.edges[f.receiver].life
}

func keep(flights []*flight, f func(*flight) bool) []*flight {
	return slices.DeleteFunc(flights, func(x *flight) bool { return !f(x) })
}
