package identity

import (
	"crypto/tls"
	"crypto/x509"
	"slices"
	"time"

	"bailiwick/shared/fault"
)

// ServerTLS is for accepting our own nodes: TLS 1.3, a verified node
// certificate required, no session tickets (a resumed session would outlive a
// withdrawal and a change of roots). alpn must be complete: later changes of
// the returned config's NextProtos have no effect, since the config is made
// anew for each handshake from the current certificate and roots.
//
// allow is asked in every handshake, with the verified name, before the first
// byte; nil allows every node of the installation. Its error ends the handshake.
func (s *Source) ServerTLS(alpn []string, allow func(Name) error) *tls.Config {
	alpn = slices.Clone(alpn)
	build := func() *tls.Config {
		m := s.cur.Load()
		return &tls.Config{
			MinVersion:             tls.VersionTLS13,
			Certificates:           []tls.Certificate{m.cert},
			NextProtos:             alpn,
			ClientAuth:             tls.RequireAndVerifyClientCert,
			ClientCAs:              m.roots,
			SessionTicketsDisabled: true,
			VerifyConnection: func(cs tls.ConnectionState) error {
				n, err := PeerName(cs)
				if err != nil {
					return err
				}
				return s.admit(n, cs.PeerCertificates[0], allow)
			},
		}
	}
	// The outer config holds everything too: should a library drop
	// GetConfigForClient, it still refuses strangers.
	cfg := build()
	cfg.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) { return build(), nil }
	return cfg
}

// ClientTLS is for dialling our own nodes. Nodes have no DNS names: the chain
// is verified against the current roots and the SPIFFE name goes to allow,
// which says whether it is the node that was meant. nil allows every node of
// the installation.
func (s *Source) ClientTLS(alpn []string, allow func(Name) error) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: slices.Clone(alpn),
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return &s.cur.Load().cert, nil
		},
		// Only the check of a host name is skipped: VerifyConnection does all the rest.
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			n, err := s.Peer(cs)
			if err != nil {
				return err
			}
			return s.admit(n, cs.PeerCertificates[0], allow)
		},
	}
}

// Peer is the name of the server of a connection dialled with ClientTLS. It
// verifies the chain again, against the current roots.
func (s *Source) Peer(cs tls.ConnectionState) (Name, error) {
	leaf, err := verify(cs.PeerCertificates, s.cur.Load().roots, x509.ExtKeyUsageServerAuth, time.Now())
	if err != nil {
		return Name{}, err
	}
	return CertificateName(leaf)
}

// RefuseOlder makes every later handshake refuse certificates issued before since says that the node of their
// name joined: a name that was withdrawn and given to another node must not let the first one's certificate in
// again. since must not block; zero takes any. Call it before the Source is used by others.
func (s *Source) RefuseOlder(since func(Name) time.Time) { s.since = since }

func (s *Source) admit(n Name, leaf *x509.Certificate, allow func(Name) error) error {
	if s.since != nil {
		// Issuers backdate by a minute or a twentieth of the lifetime at most, and certificates count in seconds.
		slack := min(time.Minute, leaf.NotAfter.Sub(leaf.NotBefore)/20) + time.Second
		if at := s.since(n); leaf.NotBefore.Add(slack).Before(at) {
			return fault.New(fault.Denied, ReasonOutdated, "peer %s shows a certificate from before that node joined at %s", n, at.UTC().Format(time.RFC3339))
		}
	}
	if own := s.Name().Installation; n.Installation != own {
		return fault.New(fault.Denied, ReasonForeign, "peer %s is not of the installation %s", n, own)
	}
	if allow == nil {
		return nil
	}
	return allow(n)
}

// Only allows one node of a zone: for dialling a node by name.
func Only(kind, zone, node string) func(Name) error {
	return func(n Name) error {
		if n.Kind != kind || n.Zone != zone || n.Node != node {
			return fault.New(fault.Denied, ReasonWrongPeer, "peer is %s, want the %s node %s of zone %s", n, kind, node, zone)
		}
		return nil
	}
}

// verify checks a chain, leaf first, and returns the leaf.
func verify(chain []*x509.Certificate, roots *x509.CertPool, usage x509.ExtKeyUsage, at time.Time) (*x509.Certificate, error) {
	if len(chain) == 0 || roots == nil { // nil roots would mean the system's
		return nil, fault.New(fault.Denied, ReasonUnverified, "verify the peer: no certificate or no roots")
	}
	inter := x509.NewCertPool()
	for _, c := range chain[1:] {
		inter.AddCert(c)
	}
	_, err := chain[0].Verify(x509.VerifyOptions{
		Roots: roots, Intermediates: inter, CurrentTime: at, KeyUsages: []x509.ExtKeyUsage{usage},
	})
	if err != nil {
		return nil, fault.New(fault.Denied, ReasonUnverified, "verify the peer: %w", err)
	}
	return chain[0], nil
}
