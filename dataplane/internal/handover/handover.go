// Package handover owns the hand-over of an edge's listening sockets from one process to the next, so that no client finds a
// shut door while the program is replaced. See DESIGN.md.
//
// Nothing but sockets is handed over: what may have one owner (the spool, the leases, the grants, the table) has one at any
// time, and the locks of the directory prove it. A process in which requests go on says what they hold, and the connection
// stays: what passes on it is package linger's. A socket survives whichever of the two processes crashes; if both do, the
// next start opens new ones. Sockets may be used by all at once; an Offer is one goroutine's.
package handover

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// ErrTaken ends an edge whose place another process takes.
var ErrTaken = errors.New("another process takes this edge's place")

const (
	socketName  = "successor"
	version     = 1
	maxSockets  = 16
	maxHello    = 4 << 10
	helloTime   = 5 * time.Second // for one message
	acceptAgain = 100 * time.Millisecond
	goTime      = time.Minute // a successor may take to get ready; then it is not one

	maxSaid  = 64 << 20 // bytes of what a process in which requests go on says of them
	saidTime = 10 * time.Second

	wordGo     = "go\n"
	wordLinger = "go linger\n"        // and requests may go on
	wordRelays = "go linger relays\n" // relays too
	wordOver   = "over\n"
	wordStill  = "over but " // and how many bytes follow, of what goes on
)

// hello is what a process says of itself to its successor, with its sockets.
type hello struct {
	Version int      `json:"version"`
	Program string   `json:"program"`
	Sockets []string `json:"sockets"`
	Lingers bool     `json:"lingers,omitempty"` // requests may go on in it, if its successor counts for them
	Relays  bool     `json:"relays,omitempty"`  // relays too, if its successor lends it what they go by
}

// Offer waits for a successor.
type Offer struct {
	dir, program string
	sockets      *Sockets
	successor    *net.UnixConn // who was promised the place
	word         string        // what it said
}

// NewOffer hands out sockets to whoever asks in dir, which is the edge's own and readable for nobody else.
func NewOffer(dir, program string, sockets *Sockets) *Offer {
	return &Offer{dir: dir, program: program, sockets: sockets}
}

// Run waits until ctx ends (nil) or a successor is ready (ErrTaken): then this process must end all that it does, and say so
// with Over. A successor that goes away before it is ready changes nothing.
func (o *Offer) Run(ctx context.Context) error {
	var l *net.UnixListener
	err := at(o.dir, func(path string) (err error) {
		if err = os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) { // of a process that was killed
			return err
		}
		l, err = net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	if err != nil {
		return fmt.Errorf("wait for a successor: %w", err)
	}
	l.SetUnlinkOnClose(false) // by the path it was bound to, which may be another's by then
	defer os.Remove(filepath.Join(o.dir, socketName))
	stop := context.AfterFunc(ctx, func() { l.Close() })
	defer stop()
	defer l.Close()
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			if ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, net.ErrClosed) {
				return fmt.Errorf("wait for a successor: %w", err)
			}
			select { // no descriptors, mostly, and this process serves on: who would take its place asks again
			case <-ctx.Done():
				return nil
			case <-time.After(acceptAgain):
			}
			continue
		}
		if word := o.serve(ctx, c); word != "" {
			o.successor, o.word = c, word
			return ErrTaken
		}
		c.Close()
	}
}

// serve returns the word by which the other has taken the place; "": it has not.
func (o *Offer) serve(ctx context.Context, c *net.UnixConn) (word string) {
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	names, fds := o.sockets.copies()
	defer closeAll(fds)
	raw, err := json.Marshal(hello{Version: version, Program: o.program, Sockets: names, Lingers: true, Relays: true})
	if err != nil || len(fds) > maxSockets {
		return ""
	}
	c.SetDeadline(time.Now().Add(helloTime))
	if _, _, err := c.WriteMsgUnix(append(raw, '\n'), unix.UnixRights(fds...), nil); err != nil {
		return ""
	}
	c.SetDeadline(time.Now().Add(goTime))
	line, err := bufio.NewReaderSize(c, 64).ReadString('\n')
	c.SetDeadline(time.Time{})
	if err != nil || line != wordGo && line != wordLinger && line != wordRelays {
		return ""
	}
	return line
}

// Lets says, after Run has returned ErrTaken, whether requests may go on in this process: the successor counts for them.
func (o *Offer) Lets() bool { return o.word == wordLinger || o.word == wordRelays }

// LetsRelays says likewise whether relays may go on too: the successor lends what they go by.
func (o *Offer) LetsRelays() bool { return o.word == wordRelays }

// Still is Over by a process in which requests go on: said is what it says of them. What the two say to each other from then on passes on
// the connection that it returns.
func (o *Offer) Still(said []byte) (net.Conn, error) {
	c := o.successor
	c.SetDeadline(time.Now().Add(saidTime))
	if _, err := c.Write(append(fmt.Appendf(nil, "%s%d\n", wordStill, len(said)), said...)); err != nil {
		c.Close()
		return nil, fmt.Errorf("tell the successor what goes on: %w", err)
	}
	c.SetDeadline(time.Time{})
	return c, nil
}

// Over tells the successor that this process has let go of everything. Call it after Run has returned ErrTaken, and end.
func (o *Offer) Over() error {
	if o.successor == nil {
		return nil
	}
	defer o.successor.Close()
	o.successor.SetDeadline(time.Now().Add(helloTime))
	if _, err := o.successor.Write([]byte(wordOver)); err != nil {
		return fmt.Errorf("tell the successor: %w", err)
	}
	return nil
}

// Predecessor is a process whose sockets this one has.
type Predecessor struct {
	Program string
	conn    *net.UnixConn
	reader  *bufio.Reader
	word    string // by which it is told to end
}

// Ask looks for a process that serves in dir and adds its sockets to s. nil without an error: there is none.
func Ask(ctx context.Context, dir string, s *Sockets) (*Predecessor, error) {
	var c *net.UnixConn
	err := at(dir, func(path string) (err error) {
		c, err = net.DialUnix("unix", nil, &net.UnixAddr{Name: path, Net: "unix"})
		return err
	})
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return nil, nil
	case err != nil:
		return nil, fmt.Errorf("ask for the sockets of the process in %s: %w", dir, err)
	}
	stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	c.SetDeadline(time.Now().Add(goTime)) // it may still be starting
	p, err := meet(c, s)
	if err != nil {
		c.Close()
		return nil, fmt.Errorf("ask for the sockets of the process in %s: %w", dir, err)
	}
	c.SetDeadline(time.Time{})
	return p, nil
}

func meet(c *net.UnixConn, s *Sockets) (*Predecessor, error) {
	text, rights := make([]byte, maxHello), make([]byte, unix.CmsgSpace(4*maxSockets))
	n, m, _, _, err := c.ReadMsgUnix(text, rights)
	if err != nil {
		return nil, err
	}
	var files []*os.File
	messages, err := unix.ParseSocketControlMessage(rights[:m])
	if err != nil {
		return nil, err
	}
	for i := range messages {
		fds, err := unix.ParseUnixRights(&messages[i])
		if err != nil {
			return nil, err
		}
		for _, fd := range fds {
			unix.CloseOnExec(fd)
			files = append(files, os.NewFile(uintptr(fd), "inherited"))
		}
	}
	var h hello
	if err := json.Unmarshal(text[:n], &h); err != nil || h.Version != version || len(h.Sockets) != len(files) {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("it does not speak as expected (version %d, %d sockets of %d); stop it first", h.Version, len(files), len(h.Sockets))
	}
	s.add(h.Sockets, files)
	word := wordGo
	switch {
	case h.Lingers && h.Relays:
		word = wordRelays
	case h.Lingers:
		word = wordLinger
	}
	return &Predecessor{Program: h.Program, conn: c, reader: bufio.NewReaderSize(c, 64), word: word}, nil
}

// Lingering is a predecessor in which requests go on.
type Lingering struct {
	net.Conn // to it
	Said     []byte
}

// still is a connection of which something was read already.
type still struct {
	net.Conn
	reader *bufio.Reader
}

func (s still) Read(b []byte) (int, error) { return s.reader.Read(b) }

// Succeed tells the predecessor to end, and returns when it says that it has let go of everything, or is gone. From here on
// there is no way back: it serves nobody any more who comes. Requests may go on in it: then what it says of them is returned.
func (p *Predecessor) Succeed(ctx context.Context, patience time.Duration) (_ *Lingering, err error) {
	stays := false
	defer func() {
		if !stays {
			p.conn.Close()
		}
	}()
	stop := context.AfterFunc(ctx, func() { p.conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	p.conn.SetDeadline(time.Now().Add(patience))
	if _, err := p.conn.Write([]byte(p.word)); err != nil {
		return nil, fmt.Errorf("take the place of %s: %w", p.Program, err)
	}
	line, err := p.reader.ReadString('\n')
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) { // it was killed: its locks are free now, or will be at once
		return nil, nil
	}
	if length, lingers := strings.CutPrefix(line, wordStill); err == nil && lingers {
		said, err := p.said(length)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			return nil, nil // it is gone, and nothing of it goes on
		}
		p.conn.SetDeadline(time.Time{})
		stays = true
		return &Lingering{Conn: still{p.conn, p.reader}, Said: said}, nil
	}
	if err != nil || line != wordOver {
		return nil, fmt.Errorf("take the place of %s: it has not ended after %s: %w", p.Program, patience, err)
	}
	return nil, nil
}

func (p *Predecessor) said(length string) ([]byte, error) {
	n, err := strconv.ParseUint(strings.TrimSuffix(length, "\n"), 10, 32)
	if err != nil || n > maxSaid {
		return nil, fmt.Errorf("it says %q bytes of what goes on, at most %d are taken", length, maxSaid)
	}
	said := make([]byte, n)
	_, err = io.ReadFull(p.reader, said)
	return said, err
}

// Stay leaves the predecessor where it is: it serves on.
func (p *Predecessor) Stay() { p.conn.Close() }

// at calls f with a path for the socket in dir. Where that is longer than a socket's address may be, it leads through the
// open directory.
func at(dir string, f func(path string) error) error {
	path := filepath.Join(dir, socketName)
	if len(path) < 100 {
		return f(path)
	}
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return f(fmt.Sprintf("/proc/self/fd/%d/%s", d.Fd(), socketName))
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// Freed waits until nobody holds the locks of these files, as a process does until it has ended. A file that is not there is
// free.
func Freed(ctx context.Context, patience time.Duration, paths ...string) error {
	until := time.Now().Add(patience)
	for _, path := range paths {
		for {
			free, err := unlocked(path)
			if err != nil {
				return err
			}
			if free {
				break
			}
			if time.Now().After(until) {
				return fmt.Errorf("wait for the process before: it still holds %s", strings.TrimSpace(path))
			}
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-time.After(2 * time.Millisecond):
			}
		}
	}
	return nil
}

func unlocked(path string) (bool, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return true, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at a lock: %w", err)
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}
