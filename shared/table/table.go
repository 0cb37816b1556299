// Package table is the contract between a control node's view of one data plane and that edge's policy
// table: the objects an edge may hold, how each is encoded, and to which of the two positions it belongs.
//
// An update is explicit upserts and removals of Objects; an object that is not named is unchanged. The
// encoding of an object is deterministic, so both ends compute the same additive sum (package revision)
// over what they hold and a lost delta is detected. Values are plain data: the package does no I/O, and
// everything in it may be used from several goroutines at once. Nothing here survives a crash by itself.
package table

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"time"

	"bailiwick/shared/apikey"
	"bailiwick/shared/fault"
	"bailiwick/shared/revision"
)

// Kind tells what an object is. Numbers are wire contract: never reused.
type Kind uint8

const (
	KindSettings  Kind = 1  // one, id "settings"
	KindAPI       Kind = 2  // id: API name (own zone) or "zone/name" (foreign, relay-in only)
	KindPlan      Kind = 3  // id: plan name
	KindPair      Kind = 4  // id: policy ">"-joined: "policy/from>to"
	KindDirectory Kind = 5  // id: "zone/api"
	KindKey       Kind = 6  // id: key id
	KindNode      Kind = 7  // id: node name: an edge that may relay to this one
	KindZoneKey   Kind = 8  // id: zone name: the key that signs its grants
	KindRegion    Kind = 9  // id: region name: a serving region of the own zone
	KindDoors     Kind = 10 // id: node name: where clients reach an edge of the own zone
	KindDrain     Kind = 11 // id: region name: a region that the own zone drains
	KindSwitch    Kind = 12 // id: feature, or feature/zone/api: what is turned off
	KindPurges    Kind = 13 // id: name of an API of the own zone: what of its kept answers has ended
	KindTargets   Kind = 14 // id: name of an API of the own zone: upstreams of this region that its zone found
)

// Scope is the group whose position an object counts towards.
type Scope uint8

const (
	ScopeCatalog Scope = iota
	ScopeZone
)

// Scope of a kind: personal and border state is the zone's, the rest the catalog's.
func (k Kind) Scope() Scope {
	switch k {
	case KindPair, KindKey, KindDrain, KindPurges, KindTargets:
		return ScopeZone
	}
	return ScopeCatalog
}

func (k Kind) String() string {
	switch k {
	case KindSettings:
		return "settings"
	case KindAPI:
		return "api"
	case KindPlan:
		return "plan"
	case KindPair:
		return "pair"
	case KindDirectory:
		return "directory"
	case KindKey:
		return "key"
	case KindNode:
		return "node"
	case KindZoneKey:
		return "zone-key"
	case KindRegion:
		return "region"
	case KindDoors:
		return "doors"
	case KindDrain:
		return "drain"
	case KindSwitch:
		return "switch"
	case KindPurges:
		return "purges"
	case KindTargets:
		return "targets"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

// ObjectKey names one object of a table.
type ObjectKey struct {
	Kind Kind
	ID   string
}

// Object is one encoded object.
type Object struct {
	Kind Kind
	ID   string
	Data []byte
}

// Key names the object.
func (o Object) Key() ObjectKey { return ObjectKey{o.Kind, o.ID} }

// Sum is the object's contribution to its scope's additive sum.
func (o Object) Sum() revision.Sum { return revision.Of(uint8(o.Kind), o.ID, o.Data) }

// SettingsID is the id of the one object of KindSettings.
const SettingsID = "settings"

// Settings are what an edge is told of itself.
type Settings struct {
	Zone   string `json:"zone"`
	Region string `json:"region"`
	// UpstreamNetworks are CIDR blocks outside which no upstream is dialled; none: no such bound. Since 2026-11-26.
	UpstreamNetworks []string `json:"upstream_networks,omitempty"`
}

// DefaultHealthPath is where an upstream says that it is well, unless its API says otherwise.
const DefaultHealthPath = "/healthz"

// API is a service as one region may see it: upstream targets of this region only.
type API struct {
	Name   string   `json:"name"`
	Zone   string   `json:"zone"`
	Hosts  []string `json:"hosts,omitempty"` // empty when Foreign
	Policy string   `json:"policy,omitempty"`
	Routes []Route  `json:"routes,omitempty"`
	// Targets are base URLs of this region's upstreams; Regions are all regions where the API is deployed.
	Targets        []string      `json:"targets,omitempty"`
	Regions        []string      `json:"regions,omitempty"`
	HealthPath     string        `json:"health_path,omitempty"`
	HealthInterval time.Duration `json:"health_interval,omitempty"`
	HealthTimeout  time.Duration `json:"health_timeout,omitempty"`
	HealthFailures int           `json:"health_failures,omitempty"`
	HealthGoodFor  time.Duration `json:"health_good_for,omitempty"`
	Dispatch       Dispatch      `json:"dispatch,omitzero"`
	TLS            UpstreamTLS   `json:"tls,omitzero"`
	Auth           *Auth         `json:"auth,omitempty"`        // since 2026-11-26; never of a foreign one
	Concurrency    *Concurrency  `json:"concurrency,omitempty"` // since 2026-11-26
	TCP            *TCP          `json:"tcp,omitempty"`         // since 2026-11-26; nil: it is HTTP
	// Since 2026-11-26; an edge of before does none of it. They are of all routes that have none of their own.
	CORS       *CORS       `json:"cors,omitempty"`
	Rewrite    *Rewrite    `json:"rewrite,omitempty"`
	Validation *Validation `json:"validation,omitempty"`
	OpenAPI    string      `json:"openapi,omitempty"` // where some requests are held against it; never of a foreign one

	// Since 2026-11-26. Protocols are of Targets that speak another than HTTP/1.1: h2, h2c. HealthGRPC is the service that
	// grpc.health.v1 is asked about; nil: HealthPath is asked.
	Protocols  map[string]string `json:"protocols,omitempty"`
	HealthGRPC *string           `json:"health_grpc,omitempty"`

	// Foreign APIs belong to another zone; this region only receives relays for them.
	Foreign bool `json:"foreign,omitempty"`
	// Needs is the level of fields that an edge must know to serve it.
	Needs Level `json:"needs,omitempty"`
}

// APIID is an API's object id: a foreign one carries its zone, since two zones may use one name.
func APIID(a *API) string {
	if a.Foreign {
		return a.Zone + "/" + a.Name
	}
	return a.Name
}

// Auth says how callers show who they are, and what upstreams are told of it.
type Auth struct {
	KeyHeader    string   `json:"key_header,omitempty"` // in net/http's canonical form
	KeyQuery     string   `json:"key_query,omitempty"`
	Issuers      []Issuer `json:"issuers,omitempty"`
	Certificates bool     `json:"certificates,omitempty"`
	Anonymous    bool     `json:"anonymous,omitempty"` // upstreams are told nothing
	Signed       bool     `json:"signed,omitempty"`    // and are told it in a signed token, too
}

// Issuer of tokens.
type Issuer struct {
	Issuer     string        `json:"issuer"`
	Audiences  []string      `json:"audiences"`
	Algorithms []string      `json:"algorithms"`
	JWKSURL    string        `json:"jwks_url,omitempty"` // "" and no JWKS: by discovery
	JWKS       string        `json:"jwks,omitempty"`
	Claim      string        `json:"claim"`
	Leeway     time.Duration `json:"leeway"`
}

// Concurrency bounds what the upstreams of one region work on at once; 0: the edge's default.
type Concurrency struct {
	Min int `json:"min,omitempty"`
	Max int `json:"max,omitempty"`
}

// TCP is of an API whose hosts take connections over TLS that are no HTTP.
type TCP struct {
	IdleTimeout time.Duration `json:"idle_timeout,omitempty"` // 0: the edge's default
}

// WebSocket bounds the connections of a route; 0: the edge's default.
type WebSocket struct {
	MaxMessageBytes int64         `json:"max_message_bytes,omitempty"`
	IdleTimeout     time.Duration `json:"idle_timeout,omitempty"`
	PingEvery       time.Duration `json:"ping_every,omitempty"`
}

// Units says what a request costs.
type Units struct {
	Header   string `json:"header,omitempty"` // in net/http's canonical form
	PerBytes int64  `json:"per_bytes,omitempty"`
	Most     int64  `json:"most"`

	PerMessages int64  `json:"per_messages,omitempty"` // of a WebSocket, of gRPC and what is framed like it
	GraphQL     string `json:"graphql,omitempty"`      // "", fields, cost: what one document asks
}

// Route matches whole path segments; the longest prefix wins.
type Route struct {
	Name            string        `json:"name"`
	Methods         []string      `json:"methods,omitempty"` // empty: all
	PathPrefix      string        `json:"path_prefix"`
	Timeout         time.Duration `json:"timeout,omitempty"`
	MaxRequestBytes int64         `json:"max_request_bytes,omitempty"` // 0: the edge's default
	// Since 2026-11-26; an edge of before enforces none of them.
	Scope            string        `json:"scope,omitempty"`              // that a key must have
	Deadline         time.Duration `json:"deadline,omitempty"`           // of the whole request; 0: none
	MaxResponseBytes int64         `json:"max_response_bytes,omitempty"` // 0: no bound
	Free             bool          `json:"free,omitempty"`               // no units
	Units            *Units        `json:"units,omitempty"`              // nil: one
	Cache            *Cache        `json:"cache,omitempty"`              // nil: nothing is kept
	WebSocket        *WebSocket    `json:"websocket,omitempty"`          // nil: none is opened
	GRPCWeb          bool          `json:"grpc_web,omitempty"`           // it goes on as gRPC
	HedgeAfter       time.Duration `json:"hedge_after,omitempty"`        // 0: no second upstream of the region is tried beside the first
	CORS             *CORS         `json:"cors,omitempty"`               // in place of the API's, as are the next two
	Rewrite          *Rewrite      `json:"rewrite,omitempty"`
	Validation       *Validation   `json:"validation,omitempty"`
	GraphQL          *GraphQL      `json:"graphql,omitempty"`
}

// Cache is what answers do not say themselves.
type Cache struct {
	TTL                  time.Duration `json:"ttl,omitempty"`
	StaleWhileRevalidate time.Duration `json:"stale_while_revalidate,omitempty"`
	StaleIfError         time.Duration `json:"stale_if_error,omitempty"`
	MaxBytes             int64         `json:"max_bytes,omitempty"` // 0: 1 MiB
	Scope                string        `json:"scope,omitempty"`     // customer (also ""), plan, all
	Generation           int64         `json:"generation,omitempty"`
}

// Dispatch is how requests are spread over the targets. Nothing of it is a reason to leave the region.
type Dispatch struct {
	Choice            string        `json:"choice,omitempty"`              // least-load (also ""), in-order
	SlowStart         time.Duration `json:"slow_start,omitempty"`          // over which a new target beside others comes to its share
	MaxRequests       int           `json:"max_requests,omitempty"`        // under way at a target; 0: no limit
	MaxWaiting        int           `json:"max_waiting,omitempty"`         // requests that wait for a place
	MaxWait           time.Duration `json:"max_wait,omitempty"`            // 0: 1 s
	MaxEjectedPercent int           `json:"max_ejected_percent,omitempty"` // of targets that fail more than the others; 0: 50
	Discovery         string        `json:"discovery,omitempty"`           // dns: each address of a target's name is a target
	MaxConnections    int           `json:"max_connections,omitempty"`     // to a target that speaks HTTP/2; 0: 8
}

// UpstreamTLS is how https targets are verified.
type UpstreamTLS struct {
	ServerName        string `json:"server_name,omitempty"`        // "": the URL's host
	CA                string `json:"ca,omitempty"`                 // PEM; "": the system's
	ClientCertificate string `json:"client_certificate,omitempty"` // by its name in the edge's directory; "": none
}

// Plan as an edge enforces it.
type Plan struct {
	Name string `json:"name"`
	Rev  uint64 `json:"rev"` // stamped on usage at admission
	// APIs the plan includes, each with the product through which it is sold.
	APIs              map[string]string `json:"apis,omitempty"`
	FreeHits          []string          `json:"free_hits,omitempty"` // of them, those whose answers from a cache are not billed
	RequestsPerSecond int               `json:"rps,omitempty"`       // 0: no limit
	Burst             int               `json:"burst,omitempty"`
	// A quota of mode soft is only watched, unless QuotaGrace (percent above its units) ends it. "" is no quota.
	QuotaUnits      int64         `json:"quota_units,omitempty"`
	QuotaPeriod     string        `json:"quota_period,omitempty"` // hour, day, week, month, year, rolling, prepaid
	QuotaMode       string        `json:"quota_mode,omitempty"`   // strict, elastic, soft
	QuotaWindow     time.Duration `json:"quota_window,omitempty"` // of a rolling one
	QuotaGrace      int           `json:"quota_grace,omitempty"`
	MaxKeyStaleness time.Duration `json:"max_key_staleness,omitempty"` // 0: for ever
	// Since 2026-11-26; an edge of before enforces neither.
	Windows       []Window `json:"windows,omitempty"`
	MaxConcurrent int      `json:"max_concurrent,omitempty"` // requests under way of a subscription; 0: no bound
	Class         string   `json:"class,omitempty"`          // free, bronze, silver, gold, platinum; another: silver
	Needs         Level    `json:"needs,omitempty"`          // as an API's
}

// Window is a rate limit over a longer time: Requests each Per, of which Burst may come at once.
type Window struct {
	Requests int           `json:"requests"`
	Per      time.Duration `json:"per"`
	Burst    int           `json:"burst,omitempty"` // 0: Requests
}

// Pair is a permission to relay that involves this region, as its zone has adopted it, less closures.
type Pair struct {
	Policy       string        `json:"policy"`
	From         string        `json:"from"`
	To           string        `json:"to"`
	FromZone     string        `json:"from_zone"`
	ToZone       string        `json:"to_zone"`
	Basis        string        `json:"basis"`
	Classes      []string      `json:"classes,omitempty"`
	Priority     int           `json:"priority,omitempty"` // lower is tried first
	OfflineGrant time.Duration `json:"offline_grant,omitempty"`
}

// PairID is a pair's object id.
func PairID(policy, from, to string) string { return policy + "/" + from + ">" + to }

// Directory says at which public hosts another zone publishes an API.
type Directory struct {
	API   string   `json:"api"`
	Zone  string   `json:"zone"`
	Hosts []string `json:"hosts"`
}

// DirectoryID is a directory row's object id.
func DirectoryID(zone, api string) string { return zone + "/" + api }

// Key is an API key's digest and whom it belongs to.
type Key struct {
	ID           string        `json:"id"`
	Digest       apikey.Digest `json:"-"`
	DigestHex    string        `json:"digest"`
	Customer     string        `json:"customer"`
	Subscription string        `json:"subscription"`
	Plan         string        `json:"plan"`
	Suspended    bool          `json:"suspended,omitempty"`
	Overdue      bool          `json:"overdue,omitempty"` // 402 until it is paid
	// Ends is when the key ends, unix s; 0: not by itself. It is in what edges hold, so that it comes true on one that
	// nobody reaches.
	Ends int64 `json:"ends,omitempty"`
	// Scopes are separated by spaces, From (CIDR blocks that the key works from; "": everywhere) by commas: texts, since many
	// keys share few of them. Since 2026-11-26; an edge of before enforces neither, and is sent a key with one of them as
	// suspended (keyWire).
	Scopes string `json:"scopes,omitempty"`
	From   string `json:"from,omitempty"`
	// Needs is the level of fields that an edge must know to take the key, where that is more than follows from the fields
	// above: from a newer control node.
	Needs Level `json:"needs,omitempty"`
}

// Node is an edge of another region that may relay to this one.
type Node struct {
	Name   string `json:"name"`
	Zone   string `json:"zone"`
	Region string `json:"region"`
}

// ZoneKey verifies grants signed by a zone.
type ZoneKey struct {
	Zone      string `json:"zone"`
	PublicKey []byte `json:"public_key"` // Ed25519
}

// Region is a region of the edge's own zone that serves requests, as DNS needs it.
type Region struct {
	Name    string   `json:"name"`
	Zone    string   `json:"zone"`
	Clients []string `json:"clients,omitempty"` // CIDR blocks of clients that are led here first
	Drain   string   `json:"drain,omitempty"`   // why nobody is led here; "": not drained
}

// Drain is the own zone's word that clients are led away from a region; Region.Drain is the catalog's.
type Drain struct {
	Region string `json:"region"`
	Reason string `json:"reason"`
}

// Switch turns a feature of the edge off while it is there: http3, detail, relay, dns.
type Switch struct {
	Feature string `json:"feature"`
	API     string `json:"api,omitempty"` // zone/name, of relay: of this API alone
}

// SwitchID is a switch's object id.
func SwitchID(s Switch) string {
	if s.API == "" {
		return s.Feature
	}
	return s.Feature + "/" + s.API
}

// Doors are an edge of the own zone and where clients reach it.
type Doors struct {
	Edge      string   `json:"edge"`
	Region    string   `json:"region"`
	Zone      string   `json:"zone"`
	Addresses []string `json:"addresses,omitempty"` // IPv4 and IPv6; none: clients are not led to it
	HTTPSPort int      `json:"https_port,omitempty"`
	DNS       bool     `json:"dns,omitempty"` // it also answers DNS there
}

// SignedBytes is what the zone's signature of an update covers: the edge's name binds it to one data plane,
// so that a message for a neighbour, though truly signed, is refused. Of the payload there is the hash, which edges that
// hold the same share.
func SignedBytes(edge string, payload [sha256.Size]byte) []byte {
	b := make([]byte, 0, len(signDomain)+len(edge)+1+len(payload))
	b = append(append(append(b, signDomain...), edge...), '\n')
	return append(b, payload[:]...)
}

// SignedWhole is the same as programs from before know it: of the payload, which names the edge as well.
func SignedWhole(edge string, payload []byte) []byte {
	b := make([]byte, 0, len(wholeDomain)+len(edge)+1+len(payload))
	b = append(append(append(b, wholeDomain...), edge...), '\n')
	return append(b, payload...)
}

const (
	signDomain  = "bailiwick-table/2\n"
	wholeDomain = "bailiwick-table/1\n"
)

// Encode gives an object's canonical bytes: JSON with the field order of the types above and map keys sorted.
func Encode(kind Kind, id string, value any) (Object, error) {
	data, err := json.Marshal(value)
	if err != nil {
		return Object{}, fmt.Errorf("encode %s %s: %w", kind, id, err)
	}
	return Object{Kind: kind, ID: id, Data: data}, nil
}

// Decode reads an object of a known kind into value; a malformed one is an Invalid fault naming it.
// Fields that this program does not know are ignored: an older edge serves under a newer control node.
func Decode(o Object, value any) error {
	if err := json.Unmarshal(o.Data, value); err != nil {
		return fault.New(fault.Invalid, "OBJECT_MALFORMED", "decode %s %s: %w", o.Kind, o.ID, err)
	}
	return nil
}
