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
	return address.Load()-unix*1000 >= addressBurst*1000/addressRate || api.Load()-unix*1000 >= apiBurst*1000/apiRate
}

func (f *failures) add(auth *table.Auth, from string, unix int64) {
	address, api := f.places(auth, from)
	pay(address, unix*1000, 1000/addressRate)
	pay(api, unix*1000, 1000/apiRate)
}

func pay(at *atomic.Int64, now, cost int64) {
	for {
		was := at.Load()
		if at.CompareAndSwap(was, max(was, now)+cost) {
			return
		}
	}
}
