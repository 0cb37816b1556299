package upstream

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"syscall"
)

// ErrAddress is a resolved address that upstreams must not have.
var ErrAddress = errors.New("address is not allowed for upstreams")

func prefixes(texts ...string) (out []netip.Prefix) {
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

var (
	loopback = prefixes("127.0.0.0/8", "::1/128")
	private  = prefixes("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15", "fc00::/7")

	// never are what no allowance covers: an instance's own metadata service would hand out its credentials, and an IPv4
	// address in IPv6 clothes is judged as nothing else.
	never = prefixes("0.0.0.0/8", "169.254.0.0/16", "192.0.0.0/24", "224.0.0.0/4", "240.0.0.0/4", "100.100.100.200/32", "168.63.129.16/32",
		"::/96", "fe80::/10", "fec0::/10", "ff00::/8", "fd00:ec2::/32", "fd20:ce::254/128", "64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")
)

// Loopback is this machine, for Allow.
func Loopback() []netip.Prefix { return slices.Clone(loopback) }

// ParseAllow reads a list of what upstreams may have besides public addresses: CIDR blocks, and the words private (RFC
// 1918, 6598 and 4193) and loopback.
func ParseAllow(text string) (out []netip.Prefix, err error) {
	for word := range strings.SplitSeq(text, ",") {
		switch word = strings.TrimSpace(word); word {
		case "":
		case "private":
			out = append(out, private...)
		case "loopback":
			out = append(out, loopback...)
		default:
			p, err := netip.ParsePrefix(word)
			if err != nil {
				return nil, fmt.Errorf("upstream addresses %q: neither private, loopback nor a block such as 10.1.0.0/16", word)
			}
			out = append(out, p.Masked())
		}
	}
	return out, nil
}

// Networks are where a region's upstreams are, as its table says at this moment; none: anywhere.
type Networks func() []netip.Prefix

// Guard judges resolved addresses.
type Guard struct {
	allow    []netip.Prefix
	networks Networks // nil: no bound
}

// NewGuard allows public addresses and those of allow, within networks (nil: anywhere).
func NewGuard(allow []netip.Prefix, networks Networks) *Guard { return &Guard{allow, networks} }

// Check says why an address is forbidden, nil if it is not.
func (g *Guard) Check(ip netip.Addr) error {
	ip = ip.Unmap().WithZone("")
	switch {
	case !ip.IsValid():
		return fmt.Errorf("no address: %w", ErrAddress)
	case within(loopback, ip):
		if !within(g.allow, ip) {
			return fmt.Errorf("%s is this machine: %w (the edge's -upstream-allow can permit it)", ip, ErrAddress)
		}
	case within(never, ip):
		return fmt.Errorf("%s: %w, whatever -upstream-allow says", ip, ErrAddress)
	case within(private, ip) && !within(g.allow, ip):
		return fmt.Errorf("%s is a private address: %w (the edge's -upstream-allow can permit it)", ip, ErrAddress)
	}
	if g.networks == nil {
		return nil
	}
	if bound := g.networks(); len(bound) > 0 && !within(bound, ip) {
		return fmt.Errorf("%s is outside of the region's upstream_networks: %w", ip, ErrAddress)
	}
	return nil
}

// control looks at the resolved address at every dial, so that a name that changes its mind (rebinding) does not get past.
func (g *Guard) control(_ context.Context, _, address string, _ syscall.RawConn) error {
	ap, err := netip.ParseAddrPort(address)
	if err != nil {
		return fmt.Errorf("dial %s: %w", address, ErrAddress)
	}
	if err := g.Check(ap.Addr()); err != nil {
		return fmt.Errorf("dial: %w", err)
	}
	return nil
}

func within(list []netip.Prefix, ip netip.Addr) bool {
	for _, p := range list {
		if p.Contains(ip) {
			return true
		}
	}
	return false
}
