package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"bailiwick/e2e/netlab"
)

// settings of one run, which has a namespace for itself.
type settings struct {
	seed   uint64
	bin    string        // programs
	leak   string        // of which build
	faults int           // after the plain traffic
	quiet  time.Duration // of plain traffic
	keep   string        // directory to leave everything in; "": a temporary one, removed
	report string        // file
}

// inside runs one lab in the namespace of this process.
func inside(ctx context.Context, o settings, out io.Writer) (*report, error) {
	if err := netlab.Up(); err != nil {
		return nil, err
	}
	dir := o.keep
	if dir == "" {
		var err error
		if dir, err = os.MkdirTemp("", "bailiwick-hosts-"); err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
	}
	l, err := newLab(dir, filepath.Join(o.bin))
	if err != nil {
		return nil, err
	}
	defer l.fabric.Close()
	for z := range zones {
		l.secrets[z] = newSecrets(z, o.seed)
	}
	start := time.Now()
	step := func(format string, args ...any) {
		fmt.Fprintf(out, "%6.1fs "+format+"\n", append([]any{time.Since(start).Seconds()}, args...)...)
	}
	if err := l.countersCount(ctx); err != nil {
		return nil, err
	}
	step("%d hosts; each of %d counters has counted a packet sent by hand and stands at 0", len(l.hosts), len(pairs()))
	defer l.down()
	if err := l.up(ctx); err != nil {
		return nil, err
	}
	file := filepath.Join(l.disk(zones[0].name+"-operator"), "catalog.yaml")
	if err := os.WriteFile(file, []byte(catalog(leakOf(o.leak).abroad)), 0o600); err != nil {
		return nil, err
	}
	if _, err := l.cli(ctx, 0, "apply", "--now", "--reason", "a lab", "-f", file); err != nil {
		return nil, err
	}
	for z := range zones {
		if err := l.secrets[z].customers(ctx, l); err != nil {
			return nil, err
		}
	}
	if err := l.edges(ctx); err != nil {
		return nil, err
	}
	for z := range zones {
		if err := l.serving(ctx, z); err != nil {
			return nil, err
		}
		if err := l.secrets[z].reasons(ctx, l); err != nil {
			return nil, err
		}
	}
	step("the installation is up and serves")
	if err := l.traffic(ctx, o, step); err != nil {
		return nil, err
	}
	for z := range zones {
		if err := l.look(ctx, z, l.secrets[z]); err != nil {
			return nil, err
		}
		if err := l.secrets[z].keep(l); err != nil {
			return nil, err
		}
	}
	if err := l.down(); err != nil {
		return nil, err
	}
	step("all is down")
	r, err := l.verdict()
	if err != nil {
		return nil, err
	}
	l.tally(r)
	step("searched %d files and %d streams, %d MB, for %d canaries; %d TLS connections opened, shut: %v; permitted packets: %v",
		r.Files, r.Streams, r.Bytes>>20, r.Canaries, r.Opened, r.Shut, r.Permitted)
	step("%d requests, %d answered, %d by the pair; the others: %v", r.Requests, r.Good, r.Relayed, r.Others)
	return r, nil
}

// serving waits until both edges of a zone serve, and may relay to each other.
func (l *lab) serving(ctx context.Context, zone int) error {
	for _, region := range zones[zone].serving {
		var to, from site
		for _, s := range sites() {
			if s.kind == edge && s.region == region {
				to = s
			}
			if s.kind == client && s.zone == zone {
				from = s
			}
		}
		b := l.browser(from, to)
		ask := func(home bool) func() error {
			return func() error {
				request, err := l.secrets[zone].request(ctx, "GET", "")
				if err != nil {
					return err
				}
				a, err := b.do(request)
				if err == nil && (a.status != 200 || (a.served == region) != home) {
					err = fmt.Errorf("status %d, served by %q: %.200s", a.status, a.served, a.body)
				}
				return err
			}
		}
		if err := l.until(ctx, to.name+" serves", ask(true)); err != nil {
			return err
		}
		// What it answers may be the pair's for a while, on a machine on which its own upstream is late.
		garbled := func() error { return l.garbled(ctx, b, to) }
		if err := l.until(ctx, to.name+" quotes garbage", garbled); err != nil {
			return err
		}
		// Its pair takes over when its upstream is dead: it has a grant.
		l.ups[region].kill()
		err := l.until(ctx, to.name+" relays", ask(false))
		if again := l.ups[region].start(); err == nil {
			err = again
		}
		b.http.CloseIdleConnections()
		if err != nil {
			return err
		}
	}
	return nil
}

// traffic is requests with all canaries, an upstream's death in each zone, strangers, and what faults were asked for.
func (l *lab) traffic(ctx context.Context, o settings, step func(string, ...any)) error {
	for z := range zones {
		l.loads[z] = l.load(ctx, z, 40)
	}
	defer func() {
		for _, w := range l.loads {
			w.end()
		}
	}()
	for z := range zones {
		if err := l.asks(ctx, z); err != nil {
			return err
		}
	}
	pause(ctx, o.quiet/2)
	for z := range zones {
		l.ups[zones[z].serving[0]].kill()
	}
	pause(ctx, o.quiet/4)
	for z := range zones { // tally wants it, and a busy machine may have sent nothing yet
		err := l.until(ctx, "the pair of "+zones[z].serving[0]+" answers", func() error {
			if l.loads[z].relayed.Load() == 0 {
				return errors.New("no request was answered by it")
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	// Nobody is left in the first zone: its clients get 503, and nobody else's answer.
	l.ups[zones[0].serving[1]].kill()
	pause(ctx, o.quiet/4)
	for _, u := range l.ups {
		if err := u.start(); err != nil {
			return err
		}
	}
	for z := range zones {
		if err := l.stray(ctx, z); err != nil {
			return err
		}
	}
	step("plain traffic, the death of one zone's upstream and of both of the other's, strangers")
	return l.faults(ctx, o, step)
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// tally adds what clients saw.
func (l *lab) tally(r *report) {
	for z, w := range l.loads {
		r.Requests += w.sent.Load()
		r.Good += w.good.Load()
		r.Relayed += w.relayed.Load()
		for why, n := range w.why {
			r.Others[why] += n
		}
		if n := w.abroad.Load(); n > 0 {
			r.Findings = append(r.Findings, fmt.Sprintf("%d requests of %s were served by another zone's region", n, zones[z].name))
		}
		if w.good.Load() == 0 || w.relayed.Load() == 0 {
			r.Problems = append(r.Problems, fmt.Sprintf("%s: %d requests answered, %d of them by the pair; want both: %v", zones[z].name, w.good.Load(), w.relayed.Load(), w.why))
		}
	}
}

// garbled has an edge's own upstream answer what is no HTTP: edges quote it in errors. A POST, which is not tried again
// elsewhere: one upstream alone then counts as ill.
func (l *lab) garbled(ctx context.Context, b *browser, to site) error {
	request, err := l.secrets[to.zone].request(ctx, "POST", "&garbage=1")
	if err != nil {
		return err
	}
	before := l.ups[to.region].garbage.Load()
	a, err := b.do(request)
	if err != nil || a.status < 500 || l.ups[to.region].garbage.Load() == before {
		return fmt.Errorf("%s answers %d for an upstream's garbage, %v; want 502, and its upstream asked: %.200s", to.name, a.status, err, a.body)
	}
	return nil
}

func leakOf(name string) leak {
	for _, l := range leaks {
		if l.name == name {
			return l
		}
	}
	return leak{}
}
