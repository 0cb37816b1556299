// Package head owns what HTTP/2 and HTTP/3 have in common in how a head is written: literals and the Huffman code of RFC 7541,
// which RFC 9204 takes over, and what of a list of fields is a request (RFC 9113 §8 and RFC 9114 §4, which agree), or malformed.
//
// It has no table that changes and no frames, which the two protocols have of their own, and never decides what becomes of a
// request. Nothing of it survives a crash. A Block is one goroutine's at a time.
package head

import (
	"crypto/tls"
	"net/http"
	"net/textproto"
	"net/url"
	"slices"
	"strings"
	"unsafe"

	"bailiwick/dataplane/internal/http1"
)

// FieldExtra is what each field counts beside its bytes.
const FieldExtra = 32

// Block is a list of fields on its way into a request: its text goes to Text, and fields into Fields until there is too much.
type Block struct {
	Text   []byte
	Fields []http1.Field
	Size   int // as RFC 9113 and RFC 9114 count a list of fields
	Most   int // bytes; beyond it nothing is kept
	TooBig bool
}

// Kept is how much is kept of it at most.
func (h *Block) Kept() int { return min(h.Size, h.Most) }

// Add adds a field.
func (h *Block) Add(name, value string) {
	h.Size += len(name) + len(value) + FieldExtra
	if h.Size > h.Most || len(h.Fields) >= http1.MaxFields+pseudos {
		h.TooBig = true
	}
	if !h.TooBig {
		h.Fields = append(h.Fields, http1.Field{Name: name, Value: value})
	}
}

// Literal reads a text whose length has so many bits of its first byte, with the one that says whether it is coded before them.
func (h *Block) Literal(b []byte, bits uint) (s string, rest []byte, ok bool) {
	if len(b) == 0 {
		return "", b, false
	}
	coded := b[0]>>bits&1 != 0
	n, b, ok := Integer(b, bits)
	if !ok || n > len(b) {
		return "", b, false
	}
	at := len(h.Text)
	if coded {
		if h.Text, ok = Unhuffman(h.Text, b[:n], 2*n); !ok { // no word is shorter than five bits
			return "", b, false
		}
	} else {
		h.Text = append(h.Text, b[:n]...)
	}
	return view(h.Text[at:]), b[n:], true
}

// Integer reads a number whose first byte has bits of it.
func Integer(b []byte, bits uint) (n int, rest []byte, ok bool) {
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

// AppendInteger writes a number whose first byte has bits of it, behind a pattern.
func AppendInteger(b []byte, pattern byte, bits uint, n int) []byte {
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

// AppendLower adds a name in lower case.
func AppendLower(b []byte, name string) []byte {
	for i := range len(name) {
		b = append(b, Lower[name[i]])
	}
	return b
}

// Index finds names of a static table by a hash: those of answers, and what else a field may be called.
type Index [512]struct {
	name string
	at   uint8
}

// NewIndex makes one of a table; the first of a name wins.
func NewIndex(names []string) *Index {
	x := &Index{}
	for at, name := range names {
		for i := hash(name); ; i = (i + 1) % len(x) {
			if e := &x[i]; e.name == "" {
				e.name, e.at = name, uint8(at)
				break
			} else if e.name == name {
				break
			}
		}
	}
	return x
}

func hash(name string) int {
	h := uint32(len(name))
	for i := range len(name) {
		h = h*31 + uint32(name[i]|0x20)
	}
	return int((h ^ h>>9) % uint32(len(Index{})))
}

// Of is where a name is, in whatever case it is spelt; -1: nowhere.
func (x *Index) Of(name string) int {
next:
	for i := hash(name); x[i].name != ""; i = (i + 1) % len(x) {
		e := &x[i]
		if len(e.name) != len(name) {
			continue
		}
		for j := range len(name) {
			if Lower[name[j]] != e.name[j] {
				continue next
			}
		}
		return int(e.at)
	}
	return -1
}

// Request is a request as net/http has it. Its text is its own.
func Request(q *http1.Request, proto string, major int, remote string, state *tls.ConnectionState) (*http.Request, error) {
	r := &http.Request{Method: strings.Clone(q.Method), RequestURI: strings.Clone(q.Target), Proto: proto, ProtoMajor: major, ContentLength: q.Length,
		Host: strings.Clone(q.Authority), RemoteAddr: remote, TLS: state, Header: make(http.Header, len(q.Fields)), Body: http.NoBody}
	for i := range q.Fields {
		f := &q.Fields[i]
		if f.Kind == http1.Host {
			continue
		}
		name := textproto.CanonicalMIMEHeaderKey(strings.Clone(f.Name))
		r.Header[name] = append(r.Header[name], strings.Clone(f.Value))
	}
	var err error
	if q.Path == "" { // of CONNECT, or the asterisk
		r.URL = &url.URL{Path: "*"}
	} else {
		r.URL, err = url.ParseRequestURI(r.RequestURI)
	}
	return r, err
}

// Fields calls add for those of a header that may be in an answer. unsized: not for a length.
func Fields(header http.Header, unsized bool, add func(name, value string)) {
	for name, values := range header {
		switch name {
		case "Connection", "Transfer-Encoding", "Keep-Alive", "Proxy-Connection", "Upgrade":
			continue
		case "Content-Length":
			if unsized {
				continue
			}
		}
		if strings.HasPrefix(name, http.TrailerPrefix) || !IsToken(name) || name == "" {
			continue
		}
		for _, v := range values {
			add(name, clean(v))
		}
	}
}

// Trailers calls add for those that a handler has set by now.
func Trailers(header http.Header, add func(name, value string)) {
	for name, values := range header {
		if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok && IsToken(name) && name != "" {
			for _, v := range values {
				add(name, clean(v))
			}
		}
	}
}

// clean is a value that may stand in a field.
func clean(v string) string {
	if IsText(v) {
		return v
	}
	b := slices.Clone([]byte(v))
	for i, c := range b {
		if !texts[c] {
			b[i] = ' '
		}
	}
	return strings.Trim(string(b), " \t")
}

// view is b as text without a copy, good as long as nobody writes to b.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// Bytes of names, in lower case, and of values.
var named, texts [256]bool

// Lower is what a byte is in lower case.
var Lower [256]byte

func init() {
	for c := range Lower {
		Lower[c] = byte(c)
		if c >= 'A' && c <= 'Z' {
			Lower[c] += 'a' - 'A'
		}
		named[c] = c >= 'a' && c <= 'z' || c >= '0' && c <= '9'
		texts[c] = c == '\t' || c >= 0x20 && c != 0x7f
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		named[c] = true
	}
}
