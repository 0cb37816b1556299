// Package rollout takes changes of the catalog to edges ring by ring: to one canary edge in each zone, to its region, then
// to the other regions, never to both ends of a pair in one step. It stops and takes back by itself what edges refuse, what
// leaves them unready or lost, and what makes requests fail.
//
// It never decides what an edge may hold: package view does, from the record that this package writes; and it delays
// nothing that tightens the border (DESIGN.md). The record and the words of the zones rest in the catalog and survive any
// crash; what a zone's leader has watched does not, and its successor watches the ring anew. The cores (Stage, Advance,
// Judge) read no clock and do no I/O. Conductor.Run and Watch.Run are called once each.
package rollout

import (
	"errors"
	"fmt"
	"time"
)

// Why a roll-out is where it is. The list is closed: no text of an edge or of a request is in it.
const (
	WhyRefused  = "REFUSED"        // an edge does not take the change
	WhyNotReady = "NOT_READY"      // an edge that held it was not ready for longer than it may
	WhyLost     = "EDGE_LOST"      // an edge that held it went away, or the canary never came back to take it
	WhyFailing  = "FAILING"        // requests fail at an edge that holds it, and fewer do elsewhere and did before
	WhyOperator = "OPERATOR"       // an operator's word
	WhySkipped  = "ZONES_SKIPPED"  // done but in zones that were away; they take it when they return
	WhyFolded   = "FOLDED"         // a further change was folded in
	WhyApproval = "NEEDS_APPROVAL" // nobody holds it, and putting back what was before takes two operators
	WhyReferred = "STILL_REFERRED" // nobody holds it, and something refers to what taking it back would take away
	WhyStuck    = "NOT_TAKEN_BACK" // nobody holds it, and writing back what was before did not work
)

// Verdicts of a zone's word.
const (
	Waiting = "waiting"
	Good    = "good"
	Bad     = "bad"
	Alone   = "alone" // no edge of the zone is connected
)

// Soak is how long a ring is watched, and other limits of time. Zero means the default.
type Soak struct {
	Canary time.Duration // of the canaries; 1 min
	Region time.Duration // of the first region; 1 min
	Rest   time.Duration // of each further ring; 20 s
	Ready  time.Duration // how long an edge that holds the change may be unready; 10 s
	Lost   time.Duration // how long one may be away; 1 min
	Silent time.Duration // how long a zone may say nothing, or have no edge, before the others go on without it; 2 min
}

// WithDefaults fills in what is zero.
func (s Soak) WithDefaults() Soak {
	def := func(d *time.Duration, v time.Duration) {
		if *d == 0 {
			*d = v
		}
	}
	def(&s.Canary, time.Minute)
	def(&s.Region, time.Minute)
	def(&s.Rest, 20*time.Second)
	def(&s.Ready, 10*time.Second)
	def(&s.Lost, time.Minute)
	def(&s.Silent, 2*time.Minute)
	return s
}

// MaxSoak bounds each of them.
const MaxSoak = 7 * 24 * time.Hour

// Validate says what is out of bounds.
func (s Soak) Validate() error {
	for _, d := range []time.Duration{s.Canary, s.Region, s.Rest, s.Ready, s.Lost, s.Silent} {
		if d < 0 || d > MaxSoak {
			return fmt.Errorf("roll-out: a time of %s is below 0 or above %s", d, MaxSoak)
		}
	}
	return nil
}

// All sets every soak to one length, and what may be waited for to a few of it: for installations in one room.
func All(d time.Duration) Soak {
	return Soak{Canary: d, Region: d, Rest: d, Ready: max(5*time.Second, 10*d), Lost: max(20*time.Second, 10*d), Silent: max(10*time.Second, 10*d)}
}

// of is the soak of a ring.
func (s Soak) of(ring int, atLeast time.Duration) time.Duration {
	d := s.Rest
	switch ring {
	case 0:
		d = s.Canary
	case 1:
		d = s.Region
	}
	return max(d, atLeast)
}

// poll is how often a zone's leader looks at its edges while a roll-out is under way.
func (s Soak) poll() time.Duration {
	return max(20*time.Millisecond, min(time.Second, min(s.Canary, s.Region, s.Rest)/4))
}

// beat is how often a zone says that it is there.
func (s Soak) beat() time.Duration { return max(s.poll(), s.Silent/4) }

var errRequired = errors.New("rollout: a required field of the configuration is missing")
