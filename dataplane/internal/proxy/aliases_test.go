package proxy_test

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"bailiwick/shared/table"
)

// Many a server reads an underscore in a name as a dash, and whatever else is neither letter nor digit too. No field goes upstream under such a name that would say something of its
// own if it were read so, over each protocol; others are the client's and the upstream's.
func TestAliases_SayNothingUpstream(t *testing.T) {
	w := newWorld(t, nil)
	vias := w.vias()
	for _, name := range []string{"X_Request_Id", "X-Request_Id", "X_Api_Key", "X_Forwarded_For", "X_Real_Ip", "X_Http_Method", "Bailiwick_Customer", "Proxy_Authorization", "Transfer_Encoding", "Content_Length", "Content_Type",
		"Content_Encoding", "Content_Location", "Accept_Language", "Accept_Encoding", "If_None_Match", "If_Match", "If_Range", "Cache_Control", "Max_Forwards", "User_Agent", "Set_Cookie", "Grpc_Timeout", "Grpc_Encoding",
		"Connect_Timeout_Ms", "Connect_Protocol_Version", "X_Grpc_Web", "X_User_Agent", "Access_Control_Request_Method", "Access_Control_Request_Headers", "Sec_WebSocket_Key", "Sec_Fetch_Site", "Http2_Settings", "Keep_Alive",
		"Bailiwick.Customer", "Bailiwick~Customer", "X.Api.Key", "X-Forwarded.For", "Content.Length", "Transfer.Encoding", "X!Request#Id", "X$Api%Key", "X&Api'Key", "X*Real+Ip", "If^None`Match", "Content|Type", "X_Forwarded.Ssl", "True~Client.Ip"} {
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
		for _, name := range []string{"X_mine", "Date_from", "From_date", "Range_id", "Origin_id", "Cookie_law", "X.mine", "X~other", "Cookie.law"} {
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
	if a := w.send("GET", "/doc", "", "X-Tenant", "a", "X_tenant", "b", "X.tenant", "b", "Old.name", "b", "Old_name", "a", "X_mine", "kept"); a.status != 200 {
		t.Fatalf("got %d %s", a.status, a.body)
	}
	got, _ := w.west.up.last()
	if got.Get("X-Tenant") != "a" || got.Get("X_tenant") != "" || got.Get("X.tenant") != "" || got.Get("Old.name") != "" || got.Get("Old_name") != "a" || got.Get("X_mine") != "kept" {
		t.Errorf("the upstream got %v", got)
	}
	if a := w.send("GET", "/doc", "", "X_tenant", "a"); a.status != 400 {
		t.Errorf("under another spelling alone: got %d %s", a.status, a.body)
	}
	if a := w.send("GET", "/doc", "", "X-Tenant", "a", "Old_name", "b"); a.status != 400 {
		t.Errorf("a name with an underscore: got %d %s", a.status, a.body)
	}
}

// What a route sets or removes, and where an API's callers put their keys, has one spelling upstream, over each protocol.
func TestAliases_OfWhatTheAPISays(t *testing.T) {
	w := newWorld(t, patient)
	w.shaped(func(a *table.API) {
		a.Auth = &table.Auth{KeyHeader: "X-Partner-Key"}
		a.Routes = []table.Route{{Name: "all", Rewrite: &table.Rewrite{Request: table.Fields{Remove: []string{"X-Gone"}, Set: []table.Field{{Name: "X-Env", Value: "prod"}, {Name: "X-Original-Host", Value: "ours"}}}}}}
	})
	for _, v := range w.vias() {
		for _, name := range []string{"X_env", "X.env", "X~Env", "X.gone", "X-Gone", "X'Gone", "X.Partner.Key", "X-Partner|Key", "X-Original-Host", "X.Original.Host"} {
			if a := w.sendBy(t.Context(), v, "GET", "/v1/x", "", name, "forged"); a.status != 200 {
				t.Errorf("%s over %s: got %d %s", name, v.name, a.status, a.body)
			}
			got, _ := w.west.up.last()
			if strings.Contains(fmt.Sprint(got), "forged") || fmt.Sprint(got["X-Env"], got["X-Original-Host"]) != "[prod] [ours]" {
				t.Errorf("%s over %s: the upstream got %v", name, v.name, got)
			}
		}
	}
}

// What only who stands in front of an upstream can know, no client says to it: over each protocol, on the road of common requests
// and on that of exchanges.
func TestClaims_ReachNoUpstream(t *testing.T) {
	w := newWorld(t, nil)
	vias := w.vias()
	own := map[string]bool{"X-Forwarded-For": true, "X-Forwarded-Proto": true, "X-Forwarded-Host": true}
	for _, name := range claimed {
		for _, v := range vias {
			for _, path := range []string{"/v1/x", "/short/x"} { // the second is an exchange
				if a := w.sendBy(t.Context(), v, "GET", path, "", name, "forged"); a.status != 200 {
					t.Errorf("%s over %s: got %d %s", name, v.name, a.status, a.body)
				}
				got, _ := w.west.up.last()
				if strings.Contains(fmt.Sprint(got), "forged") {
					t.Errorf("%s over %s at %s: the upstream got %v", name, v.name, path, got)
				}
				for said := range got {
					if strings.HasPrefix(said, "X-Forwarded") && !own[said] {
						t.Errorf("%s over %s at %s: the upstream got %s", name, v.name, path, said)
					}
				}
				if got.Get("X-Forwarded-For") != "127.0.0.1" || got.Get("X-Forwarded-Proto") != "https" || got.Get("X-Forwarded-Host") != "orders.test" {
					t.Errorf("%s over %s at %s: the edge's own word is %v", name, v.name, path, got)
				}
			}
		}
	}
	for _, v := range vias {
		for _, name := range []string{"X-Forward", "X-Originals", "Ssl-Clients", "X-Ssl", "Proxied", "X-Hosts", "Remote-Users", "Client-Name"} {
			w.sendBy(t.Context(), v, "GET", "/v1/x", "", name, "kept")
			if got, _ := w.west.up.last(); got.Get(name) != "kept" {
				t.Errorf("%s over %s: the upstream got %v", name, v.name, got)
			}
		}
	}
}

// claimed are names that claim something.
var claimed = []string{"X-Forwarded-Ssl", "X-Forwarded-Scheme", "X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-Path", "X-Forwarded-By", "X-Forwarded-User", "X-Forwarded-Protocol", "X-Forwarded-Client-Cert", "X-Forwarded-Prefix",
	"X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded", "Forwarded", "X-Original-Uri", "X-Original-Host", "X-Original-Url", "X-Original-Method", "X-Host", "X-Http-Host-Override",
	"True-Client-Ip", "X-Client-Ip", "Client-Ip", "X-Real-Ip", "Cf-Connecting-Ip", "Fastly-Client-Ip", "X-Cluster-Client-Ip", "Ssl-Client-Cert", "Ssl-Client-Verify", "X-Ssl-Client-Cert", "X-Ssl-Client-S-Dn", "X-Client-Cert", "Client-Cert",
	"Client-Cert-Chain", "X-Url-Scheme", "Front-End-Https", "X-Remote-User", "Remote-User", "Proxy", "X-Rewrite-Url", "X-Http-Method-Override"}

// Where customers share what is kept, what one claims is in no answer that another gets.
func TestClaims_ChooseNothingThatIsKept(t *testing.T) {
	w := caching(t, table.Cache{Scope: "all"}, false, func(rw http.ResponseWriter, r *http.Request) {
		rw.Header().Set("Cache-Control", "max-age=3600")
		fmt.Fprint(rw, r.Header)
	})
	stranger := w.stranger()
	w.west.tables.Swap(w.view(w.west, false))
	vias := w.vias()
	for i, name := range claimed {
		for _, v := range vias {
			path := fmt.Sprint("/v1/x", i, v.name[5:])
			if a := w.sendBy(t.Context(), v, "GET", path, "", "X-Api-Key", stranger, name, "forged"); a.status != 200 {
				t.Errorf("%s over %s: got %d %s", name, v.name, a.status, a.body)
			}
			if a := w.sendBy(t.Context(), v, "GET", path, ""); a.status != 200 || strings.Contains(a.body, "forged") || !strings.HasPrefix(a.header.Get("Cache-Status"), "bailiwick; hit") {
				t.Errorf("who asks after %s over %s gets %d %s %v", name, v.name, a.status, a.body, a.header)
			}
		}
	}
}

// What Connection names belongs to the connection: it is not sent on, and so nobody reads it here either.
func TestConnection_WhatItNamesIsReadByNobody(t *testing.T) {
	w := newWorld(t, patient)
	w.shaped(func(a *table.API) {
		a.OpenAPI = `{"openapi":"3.1.0","info":{"title":"t","version":"1"},"paths":{"/doc":{"get":{"parameters":[{"name":"X-Tenant","in":"header","required":true,"schema":{"enum":["a"]}}],"responses":{"200":{"description":"d"}}}}}}`
		a.CORS = &table.CORS{Origins: []string{"https://app.test"}}
		a.Auth = &table.Auth{KeyHeader: "X-Partner-Key"}
		a.Routes = []table.Route{{Name: "all"}, {Name: "doc", PathPrefix: "/doc", Validation: &table.Validation{OpenAPI: true}},
			{Name: "body", PathPrefix: "/body", Validation: &table.Validation{Schema: `{"type":"object"}`}},
			{Name: "graphql", PathPrefix: "/graphql", GraphQL: &table.GraphQL{Depth: 9, Aliases: 9, RootFields: 9, Cost: 9}}}
	})
	key := [2]string{"X-Api-Key", w.key}
	for _, c := range []struct {
		what, method, path, body string
		fields                   [][2]string
		listed                   string
		status                   int
	}{
		{"a field of a document", "GET", "/doc", "", [][2]string{key, {"X-Tenant", "a"}}, "X-Tenant", 400},
		{"the type of a body", "POST", "/body", "{}", [][2]string{key, {"Content-Type", "application/json"}}, "content-type", 400},
		{"the coding of a body", "POST", "/body", "{}", [][2]string{key, {"Content-Type", "application/json"}, {"Content-Encoding", "gzip"}}, "content-encoding", 200},
		{"the type of a GraphQL request", "POST", "/graphql", `{"query":"{ a }"}`, [][2]string{key, {"Content-Type", "application/json"}}, "Content-Type", 400},
		{"a key", "GET", "/v1/x", "", [][2]string{key}, "close, x-api-key", 401},
		{"a bearer's key", "GET", "/v1/x", "", [][2]string{{"Authorization", "Bearer " + w.key}}, "authorization", 401},
		{"a key in the API's own field", "GET", "/v1/x", "", [][2]string{{"X-Partner-Key", w.key}}, "X-Partner-Key", 401},
		{"a key beside another", "GET", "/v1/x", "", [][2]string{key, {"X-Partner-Key", "other"}}, "X-Partner-Key", 200},
		{"a field of nobody", "GET", "/v1/x", "", [][2]string{key, {"X-Mine", "a"}}, "X-Mine", 200},
	} {
		for _, named := range []bool{false, true} {
			text := c.method + " " + c.path + " HTTP/1.1\r\nHost: orders.test\r\n"
			for _, f := range c.fields {
				text += f[0] + ": " + f[1] + "\r\n"
			}
			if named {
				text += "Connection: " + c.listed + "\r\n"
			}
			if c.body != "" {
				text += fmt.Sprintf("Content-Length: %d\r\n", len(c.body))
			}
			conn, in := w.dial()
			io.WriteString(conn, text+"\r\n"+c.body)
			resp, body := read(t, in, c.method)
			want := c.status
			if !named {
				if want = 200; c.what == "the coding of a body" {
					want = 400
				} else if c.what == "a key beside another" {
					want = 401
				}
			}
			if resp.StatusCode != want {
				t.Errorf("%s, named %v: got %d %s, want %d", c.what, named, resp.StatusCode, body, want)
			}
			if got, _ := w.west.up.last(); named && resp.StatusCode == 200 && got.Get(c.fields[len(c.fields)-1][0]) != "" {
				t.Errorf("%s: the upstream got %v", c.what, got)
			}
			conn.Close()
		}
	}
	// A page's origin likewise.
	conn, in := w.dial()
	io.WriteString(conn, w.head("GET", "/v1/x", "Origin: https://app.test\r\nConnection: origin\r\n", "\r\n"))
	if resp, _ := read(t, in, http.MethodGet); resp.StatusCode != 200 || resp.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("an origin: got %d %v", resp.StatusCode, resp.Header)
	}
}
