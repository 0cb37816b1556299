package adminapi

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/hex"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/alert"
	"bailiwick/controlplane/internal/erasure"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
)

// edgeWait is how long an erasure waits for edges to confirm that they hold no key of the customer any more.
const edgeWait = 5 * time.Second

// Erase may be repeated, and has to be while something is pending: it goes on where it stood. Each step leaves the
// zone store in a state from which the next call goes on, so it needs no transaction over all of them.
func (s *server) Erase(ctx context.Context, req *adminv1.EraseRequest) (*adminv1.EraseResponse, error) {
	if s.Detail == nil || len(s.Signer) != ed25519.PrivateKeySize {
		return nil, fault.New(fault.Unimplemented, "DETAIL_OFF", "node %s keeps no detail and cannot erase a customer", s.Node)
	}
	name := req.GetCustomer()
	if err := s.bury(ctx, name, req.GetReason()); err != nil {
		return nil, err
	}
	index, err := s.sweep(ctx, name)
	if err != nil {
		return nil, err
	}
	record, err := s.eraseDetail(ctx, name, index)
	if err != nil {
		return nil, err
	}
	pending := s.unconfirmed(ctx, record, index)
	st := erasure.Statement{Zone: s.Zone, Customer: name, Reason: record.Reason, By: record.By, ErasedAt: record.At,
		StatedAt: time.Now().UTC().Truncate(time.Second), ZoneIndex: index, Pending: pending,
		Removed: erasure.Removed{RecordSHA256: record.RecordSHA256, Keys: record.Keys, KeysSHA256: record.KeysSHA256, Webhooks: record.Webhooks, Alerts: record.Alerts, Detail: record.Nodes}}
	text, signature, err := erasure.Sign(s.Signer, st)
	if err != nil {
		return nil, err
	}
	return &adminv1.EraseResponse{Statement: text, Signature: signature, Pending: pending}, nil
}

func digestOf(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:])
}

// bury puts the tombstone in the place of the customer's record. From its revision on no key can be made for him,
// and no row of his comes to rest.
func (s *server) bury(ctx context.Context, name, reason string) error {
	for range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return err
		}
		before := state{snap: snap}
		gone, was, err := stored[model.Gone](snap, model.PrefixGone+name)
		if err != nil {
			return err
		}
		if was && !gone.Erased.IsZero() {
			return nil
		}
		kv, is := snap.Get(model.PrefixCustomer + name)
		if !is && !was {
			return s.customerUnknown(name)
		}
		now := time.Now().UTC().Truncate(time.Second)
		e := model.Erasure{Customer: name, Reason: reason, By: operator(ctx), At: now}
		if !was {
			gone = model.Gone{Name: name, At: now}
		}
		gone.Erased = now
		ops := []group.Op{}
		if is {
			e.RecordSHA256 = digestOf(kv.Value)
			ops = append(ops, group.Op{Key: kv.Key, Delete: true})
			if _, kept := snap.Get(keysFence(name)); kept {
				ops = append(ops, group.Op{Key: keysFence(name), Delete: true})
			}
		}
		ops = append(ops, group.Op{Key: model.PrefixGone + name, Value: model.Encode(gone)}, group.Op{Key: model.PrefixErasure + name, Value: model.Encode(e)})
		compares := []group.Compare{compareAt(before, model.PrefixCustomer+name), compareAt(before, model.PrefixGone+name), compareAt(before, keysFence(name))}
		ops, compares = fenced(before, ops, compares)
		res, err := s.commit(ctx, s.Store, group.Txn{RequestID: requestID("erase/"+name, ""), Ops: ops, Compares: compares})
		if err != nil {
			return err
		}
		if res.Succeeded {
			return nil
		}
	}
	return outran()
}

// sweepOps bounds one transaction of sweep.
const sweepOps = 1000

// sweep removes what names the customer beside his record: keys, webhooks and alerts. It answers the revision at
// which none of it is left.
func (s *server) sweep(ctx context.Context, name string) (uint64, error) {
	for attempt := 0; attempt < maxAttempts; {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return 0, err
		}
		before := state{snap: snap}
		e, ok, err := stored[model.Erasure](snap, model.PrefixErasure+name)
		if err != nil {
			return 0, err
		}
		if !ok {
			return 0, fault.New(fault.Internal, "ERASURE_LOST", "the record of the erasure of %s is not there", name)
		}
		ops, err := s.remains(snap, &e)
		if err != nil {
			return 0, err
		}
		if len(ops) == 0 {
			return snap.Revision().Index, nil
		}
		ops = append(ops, group.Op{Key: model.PrefixErasure + name, Value: model.Encode(e)})
		res, err := s.commit(ctx, s.Store, group.Txn{RequestID: requestID("erase/"+name, ""), Ops: ops, Compares: []group.Compare{compareAt(before, model.PrefixErasure+name)}})
		if err != nil {
			return 0, err
		}
		if !res.Succeeded {
			attempt++
		}
	}
	return 0, outran()
}

// remains are the operations that remove some of what is left, counted into e.
func (s *server) remains(snap group.Snapshot, e *model.Erasure) (ops []group.Op, err error) {
	for kv := range snap.List(model.PrefixKey) {
		k, err := model.Decode[model.Key](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if k.Customer != e.Customer {
			continue
		}
		if len(ops) >= sweepOps-1 {
			return ops, nil
		}
		ops = append(ops, group.Op{Key: kv.Key, Delete: true})
		if end := model.PrefixKeyEnd + k.ID; has(snap, end) {
			ops = append(ops, group.Op{Key: end, Delete: true})
		}
		e.Keys, e.KeysSHA256 = e.Keys+1, digestOf([]byte(e.KeysSHA256+k.ID+"\n"))
	}
	for kv := range snap.List(model.PrefixWebhook) {
		w, err := model.Decode[alert.Webhook](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if w.Customer == e.Customer && len(ops) < sweepOps {
			ops, e.Webhooks = append(ops, group.Op{Key: kv.Key, Delete: true}), e.Webhooks+1
		}
	}
	for kv := range snap.List(model.PrefixAlert + e.Customer + "/") {
		if len(ops) == sweepOps {
			break
		}
		ops, e.Alerts = append(ops, group.Op{Key: kv.Key, Delete: true}), e.Alerts+1
	}
	return ops, nil
}

// eraseDetail asks the nodes that have not confirmed yet, and keeps what they say.
func (s *server) eraseDetail(ctx context.Context, name string, index uint64) (model.Erasure, error) {
	answers := s.Detail.Erase(ctx, name, index)
	for range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return model.Erasure{}, err
		}
		before := state{snap: snap}
		e, _, err := stored[model.Erasure](snap, model.PrefixErasure+name)
		if err != nil {
			return e, err
		}
		if !note(&e, answers) {
			return e, nil
		}
		res, err := s.commit(ctx, s.Store, group.Txn{RequestID: requestID("erase/"+name, ""), Ops: []group.Op{{Key: model.PrefixErasure + name, Value: model.Encode(e)}},
			Compares: []group.Compare{compareAt(before, model.PrefixErasure+name)}})
		if err != nil || res.Succeeded {
			return e, err
		}
	}
	return model.Erasure{}, outran()
}

// note adds what nodes did, and says whether that is news.
func note(e *model.Erasure, answers []NodeErasure) (news bool) {
	for _, a := range answers {
		if a.Err != nil {
			continue
		}
		i := slices.IndexFunc(e.Nodes, func(n model.NodeErased) bool { return n.Node == a.Node })
		if i >= 0 && a.Files == 0 {
			continue
		}
		if i < 0 {
			e.Nodes = append(e.Nodes, model.NodeErased{Node: a.Node})
			i = len(e.Nodes) - 1
		}
		n := &e.Nodes[i]
		n.At, n.Files, n.Rows = time.Now().UTC().Truncate(time.Second), n.Files+a.Files, n.Rows+a.Rows
		n.BeforeSHA256, n.AfterSHA256 = digestOf([]byte(strings.Join(a.Before, "\n"))), digestOf([]byte(strings.Join(a.After, "\n")))
		if len(a.Before) <= model.ErasedListed {
			n.Before, n.After = a.Before, a.After
		}
		news = true
	}
	slices.SortFunc(e.Nodes, func(a, b model.NodeErased) int { return strings.Compare(a.Node, b.Node) })
	return news
}

// unconfirmed names the zone's nodes that may still hold something: control nodes that did not answer, and edges
// that have not acknowledged a table without the customer's keys.
func (s *server) unconfirmed(ctx context.Context, e model.Erasure, index uint64) []string {
	pending := []string{}
	edges := map[string]bool{}
	for kv := range s.Catalog.Local().List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		switch {
		case err != nil || n.Zone != s.Zone:
		case n.Kind == identity.Edge:
			edges[n.Name] = true
		case !slices.ContainsFunc(e.Nodes, func(done model.NodeErased) bool { return done.Node == n.Name }):
			pending = append(pending, n.Name)
		}
	}
	for end := time.Now().Add(min(edgeWait, s.Wait)); s.Edges != nil; {
		reports, _, err := s.Edges.Reports(ctx)
		for _, r := range reports {
			if err == nil && r.GetZone().GetIndex() >= index {
				delete(edges, r.GetEdge())
			}
		}
		if len(edges) == 0 || time.Now().After(end) || ctx.Err() != nil {
			break
		}
		select {
		case <-ctx.Done():
		case <-time.After(200 * time.Millisecond):
		}
	}
	for name := range edges {
		pending = append(pending, name)
	}
	slices.Sort(pending)
	return pending
}
