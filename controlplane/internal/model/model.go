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
	PrefixLevel    = "levels/"       // by a node's name: NodeLevel
	PrefixCluster  = "clusters/"     // by the id of a cluster of etcd: Cluster
	PrefixRelease  = "releases/"     // by the id of a cluster of etcd: Release
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
	PrefixPurge     = "purges/"     // by the API's name: what of its kept answers has ended
	PrefixTargets   = "targets/"    // by the API's name: upstreams that were found for it
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

// Cluster says which zone keeps its store in a cluster of etcd. It is written by the first zone that is led there, never
// changed, and deleted by a release. A zone has one; see package claim.
type Cluster struct {
	ID   string `json:"id"` // 16 hexadecimal digits
	Zone string `json:"zone"`
}

// What became of a release.
const (
	ReleaseWaits = "waiting"   // for a second operator
	ReleaseUnder = "releasing" // nodes may object
	ReleaseDone  = "released"
)

// Release is a zone's word on a cluster being taken back. It stays as the record of that.
type Release struct {
	ID     string    `json:"id"`
	Zone   string    `json:"zone"`
	Status string    `json:"status"`
	By     string    `json:"by"`               // an operator's pseudonym, or a control node
	Second string    `json:"second,omitempty"` // who agreed
	From   string    `json:"from"`             // the zone of both
	Reason string    `json:"reason"`
	At     time.Time `json:"at"`
}

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

	GRPCWeb string `json:"grpc_web,omitempty"` // "", pass, translate
}

type Upstream struct {
	Region   string `json:"region"`
	URL      string `json:"url"`
	Drain    bool   `json:"drain,omitempty"`
	Protocol string `json:"protocol,omitempty"` // "", http1, h2, h2c
}

type Health struct {
	Path     string        `json:"path,omitempty"`
	Interval time.Duration `json:"interval,omitempty"`
	Timeout  time.Duration `json:"timeout,omitempty"`
	Failures int           `json:"failures,omitempty"`
	GoodFor  time.Duration `json:"good_for,omitempty"`
	Protocol string        `json:"protocol,omitempty"` // "", http, grpc
	Service  string        `json:"service,omitempty"`  // of grpc
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
	MaxConnections    int           `json:"max_connections,omitempty"`
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
