package replica

import (
	"slices"
	"sync"

	"bailiwick/controlplane/internal/group"
)

// Remembered is a transaction's id and its first result.
type Remembered struct {
	ID     string
	Result group.Result
}

// Requests remembers the latest group.RememberedRequests results. It is part of
// the replicated state: every node remembers the same. The zero value is empty.
type Requests struct {
	// mu covers all fields. One goroutine changes them, others may read.
	mu    sync.Mutex
	seen  map[string]group.Result
	order []Remembered // a ring once it is full
	next  int          // the oldest, where the next goes
}

// Recall is the first result of id.
func (q *Requests) Recall(id string) (group.Result, bool) {
	if id == "" {
		return group.Result{}, false
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	r, ok := q.seen[id]
	return r, ok
}

// Remember adds a result, in the order of commits; no id is not remembered.
func (q *Requests) Remember(id string, r group.Result) {
	if id == "" {
		return
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if q.seen == nil {
		q.seen = make(map[string]group.Result)
	}
	if len(q.order) < group.RememberedRequests {
		q.order = append(q.order, Remembered{id, r})
	} else {
		delete(q.seen, q.order[q.next].ID)
		q.order[q.next] = Remembered{id, r}
		q.next = (q.next + 1) % len(q.order)
	}
	q.seen[id] = r
}

// Len is how many are remembered.
func (q *Requests) Len() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	return len(q.order)
}

// All is a copy, oldest first: a millisecond or two for a full memory.
func (q *Requests) All() []Remembered {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Concat(q.order[q.next:], q.order[:q.next])
}

// Replace forgets what was and remembers all, oldest first.
func (q *Requests) Replace(all []Remembered) {
	all = all[max(0, len(all)-group.RememberedRequests):]
	q.mu.Lock()
	defer q.mu.Unlock()
	q.seen, q.order, q.next = make(map[string]group.Result, len(all)), slices.Clone(all), 0
	for _, r := range all {
		q.seen[r.ID] = r.Result
	}
}
