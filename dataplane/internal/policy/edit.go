package policy

import (
	"cmp"
	"maps"
	"slices"
	"strings"

	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
	"bailiwick/shared/table"
)

// Reasons for which an update is refused whole.
const (
	// ReasonSumMismatch is the fault of an update whose result does not have the announced sum: something was
	// lost or doubled, and only a snapshot heals that.
	ReasonSumMismatch = "SUM_MISMATCH"
	// ReasonQuarantineFull: so much of a table is of no use that the one before is the better.
	ReasonQuarantineFull = "QUARANTINE_FULL"
)

// NewTable builds a table from all its objects and checks the sums of both positions.
func NewTable(objects []table.Object, catalog, zone revision.Revision) (*Table, error) {
	return (*Table)(nil).Apply(objects, nil, catalog, zone)
}

// Apply makes the next version in one step; see Edit.
func (t *Table) Apply(upserts []table.Object, removals []table.ObjectKey, catalogTo, zoneTo revision.Revision) (*Table, error) {
	e := t.Edit()
	for _, o := range upserts {
		e.Put(Prepare(o))
	}
	for _, key := range removals {
		e.Remove(key)
	}
	return e.Table(nil, catalogTo, zoneTo)
}

// Edit is the next version of a table in the making: of a nil Table all of one. The table it was made of stays as it is.
// An Edit belongs to one goroutine.
type Edit struct {
	sums    [2]revision.Sum
	epochs  [2]uint64
	objects map[table.ObjectKey]entry
	cloned  bool
	keys    *keysEdit
	of      *index
	odd     bool // what is quarantined may be another
	bad     []Quarantined
	badKeys int
	err     error
}

// Edit begins the next version.
func (t *Table) Edit() *Edit {
	if t == nil {
		t = &Table{keys: &keys{}, index: noIndex}
	}
	e := &Edit{objects: t.objects, keys: t.keys.edit(), of: t.index, bad: t.quarantined}
	e.sums[table.ScopeCatalog], e.sums[table.ScopeZone] = t.catalog.Sum, t.zone.Sum
	e.epochs = [2]uint64{t.catalog.Epoch, t.zone.Epoch}
	return e
}

// Expect says how many keys are about to come into an edit of no table: it makes room at once. It need not be exact.
func (e *Edit) Expect(keys int) { e.keys.expect = keys }

// Prepared is an object that was read, so that it can be read elsewhere than where a table is made of it.
type Prepared struct {
	object    table.ObjectKey
	sum       revision.Sum
	key       Key // of a key
	canonical bool
	value     any // of anything else
	reason    Reason
}

// Prepare reads an object. o.Data is not kept. It may be called from any goroutine.
func Prepare(o table.Object) Prepared {
	p := Prepared{object: o.Key(), sum: o.Sum()}
	if o.Kind == table.KindKey {
		p.key, p.canonical, p.reason = decodeKey(o)
	} else {
		p.value, p.reason = decode(o)
	}
	return p
}

// Object is which object was read.
func (p *Prepared) Object() table.ObjectKey { return p.object }

// Put adds an object, or puts it in the place of one of the same key. One that is of no use counts in the sum, and is
// quarantined when the Table is made.
func (e *Edit) Put(p Prepared) {
	scope := p.object.Kind.Scope()
	if p.object.Kind == table.KindKey {
		e.putKey(p)
	} else {
		e.own()
		was, ok := e.objects[p.object]
		if ok {
			e.sums[scope] = e.sums[scope].Sub(was.sum)
		}
		if p.reason != "" {
			p.value = lastGood(p.reason, p.object.Kind, p.object.ID, was.value)
		}
		e.objects[p.object] = entry{p.sum, p.value, p.reason}
	}
	e.sums[scope] = e.sums[scope].Add(p.sum)
}

func (e *Edit) putKey(p Prepared) {
	id := p.object.ID
	if p.reason == "" {
		was, counted, ok := e.keys.put(&p.key)
		if ok {
			if counted {
				e.sums[table.ScopeZone] = e.sums[table.ScopeZone].Sub(was)
			}
			if !p.canonical || len(e.keys.odd) > 0 {
				e.odd = e.odd || e.keys.odd[id].reason != ""
				e.keys.clearOdd(id)
			}
			if !p.canonical {
				e.keys.setOdd(id, oddKey{sum: p.sum})
			}
			return
		}
	}
	if was, counted := e.keys.counted(id); counted {
		e.sums[table.ScopeZone] = e.sums[table.ScopeZone].Sub(was)
	}
	// Never the last good value: what does not read may be the suspension of it.
	e.keys.remove(id)
	e.keys.setOdd(id, oddKey{p.sum, cmp.Or(p.reason, ReasonUnfit)})
	e.odd = true
}

// Remove takes an object away, if it is there.
func (e *Edit) Remove(key table.ObjectKey) {
	scope := key.Kind.Scope()
	if key.Kind == table.KindKey {
		if was, ok := e.keys.counted(key.ID); ok {
			e.sums[scope] = e.sums[scope].Sub(was)
			e.odd = e.odd || e.keys.odd[key.ID].reason != ""
			e.keys.remove(key.ID)
			e.keys.clearOdd(key.ID)
		}
	} else if old, ok := e.objects[key]; ok {
		e.own()
		e.sums[scope] = e.sums[scope].Sub(old.sum)
		delete(e.objects, key)
	}
}

func (e *Edit) own() {
	if !e.cloned {
		if e.objects = maps.Clone(e.objects); e.objects == nil {
			e.objects = map[table.ObjectKey]entry{}
		}
		e.cloned = true
	}
}

// Table is the version that the edit made, held against the positions it must have reached. What is quarantined in it keeps
// its last good value where it may, of held if this one was made of none: nil if there is no such table. It is refused
// whole if objects were lost or doubled, if it does not say for which region it is, or if too much of it is of no use.
func (e *Edit) Table(held *Table, catalogTo, zoneTo revision.Revision) (*Table, error) {
	for _, c := range []struct {
		name      string
		got, want revision.Sum
	}{{"catalog", e.sums[table.ScopeCatalog], catalogTo.Sum}, {"zone", e.sums[table.ScopeZone], zoneTo.Sum}} {
		if c.got != c.want {
			return nil, fault.New(fault.Conflict, ReasonSumMismatch, "apply update to %s and %s: sum of %s objects is %.12s, want %.12s",
				catalogTo, zoneTo, c.name, c.got.String(), c.want.String())
		}
	}
	next := &Table{catalog: catalogTo, zone: zoneTo, keys: e.keys.done(), index: e.of, quarantined: e.bad}
	switch {
	case e.cloned || e.of == noIndex:
		e.own()
		if err := e.keep(held); err != nil {
			return nil, err
		}
		next.index, e.odd = makeIndex(e.objects), true
	case e.epochs != [2]uint64{catalogTo.Epoch, zoneTo.Epoch}:
		idx := *e.of // the same answers under another Mark: a recovery ends what was granted before
		next.index = &idx
	}
	next.objects = e.objects
	next.keyless = &Table{catalog: catalogTo, zone: zoneTo, keys: noKeys, index: next.index}
	if e.odd {
		var err error
		if next.quarantined, err = quarantine(next); err != nil {
			return nil, err
		}
	}
	return next, nil
}

// keep looks for last good values of what this edit has none of, and quarantines pairs of other regions.
func (e *Edit) keep(held *Table) error {
	settings, ok := e.objects[table.ObjectKey{Kind: table.KindSettings, ID: table.SettingsID}]
	if ok && settings.value == nil && held != nil {
		s := held.Settings()
		settings.value = &s // who an edge is never changes; it is held against its certificate all the same
		e.objects[table.ObjectKey{Kind: table.KindSettings, ID: table.SettingsID}] = settings
	}
	if !ok || settings.value == nil {
		return fault.New(fault.Invalid, "SETTINGS_MISSING", "build table: it does not say for which zone and region it is")
	}
	region := settings.value.(*table.Settings).Region
	for key, o := range e.objects {
		if p, ok := o.value.(*table.Pair); ok && p.From != region && p.To != region {
			e.objects[key] = entry{o.sum, nil, ReasonUnfit}
		}
		if o.reason != "" && o.value == nil && held != nil {
			o.value = lastGood(o.reason, key.Kind, key.ID, held.objects[key].value)
			e.objects[key] = o
		}
	}
	return nil
}

// Reason says why an object is quarantined: one of the list below, which is the wire's too.
type Reason string

const (
	ReasonMalformed Reason = "MALFORMED"  // it does not decode
	ReasonMisnamed  Reason = "MISNAMED"   // it calls itself by another id
	ReasonUnfit     Reason = "UNFIT"      // it decodes, and cannot be right: a pair of other regions, a key without a digest
	ReasonHostTaken Reason = "HOST_TAKEN" // one of its hosts is another API's
	ReasonNewer     Reason = "NEWER"      // it forbids something in a way that this program does not know
)

// The bounds of a quarantine. Beyond them it is not some objects that are bad but whoever makes them, and the table before,
// which keeps serving, is the better one.
const (
	MaxQuarantined     = 64
	MaxQuarantinedKeys = 1024
)

// Quarantined is an object that counts in the sums and in nothing else.
type Quarantined struct {
	Key    table.ObjectKey
	Reason Reason
	Kept   bool // its last good value serves on, without what permits a relay
}

// Quarantined are the objects that this table cannot use, by kind and id. Do not write to the slice.
func (t *Table) Quarantined() []Quarantined {
	if t == nil {
		return nil
	}
	return t.quarantined
}

func quarantine(t *Table) ([]Quarantined, error) {
	list := slices.Clone(t.index.taken)
	others := len(list)
	for key, o := range t.objects {
		if o.reason != "" {
			list, others = append(list, Quarantined{key, o.reason, o.value != nil}), others+1
		}
	}
	for id, o := range t.keys.odd {
		if o.reason != "" {
			list = append(list, Quarantined{table.ObjectKey{Kind: table.KindKey, ID: id}, o.reason, false})
		}
	}
	if others > MaxQuarantined || len(list)-others > MaxQuarantinedKeys {
		return nil, fault.New(fault.Invalid, ReasonQuarantineFull, "build table: %d keys and %d other objects of it are of no use, at most %d and %d are taken: the table before serves on",
			len(list)-others, others, MaxQuarantinedKeys, MaxQuarantined)
	}
	slices.SortFunc(list, func(a, b Quarantined) int {
		return cmp.Or(cmp.Compare(a.Key.Kind, b.Key.Kind), cmp.Compare(a.Key.ID, b.Key.ID), cmp.Compare(a.Reason, b.Reason))
	})
	return list, nil
}

// lastGood is what serves on in the place of an object that is of no use; nil: nothing does.
//
// The zone takes the acknowledgement of a position for the word that what it forbids has ended, and this edge acknowledges
// positions with quarantined objects in them. So nothing stays that permits a relay: no pair, no key of a zone that signs
// grants, no edge that may relay to this one, no API of another zone; and an API of the own zone stays at home, under no
// policy, since what does not read may have put it under a narrower one. No key stays either: it may have been suspended.
// A region that somebody drained is drained, and a feature that somebody turned off is off: such an object is there for
// nothing else, and its id says what it is about, after a restart too. Of what forbids more than this program knows (newer)
// nothing stays either: what was before forbade less.
func lastGood(reason Reason, kind table.Kind, id string, was any) any {
	if _, settings := was.(*table.Settings); reason == ReasonNewer && !settings {
		was = nil
	}
	switch v := was.(type) {
	case *API:
		if kind != table.KindAPI || v.Foreign {
			return nil
		}
		home := *v
		home.Policy = ""
		return &home
	case *Plan, *table.Directory, *table.Region, *table.Doors, *table.Settings, *table.Switch, *table.Targets:
		return was
	}
	switch {
	case id == "":
	case kind == table.KindPurges: // what cannot be read may have ended anything
		return &table.Purges{API: id, Unread: true}
	case kind == table.KindDrain:
		return &table.Drain{Region: id, Reason: "by a record that does not read"}
	case kind == table.KindSwitch:
		feature, api, _ := strings.Cut(id, "/")
		return &table.Switch{Feature: feature, API: api}
	}
	return nil
}
