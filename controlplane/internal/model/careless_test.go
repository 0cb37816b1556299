package model_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
)

func TestCareless_SaysWhatDoesNothing(t *testing.T) {
	at := func(urls ...string) []model.Upstream {
		var out []model.Upstream
		for _, u := range urls {
			out = append(out, model.Upstream{Region: "eu-west", URL: u})
		}
		return out
	}
	drained := at("http://a", "http://b")
	drained[0].Drain = true
	all := at("http://a")
	all[0].Drain = true
	for name, c := range map[string]struct {
		api  model.API
		want string // "": nothing
	}{
		"well":              {api: model.API{Upstreams: at("http://a:1", "https://b:65535", "http://c", "http://[2001:db8::1]:80", "http://10.0.0.1")}},
		"port 0":            {model.API{Upstreams: at("http://a:0")}, "port 0"},
		"port 65536":        {model.API{Upstreams: at("http://a:65536")}, "port 65536"},
		"metadata":          {model.API{Upstreams: at("http://169.254.169.254")}, "never dial"},
		"multicast":         {model.API{Upstreams: at("http://[ff02::1]:80")}, "never dial"},
		"one drained":       {api: model.API{Upstreams: drained}},
		"all drained":       {model.API{Upstreams: all}, "answered 503"},
		"found besides":     {api: model.API{Upstreams: all, Dispatch: model.Dispatch{Discovery: "etcd"}}},
		"hedged":            {api: model.API{Routes: []model.Route{{Name: "a", HedgeAfter: 29 * time.Second}}}},
		"hedged at default": {model.API{Routes: []model.Route{{Name: "a", HedgeAfter: 30 * time.Second}}}, "timeout of 30s"},
		"kept":              {api: model.API{Routes: []model.Route{{Name: "a", Cache: &model.Cache{}, Methods: []string{"GET", "POST"}}, {Name: "b", Cache: &model.Cache{}}}}},
		"kept of POST":      {model.API{Routes: []model.Route{{Name: "a", Cache: &model.Cache{}, Methods: []string{"POST"}}}}, "cache does nothing"},
	} {
		got := strings.Join(c.api.Careless(), "\n")
		if c.want == "" && got != "" || !strings.Contains(got, c.want) || strings.Contains(got, "\n") {
			t.Errorf("%s: got %q, want %q", name, got, c.want)
		}
	}
}

func TestRegion_TakesWhatItsNetworksHave(t *testing.T) {
	r := model.Region{UpstreamNetworks: []string{"10.1.0.0/16", "2001:db8::/32"}}
	for url, want := range map[string]bool{"http://10.1.2.3:80": true, "http://10.2.0.1": false, "https://[2001:db8::1]": true, "https://[2001:db9::1]:1": false, "http://[::ffff:10.1.0.1]": true, "http://orders.internal": true} {
		if got := r.Takes(model.Upstream{URL: url}); got != want {
			t.Errorf("%s: got %v, want %v", url, got, want)
		}
	}
	if !(model.Region{}).Takes(model.Upstream{URL: "http://10.2.0.1"}) {
		t.Error("a region that says nothing of networks leaves something out")
	}
}
