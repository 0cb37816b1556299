package discovery_test

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/discovery"
	"bailiwick/controlplane/internal/model"
)

// etcd is what a test says is there.
type etcd struct{ say chan map[string]string } // nil: it breaks off

func (e *etcd) follow(ctx context.Context, told func(map[string]string)) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case m := <-e.say:
			if m == nil {
				return errors.New("etcd is away")
			}
			told(maps.Clone(m))
		}
	}
}

// leading is a store whose node leads.
type leading struct{ *apitest.Store }

func (l leading) RunLeader(ctx context.Context, work func(context.Context)) error {
	work(ctx)
	return nil
}

func TestFinder_WritesWhatIsFoundAndKeepsTheLast(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		catalog, zone, e := apitest.NewStore("catalog"), apitest.NewStore("store/emea"), &etcd{make(chan map[string]string)}
		put := func(v model.API) { catalog.Put(model.APIKey(v.Zone, v.Name), model.Encode(v)) }
		put(model.API{Name: "orders", Zone: "emea", Dispatch: model.Dispatch{Discovery: "etcd"}})
		put(model.API{Name: "reports", Zone: "emea"})
		put(model.API{Name: "bills", Zone: "us", Dispatch: model.Dispatch{Discovery: "etcd"}})
		for name, in := range map[string]string{"eu-west": "emea", "eu-central": "emea", "us-east": "us"} {
			catalog.Put(model.PrefixRegion+name, model.Encode(model.Region{Name: name, Zone: in}))
		}
		f, err := discovery.New(discovery.Config{Zone: "emea", Catalog: catalog, Store: leading{zone}, Follow: e.follow, Logger: slog.New(slog.DiscardHandler)})
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { defer close(done); f.Run(ctx) }()
		defer func() { cancel(); <-done }()
		is := func(what, want string) {
			t.Helper()
			time.Sleep(15 * time.Second)
			var got []string
			for kv := range zone.Local().List("") {
				v, err := model.Decode[model.Targets](kv.Key, kv.Value)
				if err != nil {
					t.Fatal(err)
				}
				for _, o := range v.Of {
					got = append(got, fmt.Sprint(kv.Key, " ", o.Region, " ", strings.Join(o.URLs, " ")))
				}
			}
			if s := strings.Join(got, "; "); s != want {
				t.Errorf("%s: got %q, want %q", what, s, want)
			}
		}
		is("before etcd said anything", "")
		e.say <- map[string]string{"emea/orders/eu-west/b": "http://b:80/", "emea/orders/eu-west/a": "http://a:80", "emea/orders/eu-west/again": "http://a:80", "emea/orders/eu-central/x": "https://c",
			"emea/orders/us-east/x": "http://away", "emea/orders/eu-west/bad": "file:///etc/passwd", "emea/orders/eu-west/path": "http://a/x", "emea/reports/eu-west/x": "http://r", "emea/bills/eu-west/x": "http://b",
			"us/orders/eu-west/x": "http://u", "emea/orders": "http://short", "emea/orders/nowhere/x": "http://n"}
		const two = "targets/orders eu-central https://c; targets/orders eu-west http://a:80 http://b:80"
		is("found", two)
		at := zone.Local().Revision().Index
		e.say <- nil
		is("etcd is away", two)
		e.say <- map[string]string{}
		is("it says nothing more", two)
		if now := zone.Local().Revision().Index; now != at {
			t.Errorf("what did not change was written: %d after %d", now, at)
		}
		e.say <- map[string]string{"emea/orders/eu-west/z": "http://z:80"}
		is("it says something else of one region", "targets/orders eu-central https://c; targets/orders eu-west http://z:80")
		many := map[string]string{}
		for i := range 200 {
			many[fmt.Sprint("emea/orders/eu-west/", i)] = fmt.Sprintf("http://h%03d:80", i)
		}
		e.say <- many
		time.Sleep(15 * time.Second)
		kv, _ := zone.Local().Get("targets/orders")
		if v, err := model.Decode[model.Targets](kv.Key, kv.Value); err != nil || len(v.Of[1].URLs) != discovery.MaxURLs {
			t.Errorf("of 200 got %+v %v", v, err)
		}
		put(model.API{Name: "orders", Zone: "emea"})
		is("the API does not look for any", "")
	})
}
