package regions

import (
	"fmt"
	"time"
)

// Rules by which a Decision is made: stable names for metrics, logs and tests.
const (
	RuleHome       = "home"
	RulePair       = "pair"
	RuleWithinZone = "within-zone"

	RuleUnknownRegion  = "unknown-region"  // home or target is in no catalog revision this set was built from
	RuleForeignHome    = "foreign-home"    // home lies outside the policy's zone
	RuleNoPolicy       = "no-policy"       // the policy does not exist
	RuleControlOnly    = "control-only"    // one of the two serves nobody
	RulePartition      = "partition"       // the two lie in different partitions
	RuleNoPair         = "no-pair"         // the policy does not say so
	RulePairClosed     = "pair-closed"     // the policy says no
	RuleClass          = "class"           // the pair does not carry this class of data
	RuleBasisSuspended = "basis-suspended" //
	RuleBasisExpired   = "basis-expired"   //
	RuleClosure        = "closure"         // the home zone closed it
	RuleRecovery       = "recovery"        // a recovery closed what crosses zones, and nobody has approved it since
)

// Decision is the answer of Permits.
type Decision struct {
	OK           bool
	Rule         string        // one of the Rule constants
	Basis        string        // legal basis of the pair, where there is a pair
	Closure      string        // id of the closure, for RuleClosure and RuleRecovery
	Priority     int           // of the pair; lower is tried first
	OfflineGrant time.Duration // how long a grant of this pair lasts while the control plane is away

	policy, home, target, class string
}

// Why is the decision as a sentence for people. Built only when asked for: the
// request path does not pay for it.
func (d Decision) Why() string {
	flow := d.home + " to " + d.target
	switch d.Rule {
	case RuleHome:
		return d.home + " is home: serving at home needs no permission"
	case RulePair:
		return fmt.Sprintf("policy %s permits %s for %s data on legal basis %s", d.policy, flow, d.class, d.Basis)
	case RuleWithinZone:
		return fmt.Sprintf("policy %s permits %s for %s data within its zone on legal basis %s", d.policy, flow, d.class, d.Basis)
	case RuleUnknownRegion:
		return fmt.Sprintf("%s is not permitted: one of the two regions is not in the catalog", flow)
	case RuleForeignHome:
		return fmt.Sprintf("%s is not permitted: %s lies outside the zone of policy %s", flow, d.home, d.policy)
	case RuleNoPolicy:
		return fmt.Sprintf("%s is not permitted: there is no policy %q", flow, d.policy)
	case RuleControlOnly:
		return fmt.Sprintf("%s is not permitted: a control-only region serves no requests", flow)
	case RulePartition:
		return fmt.Sprintf("%s is not permitted: the two lie in different partitions, which no policy joins", flow)
	case RuleNoPair:
		return fmt.Sprintf("%s is not permitted: policy %s has no such pair", flow, d.policy)
	case RulePairClosed:
		return fmt.Sprintf("%s is not permitted: policy %s has the pair closed", flow, d.policy)
	case RuleClass:
		return fmt.Sprintf("%s is not permitted: the pair in policy %s does not carry %s data", flow, d.policy, d.class)
	case RuleBasisSuspended:
		return fmt.Sprintf("%s is not permitted: legal basis %s is suspended", flow, d.Basis)
	case RuleBasisExpired:
		return fmt.Sprintf("%s is not permitted: legal basis %s has expired", flow, d.Basis)
	case RuleRecovery:
		return fmt.Sprintf("%s is not permitted: pairs that cross zones are closed since %s, until approved again", flow, d.Closure)
	case RuleClosure:
		return fmt.Sprintf("%s is not permitted: closure %s of the home zone", flow, d.Closure)
	}
	return flow + " is not permitted"
}

// Intersect permits only what both sets permit: what a node does that knows two
// versions of the rules, between the commit of a change and its being in force.
// A denial is the one of the newer set if both deny. Home is judged by the newer
// alone: it is no flow, and a region that was just added must be able to serve.
func Intersect(older, newer *Set, policy, home, target, class string, now time.Time, closures []Closure) Decision {
	n := newer.Permits(policy, home, target, class, now, closures)
	if !n.OK || home == target {
		return n
	}
	o := older.Permits(policy, home, target, class, now, closures)
	if !o.OK {
		return o
	}
	n.OfflineGrant = min(n.OfflineGrant, o.OfflineGrant)
	return n
}
