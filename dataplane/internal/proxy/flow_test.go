package proxy_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/gate"
	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/priority"
	"bailiwick/dataplane/internal/proxy"
	"bailiwick/dataplane/internal/quota"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

func TestPath_WhatARequestCosts(t *testing.T) {
	w := newWorld(t, nil)
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) {
		for _, v := range r.URL.Query()["units"] {
			rw.Header().Add("X-Units", v)
		}
		if r.URL.Query().Has("broken") {
			rw.Header().Set("Content-Length", "10")
			io.WriteString(rw, "hal")
			rw.(http.Flusher).Flush()
			panic(http.ErrAbortHandler)
		}
		if r.Method != "HEAD" && r.URL.Query().Has("chunked") {
			rw.(http.Flusher).Flush()
		}
		io.WriteString(rw, strings.Repeat("x", 100))
	})
	for _, c := range []struct {
		name, method, path, body string
		units                    int64
	}{
		{"as said", "GET", "/priced?units=7", "", 7},
		{"nothing, as said", "GET", "/priced?units=0", "", 0},
		{"more than may be", "GET", "/priced?units=1000000", "", 50},
		{"not said", "GET", "/priced", "", 1},
		{"said twice", "GET", "/priced?units=7&units=8", "", 1},
		{"less than nothing", "GET", "/priced?units=-7", "", 1},
		{"no number", "GET", "/priced?units=7.5", "", 1},
		{"too large a number", "GET", "/priced?units=99999999999999999999999", "", 50},
		{"in an answer without a body", "HEAD", "/priced?units=7", "", 7},
		{"in one that breaks off", "POST", "/priced?units=7&broken", "x", 7},
		{"by bytes", "POST", "/weighed", strings.Repeat("y", 150), 3}, // 250 of both
		{"by bytes, chunked", "POST", "/weighed?chunked", strings.Repeat("y", 150), 3},
		{"by bytes, more than may be", "POST", "/weighed", strings.Repeat("y", 5000), 5},
		{"by bytes of none", "HEAD", "/weighed", "", 1},
		{"on a free route", "GET", "/gratis?units=7", "", 0},
		{"by what asks for what it may ask", "OPTIONS", "/v1/x", "", 0},
		{"by OPTIONS of a priced route", "OPTIONS", "/priced?units=7", "", 0},
	} {
		n := w.west.meter.len()
		a := w.send(c.method, c.path, c.body)
		eventually(t, 5*time.Second, "a row", func() bool { return w.west.meter.len() > n })
		row := w.west.meter.last()
		if free := c.units == 0 && c.name != "nothing, as said"; (row.Product == "") != free {
			t.Errorf("%s: it is booked on product %q, free %v", c.name, row.Product, free)
		}
		if row.Units != c.units || row.Requests != 1 {
			t.Errorf("%s: got %d units in %+v, want %d", c.name, row.Units, row, c.units)
		}
		if a.header.Get("X-Units") != "" && !strings.Contains(c.path, "gratis") {
			t.Errorf("%s: the client was told the upstream's units", c.name)
		}
	}
}

// oneLease is all that there is to lease.
type oneLease struct {
	mu     sync.Mutex
	leased int64
}

func (l *oneLease) Exchange(_ context.Context, r *quota.Request) (*quota.Response, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := &quota.Response{Sequence: r.Sequence, LiveEdges: 1}
	for _, k := range r.Asks {
		out.States = append(out.States, quota.State{ID: k.ID, Period: 1000, PeriodEnd: 1 << 40, Leased: l.leased, Limit: l.leased, Leases: true, Exhausted: true})
	}
	return out, nil
}

// A strict quota holds whatever upstreams say: what is kept aside for a request is all that it may cost, and what it does not
// cost comes back.
// Who only asks what he may ask, or whether the API is well, pays nothing: OPTIONS, the health path, a route that is free. Over
// each protocol, and by way of another region; what edges ask there themselves is in no row.
func TestFree_HealthPathsAndOptions(t *testing.T) {
	w := newWorld(t, patient)
	w.west.orders = func(a *table.API) {
		a.HealthPath = "/up"
		a.Routes = append(a.Routes, table.Route{Name: "sold", PathPrefix: "/sold", Units: &table.Units{PerBytes: 1000, Most: 5}})
	}
	w.central.orders = w.west.orders
	for _, r := range []*region{w.west, w.central} {
		r.tables.Swap(w.view(r, true))
	}
	vias := w.vias()
	all := func(up *upstream, served string) {
		t.Helper()
		for _, v := range vias {
			for _, c := range []struct {
				method, path string
				units        int64
			}{
				{"OPTIONS", "/v1/x", 0}, {"GET", "/up", 0}, {"HEAD", "/up", 0}, {"GET", "/gratis/x", 0}, {"OPTIONS", "/sold/x", 0},
				{"POST", "/up", 1}, {"GET", "/up?rest_route=/paid", 1}, {"GET", "/up/x", 1}, {"GET", "/upper", 1}, {"GET", "/healthz", 1}, {"GET", "/", 1}, {"GET", "/sold/x", 1},
			} {
				rows := w.west.meter.len()
				resp, err := v.ask(t.Context(), w, c.method, c.path, nil)
				if err != nil {
					t.Fatalf("%s %s over %s: %v", c.method, c.path, v.name, err)
				}
				io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
				eventually(t, 20*time.Second, "its row", func() bool { return w.west.meter.len() > rows })
				row := w.west.meter.last()
				if w.west.meter.len() != rows+1 || resp.StatusCode != 200 || row.ServedRegion != served || row.Requests != 1 || row.Units != c.units || (row.Product == "") != (c.units == 0) {
					t.Errorf("%s %s over %s: got %d, row %+v, want %d units", c.method, c.path, v.name, resp.StatusCode, row, c.units)
				}
			}
		}
	}
	all(w.west.up, "eu-west")
	if rows, asked := w.west.meter.len(), w.west.up.count.Load(); int64(rows) != asked || w.west.up.probes.Load() == 0 {
		t.Errorf("%d rows of %d requests, beside %d questions of the edge's own", rows, asked, w.west.up.probes.Load())
	}
	w.west.up.kill()
	eventually(t, 20*time.Second, "another region", func() bool { return w.send("GET", "/v1/x", "").served == "eu-central" })
	all(w.central.up, "eu-central")
	// An API that names no page has the usual one; the root is no such page, whatever it says.
	for page, want := range map[string]int64{"": 0, "/": 1} {
		w.central.orders = func(a *table.API) { a.HealthPath = page }
		w.west.orders = w.central.orders
		for _, r := range []*region{w.west, w.central} {
			r.tables.Swap(w.view(r, true))
		}
		path := "/healthz"
		if page != "" {
			path = page
		}
		if a := w.send("GET", path, ""); a.status != 200 || w.west.meter.last().Units != want {
			t.Errorf("GET %s: got %d, %d units, want %d", path, a.status, w.west.meter.last().Units, want)
		}
	}
}

// What has the health path and is no look at the API's health costs what all else costs: a WebSocket, a document of GraphQL, what the
// route moves elsewhere. Many servers answer the first two under any path.
func TestFree_OnlyWhatLooksAtTheAPIsHealth(t *testing.T) {
	w := newLive(t, nil, nil)
	w.west.up.does(func(http.ResponseWriter, *http.Request) {})
	row := func(rows int) (row usage.Row) {
		t.Helper()
		eventually(t, 20*time.Second, "its row", func() bool { return w.west.meter.len() > rows && w.west.meter.last().Requests == 1 })
		return w.west.meter.last()
	}
	route := func(r table.Route) {
		w.shaped(func(a *table.API) { a.HealthPath, a.Routes = "/live/x", []table.Route{{Name: "all"}, r} })
	}
	get := func(path string) int64 {
		t.Helper()
		rows := w.west.meter.len()
		if a := w.send("GET", path, ""); a.status != 200 {
			t.Fatalf("GET %s: %d", path, a.status)
		}
		return row(rows).Units
	}
	route(table.Route{Name: "live", PathPrefix: "/live"})
	if n := get("/live/x"); n != 0 {
		t.Errorf("a look costs %d units, want none", n)
	}
	route(table.Route{Name: "live", PathPrefix: "/live", Rewrite: &table.Rewrite{Put: "/v2"}})
	if n := get("/live/x"); n != 1 {
		t.Errorf("what is asked for elsewhere costs %d units, want 1", n)
	}
	route(table.Route{Name: "live", PathPrefix: "/live", Rewrite: &table.Rewrite{Host: "inner.test"}})
	if n := get("/live/x"); n != 0 {
		t.Errorf("a look by another name costs %d units, want none", n)
	}
	route(table.Route{Name: "live", PathPrefix: "/live", GraphQL: &table.GraphQL{Depth: 3, Aliases: 2, RootFields: 3, Cost: 30}})
	if n := get("/live/x?query=%7Bme%7Bname%7D%7D"); n != 1 {
		t.Errorf("a GraphQL document under the health path costs %d units, want 1", n)
	}
	w.west.up.echoes(t)
	route(table.Route{Name: "live", PathPrefix: "/live", WebSocket: &table.WebSocket{}})
	rows := w.west.meter.len()
	c := w.open(w.west)
	if c.status != 101 {
		t.Fatalf("the WebSocket: %d", c.status)
	}
	c.hear()
	c.say(8, "\x03\xe8")
	c.closed()
	if r := row(rows); r.Units != 1 || r.Product == "" {
		t.Errorf("a WebSocket under the health path: %+v, want 1 unit", r)
	}
}

func TestPath_AStrictQuotaHoldsForUnitsOfAnyNumber(t *testing.T) {
	l := &oneLease{leased: 200}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	var done sync.WaitGroup
	w := newWorld(t, func(cfg *proxy.Config) {
		if cfg.Region != "eu-west" {
			return
		}
		b, err := quota.New(quota.Config{Leader: l, Epoch: 1, Logger: slog.New(slog.DiscardHandler), Wait: 5 * time.Second})
		if err != nil {
			t.Fatal(err)
		}
		done.Go(func() { b.Run(ctx) })
		cfg.Gate = &gate.Gate{Hasher: cfg.Gate.Hasher, Limits: cfg.Gate.Limits, Quotas: b}
	})
	key, o := mint(t, "priced")
	w.objects = append(w.objects, o)
	w.west.tables.Swap(w.view(w.west, true))
	w.west.up.does(func(rw http.ResponseWriter, r *http.Request) { rw.Header().Set("X-Units", r.URL.Query().Get("units")) })
	send := func(path string) answer { return w.send("GET", path, "", "X-Api-Key", "", "X-Api-Key", key) }
	spent := 0
	for i, units := range []string{"40", "0", "1000", "9", "51"} { // 40 + 0 + 50 + 9 + 50 = 149: 51 are left
		if a := send("/priced?units=" + units); a.status != 200 {
			t.Fatalf("request %d: got %d %s after %d units", i, a.status, a.body, spent)
		}
		spent += int(w.west.meter.last().Units)
	}
	if a := send("/priced?units=2"); spent != 149 || a.status != 200 || w.west.meter.last().Units != 2 {
		t.Errorf("got %d %s after %d units, want 149 spent and 2 of the 51 left taken", a.status, a.body, spent)
	}
	if a := send("/priced?units=1"); a.status != 429 || !strings.Contains(a.body, gate.ReasonQuotaExceeded) {
		t.Errorf("got %d %s, want it refused: 49 are left, and it could cost 50", a.status, a.body)
	}
	for i := range 50 {
		if a := send("/v1/x"); (a.status == 200) != (i < 49) {
			t.Fatalf("request %d at one unit: got %d %s, want 49 to be left", i, a.status, a.body)
		}
	}
	if a := send("/gratis"); a.status != 200 {
		t.Errorf("a free route: got %d %s, want it to need no quota", a.status, a.body)
	}
	total := int64(0)
	for _, r := range w.west.meter.since(0) {
		total += r.Units
	}
	if total != 200 {
		t.Errorf("%d units were counted of 200", total)
	}
	cancel()
	done.Wait()
}

// At an API that bounds what its upstreams work on, free yields to platinum; and the place is given back.
func TestPath_FreeYields(t *testing.T) {
	w := newWorld(t, nil)
	free, o := mint(t, "free-class")
	paid, o2 := mint(t, "platinum-class")
	w.objects = append(w.objects, o, o2)
	w.west.tables.Swap(w.view(w.west, true))
	hold := make(chan struct{})
	w.west.up.does(func(http.ResponseWriter, *http.Request) { <-hold })
	from := func(key string) answer {
		return w.send("POST", "/x", "y", "Host", "tight.test", "X-Api-Key", "", "X-Api-Key", key)
	}
	got := make(chan answer, 4)
	at := func(n int32) {
		eventually(t, 10*time.Second, "requests at the upstream", func() bool { w.west.up.mu.Lock(); defer w.west.up.mu.Unlock(); return w.west.up.bodies["y"] == int(n) })
	}
	go func() { got <- from(free) }() // of four places free may take two
	go func() { got <- from(free) }()
	at(2)
	if a := from(free); a.status != 503 || !strings.Contains(a.body, gate.ReasonOverloaded) || a.header.Get("Retry-After") != "1" {
		t.Errorf("a third free one: got %d %s, want it turned away", a.status, a.body)
	}
	if r := w.west.meter.last(); r.Outcome != usage.OutcomeUnserved || r.Units != 0 || r.Plan != "free-class" {
		t.Errorf("got %+v, want it unserved and free of units", r)
	}
	go func() { got <- from(paid) }()
	go func() { got <- from(paid) }()
	at(4)
	close(hold)
	for range 4 {
		if a := <-got; a.status != 200 {
			t.Errorf("got %d %s %v, want it served", a.status, a.body, a.err)
		}
	}
	for range 5 {
		if a := from(free); a.status != 200 {
			t.Errorf("when all is over: got %d %s", a.status, a.body)
		}
	}
	if up, edge := w.west.proxy.Shed(priority.Free); up != 1 || edge != 0 {
		t.Errorf("it tells of %d and %d turned away, want one by the upstream", up, edge)
	}
}

// Of a target's max_requests free leaves room for platinum, once platinum is there; over a relay too.
func TestPath_FreeLeavesRoomAtATarget(t *testing.T) {
	for _, serves := range []string{"eu-west", "eu-central"} {
		t.Run(serves, func(t *testing.T) {
			w := newWorld(t, patient)
			free, o := mint(t, "free-class")
			paid, o2 := mint(t, "platinum-class")
			w.objects = append(w.objects, o, o2)
			up := w.west.up
			if serves == "eu-central" {
				up = w.central.up
			}
			for _, r := range []*region{w.west, w.central} {
				r.orders = func(a *table.API) { a.Dispatch = table.Dispatch{MaxRequests: 5, MaxWaiting: 5, MaxWait: time.Minute} }
				r.tables.Swap(w.view(r, true))
			}
			if serves == "eu-central" {
				w.west.up.kill()
			}
			from := func(key string) answer { return w.send("POST", "/v1/x", "y", "X-Api-Key", "", "X-Api-Key", key) }
			eventually(t, 20*time.Second, "a first answer", func() bool { return from(paid).served == serves })
			var under, most atomic.Int32 // of free's at the upstream
			hold := make(chan struct{})
			up.does(func(rw http.ResponseWriter, r *http.Request) {
				if r.Header.Get("X-Plan") == "platinum" {
					return
				}
				if n := under.Add(1); n > most.Load() {
					most.Store(n)
				}
				<-hold
				under.Add(-1)
			})
			var all sync.WaitGroup
			for range 8 {
				all.Go(func() {
					if a := from(free); a.status != 200 && a.status != 503 && a.status != 429 {
						t.Errorf("free: %d %s", a.status, a.body)
					}
				})
			}
			eventually(t, 20*time.Second, "free at the upstream", func() bool { return under.Load() == 3 })
			for range 5 {
				if a := w.send("POST", "/v1/x", "y", "X-Api-Key", "", "X-Api-Key", paid, "X-Plan", "platinum"); a.status != 200 || a.served != serves {
					t.Errorf("platinum: %d from %q, %s", a.status, a.served, a.body)
				}
			}
			close(hold)
			all.Wait()
			if n := most.Load(); n != 3 {
				t.Errorf("free had %d of five places, want three", n)
			}
		})
	}
}

// What nobody served takes nothing of the plan's limits: neither of its windows nor of its rate.
func TestPath_WhatIsShedIsGivenBack(t *testing.T) {
	w := newWorld(t, func(cfg *proxy.Config) { cfg.MaxInFlight = 2 })
	w.west.plan = func(p *table.Plan) {
		p.Class, p.Windows = "free", []table.Window{{Requests: 3, Per: time.Hour}}
		p.RequestsPerSecond, p.Burst = 1, 3
	}
	w.west.tables.Swap(w.view(w.west, true))
	hold := make(chan struct{})
	w.west.up.does(func(http.ResponseWriter, *http.Request) { <-hold })
	got := make(chan answer, 1)
	from := func() answer { return w.send("POST", "/v1/x", "y") }
	go func() { got <- from() }()
	eventually(t, 10*time.Second, "a request at the upstream", func() bool { w.west.up.mu.Lock(); defer w.west.up.mu.Unlock(); return w.west.up.bodies["y"] == 1 })
	for range 20 {
		if a := from(); a.status != 503 || !strings.Contains(a.body, gate.ReasonOverloaded) {
			t.Fatalf("a second one: got %d %s, want it turned away", a.status, a.body)
		}
	}
	close(hold)
	<-got
	for i := range 2 {
		if a := from(); a.status != 200 {
			t.Fatalf("request %d of the two that are left: got %d %s", i, a.status, a.body)
		}
	}
	if a := from(); a.status != 429 {
		t.Errorf("beyond the window: got %d %s", a.status, a.body)
	}
}

// One customer who opens requests without end takes some of an edge's seats, and not those of others; what is refused costs it
// nothing, and a plan may say that it may have more.
func TestPath_OneCustomerHasNotAllSeats(t *testing.T) {
	w := newWorld(t, func(cfg *proxy.Config) { cfg.MaxInFlight = 128; patient(cfg) })
	other, o := mint(t, "platinum-class")
	w.objects = append(w.objects, o)
	w.west.tables.Swap(w.view(w.west, true))
	for _, most := range []int{64, 70} { // by itself, and where the plan says so
		if most != 64 {
			w.west.plan = func(p *table.Plan) { p.MaxConcurrent = most }
			w.west.tables.Swap(w.view(w.west, true))
		}
		var under atomic.Int32
		hold := make(chan struct{})
		w.west.up.does(func(_ http.ResponseWriter, r *http.Request) {
			if r.Header.Get("X-Held") != "" {
				under.Add(1)
				<-hold
			}
		})
		var all sync.WaitGroup
		for range most {
			all.Go(func() {
				if a := w.send("POST", "/v1/x", "y", "X-Held", "1"); a.status != 200 {
					t.Errorf("held: %d %s", a.status, a.body)
				}
			})
		}
		eventually(t, 30*time.Second, "all of them at the upstream", func() bool { return under.Load() == int32(most) })
		rows := w.west.meter.len()
		for range 3 {
			if a := w.send("POST", "/v1/x", "y"); a.status != 429 || !strings.Contains(a.body, gate.ReasonCrowded) {
				t.Errorf("one more: got %d %s", a.status, a.body)
			}
		}
		for _, r := range w.west.meter.since(rows) {
			if r.Outcome != usage.OutcomeLimited || r.Units != 0 {
				t.Errorf("one more has the row %+v", r)
			}
		}
		if a := w.send("POST", "/v1/x", "y", "X-Api-Key", "", "X-Api-Key", other); a.status != 200 {
			t.Errorf("another customer: got %d %s", a.status, a.body)
		}
		close(hold)
		all.Wait()
		eventually(t, 20*time.Second, "a request after them", func() bool { return w.send("POST", "/v1/x", "y").status == 200 })
	}
}

// An API of another zone that has the same name as one of the own shares neither its places nor its budget of retries.
func TestProxy_APIsOfTwoZonesShareNoBudget(t *testing.T) {
	w := newWorld(t, nil)
	o, err := table.Encode(table.KindAPI, "us/orders", table.API{Name: "orders", Zone: "us", Foreign: true, Policy: "gdpr", Targets: []string{"http://" + w.west.up.addr}})
	if err != nil {
		t.Fatal(err)
	}
	w.objects = append(w.objects, o)
	v := w.view(w.west, true)
	own, foreign := v.APIOf("emea", "orders"), v.APIOf("us", "orders")
	if own == nil || foreign == nil || !proxy.Budgets(w.west.proxy, own, foreign) {
		t.Errorf("%v and %v share what is kept of an API", own, foreign)
	}
}

// What is kept of an API goes when the API has left the catalog, but not while one of its requests holds a place: what is bounded
// stays so if it comes back. What was counted stays counted.
func TestProxy_ForgetsTheBudgetsOfAPIsThatLeft(t *testing.T) {
	w := newWorld(t, nil)
	p, with := w.west.proxy, w.view(w.west, true)
	p.Turn()
	tight, orders := with.API("tight.test"), with.API("orders.test")
	proxy.Budgets(p, tight, orders)
	leave, ok := proxy.Enter(t.Context(), p, tight, priority.Gold)
	if !ok {
		t.Fatal("no place at an idle API")
	}
	n := 0
	swap := func(kept bool) {
		t.Helper()
		n++
		var objects []table.Object
		if kept {
			objects = append(objects, w.objects...)
		}
		o, err := table.Encode(table.KindSettings, table.SettingsID, table.Settings{Zone: "emea", Region: "eu-west"})
		if err != nil {
			t.Fatal(err)
		}
		o2, err := table.Encode(table.KindRegion, fmt.Sprint("r", n), table.Region{Name: fmt.Sprint("r", n), Zone: "emea"})
		if err != nil {
			t.Fatal(err)
		}
		c, z := revision.Revision{Epoch: 1, Index: 1}, revision.Revision{Epoch: 1, Index: 1}
		for _, o := range append(objects, o, o2) {
			if o.Kind.Scope() == table.ScopeZone {
				z.Sum = z.Sum.Add(o.Sum())
			} else {
				c.Sum = c.Sum.Add(o.Sum())
			}
		}
		tab, err := policy.NewTable(append(objects, o, o2), c, z)
		if err != nil {
			t.Fatal(err)
		}
		w.west.tables.Swap(tab)
		p.Turn()
	}
	shed := func() int64 { n, _ := p.Shed(priority.Free); return n }
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	proxy.Enter(gone, p, tight, priority.Free) // the only place is taken
	before := shed()
	if before == 0 {
		t.Fatal("nobody was turned away")
	}
	swap(false)
	if got := proxy.KeptBudgets(p); got != 1 {
		t.Errorf("%d are kept, want that of the API of which a request is under way", got)
	}
	leave()
	swap(false)
	if got := proxy.KeptBudgets(p); got != 0 {
		t.Errorf("%d are kept of APIs that left", got)
	}
	if got := shed(); got != before {
		t.Errorf("%d were turned away, and %d before", got, before)
	}
	proxy.Budgets(p, tight, orders)
	w.west.tables.Swap(with)
	p.Turn()
	if got := proxy.KeptBudgets(p); got != 2 {
		t.Errorf("%d are kept of APIs that are here, want 2", got)
	}
}

// Within a zone a customer's resets are his, wherever his requests came in; of another zone's customers nobody here knows.
func TestHold_RelaysAreTheirCustomers(t *testing.T) {
	w := newWorld(t, nil)
	r, err := http.NewRequest("GET", "/x", nil)
	if err != nil {
		t.Fatal(err)
	}
	if got := proxy.Whose(w.west.proxy, r, "us-east"); got != "relays of us-east" {
		t.Errorf("of another zone: got %q", got)
	}
	r.Header.Set("Bailiwick-Customer", "acme")
	if got := proxy.Whose(w.west.proxy, r, "eu-central"); got != "acme" {
		t.Errorf("of this zone: got %q", got)
	}
}

func TestPath_AnEdgeHasSeats(t *testing.T) {
	w := newWorld(t, func(cfg *proxy.Config) { cfg.MaxInFlight = 2 })
	free, o := mint(t, "free-class")
	paid, o2 := mint(t, "platinum-class")
	w.objects = append(w.objects, o, o2)
	w.west.tables.Swap(w.view(w.west, true))
	hold := make(chan struct{})
	w.west.up.does(func(http.ResponseWriter, *http.Request) { <-hold })
	got := make(chan answer, 1)
	from := func(key string) answer { return w.send("POST", "/v1/x", "y", "X-Api-Key", "", "X-Api-Key", key) }
	go func() { got <- from(free) }()
	eventually(t, 10*time.Second, "a request at the upstream", func() bool { w.west.up.mu.Lock(); defer w.west.up.mu.Unlock(); return w.west.up.bodies["y"] == 1 })
	if a := from(free); a.status != 503 || !strings.Contains(a.body, gate.ReasonOverloaded) {
		t.Errorf("a second free one: got %d %s, want it turned away", a.status, a.body)
	}
	close(hold)
	if a := from(paid); a.status != 200 {
		t.Errorf("platinum: got %d %s", a.status, a.body)
	}
	if a := <-got; a.status != 200 {
		t.Errorf("the first: got %d %s", a.status, a.body)
	}
	if a := from(free); a.status != 200 {
		t.Errorf("when all is over: got %d %s", a.status, a.body)
	}
}

// Places are of this region's upstreams. What goes to another region takes none of them: else what is left of a region whose
// upstreams died, an estimate of how they did, would be all that may leave it.
func TestPath_WhatIsRelayedTakesNoPlace(t *testing.T) {
	w := newWorld(t, patient)
	w.west.orders = func(a *table.API) { a.Concurrency = &table.Concurrency{Min: 1, Max: 1} }
	w.west.tables.Swap(w.view(w.west, true))
	w.west.up.kill()
	arrived, over := make(chan struct{}), make(chan struct{})
	w.central.up.does(func(http.ResponseWriter, *http.Request) {
		arrived <- struct{}{}
		<-over
	})
	answers := make(chan answer, 5)
	var wg sync.WaitGroup
	for i := range cap(answers) { // each while those before it are under way
		wg.Go(func() { answers <- w.send("POST", "/v1/x", "") })
		select {
		case <-arrived:
		case a := <-answers:
			close(over)
			t.Fatalf("request %d: got %d by %q: %s, want it to be served elsewhere beside the others", i, a.status, a.served, a.body)
		}
	}
	close(over)
	wg.Wait()
	for range cap(answers) {
		if a := <-answers; a.status != 200 || a.served != "eu-central" {
			t.Errorf("got %d by %q: %s", a.status, a.served, a.body)
		}
	}
}
