package usage_test

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"bailiwick/shared/usage"
)

func TestDetail2_DecodesToWhatIsKept(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		rows := make([]usage.Row, rapid.IntRange(0, 40).Draw(t, "n"))
		for i := range rows {
			rows[i] = genRow(t)
		}
		want := kept(rows)
		b := usage.EncodeDetail2(rows)
		got, err := usage.DecodeDetail2(b)
		if err != nil || !slices.Equal(got, want) {
			t.Fatalf("decode = %v, %v; want %v", got, err, want)
		}
		if again := usage.EncodeDetail2(got); !bytes.Equal(again, b) {
			t.Fatalf("encoding again gives other bytes")
		}
	})
}

// wide are rows of which each says something new: more accounts, names, kinds and pseudonyms than one symbol names.
func wide(n int) []usage.Row {
	r := rand.New(rand.NewPCG(4, 2))
	rows := trafficRows(n, 1000)
	for i := range rows {
		x := &rows[i]
		x.Customer, x.KeyID = fmt.Sprint("customer ", r.IntN(900)), fmt.Sprintf("key %d", r.IntN(n))
		x.Product, x.Route = fmt.Sprint("p", r.IntN(3)), fmt.Sprint("r", r.IntN(400))
		x.Status, x.PlanRev = uint16(r.IntN(600)), r.Uint64()>>r.IntN(64)
		x.Actor, x.Address = r.Uint64N(700), r.Uint64N(300)
		x.Period = []int64{0, 1, 1_761_955_200, 1_764_547_200}[r.IntN(4)]
	}
	return rows
}

// One batch makes many pieces, over and over, and none shows in the next.
func TestBatch_PiecesAreWhatTheirRowsAlone(t *testing.T) {
	var b usage.Batch
	for round := range 3 {
		rows := append(trafficRows(usage.DetailSwitch+500*round, 1000), wide(3000)...)
		b.Reset()
		all := usage.BatchOf(rows)
		for i := range rows {
			r := &rows[i]
			c := r.Cell()
			usage.Fill(b.Add(b.Cell(&c), []byte(r.KeyID)), r)
		}
		if b.Len() != len(rows) {
			t.Fatalf("%d rows, want %d", b.Len(), len(rows))
		}
		for from := 0; from < len(rows); {
			to := min(len(rows), from+700*(1+from%5))
			one := usage.EncodeDetail(rows[from:to])
			if !bytes.Equal(b.Encode(from, to), one) || !bytes.Equal(all.Encode(from, to), one) {
				t.Fatalf("round %d: rows %d to %d are other bytes in a batch", round, from, to)
			}
			got, err := usage.DecodeDetail(one)
			if err != nil || !slices.Equal(got, kept(rows[from:to])) {
				t.Fatalf("round %d: rows %d to %d decode to others, %v", round, from, to, err)
			}
			from = to
		}
	}
}

// A hostile edge brings pieces that cost a reader the square of their rows, if any do: one key of as many customers as there are
// rows, and pseudonyms that a hash without a secret, or one of their lowest bits, would put in one place.
func TestDetail2_HostilePiecesCostNoMoreThanOthers(t *testing.T) {
	rows := trafficRows(usage.MaxDetailRows, 1000)
	for i := range rows {
		rows[i].Customer, rows[i].KeyID = fmt.Sprint(i%4000), ""
		rows[i].Actor, rows[i].Address = uint64(i)<<48, uint64(i)<<40
	}
	b := usage.EncodeDetail(rows)
	if got, err := usage.DecodeDetail(b); err != nil || !slices.Equal(got, kept(rows)) {
		t.Fatalf("they decode to others, %v", err)
	}
	const inverse = 0xF1DE83E19937733D // of the golden ratio in 64 bits, which is what unseeded hashes multiply by
	for name, of := range map[string]func(i uint64) uint64{
		"low":  func(i uint64) uint64 { return i },
		"high": func(i uint64) uint64 { return i << 48 },
		"made": func(i uint64) uint64 { return i << 47 * inverse },
	} {
		all := make([]uint64, usage.MaxDetailRows)
		for i := range all {
			all[i] = of(uint64(i))
		}
		if n := usage.Homes(all); n < len(all)/2 {
			t.Errorf("%s: %d pseudonyms have %d slots", name, len(all), n)
		}
	}
}

// Both versions say the same, and each is read.
func TestDetail_BothVersionsAreRead(t *testing.T) {
	for _, rows := range [][]usage.Row{trafficRows(usage.DetailSwitch, 1000), wide(4000)} {
		one, two := usage.EncodeDetail1(rows), usage.EncodeDetail(rows)
		if one[0] != 1 || two[0] != 2 {
			t.Fatalf("versions %d and %d", one[0], two[0])
		}
		a, errA := usage.DecodeDetail(one)
		b, errB := usage.DecodeDetail(two)
		if errA != nil || errB != nil || !slices.Equal(a, b) {
			t.Fatalf("they differ: %v, %v", errA, errB)
		}
		again, err := usage.DetailFor(two, 1)
		if err != nil || !bytes.Equal(again, one) {
			t.Errorf("for who reads version 1 it is other bytes, %v", err)
		}
		if same, err := usage.DetailFor(two, 2); err != nil || !bytes.Equal(same, two) {
			t.Errorf("for who reads version 2 it is other bytes, %v", err)
		}
	}
	if b := usage.EncodeDetail(trafficRows(usage.DetailSwitch-1, 1000)); b[0] != 1 {
		t.Errorf("few rows are version %d, want 1", b[0])
	}
	if _, err := usage.DecodeDetail(usage.EncodeDetail2(trafficRows(20, 1000))); err == nil {
		t.Error("few rows in version 2 decode: they have two spellings")
	}
}

func TestDetail2_BytesAreStable(t *testing.T) {
	b := usage.EncodeDetail2([]usage.Row{{RequestID: [16]byte{1, 2, 3, 4, 5, 6, 0x7a, 8, 0x89, 10, 11, 12, 13, 14, 15, 16}, EndUnixMS: 1108152157500, Customer: "c", Plan: "p",
		API: "a", Outcome: usage.OutcomeSuccess, ServedRegion: "eu", Period: 1, Requests: 1, Units: 3, BytesOut: 700, LatencyUS: 54_321, UpstreamUS: 54_000, KeyID: "k", Status: 200, Attempts: 1, Address: 77}})
	if got := hex.EncodeToString(b); got != goldenDetail2 {
		t.Errorf("detail = %s, want %s", got, goldenDetail2)
	}
}

const goldenDetail2 = "02594021201008040618608001004b014014001c011880000a30c00034c000030ca0004036c001659402407134129c30011000fc00000008001a00000078b489592002040400200300f114100c08341ec483431300000000000000"

func TestDecodeDetail2_RefusesEveryPrefixTailAndFlip(t *testing.T) {
	b := usage.EncodeDetail2(wide(5))
	if _, err := usage.DecodeDetail2(b); err != nil {
		t.Fatal(err)
	}
	for n := range b {
		if _, err := usage.DecodeDetail2(b[:n]); err == nil {
			t.Errorf("the first %d of %d bytes decode", n, len(b))
		}
	}
	if _, err := usage.DecodeDetail2(append(slices.Clone(b), 0)); err == nil {
		t.Error("a byte too many decodes")
	}
	// A flipped bit says something else, or nothing: never the same in other words.
	want, _ := usage.DecodeDetail2(b)
	for i := range 8 * len(b) {
		x := slices.Clone(b)
		x[i/8] ^= 1 << (i % 8)
		if got, err := usage.DecodeDetail2(x); err == nil && slices.Equal(got, want) {
			t.Errorf("bit %d flipped says the same", i)
		}
	}
}

func TestDecodeDetail2_RefusesBadRows(t *testing.T) {
	for name, spoil := range spoils {
		rows := trafficRows(3, 1000)
		spoil(&rows[1])
		if _, err := usage.DecodeDetail2(usage.EncodeDetail2(rows)); err == nil {
			t.Errorf("%s: decodes", name)
		}
	}
	if _, err := usage.DecodeDetail2(usage.EncodeDetail2(trafficRows(usage.MaxDetailRows+1, 1000))); err == nil {
		t.Error("more than MaxDetailRows rows decode")
	}
}

func FuzzDecodeDetail2(f *testing.F) {
	f.Add(usage.EncodeDetail2(nil))
	f.Add(usage.EncodeDetail2(trafficRows(3, 1000)))
	f.Add(usage.EncodeDetail2(wide(20)))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == 0 {
			return
		}
		b[0] = 2
		rows, err := usage.DecodeDetail2(b)
		if err != nil {
			return
		}
		if len(rows) > usage.MaxDetailRows {
			t.Fatalf("%d rows decode", len(rows))
		}
		if again := usage.EncodeDetail2(rows); !bytes.Equal(again, b) {
			t.Fatalf("two pieces spell one:\n%x\n%x", b, again)
		}
	})
}
