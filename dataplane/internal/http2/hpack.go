package http2

import (
	"errors"

	"bailiwick/dataplane/internal/http1"
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
	tableSize  = 4096 // bytes of the dynamic table of requests, as RFC 7541 counts them: what is agreed on where nobody says more
	entryExtra = 32   // what each entry counts beside its bytes
	tableMost  = tableSize / entryExtra
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
		d.size -= int(e.name) + int(e.value) + entryExtra
		d.first = (d.first + 1) % tableMost
		d.n--
	}
}

// add puts an entry in, which must not point into the table.
func (d *dynamic) add(name, value string) {
	need := len(name) + len(value) + entryExtra
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

// integer reads a number whose first byte has bits of it.
func integer(b []byte, bits uint) (n int, rest []byte, ok bool) {
	if len(b) == 0 {
		return 0, b, false
	}
	mask := byte(1)<<bits - 1
	n = int(b[0] & mask)
	b = b[1:]
	if n < int(mask) {
		return n, b, true
	}
	for shift := uint(0); shift <= 21; shift += 7 { // 28 bits are more than anything here may have
		if len(b) == 0 {
			return 0, b, false
		}
		c := b[0]
		b = b[1:]
		n += int(c&0x7f) << shift
		if c < 0x80 {
			return n, b, true
		}
	}
	return 0, b, false
}

// block is one header block on its way into a request: its text goes to text, and fields into fields until there is too much.
type block struct {
	text   []byte
	fields []http1.Field
	size   int // as RFC 9113 counts a list of fields
	most   int // bytes; beyond it nothing is kept
	tooBig bool
}

// kept is how much is kept of it at most.
func (h *block) kept() int { return min(h.size, h.most) }

// text reads a string literal. Without keep it is passed over.
func (h *block) literal(b []byte) (s string, rest []byte, ok bool) {
	if len(b) == 0 {
		return "", b, false
	}
	coded := b[0]&0x80 != 0
	n, b, ok := integer(b, 7)
	if !ok || n > len(b) {
		return "", b, false
	}
	at := len(h.text)
	if coded {
		if h.text, ok = unhuffman(h.text, b[:n], 2*n); !ok { // no word is shorter than five bits
			return "", b, false
		}
	} else {
		h.text = append(h.text, b[:n]...)
	}
	return view(h.text[at:]), b[n:], true
}

// decode reads a whole header block. The table is right afterwards also where the fields were too many: the next block rests
// on it.
func (d *dynamic) decode(b []byte, h *block) error {
	first := true
	for len(b) > 0 {
		c := b[0]
		var ok bool
		var n int
		switch {
		case c&0x80 != 0: // indexed
			if n, b, ok = integer(b, 7); !ok || n == 0 {
				return errCompression
			}
			var p pair
			if n < len(static) {
				p = static[n]
				h.field(p.name, p.value)
			} else if p, ok = d.at(n - len(static)); ok {
				if h.tooBig {
					break
				}
				at := len(h.text) // the table may lose it before the request is done with
				h.text = append(append(h.text, p.name...), p.value...)
				h.field(view(h.text[at:at+len(p.name)]), view(h.text[at+len(p.name):]))
			} else {
				return errCompression
			}
		case c&0xe0 == 0x20: // a new size of the table: at the beginning alone
			if n, b, ok = integer(b, 5); !ok || n > tableSize || !first {
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
			if n, b, ok = integer(b, bits); !ok {
				return errCompression
			}
			kept := len(h.text)
			var name, value string
			switch {
			case n == 0:
				if name, b, ok = h.literal(b); !ok {
					return errCompression
				}
			case n < len(static):
				name = static[n].name
			default:
				p, ok := d.at(n - len(static))
				if !ok {
					return errCompression
				}
				h.text = append(h.text, p.name...)
				name = view(h.text[len(h.text)-len(p.name):])
			}
			if value, b, ok = h.literal(b); !ok {
				return errCompression
			}
			if indexed {
				d.add(name, value)
			}
			h.field(name, value)
			if h.tooBig {
				h.text = h.text[:kept] // passed over
			}
		}
		first = false
	}
	return nil
}

// field adds one.
func (h *block) field(name, value string) {
	h.size += len(name) + len(value) + entryExtra
	if h.size > h.most || len(h.fields) >= http1.MaxFields+pseudos {
		h.tooBig = true
	}
	if !h.tooBig {
		h.fields = append(h.fields, http1.Field{Name: name, Value: value})
	}
}

// indexes has the static table's names by a hash: those of answers, and what else a field may be called.
var indexes [512]struct {
	name string
	at   uint8
}

func init() {
	for at := len(static) - 1; at > 0; at-- { // the first of a name wins
		name := static[at].name
		for i := hash(name); ; i = (i + 1) % len(indexes) {
			if e := &indexes[i]; e.name == "" || e.name == name {
				e.name, e.at = name, uint8(at)
				break
			}
		}
	}
}

func hash(name string) int {
	h := uint32(len(name))
	for i := range len(name) {
		h = h*31 + uint32(name[i]|0x20)
	}
	return int((h ^ h>>9) % uint32(len(indexes)))
}

// indexOf is where a name is in the static table, in whatever case it is spelt; 0: nowhere.
func indexOf(name string) uint8 {
next:
	for i := hash(name); indexes[i].name != ""; i = (i + 1) % len(indexes) {
		e := &indexes[i]
		if len(e.name) != len(name) {
			continue
		}
		for j := range len(name) {
			if lower[name[j]] != e.name[j] {
				continue next
			}
		}
		return e.at
	}
	return 0
}

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
	if at := indexOf(name); at > 0 {
		return appendInteger(b, 0, 4, int(at))
	}
	b = appendInteger(append(b, 0), 0, 7, len(name))
	for i := range len(name) {
		b = append(b, lower[name[i]])
	}
	return b
}

// AppendLength says how long the value is that follows.
func AppendLength(b []byte, n int) []byte { return appendInteger(b, 0, 7, n) }

// AppendField adds a whole field. The name is written in lower case.
func AppendField(b []byte, name, value string) []byte {
	return append(AppendLength(AppendName(b, name), len(value)), value...)
}

func appendInteger(b []byte, pattern byte, bits uint, n int) []byte {
	mask := 1<<bits - 1
	if n < mask {
		return append(b, pattern|byte(n))
	}
	b = append(b, pattern|byte(mask))
	for n -= mask; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}
