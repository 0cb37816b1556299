package carrier_test

import (
	"context"
	"io"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"google.golang.org/protobuf/reflect/protoreflect"

	"bailiwick/controlplane/internal/carrier"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// crossing are the procedures that a control node of another zone may call. Everything else is refused to it.
var crossing = []string{
	"/bailiwick.peer.v1.CentralService/Totals",
	"/bailiwick.peer.v1.GroupService/Describe",  // the catalog's group alone
	"/bailiwick.peer.v1.GroupService/Propose",   // the catalog's group alone: what it holds is walked in package model
	"/bailiwick.peer.v1.GroupService/ReadIndex", // likewise
}

// crosses names each field of text or bytes that may cross a border between zones, with the reason. No free text
// is among them: nothing a person types about a customer, and no field in which such a text could travel.
var crosses = map[string]string{
	"bailiwick.peer.v1.ProposeRequest.group":     "name of a raft group",
	"bailiwick.peer.v1.ProposeRequest.command":   "of the catalog group: package model's catalog records",
	"bailiwick.peer.v1.ProposeResponse.result":   "of the catalog group: a revision",
	"bailiwick.peer.v1.ReadIndexRequest.group":   "name of a raft group",
	"bailiwick.peer.v1.StateHash.sum":            "of the catalog group: a hash of all of it",
	"bailiwick.peer.v1.DescribeRequest.group":    "name of a raft group",
	"bailiwick.peer.v1.DescribeResponse.node":    "name of a control node",
	"bailiwick.peer.v1.DescribeResponse.server":  "the same, or with when it joined",
	"bailiwick.peer.v1.DescribeResponse.version": "of the program",
	"bailiwick.peer.v1.DescribeResponse.state":   "enum of package raftgroup",
	"bailiwick.peer.v1.DescribeResponse.leader":  "name of a control node",
	"bailiwick.admin.v1.ZoneTotals.zone":         "name of the zone that answers",
	"bailiwick.admin.v1.ZoneTotals.error":        "for the operator's client; the door clears it (TestCentral_TellsNoText)",
	"bailiwick.admin.v1.TotalsRow.product":       "catalogue id",
	"bailiwick.admin.v1.TotalsRow.plan":          "catalogue id",
	"bailiwick.admin.v1.TotalsRow.api":           "catalogue id",
	"bailiwick.admin.v1.TotalsRow.served_region": "catalogue id",
	"bailiwick.admin.v1.TotalsRow.outcome":       "enum of shared/usage",
	"bailiwick.admin.v1.TotalsRow.time":          "a local time, for the operator's client; the door clears it",
	"bailiwick.peer.v1.TotalsRequest.unit":       "enum: hour, day, month",
	"bailiwick.peer.v1.TotalsRequest.time_zone":  "IANA name that an operator asked for",
}

func foreigner(context.Context) (identity.Name, bool) {
	return identity.Name{Zone: "us", Installation: "test", Region: "us-east", Kind: identity.Control, Node: "us-1"}, true
}

func open(t *testing.T, totals func(context.Context, *peerv1.TotalsRequest) (*adminv1.ZoneTotals, error)) *httptest.Server {
	t.Helper()
	c := carrier.New(carrier.Config{Zone: "emea", Client: func(string) *http.Client { return nil }, Peer: foreigner, Logger: slog.New(slog.DiscardHandler)})
	mux := http.NewServeMux()
	c.Register(mux, nil, nil, carrier.Ledger{}, totals)
	s := httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func ask(t *testing.T, s *httptest.Server, procedure string, streams bool, body string) string {
	t.Helper()
	kind := "application/json"
	if streams {
		kind, body = "application/connect+json", string([]byte{0, 0, 0, 0, byte(len(body))})+body
	}
	resp, err := http.Post(s.URL+procedure, kind, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// Which doors stand open to another zone is found by knocking at each: a new procedure is closed, or is listed
// above and what it carries is walked.
func TestDoors_OpenToOtherZones(t *testing.T) {
	s := open(t, func(context.Context, *peerv1.TotalsRequest) (*adminv1.ZoneTotals, error) {
		return &adminv1.ZoneTotals{}, nil
	})
	services := peerv1.File_bailiwick_peer_v1_peer_proto.Services()
	knocked := 0
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			m := methods.Get(j)
			procedure := "/" + string(services.Get(i).FullName()) + "/" + string(m.Name())
			answer := ask(t, s, procedure, m.IsStreamingServer() || m.IsStreamingClient(), "{}")
			closed := strings.Contains(answer, "permission_denied") || strings.Contains(answer, "unimplemented")
			if open := slices.Contains(crossing, procedure); closed == open {
				t.Errorf("%s answers a foreign control node %q; crossing: %v", procedure, answer, open)
			}
			knocked++
		}
	}
	if knocked < 10 {
		t.Errorf("%d procedures were tried: the rule checks little", knocked)
	}
}

// No text or bytes cross a border in a field that nobody gave a reason for.
func TestCrossing_CarriesNoFreeText(t *testing.T) {
	seen := map[string]bool{}
	visited := map[protoreflect.FullName]bool{}
	var walk func(protoreflect.MessageDescriptor)
	walk = func(m protoreflect.MessageDescriptor) {
		if visited[m.FullName()] {
			return
		}
		visited[m.FullName()] = true
		switch m.FullName() {
		case "google.protobuf.Timestamp", "google.protobuf.Duration":
			return
		}
		if strings.HasPrefix(string(m.FullName()), "google.protobuf.") {
			t.Errorf("%s crosses a border: it can hold anything", m.FullName())
		}
		fields := m.Fields()
		for i := range fields.Len() {
			f := fields.Get(i)
			switch f.Kind() {
			case protoreflect.StringKind, protoreflect.BytesKind:
				name := string(f.FullName())
				seen[name] = true
				if crosses[name] == "" {
					t.Errorf("%s crosses a border between zones: text and bytes need a reason in this test's list, and free text has none", name)
				}
			case protoreflect.MessageKind, protoreflect.GroupKind:
				walk(f.Message())
			}
		}
	}
	services := peerv1.File_bailiwick_peer_v1_peer_proto.Services()
	for _, procedure := range crossing {
		service, method, _ := strings.Cut(strings.TrimPrefix(procedure, "/"), "/")
		s := services.ByName(protoreflect.FullName(service).Name())
		if s == nil || s.Methods().ByName(protoreflect.Name(method)) == nil {
			t.Fatalf("%s does not exist", procedure)
		}
		m := s.Methods().ByName(protoreflect.Name(method))
		walk(m.Input())
		walk(m.Output())
	}
	for name := range maps.Keys(crosses) {
		if !seen[name] {
			t.Errorf("%s has a reason and does not exist any more", name)
		}
	}
}

// What a zone is asked for its sums answers no text of its own: neither in the fields that are for the operator's
// client nor in an error, whose cause may name anybody.
func TestCentral_TellsNoText(t *testing.T) {
	const canary = "Erika Mustermann"
	body := `{"since":"2026-11-25T00:00:00Z","until":"2026-11-26T00:00:00Z"}`
	s := open(t, func(context.Context, *peerv1.TotalsRequest) (*adminv1.ZoneTotals, error) {
		return &adminv1.ZoneTotals{Zone: "emea", Error: canary, Rows: []*adminv1.TotalsRow{{Product: "core", Time: canary, Requests: 4}}}, nil
	})
	if answer := ask(t, s, crossing[0], false, body); strings.Contains(answer, canary) || !strings.Contains(answer, "core") {
		t.Errorf("answer %s: want the sums and no text", answer)
	}
	s = open(t, func(context.Context, *peerv1.TotalsRequest) (*adminv1.ZoneTotals, error) {
		return nil, fault.New(fault.Unavailable, "LEDGER_CLOSED", "read cells of %s", canary)
	})
	if answer := ask(t, s, crossing[0], false, body); strings.Contains(answer, canary) || !strings.Contains(answer, "unavailable") {
		t.Errorf("error %s: want its kind and no text", answer)
	}
}
