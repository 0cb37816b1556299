package main

import (
	"math"
	"math/rand/v2"
	"slices"
	"time"

	"bailiwick/regions/grant"
	"bailiwick/shared/revision"
)

// newWorld draws a world: everything connected, the first rules adopted, every edge without a table.
func newWorld(seed uint64, r *rules, room queue) *world {
	w := &world{rng: rand.New(rand.NewPCG(seed, 0x6261696c6977696b)), rules: r, logged: map[string]bool{}, queue: room[:0]}
	w.set = setting{ttl: time.Duration(1500+w.rng.IntN(4500)) * time.Millisecond, offline: time.Duration(4+w.rng.IntN(12)) * time.Second,
		loss: []float64{0, 0.02, 0.15}[w.rng.IntN(3)], length: 15 * time.Second}
	w.set.calm, w.lost = 2*w.set.length, -time.Hour
	if w.chance(0.25) { // the mode for liveness: what is broken is mended, and all must come right
		w.set.calm = w.between(4*time.Second, 9*time.Second)
		w.set.length = w.set.calm + settled + watched
	}
	drawClock := func() clock {
		c := clock{offset: w.between(0, 1000*time.Hour), rate: 1 + 0.02*w.rng.Float64(), off: w.between(-time.Second, time.Second)}
		if w.chance(0.2) {
			c.off = w.between(-time.Hour, time.Hour)
		}
		return c
	}
	mask := uint16(0)
	if w.chance(0.5) {
		mask = offlineLong
	}
	w.catalog = append(make([]catalogVersion, 0, 16), catalogVersion{revision.Revision{Epoch: 1, Index: 1}, mask})
	for i := range w.zones {
		w.zones[i].log = append(make([]*entry, 0, 64), &entry{rev: revision.Revision{Epoch: 1, Index: 1}, crossing: epochs{1, 1}})
	}
	for i := range w.nodes {
		w.nodes[i] = node{id: nMachines + i, zone: i / 3, clock: drawClock()}
	}
	for i := range nEdges {
		w.edges[i] = edge{id: i, as: i, region: edgeRegion[i], up: true, clock: drawClock(), grants: &grant.Held{}, control: w.rng.IntN(3), lastAsked: -time.Hour}
		w.edges[i].draw(w)
	}
	w.edges[twin] = edge{id: twin, clock: drawClock(), grants: &grant.Held{}}
	for region := range nRegions {
		w.upstreams(region, w.chance(0.6))
	}
	for i := range w.zones {
		w.elect(i, &w.nodes[3*i+w.rng.IntN(3)])
	}
	for i := range w.edges {
		e := &w.edges[i]
		w.every(time.Second, 200*time.Millisecond, 500*time.Millisecond, func() { w.edgeTick(e) })
		w.every(3*time.Second, 100*time.Millisecond, 1000*time.Millisecond, func() { w.request(e) })
	}
	for i := range w.nodes {
		n := &w.nodes[i]
		w.every(300*time.Millisecond, 150*time.Millisecond, 600*time.Millisecond, func() { w.nodeTick(n) })
	}
	w.after(w.between(2*time.Second, 4*time.Second), w.trouble)
	return w
}

// every calls do again and again, for the first time within first. One closure serves all its calls.
func (w *world) every(first, a, b time.Duration, do func()) {
	var again func()
	again = func() {
		do()
		w.after(w.between(a, b), again)
	}
	w.after(w.between(0, first), again)
}

func (w *world) run() error {
	for len(w.queue) > 0 && w.failure == nil {
		e := w.queue.pop()
		if e.at > w.set.length {
			break
		}
		w.now = e.at
		w.stats.events++
		if e.from == e.to || !w.cut[e.from][e.to] {
			e.do()
		}
	}
	if w.failure == nil && w.set.calm < w.set.length {
		w.live()
		w.stats.calm++
	}
	w.stats.schedules++
	return w.failure
}

// commit appends to a zone's log: only its leader can, with a majority in reach. change says false to a failed compare.
func (w *world) commit(n *node, change func(e *entry) bool) bool {
	z := &w.zones[n.zone]
	if z.leader != n || n.term != z.term || !w.majority(n) {
		return false
	}
	next := *z.last()
	next.rev.Index++
	if !change(&next) {
		return false
	}
	z.log = append(z.log, &next)
	n.applied = len(z.log) - 1
	return true
}

func (w *world) majority(n *node) bool {
	for i := 3 * n.zone; i < 3*n.zone+3; i++ {
		if o := &w.nodes[i]; o != n && !w.cut[n.id][o.id] && !w.cut[o.id][n.id] {
			return true
		}
	}
	return false
}

// elect makes a node the leader. The former one keeps its book and its belief until it hears of it.
func (w *world) elect(zone int, n *node) {
	z := &w.zones[zone]
	z.term++
	z.leader, z.led = n, w.now
	n.term = z.term
	n.applied = len(z.log) - 1
	p := grant.Past{Edges: map[string]string{}}
	last := z.last()
	if last.rev.Epoch > 1 { // it was recovered, less long ago than any grant lasts
		p.Lost = w.set.offline
	}
	for _, x := range w.permitted(zone, &entry{adopted: last.adopted, crossing: epochs{math.MaxUint64, math.MaxUint64}}, n.clock.wall(w.now)) {
		p.Rules = append(p.Rules, grant.Life{To: x.To, Lasts: x.OfflineGrant})
	}
	for _, t := range last.tightening {
		p.Targets = append(p.Targets, t.To)
	}
	for i, r := range last.records {
		if zoneOf(edgeRegion[i]) == zone {
			p.Edges[edgeNames[i]] = regionNames[edgeRegion[i]]
			if r != nil {
				p.Records = append(p.Records, *r)
			}
		}
	}
	n.book = grant.Open(p, w.set.ttl, n.clock.at(w.now))
	n.looked = look{}
	w.stats.leaderChanges++
	if w.trace != nil {
		w.log("node %s leads %s, term %d", nodeNames[n.id-nMachines], zoneNames[zone], z.term)
	}
}

// nodeTick: a node hears of the log and the catalog, tells its edges, and leads if it believes to.
func (w *world) nodeTick(n *node) {
	z := &w.zones[n.zone]
	calm := w.now >= w.set.calm
	if z.leader != nil && (z.leader == n || !w.cut[z.leader.id][n.id]) && (calm || w.chance(0.8)) {
		lag := 0
		if !calm {
			lag = w.rng.IntN(2) * w.rng.IntN(3)
		}
		n.applied = max(n.applied, len(z.log)-1-lag)
	}
	if !w.cut[catalogID][n.id] && (calm || w.chance(0.7)) {
		n.catalog = len(w.catalog) - 1
	}
	if n.book != nil && n.term == z.term {
		w.lead(n)
	}
	for i := range w.edges {
		e := &w.edges[i]
		if e.zone() != n.zone || i == twin && !e.up {
			continue
		}
		mine := &w.nodes[3*n.zone+e.control] == n
		if e.up && mine {
			w.push(n, e)
		}
		if n.heard[i] && (mine || w.chance(0.1)) {
			word := n.words[i]
			if !mine { // an edge that left a node may look connected there for a while
				word.Connected = !calm && w.chance(0.5)
			}
			w.report(n, word, n.dead[i])
		}
	}
}

// report carries a word to whom this node takes for the leader.
func (w *world) report(n *node, word grant.Word, dead []string) {
	to := w.zones[n.zone].leader
	hear := func() {
		if to.book != nil {
			to.book.Bury(word.Edge, dead, to.clock.at(w.now))
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
	z := &w.zones[n.zone]
	local := z.log[n.applied]
	if n.catalog > local.adopted {
		w.commit(n, func(e *entry) bool { e.adopted = n.catalog; return true })
		local = z.log[n.applied]
	}
	wall := n.clock.wall(w.now)
	if l := (look{local, !wall.Before(basisEnds)}); n.looked != l {
		if w.notice(n, local, wall) {
			n.looked = l
		}
		local = z.log[n.applied]
	}
	for i := range local.tightening {
		t := local.tightening[i]
		if t.done {
			continue
		}
		by, waiting := n.book.InForce(grant.Tightening{From: t.From, To: t.To, Epoch: t.epoch, Barrier: t.index, Now: local.rev.Epoch}, ground[n.zone], n.clock.at(w.now))
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
			w.inForce(n.zone, pairOf(t.Pair), by)
			local = z.log[n.applied]
		}
	}
}

// notice compares what is permitted with the last look; true: it is the same.
func (w *world) notice(n *node, local *entry, wall time.Time) bool {
	var open []grant.Pair
	var index []int
	for i, t := range local.tightening {
		if !t.done {
			open, index = append(open, t.Pair), append(index, i)
		}
	}
	change, same := grant.Notice(local.baseline, local.changed != 0, w.permitted(n.zone, local, wall), open)
	if same {
		return true
	}
	w.commit(n, func(e *entry) bool {
		if e.changed != local.changed {
			return false
		}
		e.baseline, e.changed, e.changedAt = change.Now, e.rev.Index, w.now
		var kept []pending
		for i, t := range local.tightening {
			if k := slices.Index(index, i); k < 0 || !slices.Contains(change.Back, k) {
				kept = append(kept, t)
			}
		}
		for _, p := range change.Lost {
			kept = append(kept, pending{Pair: p, epoch: e.rev.Epoch, index: e.rev.Index, at: w.now})
			if w.trace != nil {
				w.log("%s loses %v at %d", zoneNames[n.zone], pairOf(p), e.rev.Index)
			}
		}
		e.tightening = kept
		w.reopen(n.zone, change.Now)
		return true
	})
	return false
}

// reopen forgets records of what is permitted again.
func (w *world) reopen(zone int, pairs []grant.Pair) {
	for _, p := range pairs {
		x := pairOf(p)
		w.zones[zone].closed[x.policy][x.from][x.to] = record{}
	}
}

var ground = [2]grant.Ground{groundOf(0), groundOf(1)}

func groundOf(zone int) grant.Ground {
	var members [nRegions][]string
	for region, edges := range edgesOf {
		for _, e := range edges {
			members[region] = append(members[region], edgeNames[e])
		}
	}
	return grant.Ground{
		Own: func(region string) (bool, bool) {
			id := regionID(region)
			return id >= 0 && zoneOf(id) == zone, id >= 0
		},
		Members: func(region string) []string { return members[regionID(region)] },
	}
}

// view is what a node finds permitted by its place in the log, its clock and what the leader noticed.
func (w *world) view(n *node) *view {
	local, ended := w.zones[n.zone].log[n.applied], !n.clock.wall(w.now).Before(basisEnds)
	v := &n.view
	if v.of != local || v.ended != ended {
		*v = view{of: local, ended: ended, permitted: grant.Noticed(slices.Clone(w.permitted(n.zone, local, n.clock.wall(w.now))), local.baseline)}
		for _, p := range v.permitted {
			v.pairs[policyID(p.Policy)][regionID(p.From)][regionID(p.To)] = true
		}
	}
	return v
}

// push sends an edge the table that this node would build for it now.
func (w *world) push(n *node, e *edge) {
	local := w.zones[n.zone].log[n.applied]
	if local.changed == 0 {
		return
	}
	v := w.view(n)
	catalog := w.catalog[n.catalog]
	t := held{exists: true, at: grant.At{Catalog: catalog.rev, Store: local.rev}, strict: catalog.mask&underStrict != 0}
	for p := range t.pairs {
		for r := range nRegions {
			t.pairs[p][e.region][r] = v.pairs[p][e.region][r]
			t.pairs[p][r][e.region] = v.pairs[p][r][e.region]
		}
	}
	told := n.heard[e.id] && n.words[e.id].Epoch == t.at.Store.Epoch && n.words[e.id].Index == t.at.Store.Index // else Hello tells it
	if e.table == t && told && w.chance(0.85) {
		return // a heartbeat would find nothing lost
	}
	life := e.life
	w.send(n.id, e.id, func() {
		if e.life == life && e.up {
			w.take(n, e, t)
		}
	})
}

// take is what subscribe does with an update: refuse to go back, persist, put in force, acknowledge. The sweep of
// what is under way comes a little later by itself.
func (w *world) take(n *node, e *edge, t held) {
	if e.table.exists && t.at.Behind(e.table.at) != "" {
		return
	}
	changed := e.table.pairs != t.pairs || e.table.strict != t.strict || e.table.at.Store.Epoch != t.at.Store.Epoch
	if changed && w.trace != nil {
		w.log("%s takes %v and %v: %v", edgeNames[e.as], t.at.Catalog, t.at.Store, t.pairs)
	}
	e.disk, e.table = t, t
	if changed {
		w.after(w.between(0, 500*time.Millisecond), func() { w.sweep(e) })
		w.after(0, func() { w.ask(e) })
	}
	word := grant.Word{Process: e.process(), Region: regionNames[e.region], By: nodeNames[n.id-nMachines], Connected: true, Epoch: t.at.Store.Epoch, Index: t.at.Store.Index}
	dead := e.dead
	w.send(e.id, n.id, func() {
		n.words[e.id], n.dead[e.id], n.heard[e.id] = word, dead, true
		w.report(n, word, dead)
	})
}
