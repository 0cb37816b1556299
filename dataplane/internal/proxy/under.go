package proxy

import (
	"crypto/tls"
	"net"
	"time"

	"bailiwick/dataplane/internal/direct"
	"bailiwick/dataplane/internal/park"
)

// under is what TLS is spoken over. As long as a loop has the connection it waits for nothing: crypto/tls takes up again where a
// temporary error of its reader has left it, and what is written and finds no room is owed.
type under struct {
	net.Conn // c.raw
	c        *conn
	polls    bool // a goroutine reads without waiting
	full     bool // the last read took all it had room for
	owed     []byte
}

// nothing is the error of a read that waits for nothing and finds nothing.
type nothing struct{}

func (nothing) Error() string   { return "nothing has come" }
func (nothing) Timeout() bool   { return true }
func (nothing) Temporary() bool { return true }

var errNothing error = nothing{}

// Read implements net.Conn.
func (u *under) Read(p []byte) (int, error) {
	if u.c.turn == nil && !u.polls {
		return u.Conn.Read(p)
	}
	read := u.c.lc.TryRead
	if u.polls {
		read = u.c.lc.Poll
	}
	n, err := read(p)
	if n == 0 && err == nil {
		err = errNothing
	}
	u.full = n == len(p)
	return n, err
}

// Write implements net.Conn.
func (u *under) Write(p []byte) (int, error) {
	if u.c.turn == nil {
		if len(u.owed) > 0 {
			if _, err := u.Conn.Write(u.owed); err != nil {
				return 0, err
			}
			u.owed = nil
		}
		return u.Conn.Write(p)
	}
	n := 0
	if len(u.owed) == 0 {
		var err error
		if n, err = u.c.lc.TryWrite(p); err != nil {
			return n, err
		}
	}
	u.owed = append(u.owed, p[n:]...)
	return len(p), nil
}

// flush writes what is owed, as a goroutine.
func (c *conn) flush() bool {
	c.wuntil = time.Now().Add(sendTimeout)
	c.raw.SetWriteDeadline(c.wuntil)
	_, err := c.raw.Write(c.under.owed)
	c.under.owed = nil
	return err == nil
}

// tryRead reads what has come, and waits for nothing. What is left then, c.more says.
func (c *conn) tryRead(b []byte) (n int, err error) {
	if c.under == nil {
		n, err = c.lc.TryRead(b)
		c.more = c.more || n == len(b)
		return n, err
	}
	t := c.rwc.(*tls.Conn)
	if n, err = t.Read(b); err == errNothing {
		err = nil
	}
	c.more = c.more || n > 0 && (n == len(b) || err != nil || c.under.full || park.Pending(t))
	return n, err
}

// poll is tryRead by a goroutine, of whoever reads until there is nothing.
func (c *conn) poll(b []byte) (n int, err error) {
	if c.under == nil {
		return c.lc.Poll(b)
	}
	c.under.polls = true
	if n, err = c.rwc.Read(b); err == errNothing {
		err = nil
	}
	c.under.polls = false
	return n, err
}

// settle gives a connection over TLS that asks again and again, for what is common, to a loop.
func (c *conn) settle() {
	if !c.again || !c.lately || c.lc != nil || c.under == nil || c.stays {
		c.again = true
		return
	}
	d, ok := c.raw.(*direct.Conn)
	if !ok || c.door.fast == nil {
		return
	}
	t := c.door.turnFor()
	if t == nil {
		return
	}
	c.door.mu.Lock() // whoever closes all looks at raw, before or after
	defer c.door.mu.Unlock()
	if c.door.loopless {
		return
	}
	lc, err := t.loop.Adopt(d.TCPConn, false)
	if err != nil {
		return
	}
	lc.Owner = c
	c.raw, c.under.Conn = lc, lc
	c.lc, c.home, c.seat = lc, t, c.door.dealt
	c.place = park.Place{}
	c.until, c.wuntil, c.now = time.Time{}, time.Time{}, time.Time{}
}
