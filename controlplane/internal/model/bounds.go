package model

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
)

const scopeForm = "is not 1 to 63 of a-z, A-Z, 0-9 and .:_/-"

// ValidScope says whether s may be a scope. There is no space, comma, quote or backslash in one: scopes stand side by side
// in what edges hold, and in tokens (RFC 6749 §3.3).
func ValidScope(s string) bool {
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9') && strings.IndexByte(".:_/-", c) < 0 {
			return false
		}
	}
	return len(s) > 0 && len(s) <= 63
}

// Bound puts the bounds of a key in their one form: scopes and blocks sorted, each once, an address as the block of it alone.
func (k Key) Bound(scopes, from []string) (Key, error) {
	k.Scopes, k.AllowFrom = nil, nil
	if len(scopes) > MaxScopes || len(from) > MaxAllowFrom {
		return k, bad("scopes", "KEY_BOUNDS_INVALID", "a key has %d scopes and %d networks; at most %d and %d", len(scopes), len(from), MaxScopes, MaxAllowFrom)
	}
	for i, s := range scopes {
		if !ValidScope(s) {
			return k, bad(fmt.Sprintf("scopes[%d]", i), "SCOPE_INVALID", "scope %q %s", s, scopeForm)
		}
		k.Scopes = append(k.Scopes, s)
	}
	for i, text := range from {
		block, err := ParseBlock(text)
		if err != nil {
			return k, bad(fmt.Sprintf("allow_from[%d]", i), "SUBNET_INVALID", "%w", err)
		}
		k.AllowFrom = append(k.AllowFrom, block.String())
	}
	slices.Sort(k.Scopes)
	slices.Sort(k.AllowFrom)
	k.Scopes, k.AllowFrom = slices.Compact(k.Scopes), slices.Compact(k.AllowFrom)
	return k, nil
}

// ParseBlock reads a CIDR block, or an address as the block of it alone. Bits beyond the block's length are refused: whoever
// wrote them meant something else. IPv4 in IPv6 clothes is told by its own name.
func ParseBlock(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		a, aerr := netip.ParseAddr(s)
		if aerr != nil || a.Zone() != "" {
			return p, fmt.Errorf("%q is neither an address nor a CIDR block such as 192.0.2.0/24 or 2001:db8::/32", s)
		}
		a = a.Unmap()
		return netip.PrefixFrom(a, a.BitLen()), nil
	}
	switch {
	case p.Addr().Is4In6():
		return p, fmt.Errorf("%q is IPv4 written as IPv6: write it as IPv4", s)
	case p.Masked() != p:
		return p, fmt.Errorf("%q has bits beyond its length: write %s", s, p.Masked())
	}
	return p, nil
}
