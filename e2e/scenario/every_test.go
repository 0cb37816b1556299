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

// every: each protocol that an edge speaks, over HTTP/1.1, 2 and 3 where it applies, at home and, once the upstreams there are
// dead, across a relay to the pair; each thing asked is counted once with the units that it costs, and nothing of it is ever at
// an upstream of the other zone.
func every(t *testing.T, s *harness.Sandbox) {
	x := newEvery(t, s)
	us := usCounts(s)
	x.all(x.west)
	x.relays()
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
	both                  func() // from here on both regions of emea have an upstream, where eu-west had one alone: nobody else took what that was late with
	leave                 func() // from here on the sandbox's own upstreams answer, so that nothing looks ill to what follows
}

func newEvery(t *testing.T, s *harness.Sandbox) *everyWorld {
	west, central, abroad := newEverything(t, "eu-west"), newEverything(t, "eu-central"), newEverything(t, "us-east")
	manifest := func(at func(*everything, string) string, speech string, emea ...*everything) {
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
`+ups("http", "", emea...)+`---
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
`+ups("http", ", protocol: "+speech, emea...)+`---
kind: API
name: every-lines
spec:
  zone: emea
  hosts: [`+linesHost+`]
  policy: gdpr-emea
  tcp: {}
  routes: [{name: all, units: {per_bytes: 1000, most: 100}}]
`+ups("tcp", "", emea...)+`---
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
	own := func(u *everything, scheme string) string {
		if scheme == "tcp" {
			return "tcp://" + u.lines
		}
		return "http://" + u.http
	}
	manifest(own, "h2c", west)
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

	return &everyWorld{caller: c, west: west, central: central, abroad: abroad, edge: s.EdgeOf("eu-west"), first: first, both: func() { manifest(own, "h2c", west, central) }, leave: func() {
		manifest(func(u *everything, scheme string) string {
			return scheme + "://" + strings.TrimPrefix(s.UpstreamURL(u.region), "http://")
		}, "http1", west, central)
	}}
}

// relays gives the region a pair, and lets its own upstream die once the pair serves at home.
func (c *everyWorld) relays() {
	c.t.Helper()
	c.both()
	within(c.t, time.Now(), 30*time.Second, "the pair serves at home", func() error {
		return ok(c.s.Do("eu-central", "GET", everyHost, "/v1/first", c.first, nil), "eu-central")
	})
	c.west.stop()
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
