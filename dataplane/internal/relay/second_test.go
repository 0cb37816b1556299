package relay_test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/fault"
	"bailiwick/shared/table"
)

// arrives gives the receiver a request of the west edge as it would come over a session, without one: no sweep cuts it.
func (b *border) arrives(t *testing.T, header http.Header) *httptest.ResponseRecorder {
	t.Helper()
	own, err := b.westEdge.ClientTLS([]string{"h2"}, nil).GetClientCertificate(&tls.CertificateRequestInfo{})
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(own.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	r := httptest.NewRequest("POST", "https://orders.test/v1/x", nil)
	r.Header = header
	r.TLS = &tls.ConnectionState{HandshakeComplete: true, PeerCertificates: []*x509.Certificate{leaf}, VerifiedChains: [][]*x509.Certificate{{leaf}}}
	here, there := net.Pipe()
	t.Cleanup(func() { here.Close(); there.Close() })
	w := httptest.NewRecorder()
	b.server.ServeHTTP(w, r.WithContext(relay.Over(r.Context(), here)))
	return w
}

// A session outlives the handshake in which its peer was known. Each request asks the registry again, whether or not a
// sweep has closed the session yet; the handler is called by itself here, so that none can.
func TestServer_AsksTheRegistryAtEveryRequest(t *testing.T) {
	b := newBorder(t)
	b.central.Swap(view(t, "eu-central", []string{"eu-west>eu-central"}, nil))
	for name, header := range map[string]http.Header{"a relay": shown(t, "eu-west", sign(t, emeaKey, b.grant())), "a sign of life": {relay.HeaderPing: {"1"}}} {
		w := b.arrives(t, header)
		if got := w.Header().Get(relay.HeaderRefused); got != relay.RuleNode || w.Code != http.StatusForbidden {
			t.Errorf("%s of an edge that left the registry: %d, refused by %q; want 403 by %s", name, w.Code, got, relay.RuleNode)
		}
	}
	if n := b.local.count() + int(b.arrivals.Late()); n != 0 {
		t.Errorf("%d of them got as far as the sentinel or an upstream", n)
	}
}

// Between the receiver's answer and the moment from which a sweep would find the relay, all that the answer rested on may
// end. So it is asked again: by then the sweep may have been and gone.
func TestServer_AsksAgainOnceASweepWouldFindIt(t *testing.T) {
	for _, c := range []struct {
		name string
		ends func(b *border)
	}{
		{"the pair", func(b *border) {
			b.central.Swap(view(b.t, "eu-central", []string{"eu-north>eu-central"}, []table.Node{westNode}))
		}},
		{"the edge's place in the registry", func(b *border) { b.central.Swap(view(b.t, "eu-central", []string{"eu-west>eu-central"}, nil)) }},
		{"the leave", func(b *border) { b.noLeave = true }},
	} {
		t.Run(c.name, func(t *testing.T) {
			b := newBorder(t)
			b.mu.Lock()
			b.taking = func() { c.ends(b) } // after the first answer was made of the table of before
			b.mu.Unlock()
			b.arrives(t, shown(t, "eu-west", sign(t, emeaKey, b.grant())))
			rules := func() map[[3]string]int {
				b.refused.mu.Lock()
				defer b.refused.mu.Unlock()
				out := map[[3]string]int{}
				for k, n := range b.refused.refusals {
					out[k] = n
				}
				return out
			}
			want := [3]string{relay.RulePair, "eu-west", "eu-central"}
			if got := rules(); got[want] != 1 || len(got) != 1 || b.local.count() != 0 || b.arrivals.Late() != 0 {
				t.Errorf("refused by %v, %d served, the sentinel was needed %d times; want one refusal by %s alone", got, b.local.count(), b.arrivals.Late(), relay.RulePair)
			}
		})
	}
}

// A session without a grant is closed: there is nothing left that a mistake could send something over.
func TestClient_ASessionEndsWithItsGrant(t *testing.T) {
	b := newBorder(t)
	resp, err := b.do(context.Background(), nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if n := b.client.Sessions(); n != 1 {
		t.Fatalf("%d sessions after a relay, want 1", n)
	}
	b.mu.Lock()
	b.deny = fault.New(fault.Denied, "WITHDRAWN", "withdrawn")
	b.mu.Unlock()
	b.west.Swap(view(t, "eu-west", []string{"eu-west>eu-central", "eu-west>eu-south"}, nil)) // asked anew at once
	eventually(t, 10*time.Second, "no session, with the pair in the table and no grant", func() bool { return len(b.grants.Held()) == 0 && b.client.Sessions() == 0 })
}
