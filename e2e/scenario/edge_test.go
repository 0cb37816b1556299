package scenario_test

import (
	"context"
	"net/http"
	"testing"
	"time"

	"connectrpc.com/connect"

	"bailiwick/e2e/harness"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/proto/gen/bailiwick/sync/v1/syncv1connect"
	"bailiwick/proto/gen/bailiwick/usage/v1/usagev1connect"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"
)

// stranger is an edge of the test's own: it joined like any other and speaks the public protocols.
type stranger struct {
	name   string
	source *identity.Source
	join   *joinv1.JoinResponse
	peers  map[string]string // control node → peer address
	http   *http.Client      // to the first of them
	base   string
}

// token makes a join token.
func token(t *testing.T, s *harness.Sandbox, zone, region, name string) string {
	t.Helper()
	return s.With(t).JoinToken(zone, region, name)
}

// joinEdge joins with a token of its own and leaves when the test ends. It offers no relay address, so nobody
// relays to it.
func joinEdge(t *testing.T, s *harness.Sandbox, zone, region, name string) *stranger {
	t.Helper()
	j := s.With(t).Join(zone, region, name)
	return &stranger{name: j.Name, source: j.Source, join: j.Answer, peers: j.Peers, http: j.HTTP, base: j.Base}
}

func (e *stranger) sync() syncv1connect.SyncServiceClient {
	return syncv1connect.NewSyncServiceClient(e.http, e.base, connect.WithInterceptors(rpcfault.Client()))
}

func (e *stranger) ingest() usagev1connect.IngestServiceClient {
	return usagev1connect.NewIngestServiceClient(e.http, e.base, connect.WithInterceptors(rpcfault.Client()))
}

// record subscribes and returns every message of the stream, as it came, until done says that it has seen
// enough or the time is up. It acknowledges like an edge, so that deltas follow the snapshot.
func (e *stranger) record(t *testing.T, patience time.Duration, done func(recorded []byte) bool) []byte {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	stream, err := e.sync().Subscribe(ctx)
	if err != nil {
		t.Fatalf("%s subscribes: %v", e.name, err)
	}
	defer stream.CloseResponse()
	defer stream.CloseRequest()
	if err := stream.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Hello{Hello: &syncv1.Hello{Protocol: 1, Version: "e2e"}}}); err != nil {
		t.Fatalf("%s says hello: %v", e.name, err)
	}
	var recorded []byte
	tables := 0
	for !done(recorded) {
		message, err := stream.Receive()
		if err != nil {
			if ctx.Err() != nil && tables > 0 {
				break
			}
			t.Fatalf("%s receives after %d tables: %v", e.name, tables, err)
		}
		raw, err := marshal(message)
		if err != nil {
			t.Fatal(err)
		}
		recorded = append(recorded, raw...)
		update, err := unmarshalUpdate(message)
		if err != nil {
			t.Fatal(err)
		}
		if update == nil {
			continue
		}
		tables++
		if update.GetMore() {
			continue
		}
		ack := &syncv1.Ack{Catalog: update.GetCatalogTo(), Zone: update.GetZoneTo()}
		if err := stream.Send(&syncv1.SubscribeRequest{Message: &syncv1.SubscribeRequest_Ack{Ack: ack}}); err != nil {
			t.Fatalf("%s acknowledges: %v", e.name, err)
		}
	}
	return recorded
}
