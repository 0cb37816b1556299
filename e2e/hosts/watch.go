package main

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// The router lets everything through; it is the programs that must not send it. What no installed policy permits is
// counted, by name:
//
//	emea_edge__us_control      any packet of one zone's hosts to another's, by kind
//	eu-west_edge__eu-central_upstream    an edge that goes to another region's upstream past that region's edge
//
// What is permitted between zones is counted apart: the peer ports of control nodes over TCP (the catalog, and sums
// between zones) as catalog_emea__us, and an operator's program at another zone's admin port as admin_emea__us.

type forbidden struct {
	name     string
	from, to site // examples: of these the positive control sends
	match    string
}

func pairs() (list []forbidden) {
	first := func(z int, k kind) site {
		all := sites()
		return all[slices.IndexFunc(all, func(s site) bool { return s.zone == z && s.kind == k })]
	}
	for z := range zones {
		for from := range kinds {
			for to := range kinds {
				list = append(list, forbidden{
					name: fmt.Sprintf("%s_%s__%s_%s", zones[z].name, from, zones[other(z)].name, to),
					from: first(z, from), to: first(other(z), to),
					match: fmt.Sprintf("ip saddr %s ip daddr %s", network(z, from), network(other(z), to)),
				})
			}
		}
	}
	for _, a := range sites() {
		for _, b := range sites() {
			if a.kind == edge && b.kind == upstream && a.zone == b.zone && a.region != b.region {
				list = append(list, forbidden{name: a.region + "_edge__" + b.region + "_upstream", from: a, to: b,
					match: fmt.Sprintf("ip saddr %s ip daddr %s", a.address(), b.address())})
			}
		}
	}
	return list
}

// nftName is a counter's name as nft takes it.
func nftName(name string) string { return strings.ReplaceAll(name, "-", "_") }

// rules counts permitted traffic first and takes it out of what follows.
func rules() string {
	var counters, chain strings.Builder
	for z := range zones {
		catalog, admin := fmt.Sprintf("catalog_%s__%s", zones[z].name, zones[other(z)].name), fmt.Sprintf("admin_%s__%s", zones[z].name, zones[other(z)].name)
		fmt.Fprintf(&counters, "\tcounter %s {}\n\tcounter %s {}\n", catalog, admin)
		for _, p := range []struct {
			from, to kind
			port     string
			number   int
			name     string
		}{
			{control, control, "dport", peerPort, catalog}, {control, control, "sport", peerPort, catalog},
			{operator, control, "dport", adminPort, admin}, {control, operator, "sport", adminPort, admin},
		} {
			fmt.Fprintf(&chain, "\t\tip saddr %s ip daddr %s tcp %s %d counter name %s accept\n", network(z, p.from), network(other(z), p.to), p.port, p.number, p.name)
		}
	}
	for _, p := range pairs() {
		fmt.Fprintf(&counters, "\tcounter %s {}\n", nftName(p.name))
		fmt.Fprintf(&chain, "\t\t%s counter name %s\n", p.match, nftName(p.name))
	}
	return fmt.Sprintf("table inet lab {\n%s\tchain watched {\n\t\tiifname \"late0\" accept\n%s\t}\n}\n", counters.String(), chain.String())
}

// countersCount is the positive control: each forbidden pair sends one packet by hand, each counter must see it.
// Afterwards all stand at 0.
func (l *lab) countersCount(ctx context.Context) error {
	for _, p := range pairs() {
		conn, err := l.fabric.Dial(ctx, l.hosts[p.from.name], "udp4", p.to.at(9))
		if err == nil {
			_, err = conn.Write([]byte("one packet by hand"))
			conn.Close()
		}
		if err != nil {
			return fmt.Errorf("send a packet from %s to %s: %w", p.from.name, p.to.name, err)
		}
	}
	time.Sleep(100 * time.Millisecond) // answers that the port is closed count as well
	seen, err := l.fabric.ResetCounters()
	if err != nil {
		return err
	}
	for _, p := range pairs() {
		if seen[nftName(p.name)] == 0 {
			return fmt.Errorf("the counter %s did not count a packet sent by hand: it would prove nothing", p.name)
		}
	}
	return nil
}

// crossed are the forbidden pairs that sent, and how much, as text.
func (l *lab) crossed() (found []string, permitted map[string]uint64, err error) {
	seen, err := l.fabric.Counters()
	if err != nil {
		return nil, nil, err
	}
	permitted = map[string]uint64{}
	for name, n := range seen {
		if strings.HasPrefix(name, "catalog_") || strings.HasPrefix(name, "admin_") {
			permitted[name] = n
		}
	}
	for _, p := range pairs() {
		n, known := seen[nftName(p.name)]
		if !known {
			return nil, nil, fmt.Errorf("counter %s is gone", p.name)
		}
		if n > 0 {
			found = append(found, fmt.Sprintf("counter %s: %d packets", p.name, n))
		}
	}
	return found, permitted, nil
}

// dialer of a host, for clients that take one.
func (l *lab) dialer(host string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		return l.fabric.Dial(ctx, l.hosts[host], network, address)
	}
}
