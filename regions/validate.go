package regions

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Severity of a Finding.
type Severity string

const (
	Error   Severity = "error"   // refuses a write
	Warning Severity = "warning" // is shown with it
)

// Kinds of object, as manifests name them.
const (
	KindRegion     = "Region"
	KindZone       = "Zone"
	KindLegalBasis = "LegalBasis"
	KindPolicy     = "Policy"
)

// Finding is one thing that Validate has to say. It is an error.
type Finding struct {
	Severity Severity
	Kind     string // Kind constant of the object
	Name     string // of the object
	Field    string // path in its manifest: "spec.pairs[2].to"; blank: the object as a whole
	Reason   string // stable: "REGION_UNKNOWN"
	Message  string // a sentence
}

func (f Finding) Error() string { return f.Message }

// Refuses says whether the finding refuses a write of this object (or its
// removal). An error elsewhere that the write causes refuses it too, such as a
// policy left with an unknown region; but a policy whose basis is not in force
// never refuses the write of that basis, or suspending would be impossible, nor
// of anything but the policy itself.
func (f Finding) Refuses(kind, name string) bool {
	if f.Severity != Error {
		return false
	}
	if f.Reason == "BASIS_SUSPENDED" || f.Reason == "BASIS_EXPIRED" {
		return f.Kind == kind && f.Name == name
	}
	return true
}

type report struct{ findings []Finding }

func (r *report) fail(kind, name, field, reason, format string, args ...any) {
	r.findings = append(r.findings, Finding{Error, kind, name, field, reason, fmt.Sprintf(format, args...)})
}

func (r *report) warn(kind, name, field, reason, format string, args ...any) {
	r.findings = append(r.findings, Finding{Warning, kind, name, field, reason, fmt.Sprintf(format, args...)})
}

func pairField(i int, field string) string { return fmt.Sprintf("spec.pairs[%d].%s", i, field) }

// expiresSoon is how long before its end a legal basis is warned about: long
// enough to write a new contract.
const expiresSoon = 90 * 24 * time.Hour

// Validate judges a whole catalog's rules and says what it finds, errors first,
// in sentences. It finds everything at once: nobody likes to fix a file one
// error at a time.
func Validate(regs []Region, zones []Zone, bases []LegalBasis, policies []Policy, now time.Time) []Finding {
	set, found := compile(regs, bases, policies)
	rep := report{findings: found}

	zoneByName := map[string]Zone{}
	for _, z := range zones {
		checkName(&rep, KindZone, z.Name)
		if _, dup := zoneByName[z.Name]; dup {
			rep.fail(KindZone, z.Name, "name", "NAME_DUPLICATE", "zone %s is defined twice", z.Name)
		}
		zoneByName[z.Name] = z
	}
	for _, r := range regs {
		checkName(&rep, KindRegion, r.Name)
		z, known := zoneByName[r.Zone]
		switch {
		case !known:
			rep.fail(KindRegion, r.Name, "spec.zone", "ZONE_UNKNOWN", "region %s belongs to zone %q, which does not exist", r.Name, r.Zone)
		case z.Jurisdiction != "" && r.Jurisdiction != "" && law(z.Jurisdiction) != law(r.Jurisdiction):
			rep.warn(KindRegion, r.Name, "spec.jurisdiction", "JURISDICTION_DIFFERS", "region %s is under the law of %s, its zone %s under that of %s: the zone's data will rest under both", r.Name, r.Jurisdiction, z.Name, z.Jurisdiction)
		}
	}
	for _, b := range bases {
		validateBasis(&rep, b, now)
	}
	for _, p := range policies {
		checkName(&rep, KindPolicy, p.Name)
		if _, known := zoneByName[p.Zone]; !known {
			rep.fail(KindPolicy, p.Name, "spec.zone", "ZONE_UNKNOWN", "policy %s is for zone %q, which does not exist", p.Name, p.Zone)
		}
		validatePolicy(&rep, set, p, bases, now)
	}
	for _, r := range regs {
		if !r.ControlOnly && !hasPartner(set, policies, r, now) {
			rep.warn(KindRegion, r.Name, "", "NO_PARTNER", "%s cannot fail over: no compatible partner", r.Name)
		}
	}
	slices.SortStableFunc(rep.findings, func(a, b Finding) int {
		return cmp.Compare(a.Severity, b.Severity) // "error" < "warning"
	})
	return rep.findings
}

func hasPartner(set *Set, policies []Policy, r Region, now time.Time) bool {
	return slices.ContainsFunc(policies, func(p Policy) bool {
		return p.Zone == r.Zone && len(set.Targets(p.Name, r.Name, DefaultClass, now, nil)) > 0
	})
}

func validateBasis(rep *report, b LegalBasis, now time.Time) {
	checkName(rep, KindLegalBasis, b.Name)
	if !slices.Contains([]string{SameLaw, Adequacy, DPF, SCC, Explicit}, b.Kind) {
		rep.fail(KindLegalBasis, b.Name, "spec.kind", "KIND_INVALID", "legal basis %s: kind %q is none of same-law, adequacy, dpf, scc, explicit", b.Name, b.Kind)
	}
	if b.Status != "" && b.Status != Active && b.Status != Suspended {
		rep.fail(KindLegalBasis, b.Name, "spec.status", "STATUS_INVALID", "legal basis %s: status %q is neither active nor suspended", b.Name, b.Status)
	}
	if left := b.Expires.Sub(now); !b.Expires.IsZero() && left > 0 && left < expiresSoon {
		rep.warn(KindLegalBasis, b.Name, "spec.expires", "BASIS_EXPIRES_SOON", "legal basis %s expires on %s: every pair that rests on it closes then", b.Name, b.Expires.Format(time.DateOnly))
	}
}

func validatePolicy(rep *report, set *Set, p Policy, bases []LegalBasis, now time.Time) {
	basis := func(name string) (LegalBasis, bool) {
		i := slices.IndexFunc(bases, func(b LegalBasis) bool { return b.Name == name })
		if i < 0 {
			return LegalBasis{}, false // compile said so
		}
		return bases[i], true
	}
	inForce := func(name, field string) {
		b, ok := basis(name)
		if !ok {
			return
		}
		switch b.stands(now) {
		case RuleBasisSuspended:
			rep.fail(KindPolicy, p.Name, field, "BASIS_SUSPENDED", "policy %s rests on legal basis %s, which is suspended: close the pair or name another basis", p.Name, name)
		case RuleBasisExpired:
			rep.fail(KindPolicy, p.Name, field, "BASIS_EXPIRED", "policy %s rests on legal basis %s, which expired on %s: close the pair or name another basis", p.Name, name, b.Expires.Format(time.DateOnly))
		}
	}
	if p.OfflineGrant != nil && *p.OfflineGrant < 0 {
		rep.fail(KindPolicy, p.Name, "spec.offline_grant", "OFFLINE_GRANT_INVALID", "policy %s: an offline grant of %v is less than nothing; write 0s for none", p.Name, *p.OfflineGrant)
	}
	if p.OfflineGrant != nil && *p.OfflineGrant > MaxOfflineGrant {
		rep.fail(KindPolicy, p.Name, "spec.offline_grant", "OFFLINE_GRANT_INVALID", "policy %s: an offline grant of %v is more than the %v that a grant may last at most", p.Name, *p.OfflineGrant, MaxOfflineGrant)
	}
	if p.WithinZone {
		inForce(p.WithinZoneBasis, "spec.within_zone.basis")
		checkClasses(rep, p.Name, "spec.within_zone.classes", p.WithinZoneClasses)
		if b, _ := basis(p.WithinZoneBasis); b.Kind == SameLaw {
			var laws []string
			for _, r := range set.regions {
				if l := law(r.Jurisdiction); r.Zone == p.Zone && !r.ControlOnly && l != "" && !slices.Contains(laws, l) {
					laws = append(laws, l)
				}
			}
			if len(laws) > 1 {
				rep.warn(KindPolicy, p.Name, "spec.within_zone.basis", "LAW_DIFFERS", "policy %s calls %s the same law for all of zone %s, whose regions are under those of %s", p.Name, p.WithinZoneBasis, p.Zone, strings.Join(laws, " and "))
			}
		}
	}
	for i, pair := range p.Pairs {
		from, okFrom := set.Region(pair.From)
		to, okTo := set.Region(pair.To)
		known := okFrom && okTo
		if pair.Status != Closed { // a closed pair rests on nothing
			inForce(pair.Basis, pairField(i, "basis"))
		}
		checkClasses(rep, p.Name, pairField(i, "classes"), pair.Classes)
		if pair.Priority < 0 {
			rep.fail(KindPolicy, p.Name, pairField(i, "priority"), "PRIORITY_INVALID", "policy %s: priority %d of %s to %s is below 0; 0 is tried first", p.Name, pair.Priority, pair.From, pair.To)
		}
		for _, r := range []struct {
			field string
			reg   Region
		}{{"from", from}, {"to", to}} {
			if known && r.reg.ControlOnly {
				rep.fail(KindPolicy, p.Name, pairField(i, r.field), "REGION_CONTROL_ONLY", "policy %s pairs %s, which is control-only and serves no requests", p.Name, r.reg.Name)
			}
		}
		b, _ := basis(pair.Basis)
		if known && b.Kind == SameLaw && from.Jurisdiction != "" && to.Jurisdiction != "" && law(from.Jurisdiction) != law(to.Jurisdiction) {
			rep.warn(KindPolicy, p.Name, pairField(i, "basis"), "LAW_DIFFERS", "policy %s calls %s the same law for %s under %s and %s under %s", p.Name, b.Name, from.Name, from.Jurisdiction, to.Name, to.Jurisdiction)
		}
		if known && p.OfflineGrant != nil && *p.OfflineGrant > 0 && from.Zone != to.Zone {
			rep.warn(KindPolicy, p.Name, "spec.offline_grant", "OFFLINE_GRANT_CROSSES", "policy %s keeps %s to %s open for %v after the control plane of %s is lost, across a zone border", p.Name, from.Name, to.Name, *p.OfflineGrant, from.Zone)
		}
		if pair.ReviewBy == "" {
			continue
		}
		due, err := time.Parse(time.DateOnly, pair.ReviewBy)
		switch {
		case err != nil:
			rep.fail(KindPolicy, p.Name, pairField(i, "review_by"), "REVIEW_BY_INVALID", "policy %s: review_by %q is no date of the form 2031-12-27", p.Name, pair.ReviewBy)
		case now.After(due.AddDate(0, 0, 1)): // the day itself is in time
			rep.warn(KindPolicy, p.Name, pairField(i, "review_by"), "REVIEW_OVERDUE", "policy %s: the pair %s to %s was to be reviewed by %s", p.Name, pair.From, pair.To, pair.ReviewBy)
		}
	}
}

// law folds jurisdictions with one law: EU-owned clouds are under the GDPR like
// all of the EEA; the catalogue keeps them apart for whom they answer to.
func law(jurisdiction string) string {
	if jurisdiction == "EEA-SOV" {
		return "EEA"
	}
	return jurisdiction
}

// ValidateChange says what may not change about a region: where it lies and
// under which law. That is a new region, and a drain of the old one.
func ValidateChange(old, new Region) []Finding {
	var rep report
	for _, f := range []struct{ field, old, new string }{
		{"zone", old.Zone, new.Zone},
		{"country", old.Country, new.Country},
		{"jurisdiction", old.Jurisdiction, new.Jurisdiction},
		{"partition", old.partition(), new.partition()},
	} {
		if f.old != f.new {
			rep.fail(KindRegion, old.Name, "spec."+f.field, "REGION_IMMUTABLE", "region %s cannot change its %s from %q to %q: create a new region and drain this one", old.Name, f.field, f.old, f.new)
		}
	}
	return rep.findings
}

// ValidName says whether s is [a-z][a-z0-9-]{0,31}: names go into host names,
// certificates and key text.
func ValidName(s string) bool {
	if len(s) == 0 || len(s) > 32 || s[0] < 'a' || s[0] > 'z' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func checkName(rep *report, kind, name string) {
	if !ValidName(name) {
		rep.fail(kind, name, "name", "NAME_INVALID", "name %q is not a lower-case letter followed by at most 31 of a-z, 0-9 and -", name)
	}
}

func checkClasses(rep *report, policy, field string, classes []string) {
	for i, c := range classes {
		if !ValidName(c) {
			rep.fail(KindPolicy, policy, fmt.Sprintf("%s[%d]", field, i), "CLASS_INVALID", "policy %s: data class %q is not a lower-case letter followed by at most 31 of a-z, 0-9 and -", policy, c)
		}
	}
}
