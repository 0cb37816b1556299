package adminapi_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/apikey"
	"bailiwick/shared/fault"
)

// Many keys are as many single ones: each with a text that is shown once, a digest that rests, and the same bounds; in one
// transaction, which the audit has once.
func TestCreateKeys_AreAllThereOrNone(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	req := &adminv1.CreateKeysRequest{Count: 1000, Key: &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold", RequestId: "r1", Scopes: []string{"orders:read"}, AllowFrom: []string{"192.0.2.0/24"}, Labels: []string{"batch=7"}}}
	z.Store.Lose.Store(1) // committed, and the answer lost inside: the retry must find its own keys
	resp, err := keysAt(z, apitest.Admin).CreateKeys(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	dump, seen := z.Store.Dump(), map[string]bool{}
	for _, k := range resp.Keys {
		zone, id, ok := apikey.Parse(k.Key)
		if !ok || zone != "emea" || id != k.Id || seen[id] {
			t.Fatalf("key parses to %s %s %v, want emea %s, once", zone, id, ok, k.Id)
		}
		seen[id] = true
		sum := apikey.Sum(apitest.Pepper, k.Key)
		if !strings.Contains(dump, fmt.Sprintf("%x", sum[:])) || strings.Contains(dump, k.Key[len("bw_emea_")+len(id)+1:]) {
			t.Fatalf("the digest of key %s does not rest, or its text does", id)
		}
	}
	if len(seen) != 1000 {
		t.Errorf("%d keys, want 1000", len(seen))
	}
	key := stored[model.Key](t, z.Store, model.PrefixKey+resp.Keys[999].Id)
	if key.Customer != "acme" || key.Plan != "gold" || len(key.Scopes) != 1 || len(key.AllowFrom) != 1 || len(key.Labels) != 1 || key.Status != "active" || key.CreatedAt.IsZero() {
		t.Errorf("the last is %+v", key)
	}
	if a := stored[model.Audit](t, z.Store, model.KeyAudit); a.Call != "keys" || a.Operator == "" {
		t.Errorf("audit: %+v", a)
	}
	_, err = keysAt(z, apitest.Admin).CreateKeys(t.Context(), req)
	f, _ := fault.As(err)
	if f == nil || f.Kind != fault.Conflict || f.Reason != "KEY_ALREADY_CREATED" || len(strings.Fields(f.Meta["id"])) != 1000 || !seen[strings.Fields(f.Meta["id"])[0]] {
		t.Errorf("the same request again: got %.200v, want KEY_ALREADY_CREATED naming them", err)
	}
}

func TestCreateKeys_Refuses(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	long := make([]string, 16)
	for i := range long {
		long[i] = fmt.Sprintf("label-%d=%s", i, strings.Repeat("x", 60))
	}
	for _, c := range []struct {
		key    *adminv1.CreateKeyRequest
		count  int32
		reason string
	}{
		{nil, 1, "FIELD_INVALID"},
		{&adminv1.CreateKeyRequest{}, 1, "FIELD_INVALID"},
		{&adminv1.CreateKeyRequest{Customer: "acme"}, 0, "FIELD_INVALID"},
		{&adminv1.CreateKeyRequest{Customer: "acme"}, 1001, "FIELD_INVALID"},
		{&adminv1.CreateKeyRequest{Customer: "nobody"}, 2, "CUSTOMER_NOT_FOUND"},
		{&adminv1.CreateKeyRequest{Customer: "umbrella", Zone: "us"}, 2, "WRONG_ZONE"},
		{&adminv1.CreateKeyRequest{Customer: "acme", Plan: "free"}, 2, "SUBSCRIPTION_UNKNOWN"},
		{&adminv1.CreateKeyRequest{Customer: "acme", TokenIssuer: "https://idp.test", TokenSubject: "x"}, 2, "CREDENTIAL_INVALID"},
		{&adminv1.CreateKeyRequest{Customer: "acme", Labels: long}, 1000, "TOO_LARGE"},
	} {
		before := z.Store.Dump()
		_, err := keysAt(z, apitest.Admin).CreateKeys(t.Context(), &adminv1.CreateKeysRequest{Key: c.key, Count: c.count})
		if fault.ReasonOf(err) != c.reason {
			t.Errorf("%d of %v: got %.200v, want %s", c.count, c.key, err, c.reason)
		}
		if z.Store.Dump() != before {
			t.Errorf("%d of %v: the state changed", c.count, c.key)
		}
	}
	if _, err := keysAt(z, apitest.Viewer).CreateKeys(t.Context(), &adminv1.CreateKeysRequest{Key: &adminv1.CreateKeyRequest{Customer: "acme"}, Count: 1}); fault.ReasonOf(err) != "ROLE_INSUFFICIENT" {
		t.Errorf("a viewer: got %v, want ROLE_INSUFFICIENT", err)
	}
}
