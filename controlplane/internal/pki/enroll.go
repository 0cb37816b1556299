package pki

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/peer"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/shared/fault"
	"bailiwick/shared/identity"
	"bailiwick/shared/table"
)

// Reasons of the doors. The kind is Denied unless said otherwise.
const (
	ReasonTokenUnknown = "TOKEN_UNKNOWN"
	ReasonTokenUsed    = "TOKEN_USED"
	ReasonTokenExpired = "TOKEN_EXPIRED"
	ReasonTokenRegion  = "TOKEN_REGION_MISMATCH"
	ReasonTokenName    = "TOKEN_NAME_MISMATCH"
	ReasonTokenInvalid = "TOKEN_INVALID"      // Invalid: what a token is asked for makes no sense
	ReasonNameTaken    = "NODE_NAME_TAKEN"    // Conflict
	ReasonWithdrawn    = "NODE_WITHDRAWN"     // not in the registry
	ReasonRelayAddr    = "RELAY_ADDR_INVALID" // Invalid
	ReasonHost         = "HOST_NOT_IN_ZONE"
	ReasonNotAnEdge    = "NOT_AN_EDGE" // an edge of this zone is wanted
	ReasonBusy         = "JOIN_BUSY"   // Exhausted
)

// MaxTokenTTL is the default and the most of a join token's life.
const MaxTokenTTL = 15 * time.Minute

const (
	maxJoins       = 16                  // at once: each costs reads of a quorum, and strangers may call
	tokenKept      = 24 * time.Hour      // after its expiry, so that the answer is TOKEN_EXPIRED and not UNKNOWN
	defaultHostTTL = 30 * 24 * time.Hour // an edge serves alone until its first host certificate expires
)

// EnrollConfig is what the doors need.
type EnrollConfig struct {
	CA           *CA           // required
	Secrets      *ZoneSecrets  // required
	Installation *Installation // required
	RootsPEM     []byte        // required
	Catalog      group.Store   // required: node registry, regions, APIs
	ZoneStore    group.Store   // required: join tokens
	// Allow is the registry's word on a caller, the same as of the peer port. Required.
	Allow func(identity.Name) error
	// Dir is the node's own kit, of which a control node that joins gets its zone's part; "": none can join.
	Dir string
	// Incarnations are those of the groups that a control node of this zone takes part in. Required with Dir.
	Incarnations func() map[string]uint64
	HostTTL      time.Duration // of host certificates; zero is 30 days
	Logger       *slog.Logger  // nil is silent
}

// Enroll is joinv1connect's JoinServiceHandler (admin port) and
// IdentityServiceHandler (peer port).
type Enroll struct {
	cfg   EnrollConfig
	log   *slog.Logger
	joins chan struct{}
}

// NewEnroll checks cfg.
func NewEnroll(cfg EnrollConfig) (*Enroll, error) {
	if cfg.CA == nil || cfg.Secrets == nil || cfg.Installation == nil || cfg.Catalog == nil || cfg.ZoneStore == nil || cfg.Allow == nil {
		return nil, errors.New("enroll: CA, Secrets, Installation, Catalog, ZoneStore and Allow are required")
	}
	if _, _, err := identity.ParseRoots(cfg.RootsPEM); err != nil {
		return nil, fmt.Errorf("enroll: %w", err)
	}
	if cfg.HostTTL == 0 {
		cfg.HostTTL = defaultHostTTL
	}
	e := &Enroll{cfg: cfg, log: cfg.Logger, joins: make(chan struct{}, maxJoins)}
	if e.log == nil {
		e.log = slog.New(slog.DiscardHandler)
	}
	return e, nil
}

// claimedToken is a join token as it rests: model.JoinToken and who used it.
type claimedToken struct {
	model.JoinToken
	// UsedBy is the SHA-256 of the public key that used it, hexadecimal. The same
	// key may ask again within the token's life: an answer can get lost.
	UsedBy string `json:"used_by,omitempty"`
	// Done: the node was registered. From then on its absence from the registry
	// is a withdrawal, which asking again must not undo.
	Done bool `json:"done,omitempty"`
}

// Join buys a certificate with a token. It claims the token for the caller's
// key, then registers the node, then signs: after a crash in between the same
// key asks again and goes on where it stopped.
func (e *Enroll) Join(ctx context.Context, req *joinv1.JoinRequest) (*joinv1.JoinResponse, error) {
	select {
	case e.joins <- struct{}{}:
		defer func() { <-e.joins }()
	default:
		return nil, fault.New(fault.Exhausted, ReasonBusy, "join: %d joins are going on: try again in a second", maxJoins)
	}
	if req.GetRelayAddr() != "" {
		if _, port, err := net.SplitHostPort(req.GetRelayAddr()); err != nil || port == "" || len(req.GetRelayAddr()) > 255 {
			return nil, fault.New(fault.Invalid, ReasonRelayAddr, "join: relay address %.80q is not host:port", req.GetRelayAddr()).At("relay_addr")
		}
	}
	if err := checkControlAddrs(req); err != nil {
		return nil, err
	}
	csr, err := parseCSR(req.GetCsr())
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(csr.RawSubjectPublicKeyInfo)
	by := hex.EncodeToString(sum[:])
	if !e.ours(req.GetToken()) {
		return nil, fault.New(fault.Denied, ReasonTokenUnknown, "join: the token is not one of zone %s", e.cfg.CA.Zone())
	}
	key := tokenKey(req.GetToken())
	tok, mod, err := e.claim(ctx, key, req, by)
	if err != nil {
		return nil, err
	}
	enter := e.register
	if tok.Kind == identity.Control {
		enter = e.registerControl
	}
	index, joined, err := enter(ctx, tok, req)
	if err != nil {
		return nil, err
	}
	if !tok.Done {
		tok.Done = true
		// A lost race is with the same key asking twice: both may have their answer.
		if _, err := e.cfg.ZoneStore.Txn(ctx, group.Txn{
			Compares: []group.Compare{{Key: key, ModIndex: mod}},
			Ops:      []group.Op{{Key: key, Value: model.Encode(tok)}},
		}); err != nil {
			return nil, err
		}
	}
	// So that the certificate works at this node at once.
	if err := e.cfg.Catalog.WaitFor(ctx, index); err != nil {
		return nil, err
	}
	name := e.name(tok.Kind, tok.Region, tok.Name)
	// Not before it joined, also if another node entered it whose clock is ahead: see Registry.Since.
	now := time.Now()
	if joined.After(now) {
		now = joined
	}
	chain, err := e.cfg.CA.SignNode(req.GetCsr(), name, e.cfg.Installation.IdentityTTL, now)
	if err != nil {
		return nil, err
	}
	out := &joinv1.JoinResponse{
		CertificateChain: chain, Roots: e.cfg.RootsPEM,
		Name: tok.Name, Region: tok.Region, Zone: e.cfg.CA.Zone(), TrustDomain: e.cfg.CA.TrustDomain(),
		TableSigningKey: e.cfg.Secrets.Signer.Public().(ed25519.PublicKey),
	}
	if tok.Kind == identity.Control {
		if out.Control, err = e.controlKit(tok.Name); err != nil {
			return nil, err
		}
	} else {
		out.Pepper, out.CertSealKey = e.cfg.Secrets.Pepper, e.cfg.Secrets.CertSeal
		out.PeerAddrs, out.PeerRegions = e.peers()
	}
	e.log.Info("node joined", "name", name.String())
	return out, nil
}

// claim makes the token this key's, or finds that it is. Time is the leader's
// stamp on a transaction, not this node's clock.
func (e *Enroll) claim(ctx context.Context, key string, req *joinv1.JoinRequest, by string) (claimedToken, uint64, error) {
	none := claimedToken{}
	for range 8 {
		kv, ok, _, err := e.cfg.ZoneStore.Get(ctx, key)
		if err != nil {
			return none, 0, err
		}
		if !ok {
			return none, 0, fault.New(fault.Denied, ReasonTokenUnknown, "join: no such token: ask for a new one")
		}
		tok, err := model.Decode[claimedToken](model.PrefixJoinToken, kv.Value)
		if err != nil {
			return none, 0, err
		}
		switch {
		case tok.Name != req.GetName():
			return none, 0, fault.New(fault.Denied, ReasonTokenName, "join: the token is for another node than %.80q", req.GetName())
		case tok.Region != req.GetRegion():
			return none, 0, fault.New(fault.Denied, ReasonTokenRegion, "join: the token is for another region than %.80q", req.GetRegion())
		case tok.Used && tok.UsedBy != by:
			return none, 0, fault.New(fault.Denied, ReasonTokenUsed, "join: the token was used before: ask for a new one")
		}
		txn := group.Txn{Compares: []group.Compare{{Key: key, ModIndex: kv.ModIndex}}}
		fresh := !tok.Used
		if fresh {
			if err := e.mayRegister(ctx, tok); err != nil { // before the token is spent
				return none, 0, err
			}
			tok.Used, tok.UsedBy = true, by
			txn.Ops = []group.Op{{Key: key, Value: model.Encode(tok)}}
		}
		res, err := e.cfg.ZoneStore.Txn(ctx, txn)
		if err != nil {
			return none, 0, err
		}
		if !res.Succeeded {
			continue // somebody else's claim: look again
		}
		// An expired token is spent by the look at it, which costs nobody anything.
		if res.Time.After(tok.ExpiresAt) {
			return none, 0, fault.New(fault.Denied, ReasonTokenExpired, "join: the token expired at %s: ask for a new one", tok.ExpiresAt.UTC().Format(time.RFC3339))
		}
		mod := kv.ModIndex
		if fresh {
			mod = res.Revision.Index
		}
		return tok, mod, nil
	}
	return none, 0, fault.New(fault.Conflict, ReasonTokenUsed, "join: the token changes all the time")
}

func (e *Enroll) mayRegister(ctx context.Context, tok claimedToken) error {
	kv, ok, _, err := e.cfg.Catalog.Get(ctx, model.PrefixNode+tok.Name)
	if err != nil || !ok {
		return err
	}
	_, err = e.sameNode(kv, tok)
	return err
}

func (e *Enroll) sameNode(kv group.KV, tok claimedToken) (model.Node, error) {
	n, err := model.Decode[model.Node](kv.Key, kv.Value)
	if err == nil && (n.Kind != tok.Kind || n.Region != tok.Region || n.Zone != e.cfg.CA.Zone()) {
		err = fault.New(fault.Conflict, ReasonNameTaken, "register node %s: the name is taken by the %s node of region %s: choose another or remove that one", tok.Name, n.Kind, n.Region)
	}
	return n, err
}

// register enters the node in the catalog and returns the index to wait for and when the node joined.
func (e *Enroll) register(ctx context.Context, tok claimedToken, req *joinv1.JoinRequest) (uint64, time.Time, error) {
	never, relayAddr := time.Time{}, req.GetRelayAddr()
	key := model.PrefixNode + tok.Name
	for range 8 {
		kv, ok, rev, err := e.cfg.Catalog.Get(ctx, key)
		if err != nil {
			return 0, never, err
		}
		n := model.Node{Name: tok.Name, Kind: tok.Kind, Region: tok.Region, Zone: e.cfg.CA.Zone(), JoinedAt: time.Now().UTC().Truncate(time.Millisecond)}
		switch {
		case ok:
			if n, err = e.sameNode(kv, tok); err != nil {
				return 0, never, err
			}
			if n.RelayAddr == relayAddr {
				return rev.Index, n.JoinedAt, nil
			}
		case tok.Done:
			return 0, never, fault.New(fault.Denied, ReasonWithdrawn, "join: node %s was withdrawn: ask for a new token", tok.Name)
		}
		n.RelayAddr = relayAddr
		res, err := e.cfg.Catalog.Txn(ctx, group.Txn{
			Compares: []group.Compare{{Key: key, ModIndex: kv.ModIndex}},
			Ops:      []group.Op{{Key: key, Value: model.Encode(n)}, levelOf(tok.Name, req)},
		})
		if err != nil {
			return 0, never, err
		}
		if res.Succeeded {
			return res.Revision.Index, n.JoinedAt, nil
		}
	}
	return 0, never, fault.New(fault.Conflict, ReasonNameTaken, "register node %s: its entry changes all the time", tok.Name)
}

// levelOf is what a node that joins says of its program.
func levelOf(name string, req *joinv1.JoinRequest) group.Op {
	return group.Op{Key: model.PrefixLevel + name, Value: model.Encode(model.NodeLevel{Name: name, Level: table.Level(req.GetLevel())})}
}

func (e *Enroll) name(kind, region, node string) identity.Name {
	return identity.Name{Zone: e.cfg.CA.zone, Installation: e.cfg.CA.installation, Region: region, Kind: kind, Node: node}
}

func (e *Enroll) peers() (list []string, regions map[string]string) {
	addrs := map[string]string{}
	regions = map[string]string{}
	for _, n := range e.cfg.Installation.InZone(e.cfg.CA.Zone()) {
		addrs[n.Name], regions[n.Name] = n.Peer, n.Region
	}
	// The registry is newer than the installation file.
	for kv := range e.cfg.Catalog.Local().List(model.PrefixNode) {
		if n, err := model.Decode[model.Node](kv.Key, kv.Value); err == nil && n.Kind == identity.Control && n.Zone == e.cfg.CA.Zone() && n.PeerAddr != "" {
			addrs[n.Name], regions[n.Name] = n.PeerAddr, n.Region
		}
	}
	for name, addr := range addrs {
		list = append(list, name+"="+addr)
	}
	slices.Sort(list)
	return list, regions
}

// Renew signs the caller's own name anew, whatever the request says.
func (e *Enroll) Renew(ctx context.Context, req *joinv1.RenewRequest) (*joinv1.RenewResponse, error) {
	n, err := e.caller(ctx)
	if err != nil {
		return nil, err
	}
	chain, err := e.RenewFor(n, req.GetCsr())
	if err != nil {
		return nil, err
	}
	return &joinv1.RenewResponse{CertificateChain: chain, Roots: e.cfg.RootsPEM}, nil
}

// RenewFor signs for a node of the zone that the registry holds: a control node
// renews its own certificate with it.
func (e *Enroll) RenewFor(n identity.Name, csrDER []byte) (chainPEM []byte, err error) {
	if err := e.cfg.Allow(n); err != nil {
		return nil, err
	}
	return e.cfg.CA.SignNode(csrDER, n, e.cfg.Installation.IdentityTTL, time.Now())
}

// IssueHost signs a host certificate for an edge of the zone, for hosts of APIs
// of the zone and for nothing else.
func (e *Enroll) IssueHost(ctx context.Context, req *joinv1.IssueHostRequest) (*joinv1.IssueHostResponse, error) {
	n, err := e.caller(ctx)
	if err != nil {
		return nil, err
	}
	if n.Kind != identity.Edge {
		return nil, fault.New(fault.Denied, ReasonNotAnEdge, "issue host certificate: %s is not an edge", n)
	}
	csr, err := parseCSR(req.GetCsr())
	if err != nil {
		return nil, err
	}
	if err := e.checkHosts(ctx, csr); err != nil {
		return nil, err
	}
	chain, err := e.cfg.CA.SignHost(req.GetCsr(), csr.DNSNames, e.cfg.HostTTL, time.Now())
	if err != nil {
		return nil, err
	}
	e.log.Info("host certificate issued", "hosts", csr.DNSNames, "to", n.Node)
	return &joinv1.IssueHostResponse{CertificateChain: chain}, nil
}

func (e *Enroll) caller(ctx context.Context) (identity.Name, error) {
	n, ok := peer.NameFrom(ctx)
	if !ok {
		return n, fault.New(fault.Unauthenticated, identity.ReasonUnverified, "the caller has no verified certificate")
	}
	if n.TrustDomain() != e.cfg.CA.TrustDomain() {
		return n, fault.New(fault.Denied, identity.ReasonWrongPeer, "%s is not of zone %s", n, e.cfg.CA.Zone())
	}
	return n, e.cfg.Allow(n)
}

func (e *Enroll) checkHosts(ctx context.Context, csr *x509.CertificateRequest) error {
	if len(csr.DNSNames) == 0 || len(csr.DNSNames) > 100 || len(csr.IPAddresses)+len(csr.URIs)+len(csr.EmailAddresses) > 0 {
		return fault.New(fault.Invalid, ReasonCSR, "issue host certificate: the request must name 1 to 100 DNS names and nothing else")
	}
	missing := e.missingHost(e.cfg.Catalog.Local(), csr.DNSNames)
	if missing == "" {
		return nil
	}
	// The edge may have heard of the API from a node that is ahead of this one.
	// With the catalog's quorum away the local answer stands.
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	if snap, err := e.cfg.Catalog.Sync(ctx); err == nil {
		missing = e.missingHost(snap, csr.DNSNames)
	}
	if missing == "" {
		return nil
	}
	return fault.New(fault.Denied, ReasonHost, "issue host certificate: %.253q is no host of an API of zone %s", missing, e.cfg.CA.Zone())
}

func (e *Enroll) missingHost(snap group.Snapshot, hosts []string) string {
	known := map[string]bool{}
	for kv := range snap.List(model.PrefixAPI) {
		if a, err := model.Decode[model.API](kv.Key, kv.Value); err == nil && a.Zone == e.cfg.CA.Zone() {
			for _, h := range a.Hosts {
				known[strings.ToLower(h)] = true
			}
		}
	}
	for _, h := range hosts {
		if !known[h] {
			return h
		}
	}
	return ""
}
