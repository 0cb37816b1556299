package failover_test

import (
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/dataplane/internal/policy"
	syncv1 "bailiwick/proto/gen/bailiwick/sync/v1"
	"bailiwick/shared/fault"
)

// A control plane that answers "apply the newest table first" is not away: offline lifetimes are for silence.
func TestGrants_AnAnswerThatRefusesIsNotSilence(t *testing.T) {
	for _, reason := range []string{"STALE_TABLE", "RULES_CHANGED", "NOT_ADOPTED"} {
		synctest.Test(t, func(t *testing.T) {
			l := &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}
			h := &policy.Holder{}
			h.Swap(edgeTable(t, 1, nil, "eu-central"))
			g := start(t, l, h)
			live := func() bool { return g.Live(h.Load(), "gdpr", "eu-central") != nil }
			time.Sleep(time.Second)
			if !live() {
				t.Fatal("after a grant: want it live")
			}
			l.set(func() { l.err = fault.New(fault.Unavailable, reason, "apply the newest table first") })
			time.Sleep(25 * time.Second)
			if !live() {
				t.Errorf("%s within the ordinary lifetime: want the grant live", reason)
			}
			time.Sleep(10 * time.Second)
			if live() {
				t.Errorf("%s for 35 s: want the grant over, its ordinary lifetime is 30 s", reason)
			}
		})
	}
}

// What was answered without an offline lifetime has none, whatever an older grant for the same pair said.
func TestGrants_AReplacedGrantHasNoOfflineLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, nil, "eu-central"))
		g := start(t, l, h)
		time.Sleep(time.Second)
		short := grantTo("eu-central")
		short.Id, short.OfflineTtlMs = "g-short", 0
		l.set(func() { l.grants = []*syncv1.SignedGrant{sign(t, short)} })
		time.Sleep(11 * time.Second) // asked once more
		l.set(func() { l.err = fault.New(fault.Unavailable, "NO_LEADER", "no leader") })
		time.Sleep(40 * time.Second)
		if x := g.Live(h.Load(), "gdpr", "eu-central"); x != nil {
			t.Errorf("grant %s is live 40 s after the control plane went away, want none: the pair lost its offline lifetime before", x.ID)
		}
	})
}

// Silence ends with any answer, also one that only refuses: from then on ordinary lifetimes count again.
func TestGrants_AnAnswerThatRefusesAfterSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, nil, "eu-central"))
		g := start(t, l, h)
		live := func() bool { return g.Live(h.Load(), "gdpr", "eu-central") != nil }
		time.Sleep(time.Second)
		l.set(func() { l.err = fault.New(fault.Unavailable, "NO_LEADER", "no leader") })
		time.Sleep(time.Minute)
		if !live() {
			t.Fatal("a minute of silence: want the grant live by its offline lifetime")
		}
		l.set(func() { l.err = fault.New(fault.Unavailable, "STALE_TABLE", "apply the newest table first") })
		time.Sleep(2 * time.Second)
		if live() {
			t.Error("told to catch up after a minute: want the grant over")
		}
		l.set(func() { l.err = fault.New(fault.Unavailable, "NO_LEADER", "no leader") })
		time.Sleep(5 * time.Second)
		if live() {
			t.Error("silence after that: the grant lives again, want it over for good")
		}
	})
}

// A recovery ends every grant and leaves the pairs as they are. New ones are there as soon as the zone answers, and
// not a third of a lifetime later.
func TestGrants_AreAskedForAtOnceAfterARecovery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &leader{grants: []*syncv1.SignedGrant{sign(t, grantTo("eu-central"))}}
		h := &policy.Holder{}
		h.Swap(edgeTable(t, 1, nil, "eu-central"))
		g := start(t, l, h)
		time.Sleep(time.Second)
		next := grantTo("eu-central")
		next.Id, next.CatalogEpoch, next.ZoneEpoch = "g-2", 2, 2
		l.set(func() { l.grants = []*syncv1.SignedGrant{sign(t, next)} })
		h.Swap(edgeTable(t, 2, nil, "eu-central"))
		time.Sleep(100 * time.Millisecond)
		if x := g.Live(h.Load(), "gdpr", "eu-central"); x == nil || x.ID != "g-2" {
			t.Errorf("0.1 s after the table of a recovery: got grant %v, want g-2", x)
		}
	})
}
