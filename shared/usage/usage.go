// Package usage owns the words of the road up: a row (one finished request), a
// cell (what rows are summed by), a block (the unit of durability, transport and
// counting once), its hash chain and its bytes.
//
// It is pure: no clock, no disk, no network, no state, so nothing of it survives
// a crash and everything may be called at once. It never decides what is
// billed. Both planes import it, because two differing copies of this code would
// be two differing bills.
package usage

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
	"unicode/utf8"
)

// Outcome says how a request with a valid key ended, and who is to blame.
type Outcome uint8

// The numbers are part of the wire format and of what ledgers have on disk.
const (
	OutcomeSuccess       Outcome = 1 // 2xx or 3xx from the upstream
	OutcomeClientError   Outcome = 2 // 4xx from the upstream
	OutcomeUpstreamError Outcome = 3 // 5xx from the upstream
	OutcomeAborted       Outcome = 4 // the client went away, or its own time was over, or the upstream died mid-body
	OutcomeLimited       Outcome = 5 // 429 by the edge
	OutcomeRefused       Outcome = 6 // another 4xx by the edge: 402, 403, 413, …
	OutcomeUnserved      Outcome = 7 // 502, 503, 504 by the edge
)

var outcomeNames = [...]string{
	OutcomeSuccess: "success", OutcomeClientError: "client_error", OutcomeUpstreamError: "upstream_error",
	OutcomeAborted: "aborted", OutcomeLimited: "limited", OutcomeRefused: "refused", OutcomeUnserved: "unserved",
}

// String is the stable lower-case name; "outcome(N)" for a number without one.
func (o Outcome) String() string {
	if o.Valid() {
		return outcomeNames[o]
	}
	return fmt.Sprintf("outcome(%d)", uint8(o))
}

// Valid says whether o is one of the outcomes above.
func (o Outcome) Valid() bool { return o >= OutcomeSuccess && int(o) < len(outcomeNames) }

// ParseOutcome is the inverse of String for valid outcomes.
func ParseOutcome(s string) (Outcome, error) {
	for o, name := range outcomeNames {
		if name == s && s != "" {
			return Outcome(o), nil
		}
	}
	return 0, fmt.Errorf("parse outcome %q: want one of %s", s, strings.Join(outcomeNames[1:], ", "))
}

// OutcomeOf is the outcome of a whole answer that an upstream gave.
func OutcomeOf(status int) Outcome {
	switch {
	case status < 400:
		return OutcomeSuccess
	case status < 500:
		return OutcomeClientError
	}
	return OutcomeUpstreamError
}

// CellSeconds is the length of a cell. Every time zone's offset in use is a
// multiple of 15 minutes, so any local midnight is the edge of a cell.
const CellSeconds = 900

// MaxString bounds each text of a row, in bytes.
const MaxString = 256

// Row is one finished request, or the interim bytes of one that goes on.
type Row struct {
	RequestID [16]byte // of the request; its interim rows carry the same
	EndUnixMS int64    // when it finished; the spool stamps it

	// What the request was admitted under: the plan's revision is stamped at
	// admission, so that usage belongs to the plan that was enforced.
	Customer, Subscription, Plan string
	PlanRev                      uint64
	Product, API, Route          string

	Outcome      Outcome
	ServedRegion string // whose upstream answered; blank if none did

	// Period is the start (unix s) of the quota period whose lease the units were taken from, stamped at
	// admission; PeriodRolling or PeriodPrepaid where periods have no start; 0: the plan has no quota, or
	// no unit was taken.
	Period int64

	Requests  int64 // 1 in the final row, 0 in an interim one
	Units     int64 // what is billed
	BytesIn   int64 // bodies, since the row before
	BytesOut  int64
	LatencyUS int64 // of the whole request; not summed

	// What only the detail part keeps.
	KeyID      string
	Status     uint16 // answered to the client
	UpstreamUS int64  // of LatencyUS, waiting for upstreams
	Attempts   uint8  // at upstreams, relays included
	Flags      Flags
	Actor      uint64 // end user, pseudonymous under a key of the region and month; 0: not known
	Address    uint64 // client address, pseudonymous under a key of the region and day; 0: not kept
}

// Flags of a row.
type Flags uint8

// The numbers are part of the wire format.
const (
	FlagRelayed      Flags = 1 << iota // another region's upstream was asked
	FlagRateLimited                    // refused by the plan's rate
	FlagQuotaLimited                   // refused by the quota
	FlagCached                         // answered from the cache
	FlagStreamed                       // it had interim rows
)

// Periods that have no start. No calendar period starts in the first seconds of 1970.
const (
	PeriodRolling int64 = 1
	PeriodPrepaid int64 = 2
)

// Cell is what rows are summed by. Comparable.
type Cell struct {
	Start                        int64 // unix seconds, a multiple of CellSeconds
	Customer, Subscription, Plan string
	PlanRev                      uint64
	Product, API, Route          string
	Outcome                      Outcome
	ServedRegion                 string
	Period                       int64 // as in Row
}

// Sums is what a cell holds: exact integers, none negative.
type Sums struct{ Requests, Units, BytesIn, BytesOut int64 }

// CellStart is the start of the cell in which an instant lies, before 1970 too.
func CellStart(unixMS int64) int64 {
	q := unixMS / (CellSeconds * 1000)
	if unixMS%(CellSeconds*1000) < 0 {
		q--
	}
	return q * CellSeconds
}

// Cell is where the row is counted.
func (r *Row) Cell() Cell {
	return Cell{
		Start: CellStart(r.EndUnixMS), Customer: r.Customer, Subscription: r.Subscription, Plan: r.Plan, PlanRev: r.PlanRev,
		Product: r.Product, API: r.API, Route: r.Route, Outcome: r.Outcome, ServedRegion: r.ServedRegion, Period: r.Period,
	}
}

// Sums is what the row adds to its cell.
func (r *Row) Sums() Sums {
	return Sums{Requests: r.Requests, Units: r.Units, BytesIn: r.BytesIn, BytesOut: r.BytesOut}
}

// Check says why no ledger would count the row. A producer asks before it keeps
// the row: one bad row would have its whole block refused, and all after it.
// It does not allocate unless it refuses.
func (r *Row) Check() error {
	if r.LatencyUS < 0 || r.UpstreamUS < 0 {
		return errors.New("usage row: a latency is negative")
	}
	if r.Period < 0 {
		return errPeriod
	}
	for _, s := range [...]string{r.Subscription, r.Plan, r.Product, r.API, r.Route, r.ServedRegion, r.KeyID} {
		if !textOK(s) {
			return errText
		}
	}
	return checkRest(r.Customer, r.Outcome, r.Sums())
}

func checkRest(customer string, o Outcome, s Sums) error {
	switch {
	case customer == "":
		return errors.New("usage: customer is blank")
	case !textOK(customer):
		return errText
	case !o.Valid():
		return fmt.Errorf("usage: %v is no outcome", o)
	case s.Requests < 0 || s.Units < 0 || s.BytesIn < 0 || s.BytesOut < 0:
		return errors.New("usage: a sum is negative")
	}
	return nil
}

var errPeriod = errors.New("usage: a period begins before 1970")

// The text itself is not in the error: it may name a person.
var errText = fmt.Errorf("usage: a text is longer than %d bytes, not UTF-8, or holds a zero byte", MaxString)

func textOK(s string) bool {
	if len(s) > MaxString {
		return false
	}
	const ones, highs = 0x0101010101010101, 0x8080808080808080
	i := 0
	for ; i+8 <= len(s); i += 8 { // no byte of eight is zero, or beyond ASCII
		w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 | uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		if ((w-ones)|w)&highs != 0 {
			break
		}
	}
	for ; i < len(s); i++ {
		if c := s[i]; c == 0 || c >= utf8.RuneSelf {
			return c != 0 && utf8.ValidString(s) && strings.IndexByte(s, 0) < 0
		}
	}
	return true
}

// Add sums two. It saturates: hostile or absurd sums must not wrap around into
// negative ones. For numbers that are not negative min(a+b, max) is associative
// and commutative, so the order of adding does not matter.
func (s Sums) Add(o Sums) Sums {
	return Sums{add(s.Requests, o.Requests), add(s.Units, o.Units), add(s.BytesIn, o.BytesIn), add(s.BytesOut, o.BytesOut)}
}

func add(a, b int64) int64 {
	if s := a + b; s >= 0 {
		return s
	}
	return math.MaxInt64
}

// Block is a sealed piece of an edge's usage. (Edge, Epoch, Seq) names it for
// ever, and Hash says what it is.
type Block struct {
	Edge       string
	Epoch, Seq uint64   // Seq counts from 1 in each epoch
	Prev       [32]byte // Hash of Seq-1; zeros for Seq 1
	Payload    []byte   // Encode
	Hash       [32]byte // HashBlock
}

// NewBlock chains a payload onto the block with number seq-1.
func NewBlock(edge string, epoch, seq uint64, prev [32]byte, payload []byte) Block {
	return Block{edge, epoch, seq, prev, payload, HashBlock(edge, epoch, seq, prev, payload)}
}

// Intact says whether Hash is the hash of the rest.
func (b *Block) Intact() bool {
	return b.Hash == HashBlock(b.Edge, b.Epoch, b.Seq, b.Prev, b.Payload)
}

// HashBlock is SHA-256 over a domain word and all of a block; every part of
// varying length is preceded by its length, so that no two blocks share input.
func HashBlock(edge string, epoch, seq uint64, prev [32]byte, payload []byte) (sum [32]byte) {
	h := sha256.New()
	b := append(make([]byte, 0, 128+len(edge)), "bailiwick usage block 1\x00"...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(edge)))
	b = append(b, edge...)
	b = binary.BigEndian.AppendUint64(b, epoch)
	b = binary.BigEndian.AppendUint64(b, seq)
	b = append(b, prev[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(len(payload)))
	h.Write(b)
	h.Write(payload)
	h.Sum(sum[:0])
	return sum
}
