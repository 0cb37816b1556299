package adminapi_test

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

func approvalsAt(z *apitest.Zone, token string) adminv1connect.ApprovalServiceClient {
	return adminv1connect.NewApprovalServiceClient(apitest.Client(token), z.Server.URL, faults)
}

// adopt stands for the zone's leader.
func adopt(t testing.TB, in *apitest.Installation, z *apitest.Zone) {
	t.Helper()
	cat := in.Catalog.Local()
	a := model.Adopted{CatalogEpoch: cat.Revision().Epoch, CatalogIndex: cat.Revision().Index, Regions: all[model.Region](t, cat, model.PrefixRegion),
		Bases: all[model.LegalBasis](t, cat, model.PrefixBasis), Policies: all[model.Policy](t, cat, model.PrefixPolicy)}
	z.Store.Put(model.KeyAdopted, model.Encode(a))
}

func all[T any](t testing.TB, snap group.Snapshot, prefix string) (out []T) {
	t.Helper()
	for kv := range snap.List(prefix) {
		v, err := model.Decode[T](kv.Key, kv.Value)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, v)
	}
	return out
}

const (
	twoPersons = "kind: Policy\nname: gdpr-emea\nspec: {zone: emea, within_zone: {basis: gdpr}, two_person: true, offline_grant: 60s,\n pairs: [{from: eu-west, to: us-east, basis: scc}, {from: eu-central, to: us-east, basis: scc, status: closed}]}\n"
	sccBasis   = "kind: LegalBasis\nname: scc\nspec: {kind: scc, expires: 2031-01-01}\n"
	dpfBasis   = "kind: LegalBasis\nname: dpf\nspec: {kind: dpf, status: suspended}\n"
	widePolicy = "kind: Policy\nname: wide\nspec: {zone: emea, pairs: [{from: eu-west, to: us-west, basis: scc}]}\n"
	samePolicy = "kind: Policy\nname: same\nspec: {zone: emea, within_zone: {basis: gdpr}, offline_grant: 60s, pairs: [{from: eu-west, to: us-east, basis: scc}, {from: eu-central, to: us-east, basis: scc, status: closed}]}\n"
	closure    = "kind: Closure\nname: stop\nspec: {zone: emea, from: eu-west, to: us-east, reason: drill}\n"
)

// guarded is an installation in which emea's policy asks for two operators.
func guarded(t testing.TB) (*apitest.Installation, *apitest.Zone) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	apply(t, z, sccBasis+"---\n"+dpfBasis+"---\n"+widePolicy+"---\n"+closure)
	// As it would be after two operators: this policy is where the tests begin.
	for _, r := range parse(t, twoPersons) {
		p := r.GetPolicy()
		offline := p.OfflineGrant.AsDuration()
		in.Catalog.Put(model.PrefixPolicy+"gdpr-emea", model.Encode(model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, TwoPerson: true, OfflineGrant: &offline,
			Pairs: []model.Pair{{From: "eu-west", To: "us-east", Basis: "scc", Status: "open"}, {From: "eu-central", To: "us-east", Basis: "scc", Status: "closed"}}}))
	}
	adopt(t, in, z)
	epoch := z.Store.Local().Revision().Epoch
	z.Store.Put(model.KeyCrossing, model.Encode(model.Crossing{CatalogEpoch: 1, StoreEpoch: epoch}))
	return in, z
}

// edited is twoPersons with one word put for another.
func edited(old, new string) string { return strings.Replace(twoPersons, old, new, 1) }

// openings are all roads by which an operator can loosen what a policy has two operators decide.
var openings = []struct {
	name  string
	apply string // a manifest
	drop  string // kind/name to delete
	call  func(context.Context, *apitest.Zone, string) (*adminv1.Approval, error)
	also  string // to be applied by one operator first
	opens string // part of what is said to open
}{
	{name: "a new pair", apply: edited("pairs: [", "pairs: [{from: eu-central, to: us-west, basis: scc}, "), opens: "eu-central to us-west becomes permitted"},
	{name: "a closed pair opens", apply: edited("status: closed", "status: open"), opens: "eu-central to us-east becomes permitted"},
	{name: "a closed pair is left out", apply: edited(", {from: eu-central, to: us-east, basis: scc, status: closed}", ", {from: eu-central, to: us-east, basis: scc}"), opens: "eu-central to us-east becomes permitted"},
	{name: "more classes", apply: edited("basis: scc}", "basis: scc, classes: [request, cache]}"), opens: "for cache data"},
	{name: "longer without the control plane", apply: edited("60s", "10m"), opens: "while the control plane is away"},
	{name: "the default instead", apply: edited(" offline_grant: 60s,", ""), opens: "1h0m0s while the control plane is away"},
	{name: "another basis", apply: edited("{from: eu-west, to: us-east, basis: scc}", "{from: eu-west, to: us-east, basis: gdpr}"), opens: "rests on gdpr and no longer on scc"},
	{name: "one operator is enough from now on", apply: edited(" two_person: true,", ""), opens: "no longer asks for a second operator"},
	{name: "a basis lasts longer", apply: "kind: LegalBasis\nname: scc\nspec: {kind: scc, expires: 2032-01-01}\n", opens: "is permitted longer"},
	{name: "a basis for ever", apply: "kind: LegalBasis\nname: scc\nspec: {kind: scc}\n", opens: "is permitted longer"},
	{name: "a basis resumes", also: "kind: LegalBasis\nname: scc\nspec: {kind: scc, expires: 2031-01-01, status: suspended}\n", apply: sccBasis, opens: "eu-west to us-east becomes permitted"},
	{name: "a region joins", apply: "kind: Region\nname: eu-south\nspec: {zone: emea, provider: aws, country: IT, jurisdiction: EEA}\n", opens: "eu-south to eu-west becomes permitted"},
	{name: "an API under a wider policy", apply: "kind: API\nname: orders\nspec: {zone: emea, hosts: [orders.emea.example.test], policy: wide, routes: [{name: all}], upstreams: [{region: eu-west, url: \"http://127.0.0.1:7301\"}]}\n", opens: "host orders.emea.example.test: eu-west to us-west becomes permitted"},
	{name: "a host that was under none", apply: "kind: API\nname: other\nspec: {zone: emea, hosts: [other.emea.example.test], policy: wide, routes: [{name: all}], upstreams: [{region: eu-west, url: \"http://127.0.0.1:7301\"}]}\n", opens: "host other.emea.example.test"},
	{name: "an API under a policy that permits as much and may be widened by one", also: samePolicy, apply: "kind: API\nname: orders\nspec: {zone: emea, hosts: [orders.emea.example.test], policy: same, routes: [{name: all}], upstreams: [{region: eu-west, url: \"http://127.0.0.1:7301\"}]}\n", opens: "host orders.emea.example.test comes under policy same, which asks for no second operator"},
	{name: "a new host under a policy that permits nothing yet", also: "kind: Policy\nname: none\nspec: {zone: emea}\n", apply: "kind: API\nname: other\nspec: {zone: emea, hosts: [other.emea.example.test], policy: none, routes: [{name: all}], upstreams: [{region: eu-west, url: \"http://127.0.0.1:7301\"}]}\n", opens: "host other.emea.example.test comes under policy none"},
	{name: "the policy goes", also: "kind: API\nname: orders\nspec: {zone: emea, hosts: [orders.emea.example.test], routes: [{name: all}], upstreams: [{region: eu-west, url: \"http://127.0.0.1:7301\"}]}\n---\nkind: API\nname: reports\nspec: {zone: emea, hosts: [reports.emea.example.test], routes: [{name: all}], upstreams: [{region: eu-west, url: \"http://127.0.0.1:7301\"}]}\n", drop: "policies/gdpr-emea", opens: "no longer asks for a second operator"},
	{name: "a closure goes", drop: "closures/stop", opens: "eu-west to us-east becomes permitted"},
	{name: "a closure turns elsewhere", apply: "kind: Closure\nname: stop\nspec: {zone: emea, from: eu-central, to: eu-west, reason: drill}\n", opens: "eu-west to us-east becomes permitted"},
	{name: "a recovery is approved", also: "closures/stop", call: func(ctx context.Context, z *apitest.Zone, token string) (*adminv1.Approval, error) {
		z.Store.Put(model.KeyCrossing, model.Encode(model.Crossing{CatalogEpoch: 1, StoreEpoch: 0}))
		resp, err := approvalsAt(z, token).OpenCrossings(ctx, &adminv1.OpenCrossingsRequest{Reason: "drill"})
		return resp.GetPending(), err
	}, opens: "eu-west to us-east becomes permitted"},
}

func TestApproval_EveryRoadThatOpensTakesTwo(t *testing.T) {
	in, z := guarded(t)
	catalog, zone := in.Catalog.Local(), z.Store.Local()
	for _, c := range openings {
		t.Run(c.name, func(t *testing.T) {
			in.Catalog.Rewind(catalog)
			z.Store.Rewind(zone)
			switch {
			case c.also == "closures/stop": // as if two had agreed on that
				if _, err := z.Store.Txn(t.Context(), group.Txn{Ops: []group.Op{{Key: model.PrefixClosure + "stop", Delete: true}}}); err != nil {
					t.Fatal(err)
				}
			case c.also != "":
				if resp := apply(t, z, c.also); len(resp.Pending) > 0 {
					t.Fatalf("a tightening waits: %v", resp.Pending)
				}
				adopt(t, in, z)
			}
			rules := func() string { // what decides relays, as text
				var b strings.Builder
				for _, s := range []*apitest.Store{in.Catalog, z.Store} {
					for kv := range s.Local().List("") {
						if slices.ContainsFunc([]string{"regions/", "bases/", "policies/", "apis/", "closures/"}, func(p string) bool { return strings.HasPrefix(kv.Key, p) }) {
							b.WriteString(kv.Key + "=" + string(kv.Value) + "\n")
						}
					}
				}
				return b.String()
			}
			var before string
			var pending *adminv1.Approval
			propose := func(token string) *adminv1.Approval {
				t.Helper()
				switch {
				case c.call != nil:
					a, err := c.call(t.Context(), z, token)
					if err != nil {
						t.Fatal(err)
					}
					return a
				case c.drop != "":
					kind, name, _ := strings.Cut(c.drop, "/")
					resp, err := resourcesAt(z, token).Delete(t.Context(), &adminv1.DeleteRequest{Kind: kind, Name: name})
					if err != nil {
						t.Fatal(err)
					}
					return resp.GetPending()
				}
				resp, err := resourcesAt(z, token).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, c.apply)})
				if err != nil {
					t.Fatal(err)
				}
				if len(resp.Pending) != 1 {
					t.Fatalf("pending: %v, want one", resp.Pending)
				}
				return resp.Pending[0]
			}
			if c.apply != "" { // asked beforehand, it says so and does nothing
				before = in.Catalog.Dump() + z.Store.Dump()
				resp, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, c.apply), DryRun: true})
				if err != nil || len(resp.Pending) != 1 {
					t.Fatalf("dry run: %v, %v, want what will wait", resp.GetPending(), err)
				}
				if in.Catalog.Dump()+z.Store.Dump() != before {
					t.Error("a dry run wrote")
				}
			}
			before = rules()
			if pending = propose(apitest.Admin); pending == nil {
				t.Fatal("one operator opened it alone")
			}
			if !strings.Contains(strings.Join(pending.Opens, "\n"), c.opens) {
				t.Errorf("it opens %q, want %q", pending.Opens, c.opens)
			}
			if after := rules(); after != before && !strings.Contains(c.apply, "gdpr-emea") { // of a policy the part that closes may be made
				t.Errorf("before anybody approved:\n%s\nwas\n%s", after, before)
			}
			for _, token := range []string{apitest.Admin, apitest.Other} {
				if _, err := approvalsAt(z, token).Approve(t.Context(), &adminv1.ApproveRequest{Id: pending.Id}); fault.ReasonOf(err) != "SAME_OPERATOR" {
					t.Fatalf("approved by who proposed it, with token %s: %v", token, err)
				}
			}
			if again := propose(apitest.Second); again.GetId() != pending.Id || again.GetProposedBy() != pending.ProposedBy {
				t.Errorf("proposed again by another: %v, want the same proposal and no approval", again)
			}
			resp, err := approvalsAt(z, apitest.Second).Approve(t.Context(), &adminv1.ApproveRequest{Id: pending.Id})
			if err != nil {
				t.Fatal(err)
			}
			if a := resp.Approval; a.Status != "done" || a.ProposedBy != "admin" || a.DecidedBy != "bob" {
				t.Errorf("approval: %v", a)
			}
			if c.apply != "" {
				adopt(t, in, z)
				resp, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, c.apply), DryRun: true})
				if err != nil || resp.Changes[0].Action != "unchanged" {
					t.Errorf("after approval: %v, %v, want the document as it was proposed", resp, err)
				}
			}
			if _, err := approvalsAt(z, apitest.Second).Approve(t.Context(), &adminv1.ApproveRequest{Id: pending.Id}); fault.ReasonOf(err) != "APPROVAL_DECIDED" {
				t.Errorf("approved twice: %v", err)
			}
		})
	}
}

// What only tightens waits for nobody, and of a manifest that does both the tightening is made at once.
func TestApproval_TighteningNeverWaits(t *testing.T) {
	in, z := guarded(t)
	catalog, zone := in.Catalog.Local(), z.Store.Local()
	for _, text := range []string{
		edited("basis: scc}", "basis: scc, status: closed}"),
		edited("60s", "1s"),
		"kind: LegalBasis\nname: scc\nspec: {kind: scc, expires: 2031-01-01, status: suspended}\n",
		"kind: Closure\nname: all\nspec: {zone: emea, basis: gdpr, reason: drill}\n",
		"kind: Region\nname: eu-west\nspec: {zone: emea, country: IE, jurisdiction: EEA, drain: maintenance}\n",
	} {
		if resp := apply(t, z, text); len(resp.Pending) > 0 {
			t.Errorf("%s\nwaits: %v", text, resp.Pending)
		}
		in.Catalog.Rewind(catalog)
		z.Store.Rewind(zone)
	}
	resp := apply(t, z, edited("pairs: [{from: eu-west, to: us-east, basis: scc}, {from: eu-central, to: us-east, basis: scc, status: closed}]",
		"pairs: [{from: eu-west, to: us-east, basis: scc, status: closed}, {from: eu-central, to: us-east, basis: scc}]")+
		"---\nkind: LegalBasis\nname: gdpr\nspec: {kind: same-law, expires: 2030-01-01}\n---\nkind: Closure\nname: more\nspec: {zone: emea, from: eu-west, to: eu-central, reason: drill}\n")
	if len(resp.Pending) != 1 || resp.Changes[0].Pending != resp.Pending[0].Id || resp.Changes[0].Action != "updated" || resp.Changes[1].Action != "updated" || resp.Changes[2].Action != "created" {
		t.Fatalf("mixed manifest: %v", resp)
	}
	p := stored[model.Policy](t, in.Catalog, model.PrefixPolicy+"gdpr-emea")
	if p.Pairs[0].Status != "closed" || p.Pairs[1].Status != "closed" {
		t.Errorf("before approval the pairs are %+v, want both closed", p.Pairs)
	}
	if _, err := approvalsAt(z, apitest.Second).Approve(t.Context(), &adminv1.ApproveRequest{Id: resp.Pending[0].Id}); err != nil {
		t.Fatal(err)
	}
	if p = stored[model.Policy](t, in.Catalog, model.PrefixPolicy+"gdpr-emea"); p.Pairs[0].Status != "closed" || p.Pairs[1].Status != "open" {
		t.Errorf("after approval the pairs are %+v", p.Pairs)
	}
	if c := stored[model.Closure](t, z.Store, model.PrefixClosure+"more"); c.Name == "" {
		t.Error("the closure of the manifest is not there")
	}
}

func stored[T any](t testing.TB, s *apitest.Store, key string) (v T) {
	t.Helper()
	if kv, ok := s.Local().Get(key); ok {
		var err error
		if v, err = model.Decode[T](key, kv.Value); err != nil {
			t.Fatal(err)
		}
	}
	return v
}

// An approval is of what its proposal was judged on. Whatever of that has changed since, it is void.
func TestApproval_OfAnotherBaseIsNone(t *testing.T) {
	open := edited("status: closed", "status: open")
	in, z := guarded(t)
	catalog, zone := in.Catalog.Local(), z.Store.Local()
	for _, c := range []struct {
		name   string
		change func(in *apitest.Installation, z *apitest.Zone)
		reason string
	}{
		{"nothing", func(*apitest.Installation, *apitest.Zone) {}, ""},
		{"a drain", func(_ *apitest.Installation, z *apitest.Zone) {
			apply(t, z, "kind: Region\nname: eu-west\nspec: {zone: emea, country: IE, jurisdiction: EEA, drain: maintenance}\n")
		}, ""},
		{"the policy", func(_ *apitest.Installation, z *apitest.Zone) { apply(t, z, edited("60s", "1s")) }, "APPROVAL_STALE"},
		{"its basis", func(_ *apitest.Installation, z *apitest.Zone) {
			apply(t, z, "kind: LegalBasis\nname: scc\nspec: {kind: scc, expires: 2030-01-01}\n")
		}, "APPROVAL_STALE"},
		{"it was rejected", func(_ *apitest.Installation, z *apitest.Zone) {
			list, _ := approvalsAt(z, apitest.Viewer).ListApprovals(t.Context(), &adminv1.ListApprovalsRequest{})
			if _, err := approvalsAt(z, apitest.Admin).Reject(t.Context(), &adminv1.RejectRequest{Id: list.Approvals[0].Id, Reason: "no"}); err != nil {
				t.Fatal(err)
			}
		}, "APPROVAL_DECIDED"},
		{"three days", func(_ *apitest.Installation, z *apitest.Zone) {
			for kv := range z.Store.Local().List(model.PrefixApproval) {
				p := stored[model.Proposal](t, z.Store, kv.Key)
				p.Expires = time.Now().Add(-time.Second)
				z.Store.Put(kv.Key, model.Encode(p))
			}
		}, "APPROVAL_EXPIRED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			in.Catalog.Rewind(catalog)
			z.Store.Rewind(zone)
			id := apply(t, z, open).Pending[0].Id
			c.change(in, z)
			_, err := approvalsAt(z, apitest.Second).Approve(t.Context(), &adminv1.ApproveRequest{Id: id})
			if fault.ReasonOf(err) != c.reason {
				t.Errorf("reason %q, want %q (%v)", fault.ReasonOf(err), c.reason, err)
			}
			p := stored[model.Policy](t, in.Catalog, model.PrefixPolicy+"gdpr-emea")
			if opened := p.Pairs[1].Status == "open"; opened != (c.reason == "") {
				t.Errorf("open: %v", opened)
			}
		})
	}
}

// A race that no door sees: the base changes between the judgement and the commit.
func TestApproval_TheTransactionItselfHoldsTheBase(t *testing.T) {
	in, z := guarded(t)
	id := apply(t, z, edited("status: closed", "status: open")).Pending[0].Id
	once := false
	in.Catalog.Before = func() {
		if once {
			return
		}
		once = true
		in.Catalog.Before = nil
		apply(t, z, "kind: LegalBasis\nname: scc\nspec: {kind: scc, expires: 2030-01-01}\n")
	}
	if _, err := approvalsAt(z, apitest.Second).Approve(t.Context(), &adminv1.ApproveRequest{Id: id}); fault.ReasonOf(err) != "APPROVAL_STALE" {
		t.Errorf("approved while the base changed: %v", err)
	}
	if p := stored[model.Policy](t, in.Catalog, model.PrefixPolicy+"gdpr-emea"); p.Pairs[1].Status != "closed" {
		t.Errorf("pairs %+v", p.Pairs)
	}
}

// What is proposed in one zone is approved in it: names and the decision rest there, and the catalog has neither.
// A node that dies between making a change and saying so leaves an approval, which is good for that once.
func TestApproval_IsGoodOnceAlsoAfterACrash(t *testing.T) {
	for _, again := range []bool{false, true} {
		in, z := guarded(t)
		bob, err := operatorsAt(z, apitest.Admin).CreateOperator(t.Context(), &adminv1.CreateOperatorRequest{Name: "bob", Role: adminapi.RoleAdmin})
		if err != nil {
			t.Fatal(err)
		}
		suspended := "kind: LegalBasis\nname: scc\nspec: {kind: scc, expires: 2031-01-01, status: suspended}\n"
		apply(t, z, suspended)
		id := apply(t, z, sccBasis).Pending[0].Id
		approve := func(token string) error {
			_, err := approvalsAt(z, token).Approve(t.Context(), &adminv1.ApproveRequest{Id: id})
			return err
		}
		if err := approve(bob.Token); err != nil {
			t.Fatal(err)
		}
		p := stored[model.Proposal](t, z.Store, model.PrefixApproval+id)
		if p.Status != model.ProposalDone {
			t.Fatalf("it is %s", p.Status)
		}
		p.Status = model.ProposalApproved
		z.Store.Put(model.PrefixApproval+id, model.Encode(p)) // as the crash leaves it
		if again {
			if err := approve(apitest.Admin); err != nil {
				t.Errorf("going on with it: %v", err)
			}
		}
		apply(t, z, suspended) // it is taken back
		if err := approve(apitest.Admin); fault.ReasonOf(err) != "APPROVAL_DECIDED" {
			t.Errorf("approved once more by who proposed it: %v", err)
		}
		if got := stored[model.LegalBasis](t, in.Catalog, model.PrefixBasis+"scc").Status; got != "suspended" {
			t.Errorf("the basis is %s", got)
		}
	}
}

// What waits is bounded by its size too: all of it rests in the zone's memory, and is listed at once.
func TestApproval_WhatWaitsIsBounded(t *testing.T) {
	_, z := guarded(t)
	for i := range 9 {
		p := model.Proposal{ID: fmt.Sprintf("%016d", i), Zone: "emea", Status: model.ProposalPending, By: "eve", Expires: time.Now().Add(time.Hour),
			Docs: []model.ProposedDoc{{Kind: "Policy", Name: "p", Key: model.PrefixPolicy + "p", Catalog: true, Value: model.Encode(strings.Repeat("x", 480<<10))}}}
		z.Store.Put(model.PrefixApproval+p.ID, model.Encode(p))
	}
	_, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, edited("status: closed", "status: open"))})
	if fault.ReasonOf(err) != "APPROVALS_FULL" {
		t.Errorf("a tenth of half a megabyte each: %v", err)
	}
}

func TestApproval_RestsInItsZone(t *testing.T) {
	in, z := guarded(t)
	text := edited("status: closed", "status: open")
	_, err := resourcesAt(in.Zones["us"], apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, text)})
	if fault.KindOf(err) != fault.WrongZone {
		t.Errorf("at another zone's node: %v, want to be sent to emea", err)
	}
	apply(t, z, text)
	if strings.Contains(in.Catalog.Dump(), "approvals/") || strings.Contains(in.Catalog.Dump(), "bob") {
		t.Error("the catalog, which rests in every zone, names operators")
	}
}

// The guard stands at the transaction: whoever builds one, and forgets to ask, is refused there.
func TestApproval_TheCommitRefusesWhatNobodyApproved(t *testing.T) {
	in, z := guarded(t)
	opened := model.Policy{Name: "gdpr-emea", Zone: "emea", WithinZone: &model.WithinZone{Basis: "gdpr"}, Pairs: []model.Pair{{From: "eu-central", To: "us-east", Basis: "scc"}}}
	narrowed := model.Policy{Name: "gdpr-emea", Zone: "emea", TwoPerson: true}
	proposal := func(status, by, decided string, p model.Policy) group.Op {
		return group.Op{Key: model.PrefixApproval + "x", Value: model.Encode(model.Proposal{ID: "x", Zone: "emea", Status: status, By: by, DecidedBy: decided, Expires: time.Now().Add(time.Hour),
			Docs: []model.ProposedDoc{{Kind: "Policy", Name: p.Name, Key: model.PrefixPolicy + p.Name, Catalog: true, Value: model.Encode(p)}}})}
	}
	for _, c := range []struct {
		name   string
		store  *apitest.Store
		given  *group.Op
		op     group.Op
		reason string
	}{
		{"a policy", in.Catalog, nil, group.Op{Key: model.PrefixPolicy + "gdpr-emea", Value: model.Encode(opened)}, "APPROVAL_REQUIRED"},
		{"its removal", in.Catalog, nil, group.Op{Key: model.PrefixPolicy + "gdpr-emea", Delete: true}, "APPROVAL_REQUIRED"},
		{"a tightening", in.Catalog, nil, group.Op{Key: model.PrefixPolicy + "gdpr-emea", Value: model.Encode(narrowed)}, ""},
		{"a closure's removal", z.Store, nil, group.Op{Key: model.PrefixClosure + "stop", Delete: true}, "APPROVAL_REQUIRED"},
		{"all closures' removal", z.Store, nil, group.Op{Key: model.PrefixClosure, DeletePrefix: true}, "UNFENCED"},
		{"under an approval of another base", in.Catalog, new(proposal("approved", "admin", "bob", opened)), group.Op{Key: model.PrefixPolicy + "gdpr-emea", Value: model.Encode(opened)}, "APPROVAL_REQUIRED"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if c.given != nil {
				z.Store.Put(c.given.Key, c.given.Value)
			}
			err := adminapi.Commit(t.Context(), adminapi.Config{Zone: "emea", Node: "emea-1", Catalog: in.Catalog, Store: z.Store, Wait: time.Second}, model.Operator{Name: "bob", Role: adminapi.RoleAdmin}, c.store, c.op)
			if fault.ReasonOf(err) != c.reason {
				t.Errorf("%v, want reason %q", err, c.reason)
			}
		})
	}
}

// classes says of each call that changes something why one operator alone cannot loosen with it what takes two.
var classes = map[string]string{
	"ResourceService.Apply": "proposes", "ResourceService.Delete": "proposes", "ApprovalService.OpenCrossings": "proposes",
	"ResourceService.Rollback": "is planned as Apply is, and TestRollback_WaitsForASecondOperator",
	"ApprovalService.Approve":  "is the second operator", "ApprovalService.Reject": "opens nothing",
	"KeyService.CreateKey": "keys decide no relay", "KeyService.CreateKeys": "keys decide no relay", "KeyService.RevokeKey": "keys decide no relay", "KeyService.RotateKey": "keys decide no relay", "KeyService.UndoRotation": "keys decide no relay",
	"RolloutService.SteerRollout":    "sends what was committed, and takes back nothing that would open a pair",
	"EvidenceService.CheckEvidence":  "reads the zone's log again",
	"OperatorService.CreateOperator": "operators decide no relay by being there; who makes them up is both, as approval/DESIGN.md says", "OperatorService.RemoveOperator": "opens nothing",
	"ClusterService.TransferLeadership": "changes no state", "ClusterService.Backup": "reads; what is restored of it opens an epoch, which closes",
	"ClusterService.ReleaseClaim": "opens no pair; TestClaims_TwoOperators",
	"NodeService.RemoveNode":      "takes an edge away", "NodeService.CreateJoinToken": "an edge relays by its region's pairs, and regions are resources",
	"LedgerService.CloseEpoch": "usage", "LedgerService.Correct": "usage", "LedgerService.UndoCorrection": "usage", "QuotaService.TopUp": "usage",
	"CacheService.PurgeCache": "what edges keep decides no relay, and is given across no border",
	"CustomerService.Erase":   "customers decide no relay", "AlertService.CreateWebhook": "alerts", "AlertService.DeleteWebhook": "alerts", "AlertService.RotateWebhookSecret": "alerts",
}

func TestApproval_EveryCallThatChangesSomethingIsClassified(t *testing.T) {
	seen := map[string]bool{}
	services := adminv1.File_bailiwick_admin_v1_services_proto.Services()
	for i := range services.Len() {
		for j := range services.Get(i).Methods().Len() {
			m := services.Get(i).Methods().Get(j)
			if readOnly(m) {
				continue
			}
			name := string(m.Parent().Name() + "." + m.Name())
			if seen[name] = true; classes[name] == "" {
				t.Errorf("%s is new and changes something: say in this test how it cannot loosen the border alone, and if it can, have it propose", name)
			}
		}
	}
	for name := range classes {
		if !seen[name] {
			t.Errorf("%s is classified and does not exist", name)
		}
	}
}
