// Package certstore owns the shelf where the edges of a zone keep host
// certificates and the locks they take while obtaining one, in the zone store.
//
// It never sees a private key: edges seal them first, and text that looks like
// one is refused. Nothing is written but under the lock that guards it, and
// nothing any more by who has lost that lock, whenever he wakes up. It keeps the
// zone's edges together within what a public authority grants. What it
// acknowledged survives as the zone store does; a lock ends by itself when its
// holder is gone. Everything may be called at once.
package certstore

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/peer"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/identity/shelf"
)

// Limits of what edges may keep here.
const (
	MaxValue   = 128 << 10
	MaxKey     = 400 // certmagic's keys repeat the host name twice
	MaxList    = 20_000
	MinLockTTL = time.Second
	MaxLockTTL = 10 * time.Minute
	MaxLocks   = 64 // of one edge at a time that are not of a host's issue; of those there is one for each host
)

// Reasons of errors.
const (
	ReasonKey       = "CERT_KEY_INVALID" // Invalid
	ReasonTooLarge  = "CERT_TOO_LARGE"   // TooLarge
	ReasonPlaintext = "CERT_KEY_NOT_SEALED"
	ReasonNotFound  = "CERT_NOT_FOUND"
	ReasonReplaced  = "CERT_REPLACED" // Conflict: the metadata is of another certificate by now
	ReasonLock      = "LOCK_INVALID"
	ReasonUnguarded = "LOCK_REQUIRED"  // Invalid: a write without the lease of the lock that guards the key
	ReasonLost      = "LOCK_LOST"      // Conflict: another has taken the lock since
	ReasonBusy      = "ORDERS_BUSY"    // Unavailable
	ReasonHost      = "HOST_UNKNOWN"   // NotFound: no API of the zone is published there
	ReasonLocks     = "LOCKS_TOO_MANY" // Exhausted
)

// Service is joinv1connect's CertStoreServiceHandler.
type Service struct {
	store group.Store
	// trustDomain is of the zone whose edges may call.
	trustDomain string
	hosts       Hosts
	budget      Budget
}

// Hosts knows what is published.
type Hosts interface {
	// Published says whether an API of the zone has this host, by all that was acknowledged if that can be known.
	Published(ctx context.Context, host string) (bool, error)
}

// New serves the edges of trustDomain (<zone>.<installation>) from the zone's store.
func New(store group.Store, trustDomain string, hosts Hosts) (*Service, error) {
	if store == nil || trustDomain == "" || hosts == nil {
		return nil, errors.New("certstore: store, trust domain and hosts are required")
	}
	return &Service{store, trustDomain, hosts, DefaultBudget()}, nil
}

// item is a value as it rests.
type item struct {
	Value    []byte    `json:"value"`
	Modified time.Time `json:"modified"`
}

// edge lets only edges of the zone in.
func (s *Service) edge(ctx context.Context) error {
	n, ok := peer.NameFrom(ctx)
	if !ok {
		return fault.New(fault.Unauthenticated, identity.ReasonUnverified, "the caller has no verified certificate")
	}
	if n.Kind != identity.Edge || n.TrustDomain() != s.trustDomain {
		return fault.New(fault.Denied, identity.ReasonWrongPeer, "%s is not an edge of %s", n, s.trustDomain)
	}
	return nil
}

// path checks a key or, with empty allowed, a prefix.
func path(key string, emptyAllowed bool) error {
	if key == "" && emptyAllowed {
		return nil
	}
	bad := len(key) == 0 || len(key) > MaxKey
	for part := range strings.SplitSeq(key, "/") {
		bad = bad || part == "" || part == "." || part == ".."
	}
	if bad {
		return fault.New(fault.Invalid, ReasonKey, "key is not a path of 1 to %d bytes without empty parts", MaxKey).At("key")
	}
	return nil
}

func (s *Service) begin(ctx context.Context, key string, emptyAllowed bool) error {
	if err := s.edge(ctx); err != nil {
		return err
	}
	return path(key, emptyAllowed)
}

// Store puts a value, under the lock that guards its key. Metadata may be
// brought up to date without: if it is still what the caller has read.
func (s *Service) Store(ctx context.Context, req *joinv1.StoreRequest) (*joinv1.StoreResponse, error) {
	if err := s.begin(ctx, req.GetKey(), false); err != nil {
		return nil, err
	}
	if n := len(req.GetValue()); n > MaxValue {
		return nil, fault.New(fault.TooLarge, ReasonTooLarge, "value holds %d bytes, at most %d are kept", n, MaxValue).At("value")
	}
	if bytes.Contains(req.GetValue(), []byte("PRIVATE KEY")) {
		return nil, fault.New(fault.Invalid, ReasonPlaintext, "value holds a private key that is not sealed").At("value")
	}
	if err := s.room(req.GetKey(), req.GetValue()); err != nil {
		return nil, err
	}
	ops := []group.Op{{Key: model.PrefixCert + req.GetKey(), Value: model.Encode(item{req.GetValue(), time.Now().UTC()})}}
	if v := req.GetIfVersion(); v != 0 && req.GetLease() == nil && shelf.Metadata(req.GetKey()) {
		res, err := s.store.Txn(ctx, group.Txn{Compares: []group.Compare{{Key: ops[0].Key, ModIndex: v}}, Ops: ops})
		if err == nil && !res.Succeeded {
			err = fault.New(fault.Conflict, ReasonReplaced, "the certificate was replaced since its metadata was read")
		}
		if err != nil {
			return nil, err
		}
		return &joinv1.StoreResponse{}, nil
	}
	if err := s.guarded(ctx, req.GetKey(), req.GetLease(), ops); err != nil {
		return nil, err
	}
	return &joinv1.StoreResponse{}, nil
}

// Load reads a value: the last that was stored, on whatever node.
func (s *Service) Load(ctx context.Context, req *joinv1.LoadRequest) (*joinv1.LoadResponse, error) {
	if err := s.begin(ctx, req.GetKey(), false); err != nil {
		return nil, err
	}
	kv, ok, _, err := s.store.Get(ctx, model.PrefixCert+req.GetKey())
	if err != nil {
		return nil, err
	}
	if !ok {
		return nil, fault.New(fault.NotFound, ReasonNotFound, "no value is kept under this key")
	}
	it, err := model.Decode[item](model.PrefixCert, kv.Value)
	if err != nil {
		return nil, err
	}
	return &joinv1.LoadResponse{Value: it.Value, Version: kv.ModIndex}, nil
}

// Delete removes a key and all below it, under the lock that guards it; an
// absent one is no error.
func (s *Service) Delete(ctx context.Context, req *joinv1.DeleteRequest) (*joinv1.DeleteResponse, error) {
	if err := s.begin(ctx, req.GetKey(), false); err != nil {
		return nil, err
	}
	key := model.PrefixCert + req.GetKey()
	if err := s.guarded(ctx, req.GetKey(), req.GetLease(), []group.Op{{Key: key, Delete: true}, {Key: key + "/", DeletePrefix: true}}); err != nil {
		return nil, err
	}
	return &joinv1.DeleteResponse{}, nil
}

// List names what lies below a prefix: with recursive every value, otherwise
// the direct children, directories included.
func (s *Service) List(ctx context.Context, req *joinv1.ListRequest) (*joinv1.ListResponse, error) {
	if err := s.begin(ctx, req.GetPrefix(), true); err != nil {
		return nil, err
	}
	prefix := model.PrefixCert
	if req.GetPrefix() != "" {
		prefix += req.GetPrefix() + "/"
	}
	kvs, _, err := s.store.List(ctx, prefix)
	if err != nil {
		return nil, err
	}
	resp := &joinv1.ListResponse{}
	for _, kv := range kvs {
		name := strings.TrimPrefix(kv.Key, model.PrefixCert)
		if !req.GetRecursive() {
			if i := strings.IndexByte(kv.Key[len(prefix):], '/'); i >= 0 {
				name = name[:len(prefix)-len(model.PrefixCert)+i]
			}
		}
		resp.Keys = append(resp.Keys, name)
	}
	// "a/b" and "a.b" interleave with "a/": equal names need not be neighbours.
	slices.Sort(resp.Keys)
	resp.Keys = slices.Compact(resp.Keys)
	if len(resp.Keys) == 0 {
		return nil, fault.New(fault.NotFound, ReasonNotFound, "nothing is kept below this prefix")
	}
	if len(resp.Keys) > MaxList {
		return nil, fault.New(fault.TooLarge, ReasonTooLarge, "%d keys lie below the prefix, at most %d are listed", len(resp.Keys), MaxList)
	}
	return resp, nil
}

// Stat describes a key; a directory has terminal false.
func (s *Service) Stat(ctx context.Context, req *joinv1.StatRequest) (*joinv1.StatResponse, error) {
	if err := s.begin(ctx, req.GetKey(), false); err != nil {
		return nil, err
	}
	snap, err := s.store.Sync(ctx)
	if err != nil {
		return nil, err
	}
	key := model.PrefixCert + req.GetKey()
	if kv, ok := snap.Get(key); ok {
		it, err := model.Decode[item](model.PrefixCert, kv.Value)
		if err != nil {
			return nil, err
		}
		return &joinv1.StatResponse{Key: req.GetKey(), ModifiedUnixMs: it.Modified.UnixMilli(), Size: int64(len(it.Value)), Terminal: true}, nil
	}
	for range snap.List(key + "/") {
		return &joinv1.StatResponse{Key: req.GetKey()}, nil
	}
	return nil, fault.New(fault.NotFound, ReasonNotFound, "no value is kept under this key")
}
