package usage

import "math/bits"

// How the tables of a payload are written and read: see coder for why one
// function does both.

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
