package usage

import (
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Limits of one piece of detail. DecodeDetail refuses more.
const (
	MaxDetailRows = 8192
	MaxDetail     = 4 << 20 // bytes, and of its texts
)

// What the detail part keeps of what is not summed: enough to look at, in a
// third of the bytes.
const (
	latencyBits  = 8 // of LatencyUS: within 0.4 %
	overheadBits = 5 // of LatencyUS - UpstreamUS: within 3.2 %
)

// Detail is a piece of an edge's detail. (Edge, Epoch, Number) names it for ever.
type Detail struct {
	Edge          string
	Epoch, Number uint64 // Number counts from 1 in each epoch
	Seq           uint64 // ledger block in which its rows are summed; the first, where one seal made several
	Payload       []byte // EncodeDetail
	Hash          [32]byte
}

// Intact says whether Hash is the hash of the rest.
func (d *Detail) Intact() bool {
	return d.Hash == HashDetail(d.Edge, d.Epoch, d.Number, d.Seq, d.Payload)
}

// HashDetail is SHA-256 over a domain word and all of a piece, as HashBlock.
// Pieces are no chain: detail may be given up where usage may not.
func HashDetail(edge string, epoch, number, seq uint64, payload []byte) (sum [32]byte) {
	h := sha256.New()
	b := append(make([]byte, 0, 128+len(edge)), "bailiwick usage detail 1\x00"...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(edge)))
	b = append(b, edge...)
	for _, v := range [...]uint64{epoch, number, seq, uint64(len(payload))} {
		b = binary.BigEndian.AppendUint64(b, v)
	}
	h.Write(b)
	h.Write(payload)
	h.Sum(sum[:0])
	return sum
}

// ShortID is what detail keeps of a request's id: of a UUIDv7 its time and the
// last 24 of its 74 random bits, in their places, the rest zero; any other id
// whole. All 74 would cost 9 bytes a request, more than all else together. With
// 24, two requests of one edge in one millisecond share a ShortID once in 16
// million, so it names a request; whoever looks for one shortens its id first.
func ShortID(id [16]byte) [16]byte {
	if id[6]>>4 != 7 || id[8]>>6 != 2 {
		return id
	}
	id[6], id[7], id[8] = 0x70, 0, 0x80
	clear(id[9:13])
	return id
}

// Kept is the row as the detail part keeps it: all that is summed is exact, the
// latencies are rounded, the id is its ShortID.
func (r *Row) Kept() Row {
	k := *r
	k.RequestID = ShortID(r.RequestID)
	k.LatencyUS = int64(rounded(uint64(r.LatencyUS), latencyBits))
	if k.UpstreamUS > 0 {
		over := rounded(uint64(max(k.LatencyUS-k.UpstreamUS, 0)), overheadBits)
		k.UpstreamUS = max(k.LatencyUS-int64(over), 0)
	}
	return k
}

// A piece of detail is written as a payload is: a version, a length, and the
// stream of a coder.
//
//	texts, accounts, spots, places: as in a payload, but an account has a key id and no period
//	kinds: distinct (outcome, status, place, flags, attempts, requests), ascending
//	rows, in the order in which they were appended
//
// The models of a row's numbers go by its route, because that is what latencies
// and sizes go by, and pseudonyms and periods by its account.
const detailVersion = 1

type detailAccount struct {
	customer, subscription, plan, key int
	rev                               uint64
}

func (a detailAccount) compare(o detailAccount) int {
	return cmp.Or(a.customer-o.customer, a.subscription-o.subscription, a.plan-o.plan, a.key-o.key, cmp.Compare(a.rev, o.rev))
}

type kind struct {
	outcome  Outcome
	status   uint16
	place    int
	flags    Flags
	attempts uint8
	requests int64
}

func (k kind) compare(o kind) int {
	return cmp.Or(int(k.outcome)-int(o.outcome), int(k.status)-int(o.status), k.place-o.place, int(k.flags)-int(o.flags), int(k.attempts)-int(o.attempts), cmp.Compare(k.requests, o.requests))
}

type detailTables struct {
	tables   // texts, spots and places
	accounts []detailAccount
	kinds    []kind
	rows     []detailEntry
}

// detailEntry names what a row shares with others, and has what it has alone. There are no pointers in it: there are many, and
// the collector need not look at them.
type detailEntry struct {
	account, spot, kind int

	RequestID                                   [16]byte
	EndUnixMS, Period, Units, BytesIn, BytesOut int64
	LatencyUS, UpstreamUS                       int64
	Actor, Address                              uint64
}

func (e *detailEntry) keep(r *Row) {
	k := r.Kept()
	e.RequestID, e.EndUnixMS, e.Period, e.Units, e.BytesIn, e.BytesOut = k.RequestID, k.EndUnixMS, k.Period, k.Units, k.BytesIn, k.BytesOut
	e.LatencyUS, e.UpstreamUS, e.Actor, e.Address = k.LatencyUS, k.UpstreamUS, k.Actor, k.Address
}

// row is what the entry has alone.
func (e *detailEntry) row() Row {
	return Row{RequestID: e.RequestID, EndUnixMS: e.EndUnixMS, Period: e.Period, Units: e.Units, BytesIn: e.BytesIn, BytesOut: e.BytesOut,
		LatencyUS: e.LatencyUS, UpstreamUS: e.UpstreamUS, Actor: e.Actor, Address: e.Address}
}

// EncodeDetail writes what Kept leaves of rows, the same bytes for the same
// rows. It checks no limit.
func EncodeDetail(rows []Row) []byte {
	if len(rows) < detailSwitch {
		return encodeDetail1(rows)
	}
	return BatchOf(rows).Encode(0, len(rows))
}

func encodeDetail1(rows []Row) []byte {
	t := tabulateDetail(rows)
	c := newWriter()
	t.code(c)
	return closeStream(detailVersion, c)
}

// DecodeDetail reads what EncodeDetail wrote, and refuses everything else: more
// than the limits, rows that Check refuses, a second spelling of the same. Its
// memory is bounded by a small multiple of the limits. The result shares nothing
// with b.
func DecodeDetail(b []byte) ([]Row, error) {
	rows, err := decodeDetail(b)
	if err != nil {
		return nil, fmt.Errorf("decode usage detail of %d bytes: %w", len(b), err)
	}
	return rows, nil
}

// DetailVersion is the newest version of the detail part that this program reads and writes.
const DetailVersion = detailVersion2

// DetailFor is a piece for who reads versions up to most.
func DetailFor(payload []byte, most uint32) ([]byte, error) {
	if len(payload) == 0 || uint32(payload[0]) <= max(most, detailVersion) {
		return payload, nil
	}
	rows, err := DecodeDetail(payload)
	if err != nil {
		return nil, err
	}
	return encodeDetail1(rows), nil
}

func decodeDetail(b []byte) ([]Row, error) {
	switch {
	case len(b) > MaxDetail:
		return nil, fmt.Errorf("at most %d are allowed", MaxDetail)
	case len(b) > 0 && b[0] == detailVersion2:
		return decode2(b, detailSwitch)
	case len(b) == 0 || b[0] != detailVersion:
		return nil, fmt.Errorf("this program knows versions up to %d", detailVersion2)
	}
	c, err := openStream(b)
	if err != nil {
		return nil, err
	}
	var t detailTables
	t.code(c)
	if err := c.end(); err != nil {
		return nil, err
	}
	return t.result()
}

// column numbers the texts of one column in the order in which they come. Rows that follow each other mostly say the same.
type column struct {
	last string
	id   int
}

func (c *column) add(x *ordered[string], s string) int {
	if c.id < 0 || s != c.last {
		c.last, c.id = s, x.add(s)
	}
	return c.id
}

// ordered numbers values in the order in which they come, until sort numbers them anew.
type ordered[T comparable] struct {
	all   []T
	place map[T]int
	final []int // by the first number
}

func (x *ordered[T]) add(v T) int {
	id, known := x.place[v]
	if !known {
		if x.place == nil {
			x.place = map[T]int{}
		}
		id = len(x.all)
		x.place[v], x.all = id, append(x.all, v)
	}
	return id
}

func (x *ordered[T]) sort(compare func(a, b T) int) []T {
	sorted := slices.SortedFunc(slices.Values(x.all), compare)
	x.final = make([]int, len(sorted))
	for i, v := range sorted {
		x.final[x.place[v]] = i
	}
	return sorted
}

// sameAccount says whether two rows of one key are of one account.
func (r *Row) sameAccount(o *Row) bool {
	return r.PlanRev == o.PlanRev && r.Customer == o.Customer && r.Subscription == o.Subscription && r.Plan == o.Plan
}

func tabulateDetail(rows []Row) *detailTables {
	var t detailTables
	var texts ordered[string]
	var customer, subscription, plan, key, product, api, route, region = column{id: -1}, column{id: -1}, column{id: -1}, column{id: -1}, column{id: -1}, column{id: -1}, column{id: -1}, column{id: -1}
	var places ordered[int]
	var accounts ordered[detailAccount]
	var spots ordered[spot]
	var kinds ordered[kind]
	keys := map[string]int{} // the last row of a key: its account is mostly the next one's
	t.rows = make([]detailEntry, len(rows))
	for i := range rows { // by first numbers
		r := &rows[i]
		e := &t.rows[i]
		if at, known := keys[r.KeyID]; known && rows[at].sameAccount(r) {
			e.account = t.rows[at].account
		} else {
			e.account = accounts.add(detailAccount{customer.add(&texts, r.Customer), subscription.add(&texts, r.Subscription), plan.add(&texts, r.Plan), key.add(&texts, r.KeyID), r.PlanRev})
			keys[r.KeyID] = i
		}
		if i > 0 && rows[i-1].Product == r.Product && rows[i-1].API == r.API && rows[i-1].Route == r.Route {
			e.spot = t.rows[i-1].spot
		} else {
			e.spot = spots.add(spot{product.add(&texts, r.Product), api.add(&texts, r.API), route.add(&texts, r.Route)})
		}
		if k := (kind{r.Outcome, r.Status, places.add(region.add(&texts, r.ServedRegion)), r.Flags, r.Attempts, r.Requests}); i > 0 && k == kinds.all[t.rows[i-1].kind] {
			e.kind = t.rows[i-1].kind
		} else {
			e.kind = kinds.add(k)
		}
		e.keep(r)
	}
	t.texts = texts.sort(cmp.Compare[string])
	for i, v := range places.all {
		places.all[i] = texts.final[v]
	}
	places.renew()
	t.places = places.sort(cmp.Compare[int])
	for i := range accounts.all {
		a := &accounts.all[i]
		a.customer, a.subscription, a.plan, a.key = texts.final[a.customer], texts.final[a.subscription], texts.final[a.plan], texts.final[a.key]
	}
	for i := range spots.all {
		s := &spots.all[i]
		s.product, s.api, s.route = texts.final[s.product], texts.final[s.api], texts.final[s.route]
	}
	for i := range kinds.all {
		kinds.all[i].place = places.final[kinds.all[i].place]
	}
	accounts.renew()
	spots.renew()
	kinds.renew()
	t.accounts, t.spots, t.kinds = accounts.sort(detailAccount.compare), spots.sort(spot.compare), kinds.sort(kind.compare)
	for i := range t.rows {
		e := &t.rows[i]
		e.account, e.spot, e.kind = accounts.final[e.account], spots.final[e.spot], kinds.final[e.kind]
	}
	return &t
}

// renew is called when the values have become others, as many and as different.
func (x *ordered[T]) renew() {
	clear(x.place)
	for i, v := range x.all {
		x.place[v] = i
	}
}

// result checks what was read and makes rows of it.
func (t *detailTables) result() ([]Row, error) {
	texts, accounts, spots, kinds, places := make([]bool, len(t.texts)), make([]bool, len(t.accounts)), make([]bool, len(t.spots)), make([]bool, len(t.kinds)), make([]bool, len(t.places))
	if !ascend(t.accounts, detailAccount.compare) || !ascend(t.spots, spot.compare) || !ascend(t.kinds, kind.compare) || !ascend(t.places, cmp.Compare[int]) {
		return nil, errors.New("one of its tables is not in order")
	}
	out := make([]Row, len(t.rows))
	for i := range t.rows {
		e := &t.rows[i]
		a, s, k := &t.accounts[e.account], &t.spots[e.spot], &t.kinds[e.kind]
		accounts[e.account], spots[e.spot], kinds[e.kind], places[k.place] = true, true, true, true
		for _, id := range [...]int{a.customer, a.subscription, a.plan, a.key, s.product, s.api, s.route, t.places[k.place]} {
			texts[id] = true
		}
		r := &out[i]
		*r = e.row()
		r.Customer, r.Subscription, r.Plan, r.KeyID, r.PlanRev = t.texts[a.customer], t.texts[a.subscription], t.texts[a.plan], t.texts[a.key], a.rev
		r.Product, r.API, r.Route, r.ServedRegion = t.texts[s.product], t.texts[s.api], t.texts[s.route], t.texts[t.places[k.place]]
		r.Outcome, r.Status, r.Flags, r.Attempts, r.Requests = k.outcome, k.status, k.flags, k.attempts, k.requests
		if err := r.Check(); err != nil {
			return nil, err
		}
	}
	for _, u := range [...][]bool{texts, accounts, spots, kinds, places} {
		for _, used := range u {
			if !used {
				return nil, errors.New("it lists what no row names")
			}
		}
	}
	return out, nil
}

func ascend[T any](list []T, compare func(a, b T) int) bool {
	for i := 1; i < len(list); i++ {
		if compare(list[i-1], list[i]) >= 0 {
			return false
		}
	}
	return true
}

func (t *detailTables) code(c *coder) {
	t.texts = c.dictionary(t.texts, MaxDetail)
	for _, part := range [...]func(*coder){t.codeAccounts, t.codeSpots, t.codeKinds, t.codeRows} {
		if c.err == nil {
			part(c)
		}
	}
}

func (t *detailTables) codeAccounts(c *coder) {
	rows(c, &t.accounts, MaxDetailRows)
	var customer, subscription, plan, key, rev number
	var prev detailAccount
	for i := range t.accounts {
		a := &t.accounts[i]
		t.textID(c, &customer, &a.customer, prev.customer)
		t.textID(c, &subscription, &a.subscription, prev.subscription)
		t.textID(c, &plan, &a.plan, prev.plan)
		t.textID(c, &key, &a.key, prev.key)
		a.rev = prev.rev + uint64(c.signed(&rev, int64(a.rev-prev.rev)))
		if c.err != nil {
			return
		}
		prev = *a
	}
}

func (t *detailTables) codeKinds(c *coder) {
	rows(c, &t.kinds, MaxDetailRows)
	if len(t.kinds) > 0 && len(t.places) == 0 {
		c.fail("a kind of row names no region")
		return
	}
	var outcome, status, place, flags, attempts, requests number
	for i := range t.kinds {
		k := &t.kinds[i]
		k.outcome = Outcome(c.below(&outcome, uint64(k.outcome), 256))
		k.status = uint16(c.below(&status, uint64(k.status), 1<<16))
		k.place = int(c.below(&place, uint64(k.place), uint64(len(t.places))))
		k.flags = Flags(c.below(&flags, uint64(k.flags), 256))
		k.attempts = uint8(c.below(&attempts, uint64(k.attempts), 256))
		k.requests = c.positive(&requests, k.requests)
		if c.err != nil {
			return
		}
	}
}

// choice models a place in a table: each by itself in a small one.
type choice struct {
	tree  [256]prob
	large number
}

func (c *coder) choose(m *choice, v, n int) int {
	if n > len(m.tree) {
		return int(c.below(&m.large, uint64(v), uint64(n)))
	}
	size := 0
	for n > 1<<size {
		size++
	}
	if v = int(c.tree(m.tree[:], uint64(v), size)); v >= n {
		c.fail("a number is too large")
		return 0
	}
	return v
}

// recent codes pseudonyms of one account: mostly one of its last few.
type recent struct {
	place, value number
	lists        [][]uint64 // by account
}

const recentMax = 64

func (c *coder) pseudonym(m *recent, account int, v uint64) uint64 {
	list := m.lists[account]
	at := 0 // 0: not among them; else its place, from 1
	if !c.reading {
		at = placeOf(list, v)
	}
	at = int(c.below(&m.place, uint64(at), uint64(len(list))+1))
	if at > 0 {
		v = list[at-1]
		copy(list[1:at], list[:at-1])
		list[0] = v
		return v
	}
	if v = c.num(&m.value, v); placeOf(list, v) > 0 {
		c.fail("it names a pseudonym as new that is not")
	}
	if len(list) < recentMax {
		list = append(list, 0)
	}
	copy(list[1:], list)
	list[0] = v
	m.lists[account] = list
	return v
}

func placeOf(list []uint64, v uint64) int {
	for i, o := range list {
		if o == v {
			return i + 1
		}
	}
	return 0
}

type rowModel struct {
	end                  number
	account, spot, kind  choice
	again                prob // the period is as last in such a row of the account
	period, units        number
	latency, over        [16]number
	direct               [16]prob // no upstream was waited for
	empty                [16]prob
	bytesIn              [16]number
	bytesOut             [2][16]number
	actor, address       recent
	v7                   prob
	began, idHigh, idLow number
}

// lasts are the last periods of accounts in rows of a kind; 0 at first.
type lasts struct {
	kinds int
	few   []int64
	many  map[[2]int]*int64 // where few would be large
}

func (l *lasts) of(account, kind int) *int64 {
	if l.many == nil {
		return &l.few[account*l.kinds+kind]
	}
	at := [2]int{account, kind}
	p := l.many[at]
	if p == nil {
		p = new(int64)
		l.many[at] = p
	}
	return p
}

func (t *detailTables) codeRows(c *coder) {
	rows(c, &t.rows, MaxDetailRows)
	if len(t.rows) > 0 && (len(t.accounts) == 0 || len(t.spots) == 0 || len(t.kinds) == 0) {
		c.fail("a row names nothing")
		return
	}
	m := new(rowModel)
	m.actor.lists, m.address.lists = make([][]uint64, len(t.accounts)), make([][]uint64, len(t.accounts))
	periods := lasts{kinds: len(t.kinds)}
	if n := len(t.accounts) * len(t.kinds); n <= 1<<16 {
		periods.few = make([]int64, n)
	} else {
		periods.many = map[[2]int]*int64{}
	}
	var end int64
	for i := range t.rows {
		e := &t.rows[i]
		e.EndUnixMS = end + c.signed(&m.end, e.EndUnixMS-end)
		end = e.EndUnixMS
		e.account = c.choose(&m.account, e.account, len(t.accounts))
		e.spot = c.choose(&m.spot, e.spot, len(t.spots))
		e.kind = c.choose(&m.kind, e.kind, len(t.kinds))
		if c.err != nil {
			return
		}
		last := periods.of(e.account, e.kind)
		if again := c.flag(&m.again, e.Period == *last); again {
			e.Period = *last
		} else if e.Period = c.positive(&m.period, e.Period); e.Period == *last {
			c.fail("it names a period as new that is not")
		}
		*last = e.Period
		k := &t.kinds[e.kind]
		e.Units = k.requests + c.signed(&m.units, e.Units-k.requests)
		c.latencies(m, e)
		if empty := c.flag(&m.empty[e.spot&15], e.BytesIn == 0); empty {
			e.BytesIn = 0
		} else if e.BytesIn = c.positive(&m.bytesIn[e.spot&15], e.BytesIn-1) + 1; e.BytesIn < 0 {
			c.fail("a number is too large")
		}
		if k.outcome == OutcomeSuccess {
			e.BytesOut = c.positive(&m.bytesOut[0][e.spot&15], e.BytesOut)
		} else {
			e.BytesOut = c.positive(&m.bytesOut[1][e.kind&15], e.BytesOut)
		}
		e.Actor = c.pseudonym(&m.actor, e.account, e.Actor)
		e.Address = c.pseudonym(&m.address, e.account, e.Address)
		c.requestID(m, e)
		if c.err != nil {
			return
		}
	}
}

func (c *coder) latencies(m *rowModel, r *detailEntry) {
	r.LatencyUS = int64(c.float(&m.latency[r.spot&15], uint64(r.LatencyUS), latencyBits))
	if r.LatencyUS < 0 {
		c.fail("a number is too large")
		return
	}
	if direct := c.flag(&m.direct[r.kind&15], r.UpstreamUS == 0); direct {
		r.UpstreamUS = 0
		return
	}
	r.UpstreamUS = r.LatencyUS - int64(c.float(&m.over[r.spot&15], uint64(r.LatencyUS-r.UpstreamUS), overheadBits))
	if r.UpstreamUS <= 0 || r.UpstreamUS > r.LatencyUS {
		c.fail("it waited for upstreams longer than for all")
	}
}

func (c *coder) requestID(m *rowModel, r *detailEntry) {
	id := &r.RequestID
	be := binary.BigEndian
	if !c.flag(&m.v7, id[6] == 0x70 && id[8]>>6 == 2) {
		hi, lo := c.num(&m.idHigh, be.Uint64(id[:])), c.num(&m.idLow, be.Uint64(id[8:]))
		be.PutUint64(id[:], hi)
		be.PutUint64(id[8:], lo)
		if id[6]>>4 == 7 && id[8]>>6 == 2 {
			c.fail("an id is not shortened")
		}
		return
	}
	expect := r.EndUnixMS - r.LatencyUS/1000
	began := expect + c.signed(&m.began, int64(be.Uint64(id[:])>>16)-expect)
	if began < 0 || began >= 1<<48 {
		c.fail("a time is out of range")
		return
	}
	low := c.raw(uint64(be.Uint32(id[12:])&0xffffff), 24)
	be.PutUint64(id[:], uint64(began)<<16|0x7000)
	be.PutUint64(id[8:], 0x80<<56|low)
}
