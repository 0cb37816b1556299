package main

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"syscall"
	"time"

	"bailiwick/e2e/netlab"
)

// far is what a packet takes between zones, or between regions, in a fault that delays.
const far = 200 * time.Millisecond

// trouble is one kind of fault: make breaks something and returns how it is mended.
type trouble struct {
	name string
	make func(l *lab, rng *rand.Rand) (heal func() error, err error)
}

func lose(rules func(rng *rand.Rand) []string) func(*lab, *rand.Rand) (func() error, error) {
	return func(l *lab, rng *rand.Rand) (func() error, error) { return l.fabric.Fault(rules(rng)...) }
}

func between(a, b any) string { return fmt.Sprintf("ip saddr %s ip daddr %s drop", a, b) }

// some site of a kind in a zone.
func some(rng *rand.Rand, zone int, k kind) site {
	var list []site
	for _, s := range sites() {
		if s.zone == zone && s.kind == k {
			list = append(list, s)
		}
	}
	return list[rng.IntN(len(list))]
}

// killed is a program that gets SIGKILL and is started again.
func killed(k kind) func(*lab, *rand.Rand) (func() error, error) {
	return func(l *lab, rng *rand.Rand) (func() error, error) {
		s := some(rng, rng.IntN(2), k)
		return func() error { return l.start(s) }, l.stop(s, syscall.SIGKILL)
	}
}

func delayed(flows ...netlab.Flow) func(*lab, *rand.Rand) (func() error, error) {
	return func(l *lab, _ *rand.Rand) (func() error, error) {
		var list []netlab.Late
		for _, f := range flows {
			list = append(list, netlab.Late{Flow: f, By: far})
		}
		return l.fabric.Delay(list...)
	}
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, 32) }

var troubles = []trouble{
	{"zones cut off from each other", lose(func(*rand.Rand) []string {
		return []string{between(zoneNetwork(0), zoneNetwork(1)), between(zoneNetwork(1), zoneNetwork(0))}
	})},
	{"one zone hears the other, and is not heard", lose(func(rng *rand.Rand) []string {
		z := rng.IntN(2)
		return []string{between(zoneNetwork(z), zoneNetwork(other(z)))}
	})},
	{"edges of a zone cut off from its control nodes", lose(func(rng *rand.Rand) []string {
		z := rng.IntN(2)
		return []string{between(network(z, edge), network(z, control)), between(network(z, control), network(z, edge))}
	})},
	{"an edge hears its pair, and is not heard", lose(func(rng *rand.Rand) []string {
		s := some(rng, rng.IntN(2), edge)
		return []string{between(s.address(), network(s.zone, edge))}
	})},
	{"a control node cut off", lose(func(rng *rand.Rand) []string {
		s := some(rng, rng.IntN(2), control)
		return []string{between(s.address(), zoneNetwork(s.zone)), between(zoneNetwork(s.zone), s.address())}
	})},
	{"5 % of all packets lost", lose(func(*rand.Rand) []string { return []string{"numgen random mod 100 < 5 drop"} })},
	{"every third datagram lost", lose(func(*rand.Rand) []string { return []string{"meta l4proto udp numgen random mod 3 < 1 drop"} })},
	{"200 ms between zones", delayed(netlab.Flow{From: zoneNetwork(0), To: zoneNetwork(1)}, netlab.Flow{From: zoneNetwork(1), To: zoneNetwork(0)})},
	{"200 ms between regions", func(l *lab, rng *rand.Rand) (func() error, error) {
		var flows []netlab.Flow
		for _, k := range []kind{control, edge} {
			for z := range zones {
				var list []site
				for _, s := range sites() {
					if s.zone == z && s.kind == k {
						list = append(list, s)
					}
				}
				flows = append(flows, netlab.Flow{From: host(list[0].address()), To: host(list[1].address())}, netlab.Flow{From: host(list[1].address()), To: host(list[0].address())})
			}
		}
		return delayed(flows...)(l, rng)
	}},
	{"an edge killed and started", killed(edge)},
	{"a control node killed and started", killed(control)},
	{"a region killed and started", func(l *lab, rng *rand.Rand) (func() error, error) {
		e := some(rng, rng.IntN(2), edge)
		var c site
		for _, s := range sites() {
			if s.kind == control && s.region == e.region {
				c = s
			}
		}
		l.ups[e.region].kill()
		for _, s := range []site{e, c} {
			if err := l.stop(s, syscall.SIGKILL); err != nil {
				return nil, err
			}
		}
		return func() error {
			for _, s := range []site{c, e} {
				if err := l.start(s); err != nil {
					return err
				}
			}
			return l.ups[e.region].start()
		}, nil
	}},
}

// faults makes one after another, every kind before any comes again, while clients and strangers go on.
func (l *lab) faults(ctx context.Context, o settings, step func(string, ...any)) error {
	rng := rand.New(rand.NewPCG(o.seed, 1<<32))
	var order []int
	for n := range o.faults {
		if len(order) == 0 {
			order = rng.Perm(len(troubles))
		}
		t := troubles[order[0]]
		order = order[1:]
		heal, err := t.make(l, rng)
		if err != nil {
			return fmt.Errorf("fault %q: %w", t.name, err)
		}
		pause(ctx, time.Duration(1500+rng.IntN(1500))*time.Millisecond)
		l.stray(ctx, rng.IntN(2)) // whether anybody answers meanwhile is no matter; what he says is
		if err := heal(); err != nil {
			return fmt.Errorf("mend %q: %w", t.name, err)
		}
		for _, s := range sites() {
			if s.kind == edge || s.kind == control {
				if err := l.ready(ctx, s); err != nil {
					return fmt.Errorf("after %q: %w", t.name, err)
				}
			}
		}
		step("fault %d of %d: %s", n+1, o.faults, t.name)
	}
	if o.faults == 0 {
		return nil
	}
	for z := range zones {
		if err := l.serving(ctx, z); err != nil {
			return fmt.Errorf("after the faults: %w", err)
		}
	}
	return nil
}
