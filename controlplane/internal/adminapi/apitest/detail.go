package apitest

import (
	"context"
	"errors"
	"sync"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	peerv1 "bailiwick/proto/gen/bailiwick/peer/v1"
)

// Detail is the detail of a zone's only control node, as given.
type Detail struct {
	zone string
	// mu covers the rest.
	mu     sync.Mutex
	traced adminapi.Traced
	asked  []*peerv1.TraceRequest
	down   bool
	slow   time.Duration
	erased map[string]uint64 // customer to the zone store's index
}

// Set gives what every trace finds.
func (d *Detail) Set(t adminapi.Traced) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.traced = t
}

// SetSlow has Rows take its time.
func (d *Detail) SetSlow(slow time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.slow = slow
}

// SetDown makes the node answer no more.
func (d *Detail) SetDown(down bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.down = down
}

// Asked are the traces so far.
func (d *Detail) Asked() []*peerv1.TraceRequest {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

// Erased is the index at which a customer's detail was erased; 0: it was not.
func (d *Detail) Erased(customer string) uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.erased[customer]
}

func (d *Detail) Trace(_ context.Context, req *peerv1.TraceRequest) (*adminapi.Traced, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked = append(d.asked, req)
	out := d.traced
	return &out, nil
}

func (d *Detail) Rows(_ context.Context, _ string, each func([]*adminv1.TraceRow) error) ([]string, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.down {
		return []string{d.zone + "-1"}, nil
	}
	time.Sleep(d.slow)
	return nil, each(d.traced.Rows)
}

func (d *Detail) Erase(_ context.Context, customer string, index uint64) []adminapi.NodeErasure {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := adminapi.NodeErasure{Node: d.zone + "-1"}
	if d.down {
		out.Err = errors.New("away")
		return []adminapi.NodeErasure{out}
	}
	if d.erased[customer] == 0 {
		out.Files, out.Rows, out.Before, out.After = 2, 5, []string{"aa", "bb"}, []string{"cc", ""}
		d.erased = map[string]uint64{customer: index}
	}
	return []adminapi.NodeErasure{out}
}
