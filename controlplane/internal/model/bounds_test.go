package model_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

func TestKey_Bound(t *testing.T) {
	k, err := model.Key{ID: "k"}.Bound([]string{"orders:write", "orders:read", "orders:read"}, []string{"2001:db8::/32", "192.0.2.7", "192.0.2.7/32", "::ffff:10.0.0.1"})
	if err != nil || !slices.Equal(k.Scopes, []string{"orders:read", "orders:write"}) || !slices.Equal(k.AllowFrom, []string{"10.0.0.1/32", "192.0.2.7/32", "2001:db8::/32"}) {
		t.Errorf("got %v %v %v, want each sorted and once", k.Scopes, k.AllowFrom, err)
	}
	for _, c := range []struct {
		scopes, from []string
		reason, says string
	}{
		{scopes: []string{"a b"}, reason: "SCOPE_INVALID", says: "a b"},
		{scopes: []string{""}, reason: "SCOPE_INVALID"},
		{from: []string{"10.0.0.1/8"}, reason: "SUBNET_INVALID", says: "write 10.0.0.0/8"},
		{from: []string{"10.0.0.0/33"}, reason: "SUBNET_INVALID", says: "CIDR"},
		{from: []string{"fe80::1%eth0"}, reason: "SUBNET_INVALID"},
		{from: []string{"::ffff:10.0.0.0/104"}, reason: "SUBNET_INVALID", says: "IPv4"},
		{scopes: make([]string, 17), reason: "KEY_BOUNDS_INVALID"},
	} {
		_, err := model.Key{}.Bound(c.scopes, c.from)
		if err == nil || fault.ReasonOf(err) != c.reason || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%v %v: got %v, want %s with %q", c.scopes, c.from, err, c.reason, c.says)
		}
	}
}

func TestPlan_RateLimitsAreBounded(t *testing.T) {
	plan := model.Plan{Name: "gold", Products: []string{"core"}, RateLimits: []model.RateWindow{{Requests: 100, Per: time.Minute}, {Requests: 1000, Per: 24 * time.Hour, Burst: 500}}, MaxConcurrent: 10}
	if err := plan.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*model.Plan){
		"no time":      func(p *model.Plan) { p.RateLimits[0].Per = 0 },
		"half seconds": func(p *model.Plan) { p.RateLimits[0].Per = 1500 * time.Millisecond },
		"too long":     func(p *model.Plan) { p.RateLimits[0].Per = 745 * time.Hour },
		"nothing":      func(p *model.Plan) { p.RateLimits[0].Requests = 0 },
		"burst":        func(p *model.Plan) { p.RateLimits[0].Burst = 101 },
		"twice":        func(p *model.Plan) { p.RateLimits[1].Per = time.Minute },
		"concurrent":   func(p *model.Plan) { p.MaxConcurrent = -1 },
	} {
		p := plan
		p.RateLimits = slices.Clone(plan.RateLimits)
		change(&p)
		if err := p.Validate(); err == nil || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: got %v, want it refused", name, err)
		}
	}
}

func TestAPI_RouteBounds(t *testing.T) {
	api := model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.example.test"}, Routes: []model.Route{{Name: "all", PathPrefix: "/", Scope: "orders:read", Timeout: 5 * time.Second, Deadline: time.Minute, MaxResponseBytes: 1 << 20}}}
	if err := api.Validate(); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(*model.Route){
		"scope":             func(r *model.Route) { r.Scope = "a,b" },
		"deadline":          func(r *model.Route) { r.Deadline = 25 * time.Hour },
		"before timeout":    func(r *model.Route) { r.Deadline = time.Second },
		"negative response": func(r *model.Route) { r.MaxResponseBytes = -1 },
	} {
		a := api
		a.Routes = slices.Clone(api.Routes)
		change(&a.Routes[0])
		if err := a.Validate(); err == nil || fault.KindOf(err) != fault.Invalid {
			t.Errorf("%s: got %v, want it refused", name, err)
		}
	}
}
