package handover

import (
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Sockets are the listening sockets of an edge by their names. One that was inherited is used where the address is the one
// that is asked for; else a new one is made. The zero Sockets have inherited none.
type Sockets struct {
	mu        sync.Mutex // covers the maps
	inherited map[string]*os.File
	open      map[string]syscall.Conn
}

// NewSockets takes files that another process opened. Of two with one name the first is kept.
func NewSockets(names []string, files []*os.File) *Sockets {
	s := &Sockets{inherited: map[string]*os.File{}}
	s.add(names, files)
	return s
}

func (s *Sockets) add(names []string, files []*os.File) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.inherited == nil {
		s.inherited = map[string]*os.File{}
	}
	for i, f := range files {
		if i >= len(names) || s.inherited[names[i]] != nil {
			f.Close()
			continue
		}
		s.inherited[names[i]] = f
	}
}

// Listen is net.Listen over TCP.
func (s *Sockets) Listen(name, address string) (net.Listener, error) {
	if f := s.claim(name); f != nil {
		l, err := net.FileListener(f) // a copy
		f.Close()
		if err == nil && fits(l.Addr(), address) {
			return l, s.opened(name, l)
		}
		if err == nil {
			l.Close() // the configuration has changed
		}
	}
	l, err := net.Listen("tcp", address)
	if err != nil {
		return nil, err
	}
	return l, s.opened(name, l)
}

// ListenPacket is net.ListenPacket over UDP.
func (s *Sockets) ListenPacket(name, address string) (net.PacketConn, error) {
	if f := s.claim(name); f != nil {
		c, err := net.FilePacketConn(f)
		f.Close()
		if err == nil && fits(c.LocalAddr(), address) {
			return c, s.opened(name, c)
		}
		if err == nil {
			c.Close()
		}
	}
	c, err := net.ListenPacket("udp", address)
	if err != nil {
		return nil, err
	}
	return c, s.opened(name, c)
}

// Check says why there could be no socket of this name at an address, over tcp or udp. What another holds may be the process
// before's, which will have ended by then: that is no reason here.
func (s *Sockets) Check(network, name, address string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if f := s.inherited[name]; f != nil {
		if at, err := addressOf(network, f); err == nil && fits(at, address) {
			return nil
		}
	}
	err := tryOut(network, address)
	if errors.Is(err, syscall.EADDRINUSE) {
		return nil
	}
	return err
}

func addressOf(network string, f *os.File) (net.Addr, error) { // by copies, which are closed
	if network == "udp" {
		c, err := net.FilePacketConn(f)
		if err != nil {
			return nil, err
		}
		defer c.Close()
		return c.LocalAddr(), nil
	}
	l, err := net.FileListener(f)
	if err != nil {
		return nil, err
	}
	defer l.Close()
	return l.Addr(), nil
}

func tryOut(network, address string) error {
	if network == "udp" {
		c, err := net.ListenPacket(network, address)
		if err != nil {
			return err
		}
		return c.Close()
	}
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	return l.Close()
}

func (s *Sockets) claim(name string) *os.File {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.inherited[name]
	delete(s.inherited, name)
	return f
}

func (s *Sockets) opened(name string, socket any) error {
	c, ok := socket.(syscall.Conn)
	if !ok {
		return fmt.Errorf("listen as %s: the socket has no descriptor", name)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open == nil {
		s.open = map[string]syscall.Conn{}
	}
	s.open[name] = c
	return nil
}

// Forget closes what was inherited and nobody asked for: connections would queue there for ever.
func (s *Sockets) Forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.inherited {
		f.Close()
	}
	clear(s.inherited)
}

// copies are descriptors of the open sockets, for another process. Those that were closed are left out.
func (s *Sockets) copies() (names []string, fds []int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, name := range slices.Sorted(maps.Keys(s.open)) {
		raw, err := s.open[name].SyscallConn()
		if err != nil {
			continue
		}
		// Not File(): it would make the socket block, for this process too.
		raw.Control(func(fd uintptr) {
			if n, err := unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0); err == nil {
				names, fds = append(names, name), append(fds, n)
			}
		})
	}
	return names, fds
}

// fits says whether a socket's address is the one that a configuration names. A name that has to be resolved fits none: it
// may stand for something else now.
func fits(have net.Addr, want string) bool {
	host, service, err := net.SplitHostPort(want)
	if err != nil {
		return false
	}
	is, err := netip.ParseAddrPort(have.String())
	if err != nil {
		return false
	}
	port, err := strconv.ParseUint(service, 10, 16)
	if err != nil || port != 0 && uint16(port) != is.Port() {
		return false
	}
	if host == "" {
		return is.Addr().IsUnspecified()
	}
	a, err := netip.ParseAddr(host)
	return err == nil && a.Unmap() == is.Addr().Unmap()
}
