package relay

import (
	"context"
	"math/rand/v2"
	"net/http"
	"strconv"
	"sync"
	"time"
)

// Where a request that counts against a bound is taken back, the sender keeps its place until the receiver says that nobody
// works on it any more. Its stream is gone by then: the sender asks over the same connection, by the request's id.

const (
	awaitMost  = 30 * time.Second // for upstreams to let go
	awaitBegun = time.Second      // for a request that has not been looked at when somebody asks for it: it came before the question
	awaitTold  = 2 * time.Second  // for which one that was let go of is remembered, likewise
)

// takenBack is a request that its sender took back.
type takenBack struct {
	conn        *http.ClientConn
	id, attempt string
}

// LetGo waits until the receiver of a request that was taken back says that its upstream has let go of it; the end of the session
// is an end too, and so is ctx's.
func (e *Error) LetGo(ctx context.Context) {
	if e.back == nil {
		return
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodHead, "https://peer/", nil)
	if err != nil {
		return
	}
	req.Header.Set(HeaderPing, "1")
	req.Header.Set(HeaderAwait, e.back.id)
	req.Header.Set(HeaderBounded, e.back.attempt)
	if resp, err := e.back.conn.RoundTrip(req); err == nil {
		resp.Body.Close()
	}
}

// waits are the requests of which a sender may ask when they are let go of. The zero waits has none.
type waits struct {
	mu sync.Mutex // covers of; held for no I/O
	of map[waitKey]*wait
}

// waitKey names an attempt: one request may be sent to a node twice, and each is let go of by itself.
type waitKey struct{ node, id, attempt string }

// newAttempt is a name that no other attempt at a request has.
func newAttempt() string { return strconv.FormatUint(rand.Uint64(), 36) }

// attemptOf is the name that a peer has given. Edges of before 2026-11-26 say "1" of each, and nothing when they ask.
func attemptOf(h http.Header) string {
	if said := h.Get(HeaderBounded); said != "1" && len(said) <= 64 {
		return said
	}
	return ""
}

type wait struct{ begun, over chan struct{} }

func (w *waits) wait(key waitKey) *wait {
	w.mu.Lock()
	defer w.mu.Unlock()
	x := w.of[key]
	if x == nil {
		if w.of == nil {
			w.of = map[waitKey]*wait{}
		}
		x = &wait{make(chan struct{}), make(chan struct{})}
		w.of[key] = x
	}
	return x
}

func (w *waits) forget(key waitKey, x *wait) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.of[key] == x {
		delete(w.of, key)
	}
}

// begin is a request's. Call over when it is let go of, once, and say whether somebody may still ask.
func (w *waits) begin(key waitKey) (over func(asked bool)) {
	x := w.wait(key)
	select {
	case <-x.begun: // an id that comes twice is the sender's mistake: whoever asks hears of the first
		return func(bool) {}
	default:
		close(x.begun)
	}
	return func(asked bool) {
		close(x.over)
		if asked {
			time.AfterFunc(awaitTold, func() { w.forget(key, x) })
			return
		}
		w.forget(key, x)
	}
}

// await waits for a request of which the sender has had no answer.
func (w *waits) await(ctx context.Context, key waitKey) {
	x := w.wait(key)
	timer := time.NewTimer(awaitBegun)
	defer timer.Stop()
	select {
	case <-x.begun:
	case <-timer.C:
		w.abandon(key, x)
		return
	case <-ctx.Done():
		w.abandon(key, x)
		return
	}
	timer.Reset(awaitMost)
	select {
	case <-x.over:
	case <-timer.C:
	case <-ctx.Done():
	}
}

// abandon forgets one that never began.
func (w *waits) abandon(key waitKey, x *wait) {
	select {
	case <-x.begun:
	default:
		w.forget(key, x)
	}
}
