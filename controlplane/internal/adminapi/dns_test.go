package adminapi_test

import (
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

// Operators are told by the function that edges answer by, in the zone of the host and nowhere else.
func TestDNS_Explain(t *testing.T) {
	in := apitest.New(t, 2*time.Second)
	put := func(key string, v any) { in.Catalog.Put(key, model.Encode(v)) }
	put(model.PrefixAPI+"emea.orders", model.API{Name: "orders", Zone: "emea", Hosts: []string{"Orders.emea.test"},
		Upstreams: []model.Upstream{{Region: "eu-west", URL: "http://w"}, {Region: "eu-central", URL: "http://c"}, {Region: "us-east", URL: "http://u"}}})
	put(model.PrefixRegion+"eu-central", model.Region{Name: "eu-central", Zone: "emea", ClientSubnets: []string{"10.2.0.0/16"}})
	door := func(addr string, port int) *model.Doors {
		return &model.Doors{Addresses: []string{addr}, HTTPSPort: port, DNS: true}
	}
	put(model.PrefixNode+"eu-west-edge-1", model.Node{Name: "eu-west-edge-1", Kind: "edge", Region: "eu-west", Zone: "emea", Doors: door("192.0.2.1", 443)})
	put(model.PrefixNode+"eu-central-edge-1", model.Node{Name: "eu-central-edge-1", Kind: "edge", Region: "eu-central", Zone: "emea", Doors: door("192.0.2.2", 8443)})
	put(model.PrefixNode+"us-east-edge-1", model.Node{Name: "us-east-edge-1", Kind: "edge", Region: "us-east", Zone: "us", Doors: door("192.0.2.3", 443)})
	at := func(zone, token string) adminv1connect.DNSServiceClient {
		return adminv1connect.NewDNSServiceClient(apitest.Client(token), in.Zones[zone].Server.URL, faults)
	}
	short := func(r *adminv1.ExplainDNSResponse) string {
		var b strings.Builder
		b.WriteString(r.GetClientRegion() + ":")
		for _, e := range r.GetEdges() {
			b.WriteString(" " + e.Edge + " " + e.Status + " [" + strings.Join(e.Records, " | ") + "]")
		}
		return b.String()
	}
	for _, c := range []struct {
		req  *adminv1.ExplainDNSRequest
		want string
	}{
		{&adminv1.ExplainDNSRequest{Host: "orders.EMEA.test.", From: "10.2.3.0/24"}, "eu-central: eu-central-edge-1 unknown [192.0.2.2] eu-west-edge-1 connected [192.0.2.2]"},
		{&adminv1.ExplainDNSRequest{Host: "orders.emea.test", From: "10.2.3.4", Type: "HTTPS"},
			`eu-central: eu-central-edge-1 unknown [1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.2 | 2 . alpn="h2,h3" ipv4hint=192.0.2.1] eu-west-edge-1 connected [1 . alpn="h2,h3" port=8443 ipv4hint=192.0.2.2 | 2 . alpn="h2,h3" ipv4hint=192.0.2.1]`},
		{&adminv1.ExplainDNSRequest{Host: "orders.emea.test", Type: "AAAA"}, ": eu-central-edge-1 unknown [] eu-west-edge-1 connected []"},
	} {
		resp, err := at("emea", apitest.Viewer).Explain(t.Context(), c.req)
		if err != nil {
			t.Fatal(err)
		}
		if got := short(resp); got != c.want {
			t.Errorf("%v: %s\nwant %s", c.req, got, c.want)
		}
		for _, e := range resp.GetEdges() {
			foreign := ""
			for _, r := range e.GetRegions() {
				if r.GetRegion() == "us-east" && !r.GetAnswered() {
					foreign = r.GetWhy()
				}
			}
			if foreign != "of zone us: never answered for a host of zone emea" {
				t.Errorf("%s: us-east is left out because %q", e.Edge, foreign)
			}
		}
	}
	for want, ask := range map[string]func() error{
		"WRONG_ZONE": func() error {
			_, err := at("us", apitest.Admin).Explain(t.Context(), &adminv1.ExplainDNSRequest{Host: "orders.emea.test"})
			return err
		},
		"HOST_NOT_FOUND": func() error {
			_, err := at("emea", apitest.Admin).Explain(t.Context(), &adminv1.ExplainDNSRequest{Host: "x.test"})
			return err
		},
		"SUBNET_INVALID": func() error {
			_, err := at("emea", apitest.Admin).Explain(t.Context(), &adminv1.ExplainDNSRequest{Host: "orders.emea.test", From: "here"})
			return err
		},
		"TOKEN_UNKNOWN": func() error {
			_, err := at("emea", "stranger").Explain(t.Context(), &adminv1.ExplainDNSRequest{Host: "orders.emea.test"})
			return err
		},
	} {
		if got := fault.ReasonOf(ask()); got != want {
			t.Errorf("refused with %q, want %s", got, want)
		}
	}
}
