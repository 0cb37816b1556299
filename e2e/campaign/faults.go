package main

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"bailiwick/e2e/netlab"
)

// fault is one way to break things. It heals what it broke before it returns; its error is a breach.
type fault struct {
	name   string
	weight int
	needs  string // what must not be left out
	alone  bool   // no other fault meanwhile
	inject func(*world, *rand.Rand) error
}

var catalogue = []fault{
	{name: "kill edge", weight: 14, inject: (*world).killEdge},
	{name: "stop edge", weight: 4, inject: (*world).stopEdge},
	{name: "pause edge", weight: 6, inject: (*world).pauseEdge},
	{name: "kill control node", weight: 8, inject: (*world).killControl},
	{name: "stop control node", weight: 3, inject: (*world).stopControl},
	{name: "kill leader", weight: 10, inject: (*world).killLeader},
	{name: "pause leader", weight: 5, inject: (*world).pauseLeader},
	{name: "kill two of three", weight: 3, inject: (*world).killTwo},
	{name: "kill region", weight: 3, inject: (*world).killRegion},
	{name: "cut edge off", weight: 8, needs: "partition", inject: (*world).cutEdge},
	{name: "kill edge while cut", weight: 5, needs: "partition", inject: (*world).killCutEdge},
	{name: "cut node off", weight: 6, needs: "partition", inject: (*world).cutNode},
	{name: "cut leader off", weight: 5, needs: "partition", inject: (*world).cutLeader},
	{name: "cut UDP", weight: 3, needs: "partition", inject: (*world).cutUDP},
	{name: "full disk of edge", weight: 5, needs: "full disk", inject: (*world).fullEdge},
	{name: "full disk of node", weight: 2, needs: "full disk", inject: (*world).fullNode},
	{name: "failing fsync of edge", weight: 3, needs: "fsync", inject: (*world).fsyncEdge},
	{name: "failing fsync of node", weight: 3, needs: "fsync", inject: (*world).fsyncNode},
	{name: "flipped bits", weight: 4, needs: "partition", alone: true, inject: (*world).flip},
	{name: "blocks twice and mixed up", weight: 4, alone: true, inject: (*world).replay},
	{name: "cloned disk", weight: 2, needs: "partition", alone: true, inject: (*world).cloneDisk},
	{name: "lost disk", weight: 1, needs: "partition", alone: true, inject: (*world).loseDisk},
}

// injectors is how many faults there are at a time.
const injectors = 3

// injectAll injects faults, spread over the requests.
func (w *world) injectAll(s *summary, deadline time.Time) {
	var list []fault
	total := 0
	for _, f := range catalogue {
		if _, out := w.leftOut[f.needs]; out || w.o.only != "" && !slices.Contains(strings.Split(w.o.only, ","), f.name) {
			continue
		}
		list = append(list, f)
		total += f.weight
	}
	if total == 0 {
		return
	}
	var mu sync.Mutex // covers s, next and injected
	next, injected := 0, 0
	var calm sync.RWMutex // faults that must be alone hold it for writing
	var wg sync.WaitGroup
	for range injectors {
		wg.Go(func() {
			for {
				mu.Lock()
				n, done := next, injected >= w.o.faults
				next++
				mu.Unlock()
				if done || time.Now().After(deadline) {
					return
				}
				due := w.o.requests * int64(n) / int64(max(1, w.o.faults)) * 95 / 100
				for w.sent.Load() < due && time.Now().Before(deadline) {
					time.Sleep(10 * time.Millisecond)
				}
				rng := w.rngFor(n)
				f := list[0]
				if n < len(list) {
					f = list[n] // each kind once, so that a short campaign knows them too
				} else {
					for at := rng.IntN(total); at >= 0; {
						for _, f = range list {
							if at -= f.weight; at < 0 {
								break
							}
						}
					}
				}
				lock, unlock := calm.RLock, calm.RUnlock
				if f.alone {
					lock, unlock = calm.Lock, calm.Unlock
				}
				lock()
				begun := time.Now()
				err := f.inject(w, rng)
				unlock()
				mu.Lock()
				k := s.Kinds[f.name]
				if k == nil {
					k = &tally{}
					s.Kinds[f.name] = k
				}
				switch {
				case errors.Is(err, errSkip):
					k.Skipped++
				case err != nil:
					k.Breaches++
					fallthrough
				default:
					k.Injected++
					injected++
					s.Faults = injected
				}
				mu.Unlock()
				if err != nil && !errors.Is(err, errSkip) {
					w.breach("fault %d, %s: %v", n, f.name, err)
				}
				fmt.Fprintf(w.out, "%s fault %d: %s, %s%s\n", w.clock(), n, f.name, time.Since(begun).Round(time.Millisecond), map[bool]string{true: ", skipped"}[errors.Is(err, errSkip)])
			}
		})
	}
	wg.Wait()
}

// hold reserves processes for one fault.
func (w *world) hold(names ...string) (release func(), err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, n := range names {
		if w.busy[n] {
			return nil, errSkip
		}
	}
	for _, n := range names {
		w.busy[n] = true
	}
	return func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, n := range names {
			delete(w.busy, n)
		}
	}, nil
}

func between(rng *rand.Rand, least, most time.Duration) time.Duration {
	return least + time.Duration(rng.Int64N(int64(most-least)))
}

func (w *world) edge(rng *rand.Rand) string { return w.s.Edges[rng.IntN(len(w.s.Edges))].Name }
func (w *world) control(rng *rand.Rand) string {
	return w.s.Controls[rng.IntN(len(w.s.Controls))].Name
}

func (w *world) leader(rng *rand.Rand) (string, error) {
	groups := []string{"ledger/emea", "ledger/us", "store/emea", "store/us", "ledger/emea", "ledger/us", "catalog"}
	if name := w.s.Leaders()[groups[rng.IntN(len(groups))]]; name != "" {
		return name, nil
	}
	return "", errSkip
}

// running starts a process unless it runs, and says whether it did.
func (w *world) running(name string) (started bool, err error) {
	err = w.act("start", name)
	if err != nil && strings.Contains(err.Error(), "runs already") {
		return false, nil
	}
	return err == nil, err
}

// alive is an error if a process has ended, which is then started again.
func (w *world) alive(names ...string) error {
	for _, n := range names {
		started, err := w.running(n)
		if err != nil {
			return err
		}
		if started {
			return fmt.Errorf("%s had ended by itself: %s", n, w.lastWords(n))
		}
	}
	return nil
}

func (w *world) lastWords(name string) string {
	lines := strings.Split(strings.TrimSpace(w.s.Log(name)), "\n")
	return strings.Join(lines[max(0, len(lines)-3):], " | ")
}

// down ends processes by a verb, waits, and starts them again.
func (w *world) down(verb string, away time.Duration, names ...string) error {
	release, err := w.hold(names...)
	if err != nil {
		return err
	}
	defer release()
	do := func() {
		for _, n := range names {
			e := w.act(verb, n)
			if e != nil { // it may have ended by itself
				e = fmt.Errorf("%w; its last words: %s", e, w.lastWords(n))
			}
			err = errors.Join(err, e)
		}
	}
	if strings.Contains(strings.Join(names, " "), "-edge-") {
		w.still(do)
	} else {
		do()
	}
	time.Sleep(away)
	for _, n := range names {
		_, e := w.running(n)
		err = errors.Join(err, e)
	}
	return err
}

func (w *world) killEdge(rng *rand.Rand) error {
	return w.down("kill", between(rng, 100*time.Millisecond, 2*time.Second), w.edge(rng))
}

func (w *world) stopEdge(rng *rand.Rand) error {
	return w.down("stop", between(rng, 100*time.Millisecond, time.Second), w.edge(rng))
}

func (w *world) killControl(rng *rand.Rand) error {
	return w.down("kill", between(rng, 500*time.Millisecond, 4*time.Second), w.control(rng))
}

func (w *world) stopControl(rng *rand.Rand) error {
	return w.down("stop", between(rng, 500*time.Millisecond, 2*time.Second), w.control(rng))
}

func (w *world) killLeader(rng *rand.Rand) error {
	name, err := w.leader(rng)
	if err != nil {
		return err
	}
	return w.down("kill", between(rng, 500*time.Millisecond, 4*time.Second), name)
}

func (w *world) killTwo(rng *rand.Rand) error {
	zone := []string{"emea", "us"}[rng.IntN(2)]
	names := w.s.ControlsOf(zone)
	rng.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	return w.down("kill", between(rng, 500*time.Millisecond, 3*time.Second), names[:2]...)
}

func (w *world) killRegion(rng *rand.Rand) error {
	e := w.s.Edges[rng.IntN(len(w.s.Edges))]
	names := []string{e.Name}
	for _, c := range w.s.Controls {
		if c.Region == e.Region {
			names = append(names, c.Name)
		}
	}
	return w.down("kill", between(rng, 500*time.Millisecond, 3*time.Second), names...)
}

func (w *world) pause(name string, how time.Duration) error {
	release, err := w.hold(name)
	if err != nil {
		return err
	}
	defer release()
	if err := w.act("pause", name); err != nil {
		return err
	}
	time.Sleep(how)
	return errors.Join(w.act("resume", name), w.alive(name))
}

func (w *world) pauseEdge(rng *rand.Rand) error {
	return w.pause(w.edge(rng), between(rng, 300*time.Millisecond, 4*time.Second))
}

func (w *world) pauseLeader(rng *rand.Rand) error {
	name, err := w.leader(rng)
	if err != nil {
		return err
	}
	return w.pause(name, between(rng, 500*time.Millisecond, 6*time.Second))
}

// offControl is what keeps a process from reaching any of these control nodes.
func (w *world) offControl(name string, nodes ...string) (out []netlab.Cut) {
	for _, n := range nodes {
		if n != name {
			out = append(out, netlab.Cut{UID: w.apart.UID(name), Port: w.s.PeerPort(n)})
		}
	}
	return out
}

func (w *world) allControls() (out []string) {
	for _, c := range w.s.Controls {
		out = append(out, c.Name)
	}
	return out
}

func (w *world) cut(how time.Duration, cuts []netlab.Cut, names ...string) error {
	release, err := w.hold(names...)
	if err != nil {
		return err
	}
	defer release()
	heal, err := netlab.Make(cuts...)
	if err != nil {
		return err
	}
	time.Sleep(how)
	if err := heal(); err != nil || names[0] == everyUDP {
		return err
	}
	return w.alive(names...)
}

// everyUDP stands among processes for what is cut between all of them.
const everyUDP = "UDP"

func (w *world) cutEdge(rng *rand.Rand) error {
	name, nodes := w.edge(rng), w.allControls()
	if rng.IntN(3) == 0 {
		nodes = nodes[:rng.IntN(len(nodes))+1]
	}
	return w.cut(between(rng, time.Second, 6*time.Second), w.offControl(name, nodes...), name)
}

// killCutEdge: it comes back with blocks that nobody has, still cut off.
func (w *world) killCutEdge(rng *rand.Rand) error {
	name := w.edge(rng)
	heal, err := netlab.Make(w.offControl(name, w.allControls()...)...)
	if err != nil {
		return err
	}
	time.Sleep(between(rng, 500*time.Millisecond, 3*time.Second))
	err = w.down("kill", between(rng, 100*time.Millisecond, time.Second), name)
	time.Sleep(between(rng, 500*time.Millisecond, 2*time.Second))
	return errors.Join(heal(), err)
}

func (w *world) cutNodeOff(rng *rand.Rand, name string) error {
	cuts := w.offControl(name, w.allControls()...)
	for _, other := range w.allControls() {
		cuts = append(cuts, w.offControl(other, name)...)
	}
	return w.cut(between(rng, time.Second, 6*time.Second), cuts, name)
}

func (w *world) cutNode(rng *rand.Rand) error { return w.cutNodeOff(rng, w.control(rng)) }

func (w *world) cutLeader(rng *rand.Rand) error {
	name, err := w.leader(rng)
	if err != nil {
		return err
	}
	return w.cutNodeOff(rng, name)
}

func (w *world) cutUDP(rng *rand.Rand) error {
	return w.cut(between(rng, 2*time.Second, 8*time.Second), []netlab.Cut{netlab.UDP}, everyUDP)
}

// fill takes all space on a process's disk for a while. What a process does then is its business, as long as
// nothing is lost.
func (w *world) fill(name string, how time.Duration) error {
	release, err := w.hold(name)
	if err != nil {
		return err
	}
	defer release()
	if !w.small[name] {
		return errSkip
	}
	file := filepath.Join(w.s.Dir, name, "filler")
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	for chunk := make([]byte, 64<<10); err == nil; {
		_, err = f.Write(chunk)
	}
	f.Close()
	time.Sleep(how)
	if err := os.Remove(file); err != nil {
		return err
	}
	return settle(func() bool { return w.s.Ready(w.admin(name)) == http.StatusOK }, func() error { _, err := w.running(name); return err })
}

// settle waits until a process that may be ending of a fault serves for two seconds, and starts it if it has
// ended. A control node that stops lets go of its clients first: for seconds it still runs, as far as the sandbox
// knows, and what then ends unseen would pass for a death of its own. Its doors shut at once, though. Other faults
// may keep it from being ready, so it is given up after 30 s, which is more than a stop takes.
func settle(serves func() bool, start func() error) error {
	deadline := time.Now().Add(30 * time.Second)
	for since := time.Now(); time.Since(since) < 2*time.Second && time.Now().Before(deadline); time.Sleep(200 * time.Millisecond) {
		if err := start(); err != nil {
			return err
		}
		if !serves() {
			since = time.Now()
		}
	}
	return nil
}

func (w *world) fullEdge(rng *rand.Rand) error {
	return w.fill(w.edge(rng), between(rng, time.Second, 5*time.Second))
}

func (w *world) fullNode(rng *rand.Rand) error {
	return w.fill([]string{"emea-3", "us-3"}[rng.IntN(2)], between(rng, time.Second, 4*time.Second))
}

// fsync starts a process whose fsyncs fail from some moment on, and later one whose do not. It is the process
// that must know that it cannot vouch for its disk any more.
func (w *world) fsync(name string, after int, how time.Duration) error {
	release, err := w.hold(name)
	if err != nil {
		return err
	}
	defer release()
	edge := strings.Contains(name, "-edge-")
	swap := func(verb string) (err error) {
		do := func() {
			if err = w.act(verb, name); err != nil && strings.Contains(err.Error(), "does not run") {
				err = nil
			}
		}
		if edge {
			w.still(do)
		} else {
			do()
		}
		return err
	}
	if err := swap("stop"); err != nil {
		return err
	}
	if err := w.apart.FailFsync(name, after); err != nil {
		return err
	}
	if _, err := w.running(name); err != nil {
		return err
	}
	time.Sleep(how)
	if err := w.apart.FailFsync(name, 0); err != nil {
		return err
	}
	if err := swap("kill"); err != nil {
		return err
	}
	_, err = w.running(name)
	return err
}

func (w *world) fsyncEdge(rng *rand.Rand) error {
	return w.fsync(w.edge(rng), 5+rng.IntN(30), between(rng, 3*time.Second, 6*time.Second))
}

func (w *world) fsyncNode(rng *rand.Rand) error {
	return w.fsync(w.control(rng), 5+rng.IntN(60), between(rng, 3*time.Second, 6*time.Second))
}
