package main

import (
	"context"
	"crypto/rand"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"connectrpc.com/connect"

	"bailiwick/e2e/harness"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault/rpcfault"
)

// crossing lets eu-west relay to a region of another zone: the leader of emea hears that pair's senders alone.
const crossing = `kind: LegalBasis
name: scc
spec: {kind: scc}
---
kind: Policy
name: gdpr-emea
spec:
  zone: emea
  within_zone: {basis: gdpr}
  pairs:
    - {from: eu-west, to: us-east, basis: scc}
`

// Goals of the border.
const (
	inForceGoal = 5 * time.Second
	lapseGoal   = 32 * time.Second // the default grant, and two seconds
	regionGoal  = 5 * time.Second
)

// zone is the admin API of emea, asked at a node that need not lead.
type zone struct {
	b         *bench
	resources adminv1connect.ResourceServiceClient
	status    adminv1connect.BorderServiceClient
}

// border measures from the answer that a closure is committed to the record that it is in force, and from the loss of
// a whole region to the first answer that a client gets who follows the zone's DNS.
func (b *bench) border(tightenings int) {
	urls := b.s.AdminURLs("emea")
	url, client, wrap := urls[len(urls)-1], b.s.AdminHTTP(false), connect.WithInterceptors(rpcfault.Client())
	z := &zone{b, adminv1connect.NewResourceServiceClient(client, url, wrap), adminv1connect.NewBorderServiceClient(client, url, wrap)}

	var took []time.Duration
	for range tightenings {
		took = append(took, z.tighten("eu-west", "eu-central", 3*inForceGoal))
	}
	b.latency("closure → in force, all connected", took, inForceGoal)

	// An edge that is stopped acknowledges nothing; what it holds stays good until its end. The receivers answer.
	took = nil
	for range 5 {
		b.s.Act("pause", "eu-west-edge-1")
		took = append(took, z.tighten("eu-west", "eu-central", 3*inForceGoal))
		b.s.Act("resume", "eu-west-edge-1")
		b.home("eu-west")
	}
	b.latency("the same, the sender stopped, receivers connected", took, inForceGoal)

	// Here they cannot: the receivers are another zone's, so the sender's grant has to end.
	file := filepath.Join(b.t.TempDir(), "crossing.yaml")
	if err := os.WriteFile(file, []byte(crossing), 0o600); err != nil {
		b.t.Fatal(err)
	}
	b.s.MustCLI("emea", "apply", "--now", "--reason", "a bench", "-f", file)
	z.until("eu-west", "us-east", true)
	took = nil
	for range 3 {
		time.Sleep(2 * time.Second) // the edge asks for its grant
		b.s.Act("pause", "eu-west-edge-1")
		took = append(took, z.tighten("eu-west", "us-east", 2*lapseGoal))
		b.s.Act("resume", "eu-west-edge-1")
		b.home("eu-west")
	}
	b.latency("the same over a zone's border: the grant ends", took, lapseGoal)

	b.regionLost("kill", "start", "region killed → answer by its pair, through DNS", 3)
	b.regionLost("pause", "resume", "region silent → answer by its pair, through DNS", 3)
}

// tighten closes a pair and opens it again: how long until the closure was in force.
func (z *zone) tighten(from, to string, patience time.Duration) time.Duration {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patience)
	defer cancel()
	last := z.newest(from, to).GetCommittedAt().AsTime()
	closure := &adminv1.Resource{Name: "bench", Spec: &adminv1.Resource_Closure{Closure: &adminv1.Closure{Zone: "emea", From: from, To: to, Reason: "bench"}}}
	if _, err := z.resources.Apply(ctx, &adminv1.ApplyRequest{RequestId: rand.Text(), Resources: []*adminv1.Resource{closure}}); err != nil {
		z.b.t.Fatalf("close %s to %s: %v", from, to, err)
	}
	began := time.Now()
	for {
		if r := z.newest(from, to); r.GetCommittedAt().AsTime().After(last) && r.GetInForceAt() != nil {
			break
		} else if time.Since(began) > patience {
			z.b.t.Fatalf("the closure of %s to %s is not in force after %s: %v", from, to, patience, r)
		}
		time.Sleep(5 * time.Millisecond)
	}
	took := time.Since(began)
	if _, err := z.resources.Delete(ctx, &adminv1.DeleteRequest{Kind: "closures", Name: "bench", RequestId: rand.Text()}); err != nil {
		z.b.t.Fatalf("open %s to %s again: %v", from, to, err)
	}
	z.until(from, to, true)
	return took
}

func (z *zone) get() *adminv1.BorderStatusResponse {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	answer, err := z.status.Status(ctx, &adminv1.BorderStatusRequest{})
	if err != nil {
		z.b.t.Fatalf("border status: %v", err)
	}
	return answer
}

// newest record of a pair; nil: there is none.
func (z *zone) newest(from, to string) *adminv1.Tightening {
	for _, t := range z.get().GetTightenings() { // newest first
		if t.GetFrom() == from && t.GetTo() == to {
			return t
		}
	}
	return nil
}

// until the pair is permitted, or is not.
func (z *zone) until(from, to string, want bool) {
	for began := time.Now(); ; time.Sleep(5 * time.Millisecond) {
		permitted := false
		for _, p := range z.get().GetPairs() {
			permitted = permitted || p.GetFrom() == from && p.GetTo() == to
		}
		if permitted == want {
			return
		}
		if time.Since(began) > 20*time.Second {
			z.b.t.Fatalf("%s to %s: permitted %v, want %v", from, to, permitted, want)
		}
	}
}

// home waits until a region answers its own requests again.
func (b *bench) home(region string) {
	key := b.s.Key("emea", "unlimited")
	b.until(region, key, 40*time.Second, func(a harness.Answer) bool { return a.Status == http.StatusOK && a.Served() == region })
}

// regionLost: everything in eu-west goes at once, its control node and name server included. What is killed refuses
// connections; what is paused takes them and says nothing, as a region does that cannot be reached any more.
func (b *bench) regionLost(end, back, measure string, times int) {
	servers := []string{b.s.DNS("eu-west"), b.s.DNS("eu-central")}
	host, key := orders, b.s.Key("emea", "unlimited")
	both := func() bool {
		for _, server := range servers {
			if got, err := harness.Resolve(server, host, "udp"); err != nil || len(got) != 2 {
				return false
			}
		}
		return true
	}
	var took []time.Duration
	for range times {
		for began := time.Now(); !both(); time.Sleep(100 * time.Millisecond) {
			if time.Since(began) > time.Minute {
				b.t.Fatalf("the name servers do not name both regions")
			}
		}
		b.home("eu-west")
		killed := time.Now()
		b.s.Act(end, "region:eu-west")
		for {
			err := b.s.FollowDNS(servers, host, key, "eu-central")
			if err == nil {
				break
			}
			if time.Since(killed) > 30*time.Second {
				b.t.Fatalf("no answer 30 s after the region's loss: %v", err)
			}
		}
		took = append(took, time.Since(killed))
		b.s.Act(back, "region:eu-west")
	}
	b.latency(measure, took, regionGoal)
}
