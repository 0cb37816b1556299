package raftgroup

import (
	"context"
	"errors"
	"net"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

var errFenced = errors.New("this node is fenced")

// fence is the stream layer that raft sees, closed until the node has looked around. raft's own NetworkTransport.Close
// only closes the listener and keeps dialling, so a leader whose disk hangs
// would go on sending the heartbeats that keep the others from electing. Once
// raised, a fence lets nothing in or out.
type fence struct {
	stream Stream
	self   string

	// mu covers the tracked connections and the flag together: a connection
	// made while the fence goes up must not slip past it.
	mu     sync.Mutex
	conns  map[net.Conn]struct{}
	raised bool

	once sync.Once
	open chan struct{} // closed when the node may take part, or never will
}

func newFence(s Stream, self string) *fence {
	return &fence{stream: s, self: self, conns: make(map[net.Conn]struct{}), open: make(chan struct{})}
}

// lower lets the node take part: until it is called, Dial and Accept wait.
func (f *fence) lower() { f.once.Do(func() { close(f.open) }) }

// raise may be called often and from anywhere; it does not block.
func (f *fence) raise() {
	f.mu.Lock()
	f.raised = true
	conns := f.conns
	f.conns = nil
	f.mu.Unlock()
	f.lower()
	for c := range conns {
		c.Close()
	}
	f.stream.Close()
}

func (f *fence) track(c net.Conn) (net.Conn, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.raised {
		c.Close()
		return nil, errFenced
	}
	t := &trackedConn{Conn: c, fence: f}
	f.conns[t] = struct{}{}
	return t, nil
}

func (f *fence) up() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.raised
}

// Dial is part of raft.StreamLayer.
func (f *fence) Dial(addr raft.ServerAddress, timeout time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), timeout)
	defer cancel()
	select {
	case <-f.open:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if f.up() {
		return nil, errFenced
	}
	c, err := f.stream.Dial(ctx, string(addr))
	if err != nil {
		return nil, err
	}
	return f.track(c)
}

// Accept is part of net.Listener.
func (f *fence) Accept() (net.Conn, error) {
	<-f.open
	if f.up() {
		return nil, errFenced
	}
	c, err := f.stream.Accept()
	if err != nil {
		return nil, err
	}
	return f.track(c)
}

// Close is part of net.Listener.
func (f *fence) Close() error { return f.stream.Close() }

// Addr is part of net.Listener: a node's raft address is its name.
func (f *fence) Addr() net.Addr { return nodeAddr(f.self) }

type nodeAddr string

func (nodeAddr) Network() string  { return "node" }
func (a nodeAddr) String() string { return string(a) }

type trackedConn struct {
	net.Conn
	fence *fence
}

func (c *trackedConn) Close() error {
	c.fence.mu.Lock()
	delete(c.fence.conns, c)
	c.fence.mu.Unlock()
	return c.Conn.Close()
}
