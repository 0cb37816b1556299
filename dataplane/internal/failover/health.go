package failover

import "time"

// Phase is what is believed of a target.
type Phase uint8

const (
	Healthy   Phase = iota // takes traffic
	Suspect                // something failed; new requests go to the pair until a probe answers
	Ejected                // takes no traffic but as the last resort, and then only if its last probe was good
	Returning              // takes a growing share
)

var phaseNames = [...]string{"healthy", "suspect", "ejected", "returning"}

func (p Phase) String() string { return phaseNames[p] }

// Event is what happened to a target.
type Event uint8

const (
	Answered    Event = iota // a request got an answer below 500
	Failed                   // a connection was refused or reset, or an answer did not come in time
	Unavailable              // a request got 502, 503 or 504
	NotAlive                 // a liveness check did not answer within its few milliseconds
	ProbeGood                // a probe got an answer below 500
	ProbeBad                 // a probe got none, a late one, or 5xx
	Tick                     // time has passed
	Erred                    // a request got an answer that is 500 or above and none of 502, 503, 504: for a target's own health it is one
	Late                     // a request got no answer in its time: Failed, unless others got one since it was sent. For Sent.End alone
)

// State is all that is remembered of a target's health. The zero State is a healthy one: a target nobody
// has tried yet gets the benefit of the doubt, and one request finds out.
type State struct {
	Phase   Phase
	Since   time.Duration // when the phase began
	Fails   int           // failed outcomes in a row
	Good    bool          // the last probe was good
	GoodFor time.Duration // Ejected: when the unbroken run of good probes began

	Answers      int           // Ejected: answered in a row while its probes are good, as the last resort
	AnswersSince time.Duration // when the first of them came
}

// Timing of the state machine; see Config for what each costs.
type Timing struct {
	EjectAfter int           // failed outcomes in a row
	GoodFor    time.Duration // unbroken good probes before an ejected target returns
	Ramp       time.Duration // over which a returning one takes back its share

	// An ejected target that is used as the last resort, since no pair takes anything, is home again after so many
	// answers in a row over so long: its traffic is there already, and would only go away and come back.
	HomeAnswers int
	HomeFor     time.Duration
}

// Step is the whole state machine: pure, so that its test is a table.
func Step(s State, e Event, now time.Duration, t Timing) State {
	to := func(p Phase) {
		if s.Phase != p {
			s.Phase, s.Since, s.Answers = p, now, 0
		}
	}
	switch e {
	case Answered, Erred:
		s.Fails = 0
		switch {
		case s.Phase == Suspect:
			to(Healthy)
		case s.Phase == Ejected && s.Good:
			if s.Answers == 0 {
				s.AnswersSince = now
			}
			if s.Answers++; s.Answers >= t.HomeAnswers && now-s.AnswersSince >= t.HomeFor {
				to(Healthy)
			}
		}
	case Failed, Unavailable:
		s.Fails++
		s.Answers = 0
		switch {
		case s.Fails >= t.EjectAfter, s.Phase == Returning && e == Failed:
			to(Ejected)
			s.Good = false
		case s.Phase == Healthy:
			to(Suspect)
		case s.Phase == Ejected && e == Failed:
			s.Good = false
		}
	case NotAlive:
		// A few milliseconds prove nothing: it only keeps new requests away until the probe has spoken.
		if s.Phase == Healthy || s.Phase == Returning {
			to(Suspect)
		}
	case ProbeGood:
		if !s.Good {
			s.Good, s.GoodFor = true, now
		}
		switch {
		case s.Phase == Suspect:
			// Fails stays: a service whose health page smiles while its answers are 503 is ejected all the same.
			to(Healthy)
		case s.Phase == Ejected && now-max(s.GoodFor, s.Since) >= t.GoodFor:
			to(Returning)
			s.Fails = 0
		}
	case ProbeBad:
		s.Good, s.Answers = false, 0
		to(Ejected)
	}
	if s.Phase == Returning && now-s.Since >= t.Ramp {
		to(Healthy)
	}
	return s
}

// Share is the part of new requests a target should get, 0 to 1.
func (s State) Share(now time.Duration, t Timing) float64 {
	switch s.Phase {
	case Healthy:
		return 1
	case Returning:
		// Never none: the ramp is also how the state learns that answers are good.
		return min(1, max(0.05, float64(now-s.Since)/float64(t.Ramp)))
	}
	return 0
}
