package upstream

import (
	"context"
	"errors"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	maxAddrs      = 64 // of one name; the first by number stay
	maxLookups    = 8  // at a time
	lookupTimeout = 5 * time.Second
)

// NamesConfig of Names. Logger is required.
type NamesConfig struct {
	Logger *slog.Logger
	Allow  []netip.Prefix // as of a Dialer: what may not be dialled is no upstream
	// Networks likewise.
	Networks Networks
	// Refresh is how often a name is asked for. The resolver of the standard library tells no TTL, so this is both the
	// floor and the age that an answer can have here; the resolver on the way keeps its own. 0: 5 s, at least 1 s.
	Refresh time.Duration
	Lookup  func(ctx context.Context, host string) ([]netip.Addr, error) // nil: the system's resolver
}

// Names keeps the addresses of names, asked for in the background alone. What a name meant last stays when it cannot be
// resolved, and when the answer is empty: "nothing" is never what an operator wants to reach. Run it.
type Names struct {
	cfg   NamesConfig
	guard Guard
	wake  chan struct{}

	mu      sync.Mutex // covers all below; held for no lookup
	names   map[string]*name
	changed chan struct{}
}

type name struct {
	addrs   []netip.Addr // sorted; replaced, never written to
	due     time.Time
	wait    time.Duration
	asking  bool
	failing bool
}

// NewNames makes Names that know none.
func NewNames(cfg NamesConfig) (*Names, error) {
	if cfg.Logger == nil {
		return nil, errors.New("upstream names: Logger is required")
	}
	if cfg.Refresh == 0 {
		cfg.Refresh = 5 * time.Second
	}
	cfg.Refresh = max(cfg.Refresh, time.Second)
	if cfg.Lookup == nil {
		cfg.Lookup = func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	return &Names{cfg: cfg, guard: Guard{cfg.Allow, cfg.Networks}, wake: make(chan struct{}, 1), names: map[string]*name{}, changed: make(chan struct{})}, nil
}

// Want says which names are to be kept; others are forgotten.
func (n *Names) Want(hosts []string) {
	n.mu.Lock()
	for host := range n.names {
		if !slices.Contains(hosts, host) {
			delete(n.names, host)
		}
	}
	fresh := false
	for _, host := range hosts {
		if n.names[host] == nil {
			n.names[host], fresh = &name{}, true
		}
	}
	n.mu.Unlock()
	if fresh {
		select {
		case n.wake <- struct{}{}:
		default:
		}
	}
}

// Addrs are those of a name, sorted; nil while none is known. Do not write to the slice.
func (n *Names) Addrs(host string) []netip.Addr {
	n.mu.Lock()
	defer n.mu.Unlock()
	if k := n.names[host]; k != nil {
		return k.addrs
	}
	return nil
}

// Changed closes when any name means something else. Take it before Addrs.
func (n *Names) Changed() <-chan struct{} {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.changed
}

// Run asks until ctx ends.
func (n *Names) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	timer := time.NewTimer(0)
	defer timer.Stop()
	done := make(chan struct{}, 1)
	asking := 0
	for {
		n.mu.Lock()
		next, now := time.Now().Add(time.Hour), time.Now()
		for host, k := range n.names {
			if k.asking {
				continue
			}
			if k.due.After(now) {
				if k.due.Before(next) {
					next = k.due
				}
				continue
			}
			if asking == maxLookups {
				break // the end of one of them comes back here
			}
			asking++
			k.asking = true
			wg.Go(func() {
				n.ask(ctx, host)
				select {
				case done <- struct{}{}:
				case <-ctx.Done():
				}
			})
		}
		n.mu.Unlock()
		timer.Reset(time.Until(next))
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		case <-n.wake:
		case <-done:
			asking--
		}
	}
}

// ask looks one name up and keeps what came of it.
func (n *Names) ask(ctx context.Context, host string) {
	lctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := n.cfg.Lookup(lctx, host)
	addrs, refused := n.usable(addrs)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no address that may be dialled")
		if refused != nil {
			err = refused
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	k := n.names[host]
	if k == nil || ctx.Err() != nil {
		return
	}
	k.asking = false
	if err != nil {
		k.wait = min(max(2*k.wait, n.cfg.Refresh), 6*n.cfg.Refresh)
		if !k.failing {
			k.failing = true
			n.cfg.Logger.Warn("upstream name cannot be resolved", "host", host, "held", len(k.addrs), "error", err)
		}
	} else {
		k.wait, k.failing = n.cfg.Refresh, false
		if !slices.Equal(k.addrs, addrs) {
			n.cfg.Logger.Info("upstream name has other addresses", "host", host, "count", len(addrs))
			k.addrs = addrs
			close(n.changed)
			n.changed = make(chan struct{})
		}
	}
	k.due = time.Now().Add(k.wait + time.Duration(rand.Int64N(int64(k.wait/8)+1))) // apart, so that edges do not ask in step
}

// usable are the addresses that may be dialled, sorted, IPv6 ones only where there is no other: half of a region's
// upstreams that nobody can reach is the worse surprise.
func (n *Names) usable(in []netip.Addr) (out []netip.Addr, refused error) {
	v4 := false
	for _, a := range in {
		a = a.Unmap().WithZone("")
		if err := n.guard.Check(a); err != nil {
			refused = err
			continue
		}
		v4 = v4 || a.Is4()
		out = append(out, a)
	}
	out = slices.DeleteFunc(out, func(a netip.Addr) bool { return v4 && !a.Is4() })
	slices.SortFunc(out, netip.Addr.Compare)
	out = slices.Compact(out)
	return slices.Clip(out[:min(len(out), maxAddrs)]), refused
}
