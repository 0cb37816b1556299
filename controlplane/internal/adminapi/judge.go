package adminapi

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/calendar"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/regions"
	"bailiwick/regions/catalog"
	"bailiwick/shared/fault"
)

// judge holds a request against everything it refers to and everything that refers to it.
type judge struct {
	zone                   string
	now                    time.Time
	catalogBefore, catalog state
	zoneBefore, zoneAfter  state
	plan                   *plan
}

func (j *judge) warn(format string, args ...any) {
	if w := fmt.Sprintf(format, args...); !slices.Contains(j.plan.warnings, w) {
		j.plan.warnings = append(j.plan.warnings, w)
	}
}

func (j *judge) judge() error {
	if err := j.border(); err != nil {
		return err
	}
	hosts, zoneOfHost, err := j.hosts()
	if err != nil {
		return err
	}
	for _, d := range j.plan.docs {
		var err error
		switch v := d.rec.(type) {
		case model.API:
			if err = j.api(d, v); err == nil {
				err = j.apiHosts(d, v, hosts, zoneOfHost)
			}
			if err == nil {
				err = j.claims(d, v)
			}
		case model.Region:
			err = j.networks(v)
		case model.Product:
			err = j.product(d, v)
		case model.Plan:
			err = j.planOf(d, v)
		case model.Switch:
			err = j.switchOf(d, v)
		case model.Customer:
			err = j.customer(d, v)
		case model.Closure:
			err = j.closure(d, v)
		case model.Drain:
			err = j.drain(d, v)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// rules are the border rules of a state.
type rules struct {
	regions  []regions.Region
	zones    []regions.Zone
	bases    []regions.LegalBasis
	policies []regions.Policy
	set      *regions.Set
}

func rulesOf(s state) (rules, error) {
	var r rules
	regs, err := list[model.Region](s, model.PrefixRegion)
	if err != nil {
		return r, err
	}
	bases, err := list[model.LegalBasis](s, model.PrefixBasis)
	if err != nil {
		return r, err
	}
	policies, err := list[model.Policy](s, model.PrefixPolicy)
	if err != nil {
		return r, err
	}
	zones, err := list[model.Zone](s, model.PrefixZone)
	if err != nil {
		return r, err
	}
	slices.SortFunc(regs, func(a, b model.Region) int { return cmp.Compare(a.Name, b.Name) })
	for _, z := range zones {
		r.zones = append(r.zones, regions.Zone{Name: z.Name, Jurisdiction: z.Jurisdiction})
	}
	if r.regions, r.bases, r.policies, err = model.Rules(regs, bases, policies); err != nil {
		return r, err
	}
	return r, nil
}

func (r *rules) compile() (err error) {
	r.set, err = regions.Compile(r.regions, r.bases, r.policies)
	return err
}

// border judges regions, bases and policies as a whole, and tells which flows the request opens and closes.
func (j *judge) border() error {
	before, err := rulesOf(j.catalogBefore)
	if err != nil {
		return err
	}
	after, err := rulesOf(j.catalog)
	if err != nil {
		return err
	}
	for _, d := range j.plan.docs {
		r, ok := d.rec.(model.Region)
		if !ok {
			continue
		}
		if old, exists, err := get[model.Region](j.catalogBefore, d.key); err != nil {
			return err
		} else if exists {
			if found := regions.ValidateChange(old.Rule(), r.Rule()); len(found) > 0 {
				return d.errorf(fault.Conflict, found[0].Field, found[0].Reason, "%s", found[0].Message)
			}
		}
		for _, f := range catalog.Check(r.Rule()) {
			j.warn("%s", f.Message)
		}
	}
	known := map[regions.Finding]bool{}
	for _, f := range regions.Validate(before.regions, before.zones, before.bases, before.policies, j.now) {
		known[f] = true
	}
	for _, f := range regions.Validate(after.regions, after.zones, after.bases, after.policies, j.now) {
		d := j.doc(f.Kind, f.Name)
		written := d != nil && d.change.Action != unchanged
		switch {
		case f.Severity == regions.Warning:
			if d != nil || !known[f] {
				j.warn("%s", f.Message)
			}
		case written && f.Refuses(d.kind.Name, d.name):
			return d.errorf(fault.Invalid, f.Field, f.Reason, "%s", f.Message)
		case known[f] && !written:
			// It stood there before; this request is not to blame, and may be the repair of something else.
		case f.Refuses("", ""):
			return fault.New(fault.Invalid, f.Reason, "%s", f.Message).With("kind_of", f.Kind).With("name", f.Name)
		default:
			j.warn("%s", f.Message) // a basis stops: the policies that rest on it close, as they should
		}
	}
	if before.compile() != nil {
		return nil // nothing to compare with; what is refused above was refused already
	}
	if err := after.compile(); err != nil {
		return fault.New(fault.Invalid, "RULES_INVALID", "the border rules do not compile: %w", err)
	}
	return j.flows(before.set, after.set)
}

func (j *judge) doc(kind, name string) *doc {
	for _, d := range j.plan.docs {
		if d.kind.Name == kind && d.name == name {
			return d
		}
	}
	return nil
}

// closuresOf is what the zone has closed under rules of an epoch of the catalog.
func closuresOf(s state, catalogEpoch uint64) ([]regions.Closure, error) {
	listed, err := list[model.Closure](s, model.PrefixClosure)
	if err != nil {
		return nil, err
	}
	crossing, ok, err := stored[model.Crossing](s.snap, model.KeyCrossing)
	if laid, over := s.overlay[model.KeyCrossing]; over && laid != nil {
		crossing, ok = laid.(crossingRecord).Crossing, true
	}
	if err != nil || !ok {
		return model.Closures(listed, nil, model.Adopted{}, 0), err
	}
	return model.Closures(listed, &crossing, model.Adopted{CatalogEpoch: catalogEpoch}, s.snap.Revision().Epoch), nil
}

func (j *judge) flows(before, after *regions.Set) error {
	was, err := closuresOf(j.zoneBefore, j.catalogBefore.snap.Revision().Epoch)
	if err != nil {
		return err
	}
	is, err := closuresOf(j.zoneAfter, j.catalog.snap.Revision().Epoch)
	if err != nil {
		return err
	}
	for _, c := range regions.Diff(regions.State{Set: before, Closures: was}, regions.State{Set: after, Closures: is}, j.now) {
		set, closures := after, is
		if !c.Opens {
			set, closures = before, was // on what it rested
		}
		basis := set.Permits(c.Policy, c.From, c.To, c.Class, j.now, closures).Basis
		flow := &adminv1.Flow{Policy: c.Policy, From: c.From, To: c.To, Allowed: c.Opens, Basis: basis}
		if !slices.ContainsFunc(j.plan.flows, func(o *adminv1.Flow) bool {
			return o.Policy == flow.Policy && o.From == flow.From && o.To == flow.To && o.Allowed == flow.Allowed
		}) {
			j.plan.flows = append(j.plan.flows, flow)
		}
	}
	return nil
}

// hosts indexes all host names of the catalog, and the zone to which each belongs.
func (j *judge) hosts() (map[string]string, map[string]string, error) {
	owners, zones := map[string]string{}, map[string]string{}
	apis, err := list[model.API](j.catalog, model.PrefixAPI)
	if err != nil {
		return nil, nil, err
	}
	// The stored owner comes first, so that a document of the request never takes a host by its order.
	slices.SortFunc(apis, func(a, b model.API) int {
		return cmp.Or(cmp.Compare(laid(j.catalog, a), laid(j.catalog, b)), cmp.Compare(a.Zone+"/"+a.Name, b.Zone+"/"+b.Name))
	})
	for _, a := range apis {
		for _, h := range a.Hosts {
			if _, taken := owners[h]; !taken {
				owners[h], zones[h] = a.Zone+"/"+a.Name, a.Zone
			}
		}
	}
	return owners, zones, nil
}

func laid(s state, a model.API) int {
	if _, ok := s.overlay[model.APIKey(a.Zone, a.Name)]; ok {
		return 1
	}
	return 0
}

func (j *judge) apiHosts(d *doc, a model.API, owners, zones map[string]string) error {
	for i, h := range a.Hosts {
		if owner := owners[h]; owner != a.Zone+"/"+a.Name {
			return d.errorf(fault.Conflict, fmt.Sprintf("spec.hosts[%d]", i), "HOST_TAKEN",
				"API %s: host %s belongs to API %s of zone %s: one host name, one zone, one biller", a.Name, h, strings.TrimPrefix(owner, zones[h]+"/"), zones[h])
		}
	}
	return nil
}

// claims holds all APIs of a zone to one claim of an issuer. A key is bound to an issuer and a value: where one API reads the
// value out of sub and another out of a claim that its holder chooses, whoever chooses well is somebody else there.
func (j *judge) claims(d *doc, a model.API) error {
	of := func(a model.API) map[string]string {
		m := map[string]string{}
		if auth := a.Callers(); auth != nil {
			for _, i := range auth.Issuers {
				m[i.Issuer] = i.Claim
			}
		}
		return m
	}
	mine := of(a)
	if len(mine) == 0 {
		return nil
	}
	apis, err := list[model.API](j.catalog, model.PrefixAPI)
	if err != nil {
		return err
	}
	for _, other := range apis {
		if other.Zone != a.Zone || other.Name == a.Name {
			continue
		}
		theirs := of(other)
		for i, issuer := range a.Auth.Issuers {
			if claim, is := theirs[issuer.Issuer]; is && claim != mine[issuer.Issuer] {
				return d.errorf(fault.Conflict, fmt.Sprintf("spec.auth.issuers[%d].claim", i), "CLAIM_DIFFERS",
					"API %s knows callers of issuer %s by claim %s, API %s by %s: a key is bound to an issuer and a value, so all APIs of a zone take it from one claim; change both in one apply", a.Name, issuer.Issuer, mine[issuer.Issuer], other.Name, claim)
			}
		}
	}
	return nil
}

func (j *judge) api(d *doc, a model.API) error {
	if !j.catalog.has(model.PrefixZone + a.Zone) {
		return d.errorf(fault.Invalid, "spec.zone", "ZONE_UNKNOWN", "API %s is of zone %q, which does not exist", a.Name, a.Zone)
	}
	var policy model.Policy
	if a.Policy == "" {
		j.warn("API %s of zone %s names no policy: it cannot fail over", a.Name, a.Zone)
	} else {
		var ok bool
		var err error
		if policy, ok, err = get[model.Policy](j.catalog, model.PrefixPolicy+a.Policy); err != nil {
			return err
		}
		if !ok {
			return d.errorf(fault.Invalid, "spec.policy", "POLICY_UNKNOWN", "API %s: policy %q does not exist", a.Name, a.Policy)
		}
		if policy.Zone != a.Zone {
			return d.errorf(fault.Invalid, "spec.policy", "POLICY_FOREIGN", "API %s is of zone %s, but policy %s is of zone %s", a.Name, a.Zone, a.Policy, policy.Zone)
		}
	}
	home := false
	for i, u := range a.Upstreams {
		field := fmt.Sprintf("spec.upstreams[%d].region", i)
		r, ok, err := get[model.Region](j.catalog, model.PrefixRegion+u.Region)
		switch {
		case err != nil:
			return err
		case !ok:
			return d.errorf(fault.Invalid, field, "REGION_UNKNOWN", "API %s: region %q does not exist", a.Name, u.Region)
		case r.ControlOnly:
			return d.errorf(fault.Invalid, field, "REGION_CONTROL_ONLY", "API %s: region %s is control-only and serves no requests", a.Name, u.Region)
		case r.Zone == a.Zone:
			home = true
			j.outside(a, u, r)
		case d.change.Action != unchanged && !slices.ContainsFunc(policy.Pairs, func(p model.Pair) bool { return p.To == r.Name }):
			// Asked of what is written now only: closing a pair must never be refused for an upstream behind it.
			return d.errorf(fault.Invalid, field, "REGION_UNREACHABLE",
				"API %s: region %s is of zone %s, and no pair of its policy %s leads there", a.Name, u.Region, r.Zone, or(a.Policy, "(none)"))
		}
	}
	switch {
	case len(a.Upstreams) == 0:
		j.warn("API %s of zone %s has no upstream: every request is answered 503", a.Name, a.Zone)
	case !home:
		j.warn("API %s has no upstream in a region of its zone %s: nobody accepts its requests", a.Name, a.Zone)
	}
	if len(a.Routes) == 0 {
		j.warn("API %s of zone %s has no route: every request is answered 404", a.Name, a.Zone)
	}
	for _, text := range a.Careless() {
		j.warn("%s", text)
	}
	return nil
}

// networks warns of upstreams that a region's networks leave out: their edges stop dialling them at once.
func (j *judge) networks(r model.Region) error {
	if len(r.UpstreamNetworks) == 0 {
		return nil
	}
	apis, err := list[model.API](j.catalog, model.PrefixAPI)
	if err != nil {
		return err
	}
	for _, a := range apis {
		for _, u := range a.Upstreams {
			if u.Region == r.Name {
				j.outside(a, u, r)
			}
		}
	}
	return nil
}

// outside warns of an upstream whose address is written down; where a name leads edges alone see.
func (j *judge) outside(a model.API, u model.Upstream, r model.Region) {
	if !r.Takes(u) {
		j.warn("API %s of zone %s: upstream %s is outside of the upstream_networks of region %s: its edges do not send requests there", a.Name, a.Zone, u.URL, r.Name)
	}
}

func (j *judge) product(d *doc, p model.Product) error {
	apis, err := list[model.API](j.catalog, model.PrefixAPI)
	if err != nil {
		return err
	}
	for i, name := range p.APIs {
		if !slices.ContainsFunc(apis, func(a model.API) bool { return a.Name == name }) {
			return d.errorf(fault.Invalid, fmt.Sprintf("spec.apis[%d]", i), "API_UNKNOWN", "product %s: API %q does not exist in any zone", p.Name, name)
		}
	}
	return nil
}

// knownTimeZone refuses what is no IANA zone: periods of quotas could not begin in it.
func knownTimeZone(name string) error {
	if _, err := calendar.Load(name); err != nil {
		return fmt.Errorf("time zone %q does not exist; write an IANA name such as Europe/Berlin, or leave it out for UTC", name)
	}
	return nil
}

func (j *judge) planOf(d *doc, p model.Plan) error {
	for i, name := range p.Products {
		if !j.catalog.has(model.PrefixProduct + name) {
			return d.errorf(fault.Invalid, fmt.Sprintf("spec.products[%d]", i), "PRODUCT_UNKNOWN", "plan %s: product %q does not exist", p.Name, name)
		}
	}
	return nil
}

func (j *judge) customer(d *doc, c model.Customer) error {
	if gone, was, err := stored[model.Gone](j.zoneBefore.snap, model.PrefixGone+c.Name); err != nil {
		return err
	} else if was && !gone.Erased.IsZero() {
		return d.errorf(fault.Conflict, "name", "CUSTOMER_ERASED", "customer %s was erased on %s, and what still arrives of that one is dropped: choose another name", c.Name, gone.Erased.Format(time.DateOnly))
	}
	if err := knownTimeZone(c.TimeZone); err != nil {
		return d.errorf(fault.Invalid, "spec.time_zone", "TIME_ZONE_UNKNOWN", "customer %s: %w", c.Name, err)
	}
	for i, sub := range c.Subscriptions {
		if !j.catalog.has(model.PrefixPlan + sub.Plan) {
			return d.errorf(fault.Invalid, fmt.Sprintf("spec.subscriptions[%d].plan", i), "PLAN_UNKNOWN", "customer %s: plan %q does not exist", c.Name, sub.Plan)
		}
	}
	old, exists, err := get[model.Customer](j.zoneBefore, d.key)
	if err != nil || !exists {
		return err
	}
	var gone []string
	for _, sub := range old.Subscriptions {
		if !slices.ContainsFunc(c.Subscriptions, func(s model.Subscription) bool { return s.Name == sub.Name }) {
			gone = append(gone, sub.Name)
		}
	}
	if len(gone) == 0 {
		return nil
	}
	ids, err := activeKeys(j.zoneBefore, func(k model.Key) bool { return k.Customer == c.Name && slices.Contains(gone, k.Subscription) })
	if err != nil {
		return err
	}
	if len(ids) > 0 {
		return d.errorf(fault.Conflict, "spec.subscriptions", "IN_USE", "customer %s: subscription %s cannot go while it has active keys: revoke %s first",
			c.Name, strings.Join(gone, ", "), some(ids))
	}
	fence := keysFence(c.Name)
	j.plan.zoneCompares = append(j.plan.zoneCompares, compareAt(j.zoneBefore, fence))
	return nil
}

func (j *judge) closure(d *doc, c model.Closure) error {
	for _, f := range []struct{ field, region string }{{"spec.from", c.From}, {"spec.to", c.To}} {
		if f.region != "" && !j.catalog.has(model.PrefixRegion+f.region) {
			return d.errorf(fault.Invalid, f.field, "REGION_UNKNOWN", "closure %s: region %q does not exist", c.Name, f.region)
		}
	}
	if c.Basis != "" && !j.catalog.has(model.PrefixBasis+c.Basis) {
		return d.errorf(fault.Invalid, "spec.basis", "BASIS_UNKNOWN", "closure %s: legal basis %q does not exist", c.Name, c.Basis)
	}
	if c.From != "" && c.To == "" && c.Basis == "" {
		j.warn("closure %s closes every pair that leaves %s", c.Name, c.From)
	}
	return nil
}

// drain takes regions of the zone that clients come to. It rests on this node's copy of the catalog if that has no
// quorum: a region that is newer than that cannot be drained here yet.
func (j *judge) drain(d *doc, v model.Drain) error {
	r, known, err := get[model.Region](j.catalog, model.PrefixRegion+v.Name)
	switch {
	case err != nil:
		return err
	case !known || r.Zone != v.Zone:
		return d.errorf(fault.Invalid, "name", "REGION_UNKNOWN", "zone %s has no region %q to drain", v.Zone, v.Name)
	case r.ControlOnly:
		return d.errorf(fault.Invalid, "name", "REGION_CONTROL_ONLY", "region %s serves no clients: there is nothing to drain", v.Name)
	}
	return nil
}

// some names the first few of many.
func some(list []string) string {
	if len(list) > 5 {
		return strings.Join(list[:5], ", ") + fmt.Sprintf(" and %d more", len(list)-5)
	}
	return strings.Join(list, ", ")
}

// switchOf refuses a switch of what there is not: whoever throws it in a hurry would wait for an effect that never comes.
func (j *judge) switchOf(d *doc, v model.Switch) error {
	if v.Region != "" && !j.catalog.has(model.PrefixRegion+v.Region) {
		return d.errorf(fault.Invalid, "spec.region", "REGION_UNKNOWN", "switch %s: region %s does not exist", v.Name, v.Region)
	}
	if v.API != "" && !j.catalog.has(model.PrefixAPI+v.API) {
		return d.errorf(fault.Invalid, "spec.api", "API_UNKNOWN", "switch %s: API %s does not exist; it is named zone/name", v.Name, v.API)
	}
	return nil
}
