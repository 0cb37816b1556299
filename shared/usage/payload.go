package usage

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"iter"
	"maps"
	"math/bits"
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

// openStream reads the head that bytes wrote: version, length.
func openStream(b []byte) (*coder, error) {
	r := reader{b: b[1:]}
	n := r.uvarint(MaxPayload)
	switch {
	case r.err != nil:
		return nil, r.err
	case n > uint64(len(r.b)):
		return nil, errors.New("it is cut short")
	case n < uint64(len(r.b)):
		return nil, fmt.Errorf("%d bytes follow its end", uint64(len(r.b))-n)
	}
	return newReader(r.b), nil
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

// code writes or reads all tables.
func (t *tables) code(c *coder) {
	t.texts = c.dictionary(t.texts, maxTexts)
	if c.err == nil {
		t.codeAccounts(c)
	}
	if c.err == nil {
		t.codeSpots(c)
	}
	if c.err == nil {
		t.codeCells(c)
	}
	if c.err == nil {
		t.codeLatency(c)
	}
}

// rows codes how many of something follow, and makes room for them.
func rows[T any](c *coder, list *[]T, limit int) {
	var m number
	n := c.below(&m, uint64(len(*list)), uint64(limit)+1)
	if c.reading {
		*list = make([]T, n)
	}
}

// textID codes the number of a text by its distance to the one in the row before.
func (t *tables) textID(c *coder, m *number, id *int, before int) {
	d := c.signed(m, int64(*id-before))
	if d < int64(-before) || d >= int64(len(t.texts)-before) {
		c.fail("a text is named that is not in the dictionary")
		return
	}
	*id = before + int(d)
}

func (t *tables) codeAccounts(c *coder) {
	rows(c, &t.accounts, MaxCells)
	var customer, subscription, plan, rev, period number
	var prev account
	for i := range t.accounts {
		a := &t.accounts[i]
		t.textID(c, &customer, &a.customer, prev.customer)
		t.textID(c, &subscription, &a.subscription, prev.subscription)
		t.textID(c, &plan, &a.plan, prev.plan)
		a.rev = prev.rev + uint64(c.signed(&rev, int64(a.rev-prev.rev)))
		a.period = prev.period + c.signed(&period, a.period-prev.period)
		if c.err != nil {
			return
		}
		prev = *a
	}
}

func (t *tables) codeSpots(c *coder) {
	rows(c, &t.spots, MaxCells)
	var product, api, route, place number
	var prev spot
	for i := range t.spots {
		s := &t.spots[i]
		t.textID(c, &product, &s.product, prev.product)
		t.textID(c, &api, &s.api, prev.api)
		t.textID(c, &route, &s.route, prev.route)
		if c.err != nil {
			return
		}
		prev = *s
	}
	rows(c, &t.places, MaxCells)
	before := 0
	for i := range t.places {
		t.textID(c, &place, &t.places[i], before)
		if c.err != nil {
			return
		}
		before = t.places[i]
	}
}

// sumsModel has a model for each size of the number of requests: what a cell
// sums to goes with how many it sums.
type sumsModel struct {
	requests [2]number
	units    number
	empty    [16]prob // no bytes in: usual for a route or not
	bytesIn  [6]number
	bytesOut [2][6]number
}

func (c *coder) sums(m *sumsModel, s *Sums, spot int, o Outcome) {
	good := 0
	if o == OutcomeSuccess {
		good = 1
	}
	s.Requests = c.positive(&m.requests[good], s.Requests)
	s.Units = s.Requests + c.signed(&m.units, s.Units-s.Requests)
	k := min(bits.Len64(uint64(s.Requests)), 5)
	if empty := c.flag(&m.empty[spot&15], s.BytesIn == 0); empty {
		s.BytesIn = 0
	} else if s.BytesIn = c.positive(&m.bytesIn[k], s.BytesIn-1) + 1; s.BytesIn < 0 {
		c.fail("a number is too large")
	}
	s.BytesOut = c.positive(&m.bytesOut[good][k], s.BytesOut)
}

// maxStart bounds the starts of cells and minutes, so that no sum overflows.
const maxStart = 1<<63 - 1

// after codes a time that is not before prev.
func (c *coder) after(m *number, v, prev, limit int64) int64 {
	d := c.num(m, uint64(v)-uint64(prev))
	if v = int64(uint64(prev) + d); v < prev || v > limit {
		c.fail("a time is out of range")
		return prev
	}
	return v
}

func (t *tables) codeCells(c *coder) {
	rows(c, &t.cells, MaxCells)
	if len(t.cells) > 0 && (len(t.accounts) == 0 || len(t.spots) == 0 || len(t.places) == 0) {
		c.fail("a cell names nothing")
		return
	}
	var start, outcome [2]number
	var accounts, spots [2]number
	var place [8]number
	var sums sumsModel
	const limit = maxStart / CellSeconds
	var prev cellEntry
	for i := range t.cells {
		e := &t.cells[i]
		if i == 0 {
			e.start = c.signed(&start[0], e.start)
			if e.start < -limit || e.start > limit {
				c.fail("a time is out of range")
			}
		} else {
			e.start = c.after(&start[1], e.start, prev.start, limit)
		}
		// same: how much of the cell before it shares; what follows only grows.
		same := i > 0 && e.start == prev.start
		e.account = c.place(&accounts, e.account, prev.account, same, len(t.accounts))
		same = same && e.account == prev.account
		e.spot = c.place(&spots, e.spot, prev.spot, same, len(t.spots))
		same = same && e.spot == prev.spot
		again := 0
		if same {
			again = 1
		}
		e.outcome = Outcome(c.below(&outcome[again], uint64(e.outcome), 256))
		e.place = int(c.below(&place[e.outcome&7], uint64(e.place), uint64(len(t.places))))
		c.sums(&sums, &e.sums, e.spot, e.outcome)
		if c.err != nil {
			return
		}
		prev = *e
	}
}

// place codes a place in a table of n: from the one before if it cannot be below it.
func (c *coder) place(m *[2]number, v, before int, grows bool, n int) int {
	if grows {
		return before + int(c.below(&m[1], uint64(v-before), uint64(n-before)))
	}
	return int(c.below(&m[0], uint64(v), uint64(n)))
}

func (t *tables) codeLatency(c *coder) {
	rows(c, &t.latency, MaxLatency)
	var first, minute, api, route, served number
	sketches := new(sketchModel)
	const limit = maxStart / 60
	var prev latencyEntry
	buckets := 0
	for i := range t.latency {
		e := &t.latency[i]
		if i == 0 {
			e.minute = c.signed(&first, e.minute)
			if e.minute < -limit || e.minute > limit {
				c.fail("a time is out of range")
			}
		} else {
			e.minute = c.after(&minute, e.minute, prev.minute, limit)
		}
		t.textID(c, &api, &e.api, prev.api)
		t.textID(c, &route, &e.route, prev.route)
		t.textID(c, &served, &e.served, prev.served)
		if c.reading {
			e.sketch = &Sketch{}
		}
		if c.err == nil {
			e.sketch.code(c, sketches)
		}
		if buckets += len(e.sketch.counts); buckets > maxBuckets {
			c.fail("its latency sketches are too long")
		}
		if c.err != nil {
			return
		}
		prev = *e
	}
}
