package main

import (
	"context"
	"net/http"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/e2e/harness"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	"bailiwick/shared/fault/rpcfault"
)

// visible: from the answer of a request at an edge to the first answer of the admin API that counts it, asked at a
// node that need not lead the ledger. Requests come at odd times, so that no sample rides on the seal of another.
func (b *bench) visible(samples int) {
	urls := b.s.AdminURLs("emea")
	usage := adminv1connect.NewUsageServiceClient(b.s.AdminHTTP(false), urls[len(urls)-1], connect.WithInterceptors(rpcfault.Client()))
	key := b.s.Key("emea", "unlimited")
	since := time.Now()
	count := func() int64 {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		answer, err := usage.QueryUsage(ctx, &adminv1.QueryUsageRequest{Customer: "initech", Since: timestamppb.New(since), GroupBy: []string{"outcome"}})
		if err != nil {
			b.t.Fatalf("query usage: %v", err)
		}
		return answer.GetTotal().GetRequests()
	}
	b.settled(count)
	var took []time.Duration
	for i := range samples {
		before := count()
		b.until("eu-west", key, 10*time.Second, func(a harness.Answer) bool { return a.Status == http.StatusOK })
		from := time.Now()
		for count() <= before {
			if time.Since(from) > 20*time.Second {
				b.t.Fatalf("a request is not counted 20 s after its answer")
			}
			time.Sleep(2 * time.Millisecond)
		}
		took = append(took, time.Since(from))
		time.Sleep(time.Duration(37+61*i%283) * time.Millisecond)
	}
	b.latency("request → visible in usage", took, 2*time.Second)
}

// settled waits until what was asked for before is counted.
func (b *bench) settled(count func() int64) {
	for last, same := count(), 0; same < 3; {
		time.Sleep(time.Second)
		if n := count(); n == last {
			same++
		} else {
			last, same = n, 0
		}
	}
}
