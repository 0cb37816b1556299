package model_test

import (
	"errors"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

func TestRoute_ThatNothingMatchesIsRefused(t *testing.T) {
	for _, c := range []struct {
		name   string
		in     model.Route
		reason string // "": fine
		at     string
	}{
		{"an encoded prefix", model.Route{PathPrefix: "/a%2fb", Scope: "admin"}, "PATH_INVALID", "path_prefix"},
		{"an encoded letter", model.Route{PathPrefix: "/%C3%A4"}, "PATH_INVALID", "path_prefix"},
		{"a letter as it is", model.Route{PathPrefix: "/ä"}, "", ""},
		{"a backslash", model.Route{PathPrefix: `/a\b`}, "PATH_INVALID", "path_prefix"},
		{"a parameter", model.Route{PathPrefix: "/a;v=1"}, "PATH_INVALID", "path_prefix"},
		{"a control byte", model.Route{PathPrefix: "/a\x01"}, "PATH_INVALID", "path_prefix"},
		{"methods", model.Route{Methods: []string{"GET", "PROPFIND"}}, "", ""},
		{"CONNECT", model.Route{Methods: []string{"GET", "CONNECT"}}, "METHOD_INVALID", "methods"},
		{"TRACE", model.Route{Methods: []string{"TRACE"}}, "METHOD_INVALID", "methods"},
		{"a method twice", model.Route{Methods: []string{"GET", "GET"}}, "DUPLICATE", "methods"},
		{"WebSockets beside bounds of documents", model.Route{GraphQL: &model.GraphQL{}, WebSocket: &model.WebSocket{}}, "WEBSOCKET_INVALID", "websocket"},
		{"documents by PUT", model.Route{GraphQL: &model.GraphQL{}, Methods: []string{"PUT"}}, "GRAPHQL_INVALID", "graphql"},
		{"documents by GET", model.Route{GraphQL: &model.GraphQL{}, Methods: []string{"GET"}}, "", ""},
		{"a hedge after the end", model.Route{Timeout: time.Second, HedgeAfter: time.Second}, "HEDGE_INVALID", "hedge_after"},
		{"a hedge before it", model.Route{Timeout: time.Second, HedgeAfter: 999 * time.Millisecond}, "", ""},
	} {
		c.in.Name = "r"
		err := model.API{Name: "orders", Zone: "emea", Hosts: []string{"orders.test"}, Routes: []model.Route{c.in}}.Validate()
		if c.reason == "" {
			if err != nil {
				t.Errorf("%s: %v", c.name, err)
			}
			continue
		}
		f, ok := errors.AsType[*fault.Error](err)
		if !ok || f.Reason != c.reason || f.Field != "spec.routes[0]."+c.at {
			t.Errorf("%s: got %v, want %s at %s", c.name, err, c.reason, c.at)
		}
	}
}
