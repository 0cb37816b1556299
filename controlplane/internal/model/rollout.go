package model

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"
)

// States of a roll-out. Stopped ones are held by no edge.
const (
	RolloutRunning    = "running"
	RolloutPaused     = "paused"
	RolloutStopped    = "stopped"
	RolloutDone       = "done"
	RolloutRolledBack = "rolled-back"
)

// Rollout is how changes of the catalog go out to edges. The documents themselves are as they are to be; what edges hold
// that it has not reached rests below PrefixHeld. Package rollout steers it.
type Rollout struct {
	Number uint64 `json:"number"`
	// Round begins anew when a further change is folded in: words of earlier rounds do not count.
	Round   uint64          `json:"round"`
	By      string          `json:"by,omitempty"` // zone and pseudonym of an operator; "": a control node by itself
	Base    uint64          `json:"base"`         // index of the catalog before the first change
	Target  uint64          `json:"target"`       // of the latest
	State   string          `json:"state"`
	Why     string          `json:"why,omitempty"`    // of package rollout's list
	Edge    string          `json:"edge,omitempty"`   // that failed
	API     string          `json:"api,omitempty"`    // whose requests fail there
	Reason  string          `json:"reason,omitempty"` // an operator's
	Soak    time.Duration   `json:"soak,omitempty"`   // of each ring, at least; 0: as the control nodes are set up
	Began   time.Time       `json:"began"`
	Since   time.Time       `json:"since"`
	Changes []RolloutChange `json:"changes,omitempty"` // at most RolloutListed
	Changed int             `json:"changed"`           // all of them
	Zones   []RolloutZone   `json:"zones,omitempty"`   // those that have begun
}

// Bounds of what is kept of roll-outs.
const (
	RolloutListed = 100 // changes by name
	RolloutsKept  = 50  // ended ones
)

type RolloutChange struct {
	Kind string `json:"kind"`
	Name string `json:"name"`
}

// RolloutZone is how far it has come in one zone: ring 0 is the canary alone, and each further one adds regions.
type RolloutZone struct {
	Zone   string       `json:"zone"`
	Canary string       `json:"canary"`
	Rings  []RegionRing `json:"rings"` // after the canary
	Ring   int          `json:"ring"`  // that has been sent; len(Rings): all have
	Done   bool         `json:"done,omitempty"`
	Away   bool         `json:"away,omitempty"` // nobody waits for it: its leader is silent, or none of its edges is connected
}

type RegionRing struct {
	Regions []string `json:"regions"`
}

// Name is what people call it.
func (r Rollout) Name() string { return fmt.Sprintf("r%d", r.Number) }

// Key is where it rests once it has ended.
func (r Rollout) Key() string { return fmt.Sprintf("%s%020d", PrefixRollout, r.Number) }

// Active says whether edges differ by it.
func (r Rollout) Active() bool {
	return r.State == RolloutRunning || r.State == RolloutPaused || r.State == RolloutStopped
}

// Zone is its part in a zone, nil if it has not begun there.
func (r *Rollout) Zone(name string) *RolloutZone {
	i := slices.IndexFunc(r.Zones, func(z RolloutZone) bool { return z.Zone == name })
	if i < 0 {
		return nil
	}
	return &r.Zones[i]
}

// Reaches says whether an edge is to hold the documents as they are, and not what is kept below PrefixHeld.
func (r *Rollout) Reaches(edge Node) bool {
	z := r.Zone(edge.Zone)
	switch {
	case !r.Active():
		return true
	case r.State == RolloutStopped || z == nil:
		return false
	case z.Canary == "":
		return false
	case z.Done || z.Canary == edge.Name:
		return true
	}
	return slices.ContainsFunc(z.Rings[:min(z.Ring, len(z.Rings))], func(ring RegionRing) bool { return slices.Contains(ring.Regions, edge.Region) })
}

// Held is a document as it was before the roll-out under way.
type Held struct {
	Absent   bool            `json:"absent,omitempty"` // there was none
	ModIndex uint64          `json:"mod_index,omitempty"`
	Value    json.RawMessage `json:"value,omitempty"`
	// Through are what a policy said in between, at most HeldThrough: an edge that is not reached has a pair only if all of them
	// permit it, so that what was tightened and is loosened again goes by rings too.
	Through []json.RawMessage `json:"through,omitempty"`
}

// HeldThrough bounds Held.Through. Beyond it an edge that is not reached has no pair of the policy at all.
const HeldThrough = 8

// RolloutWord is what a zone's leader says of a roll-out.
type RolloutWord struct {
	Zone    string `json:"zone"`
	Number  uint64 `json:"number"`
	Round   uint64 `json:"round"`
	Ring    int    `json:"ring"` // that it speaks of; -1: it names a canary
	Verdict string `json:"verdict"`
	Why     string `json:"why,omitempty"`
	Edge    string `json:"edge,omitempty"`
	API     string `json:"api,omitempty"`
	Canary  string `json:"canary,omitempty"`
	Beat    uint64 `json:"beat"` // counts, so that silence is known
}

// Staged says whether a document of the catalog goes out by rings.
func Staged(key string) bool {
	for _, p := range []string{PrefixRegion, PrefixBasis, PrefixPolicy, PrefixAPI, PrefixProduct, PrefixPlan, PrefixSwitch} {
		if strings.HasPrefix(key, p) {
			return true
		}
	}
	return false
}

// KeyFence is compared and rewritten by every operator's transaction of a group, and by whatever takes documents back, so
// that what a transaction was judged against is what it is committed onto.
const KeyFence = "meta/apply"

// Features of edges that a Switch turns off.
const (
	FeatureHTTP3  = "http3"
	FeatureDetail = "detail"
	FeatureRelay  = "relay"
	FeatureDNS    = "dns"
)

// Switch turns a feature off, everywhere or in one region.
type Switch struct {
	Name    string `json:"name"`
	Feature string `json:"feature"`
	Off     bool   `json:"off"`
	Region  string `json:"region,omitempty"`
	API     string `json:"api,omitempty"` // zone/name, of relay
	Reason  string `json:"reason"`
}

// Validate judges the switch alone.
func (s Switch) Validate() error {
	if err := checkName("switch", s.Name); err != nil {
		return err
	}
	if !slices.Contains([]string{FeatureHTTP3, FeatureDetail, FeatureRelay, FeatureDNS}, s.Feature) {
		return bad("spec.feature", "FEATURE_UNKNOWN", "switch %s: feature %q is none of http3, detail, relay, dns", s.Name, s.Feature)
	}
	if zone, api, ok := strings.Cut(s.API, "/"); s.API != "" && (s.Feature != FeatureRelay || !ok || !ValidName(zone) || !ValidName(api)) {
		return bad("spec.api", "API_INVALID", "switch %s: api is zone/name, and of feature relay alone", s.Name)
	}
	if s.Region != "" && !ValidName(s.Region) {
		return bad("spec.region", "REGION_UNKNOWN", "switch %s: %q names no region", s.Name, s.Region)
	}
	if s.Reason == "" {
		return bad("spec.reason", "REASON_MISSING", "switch %s: say why, for whoever finds it", s.Name)
	}
	return nil
}
