package claim_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/claim"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
)

const (
	a = "000000000000000a"
	b = "000000000000000b"
	c = "000000000000000c"
)

func taking(cluster, zone string, restored bool) claim.Taking {
	return claim.Taking{Cluster: cluster, Zone: zone, Node: zone + "-1", Restored: restored, At: time.Now()}
}

func take(t *testing.T, s claim.Catalog, cluster, zone string, restored bool, holder, reason string) {
	t.Helper()
	got, err := claim.Take(t.Context(), s, taking(cluster, zone, restored))
	if got != holder || fault.ReasonOf(err) != reason || reason != "" && !strings.Contains(err.Error(), cluster) {
		t.Errorf("zone %s in cluster %s, restored %v: got %q, %v, want %q and reason %q", zone, cluster, restored, got, err, holder, reason)
	}
}

func holders(s claim.Catalog) string {
	var out []string
	for kv := range s.Local().List(model.PrefixCluster) {
		row, err := model.Decode[model.Cluster](kv.Key, kv.Value)
		if err != nil {
			return err.Error()
		}
		out = append(out, row.ID[15:]+"="+row.Zone)
	}
	return strings.Join(out, " ")
}

// use objects as a node does whose store is in a cluster, until the function that it gives is called.
func use(t *testing.T, s claim.Catalog, cluster, zone string) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		for ctx.Err() == nil {
			if _, err := claim.Object(ctx, s, cluster, zone); err != nil && ctx.Err() == nil {
				t.Error(err)
			}
			time.Sleep(200 * time.Millisecond)
		}
	})
	return func() { cancel(); wg.Wait() }
}

// A cluster is one zone's, and a zone has one cluster.
func TestTake_OneClusterAZoneAndOneZoneACluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.NewStore("catalog")
		take(t, s, a, "emea", false, "emea", "")
		take(t, s, a, "emea", false, "emea", "")
		take(t, s, a, "us", false, "emea", "")
		take(t, s, b, "emea", false, "", claim.ReasonTwo)
		take(t, s, b, "us", false, "us", "")
		take(t, s, b, "emea", true, "us", "") // also with something of emea's in it
		if got := holders(s); got != "a=emea b=us" {
			t.Errorf("got %s", got)
		}
	})
}

// Of two nodes of a zone that are led to two clusters at the same moment one ends, also if the other has ended between writing
// its claim and seeing that it was second.
func TestTake_TwoAtTheSameMoment(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		for range 20 {
			s := apitest.NewStore("catalog")
			var wg sync.WaitGroup
			holder, err := [2]string{}, [2]error{}
			for i, cluster := range []string{a, b} {
				wg.Go(func() { holder[i], err[i] = claim.Take(t.Context(), late{s}, taking(cluster, "emea", false)) })
			}
			wg.Wait()
			if (err[0] == nil) == (err[1] == nil) || holder[0]+holder[1] != "emea" || len(holders(s)) != len("a=emea") {
				t.Fatalf("got %q and %v: %s, want one of them to end", holder, err, holders(s))
			}
		}
		s := apitest.NewStore("catalog")
		for _, id := range []string{b, a} {
			s.Put(model.PrefixCluster+id, model.Encode(model.Cluster{ID: id, Zone: "emea"}))
		}
		take(t, s, a, "emea", false, "", claim.ReasonTwo)
		take(t, s, b, "emea", false, "emea", "")
		if got := holders(s); got != "b=emea" {
			t.Errorf("got %s", got)
		}
	})
}

// late takes a moment for each transaction, so that others read what was before it.
type late struct{ *apitest.Store }

func (l late) Txn(ctx context.Context, t group.Txn) (group.Result, error) {
	time.Sleep(time.Millisecond)
	return l.Store.Txn(ctx, t)
}

// A store that was put back under another id takes the place of the one that it was saved from, which nobody uses then; a copy
// that a node is led to by mistake does not, while nodes use the other. Several of before are released one after the other.
func TestTake_APutBackCluster(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.NewStore("catalog")
		take(t, s, a, "emea", false, "emea", "")
		began := time.Now()
		stop := use(t, s, a, "emea")
		take(t, s, b, "emea", true, "", claim.ReasonTwo)
		if took := time.Since(began); took > time.Second {
			t.Errorf("a node that uses the other cluster was heard after %v", took)
		}
		stop()
		take(t, s, b, "emea", true, "emea", "")
		if got := holders(s); got != "b=emea" {
			t.Errorf("put back: got %s", got)
		}
		r, _, err := claim.ReleaseOf(s.Local(), a)
		if err != nil || r.Status != model.ReleaseDone || !strings.Contains(r.By, "emea-1") || !strings.Contains(r.Reason, b) {
			t.Errorf("got %+v, %v, want a record of what took its place", r, err)
		}
		take(t, s, a, "emea", true, "", claim.ReasonTwo) // a node that was away meanwhile, and comes back before those that use b
		if got := holders(s); got != "b=emea" {
			t.Errorf("a cluster whose place was taken takes it back by itself: got %s", got)
		}
		s.Put(model.PrefixCluster+a, model.Encode(model.Cluster{ID: a, Zone: "emea"}))
		for n := 0; holders(s) != "c=emea"; n++ {
			if _, err := claim.Take(t.Context(), s, taking(c, "emea", true)); n > 4 {
				t.Fatalf("with two of before: %s, %v", holders(s), err)
			}
		}
	})
}

func TestTake_NodesOfAZoneThatWasPutBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.NewStore("catalog")
		take(t, s, a, "emea", false, "emea", "")
		var wg sync.WaitGroup
		for range 3 { // as nodes do: again, until it is known
			wg.Go(func() {
				for n := 0; ; n++ {
					holder, err := claim.Take(t.Context(), late{s}, taking(b, "emea", true))
					switch {
					case holder == "emea" && err == nil:
						return
					case fault.ReasonOf(err) == claim.ReasonTwo || n > 10:
						t.Errorf("got %q, %v", holder, err)
						return
					}
					time.Sleep(time.Second)
				}
			})
		}
		wg.Wait()
		if got := holders(s); got != "b=emea" {
			t.Errorf("got %s", got)
		}
	})
}

func release(s claim.Catalog, by, from string, two bool) (string, error) {
	r, err := claim.Release(context.Background(), s, claim.Request{Cluster: a, By: by, From: from, Reason: "a typo", Two: two, At: time.Now()})
	return r.Status, err
}

// What nobody uses is released after the window, with a record of it, and can be another's then; what a node uses is not.
func TestRelease_WhatNobodyUses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.NewStore("catalog")
		if _, err := release(s, "us/1", "us", false); fault.ReasonOf(err) != claim.ReasonNotClaimed {
			t.Errorf("what nobody claimed: %v", err)
		}
		take(t, s, a, "emea", false, "emea", "")
		stop := use(t, s, a, "emea")
		if status, err := release(s, "us/1", "us", false); fault.ReasonOf(err) != claim.ReasonInUse || !strings.Contains(err.Error(), "zone emea") {
			t.Errorf("what a node uses: %s, %v", status, err)
		}
		stop()
		stop = use(t, s, a, "us") // who is of another zone has no say
		began := time.Now()
		if status, err := release(s, "us/1", "us", false); status != model.ReleaseDone || err != nil || time.Since(began) != claim.Window {
			t.Errorf("what nobody uses: %s, %v after %v, want it after %v", status, err, time.Since(began), claim.Window)
		}
		stop()
		r, _, err := claim.ReleaseOf(s.Local(), a)
		if err != nil || r.Zone != "emea" || r.By != "us/1" || r.From != "us" || r.Reason != "a typo" || r.Second != "" {
			t.Errorf("the record is %+v, %v", r, err)
		}
		take(t, s, a, "us", false, "us", "")
		if status, err := release(s, "us/1", "us", false); status != model.ReleaseDone || err != nil {
			t.Errorf("claimed anew, it was released before: %s, %v", status, err)
		}
	})
}

// Where two operators decide: one person is one, whatever is said twice; a second of the same zone is needed, within three days,
// and both are on record.
func TestRelease_TwoOperators(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.NewStore("catalog")
		take(t, s, a, "emea", false, "emea", "")
		want := func(by, from, status, reason string) {
			t.Helper()
			if got, err := release(s, by, from, true); got != status || fault.ReasonOf(err) != reason {
				t.Errorf("%s of %s: got %q, %v, want %q, %q", by, from, got, err, status, reason)
			}
		}
		stop := use(t, s, a, "emea")
		want("us/1", "us", model.ReleaseWaits, claim.ReasonInUse)
		stop()
		want("us/1", "us", model.ReleaseWaits, "")
		want("us/1", "us", model.ReleaseWaits, "")
		want("apac/2", "apac", model.ReleaseWaits, "APPROVAL_REQUIRED")
		time.Sleep(73 * time.Hour)
		want("us/2", "us", model.ReleaseWaits, "") // asks anew
		stop = use(t, s, a, "emea")
		time.Sleep(time.Second)
		stop()
		want("us/1", "us", model.ReleaseWaits, "") // the other's was objected to
		want("us/2", "us", model.ReleaseDone, "")
		r, _, err := claim.ReleaseOf(s.Local(), a)
		if err != nil || r.By != "us/1" || r.Second != "us/2" || holders(s) != "" {
			t.Errorf("the record is %+v, %v; claimed: %s", r, err, holders(s))
		}
	})
}

// Two who ask at once release it once, and a claim that was made anew meanwhile stays.
func TestRelease_AtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := apitest.NewStore("catalog")
		take(t, s, a, "emea", false, "emea", "")
		var wg sync.WaitGroup
		status, err := [2]string{}, [2]error{}
		for i := range 2 {
			wg.Go(func() { status[i], err[i] = release(late{s}, "us/1", "us", false) })
		}
		wg.Wait()
		done := 0
		for i := range 2 {
			if err[i] == nil && status[i] == model.ReleaseDone {
				done++
			}
		}
		if done == 0 || holders(s) != "" {
			t.Errorf("got %v, %v; claimed: %s", status, err, holders(s))
		}
		take(t, s, a, "emea", false, "emea", "")
		wg.Go(func() { status[0], err[0] = release(s, "us/1", "us", false) })
		time.Sleep(time.Second)
		s.Put(model.PrefixCluster+a, model.Encode(model.Cluster{ID: a, Zone: "us"}))
		wg.Wait()
		if status[0] == model.ReleaseDone && err[0] == nil && holders(s) != "" {
			t.Errorf("says it is released, and it is %s", holders(s))
		}
	})
}
