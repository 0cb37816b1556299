package http2

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"golang.org/x/net/http2/hpack"

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

// Whatever x/net's encoder makes of random fields, block behind block on one table whose size changes, is read back.
func TestDecode_ReadsWhatOthersWrite(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for round := range 60 {
		var out bytes.Buffer
		enc := hpack.NewEncoder(&out)
		d := dynamic{most: tableSize}
		var h head.Block
		for range 40 {
			out.Reset()
			if r.IntN(8) == 0 {
				enc.SetMaxDynamicTableSize(uint32(r.IntN(tableSize + 1)))
			}
			want := ""
			for range r.IntN(12) {
				f := hpack.HeaderField{Name: fmt.Sprint("x-", r.IntN(9)), Value: strings.Repeat(string(rune(r.IntN(256))), r.IntN(60)), Sensitive: r.IntN(9) == 0}
				if r.IntN(3) == 0 {
					f.Name = static[1+r.IntN(61)].name
				}
				if r.IntN(30) == 0 {
					f.Value = strings.Repeat("y", r.IntN(5000))
				}
				enc.WriteField(f)
				want += f.Name + ": " + f.Value + "\n"
			}
			h = head.Block{Text: h.Text[:0], Fields: h.Fields[:0], Most: 1 << 20}
			if err := d.decode(out.Bytes(), &h); err != nil {
				t.Fatalf("round %d: %v of %x", round, err, out.Bytes())
			}
			if got := list(h.Fields); got != want {
				t.Fatalf("round %d: got\n%s\nwant\n%s", round, got, want)
			}
		}
	}
}

func TestHuffman_EveryByte(t *testing.T) {
	for i := range 256 {
		for j := range 256 {
			s := string([]byte{byte(i), byte(j), byte(i)})
			got, ok := head.Unhuffman(nil, hpack.AppendHuffmanString(nil, s), 100)
			if !ok || string(got) != s {
				t.Fatalf("%q: got %q, %v", s, got, ok)
			}
		}
	}
}

// What is decompressed x/net decompresses too, and alike.
func FuzzDecode(f *testing.F) {
	f.Add([]byte("\x82\x86\x84\x41\x8c\xf1\xe3\xc2\xe5\xf2\x3a\x6b\xa0\xab\x90\xf4\xff"), []byte("\x82\x86\x84\xbe\x58\x08no-cache"))
	f.Add([]byte("\x3f\xe1\x1f\x40\x01a\x01b"), []byte("\x20\xbe"))
	f.Add([]byte("\x40\x81\x1f\x00\xff\xff\xff\xff\x0f"), []byte("\x0f\x00\x00\x10\x00\x00"))
	f.Fuzz(func(t *testing.T, one, two []byte) {
		d := dynamic{most: tableSize}
		theirs := hpack.NewDecoder(tableSize, nil)
		for _, b := range [][]byte{one, two} {
			h := head.Block{Most: 1 << 30}
			err := d.decode(b, &h)
			fields, theirErr := theirs.DecodeFull(b)
			if len(fields) > http1.MaxFields {
				return
			}
			if err != nil {
				return // what nobody sends is refused: a size that changes in the middle, numbers of more than 28 bits
			}
			if theirErr != nil {
				t.Fatalf("%x: they say %v, we read %v", b, theirErr, h.Fields)
			}
			want := ""
			for _, f := range fields {
				want += f.Name + ": " + f.Value + "\n"
			}
			if got := list(h.Fields); got != want {
				t.Fatalf("%x: got\n%s\nwant\n%s", b, got, want)
			}
		}
	})
}
