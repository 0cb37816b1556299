// Package identity owns who a node is: the SPIFFE name in its certificate, the
// certificate and roots on disk, the TLS configurations between our own parts,
// and the renewal of the certificate.
//
// It never issues a certificate, knows no registry (allow functions do) and
// never trusts a name that is not in a verified certificate. A crash leaves
// either the old certificate with the old key or the new with the new, never a
// mixture. Everything may be called from any goroutine at once.
package identity

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/url"
	"strings"

	"bailiwick/shared/fault"
)

// The kinds of node.
const (
	Control = "control"
	Edge    = "edge"
)

// Name is who a node is. Region and zone of a peer come from here and from
// nowhere else. Names compare with ==.
type Name struct {
	Zone         string // label: "emea"
	Installation string // dotted: "sandbox.example"
	Region       string
	Kind         string // Control or Edge
	Node         string
}

const scheme = "spiffe"

// ParseName reads spiffe://<zone>.<installation>/region/<region>/<kind>/<node>.
// Strict, because two spellings of one name would be two names to a registry:
// no port, user, query, escape or capital letter.
func ParseName(u *url.URL) (Name, error) {
	if u == nil {
		return Name{}, errors.New("parse identity name: no URI")
	}
	bad := func(why string) (Name, error) {
		return Name{}, fmt.Errorf("parse identity name %.200q: %s", u.String(), why)
	}
	if u.Scheme != scheme {
		return bad("scheme is not spiffe")
	}
	zone, installation, ok := strings.Cut(u.Host, ".")
	if !ok {
		return bad("trust domain is not <zone>.<installation>")
	}
	p := strings.Split(u.Path, "/")
	if len(p) != 5 || p[0] != "" || p[1] != "region" {
		return bad("path is not /region/<region>/<control|edge>/<name>")
	}
	n := Name{Zone: zone, Installation: installation, Region: p[2], Kind: p[3], Node: p[4]}
	if err := n.Validate(); err != nil {
		return bad(err.Error())
	}
	// Whatever the URL holds beside these parts (port, query, escapes, fragment) shows here.
	if n.String() != u.String() {
		return bad("URI holds more than a name")
	}
	return n, nil
}

// Validate tells whether every part is present and well-formed.
func (n Name) Validate() error {
	switch {
	case !label(n.Zone):
		return fmt.Errorf("zone %.80q is not a label of a-z, 0-9 and -", n.Zone)
	case !domain(n.Installation):
		return fmt.Errorf("installation %.80q is not a dotted name of a-z, 0-9 and -", n.Installation)
	case !label(n.Region):
		return fmt.Errorf("region %.80q is not a label of a-z, 0-9 and -", n.Region)
	case n.Kind != Control && n.Kind != Edge:
		return fmt.Errorf("kind %.80q is neither %s nor %s", n.Kind, Control, Edge)
	case !label(n.Node):
		return fmt.Errorf("node %.80q is not a label of a-z, 0-9 and -", n.Node)
	}
	return nil
}

// TrustDomain is <zone>.<installation>.
func (n Name) TrustDomain() string { return n.Zone + "." + n.Installation }

// URL is the name as it stands in a certificate.
func (n Name) URL() *url.URL {
	return &url.URL{Scheme: scheme, Host: n.TrustDomain(), Path: "/region/" + n.Region + "/" + n.Kind + "/" + n.Node}
}

// String is the text of URL, "" for the zero Name.
func (n Name) String() string {
	if n == (Name{}) {
		return ""
	}
	return n.URL().String()
}

func label(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for i := range len(s) {
		if c := s[i]; (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

func domain(s string) bool {
	if len(s) > 190 { // zone, dot and this must stay a host name
		return false
	}
	for part := range strings.SplitSeq(s, ".") {
		if !label(part) {
			return false
		}
	}
	return true
}

// Reasons of the errors with which a peer is refused; the kind is Denied.
const (
	ReasonUnverified = "PEER_UNVERIFIED"  // no certificate, or its chain does not verify
	ReasonNotAName   = "PEER_NOT_A_NODE"  // verified, but not the certificate of a node
	ReasonForeign    = "PEER_FOREIGN"     // a node of another installation
	ReasonOutdated   = "PEER_OUTDATED"    // a node of that name joined after this certificate was issued
	ReasonWrongPeer  = "PEER_NOT_ALLOWED" // for allow functions: a node, but not one that belongs here
)

// PeerName is the name of the verified peer of a connection accepted with
// ServerTLS. It refuses a connection whose chain crypto/tls has not verified,
// client connections among them: for those ask Source.Peer.
func PeerName(cs tls.ConnectionState) (Name, error) {
	if len(cs.VerifiedChains) == 0 || len(cs.VerifiedChains[0]) == 0 {
		return Name{}, fault.New(fault.Denied, ReasonUnverified, "read the peer's name: no verified certificate")
	}
	return CertificateName(cs.VerifiedChains[0][0])
}

// CertificateName is the name in a leaf that is already verified. A node's
// certificate carries exactly one URI and nothing else that could be taken for
// a name: so the certificate of an API host is never one.
func CertificateName(leaf *x509.Certificate) (Name, error) {
	refuse := func(format string, args ...any) (Name, error) {
		return Name{}, fault.New(fault.Denied, ReasonNotAName, "read the peer's name: "+format, args...)
	}
	switch {
	case leaf.IsCA:
		return refuse("it is the certificate of an authority")
	case len(leaf.URIs) != 1:
		return refuse("certificate holds %d URIs, a node's holds one", len(leaf.URIs))
	case len(leaf.DNSNames)+len(leaf.IPAddresses)+len(leaf.EmailAddresses) > 0:
		return refuse("certificate holds names beside the URI")
	}
	n, err := ParseName(leaf.URIs[0])
	if err != nil {
		return refuse("%w", err)
	}
	return n, nil
}
