package grant_test

import (
	"slices"
	"testing"
	"time"

	"bailiwick/regions/grant"
)

const (
	ttl     = 30 * time.Second
	offline = time.Hour
)

var (
	start = time.Unix(1_000_000, 0)
	west  = grant.Tightening{From: "west", To: "central", Epoch: 1, Barrier: 10}
)

// zone has the regions west and central, with an edge each.
func zone() grant.Ground {
	return grant.Ground{
		Own:     func(region string) (bool, bool) { return region != "abroad", true },
		Members: func(region string) []string { return []string{region + "-edge"} },
	}
}

func run(edge, incarnation string) grant.Process {
	return grant.Process{Edge: edge, Incarnation: incarnation}
}

// book is a leader's, some time after anything it had to assume has lapsed.
func book() (*grant.Book, time.Time) {
	b := grant.Open(grant.Past{Edges: map[string]string{"west-edge": "west", "central-edge": "central"}, Rules: []grant.Life{{To: "central", Lasts: offline}, {To: "west", Lasts: offline}}}, ttl, start)
	return b, start.Add(2 * offline)
}

func word(p grant.Process, region string, index uint64, at time.Time) grant.Word {
	return grant.Word{Process: p, Region: region, By: "n1", Connected: true, Spoke: at, Epoch: 1, Index: index}
}

// acks makes a process acknowledge at a time, and says what holds when it has had the time to cut.
func acks(b *grant.Book, p grant.Process, region string, at time.Time) time.Time {
	b.Hear(word(p, region, west.Barrier, at), at)
	b.InForce(west, zone(), at)
	return at.Add(grant.Cut)
}

func wants(t *testing.T, b *grant.Book, now time.Time, by string, waiting ...string) {
	t.Helper()
	gotBy, gotWaiting := b.InForce(west, zone(), now)
	if gotBy != by || !slices.Equal(gotWaiting, waiting) {
		t.Errorf("%v after the start: in force by %q, waiting for %v; want %q, %v", now.Sub(start), gotBy, gotWaiting, by, waiting)
	}
}

func TestBook_AnAckCountsForItsProcessAlone(t *testing.T) {
	b, now := book()
	b.Give(run("west-edge", "a"), "west", []grant.Life{{To: "central", Lasts: offline}}, 0, now)
	given := now.Add(time.Second)
	b.Give(run("west-edge", "b"), "west", []grant.Life{{To: "central", Lasts: offline}}, 0, given) // the twin, cut off from here on
	now = acks(b, run("west-edge", "a"), "west", given)
	wants(t, b, now, "", "west-edge")
	wants(t, b, given.Add(offline), "", "west-edge")
	wants(t, b, given.Add(grant.Slack(offline)), "senders")
}

func TestBook_ARestartEndsWhatTheRunBeforeHeld(t *testing.T) {
	b, now := book()
	b.Give(run("west-edge", "a"), "west", []grant.Life{{To: "central", Lasts: offline}}, 0, now)
	b.Bury("west-edge", []string{"a"}, now)
	b.Hear(word(run("west-edge", "b"), "west", west.Barrier, now), now)
	wants(t, b, now, "", "west-edge") // what a killed process has sent may still be on its way
	wants(t, b, now.Add(grant.Cut), "senders")

	// Another machine that starts from a copy buries nobody, and a word about other edges buries nobody's either.
	b.Give(run("west-edge", "b"), "west", []grant.Life{{To: "central", Lasts: offline}}, 0, now)
	b.Bury("central-edge", []string{"b"}, now)
	b.Hear(word(run("west-edge", "c"), "west", west.Barrier, now), now)
	wants(t, b, now.Add(time.Minute), "", "west-edge")
}

// A second of two machines that comes first to a new leader must not speak for the other.
func TestBook_ANewLeaderKnowsEveryProcessOfTheLog(t *testing.T) {
	b, now := book()
	b.Give(run("west-edge", "a"), "west", []grant.Life{{To: "central", Lasts: offline}}, offline, now)
	record := b.Give(run("west-edge", "b"), "west", []grant.Life{{To: "central", Lasts: offline}}, offline, now.Add(time.Minute))
	for _, to := range []string{"central", "west"} {
		if !slices.ContainsFunc(record.Earlier, func(l grant.Left) bool { return l.Incarnation == "a" && l.To == to && l.Lasts > offline-2*time.Minute }) {
			t.Errorf("the record of b's grants says of earlier ones %v, want what a holds for %s", record.Earlier, to)
		}
	}
	now = now.Add(2 * time.Minute)
	next := grant.Open(grant.Past{Edges: map[string]string{"west-edge": "west"}, Rules: []grant.Life{{To: "central", Lasts: offline}}, Records: []grant.Record{record}}, ttl, now)
	wants(t, next, acks(next, run("west-edge", "b"), "west", now), "", "west-edge")
	wants(t, next, now.Add(grant.Slack(offline)), "senders")
}

func TestBook_EveryProcessThatMayTakeMustAcknowledge(t *testing.T) {
	b, now := book()
	b.Give(run("west-edge", "w"), "west", []grant.Life{{To: "central", Lasts: offline}}, 0, now)
	b.Give(run("central-edge", "a"), "central", nil, time.Minute, now)
	b.Give(run("central-edge", "b"), "central", nil, 2*time.Minute, now) // the twin, cut off
	at := acks(b, run("central-edge", "a"), "central", now)
	wants(t, b, at, "", "west-edge") // as many wait at either end; it names the senders
	wants(t, b, now.Add(2*time.Minute), "", "west-edge")
	wants(t, b, now.Add(grant.Slack(2*time.Minute)), "receivers")
}

func TestBook_AReceiverThatIsSilentLapses(t *testing.T) {
	b, now := book()
	b.Give(run("west-edge", "w"), "west", []grant.Life{{To: "central", Lasts: offline}}, 0, now)
	b.Give(run("central-edge", "a"), "central", nil, time.Minute, now)
	wants(t, b, now.Add(time.Minute), "", "west-edge")
	wants(t, b, now.Add(grant.Slack(time.Minute)), "receivers")
	// One that is connected and has not acknowledged counts, whatever it holds.
	at := now.Add(grant.Slack(time.Minute))
	b.Hear(word(run("central-edge", "b"), "central", west.Barrier-1, at), at)
	wants(t, b, at, "", "west-edge")
}

// A program from before incarnations takes relays without leave: silence says nothing of it.
func TestBook_AReceiverWithoutIncarnationNeverLapses(t *testing.T) {
	b, now := book()
	b.Give(run("west-edge", "w"), "west", []grant.Life{{To: "central", Lasts: 100 * offline}}, 0, now)
	b.Hear(word(run("central-edge", ""), "central", west.Barrier-1, now), now)
	wants(t, b, now.Add(10*offline), "", "west-edge")
	wants(t, b, acks(b, run("central-edge", ""), "central", now.Add(10*offline)), "receivers")
}

func TestBook_AnElderIsServedFirst(t *testing.T) {
	b, now := book()
	a, twin := run("west-edge", "a"), run("west-edge", "b")
	b.Hear(word(a, "west", 1, now), now)
	b.Give(a, "west", []grant.Life{{To: "central", Lasts: ttl}}, 0, now)
	if elder := b.Elder(a, now); elder != "" {
		t.Errorf("the only process has an elder, %q", elder)
	}
	if elder := b.Elder(twin, now); elder != "a" {
		t.Errorf("the elder of a second machine = %q, want a", elder)
	}
	now = now.Add(time.Second)
	b.Hear(word(twin, "west", 1, now), now)
	if elder := b.Elder(a, now); elder != "" {
		t.Errorf("the second machine spoke and became the elder of %q", elder)
	}
	if twins := b.Twins("west-edge", now); len(twins) != 0 {
		t.Errorf("twins = %v, one of them may only not have been missed yet", twins)
	}
	// The first goes on speaking: both are alive.
	for range 4 {
		now = now.Add(4 * time.Second)
		b.Hear(word(a, "west", 1, now), now)
		b.Hear(word(twin, "west", 1, now), now)
	}
	if twins := b.Twins("west-edge", now); !slices.Equal(twins, []string{"a", "b"}) {
		t.Errorf("twins = %v, want both", twins)
	}
	// A machine that is gone does not hold up the one that replaces it: its node goes on reporting what it said last.
	last := now
	for range 4 {
		now = now.Add(4 * time.Second)
		b.Hear(word(a, "west", 1, last), now)
		b.Hear(word(twin, "west", 1, now), now)
	}
	if elder, twins := b.Elder(twin, now), b.Twins("west-edge", now); elder != "" || len(twins) != 0 {
		t.Errorf("the first has said nothing for 16 s: elder %q, twins %v, want neither", elder, twins)
	}
}

func TestGrant_IsOneProcessesOwn(t *testing.T) {
	g := &grant.Grant{Zone: "z", Process: run("west-edge", "a"), From: "west", To: "central"}
	self := grant.Party{Zone: "z", Region: "west", Process: run("west-edge", "a")}
	twin := grant.Party{Zone: "z", Region: "west", Process: run("west-edge", "b")}
	peer := grant.Party{Zone: "z", Region: "central"}
	if got := g.Mine(self, grant.At{}); got != "" {
		t.Errorf("its own grant is refused: %s", got)
	}
	if got := g.Mine(twin, grant.At{}); got != grant.Twin {
		t.Errorf("a twin takes the grant: %q, want %s", got, grant.Twin)
	}
	if got := g.Fits(self, peer, grant.At{}); got != "" {
		t.Errorf("a receiver refuses the grant of the process that shows it: %s", got)
	}
	if got := g.Fits(twin, peer, grant.At{}); got != grant.Twin {
		t.Errorf("a receiver takes a grant from the twin: %q, want %s", got, grant.Twin)
	}
}

func TestHeld_TakesOnlyWithLeave(t *testing.T) {
	g := &grant.Grant{TTL: ttl, OfflineTTL: 10 * time.Minute}
	h := &grant.Held{}
	if h.Takes(g, start) {
		t.Error("a process that no leader has answered takes relays")
	}
	h = h.Step(grant.Given, nil, grant.Take{Asked: start, Lasts: offline}, start)
	for _, c := range []struct {
		after time.Duration
		want  bool
	}{{0, true}, {10*time.Minute - 1, true}, {10 * time.Minute, false}} {
		if got := h.Takes(g, start.Add(c.after)); got != c.want {
			t.Errorf("%v after it asked: takes = %v, want %v: the grant's own lifetime bounds it", c.after, got, c.want)
		}
	}
	long := &grant.Grant{TTL: ttl, OfflineTTL: 100 * time.Hour}
	if h.Takes(long, start.Add(offline)) {
		t.Error("it takes relays beyond its leave")
	}
	for _, a := range []grant.Answer{grant.Silent, grant.Behind} {
		if !h.Step(a, nil, grant.Take{}, start).Takes(g, start) {
			t.Errorf("answer %d takes the leave away before it ends", a)
		}
	}
	if h.Step(grant.Denied, nil, grant.Take{}, start).Takes(g, start) {
		t.Error("a denial leaves it the leave")
	}
	if h.Step(grant.Given, nil, grant.Take{Asked: start}, start).Takes(g, start) {
		t.Error("an answer without leave leaves it the one before")
	}
}

func TestProcess_Reads(t *testing.T) {
	for _, c := range []struct {
		incarnation string
		dead        []string
		want        bool
	}{
		{"", nil, true}, {"0a1b", []string{"ff", "00"}, true},
		{"*", nil, false}, {"west", nil, false}, {"0a", []string{"*"}, false}, {"0a", []string{"0a"}, false},
		{"00112233445566778899aabbccddeeff0", nil, false}, {"0a", make([]string, grant.MaxDead+1), false},
	} {
		if got := run("e", c.incarnation).Reads(c.dead); got != c.want {
			t.Errorf("%q with %q: reads = %v, want %v", c.incarnation, c.dead, got, c.want)
		}
	}
}

// A recovery loses the end of the log: grants, and the rules that allowed them. Until an edge has acknowledged, it may hold
// any, to anywhere, for as long as one may last.
func TestBook_AfterARecoveryAnEdgeMayHoldWhatNoLogSays(t *testing.T) {
	open := func(lost time.Duration) *grant.Book {
		return grant.Open(grant.Past{Edges: map[string]string{"west-edge": "west", "central-edge": "central"}, Lost: lost}, ttl, start)
	}
	wants(t, open(0), start.Add(grant.Slack(ttl)), "senders")
	b := open(offline)
	wants(t, b, start.Add(grant.Slack(ttl)), "", "west-edge")
	wants(t, b, start.Add(offline), "", "west-edge")
	wants(t, b, start.Add(grant.Slack(offline)), "senders")
	b = open(offline)
	wants(t, b, acks(b, run("west-edge", "a"), "west", start), "senders")
}

// A grant with a shorter life does not end one with a longer life that was given before: its answer may be lost, and the
// edge may go on with what it has.
func TestBook_AShorterGrantEndsNoLongerOne(t *testing.T) {
	b, now := book()
	b.Give(run("central-edge", "a"), "central", nil, 2*offline, now) // so that senders alone decide
	b.Give(run("west-edge", "a"), "west", []grant.Life{{To: "central", Lasts: offline}}, 0, now)
	b.Give(run("west-edge", "a"), "west", []grant.Life{{To: "central", Lasts: ttl}}, 0, now.Add(time.Second))
	end := now.Add(grant.Slack(offline))
	for at, want := range map[time.Time]string{now.Add(2 * ttl): "", end.Add(-time.Millisecond): "", end: "senders"} {
		if by, waiting := b.InForce(west, zone(), at); by != want {
			t.Errorf("%v after both were given: in force by %q, waiting for %v; want by %q", at.Sub(now), by, waiting, want)
		}
	}
}
