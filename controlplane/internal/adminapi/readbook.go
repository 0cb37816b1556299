package adminapi

import (
	"context"
	"sync"
	"time"
)

// Limits of records of reading, at each node: they must tell who saw what and not fill the zone's log.
const (
	readSpan   = time.Minute // a record stands for what its operator reads in the same way until his minute is over
	readsApart = 64          // records of one operator and procedure in a minute; then one that says: everyone
	readers    = 1024        // minutes that are kept before those that are over are looked for
)

type seenBy struct{ operator, procedure string }
type seen struct{ customer, reason string }

// readBook knows which records of reading have been made lately. It forgets in a restart, which costs a record more.
type readBook struct {
	// mu covers all of it; it is not held while a record is written.
	mu      sync.Mutex
	minutes map[seenBy]*readMinute
}

type readMinute struct {
	since time.Time
	made  map[seen]*readRecord
	rest  *readRecord // that stands for everyone
}

// readRecord is one that is made, or being made until done is closed.
type readRecord struct {
	done chan struct{}
	err  error
}

func newReadBook() *readBook { return &readBook{minutes: map[seenBy]*readMinute{}} }

// once returns when a record of what is read has been written in this minute, by this call or by another. write may be
// asked for a record of everyone instead of one.
func (b *readBook) once(ctx context.Context, by seenBy, what seen, write func(seen) error) error {
	for {
		r, of, ours := b.claim(by, what)
		if ours {
			r.err = write(of)
			if r.err != nil {
				b.drop(by, of, r)
			}
			close(r.done)
			return r.err
		}
		select {
		case <-r.done:
			if r.err == nil {
				return nil
			}
		case <-ctx.Done():
			return ctx.Err()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
}

// claim finds the record that stands for a reading, or makes a place for one that the caller must write.
func (b *readBook) claim(by seenBy, what seen) (r *readRecord, of seen, ours bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	now := time.Now()
	m := b.minutes[by]
	if m == nil || now.Sub(m.since) >= readSpan {
		if len(b.minutes) >= readers {
			for k, old := range b.minutes {
				if now.Sub(old.since) >= readSpan {
					delete(b.minutes, k)
				}
			}
		}
		m = &readMinute{since: now, made: map[seen]*readRecord{}}
		b.minutes[by] = m
	}
	switch {
	case m.rest != nil:
		return m.rest, what, false
	case m.made[what] != nil:
		return m.made[what], what, false
	}
	r = &readRecord{done: make(chan struct{})}
	if len(m.made) >= readsApart {
		m.rest = r
		return r, seen{everyone, what.reason}, true
	}
	m.made[what] = r
	return r, what, true
}

// drop takes back the place of a record that was not written.
func (b *readBook) drop(by seenBy, of seen, r *readRecord) {
	b.mu.Lock()
	defer b.mu.Unlock()
	m := b.minutes[by]
	switch {
	case m == nil:
	case m.rest == r:
		m.rest = nil
	case m.made[of] == r:
		delete(m.made, of)
	}
}
