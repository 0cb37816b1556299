package alert

import (
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"syscall"

	"bailiwick/shared/fault"
)

// Reasons why a webhook's address is refused; kind Invalid.
const (
	ReasonURL     = "WEBHOOK_URL_INVALID"
	ReasonAddress = "WEBHOOK_ADDRESS_REFUSED"
)

// guard keeps webhooks from reaching into the network that the control node runs in (server-side request forgery).
// The address that is dialled is judged, at every dial and after names are resolved: whatever a name said when the
// webhook was created, and whatever it says at the next look, nothing is dialled that is refused here.
type guard struct{ allow []netip.Prefix }

func prefixes(list ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, p := range list {
		out = append(out, netip.MustParsePrefix(p))
	}
	return out
}

var (
	// Global unicast addresses of version 4 that are not of the public internet (IANA special-purpose registry, RFC
	// 6890), and one that is but answers metadata inside a cloud.
	special4 = prefixes("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.0.0.0/24", "192.0.2.0/24",
		"192.88.99.0/24", "192.168.0.0/16", "198.18.0.0/15", "198.51.100.0/24", "203.0.113.0/24", "224.0.0.0/4", "240.0.0.0/4", "168.63.129.16/32")
	// Of version 6 nothing but 2000::/3 is public, and of that not these: Teredo and other protocol assignments,
	// documentation.
	public6   = netip.MustParsePrefix("2000::/3")
	special6  = prefixes("2001::/23", "2001:db8::/32", "3fff::/20")
	nat64     = netip.MustParsePrefix("64:ff9b::/96")
	sixToFour = netip.MustParsePrefix("2002::/16")
)

func within(list []netip.Prefix, a netip.Addr) bool {
	return slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// embedded is the version 4 address inside a version 6 one that a gateway would send on to it.
func embedded(a netip.Addr) (netip.Addr, bool) {
	b := a.As16()
	switch {
	case nat64.Contains(a):
		return netip.AddrFrom4([4]byte(b[12:16])), true
	case sixToFour.Contains(a):
		return netip.AddrFrom4([4]byte(b[2:6])), true
	}
	return a, false
}

// allowed says whether an operator opened the address by name.
func (g guard) allowed(a netip.Addr) bool { return within(g.allow, a.WithZone("").Unmap()) }

// public says whether the address is of the public internet.
func public(a netip.Addr) bool {
	a = a.Unmap()
	if a.Zone() != "" {
		return false
	}
	if a.Is4() {
		return !within(special4, a)
	}
	if v4, ok := embedded(a); ok {
		return public(v4)
	}
	return public6.Contains(a) && !within(special6, a)
}

func (g guard) check(a netip.Addr, plain bool) error {
	switch {
	case g.allowed(a):
		return nil
	case !public(a):
		return fault.New(fault.Invalid, ReasonAddress, "address %s is not of the public internet: webhooks reach no loopback, private, link-local or metadata address", a).At("url")
	case plain:
		return fault.New(fault.Invalid, ReasonURL, "address %s is reached by http: use https", a).At("url")
	}
	return nil
}

// control is net.Dialer's: it sees each address before a packet leaves.
func (g guard) control(plain bool) func(network, address string, _ syscall.RawConn) error {
	return func(network, address string, _ syscall.RawConn) error {
		ap, err := netip.ParseAddrPort(address)
		if err != nil || !strings.HasPrefix(network, "tcp") {
			return fault.New(fault.Invalid, ReasonAddress, "address %s over %s is not one of a webhook", address, network)
		}
		return g.check(ap.Addr(), plain)
	}
}

// checkURL refuses what can be seen to be wrong before a name is resolved.
func (g guard) checkURL(text string) error {
	bad := func(format string, args ...any) error {
		return fault.New(fault.Invalid, ReasonURL, "webhook URL: "+format, args...).At("url")
	}
	u, err := url.Parse(text)
	switch {
	case err != nil:
		return bad("it cannot be read")
	case u.Scheme != "https" && u.Scheme != "http":
		return bad("it begins with neither https:// nor http://")
	case u.Hostname() == "" || u.Opaque != "":
		return bad("it names no host")
	case u.User != nil:
		return bad("it holds a user name or password: messages are signed instead")
	case u.Fragment != "":
		return bad("it holds a fragment, which is never sent")
	}
	host := strings.TrimSuffix(strings.ToLower(u.Hostname()), ".")
	if a, err := netip.ParseAddr(host); err == nil {
		return g.check(a, u.Scheme == "http")
	}
	last := host[strings.LastIndexByte(host, '.')+1:]
	switch {
	case last == "localhost" && !g.allowed(netip.AddrFrom4([4]byte{127, 0, 0, 1})),
		last == "internal", last == "local":
		return fault.New(fault.Invalid, ReasonAddress, "host %s is not of the public internet: webhooks reach no loopback, private, link-local or metadata address", host).At("url")
	case strings.Trim(last, "0123456789") == "" || strings.HasPrefix(last, "0x"):
		return bad("host %s is an address in a form that programs read differently: write it as 192.0.2.1 or as a name", host)
	case u.Scheme == "http" && len(g.allow) == 0:
		return bad("it is not https: what usage tells is not sent in clear text")
	}
	return nil
}

// Networks reads the list of a command line: prefixes or addresses, comma separated.
func Networks(text string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for part := range strings.SplitSeq(text, ",") {
		if part = strings.TrimSpace(part); part == "" {
			continue
		}
		p, err := netip.ParsePrefix(part)
		if a, aerr := netip.ParseAddr(part); aerr == nil {
			p, err = netip.PrefixFrom(a, a.BitLen()), nil
		}
		if err != nil {
			return nil, fmt.Errorf("network %q: write it as 127.0.0.0/8", part)
		}
		out = append(out, p.Masked())
	}
	return out, nil
}
