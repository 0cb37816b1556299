package syncserver_test

import (
	"context"
	"fmt"
	"testing"

	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
)

// Two machines of one name at one node: what the first says after the second has taken its place is no word of the
// second, which may hold an older table.
func TestSubscribe_AReplacedStreamSaysNothing(t *testing.T) {
	w := newWorld(t, nil)
	const far = 1 << 40
	for n := range 30 {
		ctx, cancel := context.WithCancel(t.Context())
		first, err := w.client("emea/eu-west/edge/w1").Subscribe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		hello := func(incarnation string) *syncv1.SubscribeRequest {
			return &syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Hello{Hello: &syncv1.Hello{Protocol: 1, Incarnation: incarnation}}}
		}
		if err := first.Send(hello("0a")); err != nil {
			t.Fatal(err)
		}
		if _, err := first.Receive(); err != nil {
			t.Fatal(err)
		}
		ack := &syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Ack{Ack: &syncv1.Ack{
			Catalog: &syncv1.Position{Epoch: 1, Index: far, Sum: make([]byte, 32)}, Zone: &syncv1.Position{Epoch: 1, Index: far, Sum: make([]byte, 32)}}}}
		flooded := make(chan struct{})
		go func() {
			defer close(flooded)
			for first.Send(ack) == nil {
			}
		}()
		second, err := w.client("emea/eu-west/edge/w1").Subscribe(ctx)
		if err != nil {
			t.Fatal(err)
		}
		run := fmt.Sprintf("b%d", n)
		if err := second.Send(hello(run)); err != nil {
			t.Fatal(err)
		}
		if _, err := second.Receive(); err != nil {
			t.Fatal(err)
		}
		<-flooded
		for _, r := range w.server.Reports() {
			if r.Edge == "w1" && (r.Incarnation != run || r.Zone.GetIndex() == far) {
				t.Errorf("try %d: the report of run %s, want %s, says that it holds zone index %d, which the run before acknowledged", n, r.Incarnation, run, r.Zone.GetIndex())
			}
		}
		cancel()
	}
	st, err := w.client("emea/eu-west/edge/w1").Subscribe(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	_ = st.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Hello{Hello: &syncv1.Hello{Protocol: 1, Incarnation: "*"}}})
	if _, err := st.Receive(); fault.ReasonOf(err) != "INCARNATION_MALFORMED" {
		t.Errorf("an incarnation that cannot be: %v, want INCARNATION_MALFORMED", err)
	}
}
