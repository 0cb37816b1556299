package relay_test

import (
	"io"
	"net/http"
	"testing"

	"google.golang.org/protobuf/proto"

	"bailiwick/dataplane/internal/relay"
	"bailiwick/regions/grant"
)

// Two machines of one name: what was granted to the one is of no use to the other.
func TestServer_AGrantIsOneProcessesOwn(t *testing.T) {
	b := newBorder(t)
	shown := func(granted, says string) string {
		g := b.grant()
		g.Incarnation = granted
		data, err := proto.Marshal(sign(t, emeaKey, g))
		if err != nil {
			t.Fatal(err)
		}
		resp, err := b.raw(t, b.westEdge, http.Header{relay.HeaderAPI: {"orders"}, relay.HeaderHome: {"eu-west"}, relay.HeaderGrant: {b64(data)}, relay.HeaderIncarnation: {says}})
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		io.Copy(io.Discard, resp.Body)
		return resp.Header.Get(relay.HeaderRefused)
	}
	for _, c := range []struct{ name, granted, says, want string }{
		{"its own", "0a", "0a", ""},
		{"the twin's", "0a", "0b", grant.Twin},
		{"of a process, shown by a program from before", "0a", "", grant.Twin},
		{"of a program from before", "", "0a", grant.Twin},
	} {
		if got := shown(c.granted, c.says); got != c.want {
			t.Errorf("a grant, %s: refused by %q, want %q", c.name, got, c.want)
		}
	}
}

// A receiver that no leader of its zone has answered takes nothing: it may be the copy of a disk, with a table in
// which a pair is open that was closed long ago.
func TestServer_TakesNothingWithoutLeave(t *testing.T) {
	b := newBorder(t)
	if got := b.refusedBy(t, b.westEdge, "eu-west", sign(t, emeaKey, b.grant())); got != "" {
		t.Fatalf("with leave: refused by %q", got)
	}
	b.mu.Lock()
	b.noLeave = true
	b.mu.Unlock()
	if got := b.refusedBy(t, b.westEdge, "eu-west", sign(t, emeaKey, b.grant())); got != grant.NoLeave {
		t.Errorf("without leave: refused by %q, want %q", got, grant.NoLeave)
	}
	// The sender shows what it is, and hears why it was refused.
	_, err := b.do(t.Context(), nil)
	if rule(err) != grant.NoLeave {
		t.Errorf("the sender heard %v, want the rule %s", err, grant.NoLeave)
	}
}
