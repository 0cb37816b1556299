package proxy

import (
	"io"
	"sync/atomic"
)

// Kept is a body kept to be sent again, a reader of it as a transport has one, and its end.
func Kept(data []byte, room *atomic.Int64) (r io.Reader, wipe func()) {
	b := &body{kept: data, length: int64(len(data))}
	room.Add(b.length)
	return b.reader(), func() { b.wipe(room) }
}
