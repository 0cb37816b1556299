package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"bailiwick/e2e/hosts/canary"
)

// service is an upstream: it answers with canaries of its zone, and can die and come back.
type service struct {
	site    site
	lab     *lab
	garbage atomic.Int64 // answers that were no HTTP

	mu     sync.Mutex // covers server
	server *http.Server
}

func (l *lab) serve(s site) (*service, error) {
	u := &service{site: s, lab: l}
	return u, u.start()
}

// start begins to answer, unless it does already.
func (u *service) start() error {
	u.mu.Lock()
	running := u.server != nil
	u.mu.Unlock()
	if running {
		return nil
	}
	listener, err := u.lab.fabric.Listen(u.lab.hosts[u.site.name], u.site.at(upstreamPort))
	if err != nil {
		return err
	}
	server := &http.Server{Handler: u, ReadHeaderTimeout: 10 * time.Second}
	u.mu.Lock()
	u.server = server
	u.mu.Unlock()
	go server.Serve(listener) // kill ends it
	return nil
}

func (u *service) kill() {
	u.mu.Lock()
	defer u.mu.Unlock()
	if u.server != nil {
		u.server.Close()
		u.server = nil
	}
}

func (u *service) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.UserAgent(), "bailiwick-probe") {
		return
	}
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return
	}
	secrets := u.lab.secrets[u.site.zone]
	if r.URL.Query().Has("garbage") { // what an edge may quote in an error
		if h, ok := w.(http.Hijacker); ok {
			if conn, _, err := h.Hijack(); err == nil {
				u.garbage.Add(1) // first: the edge may answer before this goroutine goes on
				fmt.Fprintf(conn, "%s is no HTTP\r\n\r\n", secrets.text("error text"))
				conn.Close()
			}
		}
		return
	}
	w.Header().Set("X-Answer", secrets.text("response header"))
	fmt.Fprintf(w, `{"region":%q,"said":%q}`, u.site.region, secrets.text("response body"))
}

// Header names of the answers of an edge.
const servedBy = "Bailiwick-Served"

// browser is a client's connections from a host to one edge.
type browser struct{ http *http.Client }

func (l *lab) browser(from site, to site) *browser {
	dial := l.dialer(from.name)
	return &browser{&http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: l.roots}, ForceAttemptHTTP2: true,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) { return dial(ctx, "tcp4", to.at(443)) },
	}}}
}

type answer struct {
	status int
	served string
	header http.Header
	body   []byte
}

func (b *browser) do(request *http.Request) (answer, error) {
	response, err := b.http.Do(request)
	if err != nil {
		return answer{}, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	return answer{response.StatusCode, response.Header.Get(servedBy), response.Header, body}, err
}

// request carries every canary that a client can send.
func (s *secrets) request(ctx context.Context, method, query string) (*http.Request, error) {
	url := fmt.Sprintf("https://%s/v1/%s?q=%s%s", hostName(s.zone), s.text("path"), s.text("query"), query)
	var body io.Reader
	if method == http.MethodPost {
		body = strings.NewReader(`{"note":"` + s.text("request body") + `"}`)
	}
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return nil, err
	}
	request.Header.Set("X-API-Key", s.key)
	request.Header.Set("X-Note", s.text("request header"))
	request.Header.Set("Cookie", "session="+s.text("cookie"))
	request.Header.Set("User-Agent", s.text("user agent"))
	return request, nil
}

// load is a zone's clients: requests at a rate, to both edges in turn.
type load struct {
	sent, good, relayed, abroad atomic.Int64
	stop                        context.CancelFunc
	wg                          sync.WaitGroup

	mu  sync.Mutex // covers why
	why map[string]int
}

func (l *lab) load(ctx context.Context, zone, perSecond int) *load {
	ctx, cancel := context.WithCancel(ctx)
	w := &load{stop: cancel, why: map[string]int{}}
	var from site
	var edges []site
	for _, s := range sites() {
		if s.zone == zone && s.kind == client {
			from = s
		}
		if s.zone == zone && s.kind == edge {
			edges = append(edges, s)
		}
	}
	ticks := make(chan int, 64)
	w.wg.Go(func() {
		defer close(ticks)
		tick := time.NewTicker(time.Second / time.Duration(perSecond))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
				select {
				case ticks <- n:
				default: // all are waiting: a stall shows as fewer requests
				}
			}
		}
	})
	for range 8 {
		w.wg.Go(func() {
			browsers := []*browser{l.browser(from, edges[0]), l.browser(from, edges[1])}
			for n := range ticks {
				to := edges[n%2]
				method := http.MethodGet
				if n/2%2 == 1 {
					method = http.MethodPost
				}
				w.sent.Add(1)
				request, err := l.secrets[zone].request(context.WithoutCancel(ctx), method, "")
				var a answer
				if err == nil {
					a, err = browsers[n%2].do(request)
				}
				w.judge(zone, to, a, err)
			}
			for _, b := range browsers {
				b.http.CloseIdleConnections()
			}
		})
	}
	return w
}

func (w *load) judge(zone int, to site, a answer, err error) {
	switch {
	case err == nil && a.served != "" && a.served != zones[zone].serving[0] && a.served != zones[zone].serving[1]:
		w.abroad.Add(1)
	case err == nil && a.status == http.StatusOK:
		w.good.Add(1)
		if a.served != "" && a.served != to.region {
			w.relayed.Add(1)
		}
	default:
		w.mu.Lock()
		defer w.mu.Unlock()
		if err != nil {
			w.why[err.Error()]++
		} else {
			w.why[fmt.Sprintf("%d %.80s", a.status, a.body)]++
		}
	}
}

func (w *load) end() {
	w.stop()
	w.wg.Wait()
}

// stray takes what is one zone's to the edges of the other: a key, with a whole request around it, to each of their
// doors; and asks for a host and a name there that only its own zone has.
func (l *lab) stray(ctx context.Context, zone int) error {
	s := l.secrets[zone]
	answers := 0
	for _, to := range sites() {
		if to.kind != edge || to.zone == zone {
			continue
		}
		b := l.browser(stranger, to)
		for _, host := range []string{hostName(other(zone)), hostName(zone)} {
			request, err := http.NewRequestWithContext(ctx, http.MethodPost, fmt.Sprintf("https://%s/v1?q=%s", host, s.text("stray query")), strings.NewReader(s.text("stray body")))
			if err != nil {
				return err
			}
			request.Header.Set("X-API-Key", s.strays)
			request.Header.Set("X-Note", s.text("stray header"))
			a, err := b.do(request)
			if err != nil {
				continue // a foreign host is refused in the handshake
			}
			answers++
			if a.status != http.StatusMisdirectedRequest || a.served != "" {
				l.seen.tell(fmt.Sprintf("%s answers a key of zone %s with %d, served by %q; want 421 and nobody", to.name, zones[zone].name, a.status, a.served))
			}
			l.note(stranger.name, []string{to.name}, a.body, fmt.Append(nil, a.header))
			scanner, err := canary.New(s.list()...)
			if err != nil {
				return err
			}
			l.seen.add(scanner.Bytes("the answer of "+to.name+" to a stray request", append(a.body, fmt.Append(nil, a.header)...))...)
		}
		b.http.CloseIdleConnections()
	}
	if answers == 0 {
		return errors.New("no edge of another zone answered a stray request")
	}
	return nil
}

// asks makes DNS queries at a zone's edges: for a name of its own that nobody has, and for the name of its API, whose
// answers must all lie in the zone.
func (l *lab) asks(ctx context.Context, zone int) error {
	for _, to := range sites() {
		if to.kind != edge || to.zone != zone {
			continue
		}
		if _, err := l.resolve(ctx, to, l.secrets[zone].text("host asked")+"."+zones[zone].name+".example.test."); err != nil {
			return err
		}
		var addresses []netip.Addr
		err := l.until(ctx, to.name+" answers for "+hostName(zone), func() (err error) {
			addresses, err = l.resolve(ctx, to, hostName(zone)+".")
			if err == nil && len(addresses) == 0 {
				err = errors.New("no address")
			}
			return err
		})
		if err != nil {
			return err
		}
		for _, a := range addresses {
			if !zoneNetwork(zone).Contains(a) {
				l.seen.tell(fmt.Sprintf("DNS at %s names %s for a host of zone %s", to.name, a, zones[zone].name))
			}
		}
	}
	return nil
}

func (l *lab) resolve(ctx context.Context, at site, name string) (addresses []netip.Addr, err error) {
	question := dnsmessage.Message{Header: dnsmessage.Header{ID: 7}, Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: dnsmessage.TypeA, Class: dnsmessage.ClassINET}}}
	query, err := question.Pack()
	if err != nil {
		return nil, err
	}
	conn, err := l.fabric.Dial(ctx, l.hosts[zones[at.zone].name+"-client"], "udp4", at.at(53))
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	raw := make([]byte, 1500)
	n := 0
	if _, err = conn.Write(query); err == nil {
		conn.SetReadDeadline(time.Now().Add(2 * time.Second))
		n, err = conn.Read(raw)
	}
	var answer dnsmessage.Message
	if err == nil {
		err = answer.Unpack(raw[:n])
	}
	if err != nil {
		return nil, fmt.Errorf("ask %s for %s: %w", at.name, name, err)
	}
	for _, r := range answer.Answers {
		if a, ok := r.Body.(*dnsmessage.AResource); ok {
			addresses = append(addresses, netip.AddrFrom4(a.A))
		}
	}
	return addresses, nil
}
