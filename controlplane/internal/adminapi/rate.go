package adminapi

import (
	"sync"
	"time"

	"bailiwick/shared/fault"
)

// Limits of calls by one operator at one node: more than people and their tools need, and less than what one tool in a
// loop takes from all others.
const (
	DefaultRate = 1000 // calls a second
	rateBurst   = 2    // seconds' worth at once
	maxCallers  = 10_000
)

// meter counts calls of operators who were let in; strangers never get a place in it.
type meter struct {
	perSecond float64

	// mu covers callers: when each would have been idle again, by name (a bucket's one number).
	mu      sync.Mutex
	callers map[string]time.Time
}

func newMeter(perSecond int) *meter {
	return &meter{perSecond: float64(perSecond), callers: map[string]time.Time{}}
}

func (m *meter) take(name string, now time.Time) error { return m.takes(name, 1, now) }

// takes counts n calls.
func (m *meter) takes(name string, n int, now time.Time) error {
	if n <= 0 {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if len(m.callers) >= maxCallers { // who is idle needs no place
		for n, t := range m.callers {
			if !t.After(now) {
				delete(m.callers, n)
			}
		}
	}
	busy := m.callers[name]
	if busy.Before(now) {
		busy = now
	}
	if busy.Sub(now) > rateBurst*time.Second {
		return fault.New(fault.Exhausted, "RATE_EXCEEDED", "operator %s calls this node more than %.0f times a second: wait a second, or ask another node", name, m.perSecond)
	}
	m.callers[name] = busy.Add(time.Duration(float64(n) * float64(time.Second) / m.perSecond))
	return nil
}
