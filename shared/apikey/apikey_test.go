package apikey_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"testing/iotest"

	"bailiwick/shared/apikey"
)

func mint(t testing.TB, zone string) (id, key string) {
	t.Helper()
	id, text, err := apikey.Mint(zone, rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return id, text.Reveal()
}

func TestMint_ParsesBack(t *testing.T) {
	for _, zone := range []string{"us", "emea", "a", "z-9-x", strings.Repeat("z", 32)} {
		id, key := mint(t, zone)
		gotZone, gotID, ok := apikey.Parse(key)
		if !ok || gotZone != zone || gotID != id {
			t.Errorf("zone %s: got %q %q %v, want %q %q true", zone, gotZone, gotID, ok, zone, id)
		}
		if want := len("bw_") + len(zone) + 48; len(key) != want {
			t.Errorf("zone %s: key has %d bytes, want %d", zone, len(key), want)
		}
	}
}

func TestMint_RefusesBadInput(t *testing.T) {
	for _, zone := range []string{"", "Emea", "9a", "-a", "a_b", strings.Repeat("z", 33)} {
		if _, _, err := apikey.Mint(zone, rand.Reader); err == nil {
			t.Errorf("zone %q: got nil, want an error", zone)
		}
	}
	broken := errors.New("no entropy")
	if _, _, err := apikey.Mint("us", iotest.ErrReader(broken)); !errors.Is(err, broken) {
		t.Errorf("broken randomness: got %v, want %v", err, broken)
	}
}

// All 62 digits must be equally likely: bytes from 248 up must be thrown away,
// or the digits 0..7 would come up 25 % more often.
func TestMint_HasNoModuloBias(t *testing.T) {
	high := bytes.NewReader(append(bytes.Repeat([]byte{250}, 640), bytes.Repeat([]byte{61}, 64)...))
	_, text, err := apikey.Mint("us", high)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := text.Reveal()[6:18], strings.Repeat("z", 12); got != want {
		t.Errorf("bytes from 248 up are used: got id %q, want %q", got, want)
	}
}

func TestParse_RefusesEveryOneByteChange(t *testing.T) {
	_, key := mint(t, "emea")
	for i := range len(key) {
		for c := range 256 {
			if byte(c) == key[i] {
				continue
			}
			b := []byte(key)
			b[i] = byte(c)
			if _, _, ok := apikey.Parse(string(b)); ok {
				t.Fatalf("byte %d set to %q: accepted", i, rune(c))
			}
		}
		if _, _, ok := apikey.Parse(key[:i]); ok {
			t.Errorf("cut to %d bytes: accepted", i)
		}
	}
	for _, s := range []string{"", "bw_", key + "0", "x" + key, key + key, strings.Repeat("a", 1<<20), " " + key, key + "\n"} {
		if _, _, ok := apikey.Parse(s); ok {
			t.Errorf("%d bytes %.20q: accepted", len(s), s)
		}
	}
}

func TestHasher_IsHMACOfTheWholeText(t *testing.T) {
	pepper := bytes.Repeat([]byte{7}, apikey.PepperLen)
	h := apikey.NewHasher(pepper)
	pepperCopy := bytes.Clone(pepper)
	clear(pepper) // the hasher keeps its own
	_, key := mint(t, "us")
	for _, in := range []string{key, "", "x", strings.Repeat("long", 100)} {
		mac := hmac.New(sha256.New, pepperCopy)
		mac.Write([]byte(in))
		want := apikey.Digest(mac.Sum(nil))
		for range 2 { // twice: the state must be fresh after use
			if got := h.Sum(in); !apikey.Equal(got, want) {
				t.Errorf("Hasher.Sum of %d bytes differs from HMAC-SHA-256", len(in))
			}
		}
		if got := apikey.Sum(pepperCopy, in); !apikey.Equal(got, want) {
			t.Errorf("Sum of %d bytes differs from HMAC-SHA-256", len(in))
		}
	}
	if apikey.Equal(h.Sum("a"), h.Sum("b")) {
		t.Error("Equal: digests of different keys are equal")
	}
}

func TestHasher_ServesManyAtOnce(t *testing.T) {
	pepper := []byte("pepper")
	h := apikey.NewHasher(pepper)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				key := fmt.Sprint(g, i)
				if !apikey.Equal(h.Sum(key), apikey.Sum(pepper, key)) {
					t.Errorf("key %q: digest differs under concurrency", key)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestSecrets_DoNotLeak(t *testing.T) {
	_, text, err := apikey.Mint("us", rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	digest := apikey.Sum([]byte("p"), text.Reveal())
	var out strings.Builder
	for _, v := range []any{text, &text, digest, &digest, struct{ K apikey.Text }{text}, struct{ k apikey.Text }{text}, []apikey.Text{text}, struct{ D apikey.Digest }{digest}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%08b"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
	}
	for _, h := range []slog.Handler{slog.NewTextHandler(&out, nil), slog.NewJSONHandler(&out, nil)} {
		slog.New(h).Info("x", "t", text, "d", digest, "s", struct{ K apikey.Text }{text})
	}
	secret := text.Reveal()[20:40]
	for _, leak := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret),
		fmt.Sprintf("%x", digest[:8]), fmt.Sprintf("%v", digest[:3])[1:], fmt.Sprintf("%08b %08b", digest[0], digest[1])} {
		if leak = strings.TrimSuffix(leak, "]"); strings.Contains(out.String(), leak) {
			t.Errorf("output holds %q", leak)
		}
	}
	for _, v := range []any{text, digest, map[string]any{"a": text}} {
		if b, err := json.Marshal(v); !errors.Is(err, apikey.ErrSecret) {
			t.Errorf("json of %T: got %s %v, want ErrSecret", v, b, err)
		}
	}
}

func TestParse_DoesNotAllocate(t *testing.T) {
	_, key := mint(t, "emea")
	bad := key[:len(key)-1] + "_"
	if n := testing.AllocsPerRun(100, func() { apikey.Parse(key); apikey.Parse(bad) }); n != 0 {
		t.Errorf("got %v allocations, want 0", n)
	}
}

func FuzzParse(f *testing.F) {
	_, key := mint(f, "emea")
	f.Add(key)
	f.Add("bw_us_000000000000_0000000000000000000000000000000000")
	f.Add("bw__" + key)
	f.Fuzz(func(t *testing.T, s string) {
		zone, id, ok := apikey.Parse(s)
		if !ok {
			if zone != "" || id != "" {
				t.Fatalf("refused %q but returned %q %q", s, zone, id)
			}
			return
		}
		if len(s) > apikey.MaxLen || !strings.HasPrefix(s, "bw_"+zone+"_"+id+"_") || len(id) != 12 || strings.Contains(zone, "_") {
			t.Fatalf("accepted %q as zone %q id %q", s, zone, id)
		}
	})
}

func BenchmarkParse(b *testing.B) {
	_, key := mint(b, "emea")
	b.ReportAllocs()
	for b.Loop() {
		apikey.Parse(key)
	}
}

func BenchmarkHasher_Sum(b *testing.B) {
	_, key := mint(b, "emea")
	h := apikey.NewHasher(bytes.Repeat([]byte{7}, 32))
	b.ReportAllocs()
	for b.Loop() {
		h.Sum(key)
	}
}
