package adminapi

import (
	"context"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// Patient is patient, with a stall that a test can wait for.
var Patient = patient

// Commit is what a call does that asks nobody before it writes.
func Commit(ctx context.Context, cfg Config, by model.Operator, store group.Store, op group.Op) error {
	s := &server{Config: cfg}
	t := group.Txn{RequestID: requestID("test", ""), Ops: []group.Op{op}}
	t.Ops, t.Compares = fenced(state{snap: store.Local()}, t.Ops, nil)
	_, err := s.commit(context.WithValue(ctx, operatorKey{}, by), store, t)
	return err
}

// Readings says of each procedure whether its answer can tell of a customer.
func Readings() map[string]bool {
	out := map[string]bool{}
	for p, r := range readings {
		out[p] = r.whose != nil
		if (r.whose == nil) == (r.why == "") {
			panic(p + " is classified neither as telling of customers nor with the reason why it does not")
		}
	}
	return out
}
