package view

import (
	"encoding/hex"
	"maps"
	"slices"
	"strings"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// Keys are the API keys of a zone as its edges hold them. Every edge of the zone holds the same, so they are
// built once, and a change costs one key: a million keys are never walked because one was revoked.
//
// A record that does not read (a newer program wrote it) makes its own key, or its customer's keys, absent
// and is counted: refusing everything would let one record hold up every revocation behind it.
type Keys struct {
	objects   map[string]table.Object
	records   map[string]model.Key // active ones, also while their customer is missing
	customers map[string]model.Customer
	sum       revision.Sum
	malformed int
}

// NewKeys reads all keys of a zone store.
func NewKeys(zone group.Snapshot) *Keys {
	k := &Keys{objects: map[string]table.Object{}, records: map[string]model.Key{}, customers: map[string]model.Customer{}}
	for _, prefix := range []string{model.PrefixCustomer, model.PrefixKey} {
		for kv := range zone.List(prefix) {
			k.apply(group.Event{KV: kv}, map[string]bool{})
		}
	}
	return k
}

// Sum is the additive sum over all key objects.
func (k *Keys) Sum() revision.Sum { return k.sum }

// Len is how many keys edges hold.
func (k *Keys) Len() int { return len(k.objects) }

// Malformed is how many records did not read so far.
func (k *Keys) Malformed() int { return k.malformed }

// Get is one key's object.
func (k *Keys) Get(id string) (table.Object, bool) {
	o, ok := k.objects[id]
	return o, ok
}

// All copies the list of objects; their bytes are shared.
func (k *Keys) All() []table.Object { return slices.Collect(maps.Values(k.objects)) }

// Update applies events of the zone store in order and names the keys whose objects changed. Events of other
// prefixes are passed over.
func (k *Keys) Update(events []group.Event) []table.ObjectKey {
	touched := map[string]bool{}
	for _, e := range events {
		k.apply(e, touched)
	}
	changed := make([]table.ObjectKey, 0, len(touched))
	for id := range touched {
		changed = append(changed, table.ObjectKey{Kind: table.KindKey, ID: id})
	}
	return changed
}

// DiffKeys names the keys that differ between two states; old may be nil.
func DiffKeys(old, new *Keys) []table.ObjectKey {
	var changed []table.ObjectKey
	for id, o := range new.objects {
		if old != nil {
			if was, ok := old.objects[id]; ok && string(was.Data) == string(o.Data) {
				continue
			}
		}
		changed = append(changed, o.Key())
	}
	if old != nil {
		for id, o := range old.objects {
			if _, ok := new.objects[id]; !ok {
				changed = append(changed, o.Key())
			}
		}
	}
	return changed
}

func (k *Keys) apply(e group.Event, touched map[string]bool) {
	if id, ok := strings.CutPrefix(e.KV.Key, model.PrefixKey); ok {
		var changed bool
		if e.Delete {
			changed = k.drop(id)
			delete(k.records, id)
		} else if key, err := model.Decode[model.Key](e.KV.Key, e.KV.Value); err != nil || key.ID != id {
			k.malformed++
			changed = k.drop(id)
			delete(k.records, id)
		} else {
			changed = k.set(key)
		}
		if changed {
			touched[id] = true
		}
		return
	}
	name, ok := strings.CutPrefix(e.KV.Key, model.PrefixCustomer)
	if !ok {
		return
	}
	old, had := k.customers[name]
	delete(k.customers, name)
	if !e.Delete {
		if c, err := model.Decode[model.Customer](e.KV.Key, e.KV.Value); err != nil {
			k.malformed++
		} else {
			k.customers[name] = c
			if had && old.Status == c.Status && slices.Equal(old.Subscriptions, c.Subscriptions) {
				return
			}
		}
	}
	// Rare enough to walk all keys (50 ms a million) rather than keep an index of a million ids.
	for id, key := range k.records {
		if key.Customer == name && k.set(key) {
			touched[id] = true
		}
	}
}

// set puts a key as it must stand now, or takes it out, and says whether the object changed.
func (k *Keys) set(key model.Key) bool {
	if key.Status != "active" {
		delete(k.records, key.ID) // revoked; any status not known here counts as that
		return k.drop(key.ID)
	}
	k.records[key.ID] = key
	o, ok := k.object(key)
	if !ok {
		return k.drop(key.ID)
	}
	if old, ok := k.objects[key.ID]; ok {
		if string(old.Data) == string(o.Data) {
			return false
		}
		k.sum = k.sum.Sub(old.Sum())
	}
	k.objects[key.ID] = o
	k.sum = k.sum.Add(o.Sum())
	return true
}

func (k *Keys) drop(id string) bool {
	old, ok := k.objects[id]
	if !ok {
		return false
	}
	k.sum = k.sum.Sub(old.Sum())
	delete(k.objects, id)
	return true
}

func (k *Keys) object(key model.Key) (table.Object, bool) {
	c, ok := k.customers[key.Customer]
	if !ok {
		return table.Object{}, false // nobody to bill: not a key
	}
	out := table.Key{ID: key.ID, DigestHex: key.DigestHex, Customer: key.Customer, Subscription: key.Subscription, Plan: key.Plan,
		// A status not known here is one that a newer program refuses for.
		Suspended: c.Status != "" && c.Status != "active" && c.Status != "overdue", Overdue: c.Status == "overdue"}
	for _, s := range c.Subscriptions {
		name := s.Name
		if name == "" {
			name = s.Plan
		}
		if name == key.Subscription {
			out.Plan = s.Plan // a subscription that moved to another plan takes its keys along
		}
	}
	if digest, err := hex.DecodeString(key.DigestHex); err != nil || len(digest) != len(out.Digest) || out.Plan == "" {
		k.malformed++ // an edge would refuse the whole update for it
		return table.Object{}, false
	}
	o, err := table.Encode(table.KindKey, key.ID, out)
	return o, err == nil
}
