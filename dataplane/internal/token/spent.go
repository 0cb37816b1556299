package token

import (
	"hash/maphash"
	"sync/atomic"
)

// What is forged costs a signature check each. An address may have failed, a few times a second, and so may all who ask for one
// API; beyond that no token is looked at that has not verified before. Whoever shows one that has is served all the while, and of
// an API that is flooded new ones are looked at from addresses from which one has verified in the last day: what renews its
// token is served on, whoever forges others, within the rate of its address.
// Addresses share places: of 4096, by a hash that nobody outside knows; a flood of addresses takes no memory.
const (
	addressRate, addressBurst = 5, 50
	apiRate, apiBurst         = 500, 1000
)

// failures is when the failures of each place are paid off, unix ms. An API is known by its name, which outlives a table: one that
// comes in the middle of a flood changes nothing.
type failures struct {
	seed      maphash.Seed
	addresses [4096]atomic.Int64
	apis      [256]atomic.Int64
	vouched   [16384]atomic.Uint64 // addresses that showed a good token: half a hash, and when (unix s)
}

const vouchedFor = 86400 // s

// vouch says that a token of the address, for the API, has verified. Two addresses that share a place forget each other, and none
// passes for another but by a chance of 2^-46.
func (f *failures) vouch(api, from string, unix int64) {
	at, mark := f.voucher(api, from)
	at.Store(mark | uint64(uint32(unix)))
}

func (f *failures) known(api, from string, unix int64) bool {
	at, mark := f.voucher(api, from)
	is := at.Load()
	since := unix - int64(uint32(is))
	return is&^uint64(1<<32-1) == mark && since <= vouchedFor && since >= -vouchedFor
}

func (f *failures) voucher(api, from string) (at *atomic.Uint64, mark uint64) {
	h := maphash.Comparable(f.seed, struct {
		api, from string
	}{api, from})
	return &f.vouched[h%uint64(len(f.vouched))], h &^ (1<<32 - 1)
}

func (f *failures) places(api, from string) (address, all *atomic.Int64) {
	return &f.addresses[maphash.String(f.seed, from)%uint64(len(f.addresses))], &f.apis[maphash.String(f.seed, api)%uint64(len(f.apis))]
}

// full says whether no further token of the address, or for the API, is looked at just now.
func (f *failures) full(api, from string, unix int64) bool {
	address, all := f.places(api, from)
	return owes(address.Load()-unix*1000, addressBurst*1000/addressRate) || owes(all.Load()-unix*1000, apiBurst*1000/apiRate) && !f.known(api, from, unix)
}

// owes says whether a debt is full. None is ever much larger: that is a clock which was put back, and an hour of it must not be
// an hour in which nobody's new token is looked at.
func owes(debt, most int64) bool { return debt >= most && debt <= 2*most }

func (f *failures) add(api, from string, unix int64) {
	address, all := f.places(api, from)
	pay(address, unix*1000, 1000/addressRate, addressBurst*1000/addressRate)
	pay(all, unix*1000, 1000/apiRate, apiBurst*1000/apiRate)
}

func pay(at *atomic.Int64, now, cost, most int64) {
	for {
		was := at.Load()
		paid := was
		if was < now || was-now > 2*most {
			paid = now
		}
		if at.CompareAndSwap(was, min(paid+cost, now+most+cost)) { // those that failed side by side owe no more than a full place
			return
		}
	}
}
