package view

import (
	"encoding/hex"
	"iter"
	"slices"
	"strings"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/shared/apikey"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// Keys are the API keys of a zone as its edges hold them. Every edge of the zone holds the same, so they are
// built once, and a change costs one key: a million keys are never walked because one was revoked.
//
// They stand in an order of their own, which is the same on every node: by a hash of the id, then by id. So a snapshot can
// go on behind any key, and one of them is taken in the time of copying some thousand pointers. Objects are encoded when
// they are asked for: a million of them are some 170 MB.
//
// A record that does not read (a newer program wrote it) makes its own key, or its customer's keys, absent
// and is counted: refusing everything would let one record hold up every revocation behind it.
type Keys struct {
	places    [places][]heldKey // sorted by id; one that was given out (Walk) is copied before it changes
	given     [places]bool
	terms     map[terms]*terms
	customers map[string]model.Customer
	ends      map[string]int64 // unix s, of keys that were rotated
	sum       revision.Sum
	n         int
	malformed int
	// encoded are the objects of what changed lately: each of a thousand edges is about to ask for them.
	encoded map[string]table.Object
}

const (
	places     = 2048
	maxEncoded = 16_384 // some 4 MB; then they are forgotten, all at once
)

// heldKey is an active key, also while nothing is known of its customer.
type heldKey struct {
	id     string
	digest apikey.Digest
	*terms
}

// terms are what keys of one subscription have in common. They never change; a change of the customer makes others.
type terms struct {
	customer, subscription string
	recorded               string // the plan, as the key's record has it
	plan                   string // as its subscription has it
	suspended, overdue     bool
	ends                   int64  // unix s; 0: not by itself
	scopes, from           string // as table.Key has them
	shown                  bool   // edges hold the key
}

func (k *heldKey) object() table.Object { return k.encode(make([]byte, 0, 256)) }

// encode is the object, its data appended to b.
func (k *heldKey) encode(b []byte) table.Object {
	return table.Object{Kind: table.KindKey, ID: k.id, Data: table.AppendKey(b, &table.Key{ID: k.id, Digest: k.digest,
		Customer: k.customer, Subscription: k.subscription, Plan: k.plan, Suspended: k.suspended, Overdue: k.overdue, Ends: k.ends, Scopes: k.scopes, From: k.from})}
}

// NewKeys reads all keys of a zone store.
func NewKeys(zone group.Snapshot) *Keys {
	k := &Keys{terms: map[terms]*terms{}, customers: map[string]model.Customer{}, ends: map[string]int64{}}
	for kv := range zone.List(model.PrefixKeyEnd) {
		k.end(strings.TrimPrefix(kv.Key, model.PrefixKeyEnd), kv)
	}
	for kv := range zone.List(model.PrefixCustomer) {
		if c, err := model.Decode[model.Customer](kv.Key, kv.Value); err != nil {
			k.malformed++
		} else {
			k.customers[strings.TrimPrefix(kv.Key, model.PrefixCustomer)] = c
		}
	}
	for kv := range zone.List(model.PrefixKey) {
		id := strings.TrimPrefix(kv.Key, model.PrefixKey)
		if held, ok := k.read(kv, id); ok {
			at := place(id)
			k.places[at] = append(k.places[at], held)
			k.count(&held, 1)
		}
	}
	for at := range k.places {
		slices.SortFunc(k.places[at], func(a, b heldKey) int { return strings.Compare(a.id, b.id) })
		k.places[at] = slices.Clip(k.places[at])
	}
	return k
}

// place spreads ids, which are random text (FNV-1a). It is part of the order and must be the same on every node.
func place(id string) int {
	h := uint32(2166136261)
	for i := range len(id) {
		h = (h ^ uint32(id[i])) * 16777619
	}
	return int(h % places)
}

func (k *Keys) find(id string) (at, i int, ok bool) {
	at = place(id)
	i, ok = slices.BinarySearchFunc(k.places[at], id, func(h heldKey, id string) int { return strings.Compare(h.id, id) })
	return at, i, ok
}

// Sum is the additive sum over all key objects.
func (k *Keys) Sum() revision.Sum { return k.sum }

// Len is how many keys edges hold.
func (k *Keys) Len() int { return k.n }

// Malformed is how many records did not read so far.
func (k *Keys) Malformed() int { return k.malformed }

// Get is one key's object.
func (k *Keys) Get(id string) (table.Object, bool) {
	if o, ok := k.encoded[id]; ok {
		return o, true
	}
	at, i, ok := k.find(id)
	if !ok || !k.places[at][i].shown {
		return table.Object{}, false
	}
	return k.places[at][i].object(), true
}

// All are the objects, in order. The data of each is good until the next.
func (k *Keys) All() iter.Seq[table.Object] { return k.Walk().From("") }

// Walk is the keys as they stand now. It stays what it is and may be read while they change.
func (k *Keys) Walk() *Walk {
	w := &Walk{places: k.places}
	for at := range k.given {
		k.given[at] = true
	}
	return w
}

// Walk is a state of Keys.
type Walk struct{ places [places][]heldKey }

// From are the objects behind that of id, in order; "": all. The data of each is good until the next: whoever wants a million
// of them wants each once.
func (w *Walk) From(id string) iter.Seq[table.Object] {
	return func(yield func(table.Object) bool) {
		first, buf := 0, []byte(nil)
		if id != "" {
			first = place(id)
		}
		for at := first; at < places; at++ {
			for i := range w.places[at] {
				h := &w.places[at][i]
				if !h.shown || id != "" && at == first && h.id <= id {
					continue
				}
				o := h.encode(buf[:0])
				if buf = o.Data; !yield(o) {
					return
				}
			}
		}
	}
}

// Through is how many objects stand up to that of id, with it.
func (w *Walk) Through(id string) (n int) {
	last := place(id)
	for at := range last + 1 {
		for i := range w.places[at] {
			if h := &w.places[at][i]; h.shown && (at < last || h.id <= id) {
				n++
			}
		}
	}
	return n
}

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
	if old == nil {
		old = &Keys{}
	}
	for at := range places {
		a, b := old.places[at], new.places[at]
		for len(a) > 0 || len(b) > 0 {
			var was, is *heldKey
			switch {
			case len(b) == 0 || len(a) > 0 && a[0].id < b[0].id:
				was, a = &a[0], a[1:]
			case len(a) == 0 || b[0].id < a[0].id:
				is, b = &b[0], b[1:]
			default:
				was, is, a, b = &a[0], &b[0], a[1:], b[1:]
			}
			if !alike(was, is) {
				changed = append(changed, table.ObjectKey{Kind: table.KindKey, ID: cmpOr(is, was).id})
			}
		}
	}
	return changed
}

func cmpOr(a, b *heldKey) *heldKey {
	if a != nil {
		return a
	}
	return b
}

// alike says whether edges hold the same of two states of a key; nil is none.
func alike(a, b *heldKey) bool {
	as, bs := a != nil && a.shown, b != nil && b.shown
	if as != bs || !as {
		return as == bs
	}
	x, y := *a.terms, *b.terms
	x.recorded, y.recorded = "", ""
	return x == y && a.digest == b.digest
}

func (k *Keys) apply(e group.Event, touched map[string]bool) {
	if id, ok := strings.CutPrefix(e.KV.Key, model.PrefixKey); ok {
		var held heldKey
		known := false
		if !e.Delete {
			held, known = k.read(e.KV, id)
		}
		if k.set(id, held, known) {
			touched[id] = true
		}
		return
	}
	if id, ok := strings.CutPrefix(e.KV.Key, model.PrefixKeyEnd); ok {
		if delete(k.ends, id); !e.Delete {
			k.end(id, e.KV)
		}
		if at, i, ok := k.find(id); ok {
			h := k.places[at][i]
			if k.set(id, k.hold(id, h.digest, *h.terms), true) {
				touched[id] = true
			}
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
	for t := range k.terms {
		if t.customer == name {
			delete(k.terms, t)
		}
	}
	// Rare enough to walk all keys (some 10 ms a million) rather than keep an index of a million ids.
	for at := range k.places {
		for i := range k.places[at] {
			if h := k.places[at][i]; h.customer == name {
				if next, ok := k.hold(h.id, h.digest, *h.terms), true; k.set(h.id, next, ok) {
					touched[h.id] = true
				}
			}
		}
	}
}

// end takes when a key ends.
func (k *Keys) end(id string, kv group.KV) {
	end, err := model.Decode[model.KeyEnd](kv.Key, kv.Value)
	if err != nil {
		k.malformed++
		k.ends[id] = 1 // a key that is to end, nobody knows when, has ended
		return
	}
	k.ends[id] = end.At.Unix()
}

// read takes a key's record. One that does not read, and one that is revoked, is no key; any status not known here counts
// as revoked.
func (k *Keys) read(kv group.KV, id string) (heldKey, bool) {
	key, err := model.Decode[model.Key](kv.Key, kv.Value)
	if err != nil || key.ID != id {
		k.malformed++
		return heldKey{}, false
	}
	if key.Status != "active" {
		return heldKey{}, false
	}
	digest, err := hex.DecodeString(key.DigestHex)
	if err != nil || len(digest) != len(apikey.Digest{}) {
		k.malformed++ // an edge could not use it
		return heldKey{}, false
	}
	return k.hold(id, apikey.Digest(digest), terms{customer: key.Customer, subscription: key.Subscription, recorded: key.Plan,
		scopes: strings.Join(key.Scopes, " "), from: strings.Join(key.AllowFrom, ",")}), true
}

// hold is a key under the terms that its customer has now, given those of its record.
func (k *Keys) hold(id string, digest apikey.Digest, t terms) heldKey {
	t = terms{customer: t.customer, subscription: t.subscription, recorded: t.recorded, plan: t.recorded, ends: k.ends[id], scopes: t.scopes, from: t.from}
	if c, ok := k.customers[t.customer]; ok { // else there is nobody to bill: not a key
		// A status not known here is one that a newer program refuses for.
		t.suspended, t.overdue = c.Status != "" && c.Status != "active" && c.Status != "overdue", c.Status == "overdue"
		for _, s := range c.Subscriptions {
			name := s.Name
			if name == "" {
				name = s.Plan
			}
			if name == t.subscription {
				t.plan = s.Plan // a subscription that moved to another plan takes its keys along
			}
		}
		if t.shown = t.plan != ""; !t.shown {
			k.malformed++
		}
	}
	if t.ends != 0 {
		return heldKey{strings.Clone(id), digest, &t} // no other key has these
	}
	known := k.terms[t]
	if known == nil {
		known = &t
		k.terms[t] = known
	}
	return heldKey{strings.Clone(id), digest, known}
}

// set puts a key as it must stand now, or takes it out, and says whether the object changed.
func (k *Keys) set(id string, next heldKey, active bool) bool {
	delete(k.encoded, id)
	at, i, ok := k.find(id)
	var was *heldKey
	if ok {
		old := k.places[at][i]
		was = &old
		k.count(was, -1)
	}
	if k.given[at] && (ok || active) {
		k.places[at], k.given[at] = slices.Clone(k.places[at]), false
	}
	switch {
	case !active && ok:
		k.places[at] = slices.Delete(k.places[at], i, i+1)
	case !active:
		return false
	case ok:
		next.id = was.id
		k.places[at][i] = next
	default:
		k.places[at] = slices.Insert(k.places[at], i, next)
	}
	if !active {
		return was.shown
	}
	if k.count(&next, 1) {
		if len(k.encoded) >= maxEncoded || k.encoded == nil {
			k.encoded = map[string]table.Object{}
		}
		k.encoded[id] = next.object()
	}
	return !alike(was, &next)
}

// count adds a key to the sum, or takes it out, and says whether it counts.
func (k *Keys) count(h *heldKey, n int) bool {
	if !h.shown {
		return false
	}
	k.n += n
	var buf [512]byte
	o := h.encode(buf[:0])
	if sum := o.Sum(); n > 0 {
		k.sum = k.sum.Add(sum)
	} else {
		k.sum = k.sum.Sub(sum)
	}
	return true
}
