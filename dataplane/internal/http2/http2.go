// Package http2 owns HTTP/2 (RFC 9113, RFC 7541) as a server speaks it: frames, header compression, streams, flow control, and
// what of them is malformed, too much, or too slow.
//
// It never decides what becomes of a request, knows nothing of routes, keys or regions, and never dials. Nothing of it survives
// a crash. A goroutine reads a connection; each request is served on one of the server's, and answers of one connection that
// are ready together leave in one write. A common request costs no memory: what a Stream gives points into buffers that are
// used again, and is good until its Serve returns.
package http2

import (
	"errors"
	"time"
	"unsafe"
)

// Limits of a connection. Those of a request's head are the configuration's.
const (
	MaxStreams   = 250       // requests at a time; one more is refused, and may be sent again
	maxFrame     = 16 << 10  // bytes of a frame's payload, both ways
	streamWindow = 256 << 10 // bytes of a request's body that nobody has read yet
	connWindow   = 1 << 20   // likewise of all of a connection
	queueMost    = 64 << 10  // bytes that wait to be written; whoever has more waits
	queueControl = 256 << 10 // beyond it, with frames that ask for an answer, the client does not read
	fragments    = 64        // CONTINUATION frames of a header block
	readBuffer   = 4 << 10   // of an idle connection; it grows to what a frame may have
	smallBody    = 4 << 10   // of an answer that is gathered before its head leaves
	keptText     = 8 << 10   // bytes of a stream's buffers that are used again
	headsMost    = 2 << 20   // bytes of the heads of a connection's requests that are under way, as they are decompressed
	ignoredMost  = 32        // streams given up here of which frames may still be on their way

	// Frames that bring no request any further (PING, SETTINGS, RST_STREAM, PRIORITY, WINDOW_UPDATE, empty DATA, and those of
	// unknown types) cost one each of an allowance. Answering a request and sending its body earn some.
	allowance       = 1000
	allowanceSecond = 100  // earned by waiting
	allowanceAnswer = 4    // by an answered request
	allowanceBytes  = 512  // of an answer's body earn one
	windowLeast     = 1024 // of a window that costs nothing, where it is given anew for what was sent
	allowancePart   = 2    // by what a handler has written at once: two windows may be given anew for it

	idleTimeout  = 90 * time.Second      // without a request
	headTimeout  = 10 * time.Second      // from a header block's first frame to its last; and for the preface
	quietTimeout = 30 * time.Second      // with requests under way, until the client is asked whether it is there
	pingTimeout  = 30 * time.Second      // for its answer: a phone in a tunnel, or a laptop that slept, comes back within that
	sendTimeout  = 30 * time.Second      // for what a client must take, or give room for, unless the handler sets another
	writeTurn    = 10 * time.Millisecond // of writing what others have queued, for whoever has answered a request
	drainTimeout = time.Second           // for the client to hear that it should go elsewhere
)

// Code says why a stream or a connection ends (RFC 9113 §7).
type Code uint32

// Codes that this package sends.
const (
	NoError          Code = 0
	ProtocolError    Code = 1
	InternalError    Code = 2
	FlowControlError Code = 3
	StreamClosed     Code = 5
	FrameSizeError   Code = 6
	RefusedStream    Code = 7
	CompressionError Code = 9
	EnhanceYourCalm  Code = 11
	Inadequate       Code = 12 // the security of the connection is
	none             Code = 1 << 31
)

// Frames.
const (
	frameData = iota
	frameHeaders
	framePriority
	frameReset
	frameSettings
	framePush
	framePing
	frameGoAway
	frameWindow
	frameContinuation
)

// Flags.
const (
	flagEnd      = 0x1 // END_STREAM; ACK of SETTINGS and PING
	flagHeaders  = 0x4 // END_HEADERS
	flagPadded   = 0x8
	flagPriority = 0x20
)

// Settings.
const (
	settingPush       = 2
	settingStreams    = 3
	settingWindow     = 4
	settingFrame      = 5
	settingList       = 6
	settingPriorities = 9
)

const preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

var (
	errReset  = errors.New("the client has reset the stream")
	errGone   = errors.New("the connection has ended")
	errOver   = errors.New("the request is over")
	errLength = errors.New("the handler writes more than it declared")
)

// view is b as text without a copy, good as long as nobody writes to b.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }
