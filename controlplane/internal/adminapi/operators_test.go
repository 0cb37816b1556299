package adminapi_test

import (
	"context"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

func operatorsAt(z *apitest.Zone, token string) adminv1connect.OperatorServiceClient {
	return adminv1connect.NewOperatorServiceClient(apitest.Client(token), z.Server.URL, faults)
}

// Each role may do what it is for, at the dispatched procedure and by what a document is, and nothing else.
func TestRoles_ByZoneAndKind(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	tokens := map[string]string{"admin": apitest.Admin}
	for _, role := range []string{"zone-admin", "support", "viewer", "auditor"} {
		resp, err := operatorsAt(z, apitest.Admin).CreateOperator(t.Context(), &adminv1.CreateOperatorRequest{Name: "x-" + role, Role: role})
		if err != nil {
			t.Fatal(err)
		}
		tokens[role] = resp.Token
	}
	z.Store.Put(adminapi.TokenKey("unheard-of"), model.Encode(model.Operator{Name: "y", Role: "emperor"}))
	tokens["emperor"] = "unheard-of"
	doc := func(text string) func(string) error {
		return func(token string) error {
			_, err := resourcesAt(z, token).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, text), DryRun: true})
			return err
		}
	}
	list := func(kind string) func(string) error {
		return func(token string) error {
			_, err := resourcesAt(z, token).List(t.Context(), &adminv1.ListRequest{Kind: kind})
			return err
		}
	}
	for _, c := range []struct {
		what string
		call func(token string) error
		may  string
	}{
		{"read customers", list("customers"), "admin zone-admin support viewer"},
		{"read one customer", func(token string) error {
			_, err := resourcesAt(z, token).Get(t.Context(), &adminv1.GetRequest{Kind: "customer", Name: "acme"})
			return err
		}, "admin zone-admin support viewer"},
		{"read keys", func(token string) error {
			_, err := keysAt(z, token).ListKeys(t.Context(), &adminv1.ListKeysRequest{})
			return err
		}, "admin zone-admin support viewer"},
		{"read policies", list("policies"), "admin zone-admin support viewer auditor"},
		{"ask whose key it is", func(token string) error {
			_, err := adminv1connect.NewBorderServiceClient(apitest.Client(token), z.Server.URL, faults).Simulate(t.Context(), &adminv1.SimulateRequest{KeyId: "none"})
			return err
		}, "admin zone-admin support viewer"},
		{"write a customer", doc("kind: Customer\nname: new\nspec: {zone: emea}\n"), "admin zone-admin support"},
		{"write a policy of the zone", doc("kind: Policy\nname: p\nspec: {zone: emea}\n"), "admin zone-admin"},
		{"write a policy of another zone", doc("kind: Policy\nname: p\nspec: {zone: us}\n"), "admin"},
		{"take another zone's policy over", doc("kind: Policy\nname: us\nspec: {zone: emea}\n"), ""}, // its zone is for ever, so no role
		{"write a legal basis", doc("kind: LegalBasis\nname: scc\nspec: {kind: scc}\n"), "admin"},
		{"write a plan", doc("kind: Plan\nname: p\nspec: {products: [commerce]}\n"), "admin"},
		{"close", doc("kind: Closure\nname: c\nspec: {zone: emea, basis: gdpr}\n"), "admin zone-admin"},
		{"delete another zone's API", func(token string) error {
			_, err := resourcesAt(z, token).Delete(t.Context(), &adminv1.DeleteRequest{Kind: "apis", Name: "us/none"})
			if fault.KindOf(err) == fault.NotFound {
				err = nil // it was let in
			}
			return err
		}, "admin zone-admin support"},
		{"delete another zone's policy", func(token string) error {
			_, err := resourcesAt(z, token).Delete(t.Context(), &adminv1.DeleteRequest{Kind: "policies", Name: "us"})
			if fault.ReasonOf(err) == "IN_USE" {
				err = nil
			}
			return err
		}, "admin"},
		{"remove another zone's edge", func(token string) error {
			in.Catalog.Put(model.PrefixNode+"us-edge", model.Encode(model.Node{Name: "us-edge", Kind: "edge", Region: "us-east", Zone: "us"}))
			_, err := adminv1connect.NewNodeServiceClient(apitest.Client(token), z.Server.URL, faults).RemoveNode(t.Context(), &adminv1.RemoveNodeRequest{Name: "us-edge"})
			return err
		}, "admin"},
		{"make operators", func(token string) error {
			_, err := operatorsAt(z, token).CreateOperator(t.Context(), &adminv1.CreateOperatorRequest{Name: "z", Role: "viewer"})
			return err
		}, "admin"},
		{"reject what is proposed", func(token string) error {
			_, err := approvalsAt(z, token).Reject(t.Context(), &adminv1.RejectRequest{Id: strings.Repeat("0", 16)})
			if fault.KindOf(err) == fault.NotFound {
				err = nil
			}
			return err
		}, "admin zone-admin"},
	} {
		for role, token := range tokens {
			err := c.call(token)
			if may := strings.Contains(" "+c.may+" ", " "+role+" "); may != (err == nil) || !may && c.may != "" && fault.ReasonOf(err) != "ROLE_INSUFFICIENT" {
				t.Errorf("%s by %s: %v, want allowed %v", c.what, role, err, may)
			}
		}
	}
}

// A token rests as a hash, ends, can be replaced, and the last admin cannot be removed.
func TestOperators_TokensEnd(t *testing.T) {
	in := apitest.New(t, time.Second)
	z := in.Zones["emea"]
	create := func(req *adminv1.CreateOperatorRequest) (*adminv1.CreateOperatorResponse, error) {
		return operatorsAt(z, apitest.Admin).CreateOperator(t.Context(), req)
	}
	first, err := create(&adminv1.CreateOperatorRequest{Name: "eve", Role: "viewer"})
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(z.Store.Dump(), first.Token) || time.Until(first.Operator.ExpiresAt.AsTime()) > adminapi.DefaultOperatorTTL {
		t.Error("the token rests in the store, or lasts too long")
	}
	if _, err := create(&adminv1.CreateOperatorRequest{Name: "eve", Role: "admin"}); fault.ReasonOf(err) != "ROLE_DIFFERS" {
		t.Errorf("a second role: %v", err)
	}
	if _, err := create(&adminv1.CreateOperatorRequest{Name: "eve", Role: "viewer", Ttl: durationpb.New(400 * 24 * time.Hour)}); fault.ReasonOf(err) != "TTL_INVALID" {
		t.Errorf("for longer than a year: %v", err)
	}
	whole := func(token string) string {
		_, err := operatorsAt(z, token).ListOperators(t.Context(), &adminv1.ListOperatorsRequest{})
		return fault.ReasonOf(err)
	}
	second, err := create(&adminv1.CreateOperatorRequest{Name: "eve", Role: "auditor", Replace: true})
	if err != nil || whole(first.Token) != "TOKEN_UNKNOWN" || whole(second.Token) != "" {
		t.Fatalf("replaced: %v, first %q, second %q", err, whole(first.Token), whole(second.Token))
	}
	op := stored[model.Operator](t, z.Store, adminapi.TokenKey(second.Token))
	op.Expires = time.Now().Add(-time.Second)
	z.Store.Put(adminapi.TokenKey(second.Token), model.Encode(op))
	if got := whole(second.Token); got != "TOKEN_EXPIRED" {
		t.Errorf("an ended token: %q", got)
	}
	hash := strings.TrimPrefix(adminapi.TokenKey(apitest.Second), model.PrefixOperator)
	if _, err := create(&adminv1.CreateOperatorRequest{Name: "mallory", Role: "admin", TokenSha256: hash}); fault.ReasonOf(err) != "TOKEN_TAKEN" {
		t.Errorf("another operator's token: %v", err)
	}
	for name, reason := range map[string]string{"nobody": "OPERATOR_NOT_FOUND", "eve": "", "bob": ""} {
		if _, err := operatorsAt(z, apitest.Admin).RemoveOperator(t.Context(), &adminv1.RemoveOperatorRequest{Name: name}); fault.ReasonOf(err) != reason {
			t.Errorf("remove %s: %v", name, err)
		}
	}
	if _, err := operatorsAt(z, apitest.Admin).RemoveOperator(t.Context(), &adminv1.RemoveOperatorRequest{Name: "admin"}); fault.ReasonOf(err) != "LAST_ADMIN" {
		t.Errorf("the last admin: %v", err)
	}
	if got := whole(apitest.Second); got != "TOKEN_UNKNOWN" {
		t.Errorf("a removed operator's token: %q", got)
	}
}

// issued vouches for tokens of three parts by their first.
type issued map[string]string

func (i issued) Verify(_ context.Context, token string) (name, role string, err error) {
	name, _, _ = strings.Cut(token, ".")
	if i[name] == "" {
		return "", "", fault.New(fault.Unauthenticated, "TOKEN_INVALID", "unknown")
	}
	return name, i[name], nil
}

// Who comes by single sign-on is held to the same roles, is named in the audit, and is one person with his own token.
func TestSSO_IsHeldToRoles(t *testing.T) {
	in, z := guarded(t)
	h, err := adminapi.Handler(adminapi.Config{Zone: "emea", Node: "emea-1", PrimaryZone: "emea", Catalog: in.Catalog, Store: z.Store, Pepper: apitest.Pepper, Wait: time.Second,
		SSO: issued{"carol": "zone-admin", "dan": "auditor", "eve": "emperor", "bob": "admin"}})
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(h)
	defer srv.Close()
	at := func(name string) adminv1connect.ResourceServiceClient {
		return adminv1connect.NewResourceServiceClient(apitest.Client(name+".x.y"), srv.URL, faults)
	}
	for name, reason := range map[string]string{"carol": "", "dan": "ROLE_INSUFFICIENT", "eve": "ROLE_INSUFFICIENT", "mallory": "TOKEN_INVALID"} {
		if _, err := at(name).List(t.Context(), &adminv1.ListRequest{Kind: "customers"}); fault.ReasonOf(err) != reason {
			t.Errorf("customers for %s: %v", name, err)
		}
	}
	resp, err := at("carol").Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, edited("status: closed", "status: open"))})
	if err != nil || len(resp.Pending) != 1 || resp.Pending[0].ProposedBy != "carol" {
		t.Fatalf("proposed: %v, %v", resp, err)
	}
	if a := stored[model.Audit](t, z.Store, model.KeyAudit); a.Operator != "carol" {
		t.Errorf("audit: %+v", a)
	}
	approve := func(name string) error {
		_, err := adminv1connect.NewApprovalServiceClient(apitest.Client(name), srv.URL, faults).Approve(t.Context(), &adminv1.ApproveRequest{Id: resp.Pending[0].Id})
		return err
	}
	if err := approve("carol.x.y"); fault.ReasonOf(err) != "SAME_OPERATOR" {
		t.Errorf("by herself: %v", err)
	}
	if err := approve(apitest.Second); err != nil {
		t.Errorf("by bob: %v", err)
	}
}
