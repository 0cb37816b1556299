// Command simulate runs the border's own code (regions and regions/grant, the very functions that control nodes and
// edges run) in worlds of its making: two zones, six edges, six control nodes, clocks that drift, messages that are
// lost or overtake each other, partitions, crashes, cloned disks, new leaders, changing rules and closures. Each
// world is one schedule, drawn from its seed alone.
//
// It fails at the first relay that moves after an in-force record, or under a grant that is in no log, with the seed
// that makes it again; and at the end if too little was relayed or answered for the schedules to mean anything:
//
//	go run ./e2e/simulate -n 100000            so many schedules, on all processors (make simulate)
//	go run ./e2e/simulate -for 10h             as many as fit
//	go run ./e2e/simulate -seed 42 -n 1 -v     one, with what happened
//
// What it leaves out is in DESIGN.md. It keeps nothing.
package main

import (
	"errors"
	"flag"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

func main() {
	seed := flag.Uint64("seed", 0, "of the first schedule; 0: drawn from the time")
	n := flag.Uint64("n", 100_000, "schedules")
	limit := flag.Duration("for", 0, "run for so long instead, whatever -n says")
	verbose := flag.Bool("v", false, "say what happens")
	flag.Parse()
	if *seed == 0 {
		*seed = uint64(time.Now().UnixNano())
	}
	fmt.Printf("seed %d\n", *seed)
	start := time.Now()
	s, err := campaign(*seed, *n, *limit, *verbose)
	fmt.Printf("%s in %.1fs\n", s, time.Since(start).Seconds())
	if err == nil {
		err = s.judge()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "simulate:", err)
		os.Exit(1)
	}
}

// campaign runs schedules of consecutive seeds until n, the limit, or a failure.
func campaign(seed, n uint64, limit time.Duration, verbose bool) (total stats, failure error) {
	var next atomic.Uint64
	var mu sync.Mutex // covers total and failure
	var stop atomic.Bool
	end := time.Now().Add(limit)
	defer debug.SetGCPercent(debug.SetGCPercent(2000)) // schedules are small and many
	var wg sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		wg.Go(func() {
			r := newRules()
			var room queue
			for !stop.Load() {
				i := next.Add(1) - 1
				if limit == 0 && i >= n || limit > 0 && time.Now().After(end) {
					return
				}
				w := newWorld(seed+i, r, room)
				if verbose {
					w.trace = func(format string, args ...any) { fmt.Printf(format+"\n", args...) }
				}
				err := w.run()
				room = w.queue
				mu.Lock()
				total.add(w.stats)
				if err != nil && failure == nil {
					failure = fmt.Errorf("%w; again with: -seed %d -n 1 -v", err, seed+i)
				}
				mu.Unlock()
				if err != nil {
					stop.Store(true)
				}
				if len(r.cached) > 10_000 {
					r = newRules()
				}
			}
		})
	}
	wg.Wait()
	return total, failure
}

func (s stats) String() string {
	share := func(a, b int64) float64 { return 100 * float64(a) / float64(max(1, b)) }
	return fmt.Sprintf("%d schedules (%d of them mended at the end), %d events: %d requests, %.1f %% relayed, %.3f %% of %d answered that a healthy region was permitted and granted for; %d refused by receivers, %d relays cut, %d in force, %d leaders, %d crashes, %d from an old disk, %d copies beside them, %d recoveries",
		s.schedules, s.calm, s.events, s.requests, share(s.relayed, s.requests), share(s.served, s.wanted), s.wanted, s.refusedAtReceiver, s.cutFlights, s.records, s.leaderChanges, s.crashes, s.clones, s.twins, s.recoveries)
}

// judge: a campaign in which little is relayed, or little succeeds, has not shown that what it saw was safe.
func (s stats) judge() error {
	var errs []error
	if s.relayed*10 < s.requests*3 {
		errs = append(errs, fmt.Errorf("%d of %d requests relayed, want 30 %%", s.relayed, s.requests))
	}
	if s.served*100 < s.wanted*99 {
		errs = append(errs, fmt.Errorf("%d of %d answered although a region was healthy, permitted and granted, want 99 %%", s.served, s.wanted))
	}
	if s.records == 0 || s.cutFlights == 0 {
		errs = append(errs, errors.New("no tightening came into force, or none cut a relay"))
	}
	return errors.Join(errs...)
}
