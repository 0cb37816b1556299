package main

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"bailiwick/controlplane/internal/model"
)

func TestSet_WritesFieldsAlone(t *testing.T) {
	d := seeded(t)
	var plan struct {
		Etag string
		Spec struct {
			Products []string
			Quota    struct{ Units int64 }
			Limit    *struct{ Burst int } `json:"rate_limit"`
		}
	}
	d.must(nil, "set", "plan", "free", "quota.units=77", "rate_limit=")
	if d.must(&plan, "get", "plan", "free", "-o", "json"); plan.Spec.Quota.Units != 77 || plan.Spec.Limit != nil || len(plan.Spec.Products) != 1 {
		t.Errorf("after set: %+v", plan)
	}
	d.must(nil, "set", "customer", "acme", "display_name=Acme & Söhne", "--etag", "")
	was := d.state()
	for want, args := range map[string][]string{
		"unknown field spec.quota.colour":    {"plan", "free", "quota.colour=1"},
		"is not a whole number":              {"plan", "free", "quota.units=many"},
		"is not FIELD=VALUE":                 {"plan", "free", "quota"},
		"given twice":                        {"plan", "free", "quota=1", "quota.units=2"},
		"is no YAML value":                   {"plan", "free", "quota=[1"},
		"ETAG_MISMATCH":                      {"plan", "free", "quota.units=1", "--etag", "1"},
		"does not exist":                     {"plan", "nobody", "quota.units=1"},
		"anchors and aliases are not read":   {"plan", "free", "price=&a x"},
		"spec.quota.period: must be in list": {"plan", "free", "quota.period=fortnight"},
	} {
		if code, _, errs := d.run("", append([]string{"set"}, args...)...); code == exitOK || !strings.Contains(errs, want) {
			t.Errorf("set %v: exit %d, %s; want %q", args, code, errs, want)
		}
	}
	if d.state() != was {
		t.Error("a refused set changed something")
	}
}

func TestKey_RotateAndTheTwoStepsBack(t *testing.T) {
	d := seeded(t)
	var old, fresh struct{ ID, Key string }
	d.must(&old, "key", "create", "--customer", "acme", "--plan", "gold", "-o", "json")
	d.must(&fresh, "key", "rotate", old.ID, "--overlap", "1h", "-o", "json")
	var list []struct {
		ID, Status, Subscription string
		Ends                     string `json:"expires_at"`
		ReplacedBy               string `json:"replaced_by"`
	}
	if d.must(&list, "key", "list", "--filter", "replaced_by="+fresh.ID, "-o", "json"); len(list) != 1 || list[0].ID != old.ID || list[0].Ends == "" || list[0].Status != "active" {
		t.Errorf("the old key: %+v", list)
	}
	if code, out, errs := d.run("", "key", "rotate", old.ID, "--undo"); code != exitOK || !strings.Contains(out, "key revoke "+fresh.ID) {
		t.Errorf("undo: exit %d, %s%s", code, out, errs)
	}
	d.must(nil, "key", "revoke", fresh.ID)
	if d.must(&list, "key", "list", "--filter", "status=active", "--customer", "acme", "-o", "json"); len(list) != 1 || list[0].ID != old.ID || list[0].Ends != "" {
		t.Errorf("after both steps: %+v", list)
	}
}

// A list that takes several pages is one list to who asks.
func TestGet_TakesAllPages(t *testing.T) {
	d := seeded(t)
	for i := range 2500 {
		name := fmt.Sprintf("p%04d", i)
		if i%10 == 0 { // the store of tests copies itself on each write
			d.in.Catalog.Put(model.PrefixProduct+name, model.Encode(model.Product{Name: name, APIs: []string{"orders"}, Summary: strings.Repeat("x", 30<<10)}))
		}
	}
	var all []any
	if d.must(&all, "get", "products", "-o", "json", "--filter", "name=p*"); len(all) != 250 {
		t.Errorf("%d products, want 250", len(all))
	}
}

func TestDescribe_TellsWhoRefersAndHolds(t *testing.T) {
	d := newDesk(t, time.Second)
	d.must(nil, "apply", "-f", d.manifests(), "--now", "--reason", "nobody takes it from ring to ring here")
	var out described
	d.must(&out, "describe", "plan", "gold", "--since", "0", "-o", "json")
	if len(out.RefersTo) == 0 || len(out.ReferredBy) == 0 || len(out.Holders) == 0 || out.Writes == 0 {
		t.Errorf("described: %+v", out)
	}
	if text := d.must(nil, "describe", "plan", "gold", "--since", "0"); !strings.Contains(text, "kind: Plan") || !strings.Contains(text, "REFERRED-BY") || !strings.Contains(text, "HELD-BY") {
		t.Errorf("said:\n%s", text)
	}
	if code, _, _ := d.run("", "describe", "plan", "nobody", "--since", "0"); code != exitNotFound {
		t.Errorf("what is not there: exit %d", code)
	}
}

// Labels are set like any field, and -o wide shows them.
func TestLabels_SetAndShown(t *testing.T) {
	d := seeded(t)
	d.must(nil, "set", "customer", "acme", "labels=[tier=1, team=billing]")
	var key struct{ ID string }
	d.must(&key, "key", "create", "--customer", "acme", "--plan", "gold", "--label", "app=web", "--label", "env=test", "-o", "json")
	for _, args := range [][]string{{"get", "customers", "--filter", "labels.team=billing"}, {"key", "list", "--filter", "labels.env=test"}} {
		want, name := "team=billing,tier=1", "acme"
		if args[0] == "key" {
			want, name = "app=web,env=test", key.ID
		}
		code, out, errs := d.run("", append(args, "-o", "wide")...)
		if lines := strings.Split(strings.TrimSpace(out), "\n"); code != exitOK || len(lines) != 2 || !strings.HasSuffix(lines[0], "LABELS") || !strings.HasPrefix(lines[1], name) || !strings.HasSuffix(lines[1], want) {
			t.Errorf("%v -o wide: exit %d, %s%s", args, code, out, errs)
		}
		if _, out, _ := d.run("", args...); strings.Contains(out, want) {
			t.Errorf("%v: a table shows labels without being asked: %s", args, out)
		}
		if _, out, _ := d.run("", append(args, "-o", "json")...); !strings.Contains(out, strings.Split(want, ",")[0]) {
			t.Errorf("%v -o json has no labels: %s", args, out)
		}
	}
}
