package dns

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

const (
	tcpFirst   = 2 * time.Second // for the first query
	tcpIdle    = 5 * time.Second // and between queries (RFC 7766 asks for a few seconds)
	tcpWrite   = 2 * time.Second // for the client to take an answer
	tcpQueries = 100             // on one connection
	tcpParting = time.Second     // for the client to read the last answers
)

// serveTCP takes connections up to the limit, each with one goroutine that answers one query after the other: who
// sends without reading is not read from.
func (s *Server) serveTCP(ctx context.Context, l net.Listener) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	open := conns{all: map[net.Conn]netip.Prefix{}, byPrefix: map[netip.Prefix]int{}, max: s.cfg.Conns, maxEach: max(1, s.cfg.Conns/8)}
	defer open.closeAll()
	for {
		conn, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return err
			}
			time.Sleep(10 * time.Millisecond) // out of descriptors, mostly: some will be closed
			continue
		}
		from, ok := remote(conn)
		if !ok || !open.add(conn, prefix(from)) {
			s.stats.ConnsOver.Add(1)
			conn.Close()
			continue
		}
		s.stats.Conns.Add(1)
		wg.Go(func() {
			defer open.remove(conn)
			s.converse(conn, from)
		})
	}
}

func remote(c net.Conn) (netip.Addr, bool) {
	a, ok := c.RemoteAddr().(*net.TCPAddr)
	if !ok {
		return netip.Addr{}, false
	}
	return a.AddrPort().Addr(), true
}

func (s *Server) converse(conn net.Conn, from netip.Addr) {
	defer conn.Close()
	buf := make([]byte, maxQuery)
	wait := tcpFirst
	for range tcpQueries {
		if conn.SetReadDeadline(time.Now().Add(wait)) != nil {
			return
		}
		var head [2]byte
		if _, err := io.ReadFull(conn, head[:]); err != nil {
			return
		}
		n := int(binary.BigEndian.Uint16(head[:]))
		if n > len(buf) {
			return
		}
		if _, err := io.ReadFull(conn, buf[:n]); err != nil {
			return
		}
		out := s.Handle(buf[:n], from, true)
		if out == nil || len(out) > 0xffff {
			return
		}
		if conn.SetWriteDeadline(time.Now().Add(tcpWrite)) != nil {
			return
		}
		if _, err := conn.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(out))), out...)); err != nil {
			return
		}
		wait = tcpIdle
	}
	part(conn)
}

// part ends a connection whose client has more to say: closed at once, the system would reset it, and with it
// answers that have not arrived.
func part(conn net.Conn) {
	if c, ok := conn.(*net.TCPConn); ok && c.CloseWrite() == nil && c.SetReadDeadline(time.Now().Add(tcpParting)) == nil {
		_, _ = io.CopyN(io.Discard, c, 1<<16)
	}
}

// conns are the open connections, in all and for each client prefix.
type conns struct {
	max, maxEach int

	mu       sync.Mutex // covers the rest
	all      map[net.Conn]netip.Prefix
	byPrefix map[netip.Prefix]int
}

func (c *conns) add(conn net.Conn, p netip.Prefix) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.all) >= c.max || c.byPrefix[p] >= c.maxEach {
		return false
	}
	c.all[conn] = p
	c.byPrefix[p]++
	return true
}

func (c *conns) remove(conn net.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	p, ok := c.all[conn]
	if !ok {
		return
	}
	delete(c.all, conn)
	if c.byPrefix[p]--; c.byPrefix[p] == 0 {
		delete(c.byPrefix, p)
	}
}

func (c *conns) closeAll() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for conn := range c.all {
		conn.Close()
	}
}
