package main

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"time"

	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
)

// newWorld draws a world: everything connected, the first rules adopted, every edge with a table.
func newWorld(seed uint64, r *rules) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 0x6261696c6977696b)), rules: r, logged: map[string]bool{}}
	w.set = setting{ttl: time.Duration(1500+w.rng.IntN(4500)) * time.Millisecond, offline: time.Duration(4+w.rng.IntN(12)) * time.Second,
		loss: []float64{0, 0.02, 0.15}[w.rng.IntN(3)]}
	drawClock := func() clock {
		c := clock{offset: w.between(0, 1000*time.Hour), rate: 1 + 0.02*w.rng.Float64()}
		if w.chance(0.2) {
			c.wall = w.between(-time.Hour, time.Hour)
		}
		return c
	}
	mask := uint16(0)
	if w.chance(0.5) {
		mask = offlineLong
	}
	w.catalog = []catalogVersion{{revision.Revision{Epoch: 1, Index: 1}, mask}}
	for i := range w.zones {
		w.zones[i] = &zone{log: []entry{{rev: revision.Revision{Epoch: 1, Index: 1}}}}
	}
	for i := range w.nodes {
		w.nodes[i] = &node{id: nRegions + i, zone: i / 3, clock: drawClock()}
	}
	for i := range w.edges {
		w.edges[i] = &edge{id: i, up: true, clock: drawClock(), grants: &grant.Held{}, control: w.rng.IntN(3), lastAsked: -time.Hour, homeDown: w.chance(0.8)}
	}
	for i := range w.zones {
		w.elect(i, w.nodes[3*i+w.rng.IntN(3)])
	}
	for _, e := range w.edges {
		w.after(w.between(0, time.Second), func() { w.edgeTick(e) })
		w.after(w.between(2*time.Second, 3*time.Second), func() { w.requests(e) })
	}
	for _, n := range w.nodes {
		w.after(w.between(0, 300*time.Millisecond), func() { w.nodeTick(n) })
	}
	w.after(w.between(2*time.Second, 4*time.Second), w.trouble)
	return w
}

// length of a schedule, in its own time.
const length = 15 * time.Second

func (w *world) run() error {
	for len(w.queue) > 0 && w.failure == nil {
		e := w.queue.next()
		if e.at > length {
			break
		}
		w.now = e.at
		w.stats.events++
		e.do()
	}
	w.stats.schedules++
	return w.failure
}

// commit appends to a zone's log: only its leader can, with a majority in reach. change says false to a failed compare.
func (w *world) commit(n *node, change func(e *entry) bool) bool {
	z := w.zones[n.zone]
	if z.leader != n || n.term != z.term || !w.majority(n) {
		return false
	}
	next := *z.last()
	next.rev.Index++
	if !change(&next) {
		return false
	}
	z.log = append(z.log, next)
	n.applied = len(z.log) - 1
	return true
}

func (w *world) majority(n *node) bool {
	for i := 3 * n.zone; i < 3*n.zone+3; i++ {
		if o := w.nodes[i]; o != n && !w.cut[n.id][o.id] && !w.cut[o.id][n.id] {
			return true
		}
	}
	return false
}

// elect makes a node the leader. The former one keeps its book and its belief until it hears of it.
func (w *world) elect(zone int, n *node) {
	z := w.zones[zone]
	z.term++
	z.leader = n
	n.term = z.term
	n.applied = len(z.log) - 1
	p := grant.Past{Edges: map[string]string{}}
	last := z.last()
	for _, x := range w.permitted(zone, &entry{adopted: last.adopted}, n.clock.at(w.now).Add(n.clock.wall)) {
		p.Rules = append(p.Rules, grant.Life{To: x.To, Lasts: x.OfflineGrant})
	}
	for _, t := range last.tightening {
		p.Targets = append(p.Targets, t.To)
	}
	for i, r := range last.records {
		if zoneOf(i) == zone {
			p.Edges[edgeNames[i]] = regionNames[i]
			if r.Edge != "" {
				p.Records = append(p.Records, r)
			}
		}
	}
	n.book = grant.Open(p, w.set.ttl, n.clock.at(w.now))
	w.stats.leaderChanges++
	w.log("node %d leads %s, term %d", n.id, zoneNames[zone], z.term)
}

// nodeTick: a node hears of the log and the catalog, tells its edges, and leads if it believes to.
func (w *world) nodeTick(n *node) {
	z := w.zones[n.zone]
	if z.leader != nil && (z.leader == n || !w.cut[z.leader.id][n.id]) && w.chance(0.8) {
		n.applied = max(n.applied, len(z.log)-1-w.rng.IntN(2)*w.rng.IntN(3))
	}
	if !w.cut[catalogID][n.id] && w.chance(0.7) {
		n.catalog = len(w.catalog) - 1
	}
	if n.book != nil && n.term == z.term {
		w.lead(n)
	}
	for i, e := range w.edges {
		if zoneOf(i) != n.zone {
			continue
		}
		if e.up && w.nodes[3*n.zone+e.control] == n {
			w.push(n, e)
		}
		if n.heard[i] && (w.nodes[3*n.zone+e.control] == n || w.chance(0.1)) {
			w.report(n, n.words[i])
		}
	}
	w.after(w.between(150*time.Millisecond, 600*time.Millisecond), func() { w.nodeTick(n) })
}

// report carries a word to whom this node takes for the leader.
func (w *world) report(n *node, word grant.Word) {
	to := w.zones[n.zone].leader
	hear := func() {
		if to.book != nil {
			to.book.Hear(word, to.clock.at(w.now))
		}
	}
	if to == n {
		hear()
	} else {
		w.send(n.id, to.id, hear)
	}
}

// lead is border's step: adopt, notice, complete.
func (w *world) lead(n *node) {
	z := w.zones[n.zone]
	at := n.clock.at(w.now)
	wall := at.Add(n.clock.wall)
	local := &z.log[n.applied]
	if n.catalog > local.adopted {
		w.commit(n, func(e *entry) bool { e.adopted = n.catalog; return true })
		local = &z.log[n.applied]
	}
	permitted := w.permitted(n.zone, local, wall)
	var open []grant.Pair
	var index []int
	for i, t := range local.tightening {
		if !t.done {
			open, index = append(open, t.Pair), append(index, i)
		}
	}
	if change, same := grant.Notice(local.baseline, local.changed != 0, permitted, open); !same {
		w.commit(n, func(e *entry) bool {
			if e.changed != local.changed {
				return false
			}
			e.baseline, e.changed = change.Now, e.rev.Index
			var kept []pending
			for i, t := range local.tightening {
				if k := slices.Index(index, i); k < 0 || !slices.Contains(change.Back, k) {
					kept = append(kept, t)
				}
			}
			for _, p := range change.Lost {
				kept = append(kept, pending{Pair: p, index: e.rev.Index})
				w.log("%s loses %s>%s at %d", zoneNames[n.zone], p.From, p.To, e.rev.Index)
			}
			e.tightening = kept
			for _, p := range change.Now {
				z.closed[regionID(p.From)][regionID(p.To)] = record{}
			}
			return true
		})
		local = &z.log[n.applied]
	}
	for i, t := range local.tightening {
		if t.done {
			continue
		}
		by, waiting := n.book.InForce(grant.Tightening{From: t.From, To: t.To, Epoch: local.rev.Epoch, Barrier: t.index}, w.ground(n.zone), at)
		if len(waiting) > 0 {
			continue
		}
		done := w.commit(n, func(e *entry) bool {
			if len(e.tightening) <= i || e.tightening[i] != t {
				return false
			}
			e.tightening = slices.Clone(e.tightening)
			e.tightening[i].done = true
			return true
		})
		if done {
			w.inForce(n.zone, link{regionID(t.From), regionID(t.To)}, by)
			local = &z.log[n.applied]
		}
	}
}

func (w *world) ground(zone int) grant.Ground {
	return grant.Ground{
		Own: func(region string) (bool, bool) {
			id := regionID(region)
			return id >= 0 && zoneOf(id) == zone, id >= 0
		},
		Members: func(region string) []string { return edgeNames[regionID(region) : regionID(region)+1] },
	}
}

// push sends an edge the table that this node would build for it now.
func (w *world) push(n *node, e *edge) {
	z := w.zones[n.zone]
	local := &z.log[n.applied]
	if local.changed == 0 {
		return
	}
	catalog := w.catalog[local.adopted].rev
	t := held{exists: true, at: grant.At{Catalog: catalog, Store: local.rev}}
	// A node knows its clock and its own view of the rules; what the leader noticed is in the log.
	for _, p := range grant.Noticed(w.permitted(n.zone, local, n.clock.at(w.now).Add(n.clock.wall)), local.baseline) {
		from, to := regionID(p.From), regionID(p.To)
		if from == e.id || to == e.id {
			t.pairs[from][to] = true
		}
	}
	if e.table == t && n.heard[e.id] && w.chance(0.85) {
		return // a heartbeat would find nothing lost
	}
	life := e.life
	w.send(n.id, e.id, func() {
		if e.life == life && e.up {
			w.take(n, e, t)
		}
	})
}

// take is what subscribe does with an update: refuse to go back, persist, put in force, cut, acknowledge.
func (w *world) take(n *node, e *edge, t held) {
	if e.table.exists && (t.at.Store.Less(e.table.at.Store) || t.at.Catalog.Less(e.table.at.Catalog)) {
		return
	}
	changed := e.table.pairs != t.pairs
	if changed {
		w.log("%s takes %v: %v", edgeNames[e.id], t.at.Store, t.pairs)
	}
	e.disk, e.table = t, t
	if changed {
		w.enforce(e)
		w.after(0, func() { w.ask(e) })
	}
	word := grant.Word{Edge: edgeNames[e.id], Region: regionNames[e.id], By: fmt.Sprint("node", n.id), Connected: true, Epoch: t.at.Store.Epoch, Index: t.at.Store.Index}
	w.send(e.id, n.id, func() { n.words[e.id], n.heard[e.id] = word, true; w.report(n, word) })
}
