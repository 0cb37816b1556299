package canary

import (
	"bytes"
	"crypto/md5"
	"crypto/sha1"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base32"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/net/http2/hpack"
)

type encoded struct {
	name string
	text []byte
}

// hashed is how much of a hash is looked for: a hash that was cut shorter than this is not found.
const hashed = 12

func encodings(value []byte) (all []encoded) {
	add := func(name string, text []byte) { all = append(all, encoded{name, text}) }
	add("raw", value)
	add("raw", bytes.ToLower(value))
	add("raw", bytes.ToUpper(value))
	reversed := slices.Clone(value)
	slices.Reverse(reversed)
	add("reversed", reversed)
	var little, big []byte
	for _, b := range value {
		little, big = append(little, b, 0), append(big, 0, b)
	}
	add("UTF-16LE", little)
	add("UTF-16BE", big)
	add("hex", []byte(hex.EncodeToString(value)))
	add("hex", bytes.ToUpper([]byte(hex.EncodeToString(value))))
	each := func(name, format, between string) {
		parts := make([]string, len(value))
		for i, b := range value {
			parts[i] = fmt.Sprintf(format, b)
		}
		add(name, []byte(strings.Join(parts, between)))
	}
	each("percent", "%%%02x", "")
	each("percent", "%%%02X", "")
	each("backslash-u", `\u%04x`, "")
	each("backslash-x", `\x%02x`, "")
	each("hex with spaces", "%02x", " ")
	each("hex with colons", "%02x", ":")
	each("bytes in decimal", "%d", " ") // as fmt prints a []byte
	each("bytes in decimal", "%d", ",")
	for _, e := range []struct {
		name   string
		group  int // bytes
		digits int
		encode func([]byte) string
	}{
		{"base64", 3, 4, base64.RawStdEncoding.EncodeToString},
		{"base64", 3, 4, base64.RawURLEncoding.EncodeToString},
		{"base32", 5, 8, base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString},
		{"base32", 5, 8, base32.HexEncoding.WithPadding(base32.NoPadding).EncodeToString},
	} {
		for before := range e.group {
			// Digits that hold bits of a neighbour are left out at both ends.
			bits := 8 * e.group / e.digits
			text := e.encode(append(make([]byte, before), value...))
			from, to := (before*8+bits-1)/bits, (before+len(value))*8/bits
			add(e.name, []byte(text[from:to]))
			add(e.name, bytes.ToLower([]byte(text[from:to])))
		}
	}
	// A header of HTTP/2 or HTTP/3 begins at any of eight bits: so many letters a, of five bits each, lie before.
	for before := range 8 {
		text := hpack.AppendHuffmanString(nil, strings.Repeat("a", before)+string(value))
		bits := hpack.HuffmanEncodeLength(string(value)) // whole bytes only, so the last two may be padding
		from := (5*before + 7) / 8
		add("HPACK", text[from:min(len(text)-1, from+int(bits)-2)])
	}
	for _, h := range []struct {
		name string
		sum  func([]byte) []byte
	}{
		{"SHA-256", func(b []byte) []byte { s := sha256.Sum256(b); return s[:] }},
		{"SHA-512", func(b []byte) []byte { s := sha512.Sum512(b); return s[:] }},
		{"SHA-1", func(b []byte) []byte { s := sha1.Sum(b); return s[:] }},
		{"MD5", func(b []byte) []byte { s := md5.Sum(b); return s[:] }},
	} {
		for _, v := range [][]byte{value, bytes.ToLower(value)} {
			sum := h.sum(v)[:hashed]
			add(h.name, sum)
			add(h.name+" in hex", []byte(hex.EncodeToString(sum)))
			add(h.name+" in hex", bytes.ToUpper([]byte(hex.EncodeToString(sum))))
			add(h.name+" in base64", []byte(base64.StdEncoding.EncodeToString(sum)))
			add(h.name+" in base64", []byte(base64.URLEncoding.EncodeToString(sum)))
		}
	}
	return all
}
