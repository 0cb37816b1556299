package ebb_test

import (
	"context"
	"log/slog"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"bailiwick/dataplane/internal/ebb"
)

const mib = 1 << 20

// resident is what this process holds of memory.
func resident(t *testing.T) int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		t.Skip("reads /proc")
	}
	for line := range strings.Lines(string(status)) {
		if kib, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			n, _ := strconv.ParseInt(strings.Fields(kib)[0], 10, 64)
			return n << 10
		}
	}
	t.Fatal("no VmRSS")
	return 0
}

// What a crowd held of the heap, of stacks and in pools is the system's again soon after it has gone, where the collector alone would
// see no reason: here it never does.
func TestEbb_GivesBackWhatACrowdHeld(t *testing.T) {
	defer debug.SetGCPercent(debug.SetGCPercent(-1))
	pool := sync.Pool{New: func() any { return new([32 << 10]byte) }}
	type guest struct {
		own    []byte
		pooled *[32 << 10]byte
	}
	come := func() guest {
		g := guest{make([]byte, 16<<10), pool.Get().(*[32 << 10]byte)}
		for i := 0; i < len(g.own)+len(g.pooled); i += 4096 {
			if i < len(g.own) {
				g.own[i] = 1
			} else {
				g.pooled[i-len(g.own)] = 1
			}
		}
		return g
	}
	const many = 2000
	for _, told := range []bool{true, false} { // of them, or it sees their goroutines
		debug.FreeOSMemory()
		before := resident(t)
		var there atomic.Int64
		e := ebb.New(ebb.Config{Logger: slog.New(slog.DiscardHandler), Counts: []func() int64{there.Load}})
		ctx, cancel := context.WithCancel(t.Context())
		var run, all, came sync.WaitGroup
		run.Go(func() { e.Run(ctx) })
		leave := make(chan struct{})
		var guests []guest
		for range many {
			if told {
				guests = append(guests, come())
				there.Add(1)
				continue
			}
			came.Add(1)
			all.Go(func() {
				g := come()
				came.Done()
				<-leave
				pool.Put(g.pooled)
				runtime.KeepAlive(g)
			})
		}
		came.Wait()
		time.Sleep(600 * time.Millisecond)
		if grown := resident(t) - before; grown < 64*mib {
			t.Fatalf("%d hold %d MiB", many, grown/mib)
		}
		for _, g := range guests {
			pool.Put(g.pooled)
		}
		guests = nil
		there.Store(0)
		close(leave)
		all.Wait()
		const most = 24 * mib
		for deadline := time.Now().Add(10 * time.Second); resident(t)-before > most && time.Now().Before(deadline); {
			time.Sleep(50 * time.Millisecond)
		}
		if left := resident(t) - before; left > most {
			t.Errorf("told of them %v: %d MiB are left of a crowd that has gone, want %d at most", told, left/mib, most/mib)
		}
		cancel()
		run.Wait()
	}
}

// look is what is seen at one, four of which are a second, and whether memory is given back.
type look struct {
	count, inUse int64 // MiB
	gives        bool
	after        int64         // MiB in use then
	took         time.Duration // to give it on the one processor there is, or to the next look
	came         int64         // of them in that time
}

func TestTide_Table(t *testing.T) {
	for name, looks := range map[string][]look{
		"a crowd that has gone, at the second look": {{10, 40, false, 0, 0, 0}, {2000, 200, false, 0, 0, 0}, {900, 200, false, 0, 0, 0}, {20, 200, true, 40, 0, 0}, {20, 40, false, 0, 0, 0}},
		"one that comes back meanwhile":             {{2000, 200, false, 0, 0, 0}, {10, 200, false, 0, 0, 0}, {1900, 200, false, 0, 0, 0}, {10, 200, false, 0, 0, 0}, {1500, 200, false, 0, 0, 0}},
		"one that goes in two parts":                {{4000, 300, false, 0, 0, 0}, {1500, 300, false, 0, 0, 0}, {1500, 300, true, 160, 0, 0}, {1500, 170, false, 0, 0, 0}, {5, 170, false, 0, 0, 0}, {5, 170, true, 45, 0, 0}, {5, 60, false, 0, 0, 0}},
		"two, one after the other": {{10, 40, false, 0, 0, 0}, {2000, 200, false, 0, 0, 0}, {5, 200, false, 0, 0, 0}, {5, 200, true, 40, 0, 0},
			{3000, 300, false, 0, 0, 0}, {5, 300, false, 0, 0, 0}, {5, 300, true, 45, 0, 0}},
		"too few":                           {{255, 200, false, 0, 0, 0}, {0, 200, false, 0, 0, 0}, {0, 200, false, 0, 0, 0}, {0, 200, false, 0, 0, 0}},
		"fewer, but not half":               {{10000, 400, false, 0, 0, 0}, {5001, 400, false, 0, 0, 0}, {5001, 400, false, 0, 0, 0}, {5001, 400, false, 0, 0, 0}},
		"a crowd that held next to nothing": {{2000, 31, false, 0, 0, 0}, {5, 31, false, 0, 0, 0}, {5, 31, false, 0, 0, 0}, {5, 90, false, 0, 0, 0}},
		"memory that is there for good is asked for once": {{2000, 500, false, 0, 0, 0}, {5, 500, false, 0, 0, 0}, {5, 500, true, 490, 0, 0},
			{2000, 510, false, 0, 0, 0}, {5, 510, false, 0, 0, 0}, {5, 510, false, 0, 0, 0}, {2000, 530, false, 0, 0, 0}, {5, 530, false, 0, 0, 0}, {5, 530, true, 525, 0, 0}},
		"a crowd that comes while it works is not there for good": {{2000, 300, false, 0, 0, 0}, {5, 300, false, 0, 0, 0}, {5, 300, true, 290, 0, 2000},
			{2005, 300, false, 0, 0, 0}, {5, 300, false, 0, 0, 0}, {5, 300, true, 40, 0, 0}},
		"what was there for good is not any more": {{2000, 500, false, 0, 0, 0}, {5, 500, false, 0, 0, 0}, {5, 500, true, 490, 0, 0},
			{2000, 100, false, 0, 0, 0}, {5, 100, false, 0, 0, 0}, {5, 100, false, 0, 0, 0}, {2000, 140, false, 0, 0, 0}, {5, 140, false, 0, 0, 0}, {5, 140, true, 90, 0, 0}},
		"on a busy machine it takes long, and rests ten seconds": {{2000, 500, false, 0, 0, 0}, {5, 500, false, 0, 0, 0}, {5, 500, true, 40, 4 * time.Second, 0},
			{2000, 500, false, 0, 0, 0}, {5, 500, false, 0, 0, 0}, {5, 500, false, 0, 9500 * time.Millisecond, 0}, {5, 500, true, 40, 0, 0}},
		"work takes a twentieth of the time": {{2000, 500, false, 0, 0, 0}, {5, 500, false, 0, 0, 0}, {5, 500, true, 40, 50 * time.Millisecond, 0}, // next after a second
			{2000, 500, false, 0, 0, 0}, {5, 500, false, 0, 0, 0}, {5, 500, false, 0, 0, 0}, {5, 500, true, 40, 0, 0}},
	} {
		tide, now := ebb.NewTide(), time.Now()
		for i, l := range looks {
			now = now.Add(250 * time.Millisecond)
			got := tide.Look(now, l.count, l.inUse*mib)
			if got != l.gives {
				t.Errorf("%s: look %d, at %d of them and %d MiB: gives back %v, want %v", name, i, l.count, l.inUse, got, l.gives)
			}
			if got && l.gives {
				tide.Ebbed(now.Add(l.took), ebb.Rest(l.took, 1), l.inUse*mib, l.after*mib, l.count+l.came)
			}
			now = now.Add(l.took)
		}
	}
}

// What it rests is measured by the processors' time that it took: a crowd's memory is back before the next has come, some three seconds
// later.
func TestRest_Table(t *testing.T) {
	const ms = time.Millisecond
	for name, c := range map[string]struct {
		used       time.Duration
		processors int
		want       time.Duration
	}{
		"a hundred MiB":                 {120 * ms, 2, 1200 * ms},
		"the same on one processor":     {120 * ms, 1, 2400 * ms},
		"on thirty-two":                 {320 * ms, 32, 200 * ms},
		"of which there is a lot to do": {3 * time.Second, 2, 10 * time.Second},
	} {
		if got := ebb.Rest(c.used, c.processors); got != c.want {
			t.Errorf("%s: rests %v, want %v", name, got, c.want)
		}
	}
}

// What it took is its own work: to give back tens of MiB takes time, and less than all that the process did meanwhile, which others
// kept busy. (The collector goes by the clock: on a machine that is busy with others once may not be enough.)
func TestGive_CountsItsOwnWork(t *testing.T) {
	held := make([][]*int, 64)
	for i := range held {
		held[i] = make([]*int, 128<<10)
		for j := range held[i] {
			held[i][j] = new(int)
		}
	}
	stop, busy := make(chan struct{}), sync.WaitGroup{}
	for range 2 * runtime.GOMAXPROCS(0) {
		busy.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					runtime.Gosched() // the sweep lets others go first, again and again
				}
			}
		})
	}
	all := func() time.Duration {
		var r syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &r); err != nil {
			t.Fatal(err)
		}
		return time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	less := false
	for range 5 {
		before := all()
		used := ebb.Give()
		whole := all() - before
		t.Logf("%v of %v", used, whole)
		if used <= 0 || used > whole {
			t.Errorf("it took %v of %v", used, whole)
		}
		if less = used < whole*4/5; less {
			break
		}
	}
	close(stop)
	busy.Wait()
	runtime.KeepAlive(held)
	if !less {
		t.Error("what others did is counted")
	}
}
