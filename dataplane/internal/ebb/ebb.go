// Package ebb owns giving memory back that a crowd has left behind. The collector runs when the heap has doubled: what thousands of
// requests held at once stays for as long as those that come after them ask for little, two minutes at most, and so do their stacks
// and the buffers that pools keep; the next crowd comes on top of it. So when a crowd has gone, memory is collected and given to
// the system at once.
//
// It knows of no request: it is told how many there are of what comes in crowds, and counts goroutines itself. It bounds nothing while
// a crowd is there; those who let it in do. Nothing of it survives a crash. Run it once; nothing else is called.
package ebb

import (
	"context"
	"log/slog"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
	"syscall"
	"time"

	"bailiwick/dataplane/internal/beat"
)

const (
	lookEvery = 250 * time.Millisecond
	crowd     = 256              // of anything that are no more, and more than are left: a crowd that has gone
	worth     = 32 << 20         // bytes in use beyond what was left the last time: less is not worth the work
	share     = 20               // of the processors' time it takes one part, at most
	restMost  = 10 * time.Second // after it, where it took long all the same
)

// Config of an Ebb. Logger is required.
type Config struct {
	Logger *slog.Logger
	Counts []func() int64 // how many there are of what comes in crowds; they are asked four times a second
	Beat   *beat.Beat     // nil: its own
}

// Ebb gives memory back.
type Ebb struct {
	cfg    Config
	counts []int64 // as of the last look, goroutines last
	tide   tide
}

// New makes one; Run it.
func New(cfg Config) *Ebb {
	n := len(cfg.Counts) + 1
	return &Ebb{cfg: cfg, counts: make([]int64, n), tide: tide{high: make([]int64, n), left: -1}}
}

// Run looks until ctx ends.
func (e *Ebb) Run(ctx context.Context) error {
	tick := e.cfg.Beat.Patient(lookEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			tick.Again()
		}
		e.look()
		if !e.tide.gone(time.Now(), e.counts) {
			continue
		}
		before := inUse()
		if !e.tide.worth(before, e.counts) {
			continue
		}
		began := time.Now()
		used := give()
		after, took := inUse(), time.Since(began)
		e.look()
		e.tide.ebbed(began.Add(took), rest(used, runtime.GOMAXPROCS(0)), before, after, e.counts)
		e.cfg.Logger.Info("memory given back after a crowd", "bytes_before", before, "bytes", after, "duration", took, "processor_time", used)
	}
}

// look counts.
func (e *Ebb) look() {
	for i, count := range e.cfg.Counts {
		e.counts[i] = count()
	}
	e.counts[len(e.cfg.Counts)] = int64(runtime.NumGoroutine())
}

// give gives to the system what nobody holds, and says what processor time it took: this thread's, which sweeps and gives, and the
// collector's workers'. What requests used meanwhile is none of it, nor what a processor did that had nothing else to do. The collector
// goes by the clock, so that what it counts on a machine that others keep busy may be more than the process had.
func give() time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	used, all := processor(rusageThread)+collector(), processor(syscall.RUSAGE_SELF)
	runtime.GC() // what pools keep outlives one
	debug.FreeOSMemory()
	return min(processor(rusageThread)+collector()-used, processor(syscall.RUSAGE_SELF)-all)
}

// processor is the processor time that this process or thread has used.
func processor(whose int) time.Duration {
	var r syscall.Rusage
	if syscall.Getrusage(whose, &r) != nil {
		return 0
	}
	return time.Duration(r.Utime.Nano() + r.Stime.Nano())
}

const rusageThread = 1 // RUSAGE_THREAD, which package syscall does not name

// collector is the processor time of the collections that have ended.
func collector() time.Duration {
	s := [...]metrics.Sample{{Name: "/cpu/classes/gc/total:cpu-seconds"}, {Name: "/cpu/classes/gc/mark/idle:cpu-seconds"}}
	metrics.Read(s[:])
	return time.Duration((s[0].Value.Float64() - s[1].Value.Float64()) * float64(time.Second))
}

// rest is how long there is nothing more to be done after work that took so much processor time: it is a part of what all of them can
// do.
func rest(used time.Duration, processors int) time.Duration {
	return min(share*used/time.Duration(processors), restMost)
}

// inUse is the memory that the runtime has of the system, stacks and pages that nothing is in among it.
func inUse() int64 {
	s := [...]metrics.Sample{{Name: "/memory/classes/total:bytes"}, {Name: "/memory/classes/heap/released:bytes"}}
	metrics.Read(s[:])
	return int64(s[0].Value.Uint64() - s[1].Value.Uint64())
}

// tide is what is remembered from one look to the next.
type tide struct {
	high []int64   // of each count, since memory was last given back or there was nothing to give
	seen bool      // a crowd had gone at the last look too: it is not just going
	left int64     // bytes in use when there was nothing more to give; -1: that was never so
	next time.Time // not before
}

// gone says that of something a crowd was here and is not any more.
func (t *tide) gone(now time.Time, counts []int64) bool {
	fell := false
	for i, n := range counts {
		t.high[i] = max(t.high[i], n)
		fell = fell || t.high[i]-n >= max(crowd, n)
	}
	seen := t.seen
	t.seen = fell
	return fell && seen && !now.Before(t.next)
}

// worth says that a collection is. It begins to count anew.
func (t *tide) worth(inUse int64, counts []int64) bool {
	copy(t.high, counts)
	t.seen = false
	t.left = min(t.left, inUse)
	return inUse-max(t.left, 0) >= worth
}

// ebbed takes what came of one, after which there is a rest.
func (t *tide) ebbed(now time.Time, rest time.Duration, before, after int64, counts []int64) {
	t.next = now.Add(rest)
	came := false // a crowd, meanwhile: what it holds is there for it alone
	for i, n := range counts {
		came = came || n-t.high[i] >= crowd
	}
	// What is still in use after little has gone is in use for good. After much, more may go: half of a crowd may still be here.
	if !came && (before-after < worth/2 || after < t.left) {
		t.left = after
	}
}
