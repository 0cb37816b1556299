// Package loop owns TCP connections that one goroutine serves for many. It hears from the kernel, by an epoll of its own, on which of
// them something has come, and tells their owners one after the other, who answer at once and go on to the next: no goroutine is
// woken for one request, and what that uses is still in the processor's cache for the next one.
//
// A connection is always somebody's: of goroutines, for which it is a net.Conn like any other; of nobody, while it rests; or of its
// loop. It goes from one to the other in one step, so that whoever has it needs no lock. It decides nothing about requests, and
// nothing of it survives a crash. Each loop has one goroutine, Run, which waits in Go's poller while nothing happens, so that a loop
// that is idle costs nothing, and all others get their turn while it is not. On systems other than Linux there is none.
package loop

// Event is what happened on a connection.
type Event uint32

const (
	In   Event = 0x1    // bytes came
	Out  Event = 0x4    // there is room again
	Gone Event = 0x2018 // its other end has ended what it sends, or all
)

// Owner is who a connection belongs to. Ready is called on the loop's goroutine, and must not block: what was nobody's is the loop's
// from then on, until it rests (Conn.Rest) or is handed to goroutines (Conn.Man). What is told once is not told again: read until
// there is no more.
type Owner interface{ Ready(e Event) }
