package usage

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"slices"
)

// Limits of one payload. Decode refuses more, Payloads makes no more.
const (
	MaxPayload = 4 << 20 // bytes
	MaxCells   = 65536
	MaxLatency = 4096    // keys
	maxBuckets = 1 << 18 // of all sketches of a payload
	maxTexts   = 4 << 20 // bytes, of all texts of a payload
)

// Payload is the ledger part of a block.
type Payload struct {
	Cells   map[Cell]Sums
	Latency map[LatencyKey]*Sketch // none of them empty
}

// A payload is a version, u8, the length of the rest, uvarint, and the stream of
// a coder:
//
//	texts, ascending
//	accounts: distinct (customer, subscription, plan, plan rev, period), ascending
//	spots:    distinct (product, API, route), ascending
//	places:   distinct served regions, ascending
//	cells:    (Δstart/900, account, spot, outcome, place, sums), ascending
//	latency:  (Δminute, API, route, served region, sketch), ascending
//
// Every text, account, spot and place is used, and there is one stream for one
// content (see coder). So one payload has one spelling: blocks made twice
// from the same rows have the same hash, and whoever re-derives a block from its
// detail can compare bytes.
const payloadVersion = 2

// Compare orders cells by their fields as they are declared.
func (c *Cell) Compare(o *Cell) int {
	return cmp.Or(cmp.Compare(c.Start, o.Start), cmp.Compare(c.Customer, o.Customer), cmp.Compare(c.Subscription, o.Subscription),
		cmp.Compare(c.Plan, o.Plan), cmp.Compare(c.PlanRev, o.PlanRev), cmp.Compare(c.Product, o.Product), cmp.Compare(c.API, o.API),
		cmp.Compare(c.Route, o.Route), cmp.Compare(c.Outcome, o.Outcome), cmp.Compare(c.ServedRegion, o.ServedRegion), cmp.Compare(c.Period, o.Period))
}

// Compare orders keys by their fields as they are declared.
func (k *LatencyKey) Compare(o *LatencyKey) int {
	return cmp.Or(cmp.Compare(k.Minute, o.Minute), cmp.Compare(k.API, o.API), cmp.Compare(k.Route, o.Route), cmp.Compare(k.ServedRegion, o.ServedRegion))
}

// EncodePayload is Encode for cells alone.
func EncodePayload(cells map[Cell]Sums) []byte { return Encode(Payload{Cells: cells}) }

// DecodePayload is Decode for whoever wants the cells alone.
func DecodePayload(b []byte) (map[Cell]Sums, error) {
	p, err := Decode(b)
	return p.Cells, err
}

// Encode writes a payload, the same bytes for the same content. It checks no
// limit: what may pass one goes through Payloads.
func Encode(p Payload) []byte {
	t := tabulate(p)
	return t.bytes()
}

// Payloads yields p in parts that each keep the limits, every cell in one of
// them; nothing if p is empty.
func Payloads(p Payload) iter.Seq[[]byte] {
	return func(yield func([]byte) bool) { p.parts(yield) }
}

func (p Payload) parts(yield func([]byte) bool) (more bool) {
	n := len(p.Cells) + len(p.Latency)
	if n == 0 {
		return true
	}
	if t := tabulate(p); t.fits() || n == 1 { // a lone one is always small enough
		if b := t.bytes(); len(b) <= MaxPayload || n == 1 {
			return yield(b)
		}
	}
	a, b := p.halve()
	return a.parts(yield) && b.parts(yield)
}

func (p Payload) halve() (a, b Payload) {
	a, b = Payload{map[Cell]Sums{}, map[LatencyKey]*Sketch{}}, Payload{map[Cell]Sums{}, map[LatencyKey]*Sketch{}}
	cells := slices.SortedFunc(maps.Keys(p.Cells), func(a, b Cell) int { return a.Compare(&b) })
	for i, c := range cells {
		if 2*i < len(cells) {
			a.Cells[c] = p.Cells[c]
		} else {
			b.Cells[c] = p.Cells[c]
		}
	}
	keys := slices.SortedFunc(maps.Keys(p.Latency), func(a, b LatencyKey) int { return a.Compare(&b) })
	for i, k := range keys {
		if 2*i+1 < len(keys) { // of one cell and one key each gets one
			a.Latency[k] = p.Latency[k]
		} else {
			b.Latency[k] = p.Latency[k]
		}
	}
	return a, b
}

// Decode reads what Encode wrote, and version 1, and refuses everything else:
// more than the limits, duplicates, negative sums, texts that no row may have, a
// second spelling of the same. Its memory is bounded by a small multiple of the
// limits, whatever b holds. The result shares nothing with b.
func Decode(b []byte) (Payload, error) {
	p, err := decode(b)
	if err != nil {
		return Payload{}, fmt.Errorf("decode usage payload of %d bytes: %w", len(b), err)
	}
	return p, nil
}

func decode(b []byte) (Payload, error) {
	switch {
	case len(b) > MaxPayload:
		return Payload{}, fmt.Errorf("at most %d are allowed", MaxPayload)
	case len(b) > 0 && b[0] == 1:
		cells, err := decode1(b)
		return Payload{Cells: cells}, err
	case len(b) == 0 || b[0] != payloadVersion:
		return Payload{}, fmt.Errorf("this program knows versions up to %d", payloadVersion)
	}
	c, err := openStream(b)
	if err != nil {
		return Payload{}, err
	}
	var t tables
	t.code(c)
	if err := c.end(); err != nil {
		return Payload{}, err
	}
	if err := t.check(); err != nil {
		return Payload{}, err
	}
	return t.payload(), nil
}

// openStream reads what closeStream wrote.
func openStream(b []byte) (*coder, error) {
	s, err := streamOf(b)
	if err != nil {
		return nil, err
	}
	return newReader(s), nil
}

// streamOf is what stands behind version and length.
func streamOf(b []byte) ([]byte, error) {
	r := reader{b: b[1:]}
	n := r.uvarint(MaxPayload)
	switch {
	case r.err != nil:
		return nil, r.err
	case n > uint64(len(r.b)):
		return nil, errCut
	case n < uint64(len(r.b)):
		return nil, fmt.Errorf("%d bytes follow its end", uint64(len(r.b))-n)
	}
	return r.b, nil
}

func closeStream(version byte, c *coder) []byte {
	s := c.finish()
	return append(binary.AppendUvarint(append(make([]byte, 0, len(s)+6), version), uint64(len(s))), s...)
}

// tables are a payload as it is written: what is said more than once stands in
// one table and is named by its place there.
type tables struct {
	texts    []string
	accounts []account
	spots    []spot
	places   []int
	cells    []cellEntry
	latency  []latencyEntry
}

type account struct {
	customer, subscription, plan int
	rev                          uint64
	period                       int64
}

func (a account) compare(o account) int {
	return cmp.Or(a.customer-o.customer, a.subscription-o.subscription, a.plan-o.plan, cmp.Compare(a.rev, o.rev), cmp.Compare(a.period, o.period))
}

type spot struct{ product, api, route int }

func (s spot) compare(o spot) int { return cmp.Or(s.product-o.product, s.api-o.api, s.route-o.route) }

type cellEntry struct {
	start                int64 // in cells
	account, spot, place int
	outcome              Outcome
	sums                 Sums
}

func (e *cellEntry) compare(o *cellEntry) int {
	return cmp.Or(cmp.Compare(e.start, o.start), e.account-o.account, e.spot-o.spot, int(e.outcome)-int(o.outcome), e.place-o.place)
}

type latencyEntry struct {
	minute             int64 // in minutes
	api, route, served int
	sketch             *Sketch
}

func (e *latencyEntry) compare(o *latencyEntry) int {
	return cmp.Or(cmp.Compare(e.minute, o.minute), e.api-o.api, e.route-o.route, e.served-o.served)
}

// index gives each of some comparable things its place in their order.
type index[T comparable] struct {
	all   []T
	place map[T]int
}

func (x *index[T]) add(v T) {
	if x.place == nil {
		x.place = map[T]int{}
	}
	if _, known := x.place[v]; !known {
		x.place[v] = 0
		x.all = append(x.all, v)
	}
}

func (x *index[T]) sort(compare func(a, b T) int) []T {
	slices.SortFunc(x.all, compare)
	for i, v := range x.all {
		x.place[v] = i
	}
	return x.all
}

func tabulate(p Payload) *tables {
	var t tables
	var texts index[string]
	for c := range p.Cells {
		for _, s := range [...]string{c.Customer, c.Subscription, c.Plan, c.Product, c.API, c.Route, c.ServedRegion} {
			texts.add(s)
		}
	}
	for k := range p.Latency {
		for _, s := range [...]string{k.API, k.Route, k.ServedRegion} {
			texts.add(s)
		}
	}
	t.texts = texts.sort(cmp.Compare[string])
	var accounts index[account]
	var spots index[spot]
	var places index[int]
	id := texts.place
	accountOf := func(c *Cell) account {
		return account{id[c.Customer], id[c.Subscription], id[c.Plan], c.PlanRev, c.Period}
	}
	spotOf := func(c *Cell) spot { return spot{id[c.Product], id[c.API], id[c.Route]} }
	for c := range p.Cells {
		accounts.add(accountOf(&c))
		spots.add(spotOf(&c))
		places.add(id[c.ServedRegion])
	}
	t.accounts, t.spots, t.places = accounts.sort(account.compare), spots.sort(spot.compare), places.sort(cmp.Compare[int])
	t.cells = make([]cellEntry, 0, len(p.Cells))
	for c, s := range p.Cells {
		t.cells = append(t.cells, cellEntry{c.Start / CellSeconds, accounts.place[accountOf(&c)], spots.place[spotOf(&c)],
			places.place[id[c.ServedRegion]], c.Outcome, s})
	}
	slices.SortFunc(t.cells, func(a, b cellEntry) int { return a.compare(&b) })
	for k, s := range p.Latency {
		t.latency = append(t.latency, latencyEntry{k.Minute / 60, id[k.API], id[k.Route], id[k.ServedRegion], s})
	}
	slices.SortFunc(t.latency, func(a, b latencyEntry) int { return a.compare(&b) })
	return &t
}

// fits says whether t keeps the limits on what it holds; its bytes have one of their own.
func (t *tables) fits() bool {
	buckets, texts := 0, 0
	for i := range t.latency {
		buckets += len(t.latency[i].sketch.counts)
	}
	for _, s := range t.texts {
		texts += len(s) + 1
	}
	return len(t.cells) <= MaxCells && len(t.latency) <= MaxLatency && buckets <= maxBuckets && texts <= maxTexts
}

func (t *tables) bytes() []byte {
	c := newWriter()
	t.code(c)
	return closeStream(payloadVersion, c)
}

func (t *tables) payload() Payload {
	p := Payload{Cells: make(map[Cell]Sums, len(t.cells))}
	for i := range t.cells {
		e := &t.cells[i]
		a, s := &t.accounts[e.account], &t.spots[e.spot]
		p.Cells[Cell{Start: e.start * CellSeconds, Customer: t.texts[a.customer], Subscription: t.texts[a.subscription], Plan: t.texts[a.plan], PlanRev: a.rev,
			Product: t.texts[s.product], API: t.texts[s.api], Route: t.texts[s.route], Outcome: e.outcome, ServedRegion: t.texts[t.places[e.place]], Period: a.period}] = e.sums
	}
	if len(t.latency) > 0 {
		p.Latency = make(map[LatencyKey]*Sketch, len(t.latency))
	}
	for i := range t.latency {
		e := &t.latency[i]
		p.Latency[LatencyKey{e.minute * 60, t.texts[e.api], t.texts[e.route], t.texts[e.served]}] = e.sketch
	}
	return p
}

// check refuses what tabulate would not have made.
func (t *tables) check() error {
	used := make([]bool, len(t.texts))
	for i, a := range t.accounts {
		if i > 0 && t.accounts[i-1].compare(a) >= 0 {
			return errors.New("its accounts are not in order")
		}
		if a.period < 0 {
			return errPeriod
		}
		used[a.customer], used[a.subscription], used[a.plan] = true, true, true
	}
	for i, s := range t.spots {
		if i > 0 && t.spots[i-1].compare(s) >= 0 {
			return errors.New("its routes are not in order")
		}
		used[s.product], used[s.api], used[s.route] = true, true, true
	}
	for i, s := range t.places {
		if i > 0 && t.places[i-1] >= s {
			return errors.New("its regions are not in order")
		}
		used[s] = true
	}
	accounts, spots, places := make([]bool, len(t.accounts)), make([]bool, len(t.spots)), make([]bool, len(t.places))
	for i := range t.cells {
		e := &t.cells[i]
		if i > 0 && t.cells[i-1].compare(e) >= 0 {
			return errors.New("its cells are not in order")
		}
		if err := checkRest(t.texts[t.accounts[e.account].customer], e.outcome, e.sums); err != nil {
			return err
		}
		accounts[e.account], spots[e.spot], places[e.place] = true, true, true
	}
	for i := range t.latency {
		e := &t.latency[i]
		if i > 0 && t.latency[i-1].compare(e) >= 0 {
			return errors.New("its latencies are not in order")
		}
		used[e.api], used[e.route], used[e.served] = true, true, true
	}
	for _, u := range [...][]bool{used, accounts, spots, places} {
		if slices.Contains(u, false) {
			return errors.New("it lists what no cell names")
		}
	}
	return nil
}
