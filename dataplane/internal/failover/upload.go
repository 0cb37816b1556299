package failover

import (
	"sync"
	"time"
)

// Upload is a request under way whose body its client still sends. While the client is waited for nothing is asked of the
// target: neither is it silent then, nor does its answer take that long. Else whoever stops in the middle of what he sends would
// take a target from all others.
type Upload struct {
	mu      sync.Mutex // covers all
	sent    Sent
	waiting bool
	since   time.Duration
	ended   bool
}

// Upload goes on with s, whose End is the Upload's from now on.
func (s Sent) Upload() *Upload { return &Upload{sent: s} }

// Wait says that the client is waited for.
func (u *Upload) Wait() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended || u.waiting {
		return
	}
	u.waiting, u.since = true, u.sent.t.m.now()
	u.sent.t.outstanding.Add(-1)
}

// Go says that it sent something, or that it is not waited for any more.
func (u *Upload) Go() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended || !u.waiting {
		return
	}
	now := u.sent.t.m.now()
	u.waiting, u.sent.began = false, u.sent.began+now-u.since
	if u.sent.t.outstanding.Add(1) == 1 {
		u.sent.t.busySince.Store(int64(now))
	}
}

// End is that of Sent. It may be called while somebody waits.
func (u *Upload) End(e Event) {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.ended = true; u.waiting { // whoever waited for whom
		u.sent.end(time.Now(), e, false)
		return
	}
	u.sent.End(e)
}
