package adminapi_test

import (
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/adminapi/apitest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

func TestRotateKey_BothWorkUntilTheOldOneEnds(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	keys := keysAt(z, apitest.Admin)
	old, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold", Scopes: []string{"orders:write", "orders:read"}, AllowFrom: []string{"192.0.2.7", "10.0.0.0/8"}})
	if err != nil {
		t.Fatal(err)
	}
	z.Store.Lose.Store(1) // committed, and the answer lost inside
	begin := time.Now()
	fresh, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: old.Id, RequestId: "r1"})
	if err != nil {
		t.Fatal(err)
	}
	if at := fresh.OldExpiresAt.AsTime(); at.Before(begin.Add(adminapi.DefaultOverlap)) || at.After(time.Now().Add(adminapi.DefaultOverlap+2*time.Second)) {
		t.Errorf("the old key ends at %v, want in a day", at)
	}
	if fresh.Id == old.Id || fresh.Key == old.Key || strings.Contains(z.Store.Dump(), fresh.Key[len(fresh.Key)-20:]) {
		t.Error("the new key is the old one, or rests as text")
	}
	list, err := keys.ListKeys(t.Context(), &adminv1.ListKeysRequest{Customer: "acme"})
	if err != nil || len(list.Keys) != 2 {
		t.Fatalf("list: %v, %v", list, err)
	}
	byID := func(id string) *adminv1.Key { // keys of one millisecond stand in the order of their ids, which are drawn
		return list.Keys[slices.IndexFunc(list.Keys, func(k *adminv1.Key) bool { return k.Id == id })]
	}
	a, b := byID(old.Id), byID(fresh.Id)
	if a.Status != "active" || b.Status != "active" || a.Subscription != b.Subscription || a.Plan != b.Plan || a.ReplacedBy != b.Id || b.Replaces != a.Id || a.ExpiresAt == nil || b.ExpiresAt != nil {
		t.Errorf("two keys of one subscription, the first replaced by the second: got %v and %v", a, b)
	}
	for _, k := range list.Keys { // a key in the place of another opens no more than it did
		if strings.Join(k.Scopes, " ") != "orders:read orders:write" || strings.Join(k.AllowFrom, " ") != "10.0.0.0/8 192.0.2.7/32" {
			t.Errorf("key %s is bound to %v from %v, want what the first was created with, in order", k.Id, k.Scopes, k.AllowFrom)
		}
	}
	for _, c := range []struct{ id, request, reason string }{{old.Id, "r1", "KEY_ALREADY_CREATED"}, {old.Id, "r2", "KEY_ROTATED"}, {"nobody", "", "KEY_NOT_FOUND"}} {
		_, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: c.id, RequestId: c.request})
		f, _ := fault.As(err)
		if f == nil || f.Reason != c.reason || c.id == old.Id && f.Meta["id"] != fresh.Id {
			t.Errorf("rotate %s for request %q: %v, want %s naming %s", c.id, c.request, err, c.reason, fresh.Id)
		}
	}
	undone, err := keys.UndoRotation(t.Context(), &adminv1.UndoRotationRequest{Id: old.Id})
	if err != nil || undone.NewId != fresh.Id {
		t.Fatalf("undo: %v, %v", undone, err)
	}
	if _, err := keys.UndoRotation(t.Context(), &adminv1.UndoRotationRequest{Id: old.Id}); fault.ReasonOf(err) != "KEY_NOT_ROTATED" {
		t.Errorf("undo twice: %v", err)
	}
	if _, err := keys.RevokeKey(t.Context(), &adminv1.RevokeKeyRequest{Id: fresh.Id}); err != nil { // the second step
		t.Fatal(err)
	}
	if list, _ = keys.ListKeys(t.Context(), &adminv1.ListKeysRequest{Customer: "acme"}); byID(old.Id).Status != "active" || byID(old.Id).ExpiresAt != nil || byID(fresh.Id).Status != "revoked" {
		t.Errorf("after both steps back: %v", list)
	}
}

func TestRotateKey_WhatHasEndedStaysSo(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	keys := keysAt(z, apitest.Admin)
	old, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold"})
	if err != nil {
		t.Fatal(err)
	}
	z.Store.Put(model.PrefixKeyEnd+old.Id, model.Encode(model.KeyEnd{ID: old.Id, At: time.Now().Add(-time.Second), ReplacedBy: "x"}))
	if list, _ := keys.ListKeys(t.Context(), &adminv1.ListKeysRequest{Filter: "status=ended"}); len(list.GetKeys()) != 1 {
		t.Errorf("keys that ended: %v, want the one", list)
	}
	if _, err := keys.UndoRotation(t.Context(), &adminv1.UndoRotationRequest{Id: old.Id}); fault.ReasonOf(err) != "KEY_ENDED" {
		t.Errorf("undo after the end: %v, want KEY_ENDED: an edge that nobody reaches has ended it", err)
	}
	other, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold"})
	if err != nil {
		t.Fatal(err)
	}
	now, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: other.Id, Overlap: durationpb.New(0), RequestId: "at-once"})
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := keys.ListKeys(t.Context(), &adminv1.ListKeysRequest{Filter: "id=" + other.Id}); list.GetKeys()[0].Status != "revoked" {
		t.Errorf("without an overlap the old key is %s, want revoked at once", list.Keys[0].Status)
	}
	if _, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: other.Id, Overlap: durationpb.New(0), RequestId: "at-once"}); fault.ReasonOf(err) != "KEY_ALREADY_CREATED" {
		t.Errorf("the same request again: %v", err)
	}
	for _, d := range []time.Duration{-time.Second, adminapi.MaxOverlap + time.Second} {
		if _, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: now.Id, Overlap: durationpb.New(d)}); fault.ReasonOf(err) != "OVERLAP_INVALID" {
			t.Errorf("an overlap of %v: %v", d, err)
		}
	}
	if _, err := keysAt(z, apitest.Viewer).RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: now.Id}); fault.KindOf(err) != fault.Denied {
		t.Errorf("a viewer rotates: %v", err)
	}
}

// The group answers a request id that it knows with the first result: the key that such an answer speaks of is not the one
// that was drawn for it.
func TestRotateKey_ARequestIDAgainShowsNoKeyThatIsNotThere(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	keys := keysAt(z, apitest.Admin)
	old, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold"})
	if err != nil {
		t.Fatal(err)
	}
	// Two calls with one id, and both have read before either writes.
	z.Store.Before = func() {
		z.Store.Before = nil
		if _, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: old.Id, RequestId: "r1"}); err != nil {
			t.Error(err)
		}
	}
	got, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: old.Id, RequestId: "r1"})
	list, _ := keys.ListKeys(t.Context(), &adminv1.ListKeysRequest{Filter: "id=" + old.Id}) // of both, either may be the first by id
	if f, _ := fault.As(err); f == nil || f.Reason != "KEY_ALREADY_CREATED" || f.Meta["id"] != list.Keys[0].ReplacedBy {
		t.Errorf("the second of two calls got %v, %v; want to hear of the key that the first made, %s", got, err, list.Keys[0].ReplacedBy)
	}
	if _, err := keys.UndoRotation(t.Context(), &adminv1.UndoRotationRequest{Id: old.Id, RequestId: "u1"}); err != nil {
		t.Fatal(err)
	}
	if got, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: old.Id, RequestId: "r1"}); fault.ReasonOf(err) != "KEY_ALREADY_CREATED" {
		t.Errorf("the same id after the rotation was undone: %v, %v", got, err)
	}
	if _, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: old.Id, RequestId: "r2"}); err != nil {
		t.Fatal(err)
	}
	if _, err := keys.UndoRotation(t.Context(), &adminv1.UndoRotationRequest{Id: old.Id, RequestId: "u1"}); fault.ReasonOf(err) != "REQUEST_ID_REUSED" {
		t.Errorf("an id that undid another rotation: %v, and the key ends all the same", err)
	}
}

func TestUndoRotation_OfAKeyThatEndsMeanwhile(t *testing.T) {
	in := seeded(t, time.Second)
	z := in.Zones["emea"]
	keys := keysAt(z, apitest.Admin)
	old, err := keys.CreateKey(t.Context(), &adminv1.CreateKeyRequest{Customer: "acme", Plan: "gold"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := keys.RotateKey(t.Context(), &adminv1.RotateKeyRequest{Id: old.Id}); err != nil {
		t.Fatal(err)
	}
	z.Store.Before = func() { // the sweep of a leader whose clock is ahead: the end stays for who asks
		z.Store.Before = nil
		kv, _ := z.Store.Local().Get(model.PrefixKey + old.Id)
		k, err := model.Decode[model.Key](kv.Key, kv.Value)
		if err != nil {
			t.Error(err)
		}
		k.Status = "revoked"
		z.Store.Put(kv.Key, model.Encode(k))
	}
	if _, err := keys.UndoRotation(t.Context(), &adminv1.UndoRotationRequest{Id: old.Id}); fault.ReasonOf(err) != "KEY_ENDED" {
		t.Errorf("undo of a key that was ended meanwhile: %v, want KEY_ENDED: it is of no use any more", err)
	}
	z.Store.Put(model.PrefixKey+old.Id, model.Encode(model.Key{ID: old.Id, Customer: "acme", Subscription: "x", Plan: "gold", Status: "active"}))
	z.Store.Put(model.PrefixKeyEnd+old.Id, model.Encode(model.KeyEnd{ID: old.Id, At: time.Now().Add(900 * time.Millisecond), ReplacedBy: "y"}))
	if _, err := keys.UndoRotation(t.Context(), &adminv1.UndoRotationRequest{Id: old.Id}); fault.ReasonOf(err) != "KEY_ENDED" {
		t.Errorf("undo that may be written after the end: %v, want KEY_ENDED", err)
	}
}
