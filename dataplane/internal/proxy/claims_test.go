package proxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"

	"bailiwick/shared/table"
)

// What only a proxy before somebody may say of a client goes upstream as the edge says it, or not at all, over each protocol; nor does it
// under a name that a server would read as such a one.
func TestClaims_AreNobodysButTheEdges(t *testing.T) {
	w := newWorld(t, nil)
	vias := w.vias()
	names := []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Ssl", "X-Forwarded-Scheme", "X-Forwarded-Protocol", "X-Forwarded-Method", "X-Forwarded-Uri", "X-Forwarded-Path", "X-Forwarded-By",
		"X-Forwarded-User", "X-Forwarded-Client-Cert", "X-Forwarded-Whatever", "X-Original-Url", "X-Original-Uri", "X-Original-Host", "X-Original-Method", "X-Host", "X-Http-Host-Override", "X-Real-Ip", "X-Client-Ip", "Client-Ip",
		"True-Client-Ip", "Cf-Connecting-Ip", "Fastly-Client-Ip", "X-Cluster-Client-Ip", "Ssl-Client-Cert", "Ssl-Client-Verify", "X-Ssl-Client-Cert", "X-Client-Cert", "X-Scheme", "X-Url-Scheme", "Front-End-Https",
		"X-Forwarded", "Client-Cert", "Client-Cert-Chain", "X-Remote-User", "X-Remote-Addr", "Remote-User", "Remote-Addr", "Proxy", "Bailiwick-Customer", "Content-Length"}
	for _, v := range vias {
		for _, name := range names {
			for _, as := range []string{name, strings.ToLower(name), strings.ReplaceAll(name, "-", "_"), strings.ReplaceAll(name, "-", "."), strings.ReplaceAll(name, "-", "~"), strings.Replace(name, "-", "!", 1)} {
				if strings.EqualFold(as, "Content-Length") { // frames the request
					continue
				}
				if a := w.sendBy(t.Context(), v, "GET", "/v1/x", "", as, "forged"); a.status != 200 {
					t.Errorf("%s over %s: got %d %s", as, v.name, a.status, a.body)
				}
				got, _ := w.west.up.last()
				for n, values := range got {
					if strings.Contains(fmt.Sprint(values), "forged") {
						t.Errorf("%s over %s: the upstream got %s: %v", as, v.name, n, values)
					}
				}
			}
		}
		for _, name := range []string{"X-Forwards", "X-Original", "X-Ssl", "X-Hosts", "Proxy-Mine", "X.Mine", "X~Mine", "Ssl-Cipher", "Remote-Thing"} {
			w.sendBy(t.Context(), v, "GET", "/v1/x", "", name, "kept")
			if got, _ := w.west.up.last(); !strings.Contains(fmt.Sprint(got), "kept") {
				t.Errorf("%s over %s: the upstream got %v", name, v.name, got)
			}
		}
	}
}

// What an operator sets says so under each spelling, and a key's own header is read under its own alone.
func TestClaims_WhatARouteSetsIsSaidOnce(t *testing.T) {
	w := newWorld(t, nil)
	w.shaped(func(a *table.API) {
		a.Rewrite = &table.Rewrite{Request: table.Fields{Set: []table.Field{{Name: "X-Forwarded-Ssl", Value: "on"}, {Name: "X-Tenant", Value: "a"}}, Remove: []string{"X-Secret"}}}
	})
	for _, v := range w.vias() {
		for _, by := range []string{"_", ".", "~", "-"} {
			w.sendBy(t.Context(), v, "GET", "/v1/x", "", "X"+by+"Tenant", "forged", "X"+by+"Secret", "forged", "X-Forwarded"+by+"Ssl", "forged")
			got, _ := w.west.up.last()
			if strings.Contains(fmt.Sprint(got), "forged") || got.Get("X-Tenant") != "a" || got.Get("X-Forwarded-Ssl") != "on" {
				t.Errorf("with %q over %s: the upstream got %v", by, v.name, got)
			}
		}
	}
}

// A path that is another route's to whoever decodes it before he looks for a query is refused, over each protocol.
func TestPaths_EncodedEndsAreNoWayRoundARoute(t *testing.T) {
	w := newWorld(t, patient)
	vias := w.vias()
	for path, want := range map[string]int{
		"/scoped": 403, "/scoped/x": 403, "/scoped%3fx": 400, "/scoped%3Fx": 400, "/scoped%23x": 400, "/scoped/a%3fb": 403, "/scoped/%23": 403, "/scoped%23%3f": 400, "/scoped;a%3f": 400, "/scoped%253fx": 400,
		"/v1/what%3f": 200, "/v1/a%23b": 200, "/v1/%3f": 200, "/%3fx": 200, "/gratis%3fx": 400, "/v1/scoped%3fx": 200, "/v1/..%3fx": 400, "/v1/.%23": 400, "/v1/..%3f/scoped": 400, "/v1/...%3f": 200, "/v1/.a%3f": 200, "/scoped%3f;x": 400, "/v1/%3f;a/scoped": 200,
	} {
		for _, v := range vias {
			asked := w.west.up.count.Load()
			a := w.sendBy(t.Context(), v, "GET", path, "")
			if a.status != want || want == 400 && !strings.Contains(a.body, "path-ambiguous") || (w.west.up.count.Load() > asked) != (want == 200) {
				t.Errorf("%s over %s: got %d %.80s, want %d", path, v.name, a.status, a.body, want)
			}
		}
	}
}

// Who goes by the target and who goes by Host mean the same, in HTTP/1.0 too, and a port is one.
func TestHosts_AreSaidOnce(t *testing.T) {
	w := newWorld(t, patient)
	clear := newFront(t, w.west.proxy)
	t.Cleanup(clear.Close)
	at := strings.TrimPrefix(clear.URL, "http://")
	for _, c := range []struct {
		line, host string
		want       int
	}{
		{"GET http://orders.test/v1/x HTTP/1.0", "orders.test", 200}, {"GET http://orders.test/v1/x HTTP/1.0", "", 200}, {"GET http://ORDERS.test/v1/x HTTP/1.0", "orders.test", 200},
		{"GET http://orders.test/v1/x HTTP/1.0", "reports.test", 400}, {"GET http://reports.test/v1/x HTTP/1.0", "orders.test", 400}, {"GET http://orders.test/v1/x HTTP/1.1", "reports.test", 400},
		{"GET /v1/x HTTP/1.1", "orders.test:80", 200}, {"GET /v1/x HTTP/1.1", "orders.test:65535", 200}, {"GET /v1/x HTTP/1.1", "orders.test:", 200},
		{"GET /v1/x HTTP/1.1", "orders.test:65536", 400}, {"GET /v1/x HTTP/1.1", "orders.test:0", 400}, {"GET /v1/x HTTP/1.1", "orders.test:00", 400}, {"GET /v1/x HTTP/1.1", "orders.test:00080", 200}, {"GET /v1/x HTTP/1.1", "orders.test:99999999999", 400}, {"GET /v1/x HTTP/1.1", "orders.test:000080", 200}, {"GET /v1/x HTTP/1.1", "[orders.test]:80", 400}, {"GET /v1/x HTTP/1.1", "[orders.test]", 400}, {"GET /v1/x HTTP/1.1", "orders.test:0x50", 400},
	} {
		conn, err := net.Dial("tcp", at)
		if err != nil {
			t.Fatal(err)
		}
		head := c.line + "\r\nX-Api-Key: " + w.key + "\r\nConnection: close\r\n"
		if c.host != "" {
			head += "Host: " + c.host + "\r\n"
		}
		io.WriteString(conn, head+"\r\n")
		if resp, body := read(t, bufio.NewReader(conn), "GET"); resp.StatusCode != c.want || !resp.Close {
			t.Errorf("%s with Host %q: got %d %.80s, closed %v, want %d", c.line, c.host, resp.StatusCode, body, resp.Close, c.want)
		}
		conn.Close()
	}
}
