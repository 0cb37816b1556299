package policy

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"unsafe"

	"bailiwick/shared/apikey"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// Key is an API key: whose it is, and the digest the presented text must have. Its ID lies in the table.
type Key struct {
	ID     string
	Digest apikey.Digest
	*Owner
	Suspended bool
	Overdue   bool
	Ends      uint32 // unix s; 0: not by itself
}

// Owner is whose a key is. A million keys of a thousand subscriptions share a thousand of them.
type Owner struct {
	Customer     string
	Subscription string
	Plan         string
	*Bounds      // nil: none

	// Found is for whoever decides on requests, to keep what it looked up by these names.
	Found atomic.Value
	// UnderWay is for whoever serves: how many requests of it have seats at an edge.
	UnderWay atomic.Int32

	at atomic.Uint32 // where it was in the ownerList in which it was last put
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
// million copies 16 KB of pointers and a shard of 500 lines, some microseconds; readers hash twelve bytes and look into
// one shard. A key costs its line and eight to sixteen bytes of slots: a map would cost as much again, and a
// trie every lookup some pointers.
type keys struct {
	shard [shards]*shard
	n     int
	ownerList
	// odd are the objects of keys whose sum does not follow from the line: from another program, or quarantined and not
	// held. nil, or a handful.
	odd map[string]oddKey
}

type oddKey struct {
	sum    revision.Sum
	reason Reason // "": held all the same
}

// line is a key as it is held: all that a request asks of it in one line of a processor's cache, the id with it, and without
// pointers, so that the collector passes a million of them by. (It also puts a header before what it looks into, which would
// lay each across two lines.) A line of a table that was made never changes, and texts point into it.
type line struct {
	digest apikey.Digest
	name   name
	owner  uint32 // in ownerList
	ends   uint32
	marks  uint8
	_      [7]byte
}

const (
	markSuspended = 1 << iota
	markOverdue
)

// name is an id of up to fifteen bytes and its length; a longer one, of a key that is bound to a certificate or a token, is in its
// shard, and this says where.
type name [nameLen]byte

const (
	nameLen  = 16
	longName = 0xff
)

func nameOf(id string) (n name) {
	if len(id) >= nameLen {
		n[nameLen-1] = longName
		return n
	}
	copy(n[:], id)
	n[nameLen-1] = uint8(len(id))
	return n
}

// shard is one of the tables: slots are places in lines plus one, by linear probing, and half of them at least are free.
// Above them are sixteen bits of the hash, so that a line, which lies elsewhere in memory, is looked at when it is the one.
type shard struct {
	lines []line
	slots []uint32
	long  []string // ids for which a line has no room; "": a free place
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

func (s *shard) get(h uint32, id string) *line {
	if s == nil || len(s.slots) == 0 {
		return nil
	}
	n := nameOf(id)
	if len(s.lines) <= fewLines { // of a table of some thousand keys: no slots to fetch first
		for i := range s.lines {
			if l := &s.lines[i]; s.is(l, &n, id) {
				return l
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
		if l := &s.lines[slot&(1<<placeBits-1)-1]; s.is(l, &n, id) {
			return l
		}
	}
	return nil
}

const fewLines = 2

// is says whether a line is that of an id, whose name n is.
func (s *shard) is(l *line, n *name, id string) bool {
	if n[nameLen-1] == longName {
		return l.name[nameLen-1] == longName && s.id(l) == id
	}
	return l.name == *n
}

// id is whose line it is. It keeps the shard in memory: who keeps it for long has it cloned.
func (s *shard) id(l *line) string {
	if n := l.name[nameLen-1]; n != longName {
		return unsafe.String(&l.name[0], n)
	}
	return s.long[binary.LittleEndian.Uint32(l.name[:])]
}

func (s *shard) index() {
	n := 8
	for n < 2*len(s.lines) {
		n *= 2
	}
	if len(s.slots) < n || len(s.slots) > 2*n {
		s.slots = make([]uint32, 2*n) // growing pays for a while
	} else {
		clear(s.slots)
	}
	for i := range s.lines {
		s.place(hash(s.id(&s.lines[i])), i)
	}
}

func (s *shard) place(h uint32, at int) {
	mask := uint32(len(s.slots) - 1)
	i := h >> shardBits & mask
	for s.slots[i] != 0 {
		i = (i + 1) & mask
	}
	s.slots[i] = tag(h) | uint32(at+1)
}

// call gives a line, of a shard that is being made, its id.
func (s *shard) call(l *line, id string) {
	if l.name = nameOf(id); l.name[nameLen-1] != longName {
		return
	}
	at := slices.Index(s.long, "")
	if at < 0 {
		at, s.long = len(s.long), append(s.long, "")
	}
	s.long[at] = id
	binary.LittleEndian.PutUint32(l.name[:], uint32(at))
}

// uncall takes it away.
func (s *shard) uncall(l *line) {
	if l.name[nameLen-1] == longName {
		s.long[binary.LittleEndian.Uint32(l.name[:])] = ""
	}
}

// get is the key of an id; false: there is none.
func (k *keys) get(id string, into *Key) bool {
	h := hash(id)
	s := k.shard[h%shards]
	l := s.get(h, id)
	if l == nil {
		return false
	}
	*into = Key{s.id(l), l.digest, k.owner(l.owner), l.marks&markSuspended != 0, l.marks&markOverdue != 0, l.ends}
	return true
}

// maxShard bounds a shard: slots are of 16 bits. Ids are drawn at random, so that is a table of a hundred million keys.
const maxShard = 1<<placeBits - 1

// keysEdit changes a copy: each shard it touches is copied once.
type keysEdit struct {
	*keys
	own    [shards]bool
	ownOdd bool
	owners ownersEdit
	expect int // so many keys are to come into a table that has none
}

func (k *keys) edit() *keysEdit {
	c := *k
	e := &keysEdit{keys: &c}
	e.owners.of = &c.ownerList
	return e
}

func (e *keysEdit) touch(at uint32) *shard {
	if !e.own[at] {
		c := &shard{}
		if old := e.shard[at]; old != nil {
			c.lines = append(make([]line, 0, len(old.lines)+1), old.lines...)
			c.slots = append(make([]uint32, 0, len(old.slots)), old.slots...)
			c.long = slices.Clone(old.long)
		} else if n := e.expect / shards; n > 0 {
			c.lines = make([]line, 0, n+n/16)
			c.slots = make([]uint32, 1<<bits.Len(uint(2*n+n/4))) // half of them free, also in a shard that has some more
		}
		e.shard[at], e.own[at] = c, true
	}
	return e.shard[at]
}

// put takes a key over, by value. It says what counted in its place before, and whether there is a place for it.
func (e *keysEdit) put(k *Key) (was revision.Sum, counted, ok bool) {
	h := hash(k.ID)
	s := e.touch(h % shards)
	if len(e.odd) > 0 {
		var o oddKey
		if o, counted = e.odd[k.ID]; counted {
			was = o.sum
		}
	}
	l := s.get(h, k.ID)
	switch {
	case l != nil:
		if !counted {
			var old Key
			e.get(k.ID, &old)
			was, counted = old.sum(), true
		}
		if e.owner(l.owner) != k.Owner {
			e.owners.give(l.owner)
			l.owner = e.owners.take(k.Owner)
		}
	case len(s.lines) >= maxShard:
		return was, counted, false
	default:
		e.n++
		s.lines = append(s.lines, line{owner: e.owners.take(k.Owner)})
		l = &s.lines[len(s.lines)-1]
		s.call(l, k.ID)
		if 2*len(s.lines) > len(s.slots) {
			s.index()
		} else {
			s.place(h, len(s.lines)-1)
		}
	}
	l.digest, l.ends, l.marks = k.Digest, k.Ends, 0
	if k.Suspended {
		l.marks |= markSuspended
	}
	if k.Overdue {
		l.marks |= markOverdue
	}
	return was, counted, true
}

func (e *keysEdit) remove(id string) {
	h := hash(id)
	if e.shard[h%shards].get(h, id) == nil {
		return
	}
	s := e.touch(h % shards)
	l := s.get(h, id)
	e.owners.give(l.owner)
	s.uncall(l)
	last := &s.lines[len(s.lines)-1]
	*l, *last = *last, line{}
	s.lines = s.lines[:len(s.lines)-1]
	s.index()
	e.n--
}

// setOdd notes a sum that does not follow from a line.
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
	var k Key
	if e.get(id, &k) {
		return k.sum(), true
	}
	return revision.Sum{}, false
}

// done gives back what growing took: a table that was loaded whole has no room to spare.
func (e *keysEdit) done() *keys {
	for i, own := range e.own {
		if s := e.shard[i]; own && cap(s.lines) > len(s.lines)+len(s.lines)/16 {
			s.lines = append(make([]line, 0, len(s.lines)), s.lines...)
		}
	}
	return e.keys
}
