// Package correction owns the form of what operators book by hand: signed
// quantities on cells of one customer, with who, when and why, and the zone's
// signature over all of it.
//
// It is pure: no clock, no disk, no network; everything may be called at once.
// It never decides whether a correction may be booked (adminapi and ledger do).
// What is stored survives as the JSON below, over which the signature is: a field
// is only ever added with omitempty, or no old signature would verify any more.
package correction

import (
	"crypto/ed25519"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"slices"
	"strings"

	"bailiwick/shared/usage"
)

// Kinds.
const (
	Booked   = "correction" // by an operator
	Imported = "import"     // by a job of a named producer: backfill
)

// Limits.
const (
	MaxRows     = 10_000
	MaxQuantity = 1_000_000_000_000_000 // of one row, either sign: sums of all rows ever booked on a cell stay far from 2^63
	MaxReason   = 512                   // bytes
	MaxBytes    = 4 << 20               // encoded
)

// Row is one signed quantity on one cell.
type Row struct {
	Start        int64  `json:"start"` // unix seconds, of a cell
	Subscription string `json:"subscription,omitempty"`
	Plan         string `json:"plan,omitempty"`
	Product      string `json:"product,omitempty"`
	API          string `json:"api"`
	Route        string `json:"route,omitempty"`
	ServedRegion string `json:"served_region,omitempty"`
	Outcome      string `json:"outcome"`
	Requests     int64  `json:"requests,omitempty"`
	Units        int64  `json:"units,omitempty"`
}

// Correction is one booking. (Producer, RequestID) names it for ever.
type Correction struct {
	Producer  string `json:"producer"`
	RequestID string `json:"request_id"`
	Kind      string `json:"kind"`
	Customer  string `json:"customer"`
	Reason    string `json:"reason"`
	By        string `json:"by"`                 // operator
	Node      string `json:"node"`               // control node that authorised him
	AtMS      int64  `json:"at_ms"`              // unix
	Corrects  string `json:"corrects,omitempty"` // id of what it undoes
	Rows      []Row  `json:"rows"`
	Signature []byte `json:"signature,omitempty"` // Ed25519, by the zone, over the rest
}

// ID is producer/request id. A producer holds no slash.
func (c *Correction) ID() string { return c.Producer + "/" + c.RequestID }

// Validate judges the correction by itself.
func (c *Correction) Validate() error {
	switch {
	case c.Producer == "" || len(c.Producer) > 64 || strings.ContainsAny(c.Producer, "/\x00"):
		return errors.New("correction: the producer's name is blank, longer than 64 bytes, or holds a slash")
	case c.RequestID == "" || len(c.RequestID) > 64 || strings.IndexByte(c.RequestID, 0) >= 0:
		return errors.New("correction: the request id is blank or longer than 64 bytes")
	case c.Kind != Booked && c.Kind != Imported:
		return fmt.Errorf("correction: kind %q is neither %s nor %s", c.Kind, Booked, Imported)
	case c.Customer == "" || len(c.Customer) > 256 || strings.IndexByte(c.Customer, 0) >= 0:
		return errors.New("correction: the customer's name is blank or too long")
	case c.Reason == "" || len(c.Reason) > MaxReason:
		return fmt.Errorf("correction: a reason of 1 to %d bytes is required", MaxReason)
	case c.AtMS <= 0:
		return errors.New("correction: it has no time")
	case len(c.Rows) == 0 || len(c.Rows) > MaxRows:
		return fmt.Errorf("correction: it holds %d rows, 1 to %d are allowed", len(c.Rows), MaxRows)
	}
	for i := range c.Rows {
		r := &c.Rows[i]
		if _, err := usage.ParseOutcome(r.Outcome); err != nil {
			return fmt.Errorf("correction: row %d: %w", i+1, err)
		}
		if r.Start%usage.CellSeconds != 0 {
			return fmt.Errorf("correction: row %d does not start with a cell", i+1)
		}
		if r.Requests == 0 && r.Units == 0 {
			return fmt.Errorf("correction: row %d changes nothing", i+1)
		}
		if abs(r.Requests) > MaxQuantity || abs(r.Units) > MaxQuantity {
			return fmt.Errorf("correction: row %d: a quantity is beyond %d", i+1, int64(MaxQuantity))
		}
	}
	return nil
}

func abs(v int64) int64 {
	switch {
	case v == math.MinInt64:
		return math.MaxInt64
	case v < 0:
		return -v
	}
	return v
}

// Opposite is the rows that take c's effect back.
func (c *Correction) Opposite() []Row {
	rows := slices.Clone(c.Rows)
	for i := range rows {
		rows[i].Requests, rows[i].Units = -rows[i].Requests, -rows[i].Units
	}
	return rows
}

// Same says whether two corrections mean the same, whoever signed them when.
func (c *Correction) Same(o *Correction) bool {
	return c.ID() == o.ID() && c.Kind == o.Kind && c.Customer == o.Customer && c.Corrects == o.Corrects && slices.Equal(c.Rows, o.Rows)
}

// Encode is how a correction travels and rests.
func (c *Correction) Encode() ([]byte, error) {
	b, err := json.Marshal(c)
	if err == nil && len(b) > MaxBytes {
		err = fmt.Errorf("encode correction: it takes %d bytes, at most %d are allowed: split it", len(b), MaxBytes)
	}
	return b, err
}

// Decode reads what Encode wrote.
func Decode(b []byte) (*Correction, error) {
	c := new(Correction)
	if err := json.Unmarshal(b, c); err != nil {
		return nil, fmt.Errorf("decode correction: %w", err)
	}
	return c, c.Validate()
}

// signed is what the signature covers: a domain word, so that no other signature of the zone's key fits, and
// everything but the signature.
func (c *Correction) signed() ([]byte, error) {
	bare := *c
	bare.Signature = nil
	b, err := bare.Encode()
	return append([]byte("bailiwick usage correction 1\x00"), b...), err
}

// Sign signs with the zone's key.
func (c *Correction) Sign(key ed25519.PrivateKey) error {
	b, err := c.signed()
	if err != nil {
		return err
	}
	c.Signature = ed25519.Sign(key, b)
	return nil
}

// Verify says whether the zone whose key this is authorised exactly this.
func (c *Correction) Verify(key ed25519.PublicKey) bool {
	b, err := c.signed()
	return err == nil && len(key) == ed25519.PublicKeySize && len(c.Signature) == ed25519.SignatureSize && ed25519.Verify(key, b, c.Signature)
}
