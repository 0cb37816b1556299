package revision_test

import (
	"bytes"
	"encoding/json"
	"math/big"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/shared/revision"
)

func sums() *rapid.Generator[revision.Sum] {
	return rapid.Custom(func(t *rapid.T) revision.Sum {
		// Bytes 0x00 and 0xff make carries and borrows run the whole width.
		b := rapid.SliceOfN(rapid.OneOf(rapid.Byte(), rapid.SampledFrom([]byte{0, 0xff})), 32, 32).Draw(t, "sum")
		return revision.Sum(b)
	})
}

func TestSum_AgreesWithBigInt(t *testing.T) {
	mod := new(big.Int).Lsh(big.NewInt(1), 256)
	rapid.Check(t, func(t *rapid.T) {
		a, b := sums().Draw(t, "a"), sums().Draw(t, "b")
		A, B := new(big.Int).SetBytes(a[:]), new(big.Int).SetBytes(b[:])
		var want revision.Sum
		new(big.Int).Mod(new(big.Int).Add(A, B), mod).FillBytes(want[:])
		if got := a.Add(b); got != want {
			t.Fatalf("%v + %v: got %v, want %v", a, b, got, want)
		}
		new(big.Int).Mod(new(big.Int).Sub(A, B), mod).FillBytes(want[:])
		if got := a.Sub(b); got != want {
			t.Fatalf("%v - %v: got %v, want %v", a, b, got, want)
		}
		if got := a.Add(b).Sub(b); got != a {
			t.Fatalf("a+b-b: got %v, want %v", got, a)
		}
	})
}

type object struct {
	kind uint8
	id   string
	data []byte
}

func objects() *rapid.Generator[[]object] {
	return rapid.SliceOfN(rapid.Custom(func(t *rapid.T) object {
		return object{rapid.Uint8().Draw(t, "kind"), rapid.String().Draw(t, "id"), rapid.SliceOf(rapid.Byte()).Draw(t, "data")}
	}), 1, 20)
}

func total(objs []object) (s revision.Sum) {
	for _, o := range objs {
		s = s.Add(revision.Of(o.kind, o.id, o.data))
	}
	return s
}

func TestSum_OrderDoesNotMatter(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		objs := objects().Draw(t, "objects")
		if got, want := total(rapid.Permutation(objs).Draw(t, "shuffled")), total(objs); got != want {
			t.Fatalf("got %v, want %v", got, want)
		}
	})
}

func TestSum_OneChangedObjectShows(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		objs := objects().Draw(t, "objects")
		before := total(objs)
		i := rapid.IntRange(0, len(objs)-1).Draw(t, "i")
		changed := slices.Clone(objs)
		switch rapid.IntRange(0, 3).Draw(t, "how") {
		case 0:
			changed[i].kind++
		case 1:
			changed[i].id += "x"
		case 2:
			changed[i].data = append(bytes.Clone(changed[i].data), 0)
		case 3:
			changed = slices.Delete(changed, i, i+1)
		}
		if total(changed) == before {
			t.Fatalf("sum unchanged after changing object %d", i)
		}
		// And the incremental road gives the same answer as the whole.
		if o := objs[i]; before.Sub(revision.Of(o.kind, o.id, o.data)) != total(slices.Delete(slices.Clone(objs), i, i+1)) {
			t.Fatal("removing an object by Sub differs from summing the rest")
		}
	})
}

func TestOf_IsUnambiguous(t *testing.T) {
	if revision.Of(1, "ab", []byte("c")) == revision.Of(1, "a", []byte("bc")) {
		t.Error("a byte moved between id and data does not change the sum")
	}
	// Pinned: this is a wire contract (see the package comment).
	if got, want := revision.Of(7, "eu-west", []byte("x")).String(), "79c206b4466dc4840c6a3b8fbf385f4ccbd633143cdc44f6c8807a61c60252bb"; got != want {
		t.Errorf("Of: got %s, want %s", got, want)
	}
}

func TestSum_TextRoundTrips(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		r := revision.Revision{Epoch: rapid.Uint64().Draw(t, "e"), Index: rapid.Uint64().Draw(t, "i"), Sum: sums().Draw(t, "s")}
		b, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		var back revision.Revision
		if err := json.Unmarshal(b, &back); err != nil || back != r {
			t.Fatalf("got %v (%v), want %v", back, err, r)
		}
		fb, err := revision.FromBytes(r.Sum[:])
		if err != nil || fb != r.Sum {
			t.Fatalf("FromBytes: got %v (%v), want %v", fb, err, r.Sum)
		}
	})
	var s revision.Sum
	for _, bad := range []string{"", "00", string(bytes.Repeat([]byte("g"), 64)), string(bytes.Repeat([]byte("0"), 66))} {
		if err := s.UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("UnmarshalText(%q): got nil, want an error", bad)
		}
	}
	if _, err := revision.FromBytes(make([]byte, 31)); err == nil {
		t.Error("FromBytes(31 bytes): got nil, want an error")
	}
}

func TestRevision_Order(t *testing.T) {
	ordered := []revision.Revision{{}, {Index: 9}, {Epoch: 1}, {Epoch: 1, Index: 1}, {Epoch: 2}}
	for i, a := range ordered {
		for j, b := range ordered {
			if got, want := a.Less(b), i < j; got != want {
				t.Errorf("%v < %v: got %v, want %v", a, b, got, want)
			}
			if got, want := a.AtLeast(b), i >= j; got != want {
				t.Errorf("%v >= %v: got %v, want %v", a, b, got, want)
			}
		}
	}
	r := revision.Revision{Epoch: 3, Index: 41, Sum: revision.Sum{0xab, 0xcd}}
	if got, want := r.String(), "3.41/abcd00000000"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func BenchmarkSum_Add(b *testing.B) {
	x, y := revision.Of(1, "a", nil), revision.Of(1, "b", nil)
	for b.Loop() {
		x = x.Add(y)
	}
}
