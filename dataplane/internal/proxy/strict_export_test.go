package proxy

import "net"

// StrictConn is one, for what is said on it by hand.
type StrictConn struct{ *strictConn }

// Strict has what comes on c heard strictly.
func Strict(c net.Conn) StrictConn { return StrictConn{&strictConn{Conn: c}} }

// Begin has a request begin.
func (c StrictConn) Begin(method string) { c.begin(method) }

// ErrSpent is what a write of one says that must not be asked.
var ErrSpent = errSpent
