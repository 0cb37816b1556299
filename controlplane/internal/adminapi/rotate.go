package adminapi

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"strconv"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/apikey"
	"bailiwick/shared/fault"
)

// Limits of a rotation: how long the old key works beside the new one.
const (
	DefaultOverlap = 24 * time.Hour
	MaxOverlap     = 90 * 24 * time.Hour
)

func has(snap group.Snapshot, key string) bool { _, ok := snap.Get(key); return ok }

// findKey is one key, ended and revoked ones too.
func (s *server) findKey(snap group.Snapshot, id string) (group.KV, model.Key, error) {
	kv, ok := snap.Get(model.PrefixKey + id)
	if !ok {
		return kv, model.Key{}, fault.New(fault.NotFound, "KEY_NOT_FOUND", "zone %s has no key %q", s.Zone, id)
	}
	key, err := model.Decode[model.Key](kv.Key, kv.Value)
	return kv, key, err
}

// RotateKey makes one transaction of the new key and the old one's end: no revision has one without the other. The end is in
// what edges hold, so none needs to be reached when it comes. It needs the zone's quorum and nothing of the catalog.
func (s *server) RotateKey(ctx context.Context, req *adminv1.RotateKeyRequest) (*adminv1.RotateKeyResponse, error) {
	overlap, err := duration(req.GetOverlap(), "overlap")
	if err != nil {
		return nil, err
	}
	if req.GetOverlap() == nil {
		overlap = DefaultOverlap
	}
	if overlap < 0 || overlap > MaxOverlap {
		return nil, fault.New(fault.Invalid, "OVERLAP_INVALID", "an overlap of %v is outside 0 to %d days", overlap, int(MaxOverlap.Hours()/24)).At("overlap")
	}
	id := requestID("rotate/"+req.GetId(), req.GetRequestId())
	request := digestOf([]byte(id))
	for attempt := range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return nil, err
		}
		kv, old, err := s.findKey(snap, req.GetId())
		if err != nil {
			return nil, err
		}
		before := state{snap: snap}
		end, ending, err := stored[model.KeyEnd](snap, model.PrefixKeyEnd+old.ID)
		if err != nil {
			return nil, err
		}
		switch {
		case ending && end.RequestSHA256 == request:
			return nil, fault.New(fault.Conflict, "KEY_ALREADY_CREATED", "key %s was created for this request id before, and its text cannot be shown again: undo the rotation of %s, revoke %s, and rotate anew", end.ReplacedBy, old.ID, end.ReplacedBy).With("id", end.ReplacedBy)
		case old.Kind != "":
			return nil, fault.New(fault.Conflict, "KEY_BOUND", "key %s of customer %s is bound to a %s and has no text that could be replaced: create another for what takes its place, and revoke this one", old.ID, old.Customer, old.Kind)
		case old.Status != keyActive:
			return nil, fault.New(fault.Conflict, "KEY_REVOKED", "key %s of customer %s is revoked: create another with bailiwick key create", old.ID, old.Customer)
		case ending:
			return nil, fault.New(fault.Conflict, "KEY_ROTATED", "key %s was rotated before: it ends at %s, and key %s takes its place: rotate that one", old.ID, end.At.Format(time.RFC3339), end.ReplacedBy).With("id", end.ReplacedBy)
		case !has(snap, model.PrefixCustomer+old.Customer):
			return nil, s.customerUnknown(old.Customer)
		}
		at := time.Now().UTC()
		keyID, text, err := apikey.Mint(s.Zone, rand.Reader)
		if err != nil {
			return nil, err
		}
		sum := s.hasher.Sum(text.Reveal())
		fresh := model.Key{ID: keyID, DigestHex: hex.EncodeToString(sum[:]), Customer: old.Customer, Subscription: old.Subscription,
			Plan: old.Plan, Status: keyActive, CreatedAt: at.Truncate(time.Millisecond), Scopes: old.Scopes, AllowFrom: old.AllowFrom, Labels: old.Labels}
		ends := at.Add(overlap + time.Second - 1).Truncate(time.Second) // edges count whole seconds: never less than was asked for
		ops := []group.Op{{Key: model.PrefixKey + keyID, Value: model.Encode(fresh)}, {Key: keysFence(old.Customer), Value: []byte(keyID)},
			{Key: model.PrefixKeyEnd + old.ID, Value: model.Encode(model.KeyEnd{ID: old.ID, At: ends, ReplacedBy: keyID, RequestSHA256: request})}}
		if overlap == 0 {
			old.Status = keyRevoked
			ops = append(ops, group.Op{Key: kv.Key, Value: model.Encode(old)})
		}
		res, err := s.commit(ctx, s.Store, group.Txn{RequestID: id + "/" + strconv.Itoa(attempt), Ops: ops, Compares: []group.Compare{{Key: kv.Key, ModIndex: kv.ModIndex},
			compareAt(before, model.PrefixKeyEnd+old.ID), {Key: model.PrefixCustomer + old.Customer, Exists: true}, {Key: model.PrefixKey + keyID}}})
		if err != nil {
			return nil, err
		}
		if res.Succeeded {
			// The group remembers a request longer than an undone rotation leaves a trace, and two calls with one id may both
			// have looked before either wrote: the text of a key that is not there is worse than none.
			if local := s.Store.Local(); !has(local, model.PrefixKey+keyID) {
				return nil, alreadyCreated(local, res.Revision.Index)
			}
			return &adminv1.RotateKeyResponse{Id: keyID, Key: text.Reveal(), OldId: old.ID, OldExpiresAt: timestamppb.New(ends)}, nil
		}
	}
	return nil, outran()
}

// UndoRotation takes the end of a key away, if it has not come and will not while this is written: an edge that nobody
// reaches has ended the key by then, and a key is never given back what it has lost. It is held to the key as well: the
// sweep may have noted meanwhile that it ended.
func (s *server) UndoRotation(ctx context.Context, req *adminv1.UndoRotationRequest) (*adminv1.UndoRotationResponse, error) {
	id := requestID("undo-rotation/"+req.GetId(), req.GetRequestId())
	for attempt := range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return nil, err
		}
		kv, key, err := s.findKey(snap, req.GetId())
		if err != nil {
			return nil, err
		}
		end, ending, err := stored[model.KeyEnd](snap, model.PrefixKeyEnd+key.ID)
		switch {
		case err != nil:
			return nil, err
		case key.Status != keyActive, ending && !time.Now().Before(end.At):
			return nil, fault.New(fault.Conflict, "KEY_ENDED", "key %s has ended and stays so: create another with bailiwick key create --customer %s", key.ID, key.Customer)
		case ending && !time.Now().Add(s.Wait).Before(end.At):
			return nil, fault.New(fault.Conflict, "KEY_ENDED", "key %s ends at %s, and to undo that may take %v: it is too late; create another with bailiwick key create --customer %s", key.ID, end.At.Format(time.RFC3339), s.Wait, key.Customer)
		case !ending:
			return nil, fault.New(fault.Conflict, "KEY_NOT_ROTATED", "key %s does not end: there is no rotation to undo", key.ID)
		}
		res, err := s.commit(ctx, s.Store, group.Txn{RequestID: id + "/" + strconv.Itoa(attempt),
			Compares: []group.Compare{{Key: kv.Key, ModIndex: kv.ModIndex}, compareAt(state{snap: snap}, model.PrefixKeyEnd+key.ID)}, Ops: []group.Op{{Key: model.PrefixKeyEnd + key.ID, Delete: true}}})
		if err != nil {
			return nil, err
		}
		if res.Succeeded {
			if res.Replayed && has(s.Store.Local(), model.PrefixKeyEnd+key.ID) {
				return nil, fault.New(fault.Conflict, "REQUEST_ID_REUSED", "request id %q undid another rotation of key %s before, and this one stands: give each change an id of its own", req.GetRequestId(), key.ID).At("request_id")
			}
			return &adminv1.UndoRotationResponse{NewId: end.ReplacedBy}, nil
		}
	}
	return nil, outran()
}

// ListKeys answers a customer's keys in the order in which they were made, and all of a zone in the order of their ids:
// of a million nobody sorts each page anew.
func (s *server) ListKeys(ctx context.Context, req *adminv1.ListKeysRequest) (*adminv1.ListKeysResponse, error) {
	p, err := s.pageOf(req, (&adminv1.Key{}).ProtoReflect().Descriptor())
	if err != nil {
		return nil, err
	}
	snap, err := s.fresh(ctx, s.Store)
	if err != nil {
		return nil, err
	}
	replaces := map[string]string{}
	for kv := range snap.List(model.PrefixKeyEnd) {
		end, err := model.Decode[model.KeyEnd](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		replaces[end.ReplacedBy] = end.ID
	}
	now := time.Now()
	show := func(kv group.KV) (*adminv1.Key, error) {
		k, err := model.Decode[model.Key](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		out := &adminv1.Key{Id: k.ID, Customer: k.Customer, Subscription: k.Subscription, Plan: k.Plan, Status: k.Status, CreatedAt: timestamppb.New(k.CreatedAt), Replaces: replaces[k.ID], Scopes: k.Scopes, AllowFrom: k.AllowFrom, Kind: k.Kind, Labels: k.Labels}
		end, ends, err := stored[model.KeyEnd](snap, model.PrefixKeyEnd+k.ID)
		if ends {
			out.ExpiresAt, out.ReplacedBy = timestamppb.New(end.At), end.ReplacedBy
			if k.Status == keyActive && !now.Before(end.At) {
				out.Status = keyEnded
			}
		}
		return out, err
	}
	out := &adminv1.ListKeysResponse{}
	if name := req.GetCustomer(); name != "" {
		if !has(snap, model.PrefixCustomer+name) {
			return nil, s.customerUnknown(name)
		}
		var items []placed[*adminv1.Key]
		for kv := range snap.List(model.PrefixKey) {
			if err := ctx.Err(); err != nil { // of a million, under a long filter, the last come after everybody has gone
				return nil, err
			}
			k, err := show(kv)
			if err != nil {
				return nil, err
			}
			if k.Customer != name {
				continue
			}
			if at := placeOf(k.ProtoReflect()); at > p.after && p.filter.Match(k.ProtoReflect()) {
				items = append(items, placed[*adminv1.Key]{at, k})
			}
		}
		out.Keys, out.NextPageToken, err = sorted(p, items)
		return out, err
	}
	out.Keys, out.NextPageToken, err = take(p, func(yield func(placed[*adminv1.Key], error) bool) {
		for kv := range group.ListAfter(snap, model.PrefixKey, model.PrefixKey+p.after) {
			k, err := show(kv)
			if err == nil {
				err = ctx.Err()
			}
			if err != nil {
				yield(placed[*adminv1.Key]{}, err)
				return
			}
			if p.filter.Match(k.ProtoReflect()) && !yield(placed[*adminv1.Key]{kv.Key[len(model.PrefixKey):], k}, nil) {
				return
			}
		}
	})
	return out, err
}
