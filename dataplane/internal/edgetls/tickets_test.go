package edgetls_test

import (
	"crypto/tls"
	"net"
	"path/filepath"
	"sync/atomic"
	"testing"
	"time"

	"bailiwick/dataplane/internal/edgetls"
)

// wallet gives its one ticket to whatever host is asked: what an attacker's client does.
type wallet struct{ s *tls.ClientSessionState }

func (w *wallet) Get(string) (*tls.ClientSessionState, bool) { return w.s, w.s != nil }
func (w *wallet) Put(_ string, s *tls.ClientSessionState) {
	if s != nil {
		w.s = s
	}
}

// resumes shakes hands over TCP's or QUIC's policy, offering the wallet's ticket, and takes a new one. The
// handshake must come to its end in any case: a ticket that opens nothing is no reason to turn a client away.
func resumes(t testing.TB, z *zone, server *tls.Config, host string, w *wallet, max uint16) bool {
	t.Helper()
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	ended := make(chan error, 1)
	go func() {
		s := tls.Server(a, server)
		if err := s.Handshake(); err != nil {
			ended <- err
			return
		}
		_, err := s.Write([]byte("x")) // in TLS 1.3 the ticket comes before it
		ended <- err
	}()
	c := tls.Client(b, &tls.Config{RootCAs: z.roots(t), ServerName: host, NextProtos: server.NextProtos, ClientSessionCache: w, MaxVersion: max})
	c.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Read(make([]byte, 1)); err != nil {
		t.Fatalf("handshake with %s: %v", host, err)
	}
	if err := <-ended; err != nil {
		t.Fatalf("handshake with %s, at the server: %v", host, err)
	}
	return c.ConnectionState().DidResume
}

func TestTickets_OpenOneHostOfOneEdgeUnderOneBorder(t *testing.T) {
	const other = "reports.emea.example.test"
	z := newZone(t)
	dir := t.TempDir()
	var border atomic.Value
	border.Store("eu-west 1/7 eu-central=same-law")
	at := func(string) string { return border.Load().(string) }
	m, stop := z.edgeAt(t, filepath.Join(dir, "a"), "a", at)
	elsewhere, _ := z.edgeAt(t, filepath.Join(dir, "b"), "b", func(string) string { return "eu-central 1/7 eu-west=same-law" })
	twin, _ := z.edgeAt(t, filepath.Join(dir, "c"), "c", at)
	hosts := []string{host, other}
	for _, e := range []*edgetls.Manager{m, elsewhere, twin} {
		e.Manage(hosts)
		wait(t, "certificates", func() bool { return len(e.Missing()) == 0 })
	}
	for _, transport := range []struct {
		name   string
		config func(*edgetls.Manager) *tls.Config
	}{{"TCP", (*edgetls.Manager).TLSConfig}, {"QUIC", (*edgetls.Manager).QUICTLSConfig}} {
		t.Run(transport.name, func(t *testing.T) {
			config := transport.config(m)
			fresh := func() *wallet {
				w := &wallet{}
				resumes(t, z, config, host, w, 0)
				if !resumes(t, z, config, host, w, 0) {
					t.Fatal("a ticket does not open its own host: the rest would prove nothing")
				}
				return w
			}
			refused := func(what string, server *tls.Config, host string, w *wallet) {
				t.Helper()
				if resumes(t, z, server, host, w, 0) {
					t.Errorf("%s: resumed, want a full handshake", what)
				}
			}
			refused("another host", config, other, fresh())

			own := fresh()
			resumes(t, z, config, other, &wallet{}, 0)
			if !resumes(t, z, config, host, own, 0) {
				t.Error("a handshake with another host made the ticket void: hosts have keys of their own")
			}
			refused("an edge of another region", transport.config(elsewhere), host, fresh())
			refused("another edge of the same region", transport.config(twin), host, fresh())

			before := fresh()
			was := border.Load()
			border.Store("eu-west 1/8")
			refused("after a tightening", config, host, &wallet{before.s})
			border.Store(was)
			refused("the border of before again, the ticket from then", config, host, before)

			before = fresh()
			border.Store("eu-west 1/9")
			m.Manage(hosts) // nobody shakes hands in between
			border.Store(was)
			refused("tightened and loosened between two handshakes", config, host, before)

			before = fresh()
			m.Manage([]string{other})
			m.Manage(hosts)
			wait(t, "the host again", func() bool { return len(m.Missing()) == 0 })
			refused("the host was taken away and came back", config, host, before)
		})
	}
	w := &wallet{}
	resumes(t, z, m.TLSConfig(), host, w, tls.VersionTLS12)
	if w.s != nil {
		t.Error("a TLS 1.2 client got a ticket: its key would open recorded traffic")
	}

	resumes(t, z, m.TLSConfig(), host, w, 0)
	stop()
	again, _ := z.edgeAt(t, filepath.Join(dir, "a"), "a", at)
	again.Manage(hosts)
	wait(t, "certificates after a restart", func() bool { return len(again.Missing()) == 0 })
	if resumes(t, z, again.TLSConfig(), host, w, 0) {
		t.Error("a ticket outlived the process whose memory held its key")
	}
}

// The certificate is part of what a ticket rests on: one that is replaced, perhaps since its key leaked, takes
// the tickets that were given under it along.
func TestTickets_EndWithTheCertificate(t *testing.T) {
	t.Parallel()
	z := newZone(t)
	z.ttl = 5 * time.Second // renewed when a third is left
	m, _ := z.edge(t, t.TempDir(), "a")
	m.Manage([]string{host})
	wait(t, "the certificate", func() bool { return len(m.Missing()) == 0 })
	w, config, first := &wallet{}, m.TLSConfig(), m.Expires()
	resumes(t, z, config, host, w, 0)
	old := &wallet{w.s}
	wait(t, "a renewed certificate", func() bool { return m.Expires().After(first) })
	if resumes(t, z, config, host, old, 0) {
		t.Error("resumed under another certificate, want a full handshake")
	}
}

func TestTickets_Rotate(t *testing.T) {
	var r edgetls.Rotation
	day := 24 * time.Hour
	at := time.Date(2026, 11, 25, 0, 0, 0, 0, time.UTC)
	first := r.At("a", at)
	if same := r.At("a", at.Add(day-1)); len(same) != 1 || same[0] != first[0] {
		t.Error("the key changed within its day")
	}
	second := r.At("a", at.Add(day))
	if len(second) != 2 || second[0] == first[0] || second[1] != first[0] {
		t.Error("after a day: want a new key, and the old one to open with")
	}
	third := r.At("a", at.Add(2*day))
	if len(third) != 2 || third[1] != second[0] {
		t.Error("after two days the first key still opens")
	}
	if late := r.At("a", at.Add(5*day)); len(late) != 1 {
		t.Errorf("after two days without a client: got %d keys, want one", len(late))
	}
	if moved := r.At("b", at.Add(5*day)); len(moved) != 1 {
		t.Errorf("under another border: got %d keys, want one", len(moved))
	}
}

func BenchmarkHandshake(b *testing.B) {
	z := newZone(b)
	z.ttl = 24 * time.Hour
	m, _ := z.edgeAt(b, b.TempDir(), "a", func(string) string { return "eu-west 1/7 1 gdpr-emea eu-central=same-law" })
	m.Manage([]string{host})
	wait(b, "the certificate", func() bool { return len(m.Missing()) == 0 })
	config := m.TLSConfig()
	run := func(w func() *wallet, resumed bool) func(*testing.B) {
		return func(b *testing.B) {
			for b.Loop() {
				if resumes(b, z, config, host, w(), 0) != resumed {
					b.Fatalf("want resumed %v", resumed)
				}
			}
		}
	}
	w := &wallet{}
	resumes(b, z, config, host, w, 0)
	b.Run("full", run(func() *wallet { return &wallet{} }, false))
	b.Run("resumed", run(func() *wallet { return w }, true))
}
