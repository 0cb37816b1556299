// Package http1 owns how HTTP/1.1 is read: heads of requests and answers, and the framing of bodies (RFC 9112), in the one
// way that no two parsers can differ about.
//
// It never repairs: what is not exactly as the RFC has it is an error, and the connection ends. It never writes, dials or
// waits, and knows nothing of routes, keys or regions. Nothing of it survives a crash. What it returns points into the
// caller's bytes and is good as long as those are; one Request or Answer is one goroutine's at a time.
package http1

import (
	"errors"
	"strings"
)

// Limits of a head. A caller bounds its bytes.
const (
	MaxFields = 256 // fields of one head, and of one trailer
	maxDigits = 18  // of a length
)

// Errors say what is wrong in words that may go to a client.
var (
	ErrLine     = errors.New("a line does not end with CR LF, or a control byte is in it")
	ErrRequest  = errors.New("the request line is malformed")
	ErrVersion  = errors.New("the version is neither HTTP/1.0 nor HTTP/1.1")
	ErrStatus   = errors.New("the status line is malformed")
	ErrField    = errors.New("a header field is malformed")
	ErrFields   = errors.New("there are too many header fields")
	ErrHost     = errors.New("there is not exactly one Host, or it is not the target's")
	ErrFraming  = errors.New("the length of the body could be read in two ways")
	ErrCoding   = errors.New("the transfer coding is not chunked")
	ErrChunk    = errors.New("a chunk is malformed")
	ErrTooLarge = errors.New("the head is too large")
)

// Kind tells fields apart that the framing or the connection rests on.
type Kind uint8

const (
	Other Kind = iota
	Host
	ContentLength
	TransferEncoding
	Connection
	Upgrade
	Expect
)

// Field is one line of a head: the name as spelt, the value without the white space around it.
type Field struct {
	Name, Value string
	Kind        Kind
}

// Lengths of bodies that are no number.
const (
	Chunked    = -1
	UntilClose = -2 // of an answer
)

// Scan looks for the end of a head in b, of which the first seen bytes were looked at before. It gives the number of bytes
// of the head with its blank line, 0 if that has not come yet. A line that ends otherwise is an error at once: nobody should
// wait for the rest of what will be refused.
func Scan(b []byte, seen int) (end int, err error) {
	for i := seen; i < len(b); i++ {
		n := indexByte(b[i:], '\n')
		if n < 0 {
			return 0, nil
		}
		i += n
		if i == 0 || b[i-1] != '\r' {
			return 0, ErrLine
		}
		if i == 1 {
			return 0, ErrLine // no head begins with a blank line here
		}
		if b[i-2] == '\n' {
			return i + 1, nil
		}
	}
	return 0, nil
}

// Bytes of names, of those that are neither letters, digits nor dashes, and of values.
var token, odd, text [256]bool

func init() {
	for c := '0'; c <= '9'; c++ {
		token[c] = true
	}
	for c := 'a'; c <= 'z'; c++ {
		token[c], token[c-'a'+'A'] = true, true
	}
	for _, c := range "!#$%&'*+-.^_`|~" {
		token[c], odd[c] = true, c != '-'
	}
	for c := range text {
		text[c] = c == '\t' || c >= 0x20 && c != 0x7f
	}
}

// Alias says whether a name is another one to many a server: one that hands names on as CGI does writes a '_' for each byte that is neither
// letter nor digit, and reads X.Tenant, X_Tenant and X-Tenant as one.
func Alias(name string) bool {
	for i := range len(name) {
		if odd[name[i]] {
			return true
		}
	}
	return false
}

// Dashed is a name as such a server reads it, in the case that it has. It costs memory only where it is an Alias.
func Dashed(name string) string {
	if !Alias(name) {
		return name
	}
	b := []byte(name)
	for i, c := range b {
		if odd[c] {
			b[i] = '-'
		}
	}
	return string(b)
}

// textOf is how many bytes of a value s begins with. Eight are looked at together: no control character is among them if none is
// below 0x20 or 0x7f (Mycroft's test for a zero byte, of each less that and of each with that taken out).
func textOf(s string) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 {
		w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		d := w ^ 0x7f*ones
		if ((w-0x20*ones)&^w|(d-ones)&^d)&tops != 0 {
			break
		}
	}
	for i < len(s) && text[s[i]] {
		i++
	}
	return i
}

// fields reads the lines of a head behind its first: s ends with the blank line.
func fields(s string, into []Field) ([]Field, error) {
	for {
		if len(s) < 2 {
			return into, ErrLine
		}
		if s[0] == '\r' && s[1] == '\n' {
			if len(s) != 2 {
				return into, ErrLine
			}
			return into, nil
		}
		i := 0
		for i < len(s) && token[s[i]] {
			i++
		}
		// A name that is empty, folded lines, and white space before the colon end here too.
		if i == 0 || i >= len(s) || s[i] != ':' {
			return into, ErrField
		}
		name := s[:i]
		s = s[i+1:]
		for len(s) > 0 && (s[0] == ' ' || s[0] == '\t') {
			s = s[1:]
		}
		i = textOf(s)
		if i+1 >= len(s) || s[i] != '\r' || s[i+1] != '\n' {
			return into, ErrLine
		}
		value := s[:i]
		for len(value) > 0 && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
			value = value[:len(value)-1]
		}
		s = s[i+2:]
		if len(into) == MaxFields {
			return into, ErrFields
		}
		into = append(into, Field{name, value, kindOf(name)})
	}
}

// is says whether a name is one of ours, however its letters are written; most are written as ours.
func is(name, ours string) bool { return name == ours || strings.EqualFold(name, ours) }

func kindOf(name string) Kind {
	switch len(name) {
	case 4:
		if is(name, "Host") {
			return Host
		}
	case 6:
		if is(name, "Expect") {
			return Expect
		}
	case 7:
		if is(name, "Upgrade") {
			return Upgrade
		}
	case 10:
		if is(name, "Connection") {
			return Connection
		}
	case 14:
		if is(name, "Content-Length") {
			return ContentLength
		}
	case 17:
		if is(name, "Transfer-Encoding") {
			return TransferEncoding
		}
	}
	return Other
}

// framing is what the fields say of the body: a length, Chunked, or UntilClose where they say nothing.
func framing(all []Field, minor int) (length int64, err error) {
	length = UntilClose
	coded := false
	for i := range all {
		switch f := &all[i]; f.Kind {
		case ContentLength:
			if length != UntilClose { // two that agree, too: somebody may add them up or take another
				return 0, ErrFraming
			}
			if length, err = number(f.Value); err != nil {
				return 0, err
			}
		case TransferEncoding:
			if coded || minor == 0 {
				return 0, ErrFraming
			}
			if !strings.EqualFold(f.Value, "chunked") {
				return 0, ErrCoding
			}
			coded = true
		}
	}
	if coded {
		if length != UntilClose {
			return 0, ErrFraming
		}
		return Chunked, nil
	}
	return length, nil
}

func number(s string) (n int64, err error) {
	if s == "" || len(s) > maxDigits {
		return 0, ErrFraming
	}
	for i := range len(s) {
		c := s[i] - '0'
		if c > 9 {
			return 0, ErrFraming
		}
		n = n*10 + int64(c)
	}
	return n, nil
}

// option says whether a list of the kind of Connection has a member.
func option(list, member string) bool {
	for list != "" {
		var item string
		item, list, _ = strings.Cut(list, ",")
		if strings.EqualFold(strings.Trim(item, " \t"), member) {
			return true
		}
	}
	return false
}

// Number reads a length: digits and nothing else.
func Number(s string) (n int64, ok bool) {
	n, err := number(s)
	return n, err == nil
}
