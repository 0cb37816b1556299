package canary_test

import (
	"archive/zip"
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf16"

	"github.com/klauspost/compress/s2"
	"github.com/klauspost/compress/zstd"
	"golang.org/x/net/http2/hpack"

	"bailiwick/e2e/hosts/canary"
)

const secret = "Xk7/Qz+9vLw.2fRt~8Yb"

func squeezed(data []byte, wrap func(io.Writer) io.WriteCloser) []byte {
	var b bytes.Buffer
	w := wrap(&b)
	w.Write(data)
	w.Close()
	return b.Bytes()
}

// Every way in which a program may write a secret is found, at any place, among other bytes.
func TestScanner_FindsEachEncoding(t *testing.T) {
	raw := []byte(secret)
	text := func(b []byte) []byte { // something to compress around it
		var out bytes.Buffer
		for i := range 200 {
			fmt.Fprintf(&out, "line %d of a log in which much is the same again and again\n", i)
		}
		out.Write(b)
		fmt.Fprintf(&out, "\nline %d of a log in which much is the same again and again\n", 200)
		return out.Bytes()
	}
	words := utf16.Encode([]rune(secret))
	var little, big []byte
	for _, w := range words {
		little, big = append(little, byte(w), byte(w>>8)), append(big, byte(w>>8), byte(w))
	}
	backwards := slices.Clone(raw)
	slices.Reverse(backwards)
	h256, h512, h1, h5 := sha256.Sum256(raw), sha512.Sum512(raw), sha1.Sum(raw), md5.Sum(raw)
	gz := func(w io.Writer) io.WriteCloser { return gzip.NewWriter(w) }
	cases := map[string][]byte{
		"raw":               raw,
		"upper":             bytes.ToUpper(raw),
		"lower":             bytes.ToLower(raw),
		"reversed":          backwards,
		"UTF-16LE":          little,
		"UTF-16BE":          big,
		"hex":               []byte(hex.EncodeToString(raw)),
		"HEX":               []byte(strings.ToUpper(hex.EncodeToString(raw))),
		"hex, Go's % x":     fmt.Appendf(nil, "% x", raw),
		"bytes, Go's %v":    fmt.Appendf(nil, "%v", raw),
		"percent":           []byte(strings.ToLower(percent(raw))),
		"PERCENT":           []byte(percent(raw)),
		"\\u":               []byte(escaped(raw, `\u%04x`)),
		"\\x":               []byte(escaped(raw, `\x%02x`)),
		"SHA-256":           h256[:],
		"SHA-256 hex":       []byte(hex.EncodeToString(h256[:])),
		"SHA-256 HEX":       fmt.Appendf(nil, "%X", h256),
		"SHA-256 base64":    []byte(base64.StdEncoding.EncodeToString(h256[:])),
		"SHA-256, 16 of it": []byte(hex.EncodeToString(h256[:16])),
		"SHA-512 base64":    []byte(base64.URLEncoding.EncodeToString(h512[:])),
		"SHA-1":             h1[:],
		"MD5 hex":           []byte(hex.EncodeToString(h5[:])),
		"gzip":              squeezed(text(raw), gz),
		"gzip twice":        squeezed(squeezed(text(raw), gz), gz),
		"gzip of hex":       squeezed(text([]byte(hex.EncodeToString(raw))), gz),
		"zlib":              squeezed(text(raw), func(w io.Writer) io.WriteCloser { return zlib.NewWriter(w) }),
		"zlib, best":        squeezed(text(raw), func(w io.Writer) io.WriteCloser { z, _ := zlib.NewWriterLevel(w, 9); return z }),
		"zstd":              squeezed(text(raw), func(w io.Writer) io.WriteCloser { z, _ := zstd.NewWriter(w); return z }),
		"snappy, framed":    squeezed(text(raw), func(w io.Writer) io.WriteCloser { return s2.NewWriter(w, s2.WriterSnappyCompat()) }),
		"snappy, a block":   s2.EncodeSnappyBest(nil, text(raw)),
		"zip": squeezed(text(raw), func(w io.Writer) io.WriteCloser {
			z := zip.NewWriter(w)
			f, _ := z.Create("a.txt")
			return struct {
				io.Writer
				io.Closer
			}{f, z}
		}),
	}
	for i := range 3 {
		long := append(bytes.Repeat([]byte{'<'}, i), append(raw, "~~~~"...)...)
		cases[fmt.Sprint("base64 std at ", i)] = []byte(base64.StdEncoding.EncodeToString(long))
		cases[fmt.Sprint("base64 url at ", i)] = []byte(base64.RawURLEncoding.EncodeToString(long))
	}
	for i := range 5 {
		cases[fmt.Sprint("base32 at ", i)] = []byte(base32.StdEncoding.EncodeToString(append(bytes.Repeat([]byte{'<'}, i), raw...)))
	}
	for i := range 8 { // other letters than the scanner's own before and after it
		cases[fmt.Sprint("HPACK at ", i)] = hpack.AppendHuffmanString(nil, strings.Repeat("0", i)+secret+"xyz")
	}
	if j, err := json.Marshal(map[string]string{"a": secret}); err != nil {
		t.Fatal(err)
	} else {
		cases["JSON"] = j
	}
	s, err := canary.New(canary.Canary{Name: "it", Value: raw}, canary.Canary{Name: "another", Value: []byte("0123456789abcdefXYZ")})
	if err != nil {
		t.Fatal(err)
	}
	noise := make([]byte, 64<<10)
	rng := rand.NewChaCha8([32]byte{1})
	rng.Read(noise)
	if found := s.Bytes("noise", noise); len(found) > 0 {
		t.Fatalf("in noise: %v", found)
	}
	for name, data := range cases {
		for _, before := range []int{0, 1, 1000, 4099} {
			if name == "snappy, a block" && before > 0 {
				continue // found as raw text, below
			}
			hay := slices.Concat(noise[:before], data, noise[before:before+500])
			if name == "snappy, a block" {
				hay = data
			}
			found := s.Bytes("hay", hay)
			if len(found) == 0 {
				t.Errorf("%s after %d bytes: not found", name, before)
			}
			for _, f := range found {
				if f.Canary != "it" {
					t.Errorf("%s after %d bytes: %s", name, before, f)
				}
			}
		}
	}
	// A snappy block in the middle of a file, as in an sstable, holds the letters as they are.
	if found := s.Bytes("block", slices.Concat(noise[:77], s2.EncodeSnappy(nil, text(raw)), noise[:9])); len(found) != 1 || found[0].Encoding != "raw" {
		t.Errorf("snappy block after 77 bytes: %v, want it raw", found)
	}
	if found := s.Bytes("deflate", squeezed(text(raw), func(w io.Writer) io.WriteCloser { z, _ := flate.NewWriter(w, 9); return z })); len(found) != 1 {
		t.Errorf("bare deflate: %v, want it once", found)
	}
	if found := s.Bytes("part", raw[:len(raw)-1]); len(found) > 0 {
		t.Errorf("all but the last byte: %v, want nothing", found)
	}
}

func percent(b []byte) string {
	if url.PathEscape("/") != "%2F" {
		panic("percent-encoding is something else now")
	}
	return escaped(b, "%%%02X")
}

func escaped(b []byte, format string) string {
	var out strings.Builder
	for _, c := range b {
		fmt.Fprintf(&out, format, c)
	}
	return out.String()
}

func TestScanner_Tree(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a/b/c": "nothing", "a/d": "before" + secret + "after", "n-" + hex.EncodeToString([]byte(secret)): ""} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s, err := canary.New(canary.Canary{Name: "it", Value: []byte(secret)})
	if err != nil {
		t.Fatal(err)
	}
	found, total, err := s.Tree(dir)
	if err != nil || len(found) != 2 || total.Files != 3 {
		t.Errorf("found %v in %d files, %v; want it in a/d and in a name, 3 files", found, total.Files, err)
	}
	if _, err := canary.New(canary.Canary{Name: "short", Value: []byte("abc")}); err == nil {
		t.Error("a canary of three letters: taken, want an error")
	}
}

func BenchmarkScanner(b *testing.B) {
	var all []canary.Canary
	rng := rand.NewChaCha8([32]byte{2})
	for i := range 40 {
		v := make([]byte, 20)
		rng.Read(v)
		all = append(all, canary.Canary{Name: fmt.Sprint(i), Value: v})
	}
	s, err := canary.New(all...)
	if err != nil {
		b.Fatal(err)
	}
	data := make([]byte, 8<<20)
	rng.Read(data)
	b.SetBytes(int64(len(data)))
	for b.Loop() {
		if found := s.Bytes("noise", data); len(found) > 0 {
			b.Fatal(found)
		}
	}
}
