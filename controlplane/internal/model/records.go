package model

import (
	"encoding/json"
	"slices"
	"time"
)

// Here is what rests in a zone store, and what tells of changes; the catalog's resources are in model.go.

type Customer struct {
	Name          string         `json:"name"`
	Zone          string         `json:"zone"`
	DisplayName   string         `json:"display_name,omitempty"`
	AccountID     string         `json:"account_id,omitempty"`
	Subscriptions []Subscription `json:"subscriptions,omitempty"`
	Status        string         `json:"status,omitempty"`    // "", active, suspended, overdue
	TimeZone      string         `json:"time_zone,omitempty"` // IANA name; "" is UTC
	Labels        []string       `json:"labels,omitempty"`    // as Labels has them; they decide nothing
}

// Gone is what remains of a customer that was deleted, for good: an edge that was cut off meanwhile honours his
// keys until it hears of it, and brings what he used. Without a trace here that usage would look forged.
type Gone struct {
	Name string    `json:"name"`
	At   time.Time `json:"at"`
	// Erased is when the customer was erased, which is more than deleted: his detail goes from every node, what
	// comes late is dropped, and the name is not given again.
	Erased time.Time `json:"erased,omitzero"`
}

// Erasure is the record of what went with a customer; a signed statement is made of it whenever one is asked for.
// It goes on being filled in until every control node of the zone has confirmed.
type Erasure struct {
	Customer     string       `json:"customer"`
	Reason       string       `json:"reason,omitempty"`
	By           string       `json:"by,omitempty"` // operator
	At           time.Time    `json:"at"`
	RecordSHA256 string       `json:"record_sha256,omitempty"` // of the customer's record as it was stored
	Keys         int          `json:"keys"`
	KeysSHA256   string       `json:"keys_sha256,omitempty"` // chained over the ids of its keys
	Webhooks     int          `json:"webhooks"`
	Alerts       int          `json:"alerts"`
	Nodes        []NodeErased `json:"nodes,omitempty"`
}

// NodeErased is one control node's word that it holds no detail of the customer. Before and After are SHA-256 of
// the files that changed, hex, in pairs; "" where nothing took a file's place. Beyond ErasedListed pairs only the
// digests of both lists, one a line, are kept.
type NodeErased struct {
	Node         string    `json:"node"`
	At           time.Time `json:"at"`
	Files        int64     `json:"files"`
	Rows         int64     `json:"rows"`
	Before       []string  `json:"before,omitempty"`
	After        []string  `json:"after,omitempty"`
	BeforeSHA256 string    `json:"before_sha256"`
	AfterSHA256  string    `json:"after_sha256"`
}

// ErasedListed bounds the pairs that a NodeErased lists.
const ErasedListed = 200

type Subscription struct {
	Name string `json:"name"`
	Plan string `json:"plan"`
}

// Key is an API key at rest: a digest under the zone's pepper, never the secret.
type Key struct {
	ID           string    `json:"id"`
	DigestHex    string    `json:"digest"`
	Customer     string    `json:"customer"`
	Subscription string    `json:"subscription"`
	Plan         string    `json:"plan"`
	Status       string    `json:"status"` // active, revoked
	CreatedAt    time.Time `json:"created_at"`
	// A program of before 2026-11-26 refuses a record with one of these: the key is then no key there, rather than one
	// without bounds.
	Scopes    []string `json:"scopes,omitempty"`     // sorted
	AllowFrom []string `json:"allow_from,omitempty"` // CIDR blocks, sorted; none: from everywhere
	Labels    []string `json:"labels,omitempty"`     // as Labels has them; they decide nothing
	// Kind is apikey.KindCertificate or KindToken of a key without a text; what it is bound to rests as a digest alone.
	Kind string `json:"kind,omitempty"`
}

// KeyEnd says when a key ends that was rotated. It rests apart from the key, so that a program of the release before, which
// refuses a record with a field that it does not know, goes on serving the key; and it is the list of what is to end.
type KeyEnd struct {
	ID         string    `json:"id"`
	At         time.Time `json:"at"`
	ReplacedBy string    `json:"replaced_by"`
	// RequestSHA256 is of the request's id, hex: who asks again, since the answer was lost, is told which key nobody has.
	RequestSHA256 string `json:"request_sha256,omitempty"`
}

type JoinToken struct {
	Kind      string    `json:"kind"`
	Region    string    `json:"region"`
	Name      string    `json:"name"`
	ExpiresAt time.Time `json:"expires_at"`
	Used      bool      `json:"used,omitempty"`
}

// Operator is one token of an operator, who is his name.
type Operator struct {
	Name      string    `json:"name"`
	Role      string    `json:"role"`             // of this zone, see adminapi
	Expires   time.Time `json:"expires,omitzero"` // zero: never, of the first operator's token alone
	CreatedAt time.Time `json:"created_at,omitzero"`
	CreatedBy string    `json:"created_by,omitempty"`
}

type Closure struct {
	Name   string    `json:"name"`
	Zone   string    `json:"zone"`
	From   string    `json:"from,omitempty"`
	To     string    `json:"to,omitempty"`
	Basis  string    `json:"basis,omitempty"`
	Reason string    `json:"reason,omitempty"`
	At     time.Time `json:"at,omitzero"`
}

// Drain is a zone's own word that clients are led away from one of its regions. Like Region.Drain it is for DNS alone
// and no part of any rule.
type Drain struct {
	Name   string    `json:"name"` // the region's
	Zone   string    `json:"zone"`
	Reason string    `json:"reason"`
	At     time.Time `json:"at,omitzero"`
}

// Purges of an API's kept answers. URLs and tags are digests: they may say more about somebody than has to rest here.
type Purges struct {
	API string  `json:"api"`
	Seq uint64  `json:"seq"`           // of the latest
	All uint64  `json:"all,omitempty"` // everything that was kept before this one has ended
	Of  []Purge `json:"of,omitempty"`  // those after All, in order
}

// Purge is one of them.
type Purge struct {
	Seq  uint64    `json:"seq"`
	What string    `json:"what,omitempty"` // as table.Purge has it
	Soft bool      `json:"soft,omitempty"`
	At   time.Time `json:"at"`
}

// Bounds of what is remembered of an API's purges: no edge keeps an answer for longer than a day, and beyond so many the
// older ones become one of everything.
const (
	PurgeKept = 25 * time.Hour
	MaxPurges = 256
)

// Add is the record with further purges, which ends with all of them in effect whatever an edge missed. What is too old to be
// remembered becomes one of everything as well: clocks of control nodes differ, and an edge may be away for days.
func (p Purges) Add(now time.Time, more ...Purge) Purges {
	of := make([]Purge, 0, len(p.Of)+len(more))
	for _, o := range p.Of {
		switch {
		case slices.ContainsFunc(more, func(n Purge) bool { return n.What == o.What && (!n.Soft || o.Soft) }):
		case now.Sub(o.At) >= PurgeKept:
			p.All, of = max(p.All, o.Seq), of[:0] // those before it, too
		default:
			of = append(of, o)
		}
	}
	for _, n := range more {
		p.Seq++
		n.Seq, n.At = p.Seq, now
		if n.What == "" && !n.Soft {
			p.All, of = n.Seq, of[:0]
			continue
		}
		of = append(of, n)
	}
	if over := len(of) - MaxPurges; over > 0 {
		p.All, of = of[over-1].Seq, of[over:]
	}
	p.Of = of
	return p
}

// Targets are upstreams that were found for an API, by region.
type Targets struct {
	API string           `json:"api"`
	Of  []DiscoveredURLs `json:"of,omitempty"` // by region, sorted
}

// DiscoveredURLs are those of one region, sorted.
type DiscoveredURLs struct {
	Region string   `json:"region"`
	URLs   []string `json:"urls"`
}

// Adopted is the part of the catalog that decides relays, as of one catalog revision, copied into the
// zone's own log by its leader: permission never depends on the catalog group being reachable.
type Adopted struct {
	CatalogEpoch uint64       `json:"catalog_epoch"`
	CatalogIndex uint64       `json:"catalog_index"`
	Regions      []Region     `json:"regions"`
	Bases        []LegalBasis `json:"bases"`
	Policies     []Policy     `json:"policies"`
}

// Crossing says under which epochs of the catalog and of this zone's store pairs that cross zones are approved. A
// recovery or a restore of either opens a new epoch and so closes all of them, whatever else it did or left undone;
// writing the present epochs here, which is an operator's approval, opens them again. The leader writes it once at
// the zone's birth.
type Crossing struct {
	CatalogEpoch uint64    `json:"catalog_epoch"`
	StoreEpoch   uint64    `json:"store_epoch"`
	At           time.Time `json:"at,omitzero"`
	Reason       string    `json:"reason,omitempty"`
}

// Recovery says how groups of a zone went on after their quorum was lost, or from a backup. It is in the zone store's
// own first transaction of the new epoch, and signed by the zone.
type Recovery struct {
	Zone      string           `json:"zone"`
	Node      string           `json:"node"` // the survivor, alone in its groups from here on
	Operator  string           `json:"operator"`
	Reason    string           `json:"reason"`
	At        time.Time        `json:"at"`
	Groups    []RecoveredGroup `json:"groups"`
	Signature []byte           `json:"signature,omitempty"`
}

type RecoveredGroup struct {
	Group       string   `json:"group"`
	Incarnation uint64   `json:"incarnation"`
	Last        uint64   `json:"last"`               // entry of the log that the survivor had
	Promoted    uint64   `json:"promoted"`           // of these, were not known to be committed and are now
	Members     []string `json:"members"`            // servers before
	Backup      string   `json:"backup,omitempty"`   // SHA-256 of the backup that was restored, hex
	TakenAt     string   `json:"taken_at,omitempty"` // when that was taken, RFC 3339
	// Kept, where etcd was set back beneath a running zone, is the revision up to which its history still holds; Incarnation
	// is then the epoch that begins.
	Kept *uint64 `json:"kept,omitempty"`
}

// Statement is what a Recovery's signature is over.
func (r Recovery) Statement() []byte {
	r.Signature = nil
	return append([]byte("bailiwick-recovery/1\n"), Encode(r)...)
}

// CatalogSeen is the latest piece of the catalog's history that a zone's leader has written into the zone's log. Each one
// replaces the one before: the Merkle log keeps all of them.
type CatalogSeen struct {
	Epoch   uint64         `json:"epoch"`
	Through uint64         `json:"through"` // all up to this transaction is told
	Writes  []CatalogWrite `json:"writes,omitempty"`
	Gap     bool           `json:"gap,omitempty"` // what lies between was not to be had any more
}

// CatalogWrite is one transaction of the catalog.
type CatalogWrite struct {
	Index         uint64          `json:"index"`
	At            time.Time       `json:"at"`
	By            string          `json:"by,omitempty"`   // zone and pseudonym of an operator; "": a control node by itself
	Name          string          `json:"name,omitempty"` // of that operator, in the log of his own zone
	Call          string          `json:"call,omitempty"`
	RequestSHA256 string          `json:"request_sha256,omitempty"`
	Changes       []CatalogChange `json:"changes,omitempty"`
}

// CatalogChange is one document, with SHA-256 of what was stored before and after; "": nothing.
type CatalogChange struct {
	Kind   string  `json:"kind"`
	Name   string  `json:"name"`
	Before string  `json:"before,omitempty"`
	After  string  `json:"after,omitempty"`
	Drain  *string `json:"drain,omitempty"` // of a region that is drained from now on, and why; "": no longer
}

// States of a proposal. Approved is written before what was approved is; done after.
const (
	ProposalPending  = "pending"
	ProposalApproved = "approved"
	ProposalDone     = "done"
	ProposalRejected = "rejected"
)

// Proposal is a change that loosens what a policy of the zone has two operators decide. It rests in that zone, with the
// names of both, also where what it changes rests in the catalog.
type Proposal struct {
	ID        string        `json:"id"` // of Zone, Docs and Base
	Zone      string        `json:"zone"`
	Docs      []ProposedDoc `json:"docs"`
	Base      string        `json:"base"`            // digest of all that it was judged on
	Opens     []string      `json:"opens,omitempty"` // sentences
	By        string        `json:"by"`
	At        time.Time     `json:"at,omitzero"`
	Expires   time.Time     `json:"expires,omitzero"`
	Status    string        `json:"status"`
	DecidedBy string        `json:"decided_by,omitempty"`
	DecidedAt time.Time     `json:"decided_at,omitzero"`
	Reason    string        `json:"reason,omitempty"` // of a rejection
}

// ProposedDoc is one key as it is to be.
type ProposedDoc struct {
	Kind    string          `json:"kind"`
	Name    string          `json:"name"`
	Key     string          `json:"key"`
	Catalog bool            `json:"catalog,omitempty"` // it rests in the catalog
	Value   json.RawMessage `json:"value,omitempty"`   // none: it is deleted
}

// Permitted is the set of pairs that held when the zone's leader last looked. Comparing with it is how a
// tightening is noticed, whichever way it came, also by a leader that was not there when it was committed.
type Permitted struct {
	Pairs []PermittedPair `json:"pairs"`
}

type PermittedPair struct {
	Policy string `json:"policy"`
	From   string `json:"from"`
	To     string `json:"to"`
	Basis  string `json:"basis"`
}

// GrantRecord is what the leader logs before it hands out grants to an edge.
type GrantRecord struct {
	Edge      string    `json:"edge"`
	Region    string    `json:"region"`
	Grants    []Granted `json:"grants"`
	GrantedAt time.Time `json:"granted_at"`
	// Incarnation is which run of the edge they are for, and TakesMS for how long that may take relays.
	Incarnation string `json:"incarnation,omitempty"`
	TakesMS     int64  `json:"takes_ms,omitempty"`
	// EarlierMS is how long grants given to that run before these may still last, by target region; its own: taking.
	EarlierMS map[string]int64 `json:"earlier_ms,omitempty"`
	// Others is the same of other runs, by incarnation.
	Others map[string]map[string]int64 `json:"others,omitempty"`
	// Relays and Refusals are what the edge told of itself when it asked.
	Relays   []RelayMinute   `json:"relays,omitempty"`
	Refusals []RefusalMinute `json:"refusals,omitempty"`
	Sentinel *SentinelCount  `json:"sentinel,omitempty"` // when it changed, and once after the edge's start
}

type Granted struct {
	ID       string   `json:"id"`
	From     string   `json:"from"`
	To       string   `json:"to"`
	Policies []string `json:"policies"`
	TTLMS    int64    `json:"ttl_ms"`
}

// Audit says who made the transaction that it is part of. The next one replaces it: the Merkle log keeps all of them.
type Audit struct {
	Operator      string `json:"operator"`
	Call          string `json:"call"`
	RequestSHA256 string `json:"request_sha256"` // of the transaction's id, hex: ids of some calls name a customer
}

// Read says that an operator was shown a customer's data, or may have been: it stands for all that he reads by the same
// procedure for the same reason within a minute. The next one replaces it: the Merkle log keeps all of them.
type Read struct {
	Procedure string `json:"procedure"`
	Customer  string `json:"customer,omitempty"` // digest under the zone's key, hex; empty: every customer of the zone
	Reason    string `json:"reason,omitempty"`
}

// Revision is one change that an operator made to the catalog.
type Revision struct {
	Seq    uint64       `json:"seq"`
	At     time.Time    `json:"at"`
	By     string       `json:"by,omitempty"` // zone and pseudonym
	Call   string       `json:"call,omitempty"`
	Keys   []RevisedKey `json:"keys"`
	Before []byte       `json:"before,omitempty"` // gzip of JSON: key → what rested there
	Lost   bool         `json:"lost,omitempty"`   // Before was too large to be kept
}

// RevisedKey is one resource of a Revision.
type RevisedKey struct {
	Key    string `json:"key"`
	Action string `json:"action"`
}

// What a Revision did to a resource.
const (
	RevisedCreated = "created"
	RevisedUpdated = "updated"
	RevisedDeleted = "deleted"
)

// Checkpoint is a signed head of the zone's Merkle log, and the revision through which it tells all.
type Checkpoint struct {
	Note    string `json:"note"`
	Size    int64  `json:"size"`
	Through uint64 `json:"through"`
}

// RelayMinute is an edge's word on its relays over one pair under one grant that began in one minute: how many, and a
// digest over their rows, which stay with the edge. Digests of one edge form a chain: Seq counts from 1 in each Epoch
// and Prev is the digest before.
type RelayMinute struct {
	Epoch  int64     `json:"epoch"` // of the edge's evidence: when its directory was made, unix ms
	Seq    uint64    `json:"seq"`
	Minute time.Time `json:"minute"`
	Grant  string    `json:"grant"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Count  int64     `json:"count"`
	Prev   []byte    `json:"prev,omitempty"`
	Digest []byte    `json:"digest"`
}

// RefusalMinute counts what an edge refused for one reason over one pair in one minute.
type RefusalMinute struct {
	Minute time.Time `json:"minute"`
	Rule   string    `json:"rule"`
	From   string    `json:"from"`
	To     string    `json:"to"`
	Count  int64     `json:"count"`
	Sample string    `json:"sample,omitempty"` // a request id
}

// States of a region, as most observers see it.
const (
	RegionUp      = "up"
	RegionDown    = "down"
	RegionDrained = "drained" // an operator leads clients elsewhere; whether it is up does not matter
	RegionUnknown = "unknown" // nobody watches it
)

// RegionState is what observers made of a region from At until the next one.
type RegionState struct {
	Region    string    `json:"region"`
	State     string    `json:"state"`
	Observers int       `json:"observers"`
	Against   int       `json:"against"` // of them, those that saw it dead
	At        time.Time `json:"at"`
}

// SentinelCount is what an edge's sentinel has stopped since the edge's process began.
type SentinelCount struct {
	Began      int64 `json:"began"` // unix ms
	Violations int64 `json:"violations"`
	Late       int64 `json:"late"`
}

// InForce is the record that a tightening holds everywhere: no relay over the pair happens after At.
type InForce struct {
	Policy      string    `json:"policy"`
	From        string    `json:"from"`
	To          string    `json:"to"`
	Why         string    `json:"why"`
	ZoneEpoch   uint64    `json:"zone_epoch"`
	ZoneIndex   uint64    `json:"zone_index"`
	CommittedAt time.Time `json:"committed_at"`
	At          time.Time `json:"at,omitzero"`
	By          string    `json:"by,omitempty"` // senders, receivers: which half had acknowledged
	Signature   []byte    `json:"signature,omitempty"`
}
