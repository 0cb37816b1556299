package policy

import (
	"math/bits"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"weak"

	"bailiwick/shared/apikey"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// Key is an API key as held here: whose it is, and the digest the presented text must have.
type Key struct {
	ID     string
	Digest apikey.Digest
	*Owner
	Suspended bool
	Overdue   bool
	Ends      uint32 // unix s; 0: not by itself. It has the room that the two before it leave
}

// Owner is whose a key is. A million keys of a thousand subscriptions share a thousand of them.
type Owner struct {
	Customer     string
	Subscription string
	Plan         string
	*Bounds      // nil: none

	// Found is for whoever decides on requests, to keep what it looked up by these names.
	Found atomic.Value
}

// Bounds are what a key is bound to beside its plan.
type Bounds struct {
	scopes, from string // as table.Key has them
	blocks       []netip.Prefix
}

// Scoped says whether the key was given any scope.
func (b *Bounds) Scoped() bool { return b != nil && b.scopes != "" }

// HasScope says whether the key was given a scope. It may be asked of no bounds.
func (b *Bounds) HasScope(scope string) bool {
	if b == nil {
		return false
	}
	for rest := b.scopes; rest != ""; {
		var s string
		if s, rest, _ = strings.Cut(rest, " "); s == scope {
			return true
		}
	}
	return false
}

// Anywhere says whether the key works from every address.
func (b *Bounds) Anywhere() bool { return b == nil || b.from == "" }

// Takes says whether the key works from an address.
func (b *Bounds) Takes(a netip.Addr) bool {
	if b.Anywhere() {
		return true
	}
	a = a.Unmap().WithZone("")
	for _, p := range b.blocks {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// texts are the bounds as table.Key has them.
func (b *Bounds) texts() (scopes, from string) {
	if b == nil {
		return "", ""
	}
	return b.scopes, b.from
}

// newBounds reads them; a block that does not read holds no address, so that a key with nothing else works from nowhere.
func newBounds(scopes, from string) *Bounds {
	if scopes == "" && from == "" {
		return nil
	}
	b := &Bounds{scopes: strings.Clone(scopes), from: strings.Clone(from)}
	for text := range strings.SplitSeq(b.from, ",") {
		if p, err := netip.ParsePrefix(text); err == nil {
			b.blocks = append(b.blocks, p)
		}
	}
	return b
}

// sum is what the key counts in the zone's sum, if its object was the canonical one: made anew, since it is asked for when
// the key changes, and a million of them are 32 MB.
func (k *Key) sum() revision.Sum {
	var buf [512]byte
	scopes, from := k.texts()
	return revision.Of(uint8(table.KindKey), k.ID, table.AppendKey(buf[:0], &table.Key{ID: k.ID, Digest: k.Digest, Customer: k.Customer,
		Subscription: k.Subscription, Plan: k.Plan, Suspended: k.Suspended, Overdue: k.Overdue, Ends: int64(k.Ends), Scopes: scopes, From: from}))
}

const (
	shards    = 2048
	shardBits = 11
)

// keys is a persistent hash table in the simplest form that fits: a fixed array of small ones. Changing one key of a
// million copies 16 KB of pointers and a shard of 500 entries, some microseconds; readers hash twelve bytes and look into
// one shard. An entry costs its 64 bytes, its id and eight to sixteen bytes of slots: a map would cost as much again, and a
// trie every lookup some pointers.
type keys struct {
	shard [shards]*shard
	n     int
	// odd are the objects of keys whose sum does not follow from the entry: from another program, or quarantined and not
	// held. nil, or a handful.
	odd map[string]oddKey
}

type oddKey struct {
	sum    revision.Sum
	reason Reason // "": held all the same
}

// shard is one of the tables: slots are places in entries plus one, by linear probing, and half of them at least are free.
// Above them are sixteen bits of the hash, so that an entry, which lies elsewhere in memory, is looked at when it is the one.
type shard struct {
	entries []Key
	slots   []uint32
}

const placeBits = 16

// tag is what a slot keeps of a hash: bits that neither choose the shard nor, mostly, the slot.
func tag(h uint32) uint32 { return h * 0x9E3779B1 &^ (1<<placeBits - 1) }

// hash spreads ids, which are random text (FNV-1a).
func hash(id string) uint32 {
	h := uint32(2166136261)
	for i := range len(id) {
		h = (h ^ uint32(id[i])) * 16777619
	}
	return h
}

func (s *shard) get(h uint32, id string) *Key {
	if s == nil || len(s.slots) == 0 {
		return nil
	}
	if len(s.entries) <= fewEntries { // of a table of some thousand keys: no slots to fetch first
		for i := range s.entries {
			if e := &s.entries[i]; e.ID == id {
				return e
			}
		}
		return nil
	}
	mask, want := uint32(len(s.slots)-1), tag(h)
	for i := h >> shardBits & mask; s.slots[i] != 0; i = (i + 1) & mask {
		slot := s.slots[i]
		if (slot^want)>>placeBits != 0 {
			continue
		}
		if e := &s.entries[slot&(1<<placeBits-1)-1]; e.ID == id {
			return e
		}
	}
	return nil
}

const fewEntries = 2

func (s *shard) index() {
	n := 8
	for n < 2*len(s.entries) {
		n *= 2
	}
	if len(s.slots) < n || len(s.slots) > 2*n {
		s.slots = make([]uint32, 2*n) // growing pays for a while
	} else {
		clear(s.slots)
	}
	for i := range s.entries {
		s.place(hash(s.entries[i].ID), i)
	}
}

func (s *shard) place(h uint32, entry int) {
	mask := uint32(len(s.slots) - 1)
	i := h >> shardBits & mask
	for s.slots[i] != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = tag(h) | uint32(entry+1)
}

func (k *keys) get(id string) *Key {
	h := hash(id)
	return k.shard[h%shards].get(h, id)
}

// maxShard bounds a shard: slots are of 16 bits. Ids are drawn at random, so that is a table of a hundred million keys.
const maxShard = 1<<placeBits - 1

// keysEdit changes a copy: each shard it touches is copied once.
type keysEdit struct {
	*keys
	own    [shards]bool
	ownOdd bool
	expect int // so many keys are to come into a table that has none
}

func (k *keys) edit() *keysEdit {
	c := *k
	return &keysEdit{keys: &c}
}

func (e *keysEdit) touch(at uint32) *shard {
	if !e.own[at] {
		c := &shard{}
		if old := e.shard[at]; old != nil {
			c.entries = append(make([]Key, 0, len(old.entries)+1), old.entries...)
			c.slots = append(make([]uint32, 0, len(old.slots)), old.slots...)
		} else if n := e.expect / shards; n > 0 {
			c.entries = make([]Key, 0, n+n/16)
			c.slots = make([]uint32, 1<<bits.Len(uint(2*n+n/4))) // half of them free, also in a shard that has some more
		}
		e.shard[at], e.own[at] = c, true
	}
	return e.shard[at]
}

// put takes a key over, by value. It says what counted in its place before, and whether there is a place for it.
func (e *keysEdit) put(k Key) (was revision.Sum, counted, ok bool) {
	h := hash(k.ID)
	s := e.touch(h % shards)
	if len(e.odd) > 0 {
		var o oddKey
		if o, counted = e.odd[k.ID]; counted {
			was = o.sum
		}
	}
	if old := s.get(h, k.ID); old != nil {
		if !counted {
			was, counted = old.sum(), true
		}
		k.ID = old.ID
		*old = k
		return was, counted, true
	}
	if len(s.entries) >= maxShard {
		return was, counted, false
	}
	e.n++
	s.entries = append(s.entries, k)
	if 2*len(s.entries) > len(s.slots) {
		s.index()
	} else {
		s.place(h, len(s.entries)-1)
	}
	return was, counted, true
}

func (e *keysEdit) remove(id string) {
	h := hash(id)
	if e.shard[h%shards].get(h, id) == nil {
		return
	}
	s := e.touch(h % shards)
	k := s.get(h, id)
	last := &s.entries[len(s.entries)-1]
	*k, *last = *last, Key{}
	s.entries = s.entries[:len(s.entries)-1]
	s.index()
	e.n--
}

// setOdd notes a sum that does not follow from an entry.
func (e *keysEdit) setOdd(id string, o oddKey) {
	if !e.ownOdd {
		odd := make(map[string]oddKey, len(e.odd)+1)
		for id, o := range e.odd {
			odd[id] = o
		}
		e.odd, e.ownOdd = odd, true
	}
	e.odd[strings.Clone(id)] = o
}

func (e *keysEdit) clearOdd(id string) {
	if _, ok := e.odd[id]; !ok {
		return
	}
	e.setOdd(id, oddKey{})
	delete(e.odd, id)
}

// counted is what an id counts in the sum now; false: nothing.
func (e *keysEdit) counted(id string) (revision.Sum, bool) {
	if o, ok := e.odd[id]; ok {
		return o.sum, true
	}
	if k := e.get(id); k != nil {
		return k.sum(), true
	}
	return revision.Sum{}, false
}

// done gives back what growing took: a table that was loaded whole has no room to spare.
func (e *keysEdit) done() *keys {
	for i, own := range e.own {
		if s := e.shard[i]; own && cap(s.entries) > len(s.entries)+len(s.entries)/16 {
			s.entries = append(make([]Key, 0, len(s.entries)), s.entries...)
		}
	}
	return e.keys
}

// owners interns Owners for as long as a key has them.
var owners = ownerPool{m: map[ownerTexts]weak.Pointer[Owner]{}}

type ownerTexts struct{ customer, subscription, plan, scopes, from string }

type ownerPool struct {
	mu sync.Mutex // covers m
	m  map[ownerTexts]weak.Pointer[Owner]
}

func (p *ownerPool) intern(w *table.Key) *Owner {
	p.mu.Lock()
	defer p.mu.Unlock()
	if o := p.m[ownerTexts{w.Customer, w.Subscription, w.Plan, w.Scopes, w.From}].Value(); o != nil {
		return o
	}
	o := &Owner{Customer: strings.Clone(w.Customer), Subscription: strings.Clone(w.Subscription), Plan: strings.Clone(w.Plan), Bounds: newBounds(w.Scopes, w.From)}
	scopes, from := o.texts()
	kept := ownerTexts{o.Customer, o.Subscription, o.Plan, scopes, from}
	p.m[kept] = weak.Make(o)
	runtime.AddCleanup(o, p.forget, kept)
	return o
}

func (p *ownerPool) forget(o ownerTexts) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.m[o].Value() == nil { // else it was made again meanwhile
		delete(p.m, o)
	}
}
