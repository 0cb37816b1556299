package edgetls

import "time"

// Rotation is the keys of one host, as they follow each other.
type Rotation struct{ k ticketKeys }

// At are the keys under scope at now.
func (r *Rotation) At(scope string, now time.Time) [][32]byte {
	r.k = r.k.next(scope, now)
	return r.k.keys
}
