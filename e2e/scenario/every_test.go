package scenario_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	"github.com/gorilla/websocket"
	pb "google.golang.org/grpc/interop/grpc_testing"

	"bailiwick/e2e/harness"
	"bailiwick/shared/lifecycle/porttest"
)

const (
	everyHost  = "every.emea.example.test"
	rpcHost    = "every-rpc.emea.example.test"
	linesHost  = "every-lines.emea.example.test"
	rpcPath    = "/grpc.testing.TestService/"
	largeBytes = 2 << 20 // each way
	viaHTTP3   = "HTTP/3"
)

// everything is an upstream that speaks all that there is: HTTP/1.1 and HTTP/2 in the clear at one address, lines at another.
type everything struct {
	region      string
	http, lines string // addresses
	asked       atomic.Int64
	stop        func()

	next, here, gone chan struct{} // for an event; of a call that waits to be taken back, and once it was
}

// wholeRequest is the key of a request's context, from which nothing takes the time that its caller gave it.
type wholeRequest struct{}

func newEverything(t *testing.T, region string) *everything {
	u := &everything{region: region, next: make(chan struct{}), here: make(chan struct{}, 64), gone: make(chan struct{}, 64)}
	listen := func() net.Listener {
		l, err := net.Listen("tcp", porttest.Addr(t)) // of its own: nobody else's once it is dead
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	l, lines := listen(), listen()
	u.http, u.lines = l.Addr().String(), lines.Addr().String()
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetUnencryptedHTTP2(true)
	mux := u.mux()
	server := &http.Server{Protocols: &both, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if strings.HasPrefix(r.UserAgent(), "bailiwick-probe") {
			return
		}
		if r.URL.Path != rpcPath+"Wait" { // which may end on its way
			u.asked.Add(1)
		}
		w.Header().Set("X-Region", region)
		mux.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), wholeRequest{}, r.Context())))
	})}
	go server.Serve(l)
	go func() {
		for {
			c, err := lines.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				for {
					line, err := in.ReadString('\n')
					if err != nil {
						return // also who only looked whether it is there
					}
					io.WriteString(c, region+" "+line)
				}
			}()
		}
	}()
	u.stop = func() { server.Close(); lines.Close() }
	t.Cleanup(u.stop)
	return u
}

func (u *everything) mux() *http.ServeMux {
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/", func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.RequestURI(), body)
	})
	mux.HandleFunc("/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range 3 { // each once its reader has the one before
			fmt.Fprintf(w, "data: %d\n\n", i)
			http.NewResponseController(w).Flush()
			select {
			case <-u.next:
			case <-r.Context().Done():
				return
			}
		}
	})
	mux.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "hinted")
	})
	mux.HandleFunc("/data", func(w http.ResponseWriter, r *http.Request) {
		http.ServeContent(w, r, "data.bin", time.Unix(1700000000, 0), bytes.NewReader(stripes(1000)))
	})
	mux.HandleFunc("/graphql", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"data":{"a":1,"b":2,"c":3}}`)
	})
	mux.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) { // both ways at once
		http.NewResponseController(w).EnableFullDuplex()
		var wg sync.WaitGroup
		wg.Go(func() { w.Write(stripes(largeBytes)) })
		if got, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(got, stripes(largeBytes)) {
			panic(http.ErrAbortHandler) // which the client sees
		}
		wg.Wait()
	})
	mux.HandleFunc("/huge", func(w http.ResponseWriter, r *http.Request) { // both ways at once, as much as came is said
		http.NewResponseController(w).EnableFullDuplex()
		n, _ := strconv.ParseInt(r.URL.Query().Get("bytes"), 10, 64)
		var wg sync.WaitGroup
		wg.Go(func() { io.Copy(w, &striped{n: n}) })
		if err := alike(r.Body, n); err != nil {
			panic(http.ErrAbortHandler)
		}
		wg.Wait()
	})
	upgrader := websocket.Upgrader{}
	mux.HandleFunc("/live", func(w http.ResponseWriter, r *http.Request) {
		c, err := upgrader.Upgrade(w, r, nil)
		if err != nil {
			return
		}
		defer c.Close()
		for {
			kind, data, err := c.ReadMessage()
			if err != nil || c.WriteMessage(kind, append([]byte(u.region+" "), data...)) != nil {
				return
			}
		}
	})
	mux.Handle(rpcPath+"Unary", connect.NewUnaryHandler(rpcPath+"Unary", func(ctx context.Context, r *connect.Request[pb.SimpleRequest]) (*connect.Response[pb.SimpleResponse], error) {
		out := connect.NewResponse(&pb.SimpleResponse{Payload: r.Msg.GetPayload()})
		out.Trailer().Set("X-Tail", "t")
		return out, nil
	}))
	mux.Handle(rpcPath+"Wait", connect.NewUnaryHandler(rpcPath+"Wait", func(ctx context.Context, r *connect.Request[pb.SimpleRequest]) (*connect.Response[pb.SimpleResponse], error) {
		if string(r.Msg.GetPayload().GetBody()) == "back" {
			u.here <- struct{}{}
			defer func() { u.gone <- struct{}{} }()
		}
		ctx = ctx.Value(wholeRequest{}).(context.Context) // the edge alone ends it, also when its time is over
		<-ctx.Done()
		return nil, ctx.Err()
	}))
	mux.Handle(rpcPath+"Out", connect.NewServerStreamHandler(rpcPath+"Out", func(ctx context.Context, r *connect.Request[pb.StreamingOutputCallRequest], s *connect.ServerStream[pb.StreamingOutputCallResponse]) error {
		for i := range 3 {
			if err := s.Send(&pb.StreamingOutputCallResponse{Payload: &pb.Payload{Body: make([]byte, 1000*i)}}); err != nil {
				return err
			}
		}
		return nil
	}))
	mux.Handle(rpcPath+"Both", connect.NewBidiStreamHandler(rpcPath+"Both", func(ctx context.Context, s *connect.BidiStream[pb.StreamingOutputCallRequest, pb.StreamingOutputCallResponse]) error {
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
	return mux
}

// stripes are n bytes that are no run of one.
func stripes(n int) []byte {
	b, _ := io.ReadAll(&striped{n: int64(n)})
	return b
}

// striped reads as n bytes that are no run of one.
type striped struct{ at, n int64 }

func (s *striped) Read(b []byte) (int, error) {
	if s.at == s.n {
		return 0, io.EOF
	}
	b = b[:min(int64(len(b)), s.n-s.at)]
	for i := range b {
		x := s.at + int64(i)
		b[i] = byte(x ^ x>>8 ^ x>>16)
	}
	s.at += int64(len(b))
	return len(b), nil
}

// alike reads all of r, which is to be n of those bytes.
func alike(r io.Reader, n int64) error {
	want, a, b := &striped{n: n}, make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		m, err := r.Read(a)
		k, _ := io.ReadFull(want, b[:m])
		if !bytes.Equal(a[:m], b[:k]) {
			return fmt.Errorf("other bytes before %d", want.at)
		}
		if err == io.EOF && want.at == n {
			return nil
		} else if err != nil {
			return fmt.Errorf("%w after %d of %d", err, want.at, n)
		}
	}
}

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

// every: each protocol that an edge speaks, over HTTP/1.1, 2 and 3 where it applies, at home and, once the upstreams there are
// dead, across a relay to the pair; each thing asked is counted once with the units that it costs, and nothing of it is ever at
// an upstream of the other zone.
func every(t *testing.T, s *harness.Sandbox) {
	x := newEvery(t, s)
	us := usCounts(s)
	x.all(x.west)
	x.west.stop()
	x.all(x.central)
	if n := x.abroad.asked.Load() + usCounts(s) - us; n != 0 {
		t.Errorf("%d requests reached an upstream of the other zone", n)
	}
	x.counted()
	x.leave()
}

// everyWorld is the APIs of upstreams that speak everything, in a sandbox.
type everyWorld struct {
	*caller
	west, central, abroad *everything
	edge                  harness.Edge
	first                 string // the key of who asks whether all is there
	leave                 func() // from here on the sandbox's own upstreams answer, so that nothing looks ill to what follows
}

func newEvery(t *testing.T, s *harness.Sandbox) *everyWorld {
	west, central, abroad := newEverything(t, "eu-west"), newEverything(t, "eu-central"), newEverything(t, "us-east")
	manifest := func(at func(*everything, string) string, speech string) {
		ups := func(scheme, rest string, all ...*everything) (text string) {
			for _, u := range all {
				text += fmt.Sprintf("    - {region: %s, url: %q%s}\n", u.region, at(u, scheme), rest)
			}
			return "  upstreams:\n" + text
		}
		s.MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", writeFile(t, "every.yaml", `kind: API
name: every
spec:
  zone: emea
  hosts: [`+everyHost+`]
  policy: gdpr-emea
  routes:
    - {name: all, path_prefix: /}
    - {name: large, path_prefix: /large, units: {per_bytes: 1048576, most: 100}}
    - {name: huge, path_prefix: /huge, max_request_bytes: 2147483648, units: {per_bytes: 16777216, most: 200}}
    - {name: graphql, path_prefix: /graphql, graphql: {}, units: {graphql: fields, most: 100}}
    - {name: live, path_prefix: /live, websocket: {}, units: {per_messages: 2, most: 100}}
`+ups("http", "", west, central)+`---
kind: API
name: every-rpc
spec:
  zone: emea
  hosts: [`+rpcHost+`]
  policy: gdpr-emea
  routes:
    - {name: rpc, path_prefix: /}
    - {name: both, path_prefix: /grpc.testing.TestService/Both, units: {per_messages: 2, most: 100}}
    - {name: wait, path_prefix: /grpc.testing.TestService/Wait}
`+ups("http", ", protocol: "+speech, west, central)+`---
kind: API
name: every-lines
spec:
  zone: emea
  hosts: [`+linesHost+`]
  policy: gdpr-emea
  tcp: {}
  routes: [{name: all, units: {per_bytes: 1000, most: 100}}]
`+ups("tcp", "", west, central)+`---
kind: API
name: every
spec:
  zone: us
  hosts: [every.us.example.test]
  policy: us
  routes: [{name: all, path_prefix: /}]
`+ups("http", "", abroad)+`---
kind: Product
name: every
spec: {apis: [every, every-rpc, every-lines]}
---
kind: Plan
name: every
spec: {products: [every]}
---
kind: Customer
name: every
spec: {zone: emea, subscriptions: [{plan: every}]}
---
kind: Customer
name: every-first
spec: {zone: emea, subscriptions: [{plan: every}]}
`))
	}
	manifest(func(u *everything, scheme string) string {
		if scheme == "tcp" {
			return "tcp://" + u.lines
		}
		return "http://" + u.http
	}, "h2c")
	_, key := s.NewKey("emea", "every", "every")
	_, first := s.NewKey("emea", "every-first", "every") // what asks whether all is there

	c := &caller{t: t, s: s, key: key, asked: map[string]sums{}, clients: map[string]*http.Client{}}
	for _, protocol := range []string{harness.HTTP1, harness.HTTP2} {
		c.clients[protocol] = s.ClientFor(protocol, "eu-west")
	}
	c.clients[viaHTTP3] = overHTTP3(t, s, "eu-west")
	for _, client := range c.clients {
		client.Timeout = 2 * time.Minute
	}
	t.Cleanup(func() {
		for _, client := range c.clients {
			client.CloseIdleConnections()
		}
	})

	return &everyWorld{caller: c, west: west, central: central, abroad: abroad, edge: s.EdgeOf("eu-west"), first: first, leave: func() {
		manifest(func(u *everything, scheme string) string {
			return scheme + "://" + strings.TrimPrefix(s.UpstreamURL(u.region), "http://")
		}, "http1")
	}}
}

// served waits until a region serves all of it.
func (c *everyWorld) served(region string) {
	t, s := c.t, c.s
	t.Helper()
	probe := connect.NewClient[pb.SimpleRequest, pb.SimpleResponse](keyedClient{c.clients[harness.HTTP2], c.first, [2]string{}}, "https://"+rpcHost+rpcPath+"Unary", connect.WithGRPC())
	within(t, time.Now(), 30*time.Second, "all is served by "+region, func() error {
		for range 5 {
			if err := ok(s.Send(c.clients[harness.HTTP1], "GET", everyHost, "/v1/first", c.first, nil), region); err != nil {
				return err
			}
			r, err := probe.CallUnary(t.Context(), connect.NewRequest(&pb.SimpleRequest{}))
			if err != nil {
				return err
			}
			if got := r.Header().Get("Bailiwick-Served"); got != region {
				return fmt.Errorf("calls are served by %q", got)
			}
		}
		conn, err := tls.Dial("tcp", c.edge.HTTPS, &tls.Config{RootCAs: s.Roots(), ServerName: linesHost})
		if err != nil {
			return err
		}
		return conn.Close()
	})
}

// all asks in every way there is, and wants all of it at one upstream.
func (c *everyWorld) all(at *everything) {
	c.at, c.http = at, 0
	c.served(at.region)
	before := at.asked.Load()
	for _, protocol := range []string{harness.HTTP1, harness.HTTP2, viaHTTP3} {
		c.speaksHTTP(protocol)
		if protocol != harness.HTTP1 {
			c.calls(protocol, "gRPC", connect.WithGRPC())
		}
		c.calls(protocol, "gRPC-Web", connect.WithGRPCWeb())
		c.calls(protocol, "Connect")
	}
	c.talks(c.edge)
	c.says(c.edge)
	if got := at.asked.Load() - before; got != c.http {
		c.t.Errorf("the upstreams of %s saw %d requests, want %d", at.region, got, c.http)
	}
}

// counted waits until what was asked is counted, and wants it counted as it was asked.
func (c *everyWorld) counted() {
	t, s := c.t, c.s
	var total int64
	for _, a := range c.asked {
		total += a.Requests
	}
	var counted map[string]sums
	s.Eventually(60*time.Second, "all that was asked is counted", func() error {
		u, err := s.Usage("emea", "every")
		if err != nil {
			return err
		}
		var n int64
		counted = map[string]sums{}
		for _, r := range u.Rows {
			k := r.API + "/" + r.Route + " by " + r.ServedRegion
			if r.Route == "wait" { // whom nobody has answered nobody has served
				k = strings.TrimSuffix(k, " by ")
			} else if r.Outcome != "success" {
				return fmt.Errorf("%s has the outcome %s", k, r.Outcome)
			}
			counted[k] = sums{counted[k].Requests + r.Requests, counted[k].Units + r.Units}
			n += r.Requests
		}
		if n != total {
			return fmt.Errorf("%d of %d", n, total)
		}
		return nil
	})
	t.Logf("%d requests; counted %v", total, counted)
	for _, k := range slices.Sorted(maps.Keys(c.asked)) {
		if counted[k] != c.asked[k] {
			t.Errorf("%s: counted %+v, want %+v", k, counted[k], c.asked[k])
		}
	}
}
