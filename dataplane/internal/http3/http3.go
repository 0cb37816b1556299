// Package http3 owns HTTP/3 (RFC 9114, RFC 9204) as a server speaks it over QUIC's streams: frames, field compression without a
// dynamic table, control streams, and what of them is malformed, too much, or too slow.
//
// It never decides what becomes of a request, knows nothing of routes, keys or regions, and never dials; packets, loss and
// encryption are quic-go's. Nothing of it survives a crash. One goroutine takes a connection's requests, each is served on
// another of the server's, and one reads each of the client's control streams. A common request costs no memory of this
// package's: what a Stream gives points into buffers that are used again, and is good until its serving ends.
package http3

import (
	"errors"
	"time"
	"unsafe"
)

// Limits of a connection. Those of a request's head are the configuration's.
const (
	MaxStreams   = 250       // requests at a time, also those that the client has taken back but that still take work
	MaxControl   = 16        // streams of one direction that a client may have open; three are needed
	StreamWindow = 256 << 10 // bytes of a request's body that nobody has read yet
	ConnWindow   = 1 << 20   // likewise of all of a connection
	headsMost    = 2 << 20   // bytes of the heads and trailers of a connection's requests that are under way, as they come if they are long and as they are decompressed
	settingsMost = 4 << 10   // bytes of the client's SETTINGS
	readBuffer   = 2 << 10   // of a stream; it grows to what a head may have
	chunk        = 16 << 10  // bytes of an answer's body that go into one frame
	smallBody    = 4 << 10   // of an answer that is gathered before its head leaves
	keptText     = 8 << 10   // bytes of a stream's buffers that are used again

	// What brings no request any further (requests that are taken back, malformed or never whole, empty DATA, frames and streams
	// of unknown types and what is in them, all on control streams) costs an allowance. Answering a request earns some.
	allowance       = 1000
	allowanceSecond = 100 // earned by waiting
	allowanceAnswer = 4   // by an answered request
	allowanceBytes  = 512 // of what is passed over cost one

	IdleTimeout  = 90 * time.Second       // without a request, noticed within a third of it
	headTimeout  = 10 * time.Second       // from the opening of a stream to the last byte of its head
	bodyPatience = 10 * time.Millisecond  // for the rest of a small body, before the request is no common one
	sendTimeout  = 30 * time.Second       // for what a client must take, or give room for, unless the handler sets another
	drainLeast   = 100 * time.Millisecond // four round trips, for the client to hear that it should go elsewhere, and to get the last answer
	drainMost    = time.Second            // of them, at most
)

// Code says why a stream or a connection ends (RFC 9114 §8.1, RFC 9204 §6).
type Code uint64

// Codes that this package sends.
const (
	NoError              Code = 0x100
	InternalError        Code = 0x102
	StreamCreationError  Code = 0x103
	ClosedCriticalStream Code = 0x104
	FrameUnexpected      Code = 0x105
	FrameError           Code = 0x106
	ExcessiveLoad        Code = 0x107
	IDError              Code = 0x108
	SettingsError        Code = 0x109
	MissingSettings      Code = 0x10a
	RequestRejected      Code = 0x10b // it was not looked at, and may be sent again
	RequestCancelled     Code = 0x10c
	RequestIncomplete    Code = 0x10d
	MessageError         Code = 0x10e
	DecompressionFailed  Code = 0x200
	EncoderStreamError   Code = 0x201
	DecoderStreamError   Code = 0x202
)

// Frames.
const (
	frameData     = 0x0
	frameHeaders  = 0x1
	frameCancel   = 0x3
	frameSettings = 0x4
	framePush     = 0x5
	frameGoAway   = 0x7
	frameMaxPush  = 0xd
)

// reserved says whether a type of frames is one of HTTP/2's that has no place here (RFC 9114 §7.2.8).
func reserved(kind uint64) bool { return kind == 0x2 || kind == 0x6 || kind == 0x8 || kind == 0x9 }

// Streams of one direction.
const (
	streamControl = 0x0
	streamPush    = 0x1
	streamEncoder = 0x2
	streamDecoder = 0x3
)

const settingSection = 0x6 // bytes of a head

var (
	errReset     = errors.New("the client has reset the stream")
	errOver      = errors.New("the request is over")
	errMalformed = errors.New("the request is malformed")
	errBroken    = errors.New("the connection ends")
)

// view is b as text without a copy, good as long as nobody writes to b.
func view(b []byte) string { return unsafe.String(unsafe.SliceData(b), len(b)) }

// varint reads a number of QUIC's (RFC 9000 §16); n: how long it is, 0 if it is not all here.
func varint(b []byte) (v uint64, n int) {
	if len(b) == 0 {
		return 0, 0
	}
	n = 1 << (b[0] >> 6)
	if len(b) < n {
		return 0, 0
	}
	v = uint64(b[0] & 0x3f)
	for _, c := range b[1:n] {
		v = v<<8 | uint64(c)
	}
	return v, n
}

// appendVarint writes a number of QUIC's.
func appendVarint(b []byte, v uint64) []byte {
	switch {
	case v < 1<<6:
		return append(b, byte(v))
	case v < 1<<14:
		return append(b, 0x40|byte(v>>8), byte(v))
	case v < 1<<30:
		return append(b, 0x80|byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
	}
	return append(b, 0xc0|byte(v>>56), byte(v>>48), byte(v>>40), byte(v>>32), byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

func appendFrame(b []byte, kind byte, length int) []byte {
	return appendVarint(append(b, kind), uint64(length))
}
