package policy_test

import (
	"encoding/hex"
	"fmt"
	"maps"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"
	"unsafe"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// Whatever comes and goes, every version has its own keys, with their owners and marks, under ids of any length: those that have
// room in a line, those that have not, and such as differ in their end or their length alone.
func TestKeys_VersionsAreTheirOwn(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	var ids []string
	for _, n := range []int{1, 14, 15, 16, 17, 28, 40} {
		for i := range 12 {
			ids = append(ids, strings.Repeat("x", n-1)+string(rune('a'+i)))
		}
	}
	ids = append(ids, "a\x00", "a\x00\x00")
	type version struct {
		tab  *policy.Table
		want map[string]table.Key
	}
	settings := sample(t)[:1]
	tab, held := build(t, settings...), map[string]table.Key{}
	var versions []version
	for i := range 600 {
		var up []table.Object
		var rm []table.ObjectKey
		next := maps.Clone(held)
		for range 1 + r.IntN(8) {
			id := ids[r.IntN(len(ids))]
			if _, ok := next[id]; ok && r.IntN(2) == 0 {
				delete(next, id)
				rm = append(rm, table.ObjectKey{Kind: table.KindKey, ID: id})
				break // removals come after what is put
			}
			next[id] = table.Key{ID: id, DigestHex: hex.EncodeToString(fmt.Appendf(nil, "%032d", i)), Customer: fmt.Sprint("c", r.IntN(400)), Subscription: "main", Plan: "gold",
				Suspended: r.IntN(3) == 0, Overdue: r.IntN(3) == 0, Ends: int64(r.IntN(3))}
			up = append(up, enc(t, table.KindKey, id, next[id]))
		}
		all := settings[:1:1]
		for id, k := range next {
			all = append(all, enc(t, table.KindKey, id, k))
		}
		c, z := sums(all)
		moved, err := tab.Apply(up, rm, c, z)
		if err != nil {
			t.Fatalf("version %d: %v", i, err)
		}
		tab, held = moved, next
		if versions = append(versions, version{tab, held}); len(versions) > 20 {
			versions = versions[1:]
		}
	}
	for _, v := range versions {
		for _, id := range ids {
			got, want := v.tab.Key(id), v.want[id]
			switch {
			case got == nil && want.ID == "":
			case got == nil || want.ID == "":
				t.Fatalf("key %q is there: %t, want %t", id, got != nil, want.ID != "")
			case got.ID != id || hex.EncodeToString(got.Digest[:]) != want.DigestHex || got.Customer != want.Customer ||
				got.Suspended != want.Suspended || got.Overdue != want.Overdue || int64(got.Ends) != want.Ends:
				t.Fatalf("key %q is %+v of %s, want %+v", id, got, got.Customer, want)
			}
		}
	}
	// Some 88 keys are held at once, so at most so many owners: those that left made room for others.
	if n := tab.OwnerPlaces(); n > 256 {
		t.Errorf("there are %d places for the owners of %d keys, after 400 came and went", n, len(held))
	}
}

// A line that is not one of the processor's would be two to fetch.
func TestKeys_LiesOnOneLine(t *testing.T) {
	for _, n := range []int{10, 3000, 50_000} {
		tab := manyKeys(t, n)
		for i := 0; i < n; i += 1 + n/1000 {
			if at := uintptr(unsafe.Pointer(unsafe.StringData(tab.Key(keyID(i)).ID))); at%64 != 32 {
				t.Fatalf("of %d keys, that of number %d has its id %d bytes into a line, want 32", n, i, at%64)
			}
		}
	}
}

// keyID is an id as keys have it: twelve bytes in no order.
func keyID(i int) string { return fmt.Sprintf("%012x", uint64(i+1)*0x9e3779b97f4a7c15>>16) }

func manyKeys(t testing.TB, n int) *policy.Table {
	settings := sample(t)[0]
	edit := (*policy.Table)(nil).Edit()
	edit.Expect(n)
	var zone revision.Sum
	edit.Put(policy.Prepare(settings))
	catalog, z := sums([]table.Object{settings})
	zone = z.Sum
	for i := range n {
		id := keyID(i)
		o := table.Object{Kind: table.KindKey, ID: id, Data: table.AppendKey(nil, &table.Key{ID: id, Digest: [32]byte{byte(i), byte(i >> 8), byte(i >> 16)},
			Customer: fmt.Sprintf("customer-%d", i%500), Subscription: "main", Plan: "gold"})}
		edit.Put(policy.Prepare(o))
		zone = zone.Add(o.Sum())
	}
	z.Sum = zone
	tab, err := edit.Table(nil, catalog, z)
	if err != nil {
		t.Fatal(err)
	}
	return tab
}

// What it costs to find a key of so many that are asked for in no order, and to look at all of it.
func BenchmarkTable_Key(b *testing.B) {
	for _, n := range []int{1000, 100_000, 1_000_000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			tab := manyKeys(b, n)
			b.ReportAllocs()
			b.ResetTimer()
			began := processor()
			sum, last := 0, 0
			for i := range b.N {
				var id [12]byte                                                                                            // as keyID, but without memory
				for at, x := 0, uint64(uint32(i+last)*2654435761%uint32(n)+1)*0x9e3779b97f4a7c15>>16; at < len(id); at++ { // which is next depends on this one: a request waits for it
					id[at] = "0123456789abcdef"[x>>(44-4*at)&15]
				}
				k := tab.Key(unsafe.String(&id[0], len(id)))
				if k == nil {
					b.Fatal("a key is not there")
				}
				last = int(k.Digest[31])
				sum += int(k.Digest[0]) + int(k.ID[3]) + len(k.Customer)
			}
			b.ReportMetric(float64(processor()-began)/float64(b.N), "cpu-ns/op")
			if sum == 0 {
				b.Error("nothing was looked at")
			}
		})
	}
}

// processor is the user time of this process: beside others' work the clock says nothing.
func processor() time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		panic(err)
	}
	return time.Duration(u.Utime.Nano())
}
