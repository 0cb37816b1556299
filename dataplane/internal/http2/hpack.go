package http2

import (
	"errors"

	"bailiwick/dataplane/internal/head"
)

// pair is a field of a table.
type pair struct{ name, value string }

// The static table (RFC 7541, appendix A), from 1.
var static = [...]pair{{},
	{":authority", ""}, {":method", "GET"}, {":method", "POST"}, {":path", "/"}, {":path", "/index.html"}, {":scheme", "http"},
	{":scheme", "https"}, {":status", "200"}, {":status", "204"}, {":status", "206"}, {":status", "304"}, {":status", "400"},
	{":status", "404"}, {":status", "500"}, {"accept-charset", ""}, {"accept-encoding", "gzip, deflate"}, {"accept-language", ""},
	{"accept-ranges", ""}, {"accept", ""}, {"access-control-allow-origin", ""}, {"age", ""}, {"allow", ""}, {"authorization", ""},
	{"cache-control", ""}, {"content-disposition", ""}, {"content-encoding", ""}, {"content-language", ""}, {"content-length", ""},
	{"content-location", ""}, {"content-range", ""}, {"content-type", ""}, {"cookie", ""}, {"date", ""}, {"etag", ""}, {"expect", ""},
	{"expires", ""}, {"from", ""}, {"host", ""}, {"if-match", ""}, {"if-modified-since", ""}, {"if-none-match", ""}, {"if-range", ""},
	{"if-unmodified-since", ""}, {"last-modified", ""}, {"link", ""}, {"location", ""}, {"max-forwards", ""},
	{"proxy-authenticate", ""}, {"proxy-authorization", ""}, {"range", ""}, {"referer", ""}, {"refresh", ""}, {"retry-after", ""},
	{"server", ""}, {"set-cookie", ""}, {"strict-transport-security", ""}, {"transfer-encoding", ""}, {"user-agent", ""}, {"vary", ""},
	{"via", ""}, {"www-authenticate", ""},
}

// Limits of header compression.
const (
	tableSize = 4096 // bytes of the dynamic table of requests, as RFC 7541 counts them: what is agreed on where nobody says more
	tableMost = tableSize / head.FieldExtra
)

var errCompression = errors.New("a header block cannot be decompressed")

// dynamic is the table of what a client has sent. The bytes of its entries lie one behind the other in data.
type dynamic struct {
	data    []byte
	entries [tableMost]entry // a ring
	first   int              // the oldest
	n       int
	size    int // as RFC 7541 counts it
	most    int // what the client has last set
}

type entry struct{ at, name, value uint16 } // two tables' bytes at most

// at is the i-th entry, 0 the newest. The text is good until the next is added.
func (d *dynamic) at(i int) (p pair, ok bool) {
	if i < 0 || i >= d.n {
		return p, false
	}
	e := &d.entries[(d.first+d.n-1-i)%tableMost]
	at, mid := int(e.at), int(e.at)+int(e.name)
	return pair{view(d.data[at:mid]), view(d.data[mid : mid+int(e.value)])}, true
}

func (d *dynamic) evict(room int) {
	for d.n > 0 && d.size > room {
		e := &d.entries[d.first]
		d.size -= int(e.name) + int(e.value) + head.FieldExtra
		d.first = (d.first + 1) % tableMost
		d.n--
	}
}

// add puts an entry in, which must not point into the table.
func (d *dynamic) add(name, value string) {
	need := len(name) + len(value) + head.FieldExtra
	if need > d.most { // it empties the table and is not in it
		d.evict(0)
		return
	}
	d.evict(d.most - need)
	if len(d.data)+len(name)+len(value) > cap(d.data) { // what is in use moves to the front, of a larger one perhaps
		live := len(d.data)
		if d.n > 0 {
			live = int(d.entries[d.first].at)
		}
		used := len(d.data) - live
		into := d.data[:0]
		if want := used + len(name) + len(value); 2*want > cap(d.data) { // else the next would move it again
			into = make([]byte, 0, min(max(2*want, 512), 2*tableSize))
		}
		into = append(into, d.data[live:]...)
		d.data = into
		for i := range d.n {
			d.entries[(d.first+i)%tableMost].at -= uint16(live)
		}
	}
	at := len(d.data)
	d.data = append(append(d.data, name...), value...)
	d.entries[(d.first+d.n)%tableMost] = entry{uint16(at), uint16(len(name)), uint16(len(value))}
	d.n++
	d.size += need
}

// decode reads a whole header block. The table is right afterwards also where the fields were too many: the next block rests
// on it.
func (d *dynamic) decode(b []byte, h *head.Block) error {
	first := true
	for len(b) > 0 {
		c := b[0]
		var ok bool
		var n int
		switch {
		case c&0x80 != 0: // indexed
			if n, b, ok = head.Integer(b, 7); !ok || n == 0 {
				return errCompression
			}
			var p pair
			if n < len(static) {
				p = static[n]
				h.Add(p.name, p.value)
			} else if p, ok = d.at(n - len(static)); ok {
				if h.TooBig {
					break
				}
				at := len(h.Text) // the table may lose it before the request is done with
				h.Text = append(append(h.Text, p.name...), p.value...)
				h.Add(view(h.Text[at:at+len(p.name)]), view(h.Text[at+len(p.name):]))
			} else {
				return errCompression
			}
		case c&0xe0 == 0x20: // a new size of the table: at the beginning alone
			if n, b, ok = head.Integer(b, 5); !ok || n > tableSize || !first {
				return errCompression
			}
			d.most = n
			d.evict(n)
			continue
		default:
			bits, indexed := uint(4), c&0xc0 == 0x40
			if indexed {
				bits = 6
			}
			if n, b, ok = head.Integer(b, bits); !ok {
				return errCompression
			}
			kept := len(h.Text)
			var name, value string
			switch {
			case n == 0:
				if name, b, ok = h.Literal(b, 7); !ok {
					return errCompression
				}
			case n < len(static):
				name = static[n].name
			default:
				p, ok := d.at(n - len(static))
				if !ok {
					return errCompression
				}
				h.Text = append(h.Text, p.name...)
				name = view(h.Text[len(h.Text)-len(p.name):])
			}
			if value, b, ok = h.Literal(b, 7); !ok {
				return errCompression
			}
			if indexed {
				d.add(name, value)
			}
			h.Add(name, value)
			if h.TooBig {
				h.Text = h.Text[:kept] // passed over
			}
		}
		first = false
	}
	return nil
}

var indexes = head.NewIndex(func() (names []string) {
	for _, p := range static {
		names = append(names, p.name)
	}
	return names
}())

// AppendStatus begins the header block of an answer.
func AppendStatus(b []byte, status int) []byte {
	switch status {
	case 200:
		return append(b, 0x88)
	case 204:
		return append(b, 0x89)
	case 206:
		return append(b, 0x8a)
	case 304:
		return append(b, 0x8b)
	case 400:
		return append(b, 0x8c)
	case 404:
		return append(b, 0x8d)
	case 500:
		return append(b, 0x8e)
	}
	return append(b, 8, 3, '0'+byte(status/100%10), '0'+byte(status/10%10), '0'+byte(status%10))
}

// AppendName begins a field: an AppendLength, and so many bytes, must follow. No table on the other side is written to, so
// that answers may be made beside one another.
func AppendName(b []byte, name string) []byte {
	if at := indexes.Of(name); at > 0 {
		return head.AppendInteger(b, 0, 4, at)
	}
	return head.AppendLower(head.AppendInteger(append(b, 0), 0, 7, len(name)), name)
}

// AppendLength says how long the value is that follows.
func AppendLength(b []byte, n int) []byte { return head.AppendInteger(b, 0, 7, n) }

// AppendField adds a whole field. The name is written in lower case.
func AppendField(b []byte, name, value string) []byte {
	return append(AppendLength(AppendName(b, name), len(value)), value...)
}
