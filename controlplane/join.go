package controlplane

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"connectrpc.com/connect"

	"bailiwick/controlplane/internal/group/raftgroup"
	"bailiwick/controlplane/internal/pki"
	joinv1 "bailiwick/proto/gen/bailiwick/join/v1"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/durable"
	"bailiwick/shared/fault"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/identity"
	"bailiwick/shared/table"
)

// Joining is what a machine needs to become a control node of a running zone.
type Joining struct {
	Dir          string   // required: its data directory; what an earlier node had there is set aside
	Name, Region string   // required, as the token says
	AdminURL     string   // required: https URL that people and edges will reach it at
	PeerAddr     string   // required: host:port that other nodes will reach it at
	Control      []string // required: admin URLs of control nodes of the zone
	RootsPEM     []byte   // required: what their certificates are verified with
	Token        string   // required: of kind control, valid once
}

// Validate says what is missing.
func (j Joining) Validate() error {
	for what, v := range map[string]string{"-dir": j.Dir, "-name": j.Name, "-region": j.Region, "-admin": j.AdminURL, "-peer": j.PeerAddr, "-control": strings.Join(j.Control, ""), "-join-token-file": j.Token} {
		if v == "" {
			return fault.New(fault.Invalid, "FLAG_REQUIRED", "join: %s is required", what)
		}
	}
	return nil
}

// Join buys a certificate and the zone's kit with the token, sets aside what the directory held, and makes the places of
// the node's groups: empty, with the ids that the registry has for it. Its groups take it in when it runs.
func Join(ctx context.Context, j Joining) (aside []string, err error) {
	if err := j.Validate(); err != nil {
		return nil, err
	}
	if err := stopped(j.Dir); err != nil { // before the token is spent
		return nil, err
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(j.RootsPEM) {
		return nil, fault.New(fault.Invalid, "CA_UNREADABLE", "join: the CA file holds no certificate")
	}
	keyPEM, csr, err := identity.NewKeyAndCSR()
	if err != nil {
		return nil, err
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	defer transport.CloseIdleConnections()
	req := &joinv1.JoinRequest{Token: j.Token, Csr: csr, Name: j.Name, Region: j.Region, AdminUrl: j.AdminURL, PeerAddr: j.PeerAddr, Level: uint32(table.Current)}
	var r *joinv1.JoinResponse
	for _, u := range j.Control {
		client := joinv1connect.NewJoinServiceClient(&http.Client{Transport: transport, Timeout: 20 * time.Second}, strings.TrimRight(u, "/"), connect.WithInterceptors(rpcfault.Client()))
		if r, err = client.Join(ctx, req); err == nil || fault.KindOf(err) != fault.Unavailable { // the same key may ask the next
			break
		}
	}
	if err != nil {
		return nil, fmt.Errorf("join as %s: %w", j.Name, err)
	}
	if r.GetControl() == nil {
		return nil, fault.New(fault.Invalid, "TOKEN_OF_AN_EDGE", "join: the token is not of kind control")
	}
	return settle(j.Dir, r, keyPEM, time.Now())
}

// settle writes what was bought. The kit comes last: without it nothing runs on the directory.
func settle(dir string, r *joinv1.JoinResponse, keyPEM []byte, now time.Time) (aside []string, err error) {
	if err := durable.OS().MkdirAll(dir, durable.DirPerm); err != nil {
		return nil, err
	}
	stamp := ".aside-" + now.UTC().Format("20060102T150405")
	for _, d := range []string{"identity", "catalog", "zone", "ledger", "evidence", "detail", "etcd", fileStores} {
		from := filepath.Join(dir, d)
		switch err := os.Rename(from, from+stamp); {
		case err == nil:
			aside = append(aside, from+stamp)
		case !errors.Is(err, os.ErrNotExist):
			return aside, err
		}
	}
	engine, incarnations := EngineRaft, r.GetControl().GetIncarnations()
	if _, raft := incarnations[catalogGroup]; !raft {
		engine = EngineEtcd
	}
	if err := markStores(dir, engine); err != nil {
		return aside, err
	}
	for _, g := range groupsOf(r.GetZone()) {
		incarnation, raft := incarnations[g.Name]
		if !raft {
			continue
		}
		place := filepath.Join(dir, g.Dir)
		if err := durable.OS().MkdirAll(filepath.Dir(place), durable.DirPerm); err != nil {
			return aside, err
		}
		if err := raftgroup.Join(place, raftgroup.Member{Server: r.GetControl().GetServer(), Incarnation: incarnation, Since: now.UTC()}); err != nil {
			return aside, err
		}
	}
	return aside, pki.WriteKit(filepath.Join(dir, "identity"), r, keyPEM)
}
