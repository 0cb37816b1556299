package ferry

import (
	"errors"
	"net"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// outlet writes to a socket that this process does not read. Its descriptor is its own, and none that the runtime watches.
type outlet struct {
	six bool

	mu sync.RWMutex // covers fd: held while a packet is written, since the number of a closed descriptor is the next one's that is opened
	fd int          // -1: closed
}

func isSix(udp *net.UDPConn) (six bool, err error) {
	raw, err := udp.SyscallConn()
	if err != nil {
		return false, err
	}
	var at unix.Sockaddr
	if cerr := raw.Control(func(fd uintptr) { at, err = unix.Getsockname(int(fd)) }); cerr != nil {
		return false, cerr
	}
	_, six = at.(*unix.SockaddrInet6)
	return six, os.NewSyscallError("getsockname", err)
}

func newOutlet(udp *net.UDPConn, six bool) (*outlet, error) {
	raw, err := udp.SyscallConn()
	if err != nil {
		return nil, err
	}
	o := &outlet{six: six}
	if cerr := raw.Control(func(fd uintptr) { o.fd, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) }); cerr != nil {
		return nil, cerr
	}
	return o, os.NewSyscallError("fcntl", err)
}

func (o *outlet) close() {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.fd >= 0 {
		unix.Close(o.fd)
		o.fd = -1
	}
}

// send writes a packet, or several that the system takes apart. Where there is no room for long it is lost.
func (o *outlet) send(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	at, err := o.sockaddr(to)
	if err != nil {
		return 0, 0, err
	}
	o.mu.RLock()
	defer o.mu.RUnlock()
	if o.fd < 0 {
		return 0, 0, net.ErrClosed
	}
	for began := time.Now(); ; {
		n, err = unix.SendmsgN(o.fd, b, oob, at, unix.MSG_DONTWAIT)
		switch {
		case err == nil:
			return n, len(oob), nil
		case errors.Is(err, unix.EINTR):
			continue
		case !errors.Is(err, unix.EAGAIN):
			return 0, 0, os.NewSyscallError("sendmsg", err)
		}
		left := sendTime - time.Since(began)
		if left <= 0 {
			return len(b), len(oob), nil
		}
		unix.Poll([]unix.PollFd{{Fd: int32(o.fd), Events: unix.POLLOUT}}, int(left.Milliseconds())+1)
	}
}

func (o *outlet) sockaddr(to *net.UDPAddr) (unix.Sockaddr, error) {
	if to == nil {
		return nil, unix.EDESTADDRREQ
	}
	if four := to.IP.To4(); four != nil && !o.six {
		return &unix.SockaddrInet4{Port: to.Port, Addr: [4]byte(four)}, nil
	}
	ip := to.IP.To16()
	if ip == nil || !o.six {
		return nil, unix.EAFNOSUPPORT
	}
	return &unix.SockaddrInet6{Port: to.Port, Addr: [16]byte(ip), ZoneId: zoneOf(to.Zone)}, nil
}

func zoneOf(name string) uint32 {
	if name == "" {
		return 0
	}
	if i, err := net.InterfaceByName(name); err == nil {
		return uint32(i.Index)
	}
	n, _ := strconv.ParseUint(name, 10, 32)
	return uint32(n)
}
