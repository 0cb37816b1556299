package linger

import (
	"errors"
	"sync/atomic"

	"bailiwick/dataplane/internal/spool"
	"bailiwick/shared/usage"
)

// Spool is what a Meter needs of *spool.Spool.
type Spool interface {
	Append(row *usage.Row) error
	Ready() bool
	Healthy() error
}

// Meter is this process's spool, and once that is another's, the way to it.
type Meter struct {
	own Spool
	to  atomic.Pointer[way]
}

// way is what takes the spool's place.
type way struct {
	known chan struct{} // closed when link or err is
	link  *Link
	err   error
}

// NewMeter begins with the process's own spool.
func NewMeter(own Spool) *Meter { return &Meter{own: own} }

// Leave says that the spool is about to be closed in another process's favour: rows that it does not take any more wait for Through or Fail.
// What it takes meanwhile is in it for good: the other process finds it there.
func (m *Meter) Leave() { m.to.Store(&way{known: make(chan struct{})}) }

// Through has rows go over link.
func (m *Meter) Through(link *Link) { m.decide(link, nil) }

// Fail says that there is no way: nobody counts for this process.
func (m *Meter) Fail(err error) { m.decide(nil, err) }

func (m *Meter) decide(link *Link, err error) {
	w := m.to.Load()
	w.link, w.err = link, err
	close(w.known)
}

// Append keeps one row, as spool.Append does. Where the spool is another process's by now it waits for that one's word.
func (m *Meter) Append(r *usage.Row) error {
	err := m.own.Append(r)
	if !errors.Is(err, spool.ErrClosed) {
		return err
	}
	w := m.to.Load()
	if w == nil {
		return err
	}
	<-w.known
	if w.err != nil {
		return w.err
	}
	return w.link.Append(r)
}

// Ready says whether Append would wait for nothing.
func (m *Meter) Ready() bool { return m.to.Load() == nil && m.own.Ready() }

// Healthy says why rows may be refused.
func (m *Meter) Healthy() error {
	w := m.to.Load()
	if w == nil {
		return m.own.Healthy()
	}
	select {
	case <-w.known:
	default:
		return nil // its rows wait
	}
	if w.err != nil {
		return w.err
	}
	return w.link.Healthy()
}
