package dataplane

import (
	"crypto/ed25519"
	"net/http"
	"testing"
	"time"

	"bailiwick/dataplane/internal/policy"
	"bailiwick/dataplane/internal/subscribe"
)

// A table that no control node is known to have confirmed is old, not new: max_key_staleness fails closed.
func TestEdge_TableAgeUnknownIsForEver(t *testing.T) {
	follow, err := subscribe.New(subscribe.Config{Addrs: func() []string { return nil }, HTTPClient: func(string) *http.Client { return nil },
		Dir: t.TempDir(), Edge: "e", Region: "r", Zone: "z", SigningKey: make(ed25519.PublicKey, ed25519.PublicKeySize), Holder: &policy.Holder{}})
	if err != nil {
		t.Fatal(err)
	}
	if age := (&Edge{follow: follow}).tableAge(time.Now()); age < 100*365*24*time.Hour {
		t.Errorf("age of a table nobody confirmed = %s, want for ever", age)
	}
}
