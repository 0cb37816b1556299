package adminapi

import (
	"context"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/manifest"
	"bailiwick/controlplane/internal/model"
	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/shared/fault"
)

func parseKind(text string) (manifest.Kind, error) {
	k, ok := manifest.ParseKind(text)
	if ok {
		return k, nil
	}
	var names []string
	for _, k := range manifest.Kinds() {
		names = append(names, k.Plural)
	}
	return k, fault.New(fault.Invalid, "KIND_UNKNOWN", "kind %q is none of %s", text, strings.Join(names, ", ")).At("kind")
}

// read is the snapshot that Get and List answer from: linearizable, but for zones. Those say where the other
// zones are, and whoever needs that needs it most while the catalog has no quorum.
func (s *server) read(ctx context.Context, k manifest.Kind) (group.Snapshot, error) {
	switch {
	case k.Zonal:
		return s.fresh(ctx, s.Store)
	case k.Name == "Zone":
		return s.freshOrLocal(ctx, s.Catalog), nil
	}
	return s.fresh(ctx, s.Catalog)
}

// find resolves a name. APIs are called by name where that is clear, or by zone/name.
func find(snap group.Snapshot, k manifest.Kind, name string) (group.KV, error) {
	kv, ok := snap.Get(prefixOf(k.Name) + name)
	if ok {
		return kv, nil
	}
	if k.Name == "API" {
		var found []group.KV
		for kv := range snap.List(model.PrefixAPI) {
			if _, last, _ := strings.Cut(strings.TrimPrefix(kv.Key, model.PrefixAPI), "/"); last == name {
				found = append(found, kv)
			}
		}
		switch len(found) {
		case 1:
			return found[0], nil
		case 0:
		default:
			var names []string
			for _, kv := range found {
				names = append(names, strings.TrimPrefix(kv.Key, model.PrefixAPI))
			}
			return kv, fault.New(fault.Invalid, "NAME_AMBIGUOUS", "API %s exists in several zones: name one of %s", name, strings.Join(names, ", ")).At("name")
		}
	}
	return kv, fault.New(fault.NotFound, reasonNotFound(k), "%s %q does not exist", k.Name, name)
}

func reasonNotFound(k manifest.Kind) string {
	return strings.ToUpper(strings.ReplaceAll(strings.TrimSuffix(k.Plural, "s"), "-", "_")) + "_NOT_FOUND"
}

func (s *server) Get(ctx context.Context, req *adminv1.GetRequest) (*adminv1.GetResponse, error) {
	k, err := parseKind(req.GetKind())
	if err != nil {
		return nil, err
	}
	if err := readKind(ctx, k.Name); err != nil {
		return nil, err
	}
	snap, err := s.read(ctx, k)
	if err != nil {
		return nil, err
	}
	kv, err := find(snap, k, req.GetName())
	if err != nil {
		return nil, err
	}
	rec, err := decode(k.Name, kv)
	if err != nil {
		return nil, err
	}
	return &adminv1.GetResponse{Resource: toProto(rec, versionOf(snap, kv))}, nil
}

// List answers in the order of names, of APIs by zone first.
func (s *server) List(ctx context.Context, req *adminv1.ListRequest) (*adminv1.ListResponse, error) {
	k, err := parseKind(req.GetKind())
	if err != nil {
		return nil, err
	}
	if err := readKind(ctx, k.Name); err != nil {
		return nil, err
	}
	p, err := s.pageOf(req, k.Spec(), (&adminv1.Resource{}).ProtoReflect().Descriptor())
	if err != nil {
		return nil, err
	}
	snap, err := s.read(ctx, k)
	if err != nil {
		return nil, err
	}
	prefix := prefixOf(k.Name)
	out := &adminv1.ListResponse{}
	out.Resources, out.NextPageToken, err = take(p, func(yield func(placed[*adminv1.Resource], error) bool) {
		for kv := range group.ListAfter(snap, prefix, prefix+p.after) {
			rec, err := decode(k.Name, kv)
			if err == nil {
				err = ctx.Err() // a filter may find nothing in a million
			}
			if err != nil {
				yield(placed[*adminv1.Resource]{}, err)
				return
			}
			r := toProto(rec, versionOf(snap, kv))
			if p.filter.Match(k.SpecOf(r), r.ProtoReflect()) && !yield(placed[*adminv1.Resource]{kv.Key[len(prefix):], r}, nil) {
				return
			}
		}
	})
	return out, err
}

func (s *server) Delete(ctx context.Context, req *adminv1.DeleteRequest) (*adminv1.DeleteResponse, error) {
	how, err := newOrder(req.GetNow(), req.GetReason(), 0)
	if err != nil {
		return nil, err
	}
	ctx = withOrder(ctx, how)
	k, err := parseKind(req.GetKind())
	if err != nil {
		return nil, err
	}
	store := s.Catalog
	if k.Zonal {
		store = s.Store
	}
	id := requestID("delete/"+k.Name+"/"+req.GetName(), req.GetRequestId())
	for attempt := range maxAttempts {
		snap, err := s.fresh(ctx, store)
		if err != nil {
			return nil, err
		}
		kv, err := find(snap, k, req.GetName())
		if err != nil {
			return nil, err
		}
		rec, err := decode(k.Name, kv)
		if err != nil {
			return nil, err
		}
		if err := s.touch(ctx, rec, nil); err != nil {
			return nil, err
		}
		before := state{snap: snap}
		ops, compares := []group.Op{{Key: kv.Key, Delete: true}}, []group.Compare{{Key: kv.Key, ModIndex: kv.ModIndex}}
		if err := s.unused(ctx, before, rec); err != nil {
			return nil, err
		}
		if c, ok := rec.(model.Customer); ok {
			fence := keysFence(c.Name)
			ops, compares = append(ops, group.Op{Key: fence, Delete: true}), append(compares, compareAt(before, fence))
			// In the same transaction: at no revision is he unknown whose usage may still be on its way.
			ops = append(ops, group.Op{Key: model.PrefixGone + c.Name, Value: model.Encode(model.Gone{Name: c.Name, At: time.Now().UTC().Truncate(time.Second)})})
		}
		switch rec.(type) {
		case model.API, model.Region: // of these usage may still be on its way, too
			ops = append(ops, group.Op{Key: model.PrefixGone + kv.Key, Value: kv.Value})
		}
		if len(ops) == 1 { // closures, policies and bases: taking one away may open something
			pending, again, err := s.remove(ctx, store, before, k, rec, kv, req.GetRequestId(), id+"/"+strconv.Itoa(attempt))
			if err != nil {
				return nil, err
			}
			if !again {
				return &adminv1.DeleteResponse{Pending: pending, Rollout: how.staged.Name}, nil
			}
			continue
		}
		ops, compares = fenced(before, ops, compares)
		t, err := s.once(store, intent{"delete", req.GetRequestId(), kv.Key}, group.Txn{RequestID: id + "/" + strconv.Itoa(attempt), Ops: ops, Compares: compares})
		if err != nil {
			return nil, err
		}
		res, err := s.commit(ctx, store, t)
		if err == nil {
			err = still(store, req.GetRequestId(), ops, res)
		}
		if err != nil {
			return nil, err
		}
		if res.Succeeded {
			return &adminv1.DeleteResponse{Rollout: how.staged.Name}, nil
		}
	}
	return nil, outran()
}

// remove deletes what rests at one key, or proposes to.
func (s *server) remove(ctx context.Context, store group.Store, before state, k manifest.Kind, rec record, kv group.KV, client, id string) (*adminv1.Approval, bool, error) {
	world := zoneWorld
	if store == s.Catalog {
		world = catalogWorld
	}
	_, name := fullName(rec)
	docs := []model.ProposedDoc{{Kind: k.Name, Name: name, Key: kv.Key, Catalog: store == s.Catalog}}
	ops := []group.Op{{Key: kv.Key, Delete: true}}
	return s.loosen(ctx, before, before.with(map[string]record{kv.Key: nil}), docs, ops, world, client, id)
}

func compareAt(s state, key string) group.Compare {
	return group.Compare{Key: key, ModIndex: s.mod(key)}
}

// unused refuses to remove what others refer to, naming them. What rests in other zones cannot be seen from
// here: a plan that only their customers use goes, and their keys are refused by the edges from then on.
func (s *server) unused(ctx context.Context, st state, rec record) error {
	var users []string
	use := func(kind, name string) {
		if u := kind + " " + name; !slices.Contains(users, u) {
			users = append(users, u)
		}
	}
	catalogOf := state{snap: s.Catalog.Local()}
	if _, zonal := rec.(model.Customer); !zonal {
		catalogOf = st
	}
	var err error
	switch v := rec.(type) {
	case model.Zone:
		return fault.New(fault.Invalid, "ZONE_FIXED", "zone %s is laid down by bailiwick-control init and cannot be deleted", v.Name)
	case model.Region:
		err = s.regionUsers(catalogOf, v, use)
	case model.LegalBasis:
		err = each(catalogOf, model.PrefixPolicy, func(p model.Policy) {
			if p.WithinZone != nil && p.WithinZone.Basis == v.Name || slices.ContainsFunc(p.Pairs, func(q model.Pair) bool { return q.Basis == v.Name }) {
				use("policy", p.Name)
			}
		})
	case model.Policy:
		err = each(catalogOf, model.PrefixAPI, func(a model.API) {
			if a.Policy == v.Name {
				use("API", a.Zone+"/"+a.Name)
			}
		})
	case model.API:
		elsewhere := false
		err = each(catalogOf, model.PrefixAPI, func(a model.API) { elsewhere = elsewhere || a.Name == v.Name && a.Zone != v.Zone })
		if err == nil && !elsewhere { // a product still finds the name in another zone
			err = each(catalogOf, model.PrefixProduct, func(p model.Product) {
				if slices.Contains(p.APIs, v.Name) {
					use("product", p.Name)
				}
			})
		}
	case model.Product:
		err = each(catalogOf, model.PrefixPlan, func(p model.Plan) {
			if slices.Contains(p.Products, v.Name) {
				use("plan", p.Name)
			}
		})
	case model.Plan:
		// This node's copy may not have the customer yet who subscribed through another node a moment ago.
		err = each(state{snap: s.freshOrLocal(ctx, s.Store)}, model.PrefixCustomer, func(c model.Customer) {
			if slices.ContainsFunc(c.Subscriptions, func(sub model.Subscription) bool { return sub.Plan == v.Name }) {
				use("customer", c.Name)
			}
		})
	case model.Customer:
		var ids []string
		ids, err = activeKeys(st, func(k model.Key) bool { return k.Customer == v.Name })
		for _, id := range ids {
			use("key", id)
		}
	}
	if err != nil || len(users) == 0 {
		return err
	}
	kind, name := fullName(rec)
	return fault.New(fault.Conflict, "IN_USE", "%s %s is used by %s: change or delete that first", kind, name, some(users))
}

func (s *server) regionUsers(st state, r model.Region, use func(kind, name string)) error {
	err := each(st, model.PrefixPolicy, func(p model.Policy) {
		if slices.ContainsFunc(p.Pairs, func(q model.Pair) bool { return q.From == r.Name || q.To == r.Name }) {
			use("policy", p.Name)
		}
	})
	if err != nil {
		return err
	}
	err = each(st, model.PrefixAPI, func(a model.API) {
		if slices.ContainsFunc(a.Upstreams, func(u model.Upstream) bool { return u.Region == r.Name }) {
			use("API", a.Zone+"/"+a.Name)
		}
	})
	if err != nil {
		return err
	}
	for kv := range st.snap.List(model.PrefixNode) {
		n, err := model.Decode[model.Node](kv.Key, kv.Value)
		if err != nil {
			return err
		}
		if n.Region == r.Name {
			use("node", n.Name)
		}
	}
	return nil
}

func each[T record](s state, prefix string, visit func(T)) error {
	all, err := list[T](s, prefix)
	for _, v := range all {
		visit(v)
	}
	return err
}

// activeKeys lists the ids of keys that work, sorted.
func activeKeys(s state, want func(model.Key) bool) ([]string, error) {
	ids := map[string]bool{}
	for kv := range s.snap.List(model.PrefixKey) {
		k, err := model.Decode[model.Key](kv.Key, kv.Value)
		if err != nil {
			return nil, err
		}
		if k.Status == keyActive && want(k) {
			ids[k.ID] = true
		}
	}
	return slices.Sorted(maps.Keys(ids)), nil
}
