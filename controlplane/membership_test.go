package controlplane

import (
	"testing"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/lifecycle/porttest"
	"bailiwick/shared/table"
)

// bring makes and starts a control node with a one-time token, as an operator does.
func (w *world) bring(by *running, name string) *running {
	w.t.Helper()
	w.join(by, name)
	n := w.start(name)
	for _, of := range []string{by.self.Name, name} {
		soon(w.t, "it is known which fields the program of "+of+" knows", func() bool {
			kv, ok := by.catalog.Local().Get(model.PrefixLevel + of)
			said, err := model.Decode[model.NodeLevel](kv.Key, kv.Value)
			return ok && err == nil && said.Level == table.Current
		})
	}
	return n
}

func (w *world) join(by *running, name string) []string {
	w.t.Helper()
	token, _, err := by.enroll.CreateToken(within(w.t), identity.Control, "eu-west", name, 0)
	if err != nil {
		w.t.Fatal(err)
	}
	aside, err := Join(within(w.t), Joining{Dir: w.path(name), Name: name, Region: "eu-west", AdminURL: "https://" + porttest.Addr(w.t), PeerAddr: porttest.Addr(w.t),
		Control: []string{by.self.Admin}, RootsPEM: by.source.RootsPEM(), Token: token})
	if err != nil {
		w.t.Fatal(err)
	}
	return aside
}

// members waits until each group of the zone has just these voters, and nobody else.
func (w *world) members(by *running, want map[string]string) {
	w.t.Helper()
	var last []adminapi.Member
	soon(w.t, "the groups have the members wanted", func() bool {
		all, err := by.Members(within(w.t))
		if err != nil {
			w.t.Fatal(err)
		}
		last = all
		for _, m := range all {
			if want[m.Node] != m.Server || m.Role == "learner" || !m.Reachable {
				return false
			}
		}
		return len(all) == 3*len(want)
	})
	if w.t.Failed() {
		w.t.Logf("members: %+v", last)
	}
}

func serverOf(t *testing.T, by *running, name string) string {
	t.Helper()
	kv, ok := by.catalog.Local().Get(model.PrefixNode + name)
	if !ok {
		t.Fatalf("%s is not in the registry", name)
	}
	n, err := model.Decode[model.Node](kv.Key, kv.Value)
	if err != nil {
		t.Fatal(err)
	}
	return n.Server()
}

func (w *world) withdraw(by *running, name string) {
	w.t.Helper()
	var err error
	for ctx := within(w.t); ctx.Err() == nil; { // its leader may be changing
		if _, err = by.catalog.Txn(ctx, group.Txn{RequestID: "withdraw " + name, Ops: []group.Op{{Key: model.PrefixNode + name, Delete: true}}}); err == nil {
			return
		}
	}
	w.t.Fatal(err)
}

// A zone of one node grows to three; a node whose disk is lost is replaced under its name; one leaves; what would cost
// the last quorum is refused.
func TestMembers_JoinReplaceAndLeave(t *testing.T) {
	w := newWorld(t, "emea-1")
	first := w.start("emea-1")
	soon(t, "the registry is seeded", func() bool { return seededZone(first) })
	before := write(t, first.store, model.PrefixOperator+"x", `{"name":"x","role":"viewer"}`)
	w.bring(first, "emea-2")
	w.members(first, map[string]string{"emea-1": "emea-1", "emea-2": serverOf(t, first, "emea-2")})
	third := w.bring(first, "emea-3")
	old := serverOf(t, first, "emea-3")
	w.members(first, map[string]string{"emea-1": "emea-1", "emea-2": serverOf(t, first, "emea-2"), "emea-3": old})
	if err := third.store.WaitFor(within(t), before.Index); err != nil {
		t.Fatal(err)
	}
	if _, ok := third.store.Local().Get(model.PrefixOperator + "x"); !ok {
		t.Error("the new node has not the zone's state")
	}
	for _, m := range must(third.Members(within(t))) {
		if m.Version != "v1.0.0" || m.Lag > 100 {
			t.Errorf("member: got %+v", m)
		}
	}
	if err := first.MayLose(within(t), "emea-2"); err != nil {
		t.Errorf("lose one of three: got %v, want it allowed", err)
	}

	// Leadership is handed over, and can be asked for at any node.
	for _, to := range []string{"emea-3", "emea-2", "emea-1"} {
		if got, err := third.Transfer(within(t), storeGroup("emea"), to); err != nil || got != to {
			t.Errorf("transfer to %s: got %q, %v", to, got, err)
		}
	}

	// emea-3 loses its disk: without it no other may go; it comes back as another server.
	if err := third.stop(); err != nil {
		t.Fatal(err)
	}
	delete(w.nodes, "emea-3")
	if err := first.MayLose(within(t), "emea-2"); fault.ReasonOf(err) != "LAST_QUORUM" {
		t.Errorf("lose one of three while another is away: got %v, want LAST_QUORUM", err)
	}
	if err := first.MayLose(within(t), "emea-3"); err != nil {
		t.Errorf("replace the one that is away: got %v, want it allowed", err)
	}
	if aside := w.join(first, "emea-3"); len(aside) == 0 {
		t.Error("what the replaced node held was not set aside")
	}
	if now := serverOf(t, first, "emea-3"); now == old {
		t.Errorf("emea-3 is %s again: a disk of before could come back for it", now)
	}
	third = w.start("emea-3")
	w.members(first, map[string]string{"emea-1": "emea-1", "emea-2": serverOf(t, first, "emea-2"), "emea-3": serverOf(t, first, "emea-3")})

	// emea-1, which may lead, leaves; the two others go on. Another says so: it may hear nothing any more once it is out.
	w.withdraw(third, "emea-1")
	_ = first.stop()
	delete(w.nodes, "emea-1")
	w.members(third, map[string]string{"emea-2": serverOf(t, third, "emea-2"), "emea-3": serverOf(t, third, "emea-3")})
	write(t, third.store, model.PrefixOperator+"y", `{"name":"y","role":"viewer"}`)
	if err := third.MayLose(within(t), "emea-3"); err != nil {
		t.Errorf("lose one of two: got %v, want it allowed: the other is a quorum of one", err)
	}
}

func must(members []adminapi.Member, err error) []adminapi.Member {
	if err != nil {
		panic(err)
	}
	return members
}

func seededZone(n *running) bool {
	_, ok := n.catalog.Local().Get(model.PrefixNode + "emea-1")
	return ok
}

// After a recovery the others join anew under their old names.
func TestMembers_JoinAfterARecovery(t *testing.T) {
	w := newWorld(t, "emea-1", "emea-2", "emea-3")
	for _, n := range []string{"emea-1", "emea-2", "emea-3"} {
		w.start(n)
	}
	first := w.nodes["emea-1"]
	soon(t, "the registry is seeded", func() bool { return seededZone(first) })
	kept := write(t, first.store, model.PrefixOperator+"x", `{"name":"x","role":"viewer"}`)
	if err := first.store.WaitFor(within(t), kept.Index); err != nil {
		t.Fatal(err)
	}
	w.stopAll()
	off, err := OpenOffline(w.path("emea-1"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := off.Recover(Recovery{Zone: true, Catalog: true, Operator: "ada", Reason: "test"}, time.Now()); err != nil {
		t.Fatal(err)
	}
	first = w.start("emea-1")
	soon(t, "the survivor leads", func() bool {
		return first.store.VerifyLeader(within(t)) == nil && first.catalog.VerifyLeader(within(t)) == nil
	})
	w.members(first, map[string]string{"emea-1": "emea-1"})
	second := w.bring(first, "emea-2")
	w.bring(first, "emea-3")
	w.members(first, map[string]string{"emea-1": "emea-1", "emea-2": serverOf(t, first, "emea-2"), "emea-3": serverOf(t, first, "emea-3")})
	if _, ok := second.store.Local().Get(model.PrefixOperator + "x"); !ok {
		t.Error("the node that joined anew has not the zone's state")
	}
	soon(t, "its evidence is the zone's", func() bool {
		mine, broken := second.evidence.Size()
		theirs, _ := first.evidence.Size()
		return broken == nil && mine == theirs && mine > 0
	})
}
