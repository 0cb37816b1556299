// Package linger owns what goes on between two processes of one edge when the newer has taken the older one's place and the older
// lingers: the requests that it has under way go on there, and whatever has one owner (the spool, the leases, the way to the
// control plane) is the newer one's. Over one connection rows and questions for units go to the owner, and the table comes
// back. See DESIGN.md.
//
// A row is in the owner's spool before Append returns, or it is not counted and an error says so: nothing is sent twice, so nothing
// can be counted twice. When the connection ends, both sides know that the other does nothing for them any more: the older
// process ends its requests, the newer takes back the units they held. It keeps nothing on disk. A Link's and a Keeper's methods
// may be called at once, Run once.
package linger

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"syscall"
	"time"

	"bailiwick/dataplane/internal/ferry"
	"bailiwick/dataplane/internal/quota"
)

const (
	// DefaultTime is how long requests may go on in a process whose place was taken, unless the edge is told otherwise; TimeMost
	// how long it may be told.
	DefaultTime = 10 * time.Minute
	TimeMost    = 24 * time.Hour

	// MostBefore is how many processes of an edge may linger at once: where there are as many, the oldest ends when another takeover
	// comes.
	MostBefore = 3

	answerTime = 10 * time.Second // for the owner to keep a row
	writeTime  = 10 * time.Second // for the other to take a frame
	tellEvery  = time.Second      // what is left is said, and how fresh the table is
	silence    = 15 * time.Second // nothing came of the other for so long: it is stuck, or stopped
	maxFrame   = 16 << 20         // bytes; a part of a table is the longest
	maxBehind  = 256 << 20        // bytes of tables that wait for the older process to take them, and there to be put in force
	packetsMax = 1024             // that wait for the older process; what comes beyond is lost, as on any network
)

// Said is what a process says of itself to the one that takes its place, when requests go on.
type Said struct {
	Version int             `json:"version"` // of what passes on the connection
	Epoch   uint64          `json:"epoch"`   // of its spool, which is closed
	Sealed  uint64          `json:"sealed"`  // its last block
	Holding []quota.Ask     `json:"holding,omitempty"`
	Unheard []quota.Pending `json:"unheard,omitempty"` // older epochs whose units it adopted, of which the ledger may not have heard
	Marks   []ferry.Mark    `json:"marks,omitempty"`   // of connections over QUIC: its own, and those of processes before it
}

// version grows when an older program would lose something of what a newer one says: a field of a row that is billed by, for one.
const version = 1

// Encode is s for Decode.
func (s *Said) Encode() ([]byte, error) {
	s.Version = version
	return json.Marshal(s)
}

// Decode reads what Encode wrote.
func Decode(raw []byte) (*Said, error) {
	s := &Said{}
	if err := json.Unmarshal(raw, s); err != nil {
		return nil, fmt.Errorf("read what the process before holds: %w", err)
	}
	if s.Version > version {
		return nil, fmt.Errorf("read what the process before holds: it is of a newer program, whose version is %d and not up to %d", s.Version, version)
	}
	return s, nil
}

// Kinds of frames. The numbers are what two versions of the program agree on.
const (
	frameRow    byte = 1  // older to newer: a usage row, to be answered
	frameAsk    byte = 2  // a quota exchange, to be answered
	frameLeft   byte = 3  // what is left of it
	frameKept   byte = 4  // newer to older: what became of a row
	frameStates byte = 5  // the answer to an exchange
	frameTable  byte = 6  // one signed part of an update that is in force
	frameFresh  byte = 7  // when a control node last confirmed the table
	frameEnd    byte = 8  // the owner is about to end
	framePacket byte = 9  // of a connection over QUIC that is the older one's, as package ferry has it
	frameHeed   byte = 10 // older to newer: what its relays do
	frameLent   byte = 11 // newer to older: what they go by
	frameHeader      = 5
)

var errFrame = errors.New("a frame that cannot be")

// wire is one end of the connection.
type wire struct {
	net.Conn
	turn chan struct{} // holds one: whoever has it writes. No mutex, since it is held while the other takes what is written
	buf  []byte        // of who writes
}

func newWire(c net.Conn) wire {
	w := wire{Conn: c, turn: make(chan struct{}, 1)}
	w.turn <- struct{}{}
	return w
}

// send writes one frame. The first error is the last word: the connection is shut, here or by the other.
func (w *wire) send(kind byte, payload ...[]byte) error {
	n := 0
	for _, p := range payload {
		n += len(p)
	}
	if n > maxFrame {
		return fmt.Errorf("send a frame of %d bytes: at most %d", n, maxFrame)
	}
	<-w.turn
	defer func() { w.turn <- struct{}{} }()
	w.buf = append(binary.BigEndian.AppendUint32(w.buf[:0], uint32(n)), kind)
	for _, p := range payload {
		w.buf = append(w.buf, p...)
	}
	w.SetWriteDeadline(time.Now().Add(writeTime))
	_, err := w.Write(w.buf)
	if cap(w.buf) > 1<<20 {
		w.buf = nil
	}
	if err != nil && !hungUp(err) {
		w.Close()
	}
	return err
}

// hungUp says whether what was written found nobody at the other end. What that one has said before is still to be read.
func hungUp(err error) bool {
	return errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, io.ErrClosedPipe)
}

func (w *wire) sendJSON(kind byte, what any) error {
	raw, err := json.Marshal(what)
	if err != nil {
		return err
	}
	return w.send(kind, raw)
}

// receive reads one frame, into buf if it fits.
func (w *wire) receive(r io.Reader, buf []byte) (kind byte, payload []byte, err error) {
	var head [frameHeader]byte
	w.SetReadDeadline(time.Now().Add(silence))
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return 0, nil, err
	}
	n := binary.BigEndian.Uint32(head[:])
	if n > maxFrame {
		return 0, nil, fmt.Errorf("%w: %d bytes", errFrame, n)
	}
	if int(n) > cap(buf) {
		buf = make([]byte, n)
	}
	_, err = io.ReadFull(r, buf[:n])
	return head[4], buf[:n], err
}

type rowKept struct {
	N     uint64 `json:"n"`
	Error string `json:"error,omitempty"`
}

type left struct {
	Connections int64 `json:"connections"`
	Before      int   `json:"before"` // processes that linger behind it
}

// ending is what a process is told that is to end what goes on in it.
type ending struct {
	Within time.Duration `json:"within"`
	Oldest bool          `json:"oldest,omitempty"` // not it, but the oldest of those that linger behind it, if there are any
}
