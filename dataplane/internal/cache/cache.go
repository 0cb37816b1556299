// Package cache owns answers that may be given again (RFC 9111): what may be kept, for how long, for whom, and how it is
// asked for anew. Freshness, Vary and validation are pure functions of what they are given.
//
// It never sends a request, never answers one, and never keeps what another region's upstream answered: its callers offer
// only answers of this region. An entry belongs to the class of customers that its key names and to nobody else. Nothing
// survives a crash or leaves the process: entries lie in memory alone, within a bound in bytes. Everything may be called
// from any number of goroutines at once; an Entry never changes.
package cache

import (
	"crypto/sha256"
	"encoding/binary"
	"net/http"
	"sync"
	"time"

	"github.com/maypok86/otter/v2"
)

// Limits.
const (
	DefaultBytes   = 64 << 20        // of all entries
	DefaultEntry   = 1 << 20         // of one answer's body, where the route does not say
	maxVariants    = 16              // of one URL; the oldest goes
	maxWaiters     = 1000            // of one flight; further requests go by themselves
	longestFlight  = 5 * time.Second // of one who asks, for which others wait: renewals in line hold nobody up
	uncollapsedFor = 10 * time.Second
	maxUncollapsed = 4096
	longest        = 24 * time.Hour // whatever an answer says; what nobody renews is gone by then

	// What an entry costs besides its text, in bytes (TestCache_ItsBoundIsTheHeaps): itself, its place and the map of its fields;
	// each field, and value; what it varies by, if it does; each of what purges reach it by.
	overhead    = 1024
	fieldCosts  = 72
	valueCosts  = 24
	variesCosts = 400
	underCosts  = 24
)

// Key names what answers one request may come from: zone, API, epochs, class of customers and URL.
type Key [sha256.Size]byte

// KeyOf hashes the parts, each with its length, so that no two lists of parts are one.
func KeyOf(parts ...string) (k Key) {
	h := sha256.New()
	var n [8]byte
	for _, p := range parts {
		binary.LittleEndian.PutUint64(n[:], uint64(len(p)))
		h.Write(n[:])
		h.Write([]byte(p))
	}
	h.Sum(k[:0])
	return k
}

// Class joins the parts of a class of customers, so that no two lists are one.
func Class(parts ...string) string {
	k := KeyOf(parts...)
	return string(k[:])
}

// Cache keeps entries.
type Cache struct {
	entries *otter.Cache[Key, *variants]

	ends ends

	mu      sync.Mutex // covers all below; held for nothing slow
	flights map[Key]*Flight
	apart   map[Key]time.Time // whose last answer could not be kept: requests for it do not wait for each other
}

// variants are the entries of one key, newest first. Never written to.
type variants struct {
	of      []*Entry
	dropped time.Time // what was asked for before that is not kept
}

func (v *variants) weight() (n int) {
	if !v.dropped.IsZero() {
		n = overhead
	}
	for _, e := range v.of {
		n += e.size
	}
	return n
}

// New makes a cache of at most so many bytes; 0: 64 MiB.
func New(bytes int64) (*Cache, error) {
	if bytes <= 0 {
		bytes = DefaultBytes
	}
	entries, err := otter.New(&otter.Options[Key, *variants]{
		MaximumWeight:    uint64(bytes),
		ExpiryCalculator: otter.ExpiryWriting[Key, *variants](longest),
		Weigher:          func(_ Key, v *variants) uint32 { return uint32(min(v.weight(), 1<<31)) },
	})
	if err != nil {
		return nil, err
	}
	return &Cache{entries: entries, flights: map[Key]*Flight{}, apart: map[Key]time.Time{}}, nil
}

// Bytes is what is held.
func (c *Cache) Bytes() int64 { return int64(c.entries.WeightedSize()) }

// Get is the entry that answers a request with these headers, nil if there is none.
func (c *Cache) Get(key Key, header http.Header) *Entry {
	v, ok := c.entries.GetIfPresent(key)
	if !ok {
		return nil
	}
	for _, e := range v.of {
		if e.matches(header) {
			return c.ended(e)
		}
	}
	return nil
}

// Put keeps an entry in the place of those that it answers for, unless its key was dropped since it was asked for, or what was asked
// for later is there: who takes an answer slowly has it copied when others have newer ones. Who waits for a flight of the key goes
// on: the entry may be of one who asked beside those who lead.
func (c *Cache) Put(key Key, e *Entry) {
	defer func() {
		c.mu.Lock()
		c.flights[key].land(false)
		c.mu.Unlock()
	}()
	c.entries.Compute(key, func(old *variants, found bool) (*variants, otter.ComputeOp) {
		next := &variants{of: []*Entry{e}}
		if found {
			if next.dropped = old.dropped; !next.dropped.Before(e.sent) && !next.dropped.IsZero() {
				return old, otter.CancelOp
			}
			for _, o := range old.of {
				if o.same(e) && o.sent.After(e.sent) {
					return old, otter.CancelOp
				}
				if !o.same(e) && len(next.of) < maxVariants {
					next.of = append(next.of, o)
				}
			}
		}
		return next, otter.WriteOp
	})
}

// Drop forgets all entries of a key, and those on their way: an answer that was asked for before may be of before.
func (c *Cache) Drop(key Key, now time.Time) {
	c.entries.Compute(key, func(*variants, bool) (*variants, otter.ComputeOp) { return &variants{dropped: now}, otter.WriteOp })
}

// Clear forgets everything.
func (c *Cache) Clear() { c.entries.InvalidateAll() }

// Flight is one request under way whose answer others wait for, or a few: one who waits may lead beside those who have been silent
// for long. The answer of any of them ends it.
type Flight struct {
	c    *Cache
	key  Key
	done chan struct{}

	// covered by the cache's mu
	began   time.Time // when the last of those who lead began to
	leaders int       // who have not left
	waiting int
	over    bool
	vacant  bool // likewise, once done is closed: nobody led any more
}

// Join makes the caller the one who asks (leads), and then he calls End; or gives him the flight to wait for. nil and false:
// ask and wait for nobody.
func (c *Cache) Join(key Key, now time.Time) (f *Flight, leads bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if until, ok := c.apart[key]; ok {
		if now.Before(until) {
			return nil, false
		}
		delete(c.apart, key)
	}
	if f = c.flights[key]; f != nil {
		if f.waiting >= maxWaiters || f.left(now) <= 0 {
			return nil, false
		}
		f.waiting++
		return f, false
	}
	f = &Flight{c: c, key: key, began: now, leaders: 1, done: make(chan struct{})}
	c.flights[key] = f
	return f, true
}

// Left is for how long it is worth waiting.
func (f *Flight) Left(now time.Time) time.Duration {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	return f.left(now)
}

func (f *Flight) left(now time.Time) time.Duration { return longestFlight - now.Sub(f.began) }

// Done closes when the answer is there, or there will be none to share.
func (f *Flight) Done() <-chan struct{} { return f.done }

// Vacant says, once Done is closed, that nobody was left who leads: nothing is known of the answer, and who waits may lead next.
func (f *Flight) Vacant() bool { return f.vacant }

// Relieve makes one who waits lead too, if nobody has begun to for so long. Then he calls End or Leave. Of many who lose patience at
// the same moment it is one: the others wait for him.
func (f *Flight) Relieve(after time.Duration, now time.Time) bool {
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if f.over || now.Sub(f.began) < after {
		return false
	}
	f.began = now
	f.leaders++
	return true
}

// Leave says that one who led has nothing to say of the answer: his client went away, or does not take it. Call it once for each
// who leads.
func (f *Flight) Leave() {
	if f == nil {
		return
	}
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if f.leaders--; f.leaders == 0 {
		f.land(true)
	}
}

// Fail says that one who led was given no answer. Where others lead still it is for them to say; else it is the end, and the next
// ones will hardly fare better. Call it in the place of Leave.
func (f *Flight) Fail(now time.Time) {
	if f == nil {
		return
	}
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	if f.leaders--; f.leaders == 0 {
		f.end(true, now)
	}
}

// land lets all who wait go on. Call it with mu held.
func (f *Flight) land(vacant bool) {
	if f == nil || f.over {
		return
	}
	f.over, f.vacant = true, vacant
	delete(f.c.flights, f.key)
	close(f.done)
}

// End lets all who wait go on. unkept: the answer is not one to share, and the next ones will hardly be.
func (f *Flight) End(unkept bool, now time.Time) {
	if f == nil {
		return
	}
	f.c.mu.Lock()
	defer f.c.mu.Unlock()
	f.end(unkept, now)
}

func (f *Flight) end(unkept bool, now time.Time) {
	if c := f.c; unkept && !f.over {
		if len(c.apart) >= maxUncollapsed {
			clear(c.apart) // they wait for each other once more, no worse
		}
		c.apart[f.key] = now.Add(uncollapsedFor)
	}
	f.land(false)
}

// Close ends what works in the background.
func (c *Cache) Close() { c.entries.StopAllGoroutines() }
