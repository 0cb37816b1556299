package adminapi_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/apikey"
	"bailiwick/shared/fault"
)

func TestCreateKey_ShowsTheTextOnceAndKeepsTheDigest(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	req := &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold", RequestId: "r1"}
	z.Store.Lose.Store(1) // committed, and the answer lost inside: the retry must find its own key
	resp, err := keysAt(z, apitest.Admin).CreateKey(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	zone, id, ok := apikey.Parse(resp.Key)
	if !ok || zone != "emea" || id != resp.Id {
		t.Errorf("key parses to %s %s %v, want emea %s", zone, id, ok, resp.Id)
	}
	secret := resp.Key[len("bw_emea_")+len(id)+1:]
	if dump := z.Store.Dump(); strings.Contains(dump, secret) || !strings.Contains(dump, id) {
		t.Error("the store holds the secret, or not the id")
	}
	sum := apikey.Sum(apitest.Pepper, resp.Key)
	if !strings.Contains(z.Store.Dump(), fmt.Sprintf("%x", sum[:])) {
		t.Error("the digest at rest is not that of the key under the zone's pepper")
	}
	_, err = keysAt(z, apitest.Admin).CreateKey(t.Context(), req)
	f, _ := fault.As(err)
	if f == nil || f.Kind != fault.Conflict || f.Reason != "KEY_ALREADY_CREATED" || f.Meta["id"] != id {
		t.Errorf("the same request again: got %+v, want KEY_ALREADY_CREATED naming %s", f, id)
	}
	list, err := keysAt(z, apitest.Viewer).ListKeys(t.Context(), &adminv1.ListKeysRequest{Customer: "acme"})
	if err != nil || len(list.Keys) != 1 || list.Keys[0].Status != "active" || list.Keys[0].Plan != "gold" {
		t.Fatalf("list: got %v, %v; want the one key", list, err)
	}
	for range 2 { // revocation may be repeated
		if _, err := keysAt(z, apitest.Admin).RevokeKey(t.Context(), &adminv1.RevokeKeyRequest{Id: id}); err != nil {
			t.Fatal(err)
		}
	}
	if list, _ = keysAt(z, apitest.Admin).ListKeys(t.Context(), &adminv1.ListKeysRequest{}); list.Keys[0].Status != "revoked" {
		t.Errorf("status: got %s, want revoked", list.Keys[0].Status)
	}
}

func TestCreateKey_Refuses(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	apply(t, z, "kind: Customer\nname: two\nspec: {zone: emea, subscriptions: [{plan: gold}, {plan: free}]}\n---\nkind: Customer\nname: bad\nspec: {zone: emea, status: suspended, subscriptions: [{plan: gold}]}")
	for _, c := range []struct {
		req    *adminv1.CreateKeyRequest
		kind   fault.Kind
		reason string
	}{
		{&adminv1.CreateKeyRequest{}, fault.Invalid, "FIELD_INVALID"},
		{&adminv1.CreateKeyRequest{Customer: "nobody"}, fault.NotFound, "CUSTOMER_NOT_FOUND"},
		{&adminv1.CreateKeyRequest{Customer: "umbrella", Zone: "us"}, fault.WrongZone, "WRONG_ZONE"},
		{&adminv1.CreateKeyRequest{Customer: "acme", Plan: "free"}, fault.Invalid, "SUBSCRIPTION_UNKNOWN"},
		{&adminv1.CreateKeyRequest{Customer: "two"}, fault.Invalid, "SUBSCRIPTION_AMBIGUOUS"},
		{&adminv1.CreateKeyRequest{Customer: "bad"}, fault.Conflict, "CUSTOMER_SUSPENDED"},
	} {
		before := z.Store.Dump()
		_, err := keysAt(z, apitest.Admin).CreateKey(t.Context(), c.req)
		if err == nil || fault.KindOf(err) != c.kind || fault.ReasonOf(err) != c.reason {
			t.Errorf("%v: got %v (%s), want %v %s", c.req, err, fault.ReasonOf(err), c.kind, c.reason)
		}
		if z.Store.Dump() != before {
			t.Errorf("%v: the state changed", c.req)
		}
	}
}

func TestCreateKey_ManyAtOnce(t *testing.T) {
	in := seeded(t, 5*time.Second)
	z := in.Zones["emea"]
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for range 25 {
				if _, err := keysAt(z, apitest.Admin).CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme"}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	list, err := keysAt(z, apitest.Admin).ListKeys(t.Context(), &adminv1.ListKeysRequest{})
	if err != nil || len(list.Keys) != 100 {
		t.Errorf("got %d keys, %v; want 100", len(list.GetKeys()), err)
	}
}

// A key may be bound to a certificate or a token in place of a text: one at a time to each, and what it is bound to does not rest.
func TestCreateKey_BoundToWhatACallerHas(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	keys := keysAt(z, apitest.Admin)
	cert := strings.Repeat("ab", 32)
	one, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold", Certificate: strings.ToUpper(cert), Scopes: []string{"orders:read"}})
	if err != nil || one.Key != "" || !strings.HasPrefix(one.Id, "cer-") {
		t.Fatalf("got %v %v, want a key without a text", one, err)
	}
	token := &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold", TokenIssuer: "https://id.example.test", TokenSubject: "someone@example.test"}
	two, err := keys.CreateKey(t.Context(), token)
	if err != nil || !strings.HasPrefix(two.Id, "tok-") {
		t.Fatalf("got %v %v", two, err)
	}
	if dump := z.Store.Dump(); strings.Contains(dump, "someone") || strings.Contains(dump, cert) {
		t.Error("what a key is bound to rests as text")
	}
	if _, err := keys.CreateKey(t.Context(), token); fault.ReasonOf(err) != "CREDENTIAL_BOUND" {
		t.Errorf("bound twice: got %v", err)
	}
	list, err := keys.ListKeys(t.Context(), &adminv1.ListKeysRequest{Customer: "acme"})
	kinds := map[string]string{}
	for _, k := range list.GetKeys() {
		kinds[k.Id] = k.Kind
	}
	if err != nil || len(list.Keys) != 2 || kinds[one.Id] != "certificate" || kinds[two.Id] != "token" {
		t.Errorf("got %v %v, want both with their kinds", list, err)
	}
	if _, err := keys.RevokeKey(t.Context(), &adminv1.RevokeKeyRequest{Id: two.Id}); err != nil {
		t.Fatal(err)
	}
	if again, err := keys.CreateKey(t.Context(), token); err != nil || again.Id != two.Id {
		t.Errorf("bound anew after it was revoked: got %v %v", again, err)
	}
	// Its id is the same each time. What a request id of before did is not passed off as done now.
	for range 2 {
		if _, err := keys.RevokeKey(t.Context(), &adminv1.RevokeKeyRequest{Id: two.Id, RequestId: "end"}); err != nil {
			t.Fatal(err)
		}
	}
	made := &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold", TokenIssuer: token.TokenIssuer, TokenSubject: token.TokenSubject, RequestId: "made"}
	if _, err := keys.CreateKey(t.Context(), made); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.RevokeKey(t.Context(), &adminv1.RevokeKeyRequest{Id: two.Id, RequestId: "end"}); fault.ReasonOf(err) != "REQUEST_ID_REUSED" {
		t.Errorf("revoked under the id that revoked the one before: got %v, and it still serves", err)
	}
	if _, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: two.Id}); fault.ReasonOf(err) != "KEY_BOUND" {
		t.Errorf("rotated: got %v", err)
	}
	if _, err := keys.RevokeKey(t.Context(), &adminv1.RevokeKeyRequest{Id: two.Id}); err != nil {
		t.Fatal(err)
	}
	if again, err := keys.CreateKey(t.Context(), made); fault.ReasonOf(err) != "KEY_ALREADY_CREATED" {
		t.Errorf("created under the id that created the one which was revoked: got %v %v", again, err)
	}
	for name, req := range map[string]*adminv1.CreateKeyRequest{
		"both":           {Customer: "acme", Plan: "gold", Certificate: cert, TokenIssuer: "https://id.example.test", TokenSubject: "x"},
		"no digest":      {Customer: "acme", Plan: "gold", Certificate: "abcd"},
		"no subject":     {Customer: "acme", Plan: "gold", TokenIssuer: "https://id.example.test"},
		"a line of more": {Customer: "acme", Plan: "gold", TokenIssuer: "https://id.example.test", TokenSubject: "x\ny"},
	} {
		if _, err := keys.CreateKey(t.Context(), req); fault.ReasonOf(err) != "CREDENTIAL_INVALID" {
			t.Errorf("%s: got %v", name, err)
		}
	}
}
