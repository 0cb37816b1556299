//go:build unix && !linux

package loop

import (
	"errors"
	"net"
	"time"
)

// Loop is not there on this system.
type Loop struct{ BusyPoll time.Duration }

// New says so.
func New(func(now time.Time) time.Duration) (*Loop, error) { return nil, errors.ErrUnsupported }

// Adopt is as on Linux.
func (*Loop) Adopt(*net.TCPConn, bool) (*Conn, error) { return nil, errors.ErrUnsupported }

// Run is as on Linux.
func (*Loop) Run() error { return nil }

// Close is as on Linux.
func (*Loop) Close() {}

// Round is as on Linux.
func (*Loop) Round() uint64 { return 0 }

// Heard is as on Linux.
func (*Loop) Heard() time.Time { return time.Time{} }

// Calm is as on Linux.
func (*Loop) Calm() bool { return false }

// GiveWay is as on Linux.
func (*Loop) GiveWay() {}

// Expect is as on Linux.
func (*Loop) Expect(*Conn) {}

// Sought is as on Linux.
func (*Loop) Sought() (came, vain uint64) { return 0, 0 }

// Each is as on Linux.
func (*Loop) Each(func(o Owner)) {}

// Conn is never made.
type Conn struct {
	net.Conn
	Owner Owner
}

// Closed is as on Linux.
func (*Conn) Closed() bool { return true }

// Watch is as on Linux.
func (*Conn) Watch() bool { return false }

// Rest is as on Linux.
func (*Conn) Rest() bool { return false }

// Move is as on Linux.
func (*Conn) Move(*Loop) bool { return false }

// Take is as on Linux.
func (*Conn) Take() bool { return false }

// Claim is as on Linux.
func (*Conn) Claim() bool { return false }

// Looped is as on Linux.
func (*Conn) Looped() bool { return false }

// Man is as on Linux.
func (*Conn) Man() {}

// Quiet is as on Linux.
func (*Conn) Quiet() bool { return false }

// Poll is as on Linux.
func (*Conn) Poll([]byte) (int, error) { return 0, errors.ErrUnsupported }

// TryRead is as on Linux.
func (*Conn) TryRead([]byte) (int, error) { return 0, errors.ErrUnsupported }

// TryWrite is as on Linux.
func (*Conn) TryWrite([]byte) (int, error) { return 0, errors.ErrUnsupported }

// Rests is as on Linux.
func (*Conn) Rests() bool { return false }
