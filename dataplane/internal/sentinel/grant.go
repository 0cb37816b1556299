package sentinel

import (
	"crypto/ed25519"
	"errors"
	"time"

	"google.golang.org/protobuf/encoding/protowire"
)

// grant is a grant as this package reads it, field by field from the wire: a mistake in how the generated types
// are used is not made twice.
type grant struct {
	payload, signature []byte

	id, zone, edge, from, to string
	policies, peers          map[string]bool
	catalog, store           uint64 // epochs
	ttl, offline             time.Duration

	asked time.Time // by this process's clock
	grace time.Time // alive until then in any case: whoever holds it is only now being told otherwise
}

var errGrant = errors.New("sentinel: the grant does not parse")

// What the fields of messages are, by number: n is a number, b is text, bytes or a message.
const (
	signedKinds = "-bb"
	grantKinds  = "-bbbbbbnnnnnnnbb"
	peerKinds   = "-bb"
)

// fields calls f with each field of a message: n is the value of a number, b that of text, bytes or a message. A field that is not
// what its number is ends it: other readers pass it over, and would read another grant.
func fields(msg []byte, kinds string, f func(num protowire.Number, n uint64, b []byte)) error {
	for len(msg) > 0 {
		num, typ, size := protowire.ConsumeTag(msg)
		if size < 0 {
			return errGrant
		}
		msg = msg[size:]
		if int(num) < len(kinds) && (kinds[num] == 'n') != (typ == protowire.VarintType) {
			return errGrant
		}
		switch typ {
		case protowire.VarintType:
			n, size := protowire.ConsumeVarint(msg)
			if size < 0 {
				return errGrant
			}
			f(num, n, nil)
			msg = msg[size:]
		case protowire.BytesType:
			b, size := protowire.ConsumeBytes(msg)
			if size < 0 {
				return errGrant
			}
			f(num, 0, b)
			msg = msg[size:]
		default:
			return errGrant
		}
	}
	return nil
}

// parse reads a SignedGrant. It verifies nothing.
func parse(signed []byte) (*grant, error) {
	g := &grant{policies: map[string]bool{}, peers: map[string]bool{}}
	err := fields(signed, signedKinds, func(num protowire.Number, _ uint64, b []byte) {
		switch num {
		case 1:
			g.payload = b
		case 2:
			g.signature = b
		}
	})
	if err != nil || len(g.payload) == 0 {
		return nil, errGrant
	}
	var inner error
	err = fields(g.payload, grantKinds, func(num protowire.Number, n uint64, b []byte) {
		switch num {
		case 1:
			g.id = string(b)
		case 2:
			g.zone = string(b)
		case 3:
			g.edge = string(b)
		case 4:
			g.from = string(b)
		case 5:
			g.to = string(b)
		case 6:
			g.policies[string(b)] = true
		case 7:
			g.catalog = n
		case 9:
			g.store = n
		case 12:
			g.ttl = lifetime(n)
		case 13:
			g.offline = lifetime(n)
		case 14:
			inner = errors.Join(inner, fields(b, peerKinds, func(num protowire.Number, _ uint64, b []byte) {
				if num == 1 {
					g.peers[string(b)] = true
				}
			}))
		}
	})
	if err != nil || inner != nil || g.id == "" {
		return nil, errGrant
	}
	return g, nil
}

// lifetime is bounded as failover's is. What is below zero is none, and not the longest there is.
func lifetime(ms uint64) time.Duration {
	const most = 30 * 24 * time.Hour
	return time.Duration(min(max(int64(ms), 0), most.Milliseconds())) * time.Millisecond
}

// Answered notes what the zone answered to a question for grants: each as it came on the wire, and when it was
// asked for. A grant that never came this way is none.
func (s *Sentinel) Answered(asked time.Time, signed [][]byte) {
	s.mu.Lock()
	s.read()
	keys := s.now.keys
	s.mu.Unlock()
	var good []*grant
	for _, raw := range signed {
		g, err := parse(raw)
		if err != nil {
			continue
		}
		key := keys[g.zone]
		if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte("bailiwick-grant/1\n"), g.payload...), g.signature) {
			continue
		}
		g.asked = asked
		good = append(good, g)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, g := range s.grants { // the newest answer says how long a pair may go unasked
		if s.lasting(g, now) { // by grace alone it would never end where answers come fast
			g.grace = now.Add(settle)
		}
		g.offline = 0
	}
	s.away = false
	for _, g := range good {
		if s.grants[g.id] == nil {
			s.order = append(s.order, g.id)
		}
		s.grants[g.id] = g
	}
	for len(s.order) > 0 && (len(s.order) > maxGrants || s.over(s.grants[s.order[0]], now)) {
		delete(s.grants, s.order[0])
		s.order = s.order[1:]
	}
	s.heard = now
}

// Silent notes that the zone did not answer: offline lifetimes count.
func (s *Sentinel) Silent() {
	s.mu.Lock()
	s.away = true
	s.mu.Unlock()
}

// alive says whether a grant still lasts, with mu held.
func (s *Sentinel) alive(g *grant, now time.Time) bool {
	return s.lasting(g, now) || now.Before(g.grace)
}

// lasting says whether its lifetime has not ended, with mu held.
func (s *Sentinel) lasting(g *grant, now time.Time) bool {
	lasts := g.ttl
	if s.away {
		lasts = max(lasts, g.offline)
	}
	age := now.Sub(g.asked)
	return age >= 0 && age < lasts+slack
}

// over says whether a grant had ended at the last answer already, with mu held: one that has ended since may be asked for by
// who checked it before.
func (s *Sentinel) over(g *grant, now time.Time) bool {
	return !s.alive(g, now) && g.asked.Before(s.heard) && !s.alive(g, s.heard)
}
