package proxy_test

import (
	"context"
	"crypto/tls"
	"encoding/base64"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	pb "google.golang.org/grpc/interop/grpc_testing"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/rpc"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

// service is a gRPC upstream. Its unary call answers by the payload's text: a code's name is an error, "wait" waits until the
// call is cancelled, "deadline" says in a trailer how long is left.
type service struct {
	pb.UnimplementedTestServiceServer
	here, gone chan struct{} // one for each call that waits, and that was cancelled meanwhile
	over       chan struct{} // closed at the test's end
}

func (s *service) UnaryCall(ctx context.Context, r *pb.SimpleRequest) (*pb.SimpleResponse, error) {
	grpc.SetHeader(ctx, metadata.Pairs("x-head", "h"))
	grpc.SetTrailer(ctx, metadata.Pairs("x-tail", "t"))
	switch text := string(r.GetPayload().GetBody()); text {
	case "unavailable":
		return nil, status.Error(codes.Unavailable, "not now")
	case "missing":
		return nil, status.Error(codes.NotFound, "none of that name")
	case "begun and unavailable":
		grpc.SendHeader(ctx, nil)
		return nil, status.Error(codes.Unavailable, "not now")
	case "wait":
		s.here <- struct{}{}
		<-ctx.Done()
		s.gone <- struct{}{}
		return nil, ctx.Err()
	case "deadline":
		if at, ok := ctx.Deadline(); ok {
			grpc.SetTrailer(ctx, metadata.Pairs("x-left", time.Until(at).String()))
		}
	}
	return &pb.SimpleResponse{Payload: r.GetPayload()}, nil
}

func (s *service) StreamingOutputCall(r *pb.StreamingOutputCallRequest, out grpc.ServerStreamingServer[pb.StreamingOutputCallResponse]) error {
	for _, p := range r.GetResponseParameters() {
		if err := out.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, p.GetSize())}}); err != nil {
			return err
		}
	}
	if string(r.GetPayload().GetBody()) == "begun" {
		if err := out.SendHeader(nil); err != nil {
			return err
		}
		<-s.over
	}
	if string(r.GetPayload().GetBody()) == "wait" {
		<-s.over // whatever time it was given
	}
	return nil
}

func (s *service) StreamingInputCall(in grpc.ClientStreamingServer[pb.StreamingInputCallRequest, pb.StreamingInputCallResponse]) error {
	var n int32
	for {
		r, err := in.Recv()
		if errors.Is(err, io.EOF) {
			return in.SendAndClose(&pb.StreamingInputCallResponse{AggregatedPayloadSize: n})
		} else if err != nil {
			return err
		}
		n += int32(len(r.GetPayload().GetBody()))
	}
}

func (s *service) FullDuplexCall(both grpc.BidiStreamingServer[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
	for {
		r, err := both.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := both.Send(&pb.StreamingOutputCallResponse{Payload: r.GetPayload()}); err != nil {
			return err
		}
	}
}

// speaking makes w's western region send to a gRPC service, and opens a door to it over TLS.
func speaking(t *testing.T, w *world, change func(*table.API)) (*service, string) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s, srv := &service{here: make(chan struct{}, 64), gone: make(chan struct{}, 64), over: make(chan struct{})}, grpc.NewServer()
	pb.RegisterTestServiceServer(srv, s)
	var wg sync.WaitGroup
	wg.Go(func() { srv.Serve(l) })
	t.Cleanup(func() { close(s.over); srv.Stop(); wg.Wait() })
	w.west.orders = func(a *table.API) {
		a.Targets = []string{"http://" + l.Addr().String()}
		a.Protocols = map[string]string{a.Targets[0]: "h2c"}
		a.Routes[0].Timeout = time.Minute
		if change != nil {
			change(a)
		}
	}
	w.west.tables.Swap(w.view(w.west, true))

	cert := httptest.NewUnstartedServer(nil)
	cert.StartTLS()
	t.Cleanup(cert.Close)
	door := proxy.NewServers(proxy.ServersConfig{Handler: w.west.proxy, TLS: &tls.Config{Certificates: cert.TLS.Certificates}, Logger: slog.New(slog.DiscardHandler)}).HTTPS
	front, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	wg.Go(func() { door.Serve(front) })
	t.Cleanup(func() { door.Close() })
	return s, front.Addr().String()
}

func dialGRPC(t *testing.T, w *world, addr string) (pb.TestServiceClient, context.Context) {
	cc, err := grpc.NewClient(addr, grpc.WithAuthority("orders.test"), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{ServerName: "orders.test", InsecureSkipVerify: true})))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cc.Close() })
	return pb.NewTestServiceClient(cc), metadata.AppendToOutgoingContext(t.Context(), "x-api-key", w.key)
}

func payload(text string) *pb.SimpleRequest {
	return &pb.SimpleRequest{Payload: &pb.Payload{Body: []byte(text)}}
}

func TestGRPC_AllFourForms(t *testing.T) {
	w := newWorld(t, patient)
	_, addr := speaking(t, w, nil)
	c, ctx := dialGRPC(t, w, addr)

	var head, tail metadata.MD
	r, err := c.UnaryCall(ctx, payload("hello"), grpc.Header(&head), grpc.Trailer(&tail))
	if err != nil || string(r.GetPayload().GetBody()) != "hello" || strings.Join(head["x-head"], "") != "h" || strings.Join(tail["x-tail"], "") != "t" {
		t.Fatalf("unary: got %v, %v, head %v, tail %v", r, err, head, tail)
	}
	out, err := c.StreamingOutputCall(ctx, &pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{Size: 10}, {Size: 100_000}, {Size: 0}}})
	if err != nil {
		t.Fatal(err)
	}
	var sizes []int
	for {
		m, err := out.Recv()
		if errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatal(err)
		}
		sizes = append(sizes, len(m.GetPayload().GetBody()))
	}
	if len(sizes) != 3 || sizes[1] != 100_000 {
		t.Errorf("server's stream: got %v", sizes)
	}
	in, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := in.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: make([]byte, 70_000)}}); err != nil {
			t.Fatal(err)
		}
	}
	if sum, err := in.CloseAndRecv(); err != nil || sum.GetAggregatedPayloadSize() != 350_000 {
		t.Errorf("client's stream: got %v, %v", sum, err)
	}
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 3 { // each is answered before the next is sent
		if err := both.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: make([]byte, i+1)}}); err != nil {
			t.Fatal(err)
		}
		if m, err := both.Recv(); err != nil || len(m.GetPayload().GetBody()) != i+1 {
			t.Fatalf("both ways: got %v, %v", m, err)
		}
	}
	both.CloseSend()
	if _, err := both.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("both ways: ended with %v", err)
	}
	rows := w.west.meter.since(0)
	if len(rows) != 4 {
		t.Fatalf("%d rows of four calls", len(rows))
	}
	for i, row := range rows {
		if row.Outcome != usage.OutcomeSuccess || row.Requests != 1 || row.Status != 200 || i == 1 && row.BytesOut < 100_000 || i == 2 && row.BytesIn < 350_000 {
			t.Errorf("row %d: %+v", i, row)
		}
	}
}

func TestGRPC_StatusIsWhatCounts(t *testing.T) {
	w := newWorld(t, patient)
	_, addr := speaking(t, w, nil)
	c, ctx := dialGRPC(t, w, addr)
	for text, want := range map[string]struct {
		code    codes.Code
		status  uint16
		outcome usage.Outcome
	}{"unavailable": {codes.Unavailable, 503, usage.OutcomeOf(503)}, "missing": {codes.NotFound, 404, usage.OutcomeOf(404)}} {
		_, err := c.UnaryCall(ctx, payload(text))
		if row := w.west.meter.last(); status.Code(err) != want.code || row.Status != want.status || row.Outcome != want.outcome {
			t.Errorf("%s: got %v, row %+v, want %v counted as %d", text, err, row, want.code, want.status)
		}
	}
}

func TestGRPC_RefusalsAreItsOwn(t *testing.T) {
	w := newWorld(t, patient)
	_, addr := speaking(t, w, func(a *table.API) { a.Routes[0].Scope = "none-has-it" })
	c, ctx := dialGRPC(t, w, addr)
	if _, err := c.UnaryCall(t.Context(), payload("x")); status.Code(err) != codes.Unauthenticated || !strings.Contains(status.Convert(err).Message(), "key-missing") {
		t.Errorf("without a key: got %v", err)
	}
	if _, err := c.UnaryCall(ctx, payload("x")); status.Code(err) != codes.PermissionDenied || !strings.Contains(status.Convert(err).Message(), "scope-missing") {
		t.Errorf("without a scope: got %v", err)
	}
	if row := w.west.meter.last(); row.Status != 403 || row.Outcome != usage.OutcomeRefused {
		t.Errorf("got row %+v, want 403, refused", row)
	}
}

func TestGRPC_DeadlineAndCancellation(t *testing.T) {
	w := newWorld(t, patient)
	s, addr := speaking(t, w, func(a *table.API) { a.Routes[0].Deadline = time.Hour })
	c, ctx := dialGRPC(t, w, addr)
	for _, given := range []time.Duration{0, 10 * time.Minute, 5 * time.Hour} { // the route's hour is what there is at most
		ctx, want := ctx, time.Hour
		if given > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, given)
			defer cancel()
			want = min(want, given)
		}
		var tail metadata.MD
		if _, err := c.UnaryCall(ctx, payload("deadline"), grpc.Trailer(&tail)); err != nil || len(tail["x-left"]) != 1 {
			t.Fatalf("given %v: got %v, %v", given, tail, err)
		}
		if left, _ := time.ParseDuration(tail["x-left"][0]); left > want || left < want-5*time.Minute {
			t.Errorf("given %v the upstream has %v, want about %v", given, left, want)
		}
	}
	left, leave := context.WithCancel(ctx)
	go func() { <-s.here; leave() }()
	if _, err := c.UnaryCall(left, payload("wait")); status.Code(err) != codes.Canceled {
		t.Errorf("left: got %v", err)
	}
	<-s.gone // the upstream was told
	// A client that says when it leaves and does not is told so itself: the edge speaks at the end of that time.
	if a := w.send("POST", "/grpc.testing.TestService/UnaryCall", "\x00\x00\x00\x00\x08\x1a\x06\x12\x04wait", "Content-Type", "application/grpc", "Grpc-Timeout", "50m"); a.header.Get("Grpc-Status") != "4" {
		t.Errorf("at its deadline: got %d %v %v", a.status, a.header, a.err)
	}
	// However many are in a hurry, the upstream stays well for others.
	for range 5 {
		w.send("POST", "/grpc.testing.TestService/UnaryCall", "\x00\x00\x00\x00\x08\x1a\x06\x12\x04wait", "Content-Type", "application/grpc", "Grpc-Timeout", "1m")
	}
	if _, err := c.UnaryCall(ctx, payload("hello")); err != nil || w.central.up.count.Load() != 0 {
		t.Errorf("after clients in a hurry: got %v, and %d went abroad", err, w.central.up.count.Load())
	}
}

// A stream whose time is over between two messages ends with gRPC's status for that, behind all that had come, in a trailer or where
// its words have their end; at home and from another region. grpc-go's client says of a reset that the call was cancelled.
func TestGRPC_TheTimeOfAStream(t *testing.T) {
	t.Parallel()
	for _, abroad := range []bool{false, true} {
		w := newWorld(t, patient)
		var deadline time.Duration
		_, addr := speaking(t, w, func(a *table.API) { a.Routes[0].Deadline, a.Routes[0].GRPCWeb = deadline, true })
		if dead := "http://" + deadAddr(t); abroad {
			w.central.orders = w.west.orders
			w.west.orders = func(a *table.API) {
				a.Targets, a.Routes[0].Deadline, a.Routes[0].GRPCWeb = []string{dead}, deadline, true
				a.Protocols = map[string]string{dead: "h2c"}
			}
			w.central.tables.Swap(w.view(w.central, true))
		}
		c, ctx := dialGRPC(t, w, addr)
		ask := &pb.StreamingOutputCallRequest{ResponseParameters: []*pb.ResponseParameters{{Size: 10}, {Size: 20}}, Payload: &pb.Payload{Body: []byte("wait")}}
		for deadline = 500 * time.Millisecond; ; deadline *= 3 { // until there is time for both messages, however slow the machine
			w.west.tables.Swap(w.view(w.west, abroad)) // else a target that was slow has another asked
			out, err := c.StreamingOutputCall(ctx, ask)
			if err != nil {
				t.Fatal(err)
			}
			if _, err = out.Recv(); err == nil {
				_, err = out.Recv()
			}
			if status.Code(err) == codes.DeadlineExceeded && deadline < time.Minute {
				continue
			} else if err != nil {
				t.Fatalf("abroad %v: the messages: %v", abroad, err)
			}
			if _, err = out.Recv(); status.Code(err) != codes.DeadlineExceeded {
				t.Errorf("abroad %v: when the time is over: got %v", abroad, err)
			}
			break
		}
		if row := w.final(); row.Outcome != usage.OutcomeUpstreamError || row.Status != 504 {
			t.Errorf("abroad %v: row %+v", abroad, row)
		}
		data, err := proto.Marshal(ask)
		if err != nil {
			t.Fatal(err)
		}
		var a answer
		for ; ; deadline *= 3 {
			w.west.tables.Swap(w.view(w.west, abroad)) // else a target that was slow has another asked
			a = w.send("POST", "/grpc.testing.TestService/StreamingOutputCall", "\x00\x00\x00\x00"+string(rune(len(data)))+string(data), "Content-Type", "application/grpc-web")
			if a.header.Get("Grpc-Status") == "" || deadline > time.Minute {
				break
			}
		}
		if a.status != 200 || !strings.Contains(strings.ToLower(a.body), "grpc-status: 4") {
			t.Errorf("abroad %v: gRPC-Web: got %d %q, %v", abroad, a.status, a.body, a.err)
		}
	}
}

func TestGRPC_CountsMessages(t *testing.T) {
	w := newWorld(t, patient)
	_, addr := speaking(t, w, func(a *table.API) {
		a.Routes[0].Units, a.Routes[0].MaxRequestBytes = &table.Units{PerMessages: 2, Most: 50}, 100
	})
	c, ctx := dialGRPC(t, w, addr)
	in, err := c.StreamingInputCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	for range 8 { // 8 of 50 bytes, and one back: more than 100 bytes in all, and none of them
		if err := in.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: make([]byte, 50)}}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := in.CloseAndRecv(); err != nil {
		t.Fatal(err)
	}
	if got := w.west.meter.paid(); got != 5 {
		t.Errorf("got %d units of 9 messages, want 5", got)
	}
	if in, err = c.StreamingInputCall(ctx); err != nil {
		t.Fatal(err)
	}
	in.Send(&pb.StreamingInputCallRequest{Payload: &pb.Payload{Body: make([]byte, 200)}})
	if _, err := in.CloseAndRecv(); status.Code(err) != codes.ResourceExhausted {
		t.Errorf("a message that is too long: got %v", err)
	}
}

func TestConnect_RefusalsAreItsOwn(t *testing.T) {
	w := newWorld(t, patient)
	for kind, want := range map[string]string{"application/json": `{"code":"unauthenticated",`, "application/connect+json": "\x02\x00\x00\x00"} {
		a := w.send("POST", "/x.S/M", "{}", "Content-Type", kind, "Connect-Protocol-Version", "1", "X-Api-Key", "")
		if status := map[bool]int{true: 401, false: 200}[kind == "application/json"]; a.status != status || !strings.HasPrefix(a.body, want) || a.header.Get("Content-Type") != kind {
			t.Errorf("%s: got %d %s %q", kind, a.status, a.header.Get("Content-Type"), a.body)
		}
	}
	a := w.send("POST", "/x.S/M", "\x00\x00\x00\x00\x00", "Content-Type", "application/grpc-web+proto", "X-Api-Key", "")
	if a.status != 200 || a.header.Get("Grpc-Status") != "16" || a.header.Get("Content-Type") != "application/grpc-web+proto" {
		t.Errorf("gRPC-Web: got %d %v", a.status, a.header)
	}
}

func TestGRPCWeb_TranslatedWhereTheRouteSays(t *testing.T) {
	w := newWorld(t, patient)
	speaking(t, w, func(a *table.API) {
		a.Routes[0].GRPCWeb, a.Routes[0].Units = true, &table.Units{PerMessages: 1, Most: 9}
	})
	const hello = "\x00\x00\x00\x00\x09\x1a\x07\x12\x05hello"
	const answered = "\x00\x00\x00\x00\x09\x0a\x07\x12\x05hello"
	for _, text := range []bool{false, true} {
		kind, body := "application/grpc-web+proto", hello
		if text {
			kind, body = "application/grpc-web-text+proto", base64.StdEncoding.EncodeToString([]byte(hello[:7]))+base64.StdEncoding.EncodeToString([]byte(hello[7:]))
		}
		before := w.west.meter.paid()
		a := w.send("POST", "/grpc.testing.TestService/UnaryCall", body, "Content-Type", kind)
		said := a.body
		if text {
			decoded, err := io.ReadAll(rpc.FromText(io.NopCloser(strings.NewReader(said))))
			if err != nil {
				t.Errorf("the answer %q does not read: %v", said, err)
			}
			said = string(decoded)
		}
		tail, ok := strings.CutPrefix(said, answered+"\x80")
		if a.status != 200 || a.header.Get("Content-Type") != kind || !ok || !strings.Contains(tail, "grpc-status: 0\r\n") || !strings.Contains(tail, "x-tail: t\r\n") {
			t.Errorf("%s: got %d %s %q %v", kind, a.status, a.header.Get("Content-Type"), said, a.err)
		}
		if row := w.west.meter.last(); w.west.meter.paid()-before != 2 || row.Outcome != usage.OutcomeSuccess {
			t.Errorf("%s: row %+v, want two messages", kind, row)
		}
	}
	a := w.send("POST", "/grpc.testing.TestService/UnaryCall", "\x00\x00\x00\x00\x0b\x1a\x09\x12\x07missing", "Content-Type", "application/grpc-web")
	if !strings.Contains(a.body, "grpc-status: 5\r\n") || a.header.Get("Content-Type") != "application/grpc-web" || w.west.meter.last().Status != 404 {
		t.Errorf("an error: got %d %v %q, row %+v", a.status, a.header, a.body, w.west.meter.last())
	}
}

// gRPC-Web in base64 that passes as it is costs what its messages do, like any other.
func TestGRPCWeb_TextThatPassesCostsByMessage(t *testing.T) {
	w := newWorld(t, patient)
	w.west.orders = func(a *table.API) {
		a.Routes = []table.Route{{Name: "all", Timeout: time.Minute, Units: &table.Units{PerMessages: 1, Most: 30}}}
	}
	w.west.tables.Swap(w.view(w.west, true))
	w.west.up.reads = true
	frame := func(n int) string { return "\x00\x00\x00\x00" + string(rune(n)) + strings.Repeat("m", n) }
	text := func(pieces ...string) (s string) { // each with its own padding
		for _, p := range pieces {
			s += base64.StdEncoding.EncodeToString([]byte(p))
		}
		return s
	}
	asked, told := frame(5)+frame(0)+frame(90), frame(7)+frame(1)+"\x80\x00\x00\x00\x03a:b"
	for name, long := range map[string]bool{"of no declared length": true, "of a declared length": false} {
		w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			if string(body) != text(asked[:7], asked[7:]) {
				rw.WriteHeader(400)
			}
			rw.Header().Set("Content-Type", "application/grpc-web-text+proto")
			io.WriteString(rw, text(told[:3]))
			if long {
				rw.(http.Flusher).Flush()
			}
			io.WriteString(rw, text(told[3:]))
		})
		before := w.west.meter.paid()
		a := w.send("POST", "/v1/x", text(asked[:7], asked[7:]), "Content-Type", "application/grpc-web-text")
		if a.status != 200 || a.body != text(told[:3], told[3:]) {
			t.Errorf("%s: got %d %q", name, a.status, a.body)
		}
		if got := w.west.meter.paid() - before; got != 5 {
			t.Errorf("%s: %d units for 3 messages and 2 back, want 5", name, got)
		}
	}
	before := w.west.meter.paid()
	if a := w.send("POST", "/v1/x", text(asked)+"\n"+text(asked), "Content-Type", "application/grpc-web-text"); a.header.Get("Grpc-Status") == "" || a.header.Get("Grpc-Status") == "0" || w.west.meter.paid() != before {
		t.Errorf("what is no base64: got %d %v, and %d units", a.status, a.header, w.west.meter.paid()-before)
	}
}

// A stream of gRPC that another region serves passes whole, trailers and all, and ends when the pair is no more.
func TestGRPC_AcrossTheBorderAndCutThere(t *testing.T) {
	w := newWorld(t, patient)
	service, nobody := "", "http://"+deadAddr(t)
	_, addr := speaking(t, w, func(a *table.API) {
		service = a.Targets[0]
		a.Targets, a.Protocols = []string{nobody}, map[string]string{nobody: "h2c"} // nobody is here
	})
	w.central.orders = func(a *table.API) {
		a.Targets, a.Protocols = []string{service}, map[string]string{service: "h2c"}
	}
	w.central.tables.Swap(w.view(w.central, true))
	c, ctx := dialGRPC(t, w, addr)
	var tail metadata.MD
	if r, err := c.UnaryCall(ctx, payload("hello"), grpc.Trailer(&tail)); err != nil || string(r.GetPayload().GetBody()) != "hello" || len(tail["x-tail"]) != 1 {
		t.Fatalf("got %v, %v, tail %v", r, err, tail)
	}
	if row := w.west.meter.last(); row.ServedRegion != "eu-central" || row.Outcome != usage.OutcomeSuccess {
		t.Errorf("row %+v, want one served by eu-central", row)
	}
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	both.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("x")}})
	if _, err := both.Recv(); err != nil {
		t.Fatal(err)
	}
	w.west.tables.Swap(w.view(w.west, false))
	w.west.client.Enforce() // as whoever acknowledges a table does
	if m, err := both.Recv(); err == nil || errors.Is(err, io.EOF) {
		t.Errorf("after the pair ended: got %v, %v, want the stream broken off", m, err)
	}
	if _, err := c.UnaryCall(ctx, payload("hello")); status.Code(err) != codes.Unavailable {
		t.Errorf("after the pair ended: got %v, want unavailable", err)
	}
}

// A stream ends with what it rests on, as a WebSocket does: a key that is suspended takes nothing more, and that is no fault of
// the upstream's.
func TestGRPC_StreamsEndWithTheirKey(t *testing.T) {
	t.Parallel()
	w := newWorld(t, patient)
	_, addr := speaking(t, w, nil)
	c, ctx := dialGRPC(t, w, addr)
	ctx, cancel := context.WithTimeout(ctx, 40*time.Second)
	defer cancel()
	both, err := c.FullDuplexCall(ctx)
	if err != nil {
		t.Fatal(err)
	}
	both.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: []byte("x")}})
	if _, err := both.Recv(); err != nil {
		t.Fatal(err)
	}
	for i, o := range w.objects {
		if o.Kind == table.KindKey {
			w.objects[i] = edited(t, o, func(k *table.Key) { k.Suspended = true })
		}
	}
	w.west.tables.Swap(w.view(w.west, true))
	if m, err := both.Recv(); err == nil || errors.Is(err, io.EOF) || status.Code(err) == codes.DeadlineExceeded {
		t.Errorf("after the key was suspended: got %v, %v, want the stream broken off", m, err)
	}
	if row := w.final(); row.Outcome != usage.OutcomeAborted || row.Units == 0 {
		t.Errorf("row %+v, want one aborted and billed", row)
	}
	_, told := w.west.proxy.Outcomes()
	for _, o := range told {
		if o.Failed > 0 {
			t.Errorf("it is told of as a failure of the API: %+v", o)
		}
	}
}

// deadAddr is one where nobody listens.
func deadAddr(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
