package cache

import (
	"hash/maphash"
	"net/http"
	"strings"
	"sync"
	"time"

	"bailiwick/shared/table"
)

// Bounds of tags and of what is remembered of purges.
const (
	maxTags  = 64     // of one answer; with more it is not kept, since a purge would pass it by
	maxTag   = 128    // bytes of one; likewise
	maxMarks = 16_384 // of one API, some 2 MB; beyond them all that is kept of it has ended

	// What clients' requests change has half of them. Beyond it changes are remembered by a hash of the URL alone: each ends what
	// is kept of one in so many URLs, so that nobody ends all of an API's answers by changing this and that.
	maxChanged  = maxMarks / 2
	slots       = 1 << 17
	maxCoarse   = 16          // APIs that have such a table, of 1 MiB; of another all that is kept ends, as above
	lookForRoom = time.Minute // between two looks for marks that nobody needs any more
)

// ends are the purges of all APIs as this edge has done them. A purge walks over nothing: an entry is held against it when
// it is asked for, and goes with its time.
type ends struct {
	mu     sync.RWMutex // covers all below
	apis   map[string]*marks
	coarse int          // APIs that have a table
	seed   maphash.Seed // nobody outside can choose URLs that share a slot with another's
	born   time.Time
}

// marks are when an API's purges were done here, by this edge's own clock. An answer ends that was asked for before: it may
// be of before the change that somebody purged for.
type marks struct {
	done  *table.Purges // as of which they are
	epoch uint64
	last  uint64
	all   time.Time // everything that was asked for until then is gone
	stale time.Time // or stale
	by    map[string]mark

	changed int                   // marks of clients' requests, at most
	swept   time.Time             // when old ones were last looked for
	coarse  *[slots]time.Duration // of URLs by their hash: until when all is gone, since the cache was made; nil: none
}

type mark struct{ gone, stale time.Time }

// Heed does what an API's purges say that was not done yet; p nil: there is none. An older table's are done already. epoch is
// the zone's: numbers begin anew with it. false: what they say cannot be read, and nothing of the API may be kept or given.
func (c *Cache) Heed(api string, p *table.Purges, epoch uint64, now time.Time) bool {
	if p == nil {
		return true
	}
	if p.Unread {
		return false
	}
	c.ends.mu.RLock()
	m := c.ends.apis[api]
	same := m != nil && (m.done == p || m.epoch == epoch && m.last >= p.Last())
	c.ends.mu.RUnlock()
	if same {
		return true
	}
	c.ends.mu.Lock()
	defer c.ends.mu.Unlock()
	if m = c.ends.of(api, epoch); m != nil {
		m.do(p, now)
	}
	return true
}

func (m *marks) do(p *table.Purges, now time.Time) {
	if p.All > m.last {
		m.all, m.changed = now, 0
		clear(m.by)
	}
	for _, one := range p.Of {
		if one.Seq <= m.last {
			continue
		}
		switch k := m.by[one.What]; {
		case one.What == "" && one.Soft:
			m.stale = now
		case one.What == "":
			m.all = now
		case one.Soft:
			k.stale = now
			m.by[one.What] = k
		default:
			k.gone = now
			m.by[one.What] = k
		}
	}
	m.bound(now)
	if p.Last() > m.last {
		m.done, m.last = p, p.Last()
	}
}

func (m *marks) bound(now time.Time) {
	if len(m.by) <= maxMarks {
		return
	}
	m.swept = time.Time{}
	m.sweep(now)
	if len(m.by) > maxMarks/2 {
		m.all, m.changed = now, 0
		clear(m.by)
	}
}

// End ends what is kept of a URL for whomever: a request changed it (RFC 9111, 4.4).
func (c *Cache) End(about About, epoch uint64, now time.Time) {
	c.ends.mu.Lock()
	defer c.ends.mu.Unlock()
	m := c.ends.of(about.API, epoch)
	if m == nil {
		return
	}
	k, known := m.by[about.URL]
	if !known && m.changed >= maxChanged {
		m.sweep(now)
	}
	if !known && m.changed >= maxChanged {
		c.ends.blur(m, about.URL, now)
		return
	}
	if !known {
		m.changed++
	}
	k.gone = now
	m.by[about.URL] = k
	m.bound(now)
}

// sweep forgets marks that no entry is older than, now and again.
func (m *marks) sweep(now time.Time) {
	if !m.swept.IsZero() && now.Sub(m.swept) < lookForRoom {
		return
	}
	m.swept = now
	for what, k := range m.by {
		if now.Sub(k.gone) > longest && now.Sub(k.stale) > longest {
			delete(m.by, what)
		}
	}
	m.changed = min(m.changed, len(m.by))
}

// blur marks a URL by its hash, with mu held.
func (s *ends) blur(m *marks, url string, now time.Time) {
	if m.coarse == nil {
		if s.coarse >= maxCoarse {
			m.all, m.changed = now, 0
			clear(m.by)
			return
		}
		if s.coarse++; s.coarse == 1 {
			s.seed, s.born = maphash.MakeSeed(), now.Add(-time.Second)
		}
		m.coarse = new([slots]time.Duration)
	}
	m.coarse[s.slot(url)] = now.Sub(s.born)
}

func (s *ends) slot(url string) uint64 { return maphash.String(s.seed, url) % slots }

// of are an API's marks under an epoch, with mu held; nil: that epoch is over.
func (s *ends) of(api string, epoch uint64) *marks {
	m := s.apis[api]
	switch {
	case m == nil || m.epoch < epoch: // what was kept under another epoch has another key
		if m != nil && m.coarse != nil {
			s.coarse--
		}
		m = &marks{epoch: epoch, by: map[string]mark{}}
		if s.apis == nil {
			s.apis = map[string]*marks{}
		}
		s.apis[api] = m
	case m.epoch > epoch:
		return nil
	}
	return m
}

// Still is what is left now of an entry that Get gave: itself, a stale one, or nil.
func (c *Cache) Still(e *Entry) *Entry { return c.ended(e) }

// ended is what is left of an entry by its API's purges: itself, a stale one, or nil.
func (c *Cache) ended(e *Entry) *Entry {
	c.ends.mu.RLock()
	defer c.ends.mu.RUnlock()
	m := c.ends.apis[e.api]
	if m == nil {
		return e
	}
	before := func(t time.Time) bool { return !t.IsZero() && !e.sent.After(t) }
	if before(m.all) {
		return nil
	}
	if m.coarse != nil && len(e.under) > 0 {
		if until := m.coarse[c.ends.slot(e.under[0])]; until != 0 && e.sent.Sub(c.ends.born) <= until {
			return nil
		}
	}
	var stale time.Time
	if before(m.stale) {
		stale = m.stale
	}
	for _, what := range e.under {
		k := m.by[what]
		if before(k.gone) {
			return nil
		}
		if before(k.stale) && (stale.IsZero() || k.stale.Before(stale)) {
			stale = k.stale
		}
	}
	if stale.IsZero() {
		return e
	}
	n := *e
	n.lifetime = min(n.lifetime, n.Age(stale)) // its time was over then
	return &n
}

// About names an entry for purges: its API, and its URL as table.PurgeURL has it.
type About struct{ API, URL string }

// Tags takes the tags out of an upstream's answer: they are for caches, and this is the last one. false: there are more than
// may be, or one that is none, and the answer is not to be kept.
func Tags(h http.Header) (tags []string, fine bool) {
	fine = true
	for _, from := range [...]struct {
		name string
		cut  func(rune) bool
	}{{"Cache-Tag", func(r rune) bool { return r == ',' || r == ' ' || r == '\t' }}, {"Surrogate-Key", func(r rune) bool { return r == ' ' || r == '\t' }}} {
		for _, line := range h[from.name] {
			for tag := range strings.FieldsFuncSeq(line, from.cut) {
				if len(tags) == maxTags || len(tag) > maxTag {
					fine = false
					break
				}
				tags = append(tags, tag)
			}
		}
		delete(h, from.name)
	}
	return tags, fine
}

// Under is the entry as one that purges of these reach.
func (e *Entry) Under(about About, tags []string) *Entry {
	n := *e
	n.api, n.under = about.API, []string{about.URL}
	for _, tag := range tags {
		n.under = append(n.under, table.PurgeTag(tag))
	}
	return &n
}
