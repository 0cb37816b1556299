package token

import (
	"hash/maphash"
	"sync/atomic"

	"bailiwick/shared/table"
)

// What is forged costs a signature check each. An address may have failed, a few times a second, and so may all who ask for one
// API; beyond that no token is looked at that has not verified before. Whoever shows one that has is served all the while.
// Addresses share places: of 4096, by a hash that nobody outside knows; a flood of addresses takes no memory.
const (
	addressRate, addressBurst = 5, 50
	apiRate, apiBurst         = 500, 1000
)

// failures is when the failures of each place are paid off, unix ms.
type failures struct {
	seed      maphash.Seed
	addresses [4096]atomic.Int64
	apis      [256]atomic.Int64
}

func (f *failures) places(auth *table.Auth, from string) (address, api *atomic.Int64) {
	return &f.addresses[maphash.String(f.seed, from)%uint64(len(f.addresses))], &f.apis[maphash.Comparable(f.seed, auth)%uint64(len(f.apis))]
}

// full says whether no further token of the address, or for the API, is looked at just now.
func (f *failures) full(auth *table.Auth, from string, unix int64) bool {
	address, api := f.places(auth, from)
	return owes(address.Load()-unix*1000, addressBurst*1000/addressRate) || owes(api.Load()-unix*1000, apiBurst*1000/apiRate)
}

// owes says whether a debt is full. None is ever much larger: that is a clock which was put back, and an hour of it must not be
// an hour in which nobody's new token is looked at.
func owes(debt, most int64) bool { return debt >= most && debt <= 2*most }

func (f *failures) add(auth *table.Auth, from string, unix int64) {
	address, api := f.places(auth, from)
	pay(address, unix*1000, 1000/addressRate, addressBurst*1000/addressRate)
	pay(api, unix*1000, 1000/apiRate, apiBurst*1000/apiRate)
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
