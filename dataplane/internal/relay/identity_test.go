package relay_test

import (
	"io"
	"net/http"
	"net/url"
	"testing"

	"bailiwick/dataplane/internal/relay"
)

// Who asks is a customer of the own zone: the headers that say so stay within it. The region that is asked here is not among
// those of the own zone that the table names, and local finds whatever of them comes that far.
func TestClient_KeepsWhoAsksInItsZone(t *testing.T) {
	b := newBorder(t)
	header := http.Header{"X-Mine": {"1"}}
	for _, name := range relay.Identity {
		header[name] = []string{"acme"}
	}
	for _, name := range relay.Trace { // nor does a trace cross
		header[name] = []string{"acme"}
	}
	resp, err := b.client.Do(t.Context(), relay.Forward{API: b.west.Load().API("orders.test"), To: "eu-central", RequestID: "id-1", Method: "GET",
		URL: &url.URL{Path: "/v1/x"}, Host: "orders.test", Header: header})
	if err != nil {
		t.Fatalf("got %v, want it served without a word of who asks", err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	if header.Get(relay.Identity[0]) != "acme" {
		t.Error("the caller's headers were written to")
	}
}
