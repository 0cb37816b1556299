package apitest

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/alert"
	"bailiwick/controlplane/internal/calendar"
	"bailiwick/controlplane/internal/ledger"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
)

// Tokens of the operators that every zone knows.
const (
	Admin   = "admin-token"
	Viewer  = "viewer-token"
	Auditor = "auditor-token"
	Second  = "second-token" // of bob, an admin
	Other   = "other-token"  // of the same person as Admin
)

// Pepper of all zones.
var Pepper = bytes.Repeat([]byte{7}, apikey.PepperLen)

// Zone is one zone's control node.
type Zone struct {
	Name   string
	Store  *Store
	Server *httptest.Server
	Usage  *Usage
	Detail *Detail
	Ledger *ledger.Ledger // real, empty
	Signer ed25519.PrivateKey
}

// Installation is two zones over one catalog: emea (eu-west, eu-central, control-only eu-north) and us.
type Installation struct {
	Catalog *Store
	Zones   map[string]*Zone
}

// New starts an installation whose nodes wait for a quorum as long as told.
func New(t testing.TB, wait time.Duration) *Installation {
	in := &Installation{Catalog: NewStore("catalog"), Zones: map[string]*Zone{}}
	for _, r := range []model.Region{
		{Name: "eu-west", Zone: "emea", Country: "IE", Jurisdiction: "EEA"}, {Name: "eu-central", Zone: "emea", Country: "DE", Jurisdiction: "EEA"},
		{Name: "eu-north", Zone: "emea", Country: "SE", Jurisdiction: "EEA", ControlOnly: true},
		{Name: "us-east", Zone: "us", Country: "US", Jurisdiction: "US"}, {Name: "us-west", Zone: "us", Country: "US", Jurisdiction: "US"},
	} {
		in.Catalog.Put(model.PrefixRegion+r.Name, model.Encode(r))
	}
	for _, n := range []model.Node{
		{Name: "emea-1", Kind: "control", Region: "eu-west", Zone: "emea"}, {Name: "us-1", Kind: "control", Region: "us-east", Zone: "us"},
		{Name: "eu-west-edge-1", Kind: "edge", Region: "eu-west", Zone: "emea"}, {Name: "us-east-edge-1", Kind: "edge", Region: "us-east", Zone: "us"},
	} {
		in.Catalog.Put(model.PrefixNode+n.Name, model.Encode(n))
		in.Catalog.Put(model.PrefixLevel+n.Name, model.Encode(model.NodeLevel{Name: n.Name, Level: table.Current}))
	}
	for _, name := range []string{"emea", "us"} {
		z := &Zone{Name: name, Store: NewStore("store/" + name), Usage: &Usage{zone: name, reports: map[string]adminapi.UsageReport{}}, Detail: &Detail{zone: name}, Ledger: newLedger(t), Signer: ed25519.NewKeyFromSeed(bytes.Repeat([]byte(name[:1]), ed25519.SeedSize))}
		for token, role := range map[string]string{Admin: adminapi.RoleAdmin, Viewer: adminapi.RoleViewer, Auditor: adminapi.RoleAuditor} {
			z.Store.Put(adminapi.TokenKey(token), model.Encode(model.Operator{Name: role, Role: role}))
		}
		z.Store.Put(adminapi.TokenKey(Second), model.Encode(model.Operator{Name: "bob", Role: adminapi.RoleAdmin}))
		z.Store.Put(adminapi.TokenKey(Other), model.Encode(model.Operator{Name: adminapi.RoleAdmin, Role: adminapi.RoleAdmin}))
		alerts, err := alert.New(alert.Config{Zone: name, Store: z.Store, SealKey: bytes.Repeat([]byte{9}, 32)})
		if err != nil {
			t.Fatal(err)
		}
		h, err := adminapi.Handler(adminapi.Config{Zone: name, Node: name + "-1", PrimaryZone: "emea", Catalog: in.Catalog, Store: z.Store,
			Pepper: Pepper, Tokens: tokens{}, Edges: edges{name}, Usage: z.Usage, Insight: z.Usage, Detail: z.Detail, Alerts: alerts, Ledger: z.Ledger,
			Signer: z.Signer, Quota: quotas{in.Catalog, z.Store, z.Ledger}, Wait: wait, Objection: time.Millisecond})
		if err != nil {
			t.Fatal(err)
		}
		z.Server = httptest.NewServer(h)
		t.Cleanup(z.Server.Close)
		in.Zones[name] = z
		jurisdiction := map[string]string{"emea": "EEA", "us": "US"}[name]
		in.Catalog.Put(model.PrefixZone+name, model.Encode(model.Zone{Name: name, Jurisdiction: jurisdiction, AdminURLs: []string{z.Server.URL}, SigningKey: z.Signer.Public().(ed25519.PublicKey)}))
	}
	for _, z := range in.Zones {
		z.Usage.all = in
	}
	return in
}

// Client is an HTTP client that presents a token.
func Client(token string) *http.Client { return &http.Client{Transport: bearer(token)} }

type bearer string

func (b bearer) RoundTrip(r *http.Request) (*http.Response, error) {
	r = r.Clone(r.Context())
	if b != "" {
		r.Header.Set("Authorization", "Bearer "+string(b))
	}
	return http.DefaultTransport.RoundTrip(r)
}

type tokens struct{}

func (tokens) CreateToken(_ context.Context, kind, region, name string, ttl time.Duration) (string, time.Time, error) {
	return strings.Join([]string{"jt", kind, region, name}, "-"), time.Now().Add(ttl), nil
}

type edges struct{ zone string }

func (e edges) Reports(context.Context) ([]*peerv1.EdgeReport, []*adminv1.Tightening, error) {
	name := map[string]string{"emea": "eu-west-edge-1", "us": "us-east-edge-1"}[e.zone]
	at := &syncv1.Position{Epoch: 1, Index: 9, Sum: []byte{0xab, 0xcd}}
	var trouble *syncv1.UsageTrouble
	var violations int64
	if e.zone == "us" {
		violations = 3
		trouble = &syncv1.UsageTrouble{Why: syncv1.UsageRefusal_USAGE_REFUSAL_GAP, Epoch: 7}
	}
	return []*peerv1.EdgeReport{{Edge: name, Control: e.zone + "-1", Connected: true, Catalog: at, CatalogWant: at, Zone: at, ZoneWant: at,
		Status: &syncv1.Status{Ready: true, ServesAloneUntilUnix: 2_000_000_000, RelayAddr: "127.0.0.1:1", UsageTrouble: trouble, SentinelViolations: violations, SentinelLate: 1}}}, nil, nil
}

// Usage is a ledger of given reports.
type Usage struct {
	zone string
	all  *Installation
	// mu covers reports.
	mu      sync.Mutex
	reports map[string]adminapi.UsageReport
	// Latencies and Forecasts are what Insight answers.
	Latencies adminapi.LatencyReport
	Forecasts []adminapi.Forecast
}

func (u *Usage) Latency(_ context.Context, _, _ time.Time, api, route string) (adminapi.LatencyReport, error) {
	out := u.Latencies
	out.Rows = slices.DeleteFunc(slices.Clone(out.Rows), func(r adminapi.LatencyRow) bool { return api != "" && r.API != api || route != "" && r.Route != route })
	return out, nil
}

func (u *Usage) Forecast(_ context.Context, customer string) ([]adminapi.Forecast, error) {
	return slices.DeleteFunc(slices.Clone(u.Forecasts), func(f adminapi.Forecast) bool { return customer != "" && f.Customer != customer }), nil
}

// Set gives a customer's report.
func (u *Usage) Set(customer string, r adminapi.UsageReport) {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.reports[customer] = r
}

func (u *Usage) Usage(_ context.Context, q adminapi.UsageQuery) (adminapi.UsageReport, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	r := u.reports[q.Customer]
	r.Rows = slices.DeleteFunc(slices.Clone(r.Rows), func(row adminapi.UsageRow) bool { return row.Cell.Before(q.Since) || !row.Cell.Before(q.Until) })
	if q.Fold == nil {
		return r, nil
	}
	sums := map[adminapi.UsageRow]adminapi.UsageRow{}
	for _, row := range r.Rows {
		key := row
		key.Requests, key.Units, key.BytesIn, key.BytesOut, key.Correction = 0, 0, 0, 0, false
		key = q.Fold(key)
		sum, ok := sums[key]
		if !ok {
			sum = key
		}
		sum.Requests, sum.Units, sum.BytesIn, sum.BytesOut = sum.Requests+row.Requests, sum.Units+row.Units, sum.BytesIn+row.BytesIn, sum.BytesOut+row.BytesOut
		sums[key] = sum
	}
	r.Rows = slices.Collect(maps.Values(sums))
	return r, nil
}

func (u *Usage) Totals(_ context.Context, q adminapi.TotalsQuery) (adminapi.ZoneTotals, error) {
	u.mu.Lock()
	defer u.mu.Unlock()
	out := adminapi.ZoneTotals{Zone: u.zone}
	for _, r := range u.reports {
		for _, row := range r.Rows {
			t := adminapi.TotalsRow{Product: row.Product, Plan: row.Plan, API: row.API, ServedRegion: row.ServedRegion,
				Outcome: row.Outcome, Requests: row.Requests, Units: row.Units}
			if q.Unit != "" {
				t.Start, _ = calendar.Span(row.Cell, q.Unit, q.Zone)
			}
			out.Rows = append(out.Rows, t)
		}
	}
	return out, nil
}

func (u *Usage) AllTotals(ctx context.Context, q adminapi.TotalsQuery) ([]adminapi.ZoneTotals, error) {
	var out []adminapi.ZoneTotals
	for _, name := range []string{"emea", "us"} {
		z, err := u.all.Zones[name].Usage.Totals(ctx, q)
		if err != nil {
			return nil, err
		}
		out = append(out, z)
	}
	return out, nil
}
