package dns

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"time"

	mdns "github.com/miekg/dns"

	"bailiwick/regions/answer"
)

const (
	headerLen = 12
	plainUDP  = 512  // what a client takes that says nothing of itself
	maxUDP    = 1232 // what passes everywhere unfragmented
	// maxGrowth bounds how much larger than its question a UDP answer is: what is larger goes over TCP, where the
	// sender's address is proven.
	maxGrowth = 8
)

// Handle answers one query, or with nil none. The client's address serves the limiter and, if the query names no
// subnet, the choice of a region; it is kept nowhere.
func (s *Server) Handle(query []byte, client netip.Addr, tcp bool) []byte {
	if len(query) < headerLen || query[2]&0x80 != 0 {
		s.stats.Dropped.Add(1) // no query: an answer to it could start a dialogue between two servers
		return nil
	}
	if !tcp {
		switch s.limit.take(prefix(client), time.Now()) {
		case dropIt:
			s.stats.Dropped.Add(1)
			return nil
		case slipIt:
			s.stats.Slipped.Add(1)
			return bare(query, mdns.RcodeSuccess, true)
		}
	}
	n := s.current()
	if n == nil {
		return bare(query, mdns.RcodeServerFailure, false)
	}
	if rcode := malformed(query); rcode != mdns.RcodeSuccess {
		s.stats.Malformed.Add(1)
		return bare(query, rcode, false)
	}
	q := new(mdns.Msg)
	if q.Unpack(query) != nil || len(q.Question) != 1 {
		s.stats.Malformed.Add(1)
		return bare(query, mdns.RcodeFormatError, false)
	}
	out := new(mdns.Msg)
	out.SetReply(q)
	out.Compress = true
	if !s.fill(n, q, out, client) {
		s.stats.Malformed.Add(1)
		return bare(query, mdns.RcodeFormatError, false)
	}
	return s.pack(query, q, out, tcp)
}

// malformed judges the header alone, before anything is unpacked.
func malformed(query []byte) int {
	count := func(at int) uint16 { return binary.BigEndian.Uint16(query[at:]) }
	switch {
	case query[2]&0x78 != 0: // any opcode but QUERY: NOTIFY, UPDATE
		return mdns.RcodeNotImplemented
	case len(query) > maxQuery, count(4) != 1, count(6) != 0, count(10) > 2:
		return mdns.RcodeFormatError
	case count(8) != 0: // IXFR puts a SOA there
		return mdns.RcodeRefused
	}
	return mdns.RcodeSuccess
}

// bare is a header and nothing else: the shortest answer there is.
func bare(query []byte, rcode int, truncated bool) []byte {
	out := make([]byte, headerLen)
	copy(out, query[:2])
	out[2] = 0x80 | query[2]&0x79 // an answer, with opcode and RD as asked
	if truncated {
		out[2] |= 0x02
	}
	out[3] = byte(rcode) & 0x0f
	return out
}

// fill makes the answer; false: the query is malformed.
func (s *Server) fill(n *names, q, out *mdns.Msg, client netip.Addr) bool {
	opts := 0
	for _, rr := range q.Extra {
		if rr.Header().Rrtype == mdns.TypeOPT {
			opts++
		}
	}
	opt := q.IsEdns0()
	if opts > 1 {
		return false
	}
	var subnet *mdns.EDNS0_SUBNET
	if opt != nil {
		out.SetEdns0(maxUDP, false)
		if opt.Version() != 0 {
			out.Rcode = mdns.RcodeBadVers
			return true
		}
		for _, o := range opt.Option {
			if e, ok := o.(*mdns.EDNS0_SUBNET); ok {
				if subnet != nil {
					return false
				}
				subnet = e
			}
		}
	}
	from := netip.PrefixFrom(client.Unmap(), client.Unmap().BitLen())
	if subnet != nil {
		var ok bool
		if from, ok = fromSubnet(subnet); !ok {
			return false
		}
	}
	scope := s.reply(n, q.Question[0], out, from)
	if subnet != nil {
		echo := *subnet // family, length and address as they came (RFC 7871, 7.2.1)
		echo.SourceScope = uint8(scope)
		o := out.IsEdns0()
		o.Option = append(o.Option, &echo)
	}
	return true
}

// fromSubnet reads the client subnet option; false if it breaks RFC 7871, section 6.
func fromSubnet(e *mdns.EDNS0_SUBNET) (netip.Prefix, bool) {
	size := map[uint16]int{1: net.IPv4len, 2: net.IPv6len}[e.Family]
	if e.SourceScope != 0 || size == 0 {
		return netip.Prefix{}, false
	}
	ip := e.Address.To16()
	if size == net.IPv4len {
		ip = e.Address.To4()
	}
	addr, ok := netip.AddrFromSlice(ip)
	if !ok || int(e.SourceNetmask) > addr.BitLen() {
		return netip.Prefix{}, false
	}
	p := netip.PrefixFrom(addr, int(e.SourceNetmask))
	return p, p == p.Masked()
}

// reply fills in records and the code, and answers for how wide a subnet they hold.
func (s *Server) reply(n *names, q mdns.Question, out *mdns.Msg, from netip.Prefix) (scope int) {
	refuse := func() int {
		s.stats.Refused.Add(1)
		out.Rcode = mdns.RcodeRefused
		return 0
	}
	if q.Qclass != mdns.ClassINET || slices.Contains([]uint16{mdns.TypeAXFR, mdns.TypeIXFR, mdns.TypeMAILA, mdns.TypeMAILB}, q.Qtype) {
		return refuse()
	}
	f := n.find(canonical(q.Name))
	if f.what == outside || s.cfg.Tables.Load().Off("dns") { // resolvers ask the next server at once
		return refuse()
	}
	s.stats.Answered.Add(1)
	out.Authoritative = true
	ttl := uint32(s.cfg.TTL / time.Second)
	switch {
	case f.what == nothing:
		out.Rcode = mdns.RcodeNameError
	case q.Qtype == mdns.TypeANY && f.what != empty: // RFC 8482: something, and as little as possible
		out.Answer = []mdns.RR{&mdns.HINFO{Hdr: header(q.Name, mdns.TypeHINFO, ttl), Cpu: "RFC8482"}}
	case f.name == f.apex && q.Qtype == mdns.TypeSOA:
		soa := n.soa(f.apex, ttl, s.negative())
		soa.Hdr.Name = q.Name
		out.Answer = []mdns.RR{soa}
	case f.name == f.apex && q.Qtype == mdns.TypeNS:
		var glue []mdns.RR
		out.Answer, glue = n.ns(q.Name, f.apex, ttl)
		out.Extra = append(out.Extra, glue...)
	case f.what == nsHost && (q.Qtype == mdns.TypeA || q.Qtype == mdns.TypeAAAA):
		for _, a := range f.edge.Addresses {
			if rr := address(q.Name, a, ttl); rr.Header().Rrtype == q.Qtype {
				out.Answer = append(out.Answer, rr)
			}
		}
	case q.Qtype == mdns.TypeCAA && s.cfg.CAA != "" && (f.what == host || f.what == apexOnly):
		out.Answer = []mdns.RR{&mdns.CAA{Hdr: header(q.Name, mdns.TypeCAA, ttl), Tag: "issue", Value: s.cfg.CAA}}
	case f.what == host:
		scope = s.lead(n, f, q, out, from, ttl)
	}
	if len(out.Answer) == 0 && out.Rcode != mdns.RcodeServerFailure {
		out.Ns = []mdns.RR{n.soa(f.apex, s.negative(), s.negative())}
	}
	return scope
}

func (s *Server) negative() uint32 { return uint32(s.cfg.NegativeTTL / time.Second) }

// lead names the edges that clients of a host are led to.
func (s *Server) lead(n *names, f found, q mdns.Question, out *mdns.Msg, from netip.Prefix, ttl uint32) (scope int) {
	if q.Qtype != mdns.TypeA && q.Qtype != mdns.TypeAAAA && q.Qtype != mdns.TypeHTTPS {
		return 0
	}
	look := s.cfg.Outlook()
	w := answer.World{Zone: s.cfg.Zone, Deployed: f.api.Regions, Regions: n.regions, Edges: n.edges, Down: look.Down, Silent: look.Silent, Share: look.Shares(time.Now())}
	if from.Bits() > 0 { // 0: the client does not want to be led by where it is
		w.Client, scope = n.subnets.Region(from)
	}
	c := answer.Choose(w)
	if len(c.Near) == 0 {
		out.Rcode = mdns.RcodeServerFailure // "there is none" would be remembered, and is not what we know
		return scope
	}
	if c.Desperate {
		s.stats.Desperate.Add(1)
	}
	spin := s.spin.Add(1)
	if q.Qtype == mdns.TypeHTTPS {
		for _, v := range c.Services(spin) {
			out.Answer = append(out.Answer, https(q.Name, v, ttl))
		}
		return scope
	}
	for _, a := range c.Addresses(q.Qtype == mdns.TypeAAAA, spin) {
		out.Answer = append(out.Answer, address(q.Name, a, ttl))
	}
	return scope
}

func https(owner string, v answer.Service, ttl uint32) mdns.RR {
	rr := &mdns.HTTPS{SVCB: mdns.SVCB{Hdr: header(owner, mdns.TypeHTTPS, ttl), Priority: v.Priority, Target: "."}}
	rr.Value = append(rr.Value, &mdns.SVCBAlpn{Alpn: answer.ALPN})
	if v.Port != 443 {
		rr.Value = append(rr.Value, &mdns.SVCBPort{Port: v.Port})
	}
	if len(v.IPv4) > 0 {
		rr.Value = append(rr.Value, &mdns.SVCBIPv4Hint{Hint: ips(v.IPv4)})
	}
	if len(v.IPv6) > 0 {
		rr.Value = append(rr.Value, &mdns.SVCBIPv6Hint{Hint: ips(v.IPv6)})
	}
	return rr
}

func ips(addresses []netip.Addr) []net.IP {
	out := make([]net.IP, len(addresses))
	for i, a := range addresses {
		out[i] = a.AsSlice()
	}
	return out
}

// pack encodes the answer within what the client takes and what the question is worth: first without what was not
// asked for, then without anything, telling the client to come over TCP.
func (s *Server) pack(query []byte, q, out *mdns.Msg, tcp bool) []byte {
	limit := mdns.MaxMsgSize
	if !tcp {
		limit = plainUDP
		if opt := q.IsEdns0(); opt != nil {
			limit = min(max(int(opt.UDPSize()), plainUDP), maxUDP)
		}
		limit = min(limit, maxGrowth*len(query))
	}
	data, err := out.Pack()
	if err == nil && len(data) > limit {
		out.Extra = slices.DeleteFunc(out.Extra, func(rr mdns.RR) bool { return rr.Header().Rrtype != mdns.TypeOPT })
		data, err = out.Pack()
	}
	if err == nil && len(data) > limit {
		s.stats.Truncated.Add(1)
		out.Truncated, out.Answer, out.Ns = true, nil, nil
		data, err = out.Pack()
	}
	if err != nil {
		s.cfg.Logger.Error("a DNS answer does not encode", "type", mdns.TypeToString[out.Question[0].Qtype], "error", err)
		return bare(query, mdns.RcodeServerFailure, false)
	}
	return data
}
