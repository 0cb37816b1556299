package borderfuzz

import (
	"bytes"
	"encoding/base64"
	"fmt"
	"math/rand/v2"
	"strconv"
	"strings"

	"bailiwick/dataplane/internal/relay"
	"bailiwick/shared/apikey"
)

// request is what one shot says: the fields that both ways of sending it need.
type request struct {
	method, target string // target as on the request line
	host           string
	hosts          []string // further Host headers
	sni            string   // of the connection, for the ways that have TLS; "": that of host
	header         [][2]string
	body           []byte
	chunked        bool
	tail           string // after the request, as if it were another one
	length         string // Content-Length in its own words; "": as it is
	leave          bool   // the client goes away
}

func (q *request) add(name, value string) { q.header = append(q.header, [2]string{name, value}) }

func pick[T any](rng *rand.Rand, list ...T) T { return list[rng.IntN(len(list))] }

var methods = []string{"GET", "GET", "GET", "GET", "GET", "HEAD", "OPTIONS", "PUT", "DELETE", "POST", "POST", "PATCH", "BREW"}

// forge draws a request. The shot's edge and service are set; what is expected of it comes back in it.
func (w *world) forge(rng *rand.Rand, s *shot) *request {
	s.expect = good
	q := &request{method: methods[rng.IntN(len(methods))], target: "/v1/" + strconv.Itoa(rng.IntN(1000)), host: s.service.host}
	if rng.IntN(3) == 0 {
		q.target += "?q=" + strconv.Itoa(rng.IntN(100)) + "&to=" + places[rng.IntN(4)].region
	}
	key := s.edge.keys[rng.IntN(len(s.edge.keys))]
	switch q.method {
	case "PUT", "POST", "PATCH":
		q.body = bytes.Repeat([]byte{'b'}, pick(rng, 0, 1, 100, 4000))
		q.chunked = rng.IntN(2) == 0
	}
	if rng.IntN(8) == 0 {
		q.host = pick(rng, strings.ToUpper(q.host), q.host+".", q.host+":443", q.host+":8443")
	}
	switch n := rng.IntN(100); {
	case n < 10:
		key = w.wrongKey(rng, s, q)
	case n < 17:
		w.wrongHost(rng, s, q)
	case n < 24:
		w.wrongForm(rng, s, q)
	}
	if key != "" {
		if rng.IntN(3) == 0 {
			q.add("Authorization", pick(rng, "Bearer ", "bearer ")+key)
		} else {
			q.add(pick(rng, "X-API-Key", "x-api-key"), key)
		}
	}
	for range rng.IntN(4) {
		w.claim(rng, s, q)
	}
	q.leave = rng.IntN(200) == 0
	return q
}

// aim chooses a door and an API, mostly one for which only another region can answer.
func (w *world) aim(rng *rand.Rand) (*edge, *service) {
	if places := *w.abroad.Load(); len(places) > 0 && rng.IntN(5) < 3 {
		at := places[rng.IntN(len(places))]
		return w.edges[at[0]], services[at[1]]
	}
	e := w.edges[rng.IntN(len(w.edges))]
	s := services[rng.IntN(len(services))]
	for s.zone != e.zone {
		s = services[rng.IntN(len(services))]
	}
	return e, s
}

// wrongKey gives a key that opens nothing here.
func (w *world) wrongKey(rng *rand.Rand, s *shot, q *request) string {
	s.expect = bad
	own := s.edge.keys[rng.IntN(len(s.edge.keys))]
	other := "us"
	if s.edge.zone == "us" {
		other = "emea"
	}
	foreign := pick(rng, w.zones[other].keys...)
	switch rng.IntN(8) {
	case 0:
		return ""
	case 1:
		return foreign
	case 2: // a true form and a true zone, and nobody's
		_, text, err := apikey.Mint(s.edge.zone, w.noise(rng))
		if err != nil {
			return ""
		}
		return text.Reveal()
	case 3: // somebody's id under another secret
		_, text, err := apikey.Mint(s.edge.zone, w.noise(rng))
		if err != nil {
			return ""
		}
		n := len("bw_") + len(s.edge.zone) + 1
		return resum(own[:n+12] + text.Reveal()[n+12:len(own)-6])
	case 4: // the other zone's key under this zone's name: forged hint, true checksum
		return resum("bw_" + s.edge.zone + foreign[len("bw_")+len(other):len(foreign)-6])
	case 5: // this zone's key under the other's name
		return resum("bw_" + other + own[len("bw_")+len(s.edge.zone):len(own)-6])
	case 6:
		b := []byte(own)
		b[rng.IntN(len(b))] ^= byte(1 << rng.IntN(7))
		if string(b) == own {
			return ""
		}
		return strings.Map(printable, string(b))
	}
	// Two keys that disagree: whichever is read, nobody else's account may pay.
	s.expect = unsure
	q.add("X-API-Key", foreign)
	return own
}

func printable(r rune) rune {
	if r < 0x21 || r > 0x7e {
		return 'x'
	}
	return r
}

// resum gives a key text the checksum that fits it.
func resum(body string) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	crc := crc(body)
	tail := make([]byte, 6)
	for i := range tail {
		tail[5-i] = digits[crc%62]
		crc /= 62
	}
	return body + string(tail)
}

// wrongHost asks for what this edge does not publish, or in two tongues.
func (w *world) wrongHost(rng *rand.Rand, s *shot, q *request) {
	var foreign *service
	for foreign = pick(rng, services...); foreign.zone == s.edge.zone; foreign = pick(rng, services...) {
	}
	sibling := s.service
	for _, o := range services {
		if o.zone == s.edge.zone && o != s.service {
			sibling = o
		}
	}
	s.expect = bad
	switch rng.IntN(9) {
	case 0, 1:
		q.host = foreign.host
	case 2:
		q.host = pick(rng, "", "nobody.test", "127.0.0.1", "[::1]", "localhost", w.upstream(s.service, pick(rng, places...).region).addr, s.edge.world.edges[rng.IntN(4)].relayAddr)
	case 3:
		q.host = pick(rng, s.service.host+"@"+foreign.host, foreign.host+"#"+s.service.host, s.service.host+" "+foreign.host, s.service.host+","+foreign.host, s.service.host+"%00."+foreign.host, "x."+s.service.host)
	case 4: // two of them
		s.expect = unsure
		q.hosts = []string{foreign.host}
	case 5: // on the request line one, in the header the other
		s.expect = unsure
		q.target, q.host = "http://"+s.service.host+q.target, foreign.host
	case 6:
		s.expect = unsure
		q.target = "http://" + foreign.host + q.target
	case 7: // a connection made for one host carries a request for another
		s.expect = unsure
		q.sni = foreign.host
	case 8:
		s.expect = unsure
		q.sni = sibling.host
	}
}

// wrongForm bends what should be straight.
func (w *world) wrongForm(rng *rand.Rand, s *shot, q *request) {
	s.expect = unsure
	switch rng.IntN(10) {
	case 0:
		q.target = pick(rng, "//", "/../", "/./", "/a//b", "/%2e%2e/", "/a%2fb", "/a\\b", "/..;/x", "*", "v1", "/%", "/\x7f")
	case 1:
		q.add("Upgrade", pick(rng, "websocket", "h2c", "foo"))
		q.add("Connection", "Upgrade")
	case 2:
		q.method = pick(rng, "CONNECT", "TRACE", "get", "PRI", "G ET")
	case 3: // two lengths
		q.body, q.chunked = []byte("abc"), true
		q.add("Content-Length", "3")
	case 4:
		q.length, q.body = pick(rng, "-1", "+3", "3,3", "99999999999999999999", "0x3", "4"), []byte("abc")
	case 5:
		q.add("Transfer-Encoding", pick(rng, "identity", "chunked, identity", "xchunked", "gzip"))
	case 6: // a second request where the first has no end
		q.tail = "GET /smuggled HTTP/1.1\r\nHost: " + services[rng.IntN(len(services))].host + "\r\n\r\n"
		q.length = "0"
	case 7:
		q.add("Expect", pick(rng, "100-continue", "200-ok"))
	case 8:
		q.add("X-Long", strings.Repeat("x", pick(rng, 1000, 60_000, 80_000)))
	case 9:
		q.add(pick(rng, "Te", "Trailer", "Keep-Alive", "Proxy-Connection", "Http2-Settings"), "trailers, deflate")
	}
}

// claim adds what a client says about itself and only edges may.
func (w *world) claim(rng *rand.Rand, s *shot, q *request) {
	region := places[rng.IntN(len(places))].region
	grant := base64.StdEncoding.EncodeToString(w.edges[rng.IntN(len(w.edges))].leader.stolen(rng))
	dashed := func(name string) string {
		if rng.IntN(3) == 0 {
			return strings.ReplaceAll(name, "-", pick(rng, "_", "_", ".", "~"))
		}
		return pick(rng, name, strings.ToLower(name))
	}
	switch rng.IntN(13) {
	case 12:
		q.add(dashed(relay.Identity[rng.IntN(len(relay.Identity))]), forgedMark)
	case 0:
		q.add(dashed(relay.HeaderHome), region)
	case 1:
		q.add(dashed(relay.HeaderGrant), grant)
	case 2:
		q.add(dashed(relay.HeaderServed), region)
	case 3:
		q.add(dashed(relay.HeaderAPI), pick(rng, services...).name)
	case 4:
		q.add(dashed(relay.HeaderRequestID), forgedMark)
	case 5:
		q.add(dashed(pick(rng, relay.HeaderUnsent, relay.HeaderRefused, relay.HeaderPing, relay.HeaderRoute)), "1")
	case 6:
		q.add(dashed(pick(rng, "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Real-Ip", "X-Original-Url", "X-Rewrite-Url", "Forwarded", "X-Forwarded-Ssl", "X-Original-Host", "True-Client-Ip", "Ssl-Client-Cert", "Proxy")), forgedMark)
	case 7:
		q.add("X-Request-Id", forgedMark)
	case 8:
		q.add("Connection", pick(rng, "X-Forwarded-For, X-Request-Id", "close, Bailiwick-Home", "Authorization, X-Api-Key", "Host", "keep-alive, Via"))
	case 9:
		q.add("Via", "1.1 "+region)
	case 10:
		q.add("Cookie", "region="+region+"; zone="+zoneOf(region))
	case 11:
		q.add("X-Region", region)
	}
}

// text is the request on a wire.
func (q *request) text(number uint64) []byte {
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s %s HTTP/1.1\r\n", q.method, q.target)
	if q.host != "" {
		fmt.Fprintf(&b, "Host: %s\r\n", q.host)
	}
	for _, h := range q.hosts {
		fmt.Fprintf(&b, "Host: %s\r\n", h)
	}
	fmt.Fprintf(&b, "%s: %d\r\n", headerShot, number)
	for _, h := range q.header {
		fmt.Fprintf(&b, "%s: %s\r\n", h[0], h[1])
	}
	switch {
	case q.length != "":
		fmt.Fprintf(&b, "Content-Length: %s\r\n", q.length)
	case q.chunked:
		b.WriteString("Transfer-Encoding: chunked\r\n")
	case len(q.body) > 0:
		fmt.Fprintf(&b, "Content-Length: %d\r\n", len(q.body))
	}
	b.WriteString("\r\n")
	switch {
	case q.chunked && len(q.body) > 0:
		fmt.Fprintf(&b, "%x\r\n%s\r\n0\r\n\r\n", len(q.body), q.body)
	case q.chunked:
		b.WriteString("0\r\n\r\n")
	default:
		b.Write(q.body)
	}
	b.WriteString(q.tail)
	return b.Bytes()
}
