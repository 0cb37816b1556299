package adminapi

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
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

const (
	keyActive  = "active"
	keyRevoked = "revoked"
	keyEnded   = "ended" // shown, not stored: until a leader has noted it
)

// CreateKey needs the zone's quorum and nothing of the catalog. The text of the key leaves in this answer and
// rests nowhere; an answer that got lost cannot be repeated, so the same request id is refused and names the
// key whose text nobody has.
func (s *server) CreateKey(ctx context.Context, req *adminv1.CreateKeyRequest) (*adminv1.CreateKeyResponse, error) {
	if z := req.GetZone(); z != "" && z != s.Zone {
		return nil, s.wrongZone("customer "+req.GetCustomer(), z)
	}
	bounds, err := model.Key{}.Bound(req.GetScopes(), req.GetAllowFrom())
	if err != nil {
		return nil, err
	}
	labelled, err := model.Labels("the key", req.GetLabels())
	if err != nil {
		return nil, err
	}
	kind, bound, err := binding(req)
	if err != nil {
		return nil, err
	}
	id := requestID("key", req.GetRequestId())
	for attempt := range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return nil, err
		}
		before := state{snap: snap}
		customer, ok, err := get[model.Customer](before, model.PrefixCustomer+req.GetCustomer())
		if err != nil {
			return nil, err
		}
		if !ok {
			return nil, s.customerUnknown(req.GetCustomer())
		}
		sub, err := choose(customer, req)
		if err != nil {
			return nil, err
		}
		keyID, text, sum, err := s.mint(kind, bound)
		if err != nil {
			return nil, err
		}
		was, has := before.snap.Get(model.PrefixKey + keyID)
		if has {
			if old, err := model.Decode[model.Key](was.Key, was.Value); err != nil {
				return nil, err
			} else if old.Status == keyActive {
				return nil, fault.New(fault.Conflict, "CREDENTIAL_BOUND", "key %s of customer %s is bound to this %s already: revoke it first", old.ID, old.Customer, kind).With("id", old.ID)
			}
		}
		key := model.Key{Kind: kind, ID: keyID, DigestHex: hex.EncodeToString(sum[:]), Customer: customer.Name, Subscription: sub.Name,
			Plan: sub.Plan, Status: keyActive, CreatedAt: time.Now().UTC().Truncate(time.Millisecond), Scopes: bounds.Scopes, AllowFrom: bounds.AllowFrom, Labels: labelled}
		err = onceLeveled(ctx, s.Wait, func() error { return leveled(s.freshOrLocal(ctx, s.Catalog), "key", key, s.Zone, s.Zone) })
		if err != nil {
			return nil, err
		}
		res, err := s.commit(ctx, s.Store, group.Txn{
			RequestID: id + "/" + strconv.Itoa(attempt),
			Compares:  []group.Compare{compareAt(before, model.PrefixCustomer+customer.Name), compareAt(before, model.PrefixKey+keyID)},
			Ops: []group.Op{{Key: model.PrefixKey + keyID, Value: model.Encode(key)},
				{Key: keysFence(customer.Name), Value: []byte(keyID)}},
		})
		if err != nil {
			return nil, err
		}
		if !res.Succeeded {
			continue
		}
		// The id of a key that is bound is the same each time: what the request made before may have been revoked since.
		if kv, ours := s.Store.Local().Get(model.PrefixKey + keyID); !ours || res.Replayed && kv.ModIndex != res.Revision.Index {
			return nil, alreadyCreated(s.Store.Local(), res.Revision.Index)
		}
		if kind != "" {
			return &adminv1.CreateKeyResponse{Id: keyID}, nil
		}
		return &adminv1.CreateKeyResponse{Id: keyID, Key: text.Reveal()}, nil
	}
	return nil, outran()
}

// binding is what a key is to be bound to; "": it has a text.
func binding(req *adminv1.CreateKeyRequest) (kind, text string, err error) {
	invalid := func(field, format string, args ...any) (string, string, error) {
		return "", "", fault.New(fault.Invalid, "CREDENTIAL_INVALID", format, args...).At(field)
	}
	cert, issuer, subject := strings.ToLower(req.GetCertificate()), req.GetTokenIssuer(), req.GetTokenSubject()
	switch {
	case cert != "" && issuer+subject != "":
		return invalid("certificate", "a key is bound to a certificate or to a token, not to both: create two")
	case cert != "":
		if raw, err := hex.DecodeString(cert); err != nil || len(raw) != sha256.Size {
			return invalid("certificate", "certificate %q is not the SHA-256 of a SubjectPublicKeyInfo: 64 hexadecimal digits", cert)
		}
		return apikey.KindCertificate, cert, nil
	case issuer != "" && subject != "":
		if strings.ContainsAny(issuer+subject, "\x00\n") {
			return invalid("token_subject", "neither an issuer nor a subject holds a new line or a zero byte")
		}
		return apikey.KindToken, apikey.TokenText(issuer, subject), nil
	case issuer+subject != "":
		return invalid("token_subject", "a key that is bound to a token names its issuer and its subject: --token-issuer and --token-subject")
	}
	return "", "", nil
}

// mint makes a key: one with a text, or one that follows from what it is bound to.
func (s *server) mint(kind, bound string) (id string, text apikey.Text, sum apikey.Digest, err error) {
	if kind != "" {
		id, sum = s.hasher.Bound(kind, bound)
		return id, text, sum, nil
	}
	if id, text, err = apikey.Mint(s.Zone, rand.Reader); err == nil {
		sum = s.hasher.Sum(text.Reveal())
	}
	return id, text, sum, err
}

// alreadyCreated finds the key that an earlier call with the same id made, by the revision that it made.
func alreadyCreated(snap group.Snapshot, index uint64) error {
	f := fault.New(fault.Conflict, "KEY_ALREADY_CREATED", "a key was created for this request id before, and its text cannot be shown again: find it with `bailiwick key list`, revoke it, and create another")
	for kv := range snap.List(model.PrefixKey) {
		if kv.CreateIndex == index {
			id := strings.TrimPrefix(kv.Key, model.PrefixKey)
			f = fault.New(fault.Conflict, f.Reason, "key %s was created for this request id before, and its text cannot be shown again: revoke it and create another", id).With("id", id)
		}
	}
	return f
}

func (s *server) customerUnknown(name string) error {
	return fault.New(fault.NotFound, "CUSTOMER_NOT_FOUND", "customer %q does not exist in zone %s", name, s.Zone)
}

// choose picks the subscription a key is for.
func choose(c model.Customer, req *adminv1.CreateKeyRequest) (model.Subscription, error) {
	if c.Status != "" && c.Status != "active" {
		return model.Subscription{}, fault.New(fault.Conflict, "CUSTOMER_SUSPENDED", "customer %s is %s: a key of theirs would be refused", c.Name, c.Status)
	}
	var fit, all []string
	var chosen model.Subscription
	for _, sub := range c.Subscriptions {
		all = append(all, sub.Name+" (plan "+sub.Plan+")")
		if (req.GetSubscription() == "" || sub.Name == req.GetSubscription()) && (req.GetPlan() == "" || sub.Plan == req.GetPlan()) {
			fit, chosen = append(fit, sub.Name), sub
		}
	}
	switch len(fit) {
	case 1:
		return chosen, nil
	case 0:
		return chosen, fault.New(fault.Invalid, "SUBSCRIPTION_UNKNOWN", "customer %s has no such subscription; there are: %s", c.Name, or(some(all), "none"))
	}
	return chosen, fault.New(fault.Invalid, "SUBSCRIPTION_AMBIGUOUS", "customer %s has several subscriptions that fit: name one of %s", c.Name, some(fit))
}

// RevokeKey may be called again: a revoked key stays revoked.
func (s *server) RevokeKey(ctx context.Context, req *adminv1.RevokeKeyRequest) (*adminv1.RevokeKeyResponse, error) {
	id := requestID("revoke/"+req.GetId(), req.GetRequestId())
	for attempt := range maxAttempts {
		snap, err := s.fresh(ctx, s.Store)
		if err != nil {
			return nil, err
		}
		kv, key, err := s.findKey(snap, req.GetId())
		if err != nil {
			return nil, err
		}
		if key.Status == keyRevoked {
			return &adminv1.RevokeKeyResponse{}, nil // fresh: this node has applied it
		}
		key.Status = keyRevoked
		res, err := s.commit(ctx, s.Store, group.Txn{
			RequestID: id + "/" + strconv.Itoa(attempt),
			Compares:  []group.Compare{{Key: kv.Key, ModIndex: kv.ModIndex}},
			Ops:       []group.Op{{Key: kv.Key, Value: model.Encode(key)}, {Key: model.PrefixKeyEnd + key.ID, Delete: true}},
		})
		if err != nil {
			return nil, err
		}
		if res.Succeeded {
			if res.Replayed { // a key that is bound may be there anew: whoever revokes it with the id of before has revoked nothing
				if _, now, err := s.findKey(s.Store.Local(), req.GetId()); err != nil || now.Status != keyRevoked {
					return nil, fault.New(fault.Conflict, "REQUEST_ID_REUSED", "request id %q revoked key %s before, and it was created anew since: give each change an id of its own", req.GetRequestId(), key.ID).At("request_id")
				}
			}
			return &adminv1.RevokeKeyResponse{}, nil
		}
	}
	return nil, outran()
}
