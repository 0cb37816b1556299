// Package usagetest makes up usage for tests and benchmarks of both planes: the
// rows of an edge under a realistic mix of traffic, the same for the same seed.
// It keeps nothing and is imported by tests alone. A Traffic belongs to one
// goroutine.
package usagetest

import (
	"fmt"
	"math"
	"math/rand/v2"
	"time"

	"bailiwick/shared/usage"
)

// Traffic is what 20 customers on 3 plans, of unequal appetite, ask of 2 APIs
// with 3 routes each: latencies are log-normal around each route's own, bodies
// have sizes of their own, and one request in twelve does not succeed. A
// customer calls from one to five addresses with one or two keys.
type Traffic struct {
	rate  float64 // a second
	now   time.Time
	r     *rand.Rand
	accts []account
	sum   float64
}

type account struct {
	customer, subscription, plan string
	rev                          uint64
	keys                         []string
	addresses                    []uint64
	weight                       float64
}

type route struct {
	api, product, name  string
	in, out, latency    float64 // medians; in 0: no body
	spreadOut, spreadUS float64
	weight              float64
}

var routes = []route{
	{"orders", "core", "list", 0, 5200, 18_000, 0.8, 0.45, 5},
	{"orders", "core", "get", 0, 840, 6_000, 0.3, 0.4, 9},
	{"orders", "core", "create", 620, 310, 31_000, 0.1, 0.5, 3},
	{"reports", "insight", "search", 240, 9100, 85_000, 0.9, 0.7, 2},
	{"reports", "insight", "daily", 0, 22_000, 140_000, 0.5, 0.5, 1},
	{"reports", "insight", "status", 0, 96, 2_500, 0.02, 0.3, 4},
}

// NewTraffic begins at an instant, with rate requests a second.
func NewTraffic(seed uint64, begin time.Time, rate float64) *Traffic {
	t := &Traffic{rate: rate, now: begin, r: rand.New(rand.NewPCG(seed, 6))}
	plans := []string{"free", "gold", "unlimited"}
	for i := range 20 {
		a := account{customer: fmt.Sprintf("%s-%02d", []string{"acme", "borealis", "cobalt", "delta"}[i%4], i), subscription: "main",
			plan: plans[i%3], rev: uint64(3 + i%3), weight: 1 / float64(i+1)}
		for k := range 1 + i%2 {
			a.keys = append(a.keys, fmt.Sprintf("k%016x", t.r.Uint64()>>k))
		}
		for range 1 + i%5 {
			a.addresses = append(a.addresses, t.r.Uint64())
		}
		t.accts = append(t.accts, a)
		t.sum += a.weight
	}
	return t
}

func (t *Traffic) around(median, spread float64) int64 {
	return int64(median * math.Exp(t.r.NormFloat64()*spread))
}

// Next is the next finished request.
func (t *Traffic) Next() usage.Row {
	t.now = t.now.Add(time.Duration(t.r.ExpFloat64() / t.rate * float64(time.Second)))
	pick := t.r.Float64() * t.sum
	a := &t.accts[0]
	for i := range t.accts {
		if a = &t.accts[i]; pick < a.weight {
			break
		}
		pick -= a.weight
	}
	w := t.r.Float64() * 24
	rt := &routes[0]
	for i := range routes {
		if rt = &routes[i]; w < rt.weight {
			break
		}
		w -= rt.weight
	}
	r := usage.Row{EndUnixMS: t.now.UnixMilli(), Customer: a.customer, Subscription: a.subscription, Plan: a.plan, PlanRev: a.rev,
		Product: rt.product, API: rt.api, Route: rt.name, Outcome: usage.OutcomeSuccess, ServedRegion: "eu-west", Status: 200,
		Requests: 1, Units: 1, BytesOut: t.around(rt.out, rt.spreadOut), UpstreamUS: t.around(rt.latency, rt.spreadUS), Attempts: 1,
		KeyID: a.keys[t.r.IntN(len(a.keys))], Address: a.addresses[t.r.IntN(len(a.addresses))]}
	if a.plan != "unlimited" {
		r.Period = 1_761_955_200
	}
	if rt.in > 0 {
		r.BytesIn = t.around(rt.in, 0.3)
	}
	r.LatencyUS = r.UpstreamUS + t.around(260, 0.4)
	switch n := t.r.IntN(1000); {
	case n < 40:
		r.Outcome, r.Status, r.Units, r.BytesOut = usage.OutcomeClientError, []uint16{400, 404, 404, 409}[t.r.IntN(4)], 0, t.around(180, 0.1)
	case n < 46:
		r.Outcome, r.Status, r.Units, r.BytesOut, r.Attempts = usage.OutcomeUpstreamError, 503, 0, 120, 2
	case n < 76:
		r.Outcome, r.Status, r.Flags = usage.OutcomeLimited, 429, usage.FlagRateLimited
		r.Units, r.Period, r.BytesOut, r.UpstreamUS, r.Attempts, r.ServedRegion = 0, 0, 236, 0, 0, ""
		r.LatencyUS = t.around(70, 0.3)
	case n < 80:
		r.Outcome, r.BytesOut = usage.OutcomeAborted, r.BytesOut/3
	}
	began := r.EndUnixMS - r.LatencyUS/1000
	for i := range 6 {
		r.RequestID[i] = byte(began >> (40 - 8*i))
	}
	for i := 6; i < 16; i++ {
		r.RequestID[i] = byte(t.r.Uint32())
	}
	r.RequestID[6], r.RequestID[8] = r.RequestID[6]&0x0f|0x70, r.RequestID[8]&0x3f|0x80
	return r
}

// Sum is the ledger part of rows.
func Sum(rows []usage.Row) usage.Payload {
	p := usage.Payload{Cells: map[usage.Cell]usage.Sums{}, Latency: map[usage.LatencyKey]*usage.Sketch{}}
	for i := range rows {
		r := &rows[i]
		p.Cells[r.Cell()] = p.Cells[r.Cell()].Add(r.Sums())
		if k, ok := r.Latency(); ok {
			if p.Latency[k] == nil {
				p.Latency[k] = &usage.Sketch{}
			}
			p.Latency[k].Add(r.LatencyUS, 1)
		}
	}
	return p
}
