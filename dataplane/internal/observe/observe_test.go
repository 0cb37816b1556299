package observe_test

import (
	"context"
	"crypto/tls"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/observe"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/shared/identity/identitytest"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// node is an edge as far as others observe it: a door, a table, an observer.
type node struct {
	*observe.Observer
	tables  policy.Holder
	ready   atomic.Bool
	asked   atomic.Bool // somebody began a handshake
	address *net.TCPAddr
	server  *http.Server
	drained string // a region
}

func newNode(t *testing.T, in *identitytest.Installation, zone, region, name string) *node {
	t.Helper()
	n := &node{}
	n.ready.Store(true)
	var err error
	n.Observer, err = observe.New(observe.Config{Identity: in.Source(t, zone, region, "edge", name), Self: in.Node(zone, region, "edge", name),
		Tables: &n.tables, Ready: n.ready.Load, Logger: slog.New(slog.DiscardHandler), Every: 50 * time.Millisecond, Ramp: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	// The door as clients know it: another certificate, HTTP/1.1 and HTTP/2, no client certificates.
	door := in.Source(t, zone, region, "edge", "door-of-"+name).ServerTLS([]string{"h2", "http/1.1"}, nil)
	base, err := door.GetConfigForClient(nil)
	if err != nil {
		t.Fatal(err)
	}
	public := &tls.Config{Certificates: base.Certificates, NextProtos: []string{"h2", "http/1.1"}}
	var both http.Protocols
	both.SetHTTP1(true)
	both.SetHTTP2(true)
	n.server = &http.Server{TLSConfig: public, Protocols: &both, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Proto) }),
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, slog.LevelDebug)}
	n.Attach(n.server)
	next := n.server.TLSConfig.GetConfigForClient
	n.server.TLSConfig.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
		n.asked.Store(true)
		return next(hello)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	n.address = l.Addr().(*net.TCPAddr)
	go n.server.ServeTLS(l, "", "")
	t.Cleanup(func() { n.server.Close() })
	return n
}

// know puts the doors of edges into a table.
func (n *node) know(t *testing.T, zone, region string, doors ...table.Doors) {
	t.Helper()
	settings, err := table.Encode(table.KindSettings, table.SettingsID, table.Settings{Zone: zone, Region: region})
	if err != nil {
		t.Fatal(err)
	}
	objects := []table.Object{settings}
	if n.drained != "" {
		o, err := table.Encode(table.KindRegion, n.drained, table.Region{Name: n.drained, Zone: zone, Drain: "work"})
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	for _, d := range doors {
		o, err := table.Encode(table.KindDoors, d.Edge, d)
		if err != nil {
			t.Fatal(err)
		}
		objects = append(objects, o)
	}
	catalog := revision.Revision{Epoch: 1, Index: 1}
	for _, o := range objects {
		catalog.Sum = catalog.Sum.Add(o.Sum())
	}
	tab, err := policy.NewTable(objects, catalog, revision.Revision{Epoch: 1, Index: 1})
	if err != nil {
		t.Fatal(err)
	}
	n.tables.Swap(tab)
}

func (n *node) doors(zone, region, name string) table.Doors {
	return table.Doors{Edge: name, Region: region, Zone: zone, Addresses: []string{n.address.IP.String()}, HTTPSPort: n.address.Port}
}

func eventually(t *testing.T, what string, check func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !check(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// Two edges ask each other at the doors that clients use; clients notice nothing; a stranger learns nothing.
func TestObserver_AsksAtThePublicDoor(t *testing.T) {
	in := identitytest.New(t, "test.example", "emea", "us")
	a, b := newNode(t, in, "emea", "eu-west", "a"), newNode(t, in, "emea", "eu-central", "b")
	all := []table.Doors{a.doors("emea", "eu-west", "a"), b.doors("emea", "eu-central", "b")}
	a.know(t, "emea", "eu-west", all...)
	b.know(t, "emea", "eu-central", all...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	eventually(t, "a knows two regions", func() bool { return len(a.Outlook().Regions) == 2 })
	time.Sleep(300 * time.Millisecond) // six rounds
	if look := a.Outlook(); len(look.Down) != 0 || len(look.Silent) != 0 {
		t.Fatalf("everybody is well, and a holds %+v", look)
	}

	for want, protos := range map[string][]string{"HTTP/2.0": {"h2", "http/1.1"}, "HTTP/1.1": {"http/1.1"}} {
		transport := &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: protos}, ForceAttemptHTTP2: want == "HTTP/2.0"}
		response, err := (&http.Client{Transport: transport}).Get("https://" + b.address.String())
		if err != nil {
			t.Fatal(err)
		}
		if body, _ := io.ReadAll(response.Body); string(body) != want {
			t.Errorf("a client is answered in %q, want %s", body, want)
		}
		response.Body.Close()
		transport.CloseIdleConnections()
	}

	// Strangers: nobody, an edge of another zone, a control node, an edge that the registry does not hold.
	answer := func(cfg *tls.Config) string {
		conn, err := tls.Dial("tcp", b.address.String(), cfg)
		if err != nil {
			return ""
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
		data, _ := io.ReadAll(conn)
		return string(data)
	}
	protos := []string{observe.Protocol}
	if got := answer(in.Source(t, "emea", "eu-west", "edge", "a").ClientTLS(protos, nil)); got == "" {
		t.Fatal("an edge of the zone learns nothing: the tests below test nothing")
	}
	for who, cfg := range map[string]*tls.Config{
		"nobody":                   {InsecureSkipVerify: true, NextProtos: protos},
		"an edge of us":            in.Source(t, "us", "us-east", "edge", "a").ClientTLS(protos, nil),
		"a control node":           in.Source(t, "emea", "eu-west", "control", "a").ClientTLS(protos, nil),
		"an unregistered edge":     in.Source(t, "emea", "eu-west", "edge", "c").ClientTLS(protos, nil),
		"an edge of a moved name":  in.Source(t, "emea", "eu-south", "edge", "a").ClientTLS(protos, nil),
		"another installation's a": identitytest.New(t, "test.example", "emea").Source(t, "emea", "eu-west", "edge", "a").ClientTLS(protos, nil),
	} {
		if got := answer(cfg); got != "" {
			t.Errorf("%s is told %s", who, got)
		}
	}

	b.ready.Store(false)
	eventually(t, "b takes no requests: eu-central is dead to a", func() bool { return a.Outlook().Down["eu-central"] != "" && a.Outlook().Silent["b"] })
	b.ready.Store(true)
	b.server.Close()
	if a.Outlook().Down["eu-west"] != "" {
		t.Error("a holds its own region for dead, and nobody said so")
	}
}

// The table names another zone's edge, which it never should: it is not asked, and counts for nothing.
func TestObserver_AsksNoForeignEdge(t *testing.T) {
	in := identitytest.New(t, "test.example", "emea", "us")
	a, u := newNode(t, in, "emea", "eu-west", "a"), newNode(t, in, "us", "us-east", "u")
	a.know(t, "emea", "eu-west", a.doors("emea", "eu-west", "a"), u.doors("us", "us-east", "u"))
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := a.Run(ctx); err != nil {
		t.Fatal(err)
	}
	if look := a.Outlook(); len(look.Regions) != 1 || u.asked.Load() {
		t.Errorf("outlook %+v, asked %v", look, u.asked.Load())
	}
}

// Between the end of a drain and the round that sees it no answer has the region at its full share already.
func TestOutlook_SharesGrowAfterADrain(t *testing.T) {
	in := identitytest.New(t, "test.example", "emea")
	a, b := newNode(t, in, "emea", "eu-west", "a"), newNode(t, in, "emea", "eu-central", "b")
	all := []table.Doors{a.doors("emea", "eu-west", "a"), b.doors("emea", "eu-central", "b")}
	a.drained = "eu-central"
	a.know(t, "emea", "eu-west", all...)
	b.know(t, "emea", "eu-central", all...)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- a.Run(ctx) }()
	defer func() { cancel(); <-ended }()
	share := func() int { return a.Outlook().Shares(time.Now())["eu-central"] }
	eventually(t, "a sees the drain", func() bool { return share() == 10 })
	a.drained = ""
	a.know(t, "emea", "eu-west", all...)
	last, grew := share(), 0
	if last != 10 {
		t.Fatalf("the drain has ended this moment, and the share is %d%%", last)
	}
	eventually(t, "eu-central has its full share", func() bool {
		now := share()
		if now != 0 && now < last {
			t.Errorf("the share fell from %d%% to %d%%", last, now)
		}
		if now > last {
			grew++
		}
		last = now
		return now == 0
	})
	if grew < 5 {
		t.Errorf("the share grew in %d steps: it has to come by and by", grew)
	}
}
