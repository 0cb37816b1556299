package harness

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
)

// patience of a client with one name server and with one address.
const patience = time.Second

// asks is how often a question is put to a name server that does not answer, as resolvers do.
const asks = 3

// DNS is the address of a region's name server.
func (s *Sandbox) DNS(region string) string {
	for _, e := range s.Edges {
		if e.Region == region {
			return e.DNS
		}
	}
	s.t.Fatalf("no edge in region %s", region)
	return ""
}

// Resolve asks an edge's DNS for the HTTPS records of a host, and gives the addresses that they lead to, the
// first to try first.
func Resolve(server, host, network string) ([]string, error) {
	q := new(dns.Msg)
	q.SetQuestion(dns.Fqdn(host), dns.TypeHTTPS)
	var m *dns.Msg
	var err error
	for range asks {
		m, _, err = (&dns.Client{Net: network, Timeout: patience}).Exchange(q, server)
		if late, ok := errors.AsType[net.Error](err); !ok || !late.Timeout() {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	if m.Rcode != dns.RcodeSuccess || !m.Authoritative {
		return nil, fmt.Errorf("%s answers %s", server, dns.RcodeToString[m.Rcode])
	}
	var services []*dns.HTTPS
	for _, rr := range m.Answer {
		if s, ok := rr.(*dns.HTTPS); ok {
			services = append(services, s)
		}
	}
	slices.SortStableFunc(services, func(a, b *dns.HTTPS) int { return int(a.Priority) - int(b.Priority) })
	var out []string
	for _, s := range services {
		port := 443
		var hints []net.IP
		for _, v := range s.Value {
			switch v := v.(type) {
			case *dns.SVCBPort:
				port = int(v.Port)
			case *dns.SVCBIPv4Hint:
				hints = v.Hint
			}
		}
		for _, ip := range hints {
			out = append(out, net.JoinHostPort(ip.String(), strconv.Itoa(port)))
		}
	}
	if len(out) == 0 {
		return nil, errors.New("an answer without an address")
	}
	return out, nil
}

// FollowDNS sends one request as a client does that asks the name servers in turn, goes where they say, and tries the
// next address where one does not answer. nil: it got its answer from one of the regions whose names have that prefix.
func (s *Sandbox) FollowDNS(servers []string, host, key, prefix string) error {
	var last error
	for _, server := range servers {
		addresses, err := Resolve(server, host, "udp")
		if err != nil {
			last = err
			continue
		}
		for _, a := range addresses {
			client := s.NewClient(a)
			client.Timeout = patience
			answer := s.Send(client, http.MethodGet, host, "/v1/orders", key, nil)
			if answer.Err == nil && answer.Status == http.StatusOK && strings.HasPrefix(answer.Served(), prefix) {
				return nil
			}
			last = fmt.Errorf("%s answers %d, served by %q: %v", a, answer.Status, answer.Served(), answer.Err)
		}
	}
	return last
}
