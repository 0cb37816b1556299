package trace

import (
	"encoding/hex"
	"strings"
)

// Context is what a caller says of the trace that its request belongs to (W3C Trace Context). The zero Context is none.
type Context struct {
	trace  [16]byte
	parent [8]byte
	flags  byte
	state  string // tracestate: the callers' own words, passed on in the zone and never looked into
}

const (
	flagSampled = 1
	flagRandom  = 2 // the trace's id is random: true of whoever passes it on

	parentLen  = 55
	stateMost  = 512 // bytes of tracestate that are passed on
	membersMax = 32
)

// Given says whether a caller gave one.
func (c *Context) Given() bool { return c.trace != [16]byte{} }

func (c *Context) sampled() bool { return c.flags&flagSampled != 0 }

// ReadParent reads traceparent. false: it is malformed, and the request has no context.
func ReadParent(text string) (c Context, ok bool) {
	if len(text) < parentLen || text[2] != '-' || text[35] != '-' || text[52] != '-' {
		return Context{}, false
	}
	var version, flags [1]byte
	if !unhex(version[:], text[:2]) || !unhex(c.trace[:], text[3:35]) || !unhex(c.parent[:], text[36:52]) || !unhex(flags[:], text[53:55]) {
		return Context{}, false
	}
	switch {
	case version[0] == 0xff, version[0] == 0 && len(text) != parentLen, len(text) > parentLen && text[parentLen] != '-',
		c.trace == [16]byte{}, c.parent == [8]byte{}:
		return Context{}, false
	}
	c.flags = flags[0] & (flagSampled | flagRandom)
	return c, true
}

// unhex takes lower case only, as the recommendation does.
func unhex(dst []byte, text string) bool {
	for i := range dst {
		hi, lo := nibble(text[2*i]), nibble(text[2*i+1])
		if hi > 15 || lo > 15 {
			return false
		}
		dst[i] = hi<<4 | lo
	}
	return true
}

func nibble(c byte) byte {
	switch {
	case c >= '0' && c <= '9':
		return c - '0'
	case c >= 'a' && c <= 'f':
		return c - 'a' + 10
	}
	return 0xff
}

// ReadState is what of tracestate's values may be passed on: all of it, its first members if it is long, "" if it is malformed.
func ReadState(values []string) string {
	var out strings.Builder
	seen := map[string]bool{}
	for _, v := range values {
		for member := range strings.SplitSeq(v, ",") {
			if member = strings.Trim(member, " \t"); member == "" {
				continue
			}
			key, value, ok := strings.Cut(member, "=")
			if !ok || !isKey(key) || !isValue(value) || seen[key] || len(seen) == membersMax {
				return ""
			}
			seen[key] = true
			if n := out.Len(); n > 0 && n+1+len(member) <= stateMost {
				out.WriteByte(',')
				out.WriteString(member)
			} else if n == 0 && len(member) <= stateMost {
				out.WriteString(member)
			}
		}
	}
	return out.String()
}

func isKey(k string) bool {
	if k == "" || len(k) > 256 {
		return false
	}
	for i := range len(k) {
		switch c := k[i]; {
		case c >= 'a' && c <= 'z', c >= '0' && c <= '9':
		case i > 0 && (c == '_' || c == '-' || c == '*' || c == '/' || c == '@'):
		default:
			return false
		}
	}
	return true
}

func isValue(v string) bool {
	if v == "" || len(v) > 256 {
		return false
	}
	for i := range len(v) {
		if c := v[i]; c < 0x20 || c > 0x7e || c == ',' || c == '=' {
			return false
		}
	}
	return true // spaces at its ends were cut off
}

// child is traceparent of a span in the same trace.
func (c *Context) child(id [8]byte) string {
	b := make([]byte, 0, parentLen)
	b = append(b, "00-"...)
	b = hex.AppendEncode(b, c.trace[:])
	b = append(b, '-')
	b = hex.AppendEncode(b, id[:])
	b = append(b, '-')
	return string(hex.AppendEncode(b, []byte{c.flags}))
}
