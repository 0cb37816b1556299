package adminapi_test

import (
	"encoding/base64"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/reflect/protoreflect"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

// Whatever the page's size, pages together are the list: each thing once, in one order, also while others come and go.
func TestList_PagesAreTheList(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	var want []string
	for i := range 57 {
		name := fmt.Sprintf("c%02d", i)
		z.Store.Put(model.PrefixCustomer+name, model.Encode(model.Customer{Name: name, Zone: "emea", Status: []string{"active", "suspended"}[i%2]}))
		want = append(want, name)
	}
	res := resourcesAt(z, apitest.Admin)
	for _, size := range []int32{1, 7, 57, 1000} {
		for filter, step := range map[string]int{`name=c*`: 1, `status=suspended name=c*`: 2} {
			var got []string
			token, pages := "", 0
			for {
				resp, err := res.List(t.Context(), &adminv1.ListRequest{Kind: "customers", PageSize: size, PageToken: token, Filter: filter})
				if err != nil {
					t.Fatal(err)
				}
				if len(resp.Resources) > int(size) {
					t.Fatalf("a page of %d holds %d", size, len(resp.Resources))
				}
				for _, r := range resp.Resources {
					got = append(got, r.Name)
				}
				if pages++; pages == 1 { // what comes before the place, and what goes at it, moves nothing
					z.Store.Put(model.PrefixCustomer+"c", model.Encode(model.Customer{Name: "c", Zone: "emea", Status: "suspended"}))
				}
				if token = resp.NextPageToken; token == "" {
					break
				}
			}
			exp := []string{}
			for i := step - 1; i < len(want); i += step {
				exp = append(exp, want[i])
			}
			got = slices.DeleteFunc(got, func(s string) bool { return s == "c" })
			if !slices.Equal(got, exp) {
				t.Errorf("pages of %d, %s: got %v, want %v", size, filter, got, exp)
			}
		}
	}
	first, err := res.List(t.Context(), &adminv1.ListRequest{Kind: "customers", PageSize: 5})
	if err != nil || first.NextPageToken == "" {
		t.Fatal(first, err)
	}
	for name, req := range map[string]*adminv1.ListRequest{
		"another filter": {Kind: "customers", PageToken: first.NextPageToken, Filter: "status=active"},
		"another kind":   {Kind: "plans", PageToken: first.NextPageToken},
		"noise":          {Kind: "customers", PageToken: "%%%"},
		"too short":      {Kind: "customers", PageToken: base64.RawURLEncoding.EncodeToString([]byte("12345678"))},
	} {
		if _, err := res.List(t.Context(), req); fault.ReasonOf(err) != "PAGE_TOKEN_INVALID" {
			t.Errorf("%s: %v, want PAGE_TOKEN_INVALID", name, err)
		}
	}
	us := resourcesAt(in.Zones["us"], apitest.Admin)
	if _, err := us.List(t.Context(), &adminv1.ListRequest{Kind: "customers", PageToken: first.NextPageToken}); fault.ReasonOf(err) != "PAGE_TOKEN_INVALID" {
		t.Errorf("at another zone: %v", err)
	}
	for text, reason := range map[string]string{"colour=red": "FILTER_FIELD_UNKNOWN", "name=": "FILTER_INVALID"} {
		if _, err := res.List(t.Context(), &adminv1.ListRequest{Kind: "customers", Filter: text}); fault.ReasonOf(err) != reason {
			t.Errorf("filter %s: %v, want %s", text, err, reason)
		}
	}
	if _, err := res.List(t.Context(), &adminv1.ListRequest{Kind: "customers", PageSize: adminapi.MaxPage + 1}); fault.ReasonOf(err) != "FIELD_INVALID" {
		t.Errorf("a page too large: %v", err)
	}
}

// A big thing makes a short page and never none.
func TestList_APageIsBounded(t *testing.T) {
	in := seeded(t, time.Second)
	for i := range 100 {
		name := fmt.Sprintf("big%02d", i)
		in.Catalog.Put(model.APIKey("emea", name), model.Encode(model.API{Name: name, Zone: "emea", Hosts: []string{name + ".test"}, OpenAPI: strings.Repeat("x", 65536)}))
	}
	n, token := 0, ""
	for {
		resp, err := resourcesAt(in.Zones["emea"], apitest.Admin).List(t.Context(), &adminv1.ListRequest{Kind: "apis", Filter: "name=big*", PageToken: token})
		if err != nil {
			t.Fatal(err)
		}
		if len(resp.Resources) == 0 || len(resp.Resources) > 64 {
			t.Fatalf("a page of %d, want 1 to 64", len(resp.Resources))
		}
		n += len(resp.Resources)
		if token = resp.NextPageToken; token == "" {
			break
		}
	}
	if n != 100 {
		t.Errorf("%d in all pages, want 100", n)
	}
}

func TestListNodes_PagesAndFilters(t *testing.T) {
	in := seeded(t, time.Second)
	for _, n := range []string{"e1", "e2", "e3"} {
		in.Catalog.Put(model.PrefixNode+n, model.Encode(model.Node{Name: n, Kind: "edge", Region: "eu-west", Zone: "emea"}))
	}
	nodes := adminv1connect.NewNodeServiceClient(apitest.Client(apitest.Admin), in.Zones["emea"].Server.URL, faults)
	a, err := nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{PageSize: 2, Filter: "status=disconnected kind=edge"})
	if err != nil || len(a.Nodes) != 2 || a.NextPageToken == "" {
		t.Fatal(a, err)
	}
	b, err := nodes.ListNodes(t.Context(), &adminv1.ListNodesRequest{PageSize: 2, PageToken: a.NextPageToken, Filter: "status=disconnected kind=edge"})
	if err != nil || len(b.Nodes) != 1 || b.Nodes[0].Name != "e3" || b.NextPageToken != "" {
		t.Fatal(b, err)
	}
}

// Every list has pages, and an order that does not move under them.
func TestPages_EveryListHasThem(t *testing.T) {
	services := adminv1.File_bailiwick_admin_v1_services_proto.Services()
	n := 0
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			if !strings.HasPrefix(string(m.Name()), "List") && m.Name() != "Regions" {
				continue
			}
			n++
			for d, fields := range map[protoreflect.MessageDescriptor][]string{m.Input(): {"page_size", "page_token", "filter"}, m.Output(): {"next_page_token"}} {
				for _, f := range fields {
					if d.Fields().ByName(protoreflect.Name(f)) == nil {
						t.Errorf("%s has no %s", d.FullName(), f)
					}
				}
			}
			if why := adminapi.PlaceFault(m.Output()); why != "" {
				t.Errorf("%s: %s", m.FullName(), why)
			}
		}
	}
	if n < 14 {
		t.Errorf("%d lists found; a rule over nothing proves nothing", n)
	}
}
