package controlplane

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"bailiwick/controlplane/internal/adminapi"
	"bailiwick/controlplane/internal/claim"
	"bailiwick/controlplane/internal/group"
	"bailiwick/controlplane/internal/group/etcdgroup"
	"bailiwick/controlplane/internal/model"
	"bailiwick/controlplane/internal/pki"
	"bailiwick/controlplane/internal/rotation"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
)

// The engines of the catalog and the zone's store. The ledger is raft's with either.
const (
	EngineRaft = "raft"
	EngineEtcd = "etcd"
)

// Stores says where the catalog and the zone's store rest. All nodes of an installation have the same engine.
type Stores struct {
	Engine  string // "", EngineRaft: on this node and its like; EngineEtcd: in the two that follow
	Zone    Etcd   // the zone's, in the zone
	Catalog Etcd   // the installation's; without Endpoints, which is for an installation of one zone, it is Zone
}

// Etcd is how an etcd cluster is reached.
type Etcd struct {
	Endpoints              []string // https://host:2379; http on loopback alone
	CAFile                 string   // what its certificates are verified with; "": the system's
	CertFile, KeyFile      string   // this node's own, if it asks for one; read again at each connection
	Username, PasswordFile string   // if it asks for one
	Prefix                 string   // of all keys; "": bailiwick/INSTALLATION/. A group's name follows it
}

// Validate says what is missing. What depends on the installation, resolve checks.
func (s Stores) Validate() error {
	switch s.Engine {
	case "", EngineRaft:
		if len(s.Zone.Endpoints)+len(s.Catalog.Endpoints) > 0 {
			return fault.New(fault.Invalid, "ETCD_NOT_ASKED_FOR", "endpoints of etcd are given, and the store is raft's: say -store etcd, or leave them out")
		}
		return nil
	case EngineEtcd:
	default:
		return fault.New(fault.Invalid, "STORE_UNKNOWN", "-store %s: choose raft or etcd", s.Engine)
	}
	if len(s.Zone.Endpoints) == 0 {
		return fault.New(fault.Invalid, "ETCD_ENDPOINTS_REQUIRED", "-store etcd: -etcd-endpoints is required: the cluster in this zone that keeps the zone's store")
	}
	if c := s.Catalog; len(c.Endpoints) == 0 && c.CAFile+c.CertFile+c.KeyFile+c.Username+c.PasswordFile+c.Prefix != "" {
		return fault.New(fault.Invalid, "ETCD_ENDPOINTS_REQUIRED", "-etcd-catalog-endpoints is required beside the other -etcd-catalog flags")
	}
	for flag, e := range map[string]Etcd{"-etcd": s.Zone, "-etcd-catalog": s.Catalog} {
		if err := e.validate(flag); err != nil {
			return err
		}
	}
	return nil
}

func (e Etcd) validate(flag string) error {
	for _, text := range e.Endpoints {
		u, err := url.Parse(text)
		switch {
		case err != nil || u.Host == "" || u.Scheme != "https" && u.Scheme != "http":
			return fault.New(fault.Invalid, "ETCD_ENDPOINT", "%s-endpoints: %q is no https://host:port", flag, text)
		case u.Scheme == "http" && !loopback(u.Hostname()):
			return fault.New(fault.Invalid, "ETCD_IN_THE_CLEAR", "%s-endpoints: %s: what goes there is not for others to read: use https, or loopback", flag, text)
		}
	}
	switch {
	case (e.CertFile == "") != (e.KeyFile == ""):
		return fault.New(fault.Invalid, "ETCD_CERTIFICATE", "%s-cert and %s-key come together", flag, flag)
	case (e.Username == "") != (e.PasswordFile == ""):
		return fault.New(fault.Invalid, "ETCD_PASSWORD", "%s-user and %s-password-file come together", flag, flag)
	}
	return nil
}

func loopback(host string) bool {
	ip := net.ParseIP(host)
	return host == "localhost" || ip != nil && ip.IsLoopback()
}

// resolve is what the flags mean in an installation, for a node of one of its zones.
func (s Stores) resolve(in *pki.Installation, zone string) (Stores, error) {
	if err := s.Validate(); err != nil || s.Engine != EngineEtcd {
		return s, err
	}
	if len(in.Zones) > 1 {
		// Each zone would have a catalog of its own, or keep its customers where the catalog is: in the primary zone.
		if len(s.Catalog.Endpoints) == 0 {
			return s, fault.New(fault.Invalid, "ETCD_CATALOG_REQUIRED", "-store etcd: -etcd-catalog-endpoints is required: installation %s has %d zones, which share one catalog and nothing else", in.Name, len(in.Zones))
		}
		if zone != in.PrimaryZone && slices.ContainsFunc(s.Zone.Endpoints, func(e string) bool { return slices.Contains(s.Catalog.Endpoints, e) }) {
			return s, fault.New(fault.WrongZone, "STORE_LEAVES_ITS_ZONE", "-etcd-endpoints and -etcd-catalog-endpoints name one cluster: the catalog rests in zone %s, and the store of zone %s must rest in %s: give it a cluster there", in.PrimaryZone, zone, zone)
		}
	}
	if len(s.Catalog.Endpoints) == 0 {
		s.Catalog = s.Zone
	}
	for _, e := range []*Etcd{&s.Zone, &s.Catalog} {
		if e.Prefix == "" {
			e.Prefix = "bailiwick/" + in.Name + "/"
		}
	}
	return s, nil
}

// below is the prefix of all that an installation keeps there.
func (e Etcd) below() string { return strings.TrimSuffix(e.Prefix, "/") + "/" }

// config is how the engine is told of one group.
func (e Etcd) config(groupName, node string) (etcdgroup.Config, error) {
	cfg := etcdgroup.Config{Name: groupName, Node: node, Endpoints: e.Endpoints, Prefix: e.below() + groupName + "/", Username: e.Username}
	if e.PasswordFile != "" {
		password, err := os.ReadFile(e.PasswordFile)
		if err != nil {
			return cfg, fmt.Errorf("read the password of etcd: %w", err)
		}
		cfg.Password = strings.TrimSpace(string(password))
	}
	if !slices.ContainsFunc(e.Endpoints, func(u string) bool { return strings.HasPrefix(u, "https://") }) {
		return cfg, nil
	}
	cfg.TLS = &tls.Config{MinVersion: tls.VersionTLS12} // etcd's own default
	if e.CAFile != "" {
		text, err := os.ReadFile(e.CAFile)
		if err != nil {
			return cfg, fmt.Errorf("read the CA of etcd: %w", err)
		}
		cfg.TLS.RootCAs = x509.NewCertPool()
		if !cfg.TLS.RootCAs.AppendCertsFromPEM(text) {
			return cfg, fault.New(fault.Invalid, "CA_UNREADABLE", "%s holds no certificate", e.CAFile)
		}
	}
	if e.CertFile != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(e.CertFile, e.KeyFile)
			return &pair, err
		}
		if _, err := load(); err != nil { // now, not when it is first asked for
			return cfg, fmt.Errorf("read this node's certificate for etcd: %w", err)
		}
		cfg.TLS.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return cfg, nil
}

// openEtcd opens the catalog and the zone's store in etcd.
func (n *Node) openEtcd(s Stores) error {
	owners := newClusters(n.in, n.self.Zone, n.self.Name, filepath.Join(n.cfg.Dir, "etcd", "store.cluster"), cmp.Or(n.cfg.objection, claim.Window))
	n.clusters = owners
	open := func(e Etcd, name, file string, observer bool, claim *etcdgroup.Claim, restored func(etcdgroup.Restored) ([]group.Op, error)) (engine, error) {
		cfg, err := e.config(name, n.self.Name)
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(n.cfg.Dir, "etcd")
		if err := durable.OS().MkdirAll(dir, durable.DirPerm); err != nil {
			return nil, err
		}
		// The zone's nodes tell each other their clocks in the ledger's group, which is raft's whatever holds the stores.
		cfg.ClockAgrees = func() bool { return n.replica.ClockAgrees(rotation.MaxApart) }
		cfg.Observer, cfg.Claim, cfg.Seen, cfg.Restored, cfg.Logger, cfg.OnFatal = observer, claim, filepath.Join(dir, file), restored, n.log, n.fail
		return etcdgroup.Open(cfg)
	}
	// Leading the catalog is for nodes of the primary zone, as with raft: what is done once for all zones is done there.
	catalog, err := open(s.Catalog, catalogGroup, "catalog.seen", n.self.Zone != n.in.PrimaryZone,
		owners.claim(s.Catalog.below(), n.in.PrimaryZone, "-etcd-catalog", true), nil)
	if err != nil {
		return err
	}
	n.catalog = catalog
	n.registry.Store(&pki.Registry{Catalog: n.catalog, Installation: n.in})
	n.store, err = open(s.Zone, storeGroup(n.self.Zone), "zone.seen", false, owners.claim(s.Zone.below(), n.self.Zone, "-etcd", false), n.setBack)
	return err
}

// setBack is how a zone store begins a new epoch when its etcd was found to hold less than it did: with a record of that,
// signed. That a new epoch closes what crosses zones is the border's own rule.
func (n *Node) setBack(r etcdgroup.Restored) ([]group.Op, error) {
	by := "bailiwick-control on " + n.self.Name
	record := model.Recovery{Zone: n.self.Zone, Node: n.self.Name, Operator: by, Reason: r.Why, At: time.Now().UTC().Truncate(time.Millisecond),
		Groups: []model.RecoveredGroup{{Group: storeGroup(n.self.Zone), Incarnation: r.Opened.Epoch, Last: r.Found.Index, Kept: &r.Found.Index, Members: []string{}}}}
	n.log.Error("etcd holds less than it did: a new epoch begins, and pairs that cross zones are closed until they are approved", "group", storeGroup(n.self.Zone), "reason", r.Why)
	return recoveryOps(n.secrets.Signer, &record, r.Opened.Epoch, "set back"), nil
}

// fileStores says in a node's directory what holds its catalog and its zone's store.
const fileStores = "stores.json"

type storesMark struct {
	Engine string `json:"engine"`
}

// settled refuses an engine that is not the one this node was first started with: it would begin with nothing, and with
// raft perhaps elect itself.
func settled(dir, engine string) error {
	if engine == "" {
		engine = EngineRaft
	}
	was, err := storesOf(dir)
	switch {
	case err != nil:
		return err
	case was == "":
		return markStores(dir, engine)
	case was != engine:
		return fault.New(fault.Conflict, "STORE_ENGINE_CHANGED", "the catalog and the zone's store of the node in %s are %s's: run it with -store %s; an installation does not move from one engine to the other", dir, was, was)
	}
	return nil
}

// storesOf is the engine that a node was first started with, "" if it never was.
func storesOf(dir string) (string, error) {
	data, err := durable.ReadFile(durable.OS(), filepath.Join(dir, fileStores), 1<<10)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Stat(filepath.Join(dir, "catalog", "raft.db")); err == nil { // of before there was a choice
			return EngineRaft, nil
		}
		return "", nil
	}
	if err != nil {
		return "", err
	}
	var m storesMark
	if err := json.Unmarshal(data, &m); err != nil || m.Engine != EngineRaft && m.Engine != EngineEtcd {
		return "", fault.New(fault.Invalid, "STORES_UNREADABLE", "%s names no engine that this program knows: a newer bailiwick-control wrote it, or it is damaged", filepath.Join(dir, fileStores))
	}
	return m.Engine, nil
}

func markStores(dir, engine string) error {
	return durable.WriteFileAtomic(durable.OS(), filepath.Join(dir, fileStores), append(model.Encode(storesMark{Engine: engine}), '\n'), durable.FilePerm)
}

// ReasonInEtcd is the reason of the error of what only groups of raft can do.
const ReasonInEtcd = "GROUP_IN_ETCD"

// inEtcd is that error, with what is done in its place; nil for groups of raft.
func (n *Node) inEtcd(name, what, instead string) error {
	if n.cfg.Stores.Engine != EngineEtcd || name != catalogGroup && name != storeGroup(n.self.Zone) {
		return nil
	}
	return fault.New(fault.Unimplemented, ReasonInEtcd, "%s %s: the group rests in etcd: %s", what, name, instead).At("group")
}

// membersBeside are the groups in etcd: of a control node there is but the one that works for the group now, and whose
// members etcd has, etcd knows.
func (n *Node) membersBeside() (rows []adminapi.Member) {
	if n.cfg.Stores.Engine != EngineEtcd {
		return nil
	}
	for _, s := range []engine{n.catalog, n.store} {
		leader, _ := s.Leader()
		rows = append(rows, adminapi.Member{Group: s.Name(), Node: leader, Server: "etcd", Role: "leader", Reachable: leader != "", Applied: s.Local().Revision().Index})
	}
	return rows
}
