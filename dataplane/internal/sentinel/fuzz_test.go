package sentinel

import (
	"maps"
	"slices"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
)

// Two readers of one grant: what is taken here the generated reader takes too, and reads alike, or a grant would let pass at one
// check what it does not at the other.
func FuzzParse(f *testing.F) {
	add := func(g *syncv1.Grant) {
		payload, err := proto.Marshal(g)
		if err != nil {
			f.Fatal(err)
		}
		raw, err := proto.Marshal(&syncv1.SignedGrant{Payload: payload, Signature: []byte("signature")})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	add(&syncv1.Grant{Id: "g1", Zone: "emea", Edge: "e", From: "eu-west", To: "eu-central", Policies: []string{"gdpr", "x"}, CatalogEpoch: 3, CatalogIndex: 4, ZoneEpoch: 5, TtlMs: 30_000, OfflineTtlMs: 60_000,
		Peers: []*syncv1.Peer{{Edge: "p", RelayAddr: "a:1"}, {Edge: "q"}, {}}})
	add(&syncv1.Grant{Id: "g", TtlMs: -1, OfflineTtlMs: 1 << 62})
	f.Add([]byte("\x0a\x06\x0a\x01g\x08\x07\x12\x00\x12\x01s")) // an id, and then a number where an id belongs
	f.Add([]byte("\x0a\x0a\x0a\x01g\x32\x01a\x38\x01\x3a\x01b"))
	f.Add([]byte("\x08\x01"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		g, err := parse(raw)
		if err != nil {
			return
		}
		var signed syncv1.SignedGrant
		if err := proto.Unmarshal(raw, &signed); err != nil {
			t.Fatalf("%x: taken here, and not by the generated reader: %v", raw, err)
		}
		var p syncv1.Grant
		if string(g.payload) != string(signed.Payload) || string(g.signature) != string(signed.Signature) {
			t.Fatalf("%x: %x signed with %x here, %x with %x there", raw, g.payload, g.signature, signed.Payload, signed.Signature)
		}
		if err := (proto.UnmarshalOptions{AllowPartial: true}).Unmarshal(signed.Payload, &p); err != nil {
			return // text that is no UTF-8: the first check refuses it
		}
		var peers []string
		for _, x := range p.Peers {
			peers = append(peers, x.GetEdge())
		}
		if g.id != p.Id || g.zone != p.Zone || g.edge != p.Edge || g.from != p.From || g.to != p.To || g.catalog != p.CatalogEpoch || g.store != p.ZoneEpoch {
			t.Fatalf("%x: %+v here, %v there", raw, g, &p)
		}
		for name, lists := range map[string][2][]string{"policies": {slices.Sorted(maps.Keys(g.policies)), p.Policies}, "peers": {slices.Sorted(maps.Keys(g.peers)), peers}} {
			for i, list := range lists {
				lists[i] = slices.DeleteFunc(slices.Clone(list), func(s string) bool { return s == "" })
				slices.Sort(lists[i])
				lists[i] = slices.Compact(lists[i])
			}
			if !slices.Equal(lists[0], lists[1]) {
				t.Fatalf("%x: %s are %q here, %q there", raw, name, lists[0], lists[1])
			}
		}
		for _, times := range [][2]int64{{int64(g.ttl), p.TtlMs}, {int64(g.offline), p.OfflineTtlMs}} {
			const most = 30 * 24 * time.Hour
			if got, ms := time.Duration(times[0]), times[1]; got != time.Duration(min(max(ms, 0), most.Milliseconds()))*time.Millisecond {
				t.Fatalf("%x: %v here, %d ms there", raw, got, ms)
			}
		}
	})
}
