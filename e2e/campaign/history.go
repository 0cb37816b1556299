package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"

	"connectrpc.com/connect"

	"github.com/anishathalye/porcupine"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
	faults "bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
)

// The admin API is linearizable: while nodes are killed, paused, cut off and lose their disks, clients at all nodes of emea
// read and write registers through it, and Porcupine looks for an order that explains all they were told. A register of the
// zone is a customer's display name, one of the catalog a product's summary. Every value is written once.
type history struct {
	nodes map[string]adminv1connect.ResourceServiceClient
	names []string
	began time.Time

	mu  sync.Mutex // covers ops
	ops []porcupine.Operation
}

const (
	registers      = 6 // of each group
	historyClients = 4
	historyPause   = 40 * time.Millisecond // of a client between two calls: the campaign's load is elsewhere
	historyLook    = 2 * time.Minute       // Porcupine may look for so long
)

type (
	apiAsked struct {
		op, key, value, expect string // get; put; cas: only if the register is at expect, by its etag
	}
	apiTold struct {
		unknown, mismatch bool
		value             string // of get; "": it is not there
	}
)

// stepAPI is a register. A write whose outcome is unknown may have happened at any time until the end, or never.
func stepAPI(s, i, o any) []any {
	state, in, out := s.(string), i.(apiAsked), o.(apiTold)
	switch {
	case in.op == "get" && out.value == state:
		return []any{state}
	case in.op == "put" && out.unknown:
		return []any{state, in.value}
	case in.op == "put":
		return []any{in.value}
	case in.op == "cas" && out.unknown && state == in.expect:
		return []any{state, in.value}
	case in.op == "cas" && out.unknown, in.op == "cas" && out.mismatch && state != in.expect:
		return []any{state}
	case in.op == "cas" && !out.mismatch && state == in.expect:
		return []any{in.value}
	}
	return nil
}

var apiModel = porcupine.NondeterministicModel{
	Init: func() []any { return []any{""} },
	Step: stepAPI,
	Partition: func(ops []porcupine.Operation) (parts [][]porcupine.Operation) {
		at := map[string]int{}
		for _, op := range ops {
			key := op.Input.(apiAsked).key
			n, ok := at[key]
			if !ok {
				n, parts = len(parts), append(parts, nil)
				at[key] = n
			}
			parts[n] = append(parts[n], op)
		}
		return parts
	},
	DescribeOperation: func(in, out any) string { return fmt.Sprintf("%+v → %+v", in, out) },
}

func (w *world) newHistory() *history {
	h := &history{nodes: map[string]adminv1connect.ResourceServiceClient{}, began: time.Now()}
	for _, a := range w.s.Admin {
		if a.Zone == "emea" {
			client := w.s.AdminHTTP(false)
			client.Timeout = 7 * time.Second // more than a node waits for a quorum
			h.nodes[a.Name] = adminv1connect.NewResourceServiceClient(client, a.URL, connect.WithInterceptors(rpcfault.Client()))
			h.names = append(h.names, a.Name)
		}
	}
	return h
}

// run lets clients ask until ctx ends.
func (h *history) run(ctx context.Context, w *world) {
	var wg sync.WaitGroup
	for id := range historyClients {
		own := w.rngFor(9000 + id)
		wg.Go(func() {
			seen := map[string][2]string{} // by register: a value and its etag
			for n := 0; ctx.Err() == nil; n++ {
				in := apiAsked{op: []string{"get", "get", "put", "cas"}[own.IntN(4)], key: fmt.Sprintf("%s%d", []string{"zone", "catalog"}[own.IntN(2)], own.IntN(registers)), value: fmt.Sprintf("%d.%d", id, n)}
				last := seen[in.key]
				if in.op == "cas" && last[1] == "" {
					in.op = "get"
				}
				in.expect = last[0]
				call := time.Since(h.began)
				out, etag, keep := h.ask(h.nodes[h.names[own.IntN(len(h.names))]], in, last[1])
				back := time.Since(h.began)
				if keep {
					if out.unknown {
						back = 1000 * time.Hour
					}
					if in.op == "get" {
						seen[in.key] = [2]string{out.value, etag}
					}
					h.mu.Lock()
					h.ops = append(h.ops, porcupine.Operation{ClientId: id, Input: in, Call: call.Nanoseconds(), Output: out, Return: back.Nanoseconds()})
					h.mu.Unlock()
				}
				pause := historyPause
				if out.unknown || !keep { // each unknown outcome makes the search wider
					pause = time.Second
				}
				select {
				case <-ctx.Done():
				case <-time.After(pause):
				}
			}
		})
	}
	wg.Wait()
}

// ask does one operation; keep is false if it certainly did nothing.
func (h *history) ask(at adminv1connect.ResourceServiceClient, in apiAsked, etag string) (out apiTold, found string, keep bool) {
	ctx, cancel := context.WithTimeout(context.Background(), 6*time.Second)
	defer cancel()
	r, kind := &adminv1.Resource{Name: "register-" + in.key}, "products"
	if in.key[0] == 'z' {
		kind, r.Spec = "customers", &adminv1.Resource_Customer{Customer: &adminv1.Customer{Zone: "emea", DisplayName: in.value}}
	} else {
		r.Spec = &adminv1.Resource_Product{Product: &adminv1.Product{Apis: []string{"orders"}, Summary: in.value}}
	}
	if in.op == "get" {
		resp, err := at.Get(ctx, &adminv1.GetRequest{Kind: kind, Name: r.Name})
		if faults.KindOf(err) == faults.NotFound {
			return out, "", true
		}
		out.value = resp.GetResource().GetCustomer().GetDisplayName() + resp.GetResource().GetProduct().GetSummary()
		return out, resp.GetResource().GetEtag(), err == nil
	}
	if in.op == "cas" {
		r.Etag = etag
	}
	// By rings a change is taken back when an edge of its ring is killed, and nobody who reads or writes here would have asked for it.
	_, err := at.Apply(ctx, &adminv1.ApplyRequest{Resources: []*adminv1.Resource{r}, Now: true, Reason: "a register"})
	if err == nil {
		return out, "", true
	}
	if op, ok := errors.AsType[*net.OpError](err); ok && op.Op == "dial" {
		return out, "", false // nobody was asked
	}
	switch faults.ReasonOf(err) {
	case "ETAG_MISMATCH":
		out.mismatch = true
		return out, "", true
	case "CONCURRENT_CHANGE": // each try was committed as refused
		return out, "", false
	}
	out.unknown = true
	return out, "", true
}

// judge says how the history was found.
func (h *history) judge(w *world) {
	unknown := 0
	for _, op := range h.ops {
		if op.Output.(apiTold).unknown {
			unknown++
		}
	}
	w.mu.Lock()
	w.measures["calls in the API's history"], w.measures["of them with unknown outcome"] = float64(len(h.ops)), float64(unknown)
	w.mu.Unlock()
	switch porcupine.CheckOperationsTimeout(apiModel.ToModel(), h.ops, historyLook) {
	case porcupine.Illegal:
		w.breach("the API's history of %d calls has no order that explains what clients were told", len(h.ops))
	case porcupine.Unknown:
		w.breach("whether the API's history of %d calls (%d of unknown outcome) has an order was not found out within %s", len(h.ops), unknown, historyLook)
	}
	if len(h.ops)-unknown < 50 {
		w.breach("only %d calls of the API's history were answered: they prove nothing", len(h.ops)-unknown)
	}
}
