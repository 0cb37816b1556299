// Package erasure owns the statement of what was erased of a customer: its words, its bytes and its signature.
//
// It is pure and keeps nothing; it erases nothing itself (adminapi does). Both the node that signs and the operator
// who checks a statement offline use it. Every function may be called at once.
package erasure

import (
	"crypto/ed25519"
	"encoding/json"
	"fmt"
	"time"

	"bailiwick/controlplane/internal/model"
)

// Format names the form of a statement.
const Format = "bailiwick-erasure/1"

// prefix is signed before a statement, so that the signature is good for nothing else.
const prefix = Format + "\n"

// Statement says what was erased, what stays and why. It is signed as the bytes it was written in.
type Statement struct {
	Format    string    `json:"format"`
	Zone      string    `json:"zone"`
	Customer  string    `json:"customer"`
	Reason    string    `json:"reason"`
	By        string    `json:"by"` // operator
	ErasedAt  time.Time `json:"erased_at"`
	StatedAt  time.Time `json:"stated_at"`
	ZoneIndex uint64    `json:"zone_index"` // of the zone store's log, at which nothing of the below was left in it
	Removed   Removed   `json:"removed"`
	Stays     []Staying `json:"stays"`
	Pending   []string  `json:"pending"` // control nodes and edges of the zone that have not confirmed
}

// Removed counts what went.
type Removed struct {
	RecordSHA256 string             `json:"record_sha256"`
	Keys         int                `json:"keys"`
	KeysSHA256   string             `json:"keys_sha256"`
	Webhooks     int                `json:"webhooks"`
	Alerts       int                `json:"alerts"`
	Detail       []model.NodeErased `json:"detail"`
}

// Staying is what an erasure leaves, with the reason.
type Staying struct {
	What string `json:"what"`
	Why  string `json:"why"`
}

// staying is the same for every customer: it follows from how the system is built.
var staying = []Staying{
	{"the customer's name, in gone/ and in the record of the erasure with its reason and the operator's name", "usage that is still on its way must be known to be the zone's, and the erasure must be provable; the name is not given again"},
	{"sums of usage in the zone ledger by 15 minutes, with corrections, top-ups and the reasons written on them", "contract and statutory retention of accounts (GDPR Art. 6(1)(b), Art. 17(3)(b)); they hold no end user, address or request"},
	{"earlier values in the zone store's log and snapshots on its control nodes, and in the edges' tables", "until the next snapshot or compaction replaces them; nothing reads them"},
	{"what sinks took of the customer's sums, and what webhooks were told of his quotas", "they are outside of the system's reach: whoever receives them must be told"},
	{"backups and exports that an operator made", "they are outside of the system's reach"},
	{"rows in the spools of edges", "they are shipped within seconds and gone from an edge within three hours of that, or at its next start if a file was damaged; nothing reads them there; those of an edge that is away are dropped when they arrive"},
}

// Sign writes a statement and signs it with the zone's key. Format and Stays are filled in.
func Sign(key ed25519.PrivateKey, s Statement) (text, signature []byte, err error) {
	s.Format, s.Stays = Format, staying
	if text, err = json.MarshalIndent(s, "", "  "); err != nil {
		return nil, nil, fmt.Errorf("write the statement of erasure: %w", err)
	}
	return text, ed25519.Sign(key, append([]byte(prefix), text...)), nil
}

// Verify reads a statement if the zone with this key signed these very bytes.
func Verify(key ed25519.PublicKey, text, signature []byte) (s Statement, ok bool) {
	if len(key) != ed25519.PublicKeySize || !ed25519.Verify(key, append([]byte(prefix), text...), signature) {
		return s, false
	}
	err := json.Unmarshal(text, &s)
	return s, err == nil && s.Format == Format
}
