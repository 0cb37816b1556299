package main

import (
	"time"

	"bailiwick/regions/grant"
)

// trouble is everything that happens to the world from outside: what operators write, what breaks, what returns.
func (w *world) trouble() {
	switch w.rng.IntN(12) {
	case 0, 1: // a change of the catalog; two may cross each other's acknowledgements
		last := w.catalog[len(w.catalog)-1]
		last.mask ^= []uint16{gdprSuspended, sccSuspended, crossClosed, withinOnly, offlineLong}[w.rng.IntN(5)]
		if w.chance(0.5) { // mostly open, or nothing would be left to close
			last.mask &^= gdprSuspended | sccSuspended
		}
		last.rev.Index++
		w.catalog = append(w.catalog, last)
	case 2, 3, 4: // a closure comes or goes, with the home zone's quorum alone
		zone := w.rng.IntN(2)
		n := w.zones[zone].leader
		bit := []uint16{closeWestToCentral, closeCross, closeBasis, closeFromCentral}[w.rng.IntN(4)]
		w.commit(n, func(e *entry) bool {
			e.closures = (e.closures ^ bit) & (uint16(w.rng.Uint32()) | bit)
			return true
		})
	case 5: // a new leader; the old one may believe in itself for a while
		zone := w.rng.IntN(2)
		n := w.nodes[3*zone+w.rng.IntN(3)]
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
		e := w.edges[w.rng.IntN(nRegions)]
		w.isolate(e.id, w.between(2*time.Second, 15*time.Second))
	case 8: // crash and restart, from its disk or from a copy of long ago
		e := w.edges[w.rng.IntN(nRegions)]
		e.up = false
		w.log("%s crashes", edgeNames[e.id])
		e.life++
		w.stats.crashes++
		w.after(w.between(100*time.Millisecond, 5*time.Second), func() { w.restart(e) })
	case 9: // a disk is copied
		e := w.edges[w.rng.IntN(nRegions)]
		e.old = e.disk
	case 10, 11: // upstreams die and return
		e := w.edges[w.rng.IntN(nRegions)]
		e.homeDown = w.chance(0.8)
	}
	if w.chance(0.02) { // the catalog is recovered: a new epoch, cross-zone pairs closed
		last := w.catalog[len(w.catalog)-1]
		last.mask |= crossClosed
		last.rev.Epoch++
		last.rev.Index++
		w.catalog = append(w.catalog, last)
		w.stats.recoveries++
	}
	w.after(w.between(100*time.Millisecond, 1200*time.Millisecond), w.trouble)
}

// isolate cuts an edge off from all control nodes of its zone, and leaves it the other edges.
func (w *world) isolate(id int, d time.Duration) {
	for n := range nNodes {
		w.cut[id][nRegions+n], w.cut[nRegions+n][id] = true, true
	}
	w.after(d, func() {
		for n := range nNodes {
			w.cut[id][nRegions+n], w.cut[nRegions+n][id] = false, false
		}
	})
}

func (w *world) restart(e *edge) {
	if e.up {
		return
	}
	e.up = true
	e.life++
	e.grants, e.question, e.seen = &grant.Held{}, 0, grant.Seen{}
	e.table = e.disk
	if e.old.exists && w.chance(0.3) {
		e.table, e.disk = e.old, e.old
		w.stats.clones++
		w.log("%s comes back from an old disk", edgeNames[e.id])
	}
	e.control = w.rng.IntN(3)
	e.lastAsked = w.now - time.Hour
}
