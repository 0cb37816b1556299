package adminapi

import (
	"context"
	"encoding/hex"
	"strconv"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/apikey"
	"bailiwick/shared/fault"
)

// keysACall is how many keys of CreateKeys count as one call.
const keysACall = 100

// CreateKeys is CreateKey of many: all of them in one transaction, so that they are all there or none is, in one entry of the
// audit. Edges hear of them as of any others.
func (s *server) CreateKeys(ctx context.Context, req *adminv1.CreateKeysRequest) (*adminv1.CreateKeysResponse, error) {
	one, n := req.GetKey(), int(req.GetCount())
	if z := one.GetZone(); z != "" && z != s.Zone {
		return nil, s.wrongZone("customer "+one.GetCustomer(), z)
	}
	bounds, err := model.Key{}.Bound(one.GetScopes(), one.GetAllowFrom())
	if err != nil {
		return nil, err
	}
	labelled, err := model.Labels("the keys", one.GetLabels())
	if err != nil {
		return nil, err
	}
	if one.GetCertificate()+one.GetTokenIssuer()+one.GetTokenSubject() != "" {
		return nil, fault.New(fault.Invalid, "CREDENTIAL_INVALID", "a key that is bound to a certificate or a token is one of its kind: create it by itself").At("key")
	}
	if err := s.meter.takes(operator(ctx), (n-1)/keysACall, time.Now()); err != nil { // the call itself has counted
		return nil, err
	}
	id := requestID("keys", one.GetRequestId())
	for attempt := range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return nil, err
		}
		before := state{snap: snap}
		customer, ok, err := get[model.Customer](before, model.PrefixCustomer+one.GetCustomer())
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, s.customerUnknown(one.GetCustomer())
		}
		sub, err := choose(customer, one)
		if err != nil {
			return nil, err
		}
		key := model.Key{Customer: customer.Name, Subscription: sub.Name, Plan: sub.Plan, Status: keyActive, CreatedAt: time.Now().UTC().Truncate(time.Millisecond),
			Scopes: bounds.Scopes, AllowFrom: bounds.AllowFrom, Labels: labelled}
		err = onceLeveled(ctx, s.Wait, func() error { return leveled(s.freshOrLocal(ctx, s.Catalog), "key", key, s.Zone, s.Zone) })
		if err != nil {
			return nil, err
		}
		t := group.Txn{RequestID: id + "/" + strconv.Itoa(attempt), Compares: []group.Compare{compareAt(before, model.PrefixCustomer+customer.Name)}}
		texts := make([]apikey.Text, n)
		answer := &adminv1.CreateKeysResponse{}
		for i := range n {
			var sum apikey.Digest
			if key.ID, texts[i], sum, err = s.mint("", ""); err != nil {
				return nil, err
			}
			key.DigestHex = hex.EncodeToString(sum[:])
			if _, has := snap.Get(model.PrefixKey + key.ID); has {
				return nil, fault.New(fault.Unavailable, "KEY_DRAWN_TWICE", "a key was drawn that exists: try again")
			}
			t.Ops = append(t.Ops, group.Op{Key: model.PrefixKey + key.ID, Value: model.Encode(key)})
			answer.Keys = append(answer.Keys, &adminv1.CreateKeyResponse{Id: key.ID})
		}
		t.Ops = append(t.Ops, group.Op{Key: keysFence(customer.Name), Value: []byte(key.ID)})
		res, err := s.commit(ctx, s.Store, t)
		if err != nil {
			return nil, err
		}
		if !res.Succeeded {
			continue
		}
		if kv, ours := s.Store.Local().Get(model.PrefixKey + answer.Keys[0].Id); !ours || res.Replayed && kv.ModIndex != res.Revision.Index {
			return nil, keysAlreadyCreated(s.Store.Local(), res.Revision.Index)
		}
		for i, k := range answer.Keys {
			k.Key = texts[i].Reveal()
		}
		return answer, nil
	}
	return nil, outran()
}

// keysAlreadyCreated names what an earlier call with the same id made.
func keysAlreadyCreated(snap group.Snapshot, index uint64) error {
	var ids []string
	for kv := range snap.List(model.PrefixKey) {
		if kv.CreateIndex == index {
			ids = append(ids, strings.TrimPrefix(kv.Key, model.PrefixKey))
		}
	}
	return fault.New(fault.Conflict, "KEY_ALREADY_CREATED", "%d keys were created for this request id before, and their texts cannot be shown again: revoke them and create others", len(ids)).With("id", strings.Join(ids, " "))
}
