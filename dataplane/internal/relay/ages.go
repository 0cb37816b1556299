package relay

import (
	"sync"
	"time"

	"bailiwick/regions/grant"
)

// ages is what this receiver has seen of grants, for any number of goroutines.
type ages struct {
	mu   sync.Mutex // covers seen
	seen grant.Seen
}

func (a *ages) fresh(g *grant.Grant) bool {
	now := time.Now()
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen.Fresh(g, now)
}

func (a *ages) forget(known func(edge string) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen.Forget(known)
}
