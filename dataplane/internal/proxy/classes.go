package proxy

import (
	"strings"

	"bailiwick/dataplane/internal/relay"
)

// class is what becomes of a header by its name, over HTTP/1.1. The lists are those of canonical.go: one place says what is
// not forwarded.
type class uint8

const (
	passes     class = iota
	stays            // it belongs to one connection, or is the edges' own word
	claimed          // of a request: a claim that nobody behind this edge may believe a client
	credential       // Authorization
	via              // Via: it is added to
	dated            // Date
	hidden           // of an upstream's answer: Alt-Svc would lead clients past the edge
	limited          // RateLimit and RateLimit-Policy: the plan's replace an upstream's
)

// classes is a table by the hash of a name: names that are looked for and not found cost a few operations.
var classes [1024]struct {
	name string // in lower case
	is   class
}

func init() {
	put := func(name string, is class) {
		name = strings.ToLower(name)
		for i := nameHash(name); ; i = (i + 1) % uint32(len(classes)) {
			if e := &classes[i]; e.name == "" || e.name == name {
				e.name, e.is = name, is
				return
			}
		}
	}
	for name := range claims {
		put(name, claimed)
	}
	for name := range hop {
		put(name, stays)
	}
	put("Authorization", credential)
	put("Via", via)
	put("Date", dated)
	put("Alt-Svc", hidden)
	put("RateLimit", limited)
	put("RateLimit-Policy", limited)
}

func nameHash(name string) uint32 {
	h := uint32(len(name))
	for i := range len(name) {
		h = h*31 + uint32(name[i]|0x20)
	}
	return (h ^ h>>10) % uint32(len(classes))
}

func classOf(name string) class {
	for i := nameHash(name); classes[i].name != ""; i = (i + 1) % uint32(len(classes)) {
		if e := &classes[i]; e.name == name || len(e.name) == len(name) && strings.EqualFold(e.name, name) {
			return e.is
		}
	}
	switch {
	case len(name) >= len(relay.Prefix) && strings.EqualFold(name[:len(relay.Prefix)], relay.Prefix):
		return stays
	case claimant(name):
		return claimed
	}
	return passes
}
