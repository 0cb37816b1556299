package failover_test

import (
	"crypto/ed25519"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/failover"
	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// A grant comes from a peer as bytes of a header. It is one only if its zone has signed just that, and then it says what was
// signed, for a time that ends.
func FuzzVerify(f *testing.F) {
	key := ed25519.NewKeyFromSeed(make([]byte, 32))
	var objects []table.Object
	for kind, v := range map[table.Kind]any{table.KindSettings: table.Settings{Zone: "emea", Region: "eu-west"}, table.KindZoneKey: table.ZoneKey{Zone: "emea", PublicKey: key.Public().(ed25519.PublicKey)}} {
		id := map[table.Kind]string{table.KindSettings: table.SettingsID, table.KindZoneKey: "emea"}[kind]
		o, err := table.Encode(kind, id, v)
		if err != nil {
			f.Fatal(err)
		}
		objects = append(objects, o)
	}
	c, z := revision.Revision{Epoch: 1, Index: 1}, revision.Revision{Epoch: 1, Index: 1}
	for _, o := range objects {
		if o.Kind.Scope() == table.ScopeZone {
			z.Sum = z.Sum.Add(o.Sum())
		} else {
			c.Sum = c.Sum.Add(o.Sum())
		}
	}
	tab, err := policy.NewTable(objects, c, z)
	if err != nil {
		f.Fatal(err)
	}
	sign := func(payload []byte) []byte {
		return ed25519.Sign(key, append([]byte(failover.SignaturePrefix), payload...))
	}
	for _, g := range []*syncv1.Grant{
		{Id: "g1", Zone: "emea", Edge: "e", From: "eu-west", To: "eu-central", Policies: []string{"gdpr"}, TtlMs: 30_000, Peers: []*syncv1.Peer{{Edge: "p", RelayAddr: "a:1"}}},
		{Id: "g1", Zone: "emea", From: "a", To: "b", TtlMs: 1 << 62, OfflineTtlMs: -1}, {Id: "g1", Zone: "emea", From: "a", To: "a", TtlMs: 1}, {Id: "g1", Zone: "us", From: "a", To: "b", TtlMs: 1}, {},
	} {
		payload, err := proto.Marshal(g)
		if err != nil {
			f.Fatal(err)
		}
		for _, signed := range []bool{true, false} {
			raw, _ := proto.Marshal(&syncv1.SignedGrant{Payload: payload, Signature: sign(payload)})
			f.Add(raw, signed)
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte, resign bool) {
		var signed syncv1.SignedGrant
		if proto.Unmarshal(raw, &signed) != nil {
			return
		}
		if resign {
			signed.Signature = sign(signed.Payload)
		}
		g, err := failover.Verify(tab, &signed)
		if err != nil {
			return
		}
		if string(signed.Signature) != string(sign(signed.Payload)) {
			t.Fatalf("taken with a signature that is not the zone's: %x", raw)
		}
		var p syncv1.Grant
		if err := proto.Unmarshal(signed.Payload, &p); err != nil {
			t.Fatal(err)
		}
		const most = 30 * 24 * time.Hour
		if g.ID != p.Id || g.ID == "" || g.Zone != "emea" || g.From != p.From || g.To != p.To || g.From == g.To || g.Process.Edge != p.Edge || len(g.Policies) != len(p.Policies) ||
			g.TTL <= 0 || g.TTL > most || g.OfflineTTL < g.TTL || g.OfflineTTL > most {
			t.Fatalf("%v became %+v", &p, g)
		}
	})
}
