package proxy

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"sync"
	"time"
)

// Limits of connections that are being opened to one place.
const (
	openMost  = 128             // at once
	openShare = 64              // of them for one customer
	openWait  = 2 * time.Second // for a turn; to connect has a time of its own
	openCrowd = 8               // beside so many a connection that is late is late by them
)

// errOpens is why a connection was not opened where that says nothing of the upstream: others were being opened.
var errOpens = errors.New("many connections are being opened to the upstream")

// opens are the connections that are being opened to one place. Who opens many at once would else have everybody's wait behind
// them, in the upstream's queue or in this machine's, until the upstream is taken for dead. Invariants: no more than openMost
// have a turn, no more than openShare of them are one customer's, and a turn is free only while nobody waits who may have it.
// Those who wait take turns by customer, whoever came first, so that a long line is the business of whose it is.
type opens struct {
	mu    sync.Mutex // covers all; held for no I/O
	taken int
	of    map[string]*opener // who has a turn or waits for one
	line  []*opener          // who waits, the next first
}

// opener is a customer.
type opener struct {
	whose   string
	taken   int
	waiting []chan struct{} // closed when the turn has come, the oldest first
}

type openerKey struct{}

// opening says whose the connections are that are opened with ctx.
func opening(ctx context.Context, whose string) context.Context {
	return context.WithValue(ctx, openerKey{}, whose)
}

// open opens one when its turn has come.
func (o *opens) open(ctx context.Context, dial func(context.Context) (net.Conn, error)) (net.Conn, error) {
	whose, _ := ctx.Value(openerKey{}).(string)
	by, err := o.take(ctx, whose)
	if err != nil {
		return nil, err
	}
	defer o.leave(by)
	crowd := o.crowd()
	conn, err := dial(ctx)
	if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() && max(crowd, o.crowd()) > openCrowd {
		err = fmt.Errorf("%w: %w", errOpens, err)
	}
	return conn, err
}

// crowd is how many have a turn.
func (o *opens) crowd() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.taken
}

func (o *opens) take(ctx context.Context, whose string) (*opener, error) {
	o.mu.Lock()
	by := o.of[whose]
	if by == nil {
		if o.of == nil {
			o.of = map[string]*opener{}
		}
		by = &opener{whose: whose}
		o.of[whose] = by
	}
	if o.taken < openMost && by.taken < openShare { // nobody waits who may have it
		o.taken++
		by.taken++
		o.mu.Unlock()
		return by, nil
	}
	turn := make(chan struct{})
	if by.waiting = append(by.waiting, turn); len(by.waiting) == 1 {
		o.line = append(o.line, by)
	}
	o.mu.Unlock()
	timer := time.NewTimer(openWait)
	defer timer.Stop()
	select {
	case <-turn:
		return by, nil
	case <-timer.C:
	case <-ctx.Done():
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	i := slices.Index(by.waiting, turn)
	if i < 0 { // it came meanwhile
		return by, nil
	}
	if by.waiting = slices.Delete(by.waiting, i, i+1); len(by.waiting) == 0 {
		o.line = slices.DeleteFunc(o.line, func(w *opener) bool { return w == by })
	}
	o.forget(by)
	return nil, fmt.Errorf("wait for a turn to connect: %w", errOpens)
}

// leave gives a turn back, and on.
func (o *opens) leave(by *opener) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.taken--
	by.taken--
	o.forget(by)
	for i := 0; i < len(o.line) && o.taken < openMost; {
		next := o.line[i]
		if next.taken == openShare {
			i++
			continue
		}
		close(next.waiting[0])
		next.waiting = slices.Delete(next.waiting, 0, 1)
		o.taken++
		next.taken++
		o.line = slices.Delete(o.line, i, i+1)
		if len(next.waiting) > 0 {
			o.line = append(o.line, next)
		}
	}
}

// forget drops a customer who has nothing here, with mu held.
func (o *opens) forget(by *opener) {
	if by.taken == 0 && len(by.waiting) == 0 {
		delete(o.of, by.whose)
	}
}
