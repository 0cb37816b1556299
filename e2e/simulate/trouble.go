package main

import (
	"strconv"
	"time"

	"bailiwick/regions/grant"
)

// trouble is everything that happens to the world from outside: what operators write, what breaks, what returns.
func (w *world) trouble() {
	if w.now >= w.set.calm {
		w.mend()
		return
	}
	switch w.rng.IntN(14) {
	case 0, 1: // a change of the catalog; two may cross each other's acknowledgements
		last := w.catalog[len(w.catalog)-1]
		last.mask ^= []uint16{gdprSuspended, sccSuspended, crossClosed, withinOnly, offlineLong, strictClosed, underStrict}[w.rng.IntN(7)]
		if w.chance(0.5) { // mostly open, or nothing would be left to close
			last.mask &^= gdprSuspended | sccSuspended
		}
		if w.chance(0.5) {
			last.mask &^= underStrict
		}
		last.rev.Index++
		w.catalog = append(w.catalog, last)
	case 2, 3, 4: // a closure comes or goes, with the home zone's quorum alone
		zone := w.rng.IntN(2)
		bit := []uint16{closeWestToCentral, closeCross, closeBasis, closeFromCentral}[w.rng.IntN(4)]
		w.commit(w.zones[zone].leader, func(e *entry) bool {
			e.closures = (e.closures ^ bit) & (uint16(w.rng.Uint32()) | bit)
			return true
		})
	case 5: // a new leader; the old one may believe in itself for a while
		zone := w.rng.IntN(2)
		n := &w.nodes[3*zone+w.rng.IntN(3)]
		if w.majority(n) {
			w.elect(zone, n)
		}
	case 6: // hosts that do not reach each other, in one direction or both
		a, b := w.rng.IntN(nHosts), w.rng.IntN(nHosts)
		both := w.chance(0.6)
		w.cut[a][b] = true
		w.cut[b][a] = w.cut[b][a] || both
		w.after(w.between(time.Second, 10*time.Second), func() { w.cut[a][b], w.cut[b][a] = false, false })
	case 7: // an edge without any control node
		w.isolate(w.rng.IntN(nEdges), w.between(2*time.Second, 15*time.Second))
	case 8: // crash and restart, from its disk or from a copy of long ago
		e := &w.edges[w.rng.IntN(nEdges)]
		e.up = false
		if w.trace != nil {
			w.log("%s crashes", edgeNames[e.as])
		}
		e.life++
		w.stats.crashes++
		w.after(w.between(100*time.Millisecond, 5*time.Second), func() { w.restart(e) })
	case 9: // a disk is copied
		e := &w.edges[w.rng.IntN(nEdges)]
		e.old = e.disk
	case 10, 11: // upstreams die and return
		w.upstreams(w.rng.IntN(nRegions), w.chance(0.6))
	case 13: // a copy of a disk is started in another machine, while the edge lives or not
		w.copyRuns(&w.edges[w.rng.IntN(nEdges)])
	case 12:
		if w.chance(0.3) {
			w.recover(w.rng.IntN(2))
			break
		}
		w.commit(w.zones[w.rng.IntN(2)].leader, func(e *entry) bool { // what crosses zones is approved again
			was := e.crossing
			e.crossing = epochs{w.catalog[e.adopted].rev.Epoch, e.rev.Epoch}
			return e.crossing != was
		})
	}
	if w.chance(0.02) { // the catalog is recovered: a new epoch, and a loosening that no quorum had committed may be in it
		last := w.catalog[len(w.catalog)-1]
		last.mask &= uint16(w.rng.Uint32())
		last.rev.Epoch++
		last.rev.Index++
		w.catalog = append(w.catalog, last)
		w.stats.recoveries++
	}
	w.after(w.between(100*time.Millisecond, 1200*time.Millisecond), w.trouble)
}

func (w *world) upstreams(region int, down bool) {
	for i := range w.edges {
		if w.edges[i].region == region {
			w.edges[i].homeDown = down
		}
	}
}

// recover is what an operator does when a zone's quorum is lost for good: one node goes on with what it had, in a new
// epoch. What it had not heard of is lost, records in force among it.
func (w *world) recover(zone int) {
	z := &w.zones[zone]
	n := &w.nodes[3*zone+w.rng.IntN(3)]
	lost := len(z.log) - 1 - n.applied
	next := *z.log[n.applied]
	next.rev.Epoch = z.last().rev.Epoch + 1
	next.rev.Index++
	z.log = append(z.log[:n.applied+1:n.applied+1], &next)
	w.reopen(zone, next.baseline)
	for i := 3 * zone; i < 3*zone+3; i++ {
		o := &w.nodes[i]
		o.applied, o.book, o.heard = min(o.applied, len(z.log)-2), nil, [nMachines]bool{}
	}
	w.elect(zone, n)
	w.stats.recoveries++
	if w.trace != nil {
		w.log("zone %s is recovered as %v, %d entries lost", zoneNames[zone], next.rev, lost)
	}
}

// isolate cuts an edge off from all control nodes of its zone, and leaves it the other edges.
func (w *world) isolate(id int, d time.Duration) {
	for n := nMachines; n < nMachines+nNodes; n++ {
		w.cut[id][n], w.cut[n][id] = true, true
	}
	w.after(d, func() {
		for n := nMachines; n < nMachines+nNodes; n++ {
			w.cut[id][n], w.cut[n][id] = false, false
		}
	})
}

// mend ends all trouble.
func (w *world) mend() {
	w.cut = [nHosts][nHosts]bool{}
	for i := range nEdges {
		w.restart(&w.edges[i])
	}
	w.copyEnds()
	if w.trace != nil {
		w.log("everything is mended")
	}
}

// copyRuns starts another machine with the disk of an edge, for some seconds: its name, its table, a process of its own
// that knows nothing of the other's end, and none of its memory.
func (w *world) copyRuns(e *edge) {
	t := &w.edges[twin]
	if t.up || !e.disk.exists {
		return
	}
	*t = edge{id: twin, as: e.as, region: e.region, up: true, clock: t.clock, table: e.disk, disk: e.disk, grants: &grant.Held{}, control: w.rng.IntN(3), life: t.life + 1, homeDown: e.homeDown, lastAsked: w.now - time.Hour}
	t.draw(w)
	w.stats.twins++
	if w.trace != nil {
		w.log("a copy of %s runs in another machine", edgeNames[t.as])
	}
	if w.chance(0.3) {
		w.isolate(twin, w.between(2*time.Second, 10*time.Second))
	}
	life := t.life
	w.after(w.between(2*time.Second, 10*time.Second), func() {
		if t.life == life {
			w.copyEnds()
		}
	})
}

// copyEnds takes the other machine away. Nobody is told: what it held lapses by time.
func (w *world) copyEnds() {
	if t := &w.edges[twin]; t.up {
		t.up, w.lost = false, w.now
		t.life++
		for i := range w.nodes {
			w.nodes[i].heard[twin] = false
		}
	}
}

func (w *world) restart(e *edge) {
	if e.up {
		return
	}
	e.up = true
	e.life++
	e.dead = append([]string{e.run}, e.dead[:min(len(e.dead), grant.MaxDead-1)]...)
	e.draw(w)
	e.grants, e.question, e.seen = &grant.Held{}, 0, grant.Seen{}
	e.table = e.disk
	if e.old.exists && w.chance(0.3) {
		e.table, e.disk = e.old, e.old
		w.stats.clones++
		w.lost = w.now
		e.dead = nil // in another machine, which knows nothing of what ran in the old one
		if w.trace != nil {
			w.log("%s comes back from an old disk", edgeNames[e.as])
		}
	}
	e.control = w.rng.IntN(3)
	e.lastAsked = w.now - time.Hour
}

// draw begins a process of an edge.
func (e *edge) draw(w *world) {
	w.ids++
	e.run = strconv.FormatInt(int64(w.ids), 16)
}
