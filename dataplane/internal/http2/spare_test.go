package http2

import (
	"strings"
	"testing"
)

// A long block that makes no request is not kept for as long as its connection is.
func TestConn_KeepsNoLongBlock(t *testing.T) {
	for _, id := range []uint32{1, 3} { // of a stream that has ended, and one above the last that is served
		c := New(Config{MaxHead: 64 << 10}).NewConn(nil, Peer{}, nil)
		c.last, c.gone = 1, true
		c.ignore(1)
		if code := c.block(id, AppendField(nil, "x", strings.Repeat("a", 32<<10))); code != none {
			t.Fatalf("stream %d: %v", id, code)
		}
		if n := cap(c.spare.Text); n > keptText {
			t.Errorf("stream %d: the connection keeps %d bytes", id, n)
		}
		var many []byte
		for range 1500 {
			many = AppendField(many, "x", "")
		}
		if code := c.block(id, many); code != none || cap(c.spare.Fields) > 1000 {
			t.Errorf("stream %d: %v, and the connection keeps %d fields", id, code, cap(c.spare.Fields))
		}
	}
}
