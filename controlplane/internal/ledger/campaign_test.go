package ledger_test

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"pgregory.net/rapid"

	"bailiwick/controlplane/internal/ledger"
	"bailiwick/shared/usage"
)

// The campaign: edges make blocks; the network repeats, reorders and withholds
// them; the node crashes with any part of its unsynced data, is restored from
// snapshots and replays its log. At every moment the ledger must hold exactly
// the distinct blocks it says it does.
func TestMachine_Campaign(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		seed := rapid.Uint64().Draw(rt, "seed")
		rng := rand.New(rand.NewPCG(seed, 1))
		mem := vfs.NewCrashableMem()
		m := open(t, mem)
		defer func() { shut(t, m) }()
		other := open(t, vfs.NewMem()) // fed the same log, never crashed
		defer func() { shut(t, other) }()

		type sent struct {
			b     ledger.Block
			cells map[usage.Cell]usage.Sums
		}
		chains := []*chain{{edge: "a", epoch: 1}, {edge: "b", epoch: 1}}
		made := map[string][]sent{} // by edge and epoch, in order
		id := func(b *ledger.Block) string { return fmt.Sprint(b.Edge, "/", b.Epoch) }
		var pool []sent
		var log [][]byte
		var snap []byte
		snapAt := 0

		feed := func(cmd []byte) []byte {
			log = append(log, cmd)
			out, err := m.Apply(uint64(len(log)), base, cmd)
			if err != nil {
				rt.Fatalf("apply: %v", err)
			}
			if _, err := other.Apply(uint64(len(log)), base, cmd); err != nil {
				rt.Fatalf("apply to the other: %v", err)
			}
			return out
		}
		catchUp := func() { // as raftgroup does after a start
			if m.Applied() > uint64(len(log)) {
				rt.Fatalf("applied: got %d, the log holds %d", m.Applied(), len(log))
			}
			if m.Applied() < uint64(snapAt) {
				rt.Fatalf("applied: got %d, below the snapshot at %d whose log is gone", m.Applied(), snapAt)
			}
			for i := snapAt; i < len(log); i++ {
				if _, err := m.Apply(uint64(i+1), base, log[i]); err != nil {
					rt.Fatalf("replay: %v", err)
				}
			}
		}

		rt.Repeat(map[string]func(*rapid.T){
			"make": func(rt *rapid.T) {
				c := chains[rng.IntN(len(chains))]
				cells := map[usage.Cell]usage.Sums{}
				for range 1 + rng.IntN(3) {
					cells[cell(fmt.Sprintf("c%d", rng.IntN(3)), rng.IntN(6))] = usage.Sums{Requests: int64(rng.IntN(9)), Units: int64(rng.IntN(9)), BytesIn: 1, BytesOut: 2}
				}
				s := sent{c.next(cells), cells}
				made[id(&s.b)] = append(made[id(&s.b)], s)
				pool = append(pool, s)
			},
			"epoch": func(rt *rapid.T) {
				i := rng.IntN(len(chains))
				if chains[i].seq == 0 {
					rt.Skip()
				}
				chains[i] = &chain{edge: chains[i].edge, epoch: chains[i].epoch + 1}
			},
			"send": func(rt *rapid.T) { // any block, any number of times, in any order, several in one entry
				if len(pool) == 0 {
					rt.Skip()
				}
				var bs []ledger.Block
				for range 1 + rng.IntN(4) {
					bs = append(bs, pool[rng.IntN(len(pool))].b)
				}
				acks, err := ledger.DecodeAcks(feed(ledger.EncodeAppend(bs)), bs)
				if err != nil {
					rt.Fatal(err)
				}
				for i, a := range acks {
					if (a.Reason == "") != (bs[i].Seq <= a.Applied) {
						rt.Fatalf("ack of %d: got %q with watermark %d", bs[i].Seq, a.Reason, a.Applied)
					}
				}
			},
			"sendInOrder": func(rt *rapid.T) {
				for _, c := range chains {
					for _, s := range made[fmt.Sprint(c.edge, "/", c.epoch)] {
						feed(ledger.EncodeAppend([]ledger.Block{s.b}))
					}
				}
			},
			"snapshot": func(rt *rapid.T) {
				snap, snapAt = snapshot(t, m), len(log)
			},
			"restore": func(rt *rapid.T) { // a node that was wiped or fell behind
				if snap == nil {
					rt.Skip()
				}
				shut(t, m)
				mem = vfs.NewCrashableMem()
				m = open(t, mem)
				if err := m.Restore(bytes.NewReader(snap)); err != nil {
					rt.Fatal(err)
				}
				catchUp()
			},
			"crash": func(rt *rapid.T) {
				left := mem.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: rng.IntN(101), RNG: rng})
				shut(t, m)
				mem = left
				m = open(t, mem)
				catchUp()
			},
			"": func(rt *rapid.T) {
				want := map[usage.Cell]usage.Sums{}
				v, err := m.View()
				if err != nil {
					rt.Fatal(err)
				}
				defer v.Close()
				for _, list := range made {
					w, err := v.Watermark(list[0].b.Edge, list[0].b.Epoch)
					if err != nil {
						rt.Fatal(err)
					}
					for _, s := range list[:w.Applied] {
						for c, n := range s.cells {
							was := want[c]
							want[c] = usage.Sums{Requests: was.Requests + n.Requests, Units: was.Units + n.Units, BytesIn: was.BytesIn + n.BytesIn, BytesOut: was.BytesOut + n.BytesOut}
						}
					}
					if w.Applied > 0 && w.Head != list[w.Applied-1].b.Hash {
						rt.Fatalf("head of %s at %d is not that block's hash", id(&list[0].b), w.Applied)
					}
				}
				var sum, totals int64
				cells := 0
				for i := range 3 {
					r, err := v.Usage(t.Context(), fmt.Sprintf("c%d", i), base.AddDate(-1, 0, 0), base.AddDate(1, 0, 0))
					if err != nil {
						rt.Fatal(err)
					}
					for _, row := range r.Rows {
						cells++
						if want[row.Cell] != row.Sums {
							rt.Fatalf("cell %+v: got %+v, want %+v", row.Cell, row.Sums, want[row.Cell])
						}
						sum += row.Sums.Requests
					}
				}
				if cells != len(want) {
					rt.Fatalf("cells: got %d, want %d", cells, len(want))
				}
				z, err := v.Totals(t.Context(), base.AddDate(-1, 0, 0), base.AddDate(1, 0, 0))
				if err != nil {
					rt.Fatal(err)
				}
				for _, row := range z.Rows {
					totals += row.Sums.Requests
				}
				if sum != totals {
					rt.Fatalf("requests: %d by customers, %d in the totals", sum, totals)
				}
				if stateHash(t, m) != stateHash(t, other) {
					rt.Fatal("two machines fed the same log differ")
				}
			},
		})
	})
}
