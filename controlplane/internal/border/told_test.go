package border_test

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/model"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
)

// The last relays before a closure are told when there is nothing left to be granted.
func TestKeeper_LogsWhatAnEdgeTellsThoughItGetsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := open(t, 2*time.Second, time.Hour)
		w.put(w.store, model.PrefixClosure+"c", model.Closure{Name: "c", Zone: "emea", From: "eu-west"})
		w.eventually("the tightening is noticed", func() error {
			if len(w.inForce()) != 1 {
				return fault.New(fault.NotFound, "NONE", "no record")
			}
			return nil
		})
		good := func() *syncv1.RequestGrantsRequest {
			return &syncv1.RequestGrantsRequest{Zone: w.position(),
				Relays:   []*syncv1.RelayMinute{{Epoch: 1, Seq: 1, Minute: 60, Grant: "g", From: "eu-west", To: "eu-central", Count: 3, Digest: bytes.Repeat([]byte{1}, 32)}},
				Refusals: []*syncv1.RefusalMinute{{Minute: 60, Rule: "no-pair", From: "eu-west", To: "us-east", Count: 2}}}
		}
		response, err := w.keeper.Grant(t.Context(), "eu-west-edge", "eu-west", good())
		if err != nil || len(response.Grants) != 0 {
			t.Fatalf("got %v, %v, want no grant and no error", response, err)
		}
		kv, ok := w.store.Local().Get(model.PrefixGrant + "eu-west-edge")
		if !ok {
			t.Fatal("what the edge told is not in the zone's log")
		}
		r, err := model.Decode[model.GrantRecord](kv.Key, kv.Value)
		if err != nil || len(r.Relays) != 1 || r.Relays[0].Count != 3 || len(r.Refusals) != 1 || r.Refusals[0].Count != 2 || len(r.Grants) != 0 {
			t.Errorf("the record is %+v, %v", r, err)
		}
		for what, spoil := range map[string]func(*syncv1.RequestGrantsRequest){
			"no digest":      func(q *syncv1.RequestGrantsRequest) { q.Relays[0].Digest = nil },
			"no count":       func(q *syncv1.RequestGrantsRequest) { q.Relays[0].Count = 0 },
			"a long text":    func(q *syncv1.RequestGrantsRequest) { q.Relays[0].Grant = string(make([]byte, 200)) },
			"too many":       func(q *syncv1.RequestGrantsRequest) { q.Relays = make([]*syncv1.RelayMinute, 300) },
			"a long refusal": func(q *syncv1.RequestGrantsRequest) { q.Refusals[0].Rule = string(make([]byte, 200)) },
		} {
			q := good()
			spoil(q)
			if _, err := w.keeper.Grant(t.Context(), "eu-west-edge", "eu-west", q); fault.ReasonOf(err) != "RELAYS_MALFORMED" {
				t.Errorf("%s: %v, want RELAYS_MALFORMED", what, err)
			}
		}
	})
}
