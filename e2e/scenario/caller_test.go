package scenario_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/gorilla/websocket"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"bailiwick/e2e/harness"
)

// sums are what was asked, or counted, of a route.
type sums struct{ Requests, Units int64 }

// caller is a customer that asks in every way there is and keeps account.
type caller struct {
	t       *testing.T
	s       *harness.Sandbox
	key     string
	clients map[string]*http.Client // by protocol
	asked   map[string]sums         // by API, route and region that serves
	at      *everything             // who is to serve
	http    int64                   // requests that the upstreams should have seen
}

func (c *caller) owes(api, route string, units int64) {
	k := api + "/" + route + " by " + c.at.region
	if route == "wait" {
		k = api + "/" + route
	}
	c.asked[k] = sums{c.asked[k].Requests + 1, c.asked[k].Units + units}
	if api != "every-lines" && route != "wait" {
		c.http++
	}
}

// ask sends a request that is served where it should be, and gives the answer and its body.
func (c *caller) ask(protocol, route string, units int64, method, path string, body io.Reader, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	return c.askWith(c.t.Context(), protocol, route, units, method, path, body, header...)
}

func (c *caller) askWith(ctx context.Context, protocol, route string, units int64, method, path string, body io.Reader, header ...string) (*http.Response, []byte) {
	c.t.Helper()
	resp := c.open(ctx, protocol, route, units, method, path, body, header...)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		c.t.Fatalf("%s %s over %s: %v after %d bytes", method, path, protocol, err, len(got))
	}
	return resp, got
}

func (c *caller) open(ctx context.Context, protocol, route string, units int64, method, path string, body io.Reader, header ...string) *http.Response {
	c.t.Helper()
	req, err := http.NewRequestWithContext(ctx, method, "https://"+everyHost+path, body)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("X-API-Key", c.key)
	for i := 0; i+1 < len(header); i += 2 {
		req.Header.Set(header[i], header[i+1])
	}
	resp, err := c.clients[protocol].Do(req)
	if err != nil {
		c.t.Fatalf("%s %s over %s: %v", method, path, protocol, err)
	}
	if served := resp.Header.Get("Bailiwick-Served"); resp.StatusCode/100 != 2 || served != c.at.region {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 500))
		c.t.Fatalf("%s %s over %s: %d by %q, want %s: %s", method, path, protocol, resp.StatusCode, served, c.at.region, text)
	}
	c.owes("every", route, units)
	return resp
}

// speaksHTTP: REST, events, early hints, an expectation, ranges, GraphQL and large bodies.
func (c *caller) speaksHTTP(protocol string) {
	t := c.t
	for _, method := range []string{"GET", "POST", "PUT", "PATCH", "DELETE"} {
		text := ""
		if method != "GET" && method != "DELETE" {
			text = "small"
		}
		if _, got := c.ask(protocol, "all", 1, method, "/v1/item?a=b", strings.NewReader(text)); string(got) != method+" /v1/item?a=b "+text {
			t.Errorf("%s over %s: got %q", method, protocol, got)
		}
	}

	resp := c.open(t.Context(), protocol, "all", 1, "GET", "/events", nil)
	events := bufio.NewReader(resp.Body)
	for i := range 3 {
		line, err := events.ReadString('\n')
		if err != nil || line != fmt.Sprintf("data: %d\n", i) {
			t.Fatalf("event %d over %s: got %q, %v", i, protocol, line, err)
		}
		events.ReadString('\n')
		c.at.next <- struct{}{}
	}
	if _, err := events.ReadByte(); err != io.EOF {
		t.Errorf("events over %s end with %v", protocol, err)
	}
	resp.Body.Close()

	var hint, invited atomic.Int32
	traced := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			if code == http.StatusEarlyHints && h.Get("Link") == "</style.css>; rel=preload" {
				hint.Add(1)
			}
			return nil
		},
		Got100Continue: func() { invited.Add(1) },
	})
	if _, got := c.askWith(traced, protocol, "all", 1, "GET", "/hints", nil); string(got) != "hinted" || hint.Load() != 1 {
		t.Errorf("early hints over %s: got %q and %d hints", protocol, got, hint.Load())
	}
	if protocol != viaHTTP3 { // quic-go's client sends at once
		if _, got := c.askWith(traced, protocol, "all", 1, "POST", "/v1/x", strings.NewReader("expected"), "Expect", "100-continue"); string(got) != "POST /v1/x expected" || invited.Load() != 1 {
			t.Errorf("100-continue over %s: got %q, invited %d times", protocol, got, invited.Load())
		}
	}

	if resp, got := c.ask(protocol, "all", 1, "GET", "/data", nil, "Range", "bytes=100-199"); resp.StatusCode != 206 || resp.Header.Get("Content-Range") != "bytes 100-199/1000" || !bytes.Equal(got, stripes(200)[100:]) {
		t.Errorf("a range over %s: got %d %q and %d bytes", protocol, resp.StatusCode, resp.Header.Get("Content-Range"), len(got))
	}
	if _, got := c.ask(protocol, "graphql", 3, "POST", "/graphql", strings.NewReader(`{"query":"{ a b c }"}`), "Content-Type", "application/json"); !strings.Contains(string(got), `"c":3`) {
		t.Errorf("GraphQL over %s: got %q", protocol, got)
	}
	if _, got := c.ask(protocol, "large", 2*largeBytes>>20, "POST", "/large", bytes.NewReader(stripes(largeBytes))); !bytes.Equal(got, stripes(largeBytes)) {
		t.Errorf("large over %s: %d bytes came back, or others", protocol, len(got))
	}
}

// keyedClient sends the key with what a client of connect-go's sends, and a time if it has one.
type keyedClient struct {
	*http.Client
	key     string
	timeout [2]string // a header
}

func (k keyedClient) Do(r *http.Request) (*http.Response, error) {
	r.Header.Set("X-API-Key", k.key)
	if k.timeout[0] != "" {
		r.Header.Set(k.timeout[0], k.timeout[1])
	}
	return k.Client.Do(r)
}

// calls: each form of a call that a protocol of RPC has, a deadline, and one that is taken back.
func (c *caller) calls(protocol, speech string, options ...connect.ClientOption) {
	t, at, client := c.t, "https://"+rpcHost+rpcPath, keyedClient{c.clients[protocol], c.key, [2]string{}}
	unary := connect.NewClient[pb.SimpleRequest, pb.SimpleResponse](client, at+"Unary", options...)
	payload := func(text string) *connect.Request[pb.SimpleRequest] {
		return connect.NewRequest(&pb.SimpleRequest{Payload: &pb.Payload{Body: []byte(text)}})
	}
	r, err := unary.CallUnary(t.Context(), payload("hello"))
	if err != nil || string(r.Msg.GetPayload().GetBody()) != "hello" || r.Trailer().Get("X-Tail") != "t" || r.Header().Get("X-Region") != c.at.region {
		t.Fatalf("%s over %s: got %v, %v", speech, protocol, r, err)
	}
	c.owes("every-rpc", "rpc", 1)

	out, err := connect.NewClient[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse](client, at+"Out", options...).CallServerStream(t.Context(), connect.NewRequest(&pb.StreamingOutputCallRequest{}))
	if err != nil {
		t.Fatalf("%s over %s, a stream: %v", speech, protocol, err)
	}
	n := 0
	for out.Receive() {
		n += 1 + len(out.Msg().GetPayload().GetBody())
	}
	if n != 3003 || out.Err() != nil {
		t.Errorf("%s over %s, a stream: got %d bytes, %v", speech, protocol, n, out.Err())
	}
	out.Close()
	c.owes("every-rpc", "rpc", 1)

	if protocol != harness.HTTP1 {
		both := connect.NewClient[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse](client, at+"Both", options...).CallBidiStream(t.Context())
		for i := range 3 { // each is answered before the next is sent
			if err := both.Send(&pb.StreamingOutputCallRequest{Payload: &pb.Payload{Body: make([]byte, i+1)}}); err != nil {
				t.Fatalf("%s over %s, both ways: %v", speech, protocol, err)
			}
			if m, err := both.Receive(); err != nil || len(m.GetPayload().GetBody()) != i+1 {
				t.Fatalf("%s over %s, both ways: got %v, %v", speech, protocol, m, err)
			}
		}
		both.CloseRequest()
		if _, err := both.Receive(); !errors.Is(err, io.EOF) {
			t.Errorf("%s over %s, both ways: ended with %v", speech, protocol, err)
		}
		both.CloseResponse()
		c.owes("every-rpc", "both", 3) // six messages, two a unit
	}

	// A time that begins at the edge, so that the request is there however slow the machine is.
	hurry := client
	if hurry.timeout = [2]string{"Grpc-Timeout", "300m"}; speech == "Connect" {
		hurry.timeout = [2]string{"Connect-Timeout-Ms", "300"}
	}
	if _, err := connect.NewClient[pb.SimpleRequest, pb.SimpleResponse](hurry, at+"Wait", options...).CallUnary(t.Context(), payload("time")); connect.CodeOf(err) != connect.CodeDeadlineExceeded {
		t.Errorf("%s over %s, a deadline: got %v", speech, protocol, err)
	}
	c.owes("every-rpc", "wait", 0)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-c.at.here:
		case <-time.After(time.Minute):
			t.Errorf("%s over %s: a call is not at the upstream", speech, protocol)
		}
		cancel()
	})
	if _, err := connect.NewClient[pb.SimpleRequest, pb.SimpleResponse](client, at+"Wait", options...).CallUnary(ctx, payload("back")); connect.CodeOf(err) != connect.CodeCanceled {
		t.Errorf("%s over %s, taken back: got %v", speech, protocol, err)
	}
	wg.Wait()
	c.owes("every-rpc", "wait", 0)
	select {
	case <-c.at.gone:
	case <-time.After(time.Minute):
		t.Errorf("%s over %s: the upstream does not hear that a call was taken back", speech, protocol)
	}
}

// talks over a WebSocket: five messages there and five back, two a unit.
func (c *caller) talks(edge harness.Edge) {
	t := c.t
	d := websocket.Dialer{TLSClientConfig: &tls.Config{RootCAs: c.s.Roots()}, NetDialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, edge.HTTPS)
	}}
	ws, resp, err := d.DialContext(t.Context(), "wss://"+everyHost+"/live", http.Header{"X-API-Key": {c.key}})
	if err != nil {
		t.Fatalf("a WebSocket: %v, %v", err, resp)
	}
	defer ws.Close()
	for i := range 5 {
		text := strings.Repeat("x", 1000*i)
		ws.WriteMessage(websocket.TextMessage, []byte(text))
		if _, got, err := ws.ReadMessage(); err != nil || string(got) != c.at.region+" "+text {
			t.Fatalf("a WebSocket: message %d came back as %.60q, %v", i, got, err)
		}
	}
	ws.WriteMessage(websocket.CloseMessage, websocket.FormatCloseMessage(websocket.CloseNormalClosure, ""))
	if _, _, err := ws.ReadMessage(); !websocket.IsCloseError(err, websocket.CloseNormalClosure) {
		t.Errorf("a WebSocket ends with %v", err)
	}
	c.owes("every", "live", 5)
}

// says lines over TLS, where SNI names the API.
func (c *caller) says(edge harness.Edge) {
	t := c.t
	conn, err := tls.Dial("tcp", edge.HTTPS, &tls.Config{RootCAs: c.s.Roots(), ServerName: linesHost})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(time.Minute))
	fmt.Fprintf(conn, "BAILIWICK/1 %s\r\n", c.key)
	in := bufio.NewReader(conn)
	if line, err := in.ReadString('\n'); line != "BAILIWICK/1 200 ok\r\n" {
		t.Fatalf("lines: the edge says %q, %v", line, err)
	}
	var passed int
	for i := range 4 {
		line := strings.Repeat("y", 600*i) + "\n"
		io.WriteString(conn, line)
		got, err := in.ReadString('\n')
		if err != nil || got != c.at.region+" "+line {
			t.Fatalf("lines: line %d came back as %.60q, %v", i, got, err)
		}
		passed += len(line) + len(got)
	}
	conn.CloseWrite()
	if _, err := in.ReadByte(); err != io.EOF {
		t.Errorf("lines: they end with %v", err)
	}
	c.owes("every-lines", "all", int64(passed+999)/1000)
}
