package policy

import (
	"runtime"
	"slices"
	"strings"
	"sync"
	"weak"

	"bailiwick/shared/table"
)

// ownerList is the owners of a table's keys by number, which is what a line has room for. Like the shards it is copied in pieces by
// whoever changes it.
type ownerList struct {
	pieces []*ownerPiece
	room   int // no piece before it has a free place
}

const pieceLen = 128

type ownerPiece struct {
	of   [pieceLen]*Owner // nil: free
	keys [pieceLen]uint32 // that have it
	n    int              // places that are not free
}

func (l *ownerList) owner(at uint32) *Owner { return l.pieces[at/pieceLen].of[at%pieceLen] }

// ownersEdit changes the list of an edit.
type ownersEdit struct {
	of  *ownerList
	own []bool // pieces that are the edit's; nil: not even the list is
}

// take is the number of a key's owner. An owner may come to have two numbers, which does no harm.
func (e *ownersEdit) take(o *Owner) uint32 {
	at := o.at.Load()
	if i := int(at / pieceLen); i >= len(e.of.pieces) || e.of.pieces[i].of[at%pieceLen] != o {
		at = e.free()
		o.at.Store(at)
	}
	p := e.touch(int(at / pieceLen))
	if i := at % pieceLen; p.keys[i] == 0 {
		p.of[i] = o
		p.n++
	}
	p.keys[at%pieceLen]++
	return at
}

// give says that a key has that owner no more.
func (e *ownersEdit) give(at uint32) {
	p := e.touch(int(at / pieceLen))
	if p.keys[at%pieceLen]--; p.keys[at%pieceLen] == 0 {
		p.of[at%pieceLen] = nil
		p.n--
		e.of.room = min(e.of.room, int(at/pieceLen))
	}
}

// free is a number that nobody has.
func (e *ownersEdit) free() uint32 {
	for ; e.of.room < len(e.of.pieces); e.of.room++ {
		if p := e.of.pieces[e.of.room]; p.n < pieceLen {
			return uint32(e.of.room*pieceLen + slices.Index(p.of[:], nil))
		}
	}
	return uint32(e.of.room * pieceLen)
}

func (e *ownersEdit) touch(piece int) *ownerPiece {
	if e.own == nil {
		e.of.pieces = slices.Clone(e.of.pieces)
		e.own = make([]bool, len(e.of.pieces), len(e.of.pieces)+1)
	}
	switch {
	case piece == len(e.of.pieces):
		e.of.pieces, e.own = append(e.of.pieces, &ownerPiece{}), append(e.own, true)
	case !e.own[piece]:
		p := *e.of.pieces[piece]
		e.of.pieces[piece], e.own[piece] = &p, true
	}
	return e.of.pieces[piece]
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
