// Package model holds what the control plane stores, as plain values: where each kind rests, under which
// key, and how it is encoded. It validates single values; rules between values live with regions and adminapi.
//
// It does no I/O and reads no clock; values may be copied and shared freely. What is stored survives as
// JSON under the keys below, one value a key, so an old data directory stays readable.
package model

import (
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"bailiwick/shared/fault"
)

// Prefixes of the catalog group. No personal data, key material or usage may ever have a prefix here.
const (
	PrefixZone    = "zones/"
	PrefixRegion  = "regions/"
	PrefixBasis   = "bases/"
	PrefixPolicy  = "policies/"
	PrefixAPI     = "apis/"
	PrefixProduct = "products/"
	PrefixPlan    = "plans/"
	PrefixNode    = "nodes/"
	// PrefixRevision holds what the latest changes of an operator changed, and from what: see package history.
	PrefixRevision = "revisions/"
	PrefixSwitch   = "switches/"
	PrefixRollout  = "rollouts/"     // ended roll-outs, by their number
	PrefixHeld     = "held/"         // before a key: what edges hold that the roll-out under way has not reached
	PrefixWord     = "rolloutwords/" // by zone: what it makes of the roll-out under way
	KeyRollout     = "rollout"       // the one under way
	// PrefixGone, before the key of an API or a region, keeps what was deleted: see there. KeyAudit holds who wrote last,
	// under a pseudonym of his zone.
)

// Prefixes of a zone store.
const (
	PrefixCustomer  = "customers/"
	PrefixKey       = "keys/"
	PrefixKeyEnd    = "keyends/" // by the id of a key that was rotated: when it ends
	PrefixClosure   = "closures/"
	PrefixDrain     = "drains/"     // by the region's name
	PrefixJoinToken = "jointokens/" // by SHA-256 of the token, hex
	PrefixOperator  = "operators/"  // by SHA-256 of the token, hex
	PrefixGrant     = "grants/"     // latest grants of an edge, the record of §2.5
	PrefixInForce   = "inforce/"    // signed in-force records
	PrefixCert      = "certs/"      // certmagic storage, private keys sealed
	PrefixGone      = "gone/"       // names of customers that were deleted: what they used before may still arrive; in the catalog, before a whole key, the same of APIs and regions
	PrefixErasure   = "erasures/"   // what became of the erasure of a customer, by name
	PrefixApproval  = "approvals/"  // changes that a second operator must approve, by what they are
	PrefixLock      = "locks/"
	PrefixOrder     = "certorders/" // what public authorities were asked for, by host: see certstore
	PrefixUptime    = "uptime/"     // how observers see a region, by its name
	PrefixWebhook   = "webhooks/"   // their secrets sealed
	PrefixAlert     = "alerts/"     // by customer first: thresholds that were reached
	PrefixRecovery  = "recoveries/" // by incarnation of the zone store, see Recovery
	KeyAdopted      = "adopted"     // the catalog's border rules as this zone has adopted them
	KeyCrossing     = "crossing"    // the epochs under which pairs that cross zones are approved: see Crossing
	KeyCatalogSeen  = "catalogseen" // how far the zone's log tells the catalog's history, and the latest of it
	KeyPermitted    = "permitted"   // the pairs that followed from it when the leader last looked
	KeyAudit        = "audit"       // who made the latest change that an operator made, in its own transaction
	KeyRead         = "read"        // whose data was shown last, and to whom by KeyAudit beside it
	KeyCheckpoint   = "checkpoint"  // the latest signed head of the zone's Merkle log
)

type Zone struct {
	Name         string   `json:"name"`
	Jurisdiction string   `json:"jurisdiction,omitempty"`
	Description  string   `json:"description,omitempty"`
	AdminURLs    []string `json:"admin_urls,omitempty"`
	SigningKey   []byte   `json:"signing_key,omitempty"` // Ed25519 public key
	// ReadsNeedReason: an operator says why before he is shown a customer's data.
	ReadsNeedReason bool `json:"reads_need_reason,omitempty"`
}

type Region struct {
	Name           string `json:"name"`
	Zone           string `json:"zone"`
	Provider       string `json:"provider,omitempty"`
	ProviderRegion string `json:"provider_region,omitempty"`
	Partition      string `json:"partition,omitempty"`
	Country        string `json:"country,omitempty"`
	Jurisdiction   string `json:"jurisdiction,omitempty"`
	ControlOnly    bool   `json:"control_only,omitempty"`
	// ClientSubnets and Drain are for DNS alone and no part of any rule.
	ClientSubnets []string `json:"client_subnets,omitempty"` // CIDR blocks whose clients are led here first
	Drain         string   `json:"drain,omitempty"`          // why clients are led elsewhere; "": they are not
	Labels        []string `json:"labels,omitempty"`         // as Labels has them; they decide nothing
	// UpstreamNetworks are CIDR blocks outside which no edge of the region dials an upstream; none: no such bound.
	UpstreamNetworks []string `json:"upstream_networks,omitempty"`
}

type LegalBasis struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	Status  string `json:"status"`            // active, suspended
	Expires string `json:"expires,omitempty"` // YYYY-MM-DD, valid through that day
	Source  string `json:"source,omitempty"`
}

type Policy struct {
	Name         string         `json:"name"`
	Zone         string         `json:"zone"`
	WithinZone   *WithinZone    `json:"within_zone,omitempty"`
	Pairs        []Pair         `json:"pairs,omitempty"`
	OfflineGrant *time.Duration `json:"offline_grant,omitempty"`
	TwoPerson    bool           `json:"two_person,omitempty"`
}

type WithinZone struct {
	Basis   string   `json:"basis"`
	Classes []string `json:"classes,omitempty"`
}

type Pair struct {
	From     string   `json:"from"`
	To       string   `json:"to"`
	Basis    string   `json:"basis"`
	Classes  []string `json:"classes,omitempty"`
	Priority int      `json:"priority,omitempty"`
	ReviewBy string   `json:"review_by,omitempty"`
	Status   string   `json:"status,omitempty"` // "", open, closed
}

type API struct {
	Name      string     `json:"name"`
	Zone      string     `json:"zone"`
	Hosts     []string   `json:"hosts"`
	Policy    string     `json:"policy,omitempty"`
	Summary   string     `json:"summary,omitempty"`
	Docs      string     `json:"docs,omitempty"`
	OpenAPI   string     `json:"openapi,omitempty"`
	Routes    []Route    `json:"routes,omitempty"`
	Upstreams []Upstream `json:"upstreams,omitempty"`
	Health    Health     `json:"health,omitzero"`
	Labels    []string   `json:"labels,omitempty"` // as Labels has them; they decide nothing

	Dispatch    Dispatch     `json:"dispatch,omitzero"`
	UpstreamTLS UpstreamTLS  `json:"upstream_tls,omitzero"`
	Auth        *Auth        `json:"auth,omitempty"`
	Concurrency *Concurrency `json:"concurrency,omitempty"`
	TCP         *TCP         `json:"tcp,omitempty"` // nil: it is HTTP
	Shaping
}

// Auth says how callers of an API show who they are, and what its upstreams are told.
type Auth struct {
	KeyHeader          string   `json:"key_header,omitempty"`
	KeyQuery           string   `json:"key_query,omitempty"`
	Issuers            []Issuer `json:"issuers,omitempty"`
	ClientCertificates bool     `json:"client_certificates,omitempty"`
	Identity           string   `json:"identity,omitempty"` // "", headers, none, signed
}

// Issuer of tokens. Its keys are public.
type Issuer struct {
	Issuer     string        `json:"issuer"`
	Audiences  []string      `json:"audiences"`
	Algorithms []string      `json:"algorithms,omitempty"`
	JWKSURL    string        `json:"jwks_url,omitempty"`
	JWKS       string        `json:"jwks,omitempty"`
	Claim      string        `json:"claim,omitempty"`
	Leeway     time.Duration `json:"leeway,omitempty"`
}

type Concurrency struct {
	Min int `json:"min,omitempty"`
	Max int `json:"max,omitempty"`
}

type Units struct {
	Header   string `json:"header,omitempty"`
	PerBytes int64  `json:"per_bytes,omitempty"`
	Most     int64  `json:"most,omitempty"`

	PerMessages int64  `json:"per_messages,omitempty"`
	GraphQL     string `json:"graphql,omitempty"` // "", fields, cost
}

type Route struct {
	Name            string        `json:"name"`
	Methods         []string      `json:"methods,omitempty"`
	PathPrefix      string        `json:"path_prefix,omitempty"`
	Timeout         time.Duration `json:"timeout,omitempty"`
	MaxRequestBytes int64         `json:"max_request_bytes,omitempty"`

	Scope            string        `json:"scope,omitempty"` // that a key must have
	Deadline         time.Duration `json:"deadline,omitempty"`
	MaxResponseBytes int64         `json:"max_response_bytes,omitempty"`
	Cache            *Cache        `json:"cache,omitempty"`
	HedgeAfter       time.Duration `json:"hedge_after,omitempty"`
	Free             bool          `json:"free,omitempty"`
	Units            *Units        `json:"units,omitempty"`
	WebSocket        *WebSocket    `json:"websocket,omitempty"` // nil: none is opened
	Shaping
	GraphQL *GraphQL `json:"graphql,omitempty"`
}

type Upstream struct {
	Region string `json:"region"`
	URL    string `json:"url"`
	Drain  bool   `json:"drain,omitempty"`
}

type Health struct {
	Path     string        `json:"path,omitempty"`
	Interval time.Duration `json:"interval,omitempty"`
	Timeout  time.Duration `json:"timeout,omitempty"`
	Failures int           `json:"failures,omitempty"`
	GoodFor  time.Duration `json:"good_for,omitempty"`
}

// Cache is what answers do not say themselves.
type Cache struct {
	TTL                  time.Duration `json:"ttl,omitempty"`
	StaleWhileRevalidate time.Duration `json:"stale_while_revalidate,omitempty"`
	StaleIfError         time.Duration `json:"stale_if_error,omitempty"`
	MaxBytes             int64         `json:"max_bytes,omitempty"`
	Scope                string        `json:"scope,omitempty"` // "", key, subscription, customer, plan, all
	Generation           int64         `json:"generation,omitempty"`
}

// Dispatch is how requests are spread over the upstreams of a region.
type Dispatch struct {
	Choice            string        `json:"choice,omitempty"` // "", least-load, in-order
	SlowStart         time.Duration `json:"slow_start,omitempty"`
	MaxRequests       int           `json:"max_requests,omitempty"`
	MaxWaiting        int           `json:"max_waiting,omitempty"`
	MaxWait           time.Duration `json:"max_wait,omitempty"`
	MaxEjectedPercent int           `json:"max_ejected_percent,omitempty"`
	Discovery         string        `json:"discovery,omitempty"` // "", dns, etcd
}

// UpstreamTLS is how https upstreams are verified, and which certificate, that lies at each edge, is shown to them.
type UpstreamTLS struct {
	ServerName        string `json:"server_name,omitempty"`
	CA                string `json:"ca,omitempty"` // PEM
	ClientCertificate string `json:"client_certificate,omitempty"`
}

type Product struct {
	Name             string   `json:"name"`
	APIs             []string `json:"apis"`
	BillableOutcomes []string `json:"billable_outcomes,omitempty"`
	FreeCacheHits    bool     `json:"free_cache_hits,omitempty"`
	Summary          string   `json:"summary,omitempty"`
}

type Plan struct {
	Name            string        `json:"name"`
	Products        []string      `json:"products"`
	RateLimit       *RateLimit    `json:"rate_limit,omitempty"`
	Quota           *Quota        `json:"quota,omitempty"`
	PriorityClass   string        `json:"priority_class,omitempty"`
	SLATarget       string        `json:"sla_target,omitempty"`
	Price           string        `json:"price,omitempty"`
	MaxKeyStaleness time.Duration `json:"max_key_staleness,omitempty"`
	RateLimits      []RateWindow  `json:"rate_limits,omitempty"`
	MaxConcurrent   int           `json:"max_concurrent,omitempty"`
}

// RateWindow is a rate limit over a longer time than a second.
type RateWindow struct {
	Requests int           `json:"requests"`
	Per      time.Duration `json:"per"`
	Burst    int           `json:"burst,omitempty"`
}

type RateLimit struct {
	RequestsPerSecond int `json:"requests_per_second"`
	Burst             int `json:"burst,omitempty"`
}

type Quota struct {
	Units        int64         `json:"units"`
	Period       string        `json:"period,omitempty"`        // hour, day, week, month (default), year, rolling, prepaid
	Mode         string        `json:"mode,omitempty"`          // soft (default), elastic, strict
	Window       time.Duration `json:"window,omitempty"`        // of a rolling one
	GracePercent int           `json:"grace_percent,omitempty"` // above Units, where a soft one ends; 0: it does not
}

// Node is a row of the node registry. Removing it withdraws the node: its certificate is refused.
type Node struct {
	Name      string    `json:"name"`
	Kind      string    `json:"kind"` // control, edge
	Region    string    `json:"region"`
	Zone      string    `json:"zone"`
	PeerAddr  string    `json:"peer_addr,omitempty"`  // control nodes: host:port of the peer port
	AdminURL  string    `json:"admin_url,omitempty"`  // control nodes: where people and edges reach it; "" in an installation made before there was this field
	RelayAddr string    `json:"relay_addr,omitempty"` // edges: host:port where relays are accepted
	Doors     *Doors    `json:"doors,omitempty"`      // edges: where clients are led; nil: nowhere
	JoinedAt  time.Time `json:"joined_at,omitzero"`
}

// Server is a control node's id in its groups: its name if it is one since the installation's birth, another each time it
// joins, so that what it held before cannot come back in its place.
func (n Node) Server() string {
	if n.JoinedAt.IsZero() {
		return n.Name
	}
	return fmt.Sprintf("%s~%d", n.Name, n.JoinedAt.UnixMilli())
}

// Doors are where clients reach an edge.
type Doors struct {
	Addresses []string `json:"addresses"` // IPv4 and IPv6
	HTTPSPort int      `json:"https_port"`
	DNS       bool     `json:"dns,omitempty"`
}

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

// Encode gives a value's stored bytes: deterministic JSON.
func Encode(v any) []byte {
	data, err := json.Marshal(v)
	if err != nil {
		// The types above cannot fail to marshal; a new one that can is a programming error.
		panic(fmt.Sprintf("model: encode %T: %v", v, err))
	}
	return data
}

// Decode reads stored bytes; an unknown field means a newer program wrote it and is an error, since
// writing the value back would lose it.
func Decode[T any](key string, data []byte) (T, error) {
	var v T
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&v); err != nil {
		return v, fault.New(fault.Internal, "RECORD_MALFORMED", "read stored %s: %w", key, err)
	}
	return v, nil
}
