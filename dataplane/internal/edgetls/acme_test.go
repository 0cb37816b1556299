package edgetls_test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"connectrpc.com/connect"
	acmeca "github.com/letsencrypt/pebble/v2/ca"
	acmedb "github.com/letsencrypt/pebble/v2/db"
	acmeva "github.com/letsencrypt/pebble/v2/va"
	acmewfe "github.com/letsencrypt/pebble/v2/wfe"
	"github.com/miekg/dns"

	"bailiwick/dataplane/internal/edgetls"
	"bailiwick/proto/gen/bailiwick/join/v1/joinv1connect"
	"bailiwick/shared/fault/rpcfault"
	"bailiwick/shared/lifecycle/porttest"
)

// authority is a public ACME authority on loopback. Its names all lead to
// 127.0.0.1, its validations to two fronts.
type authority struct {
	front    *httptest.Server
	roots    *x509.CertPool // of the certificates it issues
	orders   atomic.Int32
	renewals atomic.Int32 // orders that say which certificate they replace
	hang     atomic.Bool
	taken    func()        // if set, after an order was taken and before its answer
	end      chan struct{} // releases what hangs
}

func newAuthority(t *testing.T, httpPort, tlsPort int) *authority {
	t.Helper()
	return newAuthorityOf(t, httpPort, tlsPort, 0)
}

// newAuthorityOf issues certificates that are valid for a while only; 0 is long.
func newAuthorityOf(t *testing.T, httpPort, tlsPort int, validity time.Duration) *authority {
	t.Helper()
	names, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	resolver := &dns.Server{Listener: names, Handler: dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		r := new(dns.Msg).SetReply(q)
		if q.Question[0].Qtype == dns.TypeA {
			r.Answer = []dns.RR{&dns.A{Hdr: dns.RR_Header{Name: q.Question[0].Name, Rrtype: dns.TypeA, Class: dns.ClassINET}, A: net.IPv4(127, 0, 0, 1)}}
		}
		w.WriteMsg(r)
	})}
	go resolver.ActivateAndServe()
	t.Cleanup(func() { resolver.Shutdown() })

	quiet, db := log.New(io.Discard, "", 0), acmedb.NewMemoryStore()
	ca := acmeca.New(quiet, db, "", "ecdsa", 0, 1, map[string]acmeca.Profile{"default": {ValidityPeriod: uint64(validity.Seconds())}})
	va := acmeva.New(quiet, httpPort, tlsPort, false, names.Addr().String(), db)
	wfe := acmewfe.New(quiet, db, va, ca, []string{"authority.test"}, false, false, 1, 1)
	next := wfe.Handler()
	a := &authority{roots: x509.NewCertPool(), end: make(chan struct{})}
	a.roots.AddCert(ca.GetRootCert(0).Cert)
	a.front = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if a.hang.Load() {
			<-a.end
			return
		}
		if r.URL.Path == "/order-plz" {
			a.orders.Add(1)
			if body, err := io.ReadAll(r.Body); err == nil {
				if strings.Contains(payload(body), `"replaces"`) {
					a.renewals.Add(1)
				}
				r.Body = io.NopCloser(bytes.NewReader(body))
			}
		}
		next.ServeHTTP(w, r)
		if r.URL.Path == "/order-plz" && a.taken != nil {
			a.taken()
		}
	}))
	t.Cleanup(func() { close(a.end); a.front.Close() })
	return a
}

// payload is what a signed request says.
func payload(body []byte) string {
	var signed struct{ Payload string }
	if json.Unmarshal(body, &signed) != nil {
		return ""
	}
	text, _ := base64.RawURLEncoding.DecodeString(signed.Payload)
	return string(text)
}

func (a *authority) rootsPEM() []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.front.Certificate().Raw})
}

// edgeSpec is all that an edge of this test is made of; as JSON it goes to a
// process of its own.
type edgeSpec struct {
	Name, Dir, Shelf, Directory string
	Roots                       []byte
	HTTP01, TLSALPN01           bool
	RenewCheck                  time.Duration
}

const specEnv = "EDGETLS_TEST_EDGE"

// TestMain runs the test binary as an edge if it is told to: certmagic keeps
// its challenges in a variable of the process, where a second Manager would find
// them without the shelf.
func TestMain(m *testing.M) {
	raw := os.Getenv(specEnv)
	if raw == "" {
		flag.Parse()
		// The authority's own settings, and more tests at once than there are CPUs: those that may wait for a renewal.
		err := errors.Join(os.Setenv("PEBBLE_VA_NOSLEEP", "1"), os.Setenv("PEBBLE_WFE_NONCEREJECT", "0"), os.Setenv("PEBBLE_AUTHZREUSE", "0"),
			flag.Set("test.parallel", "6"))
		if err != nil {
			log.Fatal(err)
		}
		os.Exit(m.Run())
	}
	var spec edgeSpec
	if err := json.Unmarshal([]byte(raw), &spec); err != nil {
		log.Fatal(err)
	}
	e, err := startEdge(spec)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Printf("%s %s\n", e.http, e.https)
	io.Copy(io.Discard, os.Stdin)
	if err := e.stop(); err != nil {
		log.Fatal(err)
	}
}

// acmeEdge has its doors open the way the edge's program has.
type acmeEdge struct {
	*edgetls.Manager
	http, https string
	stop        func() error
}

func startEdge(spec edgeSpec) (*acmeEdge, error) {
	plain, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	secure, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	cfg := edgetls.Config{
		Dir: spec.Dir, Node: spec.Name, Seal: bytes.Repeat([]byte{7}, 32),
		Shelf: joinv1connect.NewCertStoreServiceClient(http.DefaultClient, spec.Shelf, connect.WithInterceptors(rpcfault.Client())),
		ACME:  edgetls.ACME{Directory: spec.Directory, RootsPEM: spec.Roots}, RenewCheck: spec.RenewCheck,
	}
	if spec.HTTP01 {
		cfg.ACME.HTTPPort = plain.Addr().(*net.TCPAddr).Port
	}
	if spec.TLSALPN01 {
		cfg.ACME.TLSPort = secure.Addr().(*net.TCPAddr).Port
	}
	m, err := edgetls.New(cfg)
	if err != nil {
		return nil, err
	}
	api := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "api") })
	doors := []*http.Server{{Handler: m.HTTPHandler(api)}, {Handler: api, TLSConfig: m.TLSConfig(), ErrorLog: log.New(io.Discard, "", 0)}}
	doors[1].TLSConfig.NextProtos = append([]string{"h2", "http/1.1"}, doors[1].TLSConfig.NextProtos...)
	var wg sync.WaitGroup
	wg.Go(func() { doors[0].Serve(plain) })
	wg.Go(func() { doors[1].ServeTLS(secure, "", "") })
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx) }()
	m.Manage([]string{host})
	e := &acmeEdge{Manager: m, http: plain.Addr().String(), https: secure.Addr().String()}
	e.stop = sync.OnceValue(func() error {
		cancel()
		err := <-ran
		doors[0].Close()
		doors[1].Close()
		wg.Wait()
		return err
	})
	return e, nil
}

// startProcess starts an edge in a process of its own and returns its doors.
func startProcess(t *testing.T, spec edgeSpec) (http, https string) {
	t.Helper()
	raw, _ := json.Marshal(spec)
	cmd := exec.Command(os.Args[0])
	cmd.Env, cmd.Stderr = append(os.Environ(), specEnv+"="+string(raw)), os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("edge %s: %v", spec.Name, err)
		}
	})
	if _, err := fmt.Fscan(out, &http, &https); err != nil {
		t.Fatalf("doors of edge %s: %v", spec.Name, err)
	}
	return http, https
}

// cross is where the authority knocks: it leads to the edge that did NOT order,
// so that only the shelf can have told it the answer.
type cross struct {
	net.Listener
	mu    sync.Mutex
	doors map[string]string // edge → address
	used  []string
}

func newCross(t *testing.T, z *zone) *cross {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := &cross{Listener: l, doors: map[string]string{}}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go c.lead(conn, z.holder("issue_cert_"+host))
		}
	}()
	return c
}

func (c *cross) lead(conn net.Conn, orderer string) {
	defer conn.Close()
	c.mu.Lock()
	to := ""
	for name := range c.doors {
		if name != orderer && orderer != "" {
			to = name
		}
	}
	addr := c.doors[to]
	c.used = append(c.used, to)
	c.mu.Unlock()
	up, err := net.Dial("tcp", addr)
	if err != nil {
		return
	}
	defer up.Close()
	go func() { io.Copy(up, conn); up.(*net.TCPConn).CloseWrite() }()
	io.Copy(conn, up)
}

func (c *cross) set(name, addr string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.doors[name] = addr
}

func (c *cross) port() int { return c.Addr().(*net.TCPAddr).Port }

// holder is the edge that has a lock, "" if none has.
func (z *zone) holder(lock string) string {
	z.mu.Lock()
	defer z.mu.Unlock()
	name, _, _ := strings.Cut(z.locks[lock].holder, "/")
	return name
}

func handshake(addr string, roots *x509.CertPool) (*x509.Certificate, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", addr, &tls.Config{RootCAs: roots, ServerName: host, NextProtos: []string{"h2"}})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

func TestACME_OneOrderAnsweredByTheOtherEdge(t *testing.T) {
	for _, c := range []struct {
		challenge         string
		http01, tlsALPN01 bool
	}{{"http-01", true, false}, {"tls-alpn-01", false, true}} {
		t.Run(c.challenge, func(t *testing.T) {
			z := newZone(t)
			mux := http.NewServeMux()
			mux.Handle(joinv1connect.NewCertStoreServiceHandler(z, connect.WithInterceptors(rpcfault.Server(nil))))
			shelf := httptest.NewServer(mux)
			defer shelf.Close()
			plain, secure := newCross(t, z), newCross(t, z)
			pub := newAuthority(t, plain.port(), secure.port())
			spec := edgeSpec{Name: "a", Dir: t.TempDir(), Shelf: shelf.URL, Directory: pub.front.URL + "/dir", Roots: pub.rootsPEM(), HTTP01: c.http01, TLSALPN01: c.tlsALPN01}
			other := spec
			other.Name, other.Dir = "b", t.TempDir()
			z.setAway(true) // nobody orders before the fronts know both edges
			bHTTP, bHTTPS := startProcess(t, other)
			plain.set("b", bHTTP)
			secure.set("b", bHTTPS)
			a, err := startEdge(spec)
			if err != nil {
				t.Fatal(err)
			}
			defer a.stop()
			plain.set("a", a.http)
			secure.set("a", a.https)
			z.setAway(false)

			var ca, cb *x509.Certificate
			wait(t, "both edges serve a certificate of the authority", func() bool {
				var errA, errB error
				ca, errA = handshake(a.https, pub.roots)
				cb, errB = handshake(bHTTPS, pub.roots)
				return errA == nil && errB == nil
			})
			if !ca.Equal(cb) {
				t.Error("the edges serve different certificates")
			}
			if n := pub.orders.Load(); n != 1 {
				t.Errorf("orders at the authority: got %d, want 1", n)
			}
			knocked, silent := plain, secure
			if c.tlsALPN01 {
				knocked, silent = secure, plain
			}
			if knocked.mu.Lock(); len(knocked.used) == 0 || slices.Contains(knocked.used, "") {
				t.Errorf("edges that answered: got %q, want the one that did not order", knocked.used)
			}
			knocked.mu.Unlock()
			if silent.mu.Lock(); len(silent.used) != 0 {
				t.Errorf("the challenge that is off was knocked for: %q", silent.used)
			}
			silent.mu.Unlock()
			z.checkSealed(t)
			testRestart(t, z, pub, spec, a)
		})
	}
}

// testRestart: what is on the disk is served while the authority hangs, and
// while neither it nor the shelf is there.
func testRestart(t *testing.T, z *zone, pub *authority, spec edgeSpec, a *acmeEdge) {
	t.Helper()
	restart := func(when string) {
		t.Helper()
		if err := a.stop(); err != nil {
			t.Errorf("Run: got %v", err)
		}
		next, err := startEdge(spec)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { next.stop() })
		wait(t, "certificate from the disk "+when, func() bool { return len(next.Missing()) == 0 })
		if _, err := handshake(next.https, pub.roots); err != nil {
			t.Errorf("%s: %v", when, err)
		}
		a = next
	}
	pub.hang.Store(true)
	restart("while the authority hangs")
	z.setAway(true)
	restart("while authority and shelf are away")
	z.setAway(false)
	if n := pub.orders.Load(); n != 1 {
		t.Errorf("orders after the restarts: got %d, want 1", n)
	}
}

// checkSealed: nothing on the shelf is readable, and no challenge stays.
func (z *zone) checkSealed(t *testing.T) {
	t.Helper()
	wait(t, "the locks are free", func() bool {
		z.mu.Lock()
		defer z.mu.Unlock()
		return len(z.locks) == 0
	})
	z.mu.Lock()
	defer z.mu.Unlock()
	var keys int
	for k, v := range z.vals {
		if strings.HasSuffix(k, ".key") {
			keys++
		}
		if strings.Contains(k, "challenge_tokens") {
			t.Errorf("%s is still on the shelf", k)
		}
		for _, plain := range []string{"PRIVATE", "CERTIFICATE", "BEGIN", host, "contact"} {
			if bytes.Contains(v, []byte(plain)) {
				t.Errorf("%s on the shelf reads %q, want sealed", k, plain)
			}
		}
	}
	if keys != 2 {
		t.Errorf("private keys on the shelf: got %d, want the host's and the account's", keys)
	}
}

// An edge behind closed doors is refused: certmagic must neither open one
// itself, nor spend the few attempts that an authority grants.
func TestACME_RefusedIsNotRepeatedAtOnce(t *testing.T) {
	port := int(netip.MustParseAddrPort(porttest.Addr(t)).Port()) // where nobody listens
	z := newZone(t)
	pub := newAuthority(t, port, port)
	m, err := edgetls.New(edgetls.Config{
		Dir: t.TempDir(), Node: "a", Seal: bytes.Repeat([]byte{7}, 32), Shelf: z,
		ACME: edgetls.ACME{Directory: pub.front.URL + "/dir", RootsPEM: pub.rootsPEM(), HTTPPort: port, TLSPort: port},
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ran := make(chan error, 1)
	go func() { ran <- m.Run(ctx) }()
	defer func() { cancel(); <-ran }()
	m.Manage([]string{host})
	wait(t, "an order", func() bool { return pub.orders.Load() > 0 })
	// One attempt tries each challenge with an order of its own.
	time.Sleep(4 * time.Second)
	if n := pub.orders.Load(); n > 2 {
		t.Errorf("orders in 4 s though refused: got %d, want at most 2", n)
	}
	if len(m.Missing()) != 1 {
		t.Error("host behind closed doors: got a certificate")
	}
}

func TestACME_StrangersChallengesStayOffTheShelf(t *testing.T) {
	z := newZone(t)
	cfg := edgetls.Config{Dir: t.TempDir(), Node: "a", Seal: make([]byte, 32), Shelf: z, ACME: edgetls.ACME{Directory: "https://127.0.0.1:1/dir", HTTPPort: 1}}
	m, err := edgetls.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	m.Run(ctx)
	m.Manage([]string{host})
	h := m.HTTPHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.WriteHeader(http.StatusTeapot) }))
	for name, want := range map[string]int32{"other.example.test": 0, "other.example.test:80": 0, strings.ToUpper(host) + ":80": 1} {
		z.loads.Store(0)
		r := httptest.NewRequest(http.MethodGet, (&url.URL{Scheme: "http", Host: name, Path: "/.well-known/acme-challenge/token"}).String(), nil)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if n := z.loads.Load(); n != want || w.Code != http.StatusTeapot {
			t.Errorf("%s: got %d loads and status %d, want %d and the next handler's", name, n, w.Code, want)
		}
	}
	if slices.Contains(m.TLSConfig().NextProtos, "acme-tls/1") {
		t.Error("acme-tls/1 is offered though no port leads to it")
	}
	cfg.ACME.TLSPort = 443
	if m, err = edgetls.New(cfg); err != nil {
		t.Fatal(err)
	}
	m.Run(ctx)
	if !slices.Contains(m.TLSConfig().NextProtos, "acme-tls/1") || slices.Contains(m.QUICTLSConfig().NextProtos, "acme-tls/1") {
		t.Errorf("acme-tls/1: got %v on TCP and %v on QUIC, want it on TCP only", m.TLSConfig().NextProtos, m.QUICTLSConfig().NextProtos)
	}
	cfg.ACME.HTTPPort, cfg.ACME.TLSPort = 0, 0
	if _, err := edgetls.New(cfg); err == nil {
		t.Error("ACME without a port for its challenges: got accepted")
	}
}

// Certificates of seconds, shared by twenty edges: each is replaced before it ends, by one order of the whole zone, which
// says what it replaces; every edge follows, and a client never meets one that has ended.
func TestACME_RenewalIsOneOrderOfTheZone(t *testing.T) {
	t.Parallel() // its edges are processes
	z := newZone(t)
	mux := http.NewServeMux()
	mux.Handle(joinv1connect.NewCertStoreServiceHandler(z, connect.WithInterceptors(rpcfault.Server(nil))))
	shelf := httptest.NewServer(mux)
	defer shelf.Close()
	plain, secure := newCross(t, z), newCross(t, z)
	const validity = 60 * time.Second
	pub := newAuthorityOf(t, plain.port(), secure.port(), validity)
	z.setAway(true)
	doors := map[string]string{}
	for i := range 20 {
		name := string(rune('a' + i))
		spec := edgeSpec{Name: name, Dir: t.TempDir(), Shelf: shelf.URL, Directory: pub.front.URL + "/dir", Roots: pub.rootsPEM(), HTTP01: true, RenewCheck: 250 * time.Millisecond}
		http, https := startProcess(t, spec)
		plain.set(name, http)
		doors[name] = https
	}
	z.setAway(false)
	all := func() (serials map[string]bool, err error) {
		serials = map[string]bool{}
		for name, addr := range doors {
			cert, err := handshake(addr, pub.roots)
			if err != nil {
				return nil, fmt.Errorf("edge %s: %w", name, err)
			}
			serials[cert.SerialNumber.String()] = true
		}
		return serials, nil
	}
	wait(t, "all edges serve", func() bool { _, err := all(); return err == nil })
	if n := pub.orders.Load(); n != 1 {
		t.Fatalf("first orders: got %d, want 1", n)
	}
	seen, began := map[string]bool{}, time.Now()
	for len(seen) < 2 || time.Since(began) < validity*3/4 {
		serials, err := all()
		if err != nil {
			t.Fatalf("%v after the start: %v", time.Since(began).Round(time.Second), err)
		}
		for s := range serials {
			seen[s] = true
		}
		if time.Since(began) > 4*validity {
			t.Fatal("nothing is renewed")
		}
		time.Sleep(200 * time.Millisecond)
	}
	var serials map[string]bool
	wait(t, "all edges serve the renewed certificate", func() bool {
		var err error
		serials, err = all()
		return err == nil && len(serials) == 1
	})
	for s := range serials {
		seen[s] = true
	}
	// As many certificates as orders: none was made for nothing. A renewal may be under way as this is read.
	if n := int(pub.orders.Load()); n != len(seen) && n != len(seen)+1 {
		t.Errorf("orders: got %d for %d certificates", n, len(seen))
	}
	if r, n := pub.renewals.Load(), pub.orders.Load(); r < n-1 {
		t.Errorf("orders that say what they replace: got %d of %d, want all but the first", r, n)
	}
}

// While the zone store has no leader the edge that orders waits, and so does the one that is asked for the answer:
// what was asked of the authority is not asked again.
func TestACME_AnOrderOutlastsALeaderChange(t *testing.T) {
	z := newZone(t)
	mux := http.NewServeMux()
	mux.Handle(joinv1connect.NewCertStoreServiceHandler(z, connect.WithInterceptors(rpcfault.Server(nil))))
	shelf := httptest.NewServer(mux)
	defer shelf.Close()
	plain := newCross(t, z)
	pub := newAuthority(t, plain.port(), 1)
	pub.taken = func() {
		z.setAway(true)
		time.AfterFunc(3*time.Second, func() { z.setAway(false) })
	}
	z.setAway(true)
	a, err := startEdge(edgeSpec{Name: "a", Dir: t.TempDir(), Shelf: shelf.URL, Directory: pub.front.URL + "/dir", Roots: pub.rootsPEM(), HTTP01: true})
	if err != nil {
		t.Fatal(err)
	}
	defer a.stop()
	plain.set("b", a.http) // it answers itself: the other edge's part is TestACME_OneOrder's
	z.setAway(false)
	wait(t, "the edge serves", func() bool { _, err := handshake(a.https, pub.roots); return err == nil })
	if n := pub.orders.Load(); n != 1 {
		t.Errorf("orders: got %d, want 1", n)
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if z.asked[host] != 1 || z.stale != 0 {
		t.Errorf("got %d times leave to order, and %d writes under a lost lock, want 1 and 0", z.asked[host], z.stale)
	}
}

// When to renew is written beside the certificate that it was asked for, or not at all.
func TestShelf_MetadataOfAnotherCertificate(t *testing.T) {
	z := newZone(t)
	s := edgetls.NewShelf(t, z)
	key, ctx := "certificates/ca/"+host+"/"+host+".json", t.Context()
	of := func(url, more string) []byte {
		return fmt.Appendf(nil, `{"sans":[%q],"issuer_data":{"url":%q,"ca":%q}}`, host, url, more)
	}
	if err := s.Store(ctx, key, of("old", "")); err == nil {
		t.Error("metadata of a certificate that is not there: got stored")
	}
	if err := s.Lock(ctx, "issue_cert_"+host); err != nil {
		t.Fatal(err)
	}
	if err := s.Store(ctx, key, of("old", "")); err != nil {
		t.Fatal(err)
	}
	if err := s.Unlock(ctx, "issue_cert_"+host); err != nil {
		t.Fatal(err)
	}
	if err := s.Store(ctx, key, of("old", "times")); err != nil {
		t.Errorf("of the certificate that is there: got %v, want stored", err)
	}
	if err := s.Store(ctx, key, of("new", "")); err == nil {
		t.Error("of a certificate that was replaced: got stored")
	}
	if err := s.Store(ctx, "certificates/ca/"+host+"/"+host+".key", []byte("key")); err == nil {
		t.Error("a key without the lock: got stored")
	}
	if got, err := s.Load(ctx, key); err != nil || string(got) != string(of("old", "times")) {
		t.Errorf("in the end: got %s, %v", got, err)
	}
}
