package table_test

import (
	"encoding/hex"
	"encoding/json"
	"testing"

	"bailiwick/shared/table"
)

// Keys are read by hand, since there are a million: what is taken so encoding/json takes too, and reads alike, and it is written as
// it was, byte by byte.
func FuzzKey(f *testing.F) {
	digest := "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
	begin := `{"id":"a","digest":"` + digest + `","customer":"c","subscription":"s","plan":"p"`
	for _, s := range []string{begin + "}", begin + `,"suspended":true,"overdue":true,"ends":-5}`, begin + `,"suspended":true,"scopes":"a b","from":"10.0.0.0/8","needs":1,"held":true}`, begin + `,"scopes":"a"}`,
		begin + `,"ends":0}`, begin + `,"ends":05}`, begin + `,"suspended":true,"scopes":"a","needs":1}x`, `{"id":"\u0061"`, begin + `,"from":"<"}`} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		var k, theirs table.Key
		if !table.ReadKey(text, &k) {
			return
		}
		if err := json.Unmarshal([]byte(text), &theirs); err != nil {
			t.Fatalf("%q: taken here, and not by encoding/json: %v", text, err)
		}
		if k.DigestHex != "" || hex.EncodeToString(k.Digest[:]) != theirs.DigestHex {
			t.Fatalf("%q: the digest is %x here, %s there", text, k.Digest, theirs.DigestHex)
		}
		again := string(table.AppendKey(nil, &k))
		theirs.DigestHex, theirs.Digest = "", k.Digest
		if k != theirs {
			t.Fatalf("%q: %+v here, %+v there", text, k, theirs)
		}
		if again != text {
			t.Fatalf("%q is written as %q", text, again)
		}
	})
}
