// Package ferry owns who gets a packet of a UDP socket that two processes hold: the one that serves, and the one before it, which
// goes on with the connections over QUIC that it has. Whose a connection is stands in its connection IDs, as the mark of the
// process that chose them. One process reads the socket, the successor; it hands on what carries the other's mark. Both write.
//
// It never looks behind a packet's connection ID, keeps no packet but those that wait for a predecessor's QUIC, and knows nothing of
// how frames get from one process to the other. Nothing of it survives a crash: a successor that ends leaves the one before
// without packets. All of it may be called by all at once, but for what is read, which is one goroutine's, as in QUIC.
package ferry

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/net/ipv4"
)

// Limits.
const (
	// IDLen is the length of the connection IDs in bytes: a mark, and 8 that nobody guesses. Clients send it with each packet.
	IDLen = markLen + 8

	queueMost     = 1024                  // packets that were delivered and not read yet; what comes then is lost, as in a full socket
	handshakeTime = 20 * time.Second      // for which packets that may begin a connection are handed on, since they may be of one that has begun
	sendTime      = 10 * time.Millisecond // for room to write in a detached socket; then the packet is lost, as anywhere on its way
	markLen       = 4
)

// Mark is the process that chose a connection ID. It is drawn at random: four bytes, so that none of the IDs that clients choose for
// their first packets carries it by chance (one in 2³², and only of those of IDLen bytes). 0: of none.
type Mark uint32

// Conn is a UDP socket for QUIC. What quic-go does on a *net.UDPConn (batches, ECN, segmentation, the packet's own address) it does
// on this one.
type Conn struct {
	udp   *net.UDPConn
	batch *ipv4.PacketConn
	mark  Mark
	six   bool // the socket is one of IPv6
	out   atomic.Pointer[outlet]
	ways  atomic.Pointer[[]way] // nil: all packets are this process's

	queue    chan *parcel
	parcels  sync.Pool
	frame    []byte // the packet that is being handed on; the reader's
	deadline deadline
	done     chan struct{}
	close    sync.Once
	counts   struct{ diverted, delivered, dropped atomic.Uint64 }

	mu sync.Mutex // covers changes of ways
}

// Counts are packets of a Conn so far.
type Counts struct {
	Diverted  uint64 // handed to other processes
	Delivered uint64 // that another process brought
	Dropped   uint64 // that it brought, and for which there was no room
}

// parcel is a packet that waits to be read, as a frame.
type parcel struct {
	n     int
	bytes [frameMost]byte
}

// New makes a Conn of a socket, which is the Conn's from then on, with a mark that is not among those of others which live.
func New(udp *net.UDPConn, others ...Mark) (*Conn, error) {
	c := &Conn{udp: udp, batch: ipv4.NewPacketConn(udp), queue: make(chan *parcel, queueMost), done: make(chan struct{}),
		parcels: sync.Pool{New: func() any { return new(parcel) }}}
	c.deadline.cancel = make(chan struct{})
	for c.mark == 0 || slices.Contains(others, c.mark) {
		var b [markLen]byte
		rand.Read(b[:]) // never fails
		c.mark = Mark(binary.BigEndian.Uint32(b[:]))
	}
	var err error
	c.six, err = isSix(udp)
	return c, err
}

// Mark is what this process's connection IDs carry.
func (c *Conn) Mark() Mark { return c.mark }

// ID draws a connection ID.
func (c *Conn) ID() (id [IDLen]byte) {
	binary.BigEndian.PutUint32(id[:], uint32(c.mark))
	rand.Read(id[markLen:]) // never fails
	return id
}

// Counts says what has happened so far.
func (c *Conn) Counts() Counts {
	return Counts{c.counts.diverted.Load(), c.counts.delivered.Load(), c.counts.dropped.Load()}
}

// Detach has this process read nothing of the socket any more: when it returns no read is under way. What is read from then on is
// what Deliver brings; what is written goes to the socket as before. There is no way back. If it says why it could not, all is
// as before.
//
// The descriptor that the runtime watches is closed and another kept to write to. One that stayed open would wake this process for
// each packet of the other's.
func (c *Conn) Detach() error {
	if c.Detached() {
		return nil
	}
	o, err := newOutlet(c.udp, c.six)
	if err != nil {
		return err
	}
	if !c.out.CompareAndSwap(nil, o) {
		o.close()
		return nil
	}
	c.udp.Close() // ends a read that waits, and returns when it has
	select {
	case <-c.done:
		o.close()
	default:
	}
	return nil
}

// Detached says whether the process reads nothing of the socket any more.
func (c *Conn) Detached() bool { return c.out.Load() != nil }

// Close closes the socket. Who reads is told net.ErrClosed.
func (c *Conn) Close() (err error) {
	c.close.Do(func() {
		close(c.done)
		if err = c.udp.Close(); errors.Is(err, net.ErrClosed) {
			err = nil // Detach has
		}
		if o := c.out.Load(); o != nil {
			o.close()
		}
	})
	return err
}

// WriteMsgUDP writes to the socket, this process's or not.
func (c *Conn) WriteMsgUDP(b, oob []byte, to *net.UDPAddr) (n, oobn int, err error) {
	o := c.out.Load()
	if o == nil {
		n, oobn, err = c.udp.WriteMsgUDP(b, oob, to)
		if err == nil || !errors.Is(err, net.ErrClosed) {
			return n, oobn, err
		}
		if o = c.out.Load(); o == nil { // it was not Detach that closed it
			return n, oobn, err
		}
	}
	return o.send(b, oob, to)
}

// WriteTo is WriteMsgUDP.
func (c *Conn) WriteTo(b []byte, to net.Addr) (int, error) {
	at, ok := to.(*net.UDPAddr)
	if !ok {
		return 0, &net.OpError{Op: "write", Net: "udp", Addr: to, Err: syscall.EINVAL}
	}
	n, _, err := c.WriteMsgUDP(b, nil, at)
	return n, err
}

// LocalAddr is the socket's address.
func (c *Conn) LocalAddr() net.Addr { return c.udp.LocalAddr() }

// SyscallConn is the socket's, until it is detached.
func (c *Conn) SyscallConn() (syscall.RawConn, error) { return c.udp.SyscallConn() }

// SetReadBuffer is the socket's, until it is detached.
func (c *Conn) SetReadBuffer(bytes int) error { return c.udp.SetReadBuffer(bytes) }

// SetWriteBuffer is the socket's, until it is detached.
func (c *Conn) SetWriteBuffer(bytes int) error { return c.udp.SetWriteBuffer(bytes) }

// SetReadDeadline ends what is being read then, wherever it comes from, with os.ErrDeadlineExceeded. The zero time: never.
func (c *Conn) SetReadDeadline(t time.Time) error {
	c.deadline.set(t)
	if err := c.udp.SetReadDeadline(t); err != nil && !c.Detached() {
		return err
	}
	return nil
}

// SetWriteDeadline is the socket's. One that is detached waits for nothing that is written.
func (c *Conn) SetWriteDeadline(t time.Time) error {
	if err := c.udp.SetWriteDeadline(t); err != nil && !c.Detached() {
		return err
	}
	return nil
}

// SetDeadline is SetReadDeadline and SetWriteDeadline.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// deadline is a time that may be set while somebody waits for it.
type deadline struct {
	mu     sync.Mutex // covers the rest
	timer  *time.Timer
	cancel chan struct{} // closed when the time has come
}

func (d *deadline) set(t time.Time) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.timer != nil && !d.timer.Stop() {
		<-d.cancel // it has fired, and closes it at once
	}
	d.timer = nil
	over := false
	select {
	case <-d.cancel:
		over = true
	default:
	}
	if over {
		d.cancel = make(chan struct{})
	}
	if t.IsZero() {
		return
	}
	if wait := time.Until(t); wait > 0 {
		cancel := d.cancel
		d.timer = time.AfterFunc(wait, func() { close(cancel) })
		return
	}
	close(d.cancel)
}

func (d *deadline) wait() <-chan struct{} {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cancel
}
