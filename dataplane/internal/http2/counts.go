package http2

import "sync/atomic"

// Codes are all that a connection or a stream ends with, by their numbers (RFC 9113 §7).
var Codes = [...]string{"no_error", "protocol_error", "internal_error", "flow_control_error", "settings_timeout", "stream_closed", "frame_size_error", "refused_stream",
	"cancel", "compression_error", "connect_error", "enhance_your_calm", "inadequate_security", "http_1_1_required"}

// counts are of all connections of a Server, since the start.
type counts struct {
	conns, open atomic.Int64
	away        [len(Codes)]atomic.Int64 // connections that were ended so
	resets      [len(Codes)]atomic.Int64 // streams that were, by this side
	theirs      atomic.Int64             // streams that clients have reset
}

func count(of *[len(Codes)]atomic.Int64, code Code) { of[min(int(code), len(of)-1)].Add(1) }

// Counts of a Server.
type Counts struct {
	Connections, Open int64 // that there were, and are
	Ended, Reset      [len(Codes)]int64
	ResetByClients    int64
}

// Counts since the start.
func (v *Server) Counts() (c Counts) {
	c.Connections, c.Open, c.ResetByClients = v.counts.conns.Load(), v.counts.open.Load(), v.counts.theirs.Load()
	for i := range c.Ended {
		c.Ended[i], c.Reset[i] = v.counts.away[i].Load(), v.counts.resets[i].Load()
	}
	return c
}
