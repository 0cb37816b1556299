package dataplane

import (
	"context"
	"maps"
	"slices"
	"time"

	"bailiwick/dataplane/internal/dns"
	"bailiwick/dataplane/internal/observe"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// newDNS makes the observer, and the server whose answers follow it.
func (e *Edge) newDNS() (err error) {
	e.observe, err = observe.New(observe.Config{Identity: e.state.Source, Self: e.self, Tables: e.tables, Logger: e.log,
		Ready: func() bool { return e.ready() == nil }, Ramp: e.cfg.DNS.Ramp})
	if err != nil {
		return err
	}
	if e.cfg.DNS.Listen == "" {
		return nil
	}
	e.dns, err = dns.New(dns.Config{Zone: e.self.Zone, Tables: e.tables, Outlook: e.observe.Outlook, Logger: e.log,
		Apexes: e.cfg.DNS.Domains, CAA: e.cfg.DNS.CAA, TTL: e.cfg.DNS.TTL, NegativeTTL: e.cfg.DNS.NegativeTTL})
	return err
}

// serveDNS listens no sooner than there is a table to answer from: until then a resolver is refused, and asks the
// next server at once.
func (e *Edge) serveDNS(ctx context.Context) error {
	if e.dns == nil {
		<-ctx.Done()
		return nil
	}
	udp, tcp, err := dns.Listen(e.sockets, e.cfg.DNS.Listen)
	if err != nil {
		return err
	}
	e.log.Info("answering DNS", "addr", udp.LocalAddr().String())
	return e.dns.Serve(ctx, udp, tcp)
}

func (c Config) publicPort() int {
	if c.PublicHTTPSPort != 0 {
		return c.PublicHTTPSPort
	}
	return port(c.HTTPS)
}

// doors are where clients reach this edge. It says nothing before it has served once: what was registered of an
// edge that starts again stands, and a new one is not named before it can be reached.
func (e *Edge) doors() *syncv1.Doors {
	if !e.opened.Load() {
		return nil
	}
	d := &syncv1.Doors{HttpsPort: uint32(e.cfg.publicPort()), Dns: e.dns != nil}
	for _, a := range e.cfg.Public {
		d.Addresses = append(d.Addresses, a.String())
	}
	return d
}

// outlook is what this edge thinks of its zone's regions, and so answers.
func (e *Edge) outlook() *syncv1.Outlook {
	look := e.observe.Outlook()
	shares, drained := look.Shares(time.Now()), map[string]bool{}
	for _, r := range e.tables.Load().Regions() {
		drained[r.Name] = r.Drain != ""
	}
	out := &syncv1.Outlook{Held: look.Held, SilentEdges: slices.Sorted(maps.Keys(look.Silent))}
	for _, v := range look.Regions {
		r := &syncv1.RegionVerdict{Region: v.Region, Healthy: !v.Dead, Reason: verdictReason(v), Against: int32(v.Why.Against), Observers: int32(v.Why.Of), Share: int32(shares[v.Region]), Drained: drained[v.Region]}
		if !v.Since.IsZero() {
			r.SinceUnixMs = v.Since.UnixMilli()
		}
		out.Regions = append(out.Regions, r)
	}
	return out
}

// dnsCount reads a counter of the server, 0 without one.
func (e *Edge) dnsCount(read func(*dns.Stats) int64) func() int64 {
	return func() int64 {
		if e.dns == nil {
			return 0
		}
		return read(e.dns.Stats())
	}
}
