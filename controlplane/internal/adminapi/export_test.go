package adminapi

import (
	"context"
	"strings"

	"google.golang.org/protobuf/reflect/protoreflect"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// Patient is patient, with a stall that a test can wait for.
var Patient = patient

// PlaceFault says what is wrong with the places of the things that an answer lists.
func PlaceFault(answer protoreflect.MessageDescriptor) string {
	if answer.Name() == "ListResponse" {
		return "" // by name
	}
	f := listField(answer)
	if f == nil || len(places[f.Message().Name()]) == 0 {
		return "what it lists has no order in places"
	}
	for _, name := range places[f.Message().Name()] {
		if name = strings.TrimPrefix(name, "-"); name != "decided" && f.Message().Fields().ByName(protoreflect.Name(name)) == nil {
			return "no field " + name
		}
	}
	return ""
}

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
