package proxy_test

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

const connectPath = "/grpc.testing.TestService/"

// connecting makes w's western region send to a service of connect-go's, which speaks Connect, gRPC and gRPC-Web over HTTP/2 in
// the clear; it gives the address of a door over TLS.
func connecting(t *testing.T, w *world, change func(*table.API)) string {
	mux := http.NewServeMux()
	mux.Handle(connectPath+"Unary", connect.NewUnaryHandler(connectPath+"Unary", func(ctx context.Context, r *connect.Request[pb.SimpleRequest]) (*connect.Response[pb.SimpleResponse], error) {
		switch text := string(r.Msg.GetPayload().GetBody()); text {
		case "missing":
			err := connect.NewError(connect.CodeNotFound, errors.New("none of that name: ä%"))
			if d, bad := connect.NewErrorDetail(&pb.Payload{Body: []byte("a detail")}); bad == nil {
				err.AddDetail(d)
			}
			err.Meta().Set("X-Meta", "m")
			return nil, err
		case "wait":
			<-ctx.Done()
			return nil, ctx.Err()
		case "deadline":
			at, ok := ctx.Deadline()
			return connect.NewResponse(&pb.SimpleResponse{Payload: &pb.Payload{Body: fmt.Appendf(nil, "%v %v", ok, time.Until(at) > time.Minute)}}), nil
		}
		out := connect.NewResponse(&pb.SimpleResponse{Payload: r.Msg.GetPayload()})
		out.Header().Set("X-Head", "h")
		out.Trailer().Set("X-Tail", "t")
		return out, nil
	}, connect.WithIdempotency(connect.IdempotencyNoSideEffects)))
	mux.Handle(connectPath+"Out", connect.NewServerStreamHandler(connectPath+"Out", func(ctx context.Context, r *connect.Request[pb.StreamingOutputCallRequest], s *connect.ServerStream[pb.StreamingOutputCallResponse]) error {
		for _, p := range r.Msg.GetResponseParameters() {
			if err := s.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, p.GetSize())}}); err != nil {
				return err
			}
		}
		s.ResponseTrailer().Set("X-Tail", "t")
		if string(r.Msg.GetPayload().GetBody()) == "fail" {
			return connect.NewError(connect.CodeAborted, errors.New("in the middle"))
		}
		return nil
	}))
	mux.Handle(connectPath+"In", connect.NewClientStreamHandler(connectPath+"In", func(ctx context.Context, s *connect.ClientStream[pb.StreamingInputCallRequest]) (*connect.Response[pb.StreamingInputCallResponse], error) {
		n := int32(0)
		for s.Receive() {
			n += int32(len(s.Msg().GetPayload().GetBody()))
		}
		return connect.NewResponse(&pb.StreamingInputCallResponse{AggregatedPayloadSize: n}), s.Err()
	}))
	mux.Handle(connectPath+"Both", connect.NewBidiStreamHandler(connectPath+"Both", func(ctx context.Context, s *connect.BidiStream[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
		for {
			m, err := s.Receive()
			if errors.Is(err, io.EOF) {
				return nil
			} else if err != nil {
				return err
			}
			if err := s.Send(&pb.StreamingOutputCallResponse{Payload: m.GetPayload()}); err != nil {
				return err
			}
		}
	}))
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var h2c http.Protocols
	h2c.SetUnencryptedHTTP2(true)
	srv := &http.Server{Handler: mux, Protocols: &h2c}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	_, addr := speaking(t, w, func(a *table.API) {
		a.Targets = []string{"http://" + l.Addr().String()}
		a.Protocols = map[string]string{a.Targets[0]: "h2c"}
		if change != nil {
			change(a)
		}
	})
	return addr
}

// keyed is a client that sends a key with each request, to an address that is not the API's host.
type keyed struct {
	*http.Client
	key string
}

func (k keyed) Do(r *http.Request) (*http.Response, error) {
	r.Host = "orders.test"
	r.Header.Set("X-Api-Key", k.key)
	return k.Client.Do(r)
}

func newKeyed(t *testing.T, key string) keyed {
	tr := &http.Transport{TLSClientConfig: &tls.Config{ServerName: "orders.test", InsecureSkipVerify: true}, ForceAttemptHTTP2: true}
	t.Cleanup(tr.CloseIdleConnections)
	return keyed{&http.Client{Transport: tr}, key}
}

// connect-go's client and its server do all they can through an edge, in each protocol and encoding that they speak, and each call
// is one row of what came of it.
func TestConnect_TheirClientAndServer(t *testing.T) {
	w := newWorld(t, patient)
	at := "https://" + connecting(t, w, nil)
	plain, slow := newKeyed(t, w.key), func(ctx context.Context) (context.Context, context.CancelFunc) {
		return context.WithTimeout(ctx, time.Minute)
	}
	for name, c := range map[string]struct {
		options []connect.ClientOption
		http1   bool // over HTTP/1.1 in the clear: nothing that streams both ways
	}{
		"Connect":               {options: nil},
		"Connect, JSON":         {options: []connect.ClientOption{connect.WithProtoJSON()}},
		"Connect, GET":          {options: []connect.ClientOption{connect.WithHTTPGet()}},
		"gRPC":                  {options: []connect.ClientOption{connect.WithGRPC()}},
		"gRPC-Web":              {options: []connect.ClientOption{connect.WithGRPCWeb()}},
		"gRPC-Web, compressed":  {options: []connect.ClientOption{connect.WithGRPCWeb(), connect.WithSendGzip()}},
		"Connect over HTTP/1.1": {options: nil, http1: true}, "gRPC-Web over HTTP/1.1": {options: []connect.ClientOption{connect.WithGRPCWeb()}, http1: true},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := slow(t.Context())
			defer cancel()
			at, before := at, w.west.meter.len()
			if c.http1 {
				at = w.west.server.URL
			}
			var want []uint16 // of the rows

			unary := connect.NewClient[pb.SimpleRequest, pb.SimpleResponse](plain, at+connectPath+"Unary", append(c.options, connect.WithIdempotency(connect.IdempotencyNoSideEffects))...)
			r, err := unary.CallUnary(ctx, connect.NewRequest(payload("hello")))
			if err != nil || string(r.Msg.GetPayload().GetBody()) != "hello" || r.Header().Get("X-Head") != "h" || r.Trailer().Get("X-Tail") != "t" {
				t.Fatalf("unary: got %v, %v", r, err)
			}
			want = append(want, 200)

			_, err = unary.CallUnary(ctx, connect.NewRequest(payload("missing")))
			said, ok := errors.AsType[*connect.Error](err)
			if !ok || said.Code() != connect.CodeNotFound || said.Message() != "none of that name: ä%" || len(said.Details()) != 1 || said.Meta().Get("X-Meta") != "m" {
				t.Fatalf("an error: got %v", err)
			}
			if d, err := said.Details()[0].Value(); err != nil || string(d.(*pb.Payload).GetBody()) != "a detail" {
				t.Errorf("its detail: got %v, %v", d, err)
			}
			want = append(want, 404)

			long, leave := context.WithTimeout(ctx, time.Hour) // the minute of ctx is what there is
			if r, err = unary.CallUnary(long, connect.NewRequest(payload("deadline"))); err != nil || string(r.Msg.GetPayload().GetBody()) != "true false" {
				t.Errorf("deadline: got %v, %v, want the client's minute at the upstream", r, err)
			}
			leave()
			want = append(want, 200)
			out, err := connect.NewClient[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse](plain, at+connectPath+"Out", c.options...).CallServerStream(ctx,
				connect.NewRequest(&pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{Size: 1}, {Size: 100_000}, {Size: 0}}, Payload: &pb.Payload{Body: []byte("fail")}}))
			if err != nil {
				t.Fatal(err)
			}
			n := 0
			for out.Receive() {
				n += 1 + len(out.Msg().GetPayload().GetBody())
			}
			if n != 100_004 || connect.CodeOf(out.Err()) != connect.CodeAborted || !strings.Contains(out.Err().Error(), "in the middle") || out.ResponseTrailer().Get("X-Tail") != "t" {
				t.Errorf("server's stream: got %d bytes, %v, trailer %v", n, out.Err(), out.ResponseTrailer())
			}
			out.Close()
			want = append(want, 0) // what an end within a body says is its reader's to know; of gRPC it is known

			in := connect.NewClient[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse](plain, at+connectPath+"In", c.options...).CallClientStream(ctx)
			for range 5 {
				if err := in.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: make([]byte, 30_000)}}); err != nil {
					t.Fatal(err)
				}
			}
			if sum, err := in.CloseAndReceive(); err != nil || sum.Msg.GetAggregatedPayloadSize() != 150_000 {
				t.Errorf("client's stream: got %v, %v", sum, err)
			}
			want = append(want, 200)

			if !c.http1 {
				both := connect.NewClient[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse](plain, at+connectPath+"Both", c.options...).CallBidiStream(ctx)
				for i := range 3 { // each is answered before the next is sent
					if err := both.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: make([]byte, i+1)}}); err != nil {
						t.Fatal(err)
					}
					if m, err := both.Receive(); err != nil || len(m.GetPayload().GetBody()) != i+1 {
						t.Fatalf("both ways: got %v, %v", m, err)
					}
				}
				both.CloseRequest()
				if _, err := both.Receive(); !errors.Is(err, io.EOF) {
					t.Errorf("both ways: ended with %v", err)
				}
				both.CloseResponse()
				want = append(want, 200)
			}

			var rows []usage.Row
			eventually(t, 20*time.Second, "a row of each call", func() bool {
				rows = nil
				for _, row := range w.west.meter.since(before) {
					if row.Requests > 0 {
						rows = append(rows, row)
					}
				}
				return len(rows) >= len(want)
			})
			if len(rows) != len(want) {
				t.Fatalf("%d rows of %d calls", len(rows), len(want))
			}
			for i, row := range rows {
				if want[i] != 0 && row.Status != want[i] {
					t.Errorf("row %d: %d, want %d", i, row.Status, want[i])
				}
			}
			if w.central.up.count.Load() != 0 || w.west.up.count.Load() != 0 {
				t.Error("another upstream was asked")
			}
		})
	}
}

// What the edge itself refuses connect-go's client understands, in each protocol.
func TestConnect_TheirClientHearsRefusals(t *testing.T) {
	w := newWorld(t, patient)
	at := "https://" + connecting(t, w, func(a *table.API) { a.Routes[0].Scope = "none-has-it" })
	for name, options := range map[string][]connect.ClientOption{"Connect": nil, "gRPC": {connect.WithGRPC()}, "gRPC-Web": {connect.WithGRPCWeb()}} {
		for key, want := range map[string]connect.Code{"": connect.CodeUnauthenticated, w.key: connect.CodePermissionDenied} {
			client := newKeyed(t, key)
			_, err := connect.NewClient[pb.SimpleRequest, pb.SimpleResponse](client, at+connectPath+"Unary", options...).CallUnary(t.Context(), connect.NewRequest(payload("x")))
			if connect.CodeOf(err) != want {
				t.Errorf("%s: got %v, want %v", name, err, want)
			}
			out, err := connect.NewClient[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse](client, at+connectPath+"Out", options...).CallServerStream(t.Context(), connect.NewRequest(&pb.StreamingOutputCallRequest{}))
			if err == nil {
				out.Receive()
				err = out.Err()
				out.Close()
			}
			if connect.CodeOf(err) != want {
				t.Errorf("%s, a stream: got %v, want %v", name, err, want)
			}
		}
	}
}

// Clients of connect-go hear that their time is over, in each protocol.
func TestConnect_TheirClientHasItsTime(t *testing.T) {
	w := newWorld(t, patient)
	at := "https://" + connecting(t, w, nil)
	for name, options := range map[string][]connect.ClientOption{"Connect": nil, "gRPC": {connect.WithGRPC()}, "gRPC-Web": {connect.WithGRPCWeb()}} {
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		if _, err := connect.NewClient[pb.SimpleRequest, pb.SimpleResponse](newKeyed(t, w.key), at+connectPath+"Unary", options...).CallUnary(ctx, connect.NewRequest(payload("wait"))); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
			t.Errorf("%s: got %v", name, err)
		}
		cancel()
	}
}

// Clients of Connect that give their requests hardly any time take no upstream from others, though it says 504 at its end.
func TestBlame_ConnectClientsInAHurry(t *testing.T) {
	w := newWorld(t, patient)
	at := "https://" + connecting(t, w, nil)
	for _, options := range [][]connect.ClientOption{nil, {connect.WithHTTPGet(), connect.WithIdempotency(connect.IdempotencyNoSideEffects)}} {
		unary := connect.NewClient[pb.SimpleRequest, pb.SimpleResponse](newKeyed(t, w.key), at+connectPath+"Unary", options...)
		for range 8 {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
			if _, err := unary.CallUnary(ctx, connect.NewRequest(payload("wait"))); err == nil {
				t.Error("a call that waits is answered")
			}
			cancel()
		}
		// Those that stay for the answer hear of it too.
		for range 8 {
			a := w.send("POST", connectPath+"Unary", `{"payload":{"body":"d2FpdA=="}}`, "Content-Type", "application/json", "Connect-Protocol-Version", "1", "Connect-Timeout-Ms", "20")
			if a.status != 504 || !strings.Contains(a.body, "deadline_exceeded") {
				t.Errorf("at its deadline: got %d %q, %v", a.status, a.body, a.err)
			}
		}
		if r, err := unary.CallUnary(t.Context(), connect.NewRequest(payload("hello"))); err != nil || string(r.Msg.GetPayload().GetBody()) != "hello" {
			t.Errorf("after clients in a hurry: got %v, %v", r, err)
		}
	}
	if n := w.central.up.count.Load(); n != 0 {
		t.Errorf("%d requests went abroad", n)
	}
}
