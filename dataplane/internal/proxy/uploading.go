package proxy

import (
	"context"
	"errors"
	"sync"
	"time"
)

// A body that streams up may take as long as it flows: the route's time is for whoever does nothing, the client, the upstream that
// takes nothing, or the one that has all and does not answer. A client has to bring a least number of bytes for the time that is
// spent waiting for it; what the upstream does not take is not its fault. What is a stream of messages has no least rate, and the
// route's time for the answer's head, as always. Once an answer has begun the least rate holds on for a body whose length was
// declared: that is an upload, however early it is answered. Of another nobody knows how much is to come, and a client that says
// nothing just now may only be listening: such a stream lasts as long as its answer flows.

const (
	// DefaultUploadRate is how many bytes of a body a client brings in a second, at least, unless the edge is told otherwise.
	DefaultUploadRate = 1 << 10
	// DefaultUploadWindow is the time spent waiting for a client over which that is judged.
	DefaultUploadWindow = 20 * time.Second

	uploadTick = time.Second // between two looks, or a quarter of the route's time
)

var errSlow = errors.New("the client sends its body too slowly")

// pace is how fast a client sends.
type pace struct {
	mu     sync.Mutex // covers all
	since  time.Time  // when somebody began to wait for it; zero: nobody does
	waited time.Duration
	bytes  int64
	over   bool // all has come, or no more will
}

func (p *pace) begin(now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.since = now
}

func (p *pace) end(now time.Time, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.since.IsZero() {
		p.waited += now.Sub(p.since)
	}
	p.since = time.Time{}
	p.bytes += int64(n)
}

// stop is the end of the body: nobody waits for it any more.
func (p *pace) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.over = true
}

// slow says whether less than so much came in the last window of waiting.
func (p *pace) slow(now time.Time, rate int64, window time.Duration) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	waited := p.waited
	if !p.since.IsZero() {
		waited += now.Sub(p.since)
	}
	if p.over || waited < window {
		return false
	}
	if float64(p.bytes) < float64(rate)*waited.Seconds() {
		return true
	}
	p.waited, p.bytes = 0, 0
	if !p.since.IsZero() {
		p.since = now
	}
	return false
}

// uploading says whether a body streams up that is no stream of messages.
func (x *exchange) uploading() bool {
	return x.body != nil && x.body.kept == nil && (x.speech == nil || !x.speech.kind.Framed() && !x.speech.decodes())
}

// uploads gives an attempt more time as long as its body flows, and ends it where the client is too slow. Call answered when an
// answer begins, and over when it has ended, or none will come.
func (x *exchange) uploads(res *result, cancel context.CancelCauseFunc) (answered, over func()) {
	b := x.body
	if !x.uploading() {
		return func() {}, func() {}
	}
	patience := x.timeout()
	tick := max(min(uploadTick, patience/4), time.Millisecond)
	var mu sync.Mutex // covers all below
	var timer *time.Timer
	ended, begun, before := false, false, b.in.Load()
	look := func() {
		mu.Lock()
		defer mu.Unlock()
		if ended {
			return
		}
		if !x.relayed && b.pace.slow(time.Now(), x.p.cfg.UploadRate, x.p.cfg.UploadWindow) { // of another edge's client that edge judges
			ended = true
			b.slow.Store(true)
			cancel(errSlow)
			return
		}
		if n := b.in.Load(); n != before && !begun {
			before = n
			res.watch.Reset(x.left(patience + tick))
		}
		timer.Reset(tick)
	}
	mu.Lock()
	timer = time.AfterFunc(tick, look)
	mu.Unlock()
	over = func() {
		mu.Lock()
		defer mu.Unlock()
		ended = true
		timer.Stop()
	}
	return func() {
		if b.length < 0 || x.relayed {
			over()
			return
		}
		mu.Lock()
		defer mu.Unlock()
		begun = true
	}, over
}
