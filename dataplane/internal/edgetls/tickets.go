package edgetls

import (
	"crypto/rand"
	"crypto/tls"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/mholt/acmez/v3"
)

// ticketsFor is how long a host's ticket key seals new tickets. For as long
// again it still opens them: a ticket lives two days at most.
const ticketsFor = 24 * time.Hour

// tickets holds the session ticket keys of each host, in memory alone. They are
// drawn, not derived: no other edge can make them, so a ticket of another
// region, another edge or an earlier run of this one is noise and costs its
// client a full handshake. One host's keys are another host's noise too, or a
// session could pass from host to host: TLS 1.3 in Go does not look at the name.
type tickets struct {
	mu    sync.Mutex // covers hosts; held for no I/O
	hosts map[string]ticketKeys
}

// ticketKeys of one host never change; they are replaced.
type ticketKeys struct {
	scope string // what they rest on: certificates and border
	drawn time.Time
	keys  [][32]byte                  // the first seals, all open
	made  map[*tls.Config]*tls.Config // by the config of the transport, with these keys
}

// next are the keys that hold under scope at now: the same ones, those with a
// newer one in front when it is time, or others altogether under another scope.
func (k ticketKeys) next(scope string, now time.Time) ticketKeys {
	age := now.Sub(k.drawn)
	same := len(k.keys) > 0 && k.scope == scope
	if same && age < ticketsFor {
		return k
	}
	fresh := ticketKeys{scope: scope, drawn: now, keys: make([][32]byte, 1, 2)}
	rand.Read(fresh.keys[0][:]) // never fails
	if same && age < 2*ticketsFor {
		fresh.keys = append(fresh.keys, k.keys[0])
	}
	return fresh
}

// forHost is base with the host's ticket keys. nil, which leaves base as it is,
// without tickets: for hosts that are not served; for clients without TLS 1.3,
// whose recorded traffic a ticket key would open; and for ACME's challenge, in
// which the certificate is the message.
func (m *Manager) forHost(base *tls.Config, hello *tls.ClientHelloInfo) *tls.Config {
	host := strings.ToLower(hello.ServerName)
	if !m.wanted(host) || slices.Contains(hello.SupportedProtos, acmez.ACMETLS1Protocol) {
		return nil
	}
	asks := m.cfg.Certificates(host)
	if !slices.Contains(hello.SupportedVersions, tls.VersionTLS13) {
		if !asks {
			return nil
		}
		c := base.Clone()
		c.GetConfigForClient, c.ClientAuth = nil, tls.RequestClientCert
		return c
	}
	scope, now := m.ticketScope(host), time.Now()
	t := &m.tickets
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.hosts[host].next(scope, now)
	c := k.made[base]
	if c == nil {
		c = base.Clone()
		c.GetConfigForClient = nil
		c.SessionTicketsDisabled = false
		if asks { // and does not insist: a key does as well
			c.ClientAuth = tls.RequestClientCert
		}
		c.SetSessionTicketKeys(k.keys)
		made := map[*tls.Config]*tls.Config{base: c}
		for b, other := range k.made {
			made[b] = other
		}
		k.made = made
	}
	if t.hosts == nil {
		t.hosts = map[string]ticketKeys{}
	}
	t.hosts[host] = k
	return c
}

// ticketScope is all that a session of the host rests on: also whether it asks
// clients for a certificate, since a session without one must not go on where
// one is asked for, nor the reverse. Which certificate counts is asked of the
// table at each request, so no set of authorities belongs here.
func (m *Manager) ticketScope(host string) string {
	var b strings.Builder
	for _, c := range m.cache.AllMatchingCertificates(host) {
		b.WriteString(c.Hash())
		b.WriteByte(' ')
	}
	if m.cfg.Certificates(host) {
		b.WriteString("asks ")
	}
	return b.String() + m.cfg.Border(host)
}

// refreshTickets makes void at once what rests on a border of before, so that
// the old border's return does not bring the old tickets back.
func (m *Manager) refreshTickets() {
	wanted, now := *m.hosts.Load(), time.Now()
	scopes := make(map[string]string, len(wanted))
	for h := range wanted {
		scopes[h] = m.ticketScope(h)
	}
	t := &m.tickets
	t.mu.Lock()
	defer t.mu.Unlock()
	for h, k := range t.hosts {
		if scope, ok := scopes[h]; ok {
			t.hosts[h] = k.next(scope, now)
		} else {
			delete(t.hosts, h)
		}
	}
}
