package pseudonym_test

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/pseudonym"
	"bailiwick/shared/durable"
)

func open(t *testing.T, dir string) *pseudonym.Keys {
	t.Helper()
	k, err := pseudonym.Open(pseudonym.Config{Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func file(t *testing.T, dir string) []byte {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "address.keys"))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestKeys_ADayLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		k := open(t, dir)
		go k.Run(t.Context())
		const a = "192.0.2.17"
		today := k.Of(a, time.Now())
		if today == 0 || today == k.Of("192.0.2.18", time.Now()) || open(t, dir).Of(a, time.Now()) != today {
			t.Error("an address has no pseudonym, one of another, or another after a restart")
		}
		if open(t, t.TempDir()).Of(a, time.Now()) == today {
			t.Error("two edges make the same pseudonym")
		}
		before := file(t, dir)
		blob, _, err := durable.ReadSealed(durable.OS(), filepath.Join(dir, "address.keys"), durable.Header{Magic: "bwpseudo", Version: 1, Program: "test"}, 0)
		if err != nil || !bytes.Contains(before, blob[8:40]) {
			t.Fatal(err)
		}
		key := blob[8:40]
		m := hmac.New(sha256.New, key)
		m.Write([]byte(a))
		if want := binary.BigEndian.Uint64(m.Sum(nil)); today != want {
			t.Errorf("pseudonym = %x, want HMAC-SHA-256's %x", today, want)
		}
		midnight := time.Until(time.Now().Truncate(24 * time.Hour).Add(24 * time.Hour))
		time.Sleep(midnight + time.Second) // Run has not looked yet
		first := k.Of(a, time.Now())
		time.Sleep(2 * time.Minute)
		if now := k.Of(a, time.Now()); now == today || now != first || now == 0 {
			t.Errorf("after midnight the pseudonym is %x, then %x; want one that is new and stays; it was %x", first, now, today)
		}
		if bytes.Contains(file(t, dir), key) {
			t.Error("yesterday's key is still on disk")
		}
		if got := k.Of(a, time.Now().Add(-24*time.Hour)); got != 0 {
			t.Errorf("a pseudonym of yesterday is still made: %x", got)
		}
	})
}

func TestKeys_DamageIsNotFatal(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir).Of("::1", time.Now())
	if err := os.WriteFile(filepath.Join(dir, "address.keys"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	if b := open(t, dir).Of("::1", time.Now()); b == a || b == 0 {
		t.Errorf("pseudonym = %x after the keys were lost, %x before", b, a)
	}
}

func TestKeys_OfDoesNotAllocate(t *testing.T) {
	k := open(t, t.TempDir())
	now := time.Now()
	if n := testing.AllocsPerRun(100, func() { k.Of("2001:db8::1:2:3", now) }); n != 0 {
		t.Errorf("%v allocations, want 0", n)
	}
}
