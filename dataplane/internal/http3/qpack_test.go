package http3

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/quic-go/qpack"

	"bailiwick/dataplane/internal/head"
	"bailiwick/dataplane/internal/http1"
)

func list(fields []http1.Field) string {
	var b strings.Builder
	for _, f := range fields {
		fmt.Fprintf(&b, "%s: %s\n", f.Name, f.Value)
	}
	return b.String()
}

// theirs is how quic-go's decoder reads a field section.
func theirs(b []byte) (string, error) {
	var out strings.Builder
	next := qpack.NewDecoder().Decode(b)
	for {
		f, err := next()
		if err != nil {
			if err.Error() == "EOF" {
				return out.String(), nil
			}
			return "", err
		}
		fmt.Fprintf(&out, "%s: %s\n", f.Name, f.Value)
	}
}

// Whatever quic-go's encoder makes of random fields is read back, and what this package makes quic-go's decoder reads.
func TestDecode_ReadsWhatOthersWrite(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 2000 {
		var out bytes.Buffer
		enc := qpack.NewEncoder(&out)
		mine := []byte{0, 0}
		want := ""
		for range r.IntN(12) {
			name, value := fmt.Sprint("x-", r.IntN(9)), strings.Repeat(string(rune(r.IntN(256))), r.IntN(60))
			if r.IntN(3) == 0 {
				at := static[r.IntN(len(static))]
				if name = at.name; r.IntN(2) == 0 {
					value = at.value
				}
			}
			if r.IntN(30) == 0 {
				value = strings.Repeat("y", r.IntN(5000))
			}
			enc.WriteField(qpack.HeaderField{Name: name, Value: value})
			mine = AppendField(mine, name, value)
			want += name + ": " + value + "\n"
		}
		for who, b := range map[string][]byte{"theirs": out.Bytes(), "ours": mine} {
			if len(b) == 0 { // their encoder writes no prefix where there are no fields
				continue
			}
			h := head.Block{Most: 1 << 20}
			if err := decode(b, &h); err != nil {
				t.Fatalf("round %d, %s: %v of %x", round, who, err, b)
			}
			if got := list(h.Fields); got != want {
				t.Fatalf("round %d, %s: got\n%s\nwant\n%s", round, who, got, want)
			}
			if got, err := theirs(b); err != nil || got != want {
				t.Fatalf("round %d, %s: they read\n%s (%v), want\n%s", round, who, got, err, want)
			}
		}
	}
}

// Each status is what others read.
func TestStatus_IsWhatOthersRead(t *testing.T) {
	for status := 100; status < 600; status++ {
		if got, err := theirs(AppendStatus(nil, status)); err != nil || got != fmt.Sprintf(":status: %d\n", status) {
			t.Errorf("%d: they read %q, %v", status, got, err)
		}
	}
}

// What refers to a table that this side has no room for, or is cut off, is no field section.
func TestDecode_Refuses(t *testing.T) {
	for name, b := range map[string][]byte{
		"nothing":                    {},
		"half a prefix":              {0},
		"insertions that it needs":   {1, 0, 0xd1},
		"a base below zero":          {0, 0x80, 0xd1},
		"a field of a dynamic table": {0, 0, 0x80},
		"behind the base":            {0, 0, 0x10},
		"a name of a dynamic table":  {0, 0, 0x40, 1, 'x'},
		"a name behind the base":     {0, 0, 0x00, 1, 'x'},
		"beyond the static table":    {0, 0, 0xff, 99 - 63},
		"a name beyond it":           {0, 0, 0x5f, 99 - 15, 0},
		"a name that is cut off":     {0, 0, 0x23, 'a', 'b'},
		"no value":                   {0, 0, 0x21, 'a'},
		"a value that is cut off":    {0, 0, 0x21, 'a', 5, 'b'},
		"a number without an end":    {0, 0, 0xff, 0x80},
		"a number too large":         {0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f},
		"bad Huffman code":           {0, 0, 0x21, 'a', 0x84, 0xff, 0xff, 0xff, 0xff},
	} {
		if err := decode(b, &head.Block{Most: 1 << 20}); err == nil {
			t.Errorf("%s: %x is taken", name, b)
		}
	}
}

// A few bytes that are many fields keep no more than the limit.
func TestDecode_Bombs(t *testing.T) {
	b := append([]byte{0, 0}, bytes.Repeat([]byte{0xff, 20}, 30_000)...)
	h := head.Block{Most: 64 << 10}
	if err := decode(b, &h); err != nil {
		t.Fatal(err)
	}
	if !h.TooBig || len(h.Fields) > http1.MaxFields+4 || len(h.Text) > 64<<10 {
		t.Errorf("too big %v, %d fields, %d bytes of text", h.TooBig, len(h.Fields), len(h.Text))
	}
	if n := testing.AllocsPerRun(20, func() {
		h = head.Block{Most: 64 << 10, Text: h.Text[:0], Fields: h.Fields[:0]}
		decode(b, &h)
	}); n > 0 {
		t.Errorf("%v allocations", n)
	}
}

func FuzzDecode(f *testing.F) {
	var out bytes.Buffer
	enc := qpack.NewEncoder(&out)
	for _, at := range [][2]string{{":method", "GET"}, {":scheme", "https"}, {":authority", "orders.test"}, {":path", "/v1/x"}, {"x-api-key", "k"}, {"content-length", "3"}} {
		enc.WriteField(qpack.HeaderField{Name: at[0], Value: at[1]})
	}
	f.Add(out.Bytes())
	f.Add(AppendField(AppendStatus(nil, 418), "date", "now"))
	f.Add([]byte{0, 0, 0x80})
	f.Add([]byte{0, 0, 0xff, 20, 0x5f, 9, 3, '2', '0', '0'})
	f.Fuzz(func(t *testing.T, b []byte) {
		h := head.Block{Most: 64 << 10}
		err := decode(b, &h)
		if len(h.Fields) > http1.MaxFields+4 || len(h.Text) > 4*len(b)+64<<10 {
			t.Fatalf("%d fields and %d bytes of %d", len(h.Fields), len(h.Text), len(b))
		}
		want, theirErr := theirs(b)
		if err == nil && !h.TooBig && theirErr == nil && list(h.Fields) != want {
			t.Fatalf("%x: got\n%s\nthey\n%s", b, list(h.Fields), want)
		}
		if err == nil && theirErr != nil && b[1] == 0 { // they take no base but 0; the RFC takes any
			t.Fatalf("%x is taken, and refused by them: %v", b, theirErr)
		}
		var r http1.Request
		if err == nil && !h.TooBig {
			h.Parse(&r, len(b)%2 == 0)
		}
	})
}
