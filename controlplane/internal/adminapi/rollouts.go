package adminapi

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/rollout"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// order says how what a call changes in the catalog goes out to edges; commit answers in staged.
type order struct {
	now    bool
	reason string
	soak   time.Duration
	aside  bool // it ends a roll-out, and begins none
	staged rollout.Staged
}

type orderKey struct{}

func withOrder(ctx context.Context, o *order) context.Context {
	return context.WithValue(ctx, orderKey{}, o)
}

// newOrder refuses to skip the rings without a word for the record.
func newOrder(now bool, reason string, soak time.Duration) (*order, error) {
	if now && strings.TrimSpace(reason) == "" {
		return nil, fault.New(fault.Invalid, "REASON_MISSING", "to send a change to all edges at once needs a reason: say it with --reason").At("reason")
	}
	if now && soak != 0 {
		return nil, fault.New(fault.Invalid, "SOAK_INVALID", "what goes to all edges at once passes no ring to be watched: leave out --soak or --now").At("soak")
	}
	if soak < 0 || soak > rollout.MaxSoak {
		return nil, fault.New(fault.Invalid, "SOAK_INVALID", "a ring is watched for at least 0 and at most %s", rollout.MaxSoak).At("soak")
	}
	return &order{now: now, reason: reason, soak: soak}, nil
}

// stage has a transaction of the catalog go out by rings. It rests on the same state as the transaction: the fence holds
// both to it.
func (s *server) stage(ctx context.Context, by string, t group.Txn) (group.Txn, error) {
	o, _ := ctx.Value(orderKey{}).(*order)
	if o == nil {
		o = &order{}
	}
	if o.aside || !slices.ContainsFunc(t.Ops, func(op group.Op) bool { return model.Staged(op.Key) }) {
		return t, nil
	}
	at := slices.IndexFunc(t.Compares, func(c group.Compare) bool { return c.Key == fenceKey && !c.Exists })
	if at < 0 {
		return t, fault.New(fault.Internal, "UNFENCED", "a change of the catalog is not held to what it was judged against")
	}
	snap := s.Catalog.Local()
	if (state{snap: snap}).mod(fenceKey) != t.Compares[at].ModIndex {
		var err error
		if snap, err = s.fresh(ctx, s.Catalog); err != nil {
			return t, err
		}
	}
	if (state{snap: snap}).mod(fenceKey) != t.Compares[at].ModIndex {
		return t, nil // its own compare refuses it
	}
	staged, err := rollout.Stage(snap, t.Ops, rollout.Order{By: by, At: time.Now().UTC(), Now: o.now, Reason: o.reason, Soak: o.soak})
	if err != nil {
		return t, fmt.Errorf("part the change into rings: %w", err)
	}
	o.staged = staged
	t.Ops, t.Compares = append(slices.Clip(t.Ops), staged.Ops...), append(slices.Clip(t.Compares), staged.Compares...)
	return t, nil
}

// skips says what of the documents that rest in a zone goes to its edges at once, as all of them do.
func skips(changes []*adminv1.Change) (out []string) {
	for _, c := range changes {
		if c.GetAction() != created && c.GetAction() != updated {
			continue
		}
		switch c.GetKind() {
		case "Closure":
			out = append(out, fmt.Sprintf("Closure %s goes to all edges of its zone at once: what closes waits for no ring", c.GetName()))
		case "Customer":
			for _, f := range c.GetFields() {
				if f.GetField() == "spec.status" && f.GetNew() != "active" {
					out = append(out, fmt.Sprintf("Customer %s goes to all edges of its zone at once: a suspension waits for no ring", c.GetName()))
				}
			}
		}
	}
	return out
}

// ListRollouts shows the one under way, with each zone's word, and those that ended.
func (s *server) ListRollouts(ctx context.Context, _ *adminv1.ListRolloutsRequest) (*adminv1.ListRolloutsResponse, error) {
	snap := s.freshOrLocal(ctx, s.Catalog)
	out := &adminv1.ListRolloutsResponse{}
	r, ok, err := stored[model.Rollout](snap, model.KeyRollout)
	if err != nil {
		return nil, err
	}
	if ok {
		out.Rollouts = append(out.Rollouts, rolloutOf(snap, r))
	}
	var ended []*adminv1.Rollout
	for kv := range snap.List(model.PrefixRollout) {
		r, err := model.Decode[model.Rollout](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		ended = append(ended, rolloutOf(snap, r))
	}
	slices.Reverse(ended)
	out.Rollouts = append(out.Rollouts, ended...)
	return out, nil
}

func rolloutOf(snap group.Snapshot, r model.Rollout) *adminv1.Rollout {
	out := &adminv1.Rollout{Name: r.Name(), State: r.State, Why: r.Why, Edge: r.Edge, Api: r.API, Reason: r.Reason, Changed: int32(r.Changed),
		BaseIndex: r.Base, TargetIndex: r.Target, BeganAt: timestamppb.New(r.Began), Since: timestamppb.New(r.Since)}
	for _, c := range r.Changes {
		out.Changes = append(out.Changes, c.Kind+" "+c.Name)
	}
	for _, z := range r.Zones {
		row := &adminv1.RolloutZone{Zone: z.Zone, Canary: z.Canary, Rings: []string{"canary " + z.Canary}, Ring: int32(z.Ring), Word: rollout.Waiting}
		for _, ring := range z.Rings {
			row.Rings = append(row.Rings, strings.Join(ring.Regions, ", "))
		}
		w, ok, err := stored[model.RolloutWord](snap, model.PrefixWord+z.Zone)
		if ok && err == nil && w.Number == r.Number && w.Round == r.Round && w.Ring == z.Ring {
			row.Word, row.Why, row.Edge = w.Verdict, w.Why, w.Edge
		}
		switch {
		case z.Done:
			row.Ring, row.Word = int32(len(row.Rings)), rollout.Good
		case z.Away:
			row.Word = "away"
		}
		out.Zones = append(out.Zones, row)
	}
	return out
}

// SteerRollout is an operator's hand on the roll-out under way.
func (s *server) SteerRollout(ctx context.Context, req *adminv1.SteerRolloutRequest) (*adminv1.SteerRolloutResponse, error) {
	if role := caller(ctx).Role; role != RoleAdmin {
		return nil, fault.New(fault.Denied, "ROLE_INSUFFICIENT", "a roll-out is every zone's: role %q does not steer it", role)
	}
	ctx = withOrder(ctx, &order{aside: true})
	for range maxAttempts {
		snap, err := s.fresh(ctx, s.Catalog)
		if err != nil {
			return nil, err
		}
		r, ok, err := stored[model.Rollout](snap, model.KeyRollout)
		if err != nil {
			return nil, err
		}
		if !ok || r.Name() != req.GetName() {
			return nil, fault.New(fault.NotFound, "ROLLOUT_NOT_UNDER_WAY", "roll-out %s is not under way: bailiwick rollout list shows what is", req.GetName()).At("name")
		}
		end, err := steer(snap, &r, req.GetAction(), req.GetReason(), time.Now().UTC())
		if err != nil {
			return nil, err
		}
		// The audit's record is the caller's, and the fence is this call's own.
		end.Ops = slices.DeleteFunc(end.Ops, func(op group.Op) bool { return op.Key == model.KeyAudit || op.Key == fenceKey })
		end.Compares = slices.DeleteFunc(end.Compares, func(c group.Compare) bool { return c.Key == fenceKey })
		ops, compares := fenced(state{snap: snap}, end.Ops, end.Compares)
		res, err := s.commit(ctx, s.Catalog, group.Txn{RequestID: requestID("rollout/"+req.GetAction(), ""), Ops: ops, Compares: compares})
		if err != nil {
			return nil, err
		}
		if res.Succeeded {
			return &adminv1.SteerRolloutResponse{Rollout: rolloutOf(s.Catalog.Local(), r)}, nil
		}
	}
	return nil, outran()
}

// steer is what an action comes to; r becomes what it leaves.
func steer(snap group.Snapshot, r *model.Rollout, action, reason string, at time.Time) (end rollout.Ending, err error) {
	was := r.State
	r.Why, r.Reason, r.Since = rollout.WhyOperator, reason, at
	switch action {
	case "promote":
		if end, err = rollout.Release(snap, *r, at); err == nil {
			r.State = model.RolloutDone
		}
		return end, err
	case "abort":
		end, err = rollout.Back(snap, *r, at)
		switch {
		case err != nil:
		case end.Stopped == nil:
			r.State = model.RolloutRolledBack
		case was == model.RolloutStopped:
			return end, end.Stopped
		default:
			r.State, r.Why = model.RolloutStopped, fault.ReasonOf(end.Stopped)
		}
		return end, err
	case "pause":
		if was != model.RolloutRunning {
			return end, fault.New(fault.Conflict, "ROLLOUT_NOT_RUNNING", "roll-out %s is %s: only a running one is paused", r.Name(), was)
		}
		r.State = model.RolloutPaused
	default:
		if was != model.RolloutPaused && was != model.RolloutStopped {
			return end, fault.New(fault.Conflict, "ROLLOUT_NOT_PAUSED", "roll-out %s is %s: only a paused or stopped one is resumed; abort takes it back and promote sends it to all edges", r.Name(), was)
		}
		r.State = model.RolloutRunning
		if was == model.RolloutStopped { // no edge holds it: it begins anew, at the canaries
			r.Round, r.Zones, r.Edge, r.API = r.Round+1, nil, "", ""
		}
	}
	kv, _ := snap.Get(model.KeyRollout)
	return rollout.Ending{Ops: []group.Op{{Key: model.KeyRollout, Value: model.Encode(*r)}}, Compares: []group.Compare{{Key: model.KeyRollout, ModIndex: kv.ModIndex}}}, nil
}
