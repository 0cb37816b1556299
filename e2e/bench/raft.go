package main

import (
	"context"
	"slices"
	"time"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
)

// raft: the node that leads the zone's store is killed with SIGKILL, and the time is taken until another node acknowledges a
// write. Each kill waits until the whole zone works again. How many commits the engine makes, and how long a hung disk
// stops writes, Go benchmarks in raftgroup tell, in the same make bench.
func (b *bench) raft(kills int) {
	var took []time.Duration
	for range kills {
		leader := b.s.Leaders()["store/emea"]
		var others []adminv1connect.KeyServiceClient
		for _, a := range b.s.Admin {
			if a.Zone == "emea" && a.Name != leader {
				others = append(others, b.s.KeyService(a.URL))
			}
		}
		if leader == "" || len(others) != 2 {
			b.t.Fatalf("store/emea is led by %q, and %d other nodes are known", leader, len(others))
		}
		begun := time.Now()
		b.s.Act("kill", leader)
		took = append(took, b.write(others, begun))
		b.s.Act("start", leader)
		b.s.Settle()
		if len(b.s.Stores) == 0 { // on etcd no node is a member of what it leads
			b.rejoined(leader)
		}
	}
	b.latency("leader killed → next write acknowledged", took, 3*time.Second)
}

// etcd: members of the etcd that holds the zone's store are killed with SIGKILL, one after the other, so that each third one
// leads it or has just lost the lead; the time is taken as above.
func (b *bench) etcd(kills int) {
	var members []string
	for _, m := range b.s.Stores {
		if m.Cluster == "emea" {
			members = append(members, m.Name)
		}
	}
	if len(members) == 0 {
		return // the store is raft's
	}
	var nodes []adminv1connect.KeyServiceClient
	for _, url := range b.s.AdminURLs("emea") {
		nodes = append(nodes, b.s.KeyService(url))
	}
	var took []time.Duration
	for i := range kills {
		member := members[i%len(members)]
		begun := time.Now()
		b.s.Act("kill", member)
		took = append(took, b.write(nodes, begun))
		b.s.Act("start", member)
		time.Sleep(3 * time.Second) // it catches up: without it the next kill takes the quorum
		b.write(nodes, time.Now())
	}
	b.latency("etcd member killed → next write acknowledged", took, 3*time.Second)
}

// write asks one node after the other until one acknowledges, as the CLI does.
func (b *bench) write(at []adminv1connect.KeyServiceClient, begun time.Time) time.Duration {
	for i := 0; time.Since(begun) < time.Minute; i++ {
		ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
		_, err := at[i%len(at)].CreateKey(ctx, &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold"})
		cancel()
		if err == nil {
			return time.Since(begun)
		}
		time.Sleep(5 * time.Millisecond)
	}
	b.t.Fatalf("no write is acknowledged a minute after the leader was killed")
	return 0
}

// rejoined waits until a node is a member that has caught up: otherwise the next kill would take the quorum.
func (b *bench) rejoined(node string) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(100 * time.Millisecond) {
		for _, url := range b.s.AdminURLs("emea") {
			ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
			resp, err := adminv1connect.NewClusterServiceClient(b.s.AdminHTTP(false), url).ListMembers(ctx, &adminv1.ListMembersRequest{})
			cancel()
			if err == nil && slices.ContainsFunc(resp.GetMembers(), func(m *adminv1.GroupMember) bool {
				return m.GetNode() == node && m.GetGroup() == "store/emea" && m.GetReachable() && m.GetLag() == 0
			}) {
				return
			}
		}
	}
	b.t.Fatalf("%s does not catch up within a minute", node)
}
