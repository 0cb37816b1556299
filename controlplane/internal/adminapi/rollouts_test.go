package adminapi_test

import (
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rollout"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault"
)

func steer(t *testing.T, z *apitest.Zone, token, name, action string) (*adminv1.Rollout, error) {
	t.Helper()
	resp, err := adminv1connect.NewRolloutServiceClient(apitest.Client(token), z.Server.URL, faults).SteerRollout(t.Context(),
		&adminv1.SteerRolloutRequest{Name: name, Action: action, Reason: "a test"})
	return resp.GetRollout(), err
}

// underWay is an installation in which a plan is being rolled out, and emea's canary holds it.
func underWay(t *testing.T, in *apitest.Installation) model.Rollout {
	t.Helper()
	if kv, ok := in.Catalog.Local().Get(model.KeyRollout); ok { // of what seeded it
		if _, err := steer(t, in.Zones["emea"], apitest.Admin, rolloutAt(t, kv.Key, kv.Value).Name(), "promote"); err != nil {
			t.Fatal(err)
		}
	}
	apply(t, in.Zones["emea"], "kind: Plan\nname: gold\nspec: {products: [commerce], rate_limit: {requests_per_second: 1}}\n")
	r := now(t, in)
	r.Zones = []model.RolloutZone{{Zone: "emea", Canary: "eu-west-edge-1"}}
	in.Catalog.Put(model.KeyRollout, model.Encode(r))
	return r
}

func rolloutAt(t *testing.T, key string, value []byte) model.Rollout {
	t.Helper()
	r, err := model.Decode[model.Rollout](key, value)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// now is the roll-out under way; a zero one: there is none.
func now(t *testing.T, in *apitest.Installation) model.Rollout {
	t.Helper()
	kv, ok := in.Catalog.Local().Get(model.KeyRollout)
	if !ok {
		return model.Rollout{}
	}
	return rolloutAt(t, kv.Key, kv.Value)
}

var canaryEdge = model.Node{Name: "eu-west-edge-1", Kind: "edge", Region: "eu-west", Zone: "emea"}

// A roll-out is every zone's, so no role but admin has a hand on it; and an admin of any zone has.
func TestSteerRollout_Roles(t *testing.T) {
	in := seeded(t, time.Second)
	tokens := map[string]string{"admin": apitest.Admin, "unknown": "nobody's"}
	for _, role := range []string{"zone-admin", "support", "viewer", "auditor"} {
		resp, err := operatorsAt(in.Zones["us"], apitest.Admin).CreateOperator(t.Context(), &adminv1.CreateOperatorRequest{Name: "x-" + role, Role: role})
		if err != nil {
			t.Fatal(err)
		}
		tokens[role] = resp.Token
	}
	in.Zones["us"].Store.Put(adminapi.TokenKey("unheard-of"), model.Encode(model.Operator{Name: "y", Role: "emperor"}))
	tokens["emperor"] = "unheard-of"
	r := underWay(t, in)
	before := in.Catalog.Dump()
	for _, action := range []string{"pause", "resume", "abort", "promote"} {
		for who, token := range tokens {
			if who == "admin" {
				continue
			}
			_, err := steer(t, in.Zones["us"], token, r.Name(), action)
			if k := fault.KindOf(err); k != fault.Denied && k != fault.Unauthenticated {
				t.Errorf("%s by %s: got %v, want it denied", action, who, err)
			}
		}
	}
	if in.Catalog.Dump() != before {
		t.Error("what was denied changed the catalog")
	}
	if got, err := steer(t, in.Zones["us"], apitest.Admin, r.Name(), "pause"); err != nil || got.GetState() != model.RolloutPaused {
		t.Errorf("by an admin of another zone: %v, %v", got, err)
	}
}

// Each state allows what makes sense in it, says why it refuses what does not, and then changes nothing.
func TestSteerRollout_States(t *testing.T) {
	const plans = model.PrefixPlan + "gold"
	for _, c := range []struct {
		state, action string
		want          string // state; or a reason
		holds         bool   // the canary, afterwards
		restored      bool
	}{
		{"running", "pause", "paused", true, false},
		{"running", "resume", "ROLLOUT_NOT_PAUSED", true, false},
		{"running", "abort", "rolled-back", true, true},
		{"running", "promote", "done", true, false},
		{"paused", "pause", "ROLLOUT_NOT_RUNNING", true, false},
		{"paused", "resume", "running", true, false},
		{"paused", "abort", "rolled-back", true, true},
		{"paused", "promote", "done", true, false},
		{"stopped", "pause", "ROLLOUT_NOT_RUNNING", false, false},
		{"stopped", "resume", "running", false, false}, // begins anew: no canary is named yet
		{"stopped", "abort", "rolled-back", true, true},
		{"stopped", "promote", "done", true, false},
	} {
		t.Run(c.state+"/"+c.action, func(t *testing.T) {
			in := seeded(t, time.Second)
			z := in.Zones["emea"]
			old, _ := in.Catalog.Local().Get(plans)
			r := underWay(t, in)
			made, _ := in.Catalog.Local().Get(plans)
			r.State = c.state
			in.Catalog.Put(model.KeyRollout, model.Encode(r))
			before := in.Catalog.Dump()
			got, err := steer(t, z, apitest.Admin, r.Name(), c.action)
			if err != nil {
				if fault.ReasonOf(err) != c.want || fault.KindOf(err) != fault.Conflict || !strings.Contains(err.Error(), r.Name()+" is "+c.state) {
					t.Errorf("got %v, want %s", err, c.want)
				}
				if in.Catalog.Dump() != before {
					t.Error("what was refused changed the catalog")
				}
				return
			}
			if got.GetState() != c.want || got.GetReason() != "a test" {
				t.Errorf("got %v, want %s", got, c.want)
			}
			is := now(t, in)
			if is.State != "" && is.State != c.want {
				t.Errorf("on record as %s, want %s", is.State, c.want)
			}
			if holds := is.Reaches(canaryEdge); holds != c.holds {
				t.Errorf("the canary holds what is in the catalog: %v, want %v", holds, c.holds)
			}
			want := made.Value
			if c.restored {
				want = old.Value
			}
			if kv, _ := in.Catalog.Local().Get(plans); string(kv.Value) != string(want) {
				t.Errorf("the plan is %s, want %s", kv.Value, want)
			}
			if c.want == "rolled-back" || c.want == "done" {
				for kv := range in.Catalog.Local().List(model.PrefixHeld) {
					t.Errorf("%s is held back still", kv.Key)
				}
				kv, ok := in.Catalog.Local().Get(r.Key())
				if end := rolloutAt(t, kv.Key, kv.Value); !ok || end.State != c.want || end.Reason != "a test" || end.Why != rollout.WhyOperator {
					t.Errorf("on record is %+v", end)
				}
				if _, err := steer(t, z, apitest.Admin, r.Name(), c.action); fault.ReasonOf(err) != "ROLLOUT_NOT_UNDER_WAY" {
					t.Errorf("once more: %v, want that it is not under way", err)
				}
			}
		})
	}
	in := seeded(t, time.Second)
	r := underWay(t, in)
	for _, req := range []*adminv1.SteerRolloutRequest{{Name: r.Name(), Action: "explode", Reason: "x"}, {Name: r.Name(), Action: "abort"}, {Action: "abort", Reason: "x"}, {Name: r.Name(), Reason: "x"},
		{Name: "r99", Action: "abort", Reason: "x"}, {Name: r.Name(), Action: "abort", Reason: strings.Repeat("x", 257)}} {
		if _, err := adminv1connect.NewRolloutServiceClient(apitest.Client(apitest.Admin), in.Zones["emea"].Server.URL, faults).SteerRollout(t.Context(), req); err == nil {
			t.Errorf("%v was taken", req)
		}
	}
	if got := now(t, in); got.State != model.RolloutRunning {
		t.Errorf("it is %s after what was refused", got.State)
	}
}

// Of two hands at once one is first, and the other is told so: nothing is done twice, and nothing is undone that was folded in
// meanwhile without being judged.
func TestSteerRollout_TwoAtOnce(t *testing.T) {
	for _, actions := range [][2]string{{"abort", "abort"}, {"abort", "promote"}, {"promote", "promote"}, {"pause", "abort"}, {"pause", "pause"}} {
		t.Run(actions[0]+"+"+actions[1], func(t *testing.T) {
			in := seeded(t, time.Second)
			old, _ := in.Catalog.Local().Get(model.PrefixPlan + "gold")
			r := underWay(t, in)
			made, _ := in.Catalog.Local().Get(model.PrefixPlan + "gold")
			var meet sync.WaitGroup // both have judged the same state before either writes
			meet.Add(2)
			var once [2]sync.Once
			var mu sync.Mutex
			n := 0
			in.Catalog.Before = func() {
				mu.Lock()
				i := n
				n++
				mu.Unlock()
				if i < 2 {
					once[i].Do(meet.Done)
					meet.Wait()
				}
			}
			var wg sync.WaitGroup
			var errs [2]error
			for i, zone := range []string{"emea", "us"} {
				wg.Go(func() { _, errs[i] = steer(t, in.Zones[zone], apitest.Admin, r.Name(), actions[i]) })
			}
			wg.Wait()
			in.Catalog.Before = nil
			is := now(t, in)
			kv, ended := in.Catalog.Local().Get(r.Key())
			plan, _ := in.Catalog.Local().Get(model.PrefixPlan + "gold")
			switch {
			case actions == [2]string{"pause", "pause"}:
				if is.State != model.RolloutPaused || (errs[0] == nil) == (errs[1] == nil) {
					t.Errorf("got %v, %+v; want one of them told that it is paused", errs, is)
				}
			case actions[0] == "pause": // abort ends it whether it is paused or not; pause then finds nothing
				if errs[1] != nil || is.State != "" || string(plan.Value) != string(old.Value) {
					t.Errorf("got %v, %+v", errs, is)
				}
			default:
				if (errs[0] == nil) == (errs[1] == nil) || is.State != "" || !ended {
					t.Fatalf("got %v, %+v; want one to end it and the other told so", errs, is)
				}
				end, want := rolloutAt(t, kv.Key, kv.Value), made.Value
				if end.State == model.RolloutRolledBack {
					want = old.Value
				}
				if string(plan.Value) != string(want) {
					t.Errorf("%s, and the plan is %s", end.State, plan.Value)
				}
			}
		})
	}
	t.Run("a change is folded in meanwhile", func(t *testing.T) {
		in := seeded(t, time.Second)
		r := underWay(t, in)
		var once sync.Once
		in.Catalog.Before = func() {
			once.Do(func() {
				in.Catalog.Before = nil
				apply(t, in.Zones["us"], "kind: Plan\nname: free\nspec: {products: [commerce], rate_limit: {requests_per_second: 2}}\n")
			})
		}
		if _, err := steer(t, in.Zones["emea"], apitest.Admin, r.Name(), "pause"); err != nil {
			t.Fatal(err)
		}
		if is := now(t, in); is.State != model.RolloutPaused || is.Round != r.Round+1 || is.Changed != 2 {
			t.Errorf("got %+v, want it paused with both changes", is)
		}
	})
}

// Taking back is no road around the second operator: what would open is left, and no edge holds the roll-out meanwhile.
func TestSteerRollout_AbortAsksTheSecondOperator(t *testing.T) {
	in, z := guarded(t)
	key := model.APIKey("emea", "solo")
	in.Catalog.Put(key, model.Encode(model.API{Name: "solo", Zone: "emea", Hosts: []string{"solo.emea.example.test"}, Policy: "gdpr-emea", Upstreams: []model.Upstream{{Region: "eu-west", URL: "http://127.0.0.1:7301"}}}))
	underWay(t, in)
	if _, err := resourcesAt(z, apitest.Admin).Delete(t.Context(), &adminv1.DeleteRequest{Kind: "api", Name: "emea/solo"}); err != nil {
		t.Fatal(err)
	}
	r := now(t, in)
	got, err := steer(t, z, apitest.Admin, r.Name(), "abort")
	if err != nil || got.GetState() != model.RolloutStopped || got.GetWhy() != rollout.WhyApproval {
		t.Fatalf("got %v, %v; want it stopped: the host comes under a policy that two decide about", got, err)
	}
	if is := now(t, in); is.Reaches(canaryEdge) {
		t.Error("the canary holds what is stopped")
	}
	if _, there := in.Catalog.Local().Get(key); there {
		t.Error("the API was put back by one operator")
	}
	if _, err := steer(t, z, apitest.Admin, r.Name(), "abort"); fault.ReasonOf(err) != rollout.WhyApproval || !strings.Contains(err.Error(), "two operators") {
		t.Errorf("once more: %v, want to be told what to do", err)
	}
	if _, err := steer(t, z, apitest.Admin, r.Name(), "promote"); err != nil {
		t.Errorf("promote: %v", err)
	}
}

// What skips the rings has no soak, and a soak has bounds.
func TestApply_SoakIsBounded(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	underWay(t, in)
	before := in.Catalog.Dump()
	for _, c := range []struct {
		soak time.Duration
		now  bool
	}{{-time.Second, false}, {rollout.MaxSoak + 1, false}, {1 << 62, false}, {time.Minute, true}} {
		_, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, "kind: Plan\nname: free\nspec: {products: [commerce]}\n"), Soak: durationpb.New(c.soak), Now: c.now, Reason: "x"})
		if fault.KindOf(err) != fault.Invalid {
			t.Errorf("soak %s, now %v: got %v, want it refused", c.soak, c.now, err)
		}
	}
	if in.Catalog.Dump() != before {
		t.Error("what was refused changed the catalog")
	}
	if _, err := resourcesAt(z, apitest.Admin).Apply(t.Context(), &adminv1.ApplyRequest{Resources: parse(t, "kind: Plan\nname: free\nspec: {products: [commerce]}\n"), Soak: durationpb.New(rollout.MaxSoak)}); err != nil {
		t.Error(err)
	}
	if r := now(t, in); r.Soak != rollout.MaxSoak {
		t.Errorf("the soak is %s", r.Soak)
	}
}
