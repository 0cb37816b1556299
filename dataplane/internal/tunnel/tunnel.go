// Package tunnel owns what passes on a connection of which nothing is known but its bytes: both ways, each to its own end.
//
// It never opens or closes a connection or decides who may; whoever joins two legs does. It keeps two small buffers a
// connection: who takes nothing is sent nothing. Nothing survives a crash. Join may be called any number of times at once; a
// Meter is asked by two goroutines of each.
package tunnel

import (
	"context"
	"errors"
	"io"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// Leg is a connection to one side.
type Leg interface {
	io.ReadWriter
	CloseWrite() error // nothing more is said to that side; an error: it cannot be told, and both ways end
	Break()            // Read and Write return soon, those under way and those to come
}

// Meter counts what passes, as that of package websocket: there are no messages.
type Meter interface {
	Spend(up bool, messages, bytes int64) error
	Tick()
}

// Numbers that are not an API's to say.
const (
	DefaultIdle = 10 * time.Minute

	writeWait = 30 * time.Second // of a side that takes nothing
	tickEvery = 5 * time.Second
	small     = 4 << 10
	wide      = 32 << 10
)

// Config of a connection. Client, Upstream and Meter are required.
type Config struct {
	Client, Upstream Leg
	Meter            Meter
	Idle             time.Duration // 0: DefaultIdle; without a byte either way
}

// Ends.
var (
	ErrIdle  = errors.New("nothing was said for long")
	ErrStuck = errors.New("one side takes nothing")

	// ErrLast is what CloseWrite gives where the end that was told is the connection's: the other way ends with it, and all was said.
	ErrLast = errors.New("with that all has been said")
)

// Broken is the end of a connection that one side broke off.
type Broken struct {
	Upstream bool // it was the upstream
	Err      error
}

func (b *Broken) Error() string { return "broken off: " + b.Err.Error() }
func (b *Broken) Unwrap() error { return b.Err }

// Panic is where in the code a connection's panic was.
type Panic struct{ Stack []byte }

func (*Panic) Error() string { return "panic" }

// Join carries bytes both ways until both sides have said all, or one has that speaks for both (nil), one breaks off, or ctx is over. It breaks both legs before
// it returns.
func Join(ctx context.Context, cfg Config) error {
	if cfg.Idle <= 0 {
		cfg.Idle = DefaultIdle
	}
	born := time.Now()
	since := func() int64 { return int64(time.Since(born)) | 1 }
	var spoke atomic.Int64
	var writing [2]atomic.Int64 // since when a write goes on; 0: none does
	over := make(chan error, 2)
	var wg sync.WaitGroup
	carry := func(from, to Leg, up bool) {
		wg.Go(func() {
			err := error(&Panic{})
			defer func() { over <- err }()
			defer func() {
				if r := recover(); r != nil { // one connection's end, and not the edge's
					err = &Panic{debug.Stack()}
				}
			}()
			at := 0
			if up {
				at = 1
			}
			buf := make([]byte, small)
			for {
				n, rerr := from.Read(buf)
				if n > 0 {
					if err = cfg.Meter.Spend(up, 0, int64(n)); err != nil {
						return
					}
					now := since()
					spoke.Store(now)
					writing[at].Store(now)
					_, werr := to.Write(buf[:n])
					writing[at].Store(0)
					spoke.Store(since())
					if werr != nil {
						err = &Broken{Upstream: up, Err: werr}
						return
					}
				}
				switch {
				case rerr == io.EOF:
					err = to.CloseWrite()
					return
				case rerr != nil:
					err = &Broken{Upstream: !up, Err: rerr}
					return
				}
				if n == len(buf) && n < wide {
					buf = make([]byte, wide)
				}
			}
		})
	}
	carry(cfg.Client, cfg.Upstream, true)
	carry(cfg.Upstream, cfg.Client, false)
	tick := time.NewTicker(min(tickEvery, cfg.Idle/2))
	defer tick.Stop()
	var end error
	for left := 2; left > 0 && end == nil; {
		select {
		case end = <-over:
			left--
		case <-ctx.Done():
			end = context.Cause(ctx)
		case <-tick.C:
			cfg.Meter.Tick()
			now := since()
			for i := range writing {
				if at := writing[i].Load(); at != 0 && time.Duration(now-at) > writeWait {
					end = &Broken{Upstream: i == 1, Err: ErrStuck}
				}
			}
			if time.Duration(now-spoke.Load()) >= cfg.Idle {
				end = ErrIdle
			}
		}
	}
	cfg.Client.Break()
	cfg.Upstream.Break()
	wg.Wait()
	if end == ErrLast {
		return nil
	}
	return end
}
