//go:build !linux

package park

import (
	"errors"
	"net"
	"time"
)

type descriptor struct{}

type poll struct{}

func (poll) remove(descriptor) {}
func (poll) close()            {}

// New says that there is none.
func New() (*Lot, error) { return nil, errors.ErrUnsupported }

// Park is as on Linux.
func (l *Lot) Park(*Place, net.Conn, Owner, time.Time) bool { return false }

// Run is as on Linux.
func (l *Lot) Run() error { return nil }
