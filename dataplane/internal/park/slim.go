package park

import (
	"bytes"
	"crypto/tls"
	"reflect"
	"unsafe"
)

// buffers are where a tls.Conn has bytes that came and were not taken yet. It keeps what its client's first message took, 2 to 5
// KiB, for as long as it lives, which is most of what an idle connection holds.
var buffers = offsets("rawInput", "hand")

// offsets finds fields of a tls.Conn that are a bytes.Buffer. One that is not, in some later version of Go, is let be.
func offsets(names ...string) (at []uintptr) {
	for _, name := range names {
		if f, ok := reflect.TypeFor[tls.Conn]().FieldByName(name); ok && f.Type == reflect.TypeFor[bytes.Buffer]() {
			at = append(at, f.Offset)
		}
	}
	return at
}

// Pending says whether bytes have come on a TLS connection that are in no record which was read: true, too, where that cannot be
// known. Nobody may be reading.
func Pending(c *tls.Conn) bool {
	for _, at := range buffers {
		if (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(c), at)).Len() > 0 {
			return true
		}
	}
	return len(buffers) < 2
}

// Slim gives back what memory a TLS connection keeps for reading, if nothing is in it. Nobody may be reading.
func Slim(c *tls.Conn) {
	for _, at := range buffers {
		if b := (*bytes.Buffer)(unsafe.Add(unsafe.Pointer(c), at)); b.Len() == 0 {
			*b = bytes.Buffer{}
		}
	}
}
