// Package explore walks every state that a small world can reach, breadth first,
// and says whether a rule is broken in any of them and whether from each of them
// a good end can still be reached. Tests of protocols use it; no program does.
//
// It owns the walk and nothing of the world: what a state is, what may happen in
// it and which states are the same (symmetry) is the caller's. States are told
// apart by 128 bits of hash under random seeds, so that a pair taken for one is
// less likely than a flipped bit in memory: about n²/2¹²⁹. Nothing is kept on
// disk. One Walk belongs to one goroutine.
package explore

import (
	"errors"
	"fmt"
	"hash/maphash"
	"strings"
)

// Event is one thing that happened, for people who read a trace.
type Event struct {
	Name string
	A, B int
}

func (e Event) String() string { return fmt.Sprintf("%s(%d,%d)", e.Name, e.A, e.B) }

// Emit takes a step: what happened, the state after it, and which rule it broke, if any.
type Emit[W comparable] func(Event, W, error)

// Walk is what to explore.
type Walk[W comparable] struct {
	Start W
	Next  func(W, Emit[W]) // every step possible in a state; the same steps each time it is asked
	Good  func(W) bool     // the ends that must stay in reach; nil: not asked
	Limit int              // states at most; 0: 50 million
}

// Result is how much was seen.
type Result struct {
	States, Steps, Depth, Good int
}

func (r Result) String() string {
	return fmt.Sprintf("%d states, %d steps, depth %d, %d good ends", r.States, r.Steps, r.Depth, r.Good)
}

// Broken is a rule that does not hold, with the shortest way to its breach.
type Broken struct {
	Rule  error
	Trace []Event
}

func (b *Broken) Error() string {
	var s strings.Builder
	fmt.Fprintf(&s, "%v, after %d steps:", b.Rule, len(b.Trace))
	for _, e := range b.Trace {
		fmt.Fprintf(&s, " %v", e)
	}
	return s.String()
}

func (b *Broken) Unwrap() error { return b.Rule }

// ErrStuck is the rule that a good end stays in reach.
var ErrStuck = errors.New("no way leads to a good end any more")

// ErrLimit: the world is larger than the walk may be, so nothing is proved.
var ErrLimit = errors.New("the world has more states than the limit")

type walker[W comparable] struct {
	walk  Walk[W]
	seeds [2]maphash.Seed
	seen  map[[2]uint64]uint32
	from  []uint32 // the state by which one was found first
	nth   []uint16 // and the number of the step that led from there
	to    [][2]uint32
	good  []uint32
}

// Run explores until everything is seen or a rule is broken.
func (walk Walk[W]) Run() (Result, error) {
	if walk.Limit == 0 {
		walk.Limit = 50_000_000
	}
	w := &walker[W]{walk: walk, seeds: [2]maphash.Seed{maphash.MakeSeed(), maphash.MakeSeed()}, seen: make(map[[2]uint64]uint32)}
	var r Result
	w.find(walk.Start, 0, 0)
	level := []W{walk.Start}
	id := uint32(0) // of level[0]: states are numbered in the order they are found
	for len(level) > 0 {
		var next []W
		for _, state := range level {
			if walk.Good != nil && walk.Good(state) {
				w.good = append(w.good, id)
			}
			n := uint16(0)
			var broken *Broken
			walk.Next(state, func(e Event, after W, err error) {
				if broken != nil {
					return
				}
				r.Steps++
				if err != nil {
					broken = &Broken{err, append(w.trace(id), e)}
					return
				}
				found, fresh := w.find(after, id, n)
				if n++; fresh {
					next = append(next, after)
				}
				if walk.Good != nil && found != id {
					w.to = append(w.to, [2]uint32{id, found})
				}
			})
			id++
			r.States = len(w.from)
			if broken != nil {
				return r, broken
			}
			if r.States > walk.Limit {
				return r, fmt.Errorf("%w of %d", ErrLimit, walk.Limit)
			}
		}
		if level = next; len(level) > 0 {
			r.Depth++
		}
	}
	r.Good = len(w.good)
	if walk.Good == nil {
		return r, nil
	}
	if id, stuck := w.stuck(); stuck {
		return r, &Broken{ErrStuck, w.trace(id)}
	}
	return r, nil
}

func (w *walker[W]) find(state W, from uint32, nth uint16) (id uint32, fresh bool) {
	key := [2]uint64{maphash.Comparable(w.seeds[0], state), maphash.Comparable(w.seeds[1], state)}
	if id, ok := w.seen[key]; ok {
		return id, false
	}
	id = uint32(len(w.from))
	w.seen[key] = id
	w.from, w.nth = append(w.from, from), append(w.nth, nth)
	return id, true
}

// trace walks the way to a state again, since states themselves are not kept.
func (w *walker[W]) trace(id uint32) []Event {
	var steps []uint16
	for ; id != 0; id = w.from[id] {
		steps = append(steps, w.nth[id])
	}
	out := make([]Event, 0, len(steps)+1)
	state := w.walk.Start
	for i := len(steps) - 1; i >= 0; i-- {
		n := uint16(0)
		from := state
		w.walk.Next(from, func(e Event, after W, _ error) {
			if n == steps[i] {
				out, state = append(out, e), after
			}
			n++
		})
	}
	return out
}

// stuck is the state nearest to the start from which no good one can be reached.
func (w *walker[W]) stuck() (uint32, bool) {
	n := len(w.from)
	first := make([]uint32, n+1) // the steps by where they lead to: a counting sort
	for _, e := range w.to {
		first[e[1]+1]++
	}
	for i := range n {
		first[i+1] += first[i]
	}
	back := make([]uint32, len(w.to))
	fill := append([]uint32(nil), first[:n]...)
	for _, e := range w.to {
		back[fill[e[1]]] = e[0]
		fill[e[1]]++
	}
	fine := make([]bool, n)
	queue := append([]uint32(nil), w.good...)
	for _, id := range queue {
		fine[id] = true
	}
	for len(queue) > 0 {
		id := queue[len(queue)-1]
		queue = queue[:len(queue)-1]
		for _, p := range back[first[id]:first[id+1]] {
			if !fine[p] {
				fine[p] = true
				queue = append(queue, p)
			}
		}
	}
	for id, ok := range fine {
		if !ok {
			return uint32(id), true
		}
	}
	return 0, false
}
