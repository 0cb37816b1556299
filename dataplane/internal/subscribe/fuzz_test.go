package subscribe

import (
	"testing"

	"google.golang.org/protobuf/proto"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/table"
)

// An update is read here by hand, since the generated reader costs too much for a million objects: what is taken the generated
// one takes too, and reads alike.
func FuzzUpdate(f *testing.F) {
	add := func(u *syncv1.TableUpdate) {
		b, err := proto.Marshal(u)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	add(&syncv1.TableUpdate{Edge: "e1", Zone: "emea", Region: "eu-west", Upserts: []*syncv1.Object{{Kind: 1, Id: "a", Data: []byte("{}")}, {Kind: 255, Id: "ü"}}})
	add(&syncv1.TableUpdate{Upserts: []*syncv1.Object{{Kind: 256, Id: "a"}}})
	f.Add([]byte("\x52\x04\x08\x01\x08\x02\x52\x00"))
	f.Add([]byte("\x50\x01\x52\xff\xff\xff\xff\x0f"))
	f.Fuzz(func(t *testing.T, payload []byte) {
		u, count, err := readHead(payload)
		if err != nil {
			return
		}
		p := &part{TableUpdate: u, signed: &syncv1.Signed{Payload: payload}, count: count}
		var objects []table.Object
		if p.upserts(func(o table.Object) { objects = append(objects, o) }) != nil {
			return
		}
		var theirs syncv1.TableUpdate
		if err := proto.Unmarshal(payload, &theirs); err != nil {
			t.Fatalf("%x: taken here, and not by the generated reader: %v", payload, err)
		}
		if len(objects) != len(theirs.Upserts) {
			t.Fatalf("%x: %d objects here, %d there", payload, len(objects), len(theirs.Upserts))
		}
		for i, o := range theirs.Upserts {
			if got := objects[i]; got.ID != o.Id || uint64(got.Kind) != uint64(o.Kind) || string(got.Data) != string(o.Data) {
				t.Fatalf("%x: object %d is %+v here, %v there", payload, i, got, o)
			}
		}
		theirs.Upserts = nil
		for _, m := range []*syncv1.TableUpdate{u, &theirs} { // fields that nobody knows tell nobody anything
			m.ProtoReflect().SetUnknown(nil)
		}
		if !proto.Equal(u, &theirs) {
			t.Fatalf("%x: the head is %v here, %v there", payload, u, &theirs)
		}
	})
}
