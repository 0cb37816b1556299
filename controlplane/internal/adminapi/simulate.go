package adminapi

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/regions"
	"bailiwick/shared/fault"
)

// Outcomes of a course.
const (
	outcomeHome     = "home"
	outcomeRelay    = "relay"
	outcomeNoRegion = "no-region" // 503
	outcomeNotHome  = "not-home"  // 421
	outcomeKey      = "key"
)

// Simulate asks the rules that edges go by what they would say. It needs no quorum and asks nobody.
func (s *server) Simulate(ctx context.Context, req *adminv1.SimulateRequest) (*adminv1.SimulateResponse, error) {
	cat, zone := state{snap: s.freshOrLocal(ctx, s.Catalog)}, state{snap: s.freshOrLocal(ctx, s.Store)}
	if req.GetKeyId() != "" {
		if err := readKind(ctx, "Customer"); err != nil { // the answer names whose key it is
			return nil, err
		}
	}
	sim := simulation{cat: cat, zone: zone, down: map[string]bool{}, now: time.Now(), name: s.Zone}
	var adopted model.Adopted
	if kv, ok := zone.snap.Get(model.KeyAdopted); ok {
		var err error
		if adopted, err = model.Decode[model.Adopted](kv.Key, kv.Value); err != nil {
			return nil, err
		}
	}
	var err error
	if sim.set, err = adopted.Compile(); err != nil {
		return nil, fault.New(fault.Internal, "ADOPTED_MALFORMED", "compile the adopted rules: %w", err)
	}
	if sim.closures, err = closuresOf(zone, adopted.CatalogEpoch); err != nil {
		return nil, err
	}
	for i, r := range append([]string{req.GetFrom()}, req.GetDown()...) {
		if r == "" {
			continue
		}
		if !cat.has(model.PrefixRegion + r) {
			return nil, fault.New(fault.Invalid, "REGION_UNKNOWN", "region %q does not exist", r)
		}
		sim.down[r] = sim.down[r] || i > 0
	}
	if sim.drains, err = drained(cat, zone); err != nil {
		return nil, err
	}
	apis, err := list[model.API](cat, model.PrefixAPI)
	if err != nil {
		return nil, err
	}
	if req.GetHost() != "" {
		a, err := apiAt(cat, strings.ToLower(strings.TrimSuffix(req.GetHost(), ".")))
		if err != nil {
			return nil, err
		}
		if a.Zone != s.Zone {
			return nil, s.wrongZone("host "+req.GetHost(), a.Zone)
		}
		apis = []model.API{a}
	}
	slices.SortFunc(apis, func(a, b model.API) int { return cmp.Compare(a.Name, b.Name) })
	out := &adminv1.SimulateResponse{}
	for _, a := range apis {
		if a.Zone != s.Zone {
			continue
		}
		courses, err := sim.courses(a, req.GetHost(), req.GetFrom(), req.GetKeyId())
		if err != nil {
			return nil, err
		}
		out.Courses = append(out.Courses, courses...)
	}
	return out, nil
}

// drained are the regions that the catalog or the zone itself has drained, and why.
func drained(cat, zone state) (map[string]string, error) {
	out := map[string]string{}
	regs, err := list[model.Region](cat, model.PrefixRegion)
	if err != nil {
		return nil, err
	}
	for _, r := range regs {
		if r.Drain != "" {
			out[r.Name] = r.Drain
		}
	}
	own, err := list[model.Drain](zone, model.PrefixDrain)
	for _, d := range own {
		out[d.Name] = d.Reason
	}
	return out, err
}

// simulation is all that one answer rests on.
type simulation struct {
	cat, zone state
	name      string // of the zone
	set       *regions.Set
	closures  []regions.Closure
	down      map[string]bool
	drains    map[string]string // regions that are drained, and why: it moves clients and decides no relay
	now       time.Time
}

// courses of one API: from one region, or from each that is home.
func (m simulation) courses(a model.API, host, from, keyID string) ([]*adminv1.Course, error) {
	var deployed, homes []string
	for _, u := range a.Upstreams {
		if slices.Contains(deployed, u.Region) {
			continue
		}
		deployed = append(deployed, u.Region)
		r, ok, err := get[model.Region](m.cat, model.PrefixRegion+u.Region)
		if err != nil {
			return nil, err
		}
		if ok && r.Zone == m.name && !r.ControlOnly {
			homes = append(homes, u.Region)
		}
	}
	slices.Sort(homes)
	if host == "" && len(a.Hosts) > 0 {
		host = a.Hosts[0]
	}
	whence := homes
	if from != "" {
		whence = []string{from}
	}
	refused, sold, err := m.key(a, keyID)
	if err != nil {
		return nil, err
	}
	var out []*adminv1.Course
	for _, home := range whence {
		c := &adminv1.Course{Host: host, Api: a.Name, Policy: a.Policy, Home: home, KeyWhy: cmp.Or(refused, sold), Drain: m.drains[home]}
		var last []string // drained ones are named when nobody else is left
		for _, h := range homes {
			switch {
			case h == home || m.down[h]:
			case m.drains[h] != "":
				last = append(last, h)
			default:
				c.LedTo = append(c.LedTo, h)
			}
		}
		if len(c.LedTo) == 0 {
			if c.LedTo = last; c.Drain != "" && !m.down[home] { // then home is as good as they
				c.LedTo = append(c.LedTo, home)
				slices.Sort(c.LedTo)
			}
		}
		out = append(out, c)
		switch {
		case !slices.Contains(homes, home):
			c.Outcome, c.Why = outcomeNotHome, fmt.Sprintf("%s is not home to customers of zone %s for API %s: it accepts nothing and answers 421", home, m.name, a.Name)
			continue
		case refused != "":
			c.Outcome, c.Why = outcomeKey, refused
			continue
		}
		course := m.set.Course(a.Policy, home, "", deployed, m.down, m.now, m.closures)
		switch course.Serves {
		case "":
			if _, adopted := m.set.Region(home); !adopted && !m.down[home] {
				c.Outcome, c.ServedBy, c.Why = outcomeHome, home, home+" is home: serving there needs no permission; the zone has not adopted it yet, so nothing is relayed"
				break
			}
			c.Outcome, c.Why = outcomeNoRegion, "no permitted region is up: the answer is 503, never another region"
		case home:
			c.Outcome, c.ServedBy, c.Why = outcomeHome, home, course.By.Why()
		default:
			c.Outcome, c.ServedBy, c.Basis, c.Why = outcomeRelay, course.Serves, course.By.Basis, course.By.Why()
		}
		for _, p := range course.Passed {
			r := &adminv1.CourseRegion{Region: p.Region, Permitted: p.Decision.OK, Down: p.Down, Basis: p.Decision.Basis, Why: p.Decision.Why(), Drain: m.drains[p.Region]}
			switch {
			case p.Down && p.Decision.OK:
				r.Why = "down; " + r.Why
			case p.Decision.OK:
				r.Why = "not needed: " + course.Serves + " comes first; " + r.Why
			}
			c.Passed = append(c.Passed, r)
		}
	}
	return out, nil
}

// key says why a key may not use an API, or through which product it may. It knows keys by id and never sees one.
func (m simulation) key(a model.API, id string) (refused, sold string, err error) {
	if id == "" {
		return "", "", nil
	}
	k, ok, err := stored[model.Key](m.zone.snap, model.PrefixKey+id)
	switch {
	case err != nil:
		return "", "", err
	case !ok:
		return "zone " + m.name + " does not know key " + id + ": 401", "", nil
	case k.Status != keyActive:
		return "key " + id + " is " + k.Status + ": 401", "", nil
	}
	if end, ends, err := stored[model.KeyEnd](m.zone.snap, model.PrefixKeyEnd+id); err != nil {
		return "", "", err
	} else if ends && !time.Now().Before(end.At) {
		return "key " + id + " ended at " + end.At.Format(time.RFC3339) + ", " + end.ReplacedBy + " took its place: 401", "", nil
	}
	customer, ok, err := get[model.Customer](m.zone, model.PrefixCustomer+k.Customer)
	if err != nil {
		return "", "", err
	}
	if !ok || customer.Status == "suspended" {
		return "customer " + k.Customer + " is suspended or gone: 403", "", nil
	}
	plan, ok, err := get[model.Plan](m.cat, model.PrefixPlan+k.Plan)
	if err != nil || !ok {
		return "plan " + k.Plan + " does not exist: 403", "", err
	}
	for _, name := range plan.Products {
		product, _, err := get[model.Product](m.cat, model.PrefixProduct+name)
		if err != nil {
			return "", "", err
		}
		if slices.Contains(product.APIs, a.Name) {
			return "", fmt.Sprintf("key %s of customer %s: plan %s sells API %s through product %s", id, k.Customer, k.Plan, a.Name, name), nil
		}
	}
	return fmt.Sprintf("plan %s of key %s does not sell API %s: 403", k.Plan, id, a.Name), "", nil
}
