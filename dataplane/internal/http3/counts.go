package http3

import "sync/atomic"

// Codes are all that a connection or a stream ends with here (RFC 9114 §8.1, RFC 9204 §6), numbers those that they have.
var (
	Codes   = [...]string{"no_error", "internal_error", "stream_creation_error", "closed_critical_stream", "frame_unexpected", "frame_error", "excessive_load", "id_error", "settings_error", "missing_settings", "request_rejected", "request_cancelled", "request_incomplete", "message_error", "decompression_failed", "encoder_stream_error", "decoder_stream_error"}
	numbers = [len(Codes)]Code{NoError, InternalError, StreamCreationError, ClosedCriticalStream, FrameUnexpected, FrameError, ExcessiveLoad, IDError, SettingsError, MissingSettings, RequestRejected, RequestCancelled, RequestIncomplete, MessageError, DecompressionFailed, EncoderStreamError, DecoderStreamError}
)

// counts are of all connections of a Server, since the start.
type counts struct {
	conns, open   atomic.Int64
	ended, resets [len(Codes)]atomic.Int64
}

func count(of *[len(Codes)]atomic.Int64, code Code) {
	for i, c := range numbers {
		if c == code {
			of[i].Add(1)
			return
		}
	}
}

// Counts of a Server: connections that there were and are, those that this side ended, and requests that it broke off.
type Counts struct {
	Connections, Open int64
	Ended, Reset      [len(Codes)]int64
}

// Counts since the start.
func (v *Server) Counts() (c Counts) {
	c.Connections, c.Open = v.counts.conns.Load(), v.counts.open.Load()
	for i := range c.Ended {
		c.Ended[i], c.Reset[i] = v.counts.ended[i].Load(), v.counts.resets[i].Load()
	}
	return c
}
