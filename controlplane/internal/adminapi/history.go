package adminapi

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/types/known/timestamppb"

	"bailiwick/controlplane/internal/evidence"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/history"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

const usualHistory = 20

// remember adds to a transaction of the catalog the record of what it changes.
func (s *server) remember(ctx context.Context, t group.Txn, by, call string) (group.Txn, error) {
	if !slices.ContainsFunc(t.Ops, func(op group.Op) bool { return history.Remembers(op.Key) || op.DeletePrefix }) {
		return t, nil
	}
	if revision, ok := strings.CutPrefix(t.RequestID, "rollback/"); ok {
		revision, _, _ = strings.Cut(revision, "/")
		call = "rollback/" + revision
	}
	snap := s.Catalog.Local()
	if slices.ContainsFunc(t.Compares, func(c group.Compare) bool {
		return history.Remembers(c.Key) && !c.Exists && (state{snap: snap}).mod(c.Key) != c.ModIndex
	}) { // this node is behind what was judged, or what was judged is old: then the transaction's own compares say so
		var err error
		if snap, err = s.fresh(ctx, s.Catalog); err != nil {
			return t, err
		}
	}
	return history.Record(snap, t, by, call, time.Now())
}

// resourceOf tells which resource rests at a key of the catalog.
func resourceOf(key string) (kind manifest.Kind, name string) {
	for _, k := range manifest.Kinds() {
		if rest, ok := strings.CutPrefix(key, prefixOf(k.Name)); ok && !k.Zonal {
			return k, rest
		}
	}
	return manifest.Kind{}, key
}

func (s *server) History(ctx context.Context, req *adminv1.HistoryRequest) (*adminv1.HistoryResponse, error) {
	snap := s.freshOrLocal(ctx, s.Catalog)
	list, err := history.List(snap)
	if err != nil {
		return nil, err
	}
	kind := ""
	if req.GetKind() != "" {
		k, err := parseKind(req.GetKind())
		if err != nil {
			return nil, err
		}
		kind = k.Name
	}
	limit := int(req.GetLimit())
	if limit == 0 {
		limit = usualHistory
	}
	out := &adminv1.HistoryResponse{Oldest: history.Oldest(list)}
	names := s.pseudonyms()
	for _, r := range slices.Backward(list) {
		rev := &adminv1.CatalogRevision{Revision: r.Index, At: timestamppb.New(r.At), By: or(names[r.By], r.By), Call: r.Call, Lost: r.Lost}
		wanted := kind == "" && req.GetName() == ""
		for _, k := range r.Keys {
			of, name := resourceOf(k.Key)
			rev.Changes = append(rev.Changes, &adminv1.Change{Kind: of.Name, Name: name, Action: k.Action})
			wanted = wanted || (kind == "" || kind == of.Name) && called(name, req.GetName())
		}
		if !wanted {
			continue
		}
		if out.Revisions = append(out.Revisions, rev); len(out.Revisions) == limit {
			break
		}
	}
	return out, nil
}

// called says whether a resource goes by a name: an API by its own, or by zone/name.
func called(name, wanted string) bool {
	return wanted == "" || name == wanted || strings.HasSuffix(name, "/"+wanted)
}

// pseudonyms are this zone's operators as the catalog names them.
func (s *server) pseudonyms() map[string]string {
	out := map[string]string{}
	for kv := range s.Store.Local().List(model.PrefixOperator) {
		if op, err := model.Decode[model.Operator](model.PrefixOperator, kv.Value); err == nil {
			out[evidence.Pseudonym(s.Pepper, s.Zone, op.Name)] = op.Name
		}
	}
	return out
}

func (s *server) Compare(ctx context.Context, req *adminv1.CompareRequest) (*adminv1.CompareResponse, error) {
	snap := s.freshOrLocal(ctx, s.Catalog)
	from, err := history.Since(snap, req.GetFrom())
	if err != nil {
		return nil, err
	}
	to := map[string][]byte{}
	if req.GetTo() != 0 {
		if to, err = history.Since(snap, req.GetTo()); err != nil {
			return nil, err
		}
	}
	at := func(then map[string][]byte, key string) []byte {
		if v, changed := then[key]; changed {
			return v
		}
		kv, _ := snap.Get(key)
		return kv.Value
	}
	keys := map[string]bool{}
	for _, then := range []map[string][]byte{from, to} {
		for key := range then {
			keys[key] = true
		}
	}
	out := &adminv1.CompareResponse{}
	for key := range keys {
		change, err := changeOf(key, at(from, key), at(to, key))
		if err != nil {
			return nil, err
		}
		if change != nil {
			out.Changes = append(out.Changes, change)
		}
	}
	slices.SortFunc(out.Changes, func(a, b *adminv1.Change) int {
		return strings.Compare(a.Kind+" "+a.Name, b.Kind+" "+b.Name)
	})
	return out, nil
}

// changeOf compares two stored values of one resource; nil: they say the same.
func changeOf(key string, was, is []byte) (*adminv1.Change, error) {
	kind, name := resourceOf(key)
	read := func(value []byte) (record, error) {
		if value == nil {
			return nil, nil
		}
		return decode(kind.Name, group.KV{Key: key, Value: value})
	}
	old, err := read(was)
	if err != nil {
		return nil, err
	}
	now, err := read(is)
	if err != nil {
		return nil, err
	}
	c := &adminv1.Change{Kind: kind.Name, Name: name}
	switch {
	case old == nil && now == nil:
		return nil, nil
	case old == nil:
		c.Action, c.Fields = created, fieldChanges(nil, now)
	case now == nil:
		c.Action = deleted
	default:
		if c.Fields = fieldChanges(old, now); len(c.Fields) == 0 {
			return nil, nil
		}
		c.Action = updated
	}
	return c, nil
}

// Rollback is an Apply of what history says was there, and of the removal of what was not.
func (s *server) Rollback(ctx context.Context, req *adminv1.RollbackRequest) (*adminv1.ApplyResponse, error) {
	as := intent{call: fmt.Sprintf("rollback/%d", req.GetRevision()), client: req.GetRequestId(), content: digest(req)}
	return s.write(ctx, as, req.GetDryRun(), func() (*plan, error) {
		for range maxAttempts {
			snap, err := s.fresh(ctx, s.Catalog)
			if err != nil {
				return nil, err
			}
			docs, left, err := s.rollbackDocs(ctx, snap, req)
			if err != nil {
				return nil, err
			}
			p, err := s.plan(ctx, docs)
			if err != nil {
				return nil, err
			}
			p.warnings = append(p.warnings, left...)
			// plan reads for itself: what was rolled back must be all that changed until then.
			if history.Head(p.judge.catalogBefore.snap) != history.Head(snap) {
				continue
			}
			for i, d := range p.docs { // of what waits for a second operator unused is asked when that one approves
				if d.rec != nil || d.change.Action == unchanged {
					continue
				}
				kv, _ := p.judge.catalogBefore.snap.Get(d.key)
				rec, err := decode(d.kind.Name, kv)
				if err == nil {
					err = s.unused(ctx, p.judge.catalog, rec)
				}
				if err != nil {
					return nil, p.docs[i].field(err)
				}
				switch rec.(type) { // as Delete does: usage of them may be on its way
				case model.API, model.Region:
					p.catalogOps = append(p.catalogOps, group.Op{Key: model.PrefixGone + kv.Key, Value: kv.Value})
				}
			}
			return p, nil
		}
		return nil, outran()
	})
}

// rollbackDocs are what is to be applied, and what is said of resources that are left as they are.
func (s *server) rollbackDocs(ctx context.Context, snap group.Snapshot, req *adminv1.RollbackRequest) (docs []*doc, left []string, err error) {
	named := map[string]bool{}
	want := func(key string) bool {
		kind, name := resourceOf(key)
		ok := len(req.GetOnly()) == 0
		for _, text := range req.GetOnly() {
			k, n, _ := strings.Cut(text, " ")
			if of, known := manifest.ParseKind(k); known && of.Name == kind.Name && n != "" && called(name, n) {
				ok, named[text] = true, true
			}
		}
		return ok
	}
	ops, err := history.Back(snap, req.GetRevision(), want)
	if err != nil {
		return nil, nil, err
	}
	for _, text := range req.GetOnly() {
		if !named[text] {
			return nil, nil, fault.New(fault.NotFound, "NOTHING_TO_ROLL_BACK", "%s has not changed since revision %d", text, req.GetRevision()).At("only")
		}
	}
	for i, op := range ops {
		d := &doc{at: "revision[" + strconv.Itoa(i) + "]", key: op.Key}
		d.kind, d.name = resourceOf(op.Key)
		if !op.Delete {
			if d.rec, err = decode(d.kind.Name, group.KV{Key: op.Key, Value: op.Value}); err != nil {
				return nil, nil, err
			}
			_, d.name = fullName(d.rec)
			// What was right then need not be right for this program. It is not put in force as it was: what is refused today may
			// let pass what it reads as if it stopped. Nor in part, since what a route does not take another may.
			if err := d.rec.Validate(); err != nil {
				if req.GetWithoutRefused() {
					left = append(left, fmt.Sprintf("%s %s stays as it is now, since what it was would be refused: %v", d.kind.Name, d.name, err))
					continue
				}
				f, ok := fault.As(d.field(err))
				if !ok {
					return nil, nil, err
				}
				return nil, nil, fault.New(f.Kind, f.Reason, "%w; to roll back all else and leave %s %s as it is now: rollback --without-refused; or apply it by hand, mended", f, d.kind.Name, d.name).At(f.Field)
			}
			if err := s.touch(ctx, nil, d.rec); err != nil {
				return nil, nil, d.field(err)
			}
		} else if kv, ok := snap.Get(op.Key); ok {
			rec, err := decode(d.kind.Name, kv)
			if err != nil {
				return nil, nil, err
			}
			_, d.name = fullName(rec)
		}
		docs = append(docs, d)
	}
	// In the order in which kinds rest on each other.
	order := map[string]int{}
	for i, k := range manifest.Kinds() {
		order[k.Name] = i
	}
	slices.SortStableFunc(docs, func(a, b *doc) int { return order[a.kind.Name] - order[b.kind.Name] })
	return docs, left, nil
}

// value is what is stored of a document; nil: it is to go.
func (d *doc) value() []byte {
	if d.rec == nil {
		return nil
	}
	return model.Encode(d.rec)
}
