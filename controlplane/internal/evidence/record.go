// Package evidence keeps a zone's Merkle log: every decision about its border and every change that an operator made,
// in the order in which the zone store committed them, under signed heads that the zone's edges hold too. It writes
// bundles of it, and checks bundles without any part of the installation.
//
// Leaves follow from the zone store's history alone, so every node of the zone has the same log. A node keeps its copy in
// one append-only file; what a crash cost is rebuilt from the store's own log, or fetched from another node. It decides
// nothing and stores no customer's name, key or request: changes of what is not the border's are digests under a key
// of the zone. DESIGN.md says why it is as it is. All methods may be called from several goroutines at once.
package evidence

import (
	"bytes"
	"cmp"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
)

// Kinds of records.
const (
	KindState     = "state"     // all that later records rest on, every StateEvery records
	KindRecovery  = "recovery"  // groups went on after a lost quorum or from a backup; signed
	KindAdopted   = "adopted"   // the zone took over the catalog's rules
	KindProposal  = "proposal"  // a change that takes two operators: made, approved, done or rejected
	KindPermitted = "permitted" // the pairs that follow from rules and closures
	KindClosure   = "closure"
	KindReopened  = "reopened"
	KindCatalog   = "catalog"  // what became of the catalog, and by whom
	KindCrossing  = "crossing" // the epochs under which pairs that cross zones are approved
	KindRegion    = "region"   // how observers see a region from here on
	KindDrain     = "drained"  // by the zone; the catalog's drains stand in what became of it
	KindUndrain   = "undrained"
	KindGrant     = "grant"     // with the relays and refusals that the edge told
	KindInForce   = "in-force"  // pending while it has no time, signed when it has
	KindWithdrawn = "withdrawn" // a pending tightening, because the pair is permitted again
	KindRead      = "read"      // an operator was shown customers' data
	KindWrite     = "write"     // any other change: its kind, and digests of name, before and after
)

// Limits.
const (
	StateEvery = 4096    // records between two states
	MaxRecord  = 4 << 20 // bytes of one record; the store's transactions are smaller
)

// Record is one leaf; its JSON is what the tree hashes.
type Record struct {
	Kind  string    `json:"kind"`
	Epoch uint64    `json:"epoch"` // with Index: the transaction
	Index uint64    `json:"index"`
	At    time.Time `json:"at"` // the leader's stamp of it
	// Key is the name of a closure, the region of a drain, the edge of a grant, the key of an in-force record, or the kind of what a write
	// changed.
	Key    string          `json:"key,omitempty"`
	Value  json.RawMessage `json:"value,omitempty"` // as stored; of a reopened closure, ended drain or withdrawn record, what it was
	Name   string          `json:"name,omitempty"`  // of a write, digests under the zone's key, hex
	Before string          `json:"before,omitempty"`
	After  string          `json:"after,omitempty"`
	By     *model.Audit    `json:"by,omitempty"` // the operator, if one made the change
}

// encode gives a leaf's bytes: one line of JSON.
func (r Record) encode() []byte { return model.Encode(r) }

// Decode reads a leaf. Its bytes stand, and not what they mean: the tree hashes them as they are.
func Decode(line []byte) (Record, error) {
	var r Record
	if err := strictJSON(line, &r); err != nil {
		return r, fmt.Errorf("it is no record: %w", err)
	}
	return r, nil
}

// entry is a record with its value read. That is most of the work of verification and can be done for many records at
// once; judging them cannot.
type entry struct {
	Record
	value any   // model's type of the kind, or nil
	err   error // why the value does not read
}

// grantLine is a grant's record with its value in place: nearly all records are grants, and to read the value apart
// costs as much again.
type grantLine struct {
	Kind  string             `json:"kind"`
	Epoch uint64             `json:"epoch"`
	Index uint64             `json:"index"`
	At    time.Time          `json:"at"`
	Key   string             `json:"key"`
	Value *model.GrantRecord `json:"value"`
	By    *model.Audit       `json:"by"`
}

var grantBegins = []byte(`{"kind":"` + KindGrant + `",`)

// readEntry is Decode and open in one.
func readEntry(line []byte) (entry, error) {
	if bytes.HasPrefix(line, grantBegins) {
		var g grantLine
		if err := strictJSON(line, &g); err == nil && g.Kind == KindGrant && g.Value != nil {
			return entry{Record: Record{Kind: g.Kind, Epoch: g.Epoch, Index: g.Index, At: g.At, Key: g.Key, By: g.By}, value: *g.Value}, nil
		}
	}
	r, err := Decode(line)
	return r.open(), err
}

func (r Record) open() entry {
	e := entry{Record: r}
	switch r.Kind {
	case KindState:
		e.value, e.err = model.Decode[state]("state", r.Value)
	case KindRecovery:
		e.value, e.err = model.Decode[model.Recovery](model.PrefixRecovery+r.Key, r.Value)
	case KindAdopted:
		e.value, e.err = model.Decode[model.Adopted](model.KeyAdopted, r.Value)
	case KindProposal:
		e.value, e.err = model.Decode[model.Proposal](model.PrefixApproval+r.Key, r.Value)
	case KindCatalog:
		e.value, e.err = model.Decode[model.CatalogSeen](model.KeyCatalogSeen, r.Value)
	case KindCrossing:
		e.value, e.err = model.Decode[model.Crossing](model.KeyCrossing, r.Value)
	case KindRegion:
		e.value, e.err = model.Decode[model.RegionState](model.PrefixUptime+r.Key, r.Value)
	case KindDrain, KindUndrain:
		e.value, e.err = model.Decode[model.Drain](model.PrefixDrain+r.Key, r.Value)
	case KindPermitted:
		e.value, e.err = model.Decode[model.Permitted](model.KeyPermitted, r.Value)
	case KindClosure, KindReopened:
		e.value, e.err = model.Decode[model.Closure](model.PrefixClosure+r.Key, r.Value)
	case KindInForce, KindWithdrawn:
		e.value, e.err = model.Decode[model.InForce](model.PrefixInForce+r.Key, r.Value)
	case KindGrant:
		e.value, e.err = model.Decode[model.GrantRecord](model.PrefixGrant+r.Key, r.Value)
	case KindRead:
		e.value, e.err = model.Decode[model.Read](model.KeyRead, r.Value)
	}
	return e
}

// rank orders the records of one transaction: causes before what follows from them.
var rank = map[string]int{KindState: 0, KindRecovery: 0, KindAdopted: 1, KindClosure: 2, KindReopened: 3, KindCrossing: 4, KindPermitted: 5, KindInForce: 6, KindWithdrawn: 7, KindGrant: 8, KindProposal: 9, KindWrite: 10, KindCatalog: 11, KindRegion: 12, KindDrain: 13, KindUndrain: 14, KindRead: 15}

// writes are the kinds of things whose changes are records without their content.
var writes = map[string]string{
	model.PrefixCustomer: "customer", model.PrefixKey: "key", model.PrefixOperator: "operator", model.PrefixJoinToken: "join-token",
	model.PrefixErasure: "erasure", model.PrefixKeyEnd: "key-end", model.PrefixWebhook: "webhook", model.PrefixPurge: "purge",
}

// masker makes digests that say whether two are the same and nothing else to who has not the zone's key: names of
// customers are few enough to try them all.
type masker []byte

func (m masker) digest(kind string, data []byte) string {
	h := hmac.New(sha256.New, m)
	h.Write([]byte(kind + "\n"))
	h.Write(data)
	return hex.EncodeToString(h.Sum(nil))
}

// MaskKey is the key of a zone's digests.
func MaskKey(pepper []byte) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, pepper, nil, "bailiwick evidence digests 1", 32)
	if err != nil {
		return nil, fmt.Errorf("derive the key of evidence digests: %w", err)
	}
	return key, nil
}

// CustomerDigest names a customer in records: the same for who reads his data and for who changes his record.
func CustomerDigest(mask []byte, name string) string {
	return masker(mask).digest("name/customer", []byte(model.PrefixCustomer+name))
}

// recordsOf turns the events of one transaction into records, in the order of their keys.
func recordsOf(events []group.Event, epoch uint64, m masker) ([]Record, error) {
	var by *model.Audit
	var out []Record
	for _, e := range events {
		r := Record{Epoch: epoch, Index: e.Index, At: e.Time.UTC()}
		value := e.KV.Value
		var before []byte
		if e.Prev != nil {
			before = e.Prev.Value
		}
		if e.Delete {
			value = before
		}
		key := e.KV.Key
		switch {
		case key == model.KeyAudit:
			a, err := model.Decode[model.Audit](key, e.KV.Value)
			if err != nil {
				return nil, err
			}
			by = &a
			continue
		case key == model.KeyAdopted:
			r.Kind, r.Value = KindAdopted, value
		case strings.HasPrefix(key, model.PrefixApproval):
			r.Kind, r.Key, r.Value = KindProposal, strings.TrimPrefix(key, model.PrefixApproval), value
			if e.Delete {
				continue // one that was decided, and is listed no longer
			}
		case key == model.KeyCatalogSeen:
			r.Kind, r.Value = KindCatalog, value
		case key == model.KeyRead:
			r.Kind, r.Value = KindRead, value
			if e.Delete {
				continue
			}
		case key == model.KeyCrossing:
			r.Kind, r.Value = KindCrossing, value
		case key == model.KeyPermitted:
			r.Kind, r.Value = KindPermitted, value
		case strings.HasPrefix(key, model.PrefixRecovery):
			if e.Delete {
				continue
			}
			r.Kind, r.Key, r.Value = KindRecovery, strings.TrimPrefix(key, model.PrefixRecovery), value
		case strings.HasPrefix(key, model.PrefixUptime):
			if e.Delete {
				continue
			}
			r.Kind, r.Key, r.Value = KindRegion, strings.TrimPrefix(key, model.PrefixUptime), value
		case strings.HasPrefix(key, model.PrefixClosure):
			r.Kind, r.Key, r.Value = KindClosure, strings.TrimPrefix(key, model.PrefixClosure), value
			if e.Delete {
				r.Kind = KindReopened
			}
		case strings.HasPrefix(key, model.PrefixDrain):
			r.Kind, r.Key, r.Value = KindDrain, strings.TrimPrefix(key, model.PrefixDrain), value
			if e.Delete {
				r.Kind = KindUndrain
			}
		case strings.HasPrefix(key, model.PrefixGrant):
			if e.Delete {
				continue
			}
			r.Kind, r.Key, r.Value = KindGrant, strings.TrimPrefix(key, model.PrefixGrant), value
		case strings.HasPrefix(key, model.PrefixInForce):
			r.Kind, r.Key, r.Value = KindInForce, strings.TrimPrefix(key, model.PrefixInForce), value
			if e.Delete {
				r.Kind = KindWithdrawn
			}
		default:
			prefix := key[:strings.IndexByte(key, '/')+1]
			kind, ok := writes[prefix]
			if !ok {
				continue // locks, certificates, alerts, fences: nothing that anybody decided
			}
			r.Kind, r.Key, r.Name = KindWrite, kind, m.digest("name/"+kind, []byte(key))
			if e.Prev != nil {
				r.Before = m.digest("value/"+kind, before)
			}
			if !e.Delete {
				r.After = m.digest("value/"+kind, e.KV.Value)
			}
		}
		out = append(out, r)
	}
	for i := range out {
		out[i].By = by
	}
	slices.SortStableFunc(out, func(a, b Record) int {
		return cmp.Or(cmp.Compare(rank[a.Kind], rank[b.Kind]), cmp.Compare(a.Key, b.Key), cmp.Compare(a.Name, b.Name))
	})
	return out, nil
}
