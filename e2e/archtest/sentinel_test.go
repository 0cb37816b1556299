package archtest_test

import (
	"strings"
	"testing"
)

// The second opinion on the border is worth what it does not share with the first.
func TestSentinel_SharesNoCodeWithTheFirstCheck(t *testing.T) {
	found := false
	for _, p := range list(t, "./dataplane/internal/sentinel/...") {
		found = true
		for _, imp := range p.Imports {
			if under(imp, "regions", "proto/gen", "shared/identity", "dataplane/internal/failover", "dataplane/internal/relay", "dataplane/internal/proxy") {
				t.Errorf("%s imports %s: it reads grants, names and pairs by itself", p.ImportPath, imp)
			}
		}
	}
	if !found {
		t.Error("there is no sentinel: the rule checks nothing")
	}
}

// Every place where an edge makes a connection, and what stands there beside the first check. A new one is a new way
// out of the region: it needs its line here, and the sentinel's word if requests, usage or keys go over it.
var dials = map[string]string{
	"dataplane/internal/proxy/upstream.go":    "requests to upstreams, over what upstream.Dialer connects",
	"dataplane/internal/channel/channel.go":   "requests to upstreams over HTTP/2, over what upstream.Dialer connects",
	"dataplane/internal/proxy/connect.go":     "connections that last to upstreams, likewise",
	"dataplane/internal/upstream/upstream.go": "upstreams: sentinel.Upstream before each dial, by the name that the table has; the keys of tokens' issuers, by a GET that says nothing of anybody",
	"dataplane/internal/proxy/door3.go":       "listens for QUIC and dials nobody",
	"dataplane/internal/relay/session.go":     "other regions' edges: sentinel.Dialled in the handshake, sentinel.Leaves for each request",
	"dataplane/internal/ship/link.go":         "usage over QUIC: sentinel.Control in the handshake",
	"dataplane/tls.go":                        "usage where UDP is blocked: sentinel.Control in the handshake",
	"dataplane/internal/enroll/client.go":     "control nodes by name: certificates, tables, grants and quotas of the own zone, no requests",
	"dataplane/internal/enroll/enroll.go":     "the first control node: nothing but a join token leaves",
	"dataplane/internal/trace/export.go":      "the zone's collector, which the operator names: names of the catalog, times and numbers",
	"dataplane/internal/observe/observe.go":   "health of the own zone's edges: no requests",
}

func TestSentinel_StandsAtEveryDial(t *testing.T) {
	ways := map[string][]string{
		"net":                              {"Dial", "DialTimeout", "DialTCP", "DialUDP", "Dialer"},
		"crypto/tls":                       {"Dial", "DialWithDialer", "Dialer", "Client"},
		"net/http":                         {"Transport", "DefaultClient", "DefaultTransport", "Get", "Post", "Head"},
		"github.com/quic-go/quic-go":       {"Dial", "DialAddr", "DialEarly", "DialAddrEarly", "Transport"},
		"github.com/quic-go/quic-go/http3": {"Transport"},
	}
	used := map[string]bool{}
	for _, p := range list(t, "./dataplane/...") {
		for _, use := range selectors(t, p, ways) {
			_, file, _ := strings.Cut(use, "/dataplane/")
			file = "dataplane/" + file[:strings.IndexByte(file, ':')]
			used[file] = true
			if dials[file] == "" {
				t.Errorf("%s: a connection that the list does not have", use)
			}
		}
	}
	for file := range dials {
		if !used[file] {
			t.Errorf("%s is on the list and makes no connection", file)
		}
	}
}
