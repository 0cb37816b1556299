package cache

import (
	"math"
	"net/http"
	"strings"
	"time"
)

// directives are those of Cache-Control that matter here (RFC 9111, 5.2; RFC 5861).
type directives struct {
	noStore, noCache, private, public, mustRevalidate, mustUnderstand, onlyIfCached bool

	maxAge, sMaxAge, minFresh, maxStale, whileRevalidate, ifError time.Duration // -1: not there
}

// parse reads all Cache-Control fields. What cannot be read counts as the stricter: an age as 0. Of an age that is there
// twice the smaller counts, and what is no list of directives may hold a no-store that cannot be told.
func parse(values []string) directives {
	d := directives{maxAge: -1, sMaxAge: -1, minFresh: -1, maxStale: -1, whileRevalidate: -1, ifError: -1}
	for _, v := range values {
		for len(v) > 0 {
			var name, arg string
			name, arg, v = next(v)
			switch strings.ToLower(name) {
			case "no-store":
				d.noStore = true
			case "no-cache": // also with fields: then it is the whole answer that is validated
				d.noCache = true
			case "private": // likewise
				d.private = true
			case "public":
				d.public = true
			case "must-revalidate", "proxy-revalidate":
				d.mustRevalidate = true
			case "must-understand":
				d.mustUnderstand = true
			case "only-if-cached":
				d.onlyIfCached = true
			case "max-age":
				least(&d.maxAge, seconds(arg))
			case "s-maxage":
				least(&d.sMaxAge, seconds(arg))
			case "min-fresh":
				d.minFresh = max(d.minFresh, seconds(arg))
			case "max-stale":
				if arg == "" {
					arg = "2147483648"
				}
				least(&d.maxStale, seconds(arg))
			case "stale-while-revalidate":
				least(&d.whileRevalidate, seconds(arg))
			case "stale-if-error":
				least(&d.ifError, seconds(arg))
			default:
				d.noStore = d.noStore || strings.ContainsFunc(name, noToken)
			}
		}
	}
	return d
}

// noToken says whether no name has this in it (RFC 9110, 5.6.2).
func noToken(c rune) bool {
	return c <= ' ' || c >= 0x7f || strings.ContainsRune(`()/:;<=>?@[\]{}"`, c)
}

func least(d *time.Duration, v time.Duration) {
	if *d < 0 || v < *d {
		*d = v
	}
}

// next cuts one directive off a list: a name, and an argument as token or quoted string.
func next(s string) (name, arg, rest string) {
	s = strings.TrimLeft(s, " \t,")
	i := strings.IndexAny(s, "=,")
	if i < 0 {
		return strings.TrimRight(s, " \t"), "", ""
	}
	name = strings.TrimRight(s[:i], " \t")
	if s[i] == ',' {
		return name, "", s[i+1:]
	}
	if name == "" {
		return "no-store", "", "" // no list of directives, and what is a quote in it cannot be told
	}
	s = strings.TrimLeft(s[i+1:], " \t")
	if s == "" || s[0] != '"' {
		arg, rest, _ = strings.Cut(s, ",")
		return name, strings.TrimRight(arg, " \t"), rest
	}
	var b strings.Builder
	for i = 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			if i++; i < len(s) {
				b.WriteByte(s[i])
			}
			continue
		case '"':
			_, rest, _ = strings.Cut(s[i+1:], ",")
			return name, b.String(), rest
		}
		b.WriteByte(s[i])
	}
	return "no-store", "", "" // the quote never ends: nothing behind it can be told from what is in it
}

// seconds is a delta-seconds; 0 if it is none, and 2^31 where it is more.
func seconds(s string) time.Duration {
	if s == "" {
		return 0
	}
	n := int64(0)
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return 0
		}
		if n = n*10 + int64(s[i]-'0'); n > math.MaxInt32 {
			n = 1 << 31
		}
	}
	return time.Duration(n) * time.Second
}

// date is an HTTP date; false if it is none, or there are two.
func date(values []string) (time.Time, bool) {
	if len(values) != 1 {
		return time.Time{}, false
	}
	t, err := http.ParseTime(values[0])
	return t, err == nil
}
