package apikey_test

import (
	"strings"
	"testing"

	"bailiwick/shared/apikey"
)

func TestHasher_Bound(t *testing.T) {
	h, other := apikey.NewHasher([]byte("pepper")), apikey.NewHasher([]byte("another"))
	id, d := h.Bound(apikey.KindToken, apikey.TokenText("https://id.test", "someone@example.test"))
	if again, same := h.Bound(apikey.KindToken, apikey.TokenText("https://id.test", "someone@example.test")); again != id || !apikey.Equal(d, same) {
		t.Error("the same subject has two ids or digests")
	}
	if !strings.HasPrefix(id, "tok-") || len(id) != 28 || strings.Contains(id, "someone") {
		t.Errorf("got id %s, want tok- and 24 digits", id)
	}
	seen := map[string]bool{id: true}
	for _, c := range []struct {
		h          *apikey.Hasher
		kind, text string
	}{{other, apikey.KindToken, apikey.TokenText("https://id.test", "someone@example.test")}, {h, apikey.KindCertificate, apikey.TokenText("https://id.test", "someone@example.test")},
		{h, apikey.KindToken, apikey.TokenText("https://id.test", "someone@example.tes")}, {h, apikey.KindToken, apikey.TokenText("https://id.tests", "omeone@example.test")}} {
		i, e := c.h.Bound(c.kind, c.text)
		if seen[i[4:]] || i[4:] == id[4:] || apikey.Equal(d, e) {
			t.Errorf("%s %q: it has the id or digest of another", c.kind, c.text)
		}
		seen[i[4:]] = true
	}
	if _, _, ok := apikey.Parse(id); ok {
		t.Error("an id of a bound key passes for a key")
	}
}
