package model_test

import (
	"strings"
	"testing"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

func TestAPI_ProtocolsOfUpstreams(t *testing.T) {
	good := func() model.API {
		return model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Health: model.Health{Protocol: "grpc", Service: "shop.v1.Orders"},
			Dispatch:  model.Dispatch{MaxConnections: 4},
			Upstreams: []model.Upstream{{Region: "eu", URL: "https://a.test", Protocol: "h2"}, {Region: "eu", URL: "http://b.test", Protocol: "h2c"}},
			Routes:    []model.Route{{Name: "all", GRPCWeb: "translate", Units: &model.Units{PerMessages: 10}}}}
	}
	if err := good().Validate(); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*model.API)
		field  string
	}{
		"h2 in clear":  {func(a *model.API) { a.Upstreams[0].URL = "http://a.test" }, "spec.upstreams[0].protocol"},
		"h2c over TLS": {func(a *model.API) { a.Upstreams[1].URL = "https://b.test" }, "spec.upstreams[1].protocol"},
		"unknown":      {func(a *model.API) { a.Upstreams[1].Protocol = "h3" }, "spec.upstreams[1].protocol"},
		"two of one URL": {func(a *model.API) {
			a.Upstreams = append(a.Upstreams, model.Upstream{Region: "us", URL: "http://b.test/"})
		}, "spec.upstreams[2].protocol"},
		"grpc over HTTP/1.1":   {func(a *model.API) { a.Upstreams[0].Protocol = "" }, "spec.health.protocol"},
		"a service of a page":  {func(a *model.API) { a.Health.Protocol = "http" }, "spec.health.service"},
		"a page of a service":  {func(a *model.API) { a.Health.Path = "/up" }, "spec.health.path"},
		"a service of two":     {func(a *model.API) { a.Health.Service = "a b" }, "spec.health.service"},
		"another probe":        {func(a *model.API) { a.Health.Protocol = "tcp" }, "spec.health.protocol"},
		"too many connections": {func(a *model.API) { a.Dispatch.MaxConnections = 257 }, "spec.dispatch.max_connections"},
		"connections of none": {func(a *model.API) {
			a.Health, a.Upstreams = model.Health{}, a.Upstreams[:1]
			a.Upstreams[0].Protocol = "http1"
			a.Routes = nil
		}, "spec.dispatch.max_connections"},
		"translated to HTTP/1.1": {func(a *model.API) { a.Health, a.Upstreams[0].Protocol = model.Health{}, "http1" }, "spec.routes[0].grpc_web"},
		"another way":            {func(a *model.API) { a.Routes[0].GRPCWeb = "yes" }, "spec.routes[0].grpc_web"},
		"units of two":           {func(a *model.API) { a.Routes[0].Units.PerBytes = 1 }, "spec.routes[0].units"},
		"units of less":          {func(a *model.API) { a.Routes[0].Units.PerMessages = -1 }, "spec.routes[0].units.per_messages"},
	} {
		a := good()
		c.change(&a)
		err := a.Validate()
		if f, ok := fault.As(err); !ok || f.Field != c.field || !strings.Contains(f.Message, "orders") {
			t.Errorf("%s: got %+v, want an error at %s that names the API", name, f, c.field)
		}
	}
}
