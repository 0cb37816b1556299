package proxy_test

import (
	"fmt"
	"strings"
	"testing"

	"bailiwick/shared/table"
)

// Many a server reads an underscore in a name as a dash. No field goes upstream under such a name that would say something of its
// own if it were read so, over each protocol; others are the client's and the upstream's.
func TestAliases_SayNothingUpstream(t *testing.T) {
	w := newWorld(t, nil)
	vias := w.vias()
	for _, name := range []string{"X_Request_Id", "X-Request_Id", "X_Api_Key", "X_Forwarded_For", "X_Real_Ip", "X_Http_Method", "Bailiwick_Customer", "Proxy_Authorization", "Transfer_Encoding", "Content_Length", "Content_Type",
		"Content_Encoding", "Content_Location", "Accept_Language", "Accept_Encoding", "If_None_Match", "If_Match", "If_Range", "Cache_Control", "Max_Forwards", "User_Agent", "Set_Cookie", "Grpc_Timeout", "Grpc_Encoding",
		"Connect_Timeout_Ms", "Connect_Protocol_Version", "X_Grpc_Web", "X_User_Agent", "Access_Control_Request_Method", "Access_Control_Request_Headers", "Sec_WebSocket_Key", "Sec_Fetch_Site", "Http2_Settings", "Keep_Alive"} {
		for _, v := range vias {
			if a := w.sendBy(t.Context(), v, "GET", "/v1/x", "", name, "forged"); a.status != 200 {
				t.Errorf("%s over %s: got %d %s", name, v.name, a.status, a.body)
			}
			got, _ := w.west.up.last()
			for n, values := range got {
				if strings.Contains(fmt.Sprint(values), "forged") {
					t.Errorf("%s over %s: the upstream got %s: %v", name, v.name, n, values)
				}
			}
		}
	}
	for _, v := range vias {
		for _, name := range []string{"X_mine", "Date_from", "From_date", "Range_id", "Origin_id", "Cookie_law"} {
			w.sendBy(t.Context(), v, "GET", "/v1/x", "", name, "kept")
			if got, _ := w.west.up.last(); got.Get(name) != "kept" {
				t.Errorf("%s over %s: the upstream got %v", name, v.name, got)
			}
		}
	}
}

// What a document says of a field is held against it as it is sent on: no other spelling goes beside the one that was looked at.
func TestAliases_OfWhatADocumentNames(t *testing.T) {
	w := newWorld(t, patient)
	w.shaped(func(a *table.API) {
		a.OpenAPI = `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/doc":{"get":{"parameters":[{"name":"X-Tenant","in":"header","required":true,"schema":{"enum":["a"]}},{"name":"old_name","in":"header","schema":{"enum":["a"]}}],"responses":{"200":{"description":"d"}}}}}}`
		a.Routes = []table.Route{{Name: "all"}, {Name: "doc", PathPrefix: "/doc", Validation: &table.Validation{OpenAPI: true}}}
	})
	if a := w.send("GET", "/doc", "", "X-Tenant", "a", "X_tenant", "b", "Old_name", "a", "X_mine", "kept"); a.status != 200 {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	got, _ := w.west.up.last()
	if got.Get("X-Tenant") != "a" || got.Get("X_tenant") != "" || got.Get("Old_name") != "a" || got.Get("X_mine") != "kept" {
		t.Errorf("the upstream got %v", got)
	}
	if a := w.send("GET", "/doc", "", "X_tenant", "a"); a.status != 400 {
		t.Errorf("under another spelling alone: got %d %s", a.status, a.body)
	}
	if a := w.send("GET", "/doc", "", "X-Tenant", "a", "Old_name", "b"); a.status != 400 {
		t.Errorf("a name with an underscore: got %d %s", a.status, a.body)
	}
}
