package adminapi

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"slices"
	"strings"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

// patch writes some fields of one resource onto what is stored, and is then an Apply of the whole: what it was merged with
// is what it is committed onto, by etag.
func (s *server) patch(ctx context.Context, req *adminv1.ApplyRequest) (*adminv1.ApplyResponse, error) {
	if len(req.GetResources()) != 1 {
		return nil, fault.New(fault.Invalid, "MASK_NEEDS_ONE", "an update_mask is for one resource, and the request holds %d", len(req.GetResources())).At("update_mask")
	}
	for attempt := 0; ; attempt++ {
		whole, err := s.merge(ctx, req)
		if err != nil {
			return nil, err
		}
		if err := s.rules.check(whole); err != nil {
			return nil, err
		}
		resp, err := s.apply(ctx, whole, digest(req))
		if fault.ReasonOf(err) != "ETAG_MISMATCH" || req.GetResources()[0].GetEtag() != "" {
			return resp, err
		}
		if attempt == maxAttempts {
			return nil, outran()
		}
	}
}

// merge is the request with its one resource made whole.
func (s *server) merge(ctx context.Context, req *adminv1.ApplyRequest) (*adminv1.ApplyRequest, error) {
	part := req.GetResources()[0]
	k, ok := manifest.KindOf(part)
	if !ok {
		return nil, fault.New(fault.Invalid, "SPEC_MISSING", "resource %q has no spec", part.GetName()).At("resources[0].spec")
	}
	if err := readKind(ctx, k.Name); err != nil {
		return nil, err
	}
	snap, err := s.read(ctx, k)
	if err != nil {
		return nil, err
	}
	kv, err := find(snap, k, part.GetName())
	if err != nil {
		return nil, err
	}
	rec, err := decode(k.Name, kv)
	if err != nil {
		return nil, err
	}
	whole := toProto(rec, versionOf(snap, kv))
	whole.Etag = or(part.GetEtag(), whole.Etag)
	for i, path := range req.GetUpdateMask() {
		if err := setField(k.SpecOf(whole), k.SpecOf(part), path); err != nil {
			return nil, fault.New(fault.Invalid, "MASK_INVALID", "%s %s: %w", k.Name, part.GetName(), err).At(fmt.Sprintf("update_mask[%d]", i))
		}
	}
	out := proto.Clone(req).(*adminv1.ApplyRequest)
	out.Resources = []*adminv1.Resource{whole}
	return out, nil
}

// setField takes one field over, or unsets it where the other message has none.
func setField(to, from protoreflect.Message, path string) error {
	segments := strings.Split(path, ".")
	if segments[0] != "spec" || len(segments) < 2 {
		return fmt.Errorf("mask %q does not begin with \"spec.\"", path)
	}
	for i, name := range segments[1:] {
		f := to.Descriptor().Fields().ByName(protoreflect.Name(name))
		last := i == len(segments)-2
		switch {
		case f == nil:
			return fmt.Errorf("mask %q: there is no field %q: there are %s", path, name, strings.Join(fieldNames(to.Descriptor()), ", "))
		case last && !from.Has(f):
			to.Clear(f)
		case last:
			to.Set(f, from.Get(f))
		case f.IsList():
			return fmt.Errorf("mask %q: %s is a list, which is written whole", path, name)
		case f.Message() == nil || f.Message().ParentFile().Package() == "google.protobuf":
			return fmt.Errorf("mask %q: %s has no fields", path, name)
		case !from.Has(f) && !to.Has(f):
			return nil
		default:
			to, from = to.Mutable(f).Message(), from.Get(f).Message()
		}
	}
	return nil
}

func fieldNames(d protoreflect.MessageDescriptor) (out []string) {
	for i := range d.Fields().Len() {
		out = append(out, string(d.Fields().Get(i).Name()))
	}
	return out
}

// Places for the ids of requests. One is found by the id's digest and the next id of the same place takes it: a fixed room,
// and an id is remembered through some thousand changes, which is longer than anybody repeats a request.
const memoPlaces = 4096

// intent is which change a transaction is part of: by the id that the client gave it, "" for none, and its content.
type intent struct{ call, client, content string }

// id is the beginning of the ids of its transactions.
func (a intent) id() string { return requestID(a.call+"/"+a.content, a.client) }

// once holds a change to the request that named it: the same id again, with other content, is a mistake of whoever counts
// them, and is not taken for another change.
func (s *server) once(store group.Store, as intent, t group.Txn) (group.Txn, error) {
	if as.client == "" {
		return t, nil
	}
	sum := sha256.Sum256([]byte(as.client))
	key := fmt.Sprintf("meta/requests/%03x", (int(sum[0])<<8|int(sum[1]))%memoPlaces)
	id, content := hex.EncodeToString(sum[:12]), as.call+"/"+as.content
	if kv, ok := store.Local().Get(key); ok {
		if known, was, _ := strings.Cut(string(kv.Value), " "); known == id && was != content {
			return t, fault.New(fault.Conflict, "REQUEST_ID_REUSED", "request id %q was given to another change before, which was made: give each change an id of its own", as.client).At("request_id")
		}
	}
	t.Ops = append(slices.Clip(t.Ops), group.Op{Key: key, Value: []byte(id + " " + content)})
	return t, nil
}

// still refuses to pass off as made now what a request of the same id made before and others have changed since: whoever
// closes a pair by a script that always has one id would leave it open, and hear that it is closed.
func still(store group.Store, client string, ops []group.Op, res group.Result) error {
	if client == "" || !res.Replayed || !res.Succeeded {
		return nil
	}
	local := store.Local()
	for _, op := range ops {
		if !ofResource(op.Key) && (op.Delete || !strings.HasPrefix(op.Key, model.PrefixApproval)) {
			continue
		}
		kv, is := local.Get(op.Key)
		if op.Delete && !is || !op.Delete && is && (kv.ModIndex == res.Revision.Index || bytes.Equal(kv.Value, op.Value)) {
			continue
		}
		return fault.New(fault.Conflict, "REQUEST_ID_REUSED", "request id %q made this very change before, at revision %d, and others have changed it since: nothing is changed now; to make it again give it an id of its own", client, res.Revision.Index).At("request_id")
	}
	return nil
}

func ofResource(key string) bool {
	return slices.ContainsFunc(manifest.Kinds(), func(k manifest.Kind) bool { return strings.HasPrefix(key, prefixOf(k.Name)) })
}
