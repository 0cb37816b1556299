package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	acmeca "github.com/letsencrypt/pebble/v2/ca"
	acmedb "github.com/letsencrypt/pebble/v2/db"
	acmeva "github.com/letsencrypt/pebble/v2/va"
	acmewfe "github.com/letsencrypt/pebble/v2/wfe"
	"golang.org/x/net/dns/dnsmessage"
)

// Files that the authority writes for who asks it, and for who meets what it issued.
const (
	authorityCA    = "authority-ca.pem"    // of the directory's own TLS
	authorityRoots = "authority-roots.pem" // of the certificates it issues
	authorityName  = "acme-authority"
)

// authority is Let's Encrypt's test authority with three additions for who plays with it: it counts the orders by
// host, it can hold them back in the middle, and its knocks at ports 80 and 443 go to the edges of the host's zone in
// turn, as a load balancer's would.
type authority struct {
	next http.Handler

	mu     sync.Mutex // covers all below
	orders map[string]int
	held   int           // orders that wait
	free   chan struct{} // closed while nothing is held back
}

func runAuthority(ctx context.Context, args []string) error {
	flags := flag.NewFlagSet("sandbox acme", flag.ContinueOnError)
	dir := flags.String("dir", "", "where its roots are written")
	listen := flags.String("listen", "", "host:port of the directory")
	names := flags.String("names", "", "host:port of the resolver that leads every name here, TCP")
	plain := flags.String("plain", "", "host:port of its knocks for http-01")
	secure := flags.String("secure", "", "host:port of its knocks for tls-alpn-01")
	edges := flags.String("edges", "", "domain=http/https of an edge that serves the domain's hosts, comma separated")
	if err := flags.Parse(args); err != nil {
		return err
	}
	for name, value := range map[string]string{"PEBBLE_VA_NOSLEEP": "1", "PEBBLE_WFE_NONCEREJECT": "5", "PEBBLE_AUTHZREUSE": "0"} {
		if os.Getenv(name) == "" {
			os.Setenv(name, value)
		}
	}
	fronts, err := parseFronts(*edges)
	if err != nil {
		return err
	}
	certificate, err := authorityTLS(*dir)
	if err != nil {
		return err
	}
	quiet, db := log.New(io.Discard, "", 0), acmedb.NewMemoryStore()
	ca := acmeca.New(quiet, db, "", "ecdsa", 0, 1, map[string]acmeca.Profile{"default": {}})
	va := acmeva.New(quiet, portOf(*plain), portOf(*secure), false, *names, db)
	a := &authority{orders: map[string]int{}, free: make(chan struct{})}
	close(a.free)
	wfe := acmewfe.New(quiet, db, va, ca, []string{"sandbox.example"}, false, false, 3, 5)
	a.next = wfe.Handler()

	var listeners []net.Listener
	defer func() {
		for _, l := range listeners {
			l.Close()
		}
	}()
	for _, address := range []string{*listen, *names, *plain, *secure} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return err
		}
		listeners = append(listeners, l)
	}
	// Last, because who waits for the roots takes the authority for ready.
	if err := os.WriteFile(filepath.Join(*dir, authorityRoots), ca.GetRootCert(0).PEM(), 0o600); err != nil {
		return err
	}
	server := &http.Server{Handler: a, ReadHeaderTimeout: 5 * time.Second, TLSConfig: &tls.Config{Certificates: []tls.Certificate{certificate}}, ErrorLog: quiet}
	var wg sync.WaitGroup
	wg.Go(func() { serve(ctx, listeners[1], &wg, answerName) })
	wg.Go(func() { serve(ctx, listeners[2], &wg, func(c net.Conn) { fronts.lead(c, false) }) })
	wg.Go(func() { serve(ctx, listeners[3], &wg, func(c net.Conn) { fronts.lead(c, true) }) })
	stop := context.AfterFunc(ctx, func() {
		server.Close()
		for _, l := range listeners {
			l.Close()
		}
	})
	defer stop()
	err = server.ServeTLS(listeners[0], "", "")
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// serve hands each connection to f, for half a minute at most.
func serve(ctx context.Context, l net.Listener, wg *sync.WaitGroup, f func(net.Conn)) {
	for {
		c, err := l.Accept()
		if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
			return
		}
		if err != nil {
			continue
		}
		wg.Go(func() {
			defer c.Close()
			_ = c.SetDeadline(time.Now().Add(30 * time.Second))
			f(c)
		})
	}
}

func portOf(address string) int {
	a, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		return 0
	}
	return a.Port
}

// authorityTLS makes the directory's own certificate, which no other authority has signed.
func authorityTLS(dir string) (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	now := time.Now()
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(now.UnixNano()), Subject: pkix.Name{CommonName: "sandbox ACME directory"}, NotBefore: now.Add(-time.Minute), NotAfter: now.Add(365 * 24 * time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		return tls.Certificate{}, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, os.WriteFile(filepath.Join(dir, authorityCA), text, 0o600)
}

// ServeHTTP is the authority's own answer, except for what begins with two underscores.
func (a *authority) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.URL.Path == "/__orders" && r.Method == http.MethodGet:
		a.mu.Lock()
		defer a.mu.Unlock()
		writeJSON(w, http.StatusOK, map[string]any{"orders": a.orders, "held": a.held})
	case r.URL.Path == "/__hold" && r.Method == http.MethodPost:
		a.mu.Lock()
		defer a.mu.Unlock()
		select {
		case <-a.free:
			a.free = make(chan struct{})
		default:
		}
	case r.URL.Path == "/__release" && r.Method == http.MethodPost:
		a.mu.Lock()
		defer a.mu.Unlock()
		select {
		case <-a.free:
		default:
			close(a.free)
		}
	case r.URL.Path == "/order-plz":
		a.order(w, r)
	default:
		a.next.ServeHTTP(w, r)
	}
}

// order counts an order that was accepted, and keeps its answer back while it is told to.
func (a *authority) order(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err != nil {
		http.Error(w, "cut short", http.StatusBadRequest)
		return
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	answer := &kept{header: http.Header{}, status: http.StatusOK}
	a.next.ServeHTTP(answer, r)
	if answer.status == http.StatusCreated {
		a.mu.Lock()
		for _, host := range hostsOf(body) {
			a.orders[host]++
		}
		a.held++
		free := a.free
		a.mu.Unlock()
		select {
		case <-free:
		case <-r.Context().Done():
		}
		a.mu.Lock()
		a.held--
		a.mu.Unlock()
	}
	for name, values := range answer.header {
		w.Header()[name] = values
	}
	w.WriteHeader(answer.status)
	_, _ = w.Write(answer.body.Bytes())
}

// kept is an answer that is not sent yet.
type kept struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (k *kept) Header() http.Header         { return k.header }
func (k *kept) WriteHeader(status int)      { k.status = status }
func (k *kept) Write(b []byte) (int, error) { return k.body.Write(b) }

// hostsOf reads whom an order is for, out of a request that the authority has verified.
func hostsOf(body []byte) (hosts []string) {
	var signed struct{ Payload string }
	var order struct {
		Identifiers []struct{ Type, Value string }
	}
	if json.Unmarshal(body, &signed) != nil {
		return nil
	}
	payload, err := base64.RawURLEncoding.DecodeString(signed.Payload)
	if err != nil || json.Unmarshal(payload, &order) != nil {
		return nil
	}
	for _, id := range order.Identifiers {
		hosts = append(hosts, id.Value)
	}
	return hosts
}

// answerName says of every name that it is on this machine.
func answerName(c net.Conn) {
	for {
		var size [2]byte
		if _, err := io.ReadFull(c, size[:]); err != nil {
			return
		}
		question := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(c, question); err != nil {
			return
		}
		var m dnsmessage.Message
		if m.Unpack(question) != nil || len(m.Questions) != 1 {
			return
		}
		m.Response, m.RecursionAvailable, m.Additionals = true, true, nil
		if q := m.Questions[0]; q.Type == dnsmessage.TypeA {
			m.Answers = []dnsmessage.Resource{{Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}, Body: &dnsmessage.AResource{A: [4]byte{127, 0, 0, 1}}}}
		}
		answer, err := m.Pack()
		if err != nil {
			return
		}
		if _, err := c.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(answer))), answer...)); err != nil {
			return
		}
	}
}

// fronts are the edges of each domain.
type fronts struct {
	mu    sync.Mutex // covers turn
	turn  int
	edges map[string][]front
}

type front struct{ plain, secure string }

func parseFronts(text string) (*fronts, error) {
	f := &fronts{edges: map[string][]front{}}
	for part := range strings.SplitSeq(text, ",") {
		domain, addresses, _ := strings.Cut(part, "=")
		plain, secure, found := strings.Cut(addresses, "/")
		if !found {
			return nil, fmt.Errorf("-edges %q is not domain=http/https", part)
		}
		f.edges[domain] = append(f.edges[domain], front{plain, secure})
	}
	return f, nil
}

// of are the edges of a host, another one first each time.
func (f *fronts) of(host string) []front {
	f.mu.Lock()
	defer f.mu.Unlock()
	for domain, edges := range f.edges {
		if strings.HasSuffix(host, "."+domain) {
			f.turn++
			at := f.turn % len(edges)
			return append(append([]front{}, edges[at:]...), edges[:at]...)
		}
	}
	return nil
}

// lead brings a connection to the first edge of its host that says something.
func (f *fronts) lead(c net.Conn, secure bool) {
	host, said := peekHost(c, secure)
	for _, edge := range f.of(host) {
		address := edge.plain
		if secure {
			address = edge.secure
		}
		up, err := net.DialTimeout("tcp", address, time.Second)
		if err != nil {
			continue
		}
		if through(c, up, said) {
			return
		}
	}
}

// through copies both ways once up has said its first; false if it has not.
func through(c, up net.Conn, said []byte) bool {
	defer up.Close()
	first := make([]byte, 4096)
	_ = up.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := up.Write(said); err != nil {
		return false
	}
	n, err := up.Read(first)
	if err != nil {
		return false
	}
	_ = up.SetDeadline(time.Now().Add(30 * time.Second))
	if _, err := c.Write(first[:n]); err != nil {
		return true
	}
	go func() {
		_, _ = io.Copy(up, c)
		_ = up.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(c, up)
	return true
}

// recorder keeps what is read, and writes nothing.
type recorder struct {
	net.Conn
	read bytes.Buffer
}

func (r *recorder) Read(b []byte) (int, error) {
	n, err := r.Conn.Read(b)
	r.read.Write(b[:n])
	return n, err
}
func (r *recorder) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

// peekHost reads whom a connection is for, and what it has said until then.
func peekHost(c net.Conn, secure bool) (host string, said []byte) {
	r := &recorder{Conn: c}
	if secure {
		hello := &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			host = h.ServerName
			return nil, errors.New("seen enough")
		}}
		_ = tls.Server(r, hello).Handshake()
	} else if request, err := http.ReadRequest(bufio.NewReader(r)); err == nil {
		host = request.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
	}
	return strings.ToLower(host), r.read.Bytes()
}

// startAuthority starts the authority before the edges, which ask it for their hosts' certificates, and gives
// clients its root beside the installation's.
func (s *sandbox) startAuthority(ctx context.Context) error {
	if !s.cfg.ACME {
		return nil
	}
	var edges []string
	for i, e := range edgeSpecs {
		edges = append(edges, e.zone+".example.test="+s.layout.edgeHTTP(i)+"/"+s.layout.edgeHTTPS(i))
	}
	at := s.layout.authority
	c := s.add(authorityName, "", nil, s.self, "acme", "-dir", s.cfg.Dir, "-listen", at(0), "-names", at(1), "-plain", at(2), "-secure", at(3), "-edges", strings.Join(edges, ","))
	if err := c.start(s.log); err != nil {
		return err
	}
	for {
		roots, err := os.ReadFile(s.path(authorityRoots))
		if err == nil && s.roots.AppendCertsFromPEM(roots) {
			own, err := os.ReadFile(s.path("ca.pem"))
			if err != nil {
				return err
			}
			return os.WriteFile(s.path("clients.pem"), append(own, roots...), 0o600)
		}
		if c.pid() == 0 {
			return fmt.Errorf("%s has ended; see %s", authorityName, c.logFile)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// clientRoots is the file that clients of the edges trust.
func (s *sandbox) clientRoots() string {
	if s.cfg.ACME {
		return "clients.pem"
	}
	return "ca.pem"
}

// acmeFlags lead an edge to the authority.
func (s *sandbox) acmeFlags() []string {
	if !s.cfg.ACME {
		return nil
	}
	return []string{"-acme-directory", s.acmeURL() + "/dir", "-acme-ca-file", s.path(authorityCA)}
}

func (s *sandbox) acmeURL() string {
	if !s.cfg.ACME {
		return ""
	}
	return "https://" + s.layout.authority(0)
}
