// Package loop owns TCP connections that one goroutine serves for many: it hears from the kernel, by an epoll of its own, on which of
// them something has come, and tells their owners one after the other.
package loop

// Event is what happened on a connection.
type Event uint32

const (
	In   Event = 0x1    // bytes came
	Out  Event = 0x4    // there is room again
	Gone Event = 0x2018 // its other end has ended what it sends, or all
)

// Owner is who a connection belongs to while it is its loop's. Ready is called on the loop's goroutine, and must not block. When
// it returns the connection rests (Conn.Rest), is manned (Conn.Man), closed, or still the loop's.
type Owner interface{ Ready(e Event) }
