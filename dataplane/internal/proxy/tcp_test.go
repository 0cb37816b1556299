package proxy_test

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"bailiwick/dataplane/internal/proxy"
	"bailiwick/shared/apikey"
	"bailiwick/shared/table"
	"bailiwick/shared/usage"
)

func selfSigned(t testing.TB, names ...string) (tls.Certificate, string) {
	return selfSignedUntil(t, time.Now().Add(time.Hour), names...)
}

func selfSignedUntil(t testing.TB, until time.Time, names ...string) (tls.Certificate, string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: names, NotBefore: time.Now().Add(-time.Hour), NotAfter: until}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, _ := x509.ParseCertificate(der)
	spki := sha256.Sum256(leaf.RawSubjectPublicKeyInfo)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, hex.EncodeToString(spki[:])
}

// shouter is an upstream that is no HTTP: it says its name, and back in capitals what it hears, until it hears the end.
func shouter(t testing.TB, name string) net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				said, err := bufio.NewReader(c).ReadString('\n')
				for r := bufio.NewReader(c); err == nil; said, err = r.ReadString('\n') {
					io.WriteString(c, name+" "+strings.ToUpper(said))
				}
				io.WriteString(c, name+" END\n")
			})
		}
	})
	return l
}

// lines is a world with an API that is tcp.
type lines struct {
	*world
	door    string
	targets [2][]string // by region
	cert    tls.Certificate
	end     func(ctx context.Context)
}

func newLines(t *testing.T) *lines { return newLinesWith(t, nil) }

func newLinesWith(t *testing.T, mod func(*proxy.Config)) *lines {
	w := &lines{world: newWorld(t, mod)}
	w.targets[0] = []string{"tcp://" + shouter(t, "west").Addr().String()}
	w.targets[1] = []string{"tcp://" + shouter(t, "central").Addr().String()}
	var spki string
	w.cert, spki = selfSigned(t)
	w.knows(spki, "certificates")
	w.swap(true)
	server, _ := selfSigned(t, "lines.test", "orders.test")
	servers := proxy.NewServers(proxy.ServersConfig{Handler: w.west.proxy, TLS: &tls.Config{Certificates: []tls.Certificate{server}, ClientAuth: tls.RequestClientCert}, Logger: slog.New(slog.DiscardHandler)})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	w.door, w.end = l.Addr().String(), servers.HTTPS.End
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { servers.HTTPS.Serve(l) })
	wg.Go(func() { w.west.proxy.Run(ctx) })
	t.Cleanup(func() { servers.HTTPS.Close(); cancel(); wg.Wait() })
	return w
}

// knows binds a key to a certificate, from the next swap on.
func (w *lines) knows(spki, subscription string) {
	id, d := apikey.NewHasher(pepper).Bound(apikey.KindCertificate, spki)
	o, err := table.Encode(table.KindKey, id, table.Key{ID: id, DigestHex: hex.EncodeToString(d[:]), Customer: "acme", Subscription: subscription, Plan: "gold"})
	if err != nil {
		w.t.Fatal(err)
	}
	w.objects = append(w.objects, o)
}

// swap gives both regions their tables.
func (w *lines) swap(paired bool) {
	for i, r := range []*region{w.west, w.central} {
		api := table.API{Name: "lines", Zone: "emea", Hosts: []string{"lines.test"}, Policy: "gdpr", Targets: w.targets[i], Regions: []string{"eu-west", "eu-central"},
			TCP: &table.TCP{}, Auth: &table.Auth{Certificates: true}, Routes: []table.Route{{Name: "all", Units: &table.Units{PerBytes: 10, Most: 5}}}}
		o, err := table.Encode(table.KindAPI, "lines", api)
		if err != nil {
			w.t.Fatal(err)
		}
		r.plan = func(p *table.Plan) { p.APIs = map[string]string{"orders": "core", "lines": "core"} }
		w.objects = append(w.objects, o)
		r.tables.Swap(w.view(r, paired))
		w.objects = w.objects[:len(w.objects)-1]
	}
}

func (w *lines) dial(cfg *tls.Config) (*tls.Conn, *bufio.Reader, error) {
	cfg.InsecureSkipVerify = true
	if cfg.ServerName == "" {
		cfg.ServerName = "lines.test"
	}
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", w.door, cfg)
	if err != nil {
		return nil, nil, err
	}
	w.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(30 * time.Second))
	return c, bufio.NewReader(c), nil
}

func TestTCP_PassesBytesOfThoseWhoMay(t *testing.T) {
	w := newLines(t)
	for name, c := range map[string]struct {
		cfg  *tls.Config
		say  string
		want string // the first line; "": the connection ends
	}{
		"a key":                 {&tls.Config{}, "BAILIWICK/1 " + w.key + "\r\nhello\n", "BAILIWICK/1 200 ok"},
		"another protocol":      {&tls.Config{NextProtos: []string{"mqtt"}}, "BAILIWICK/1 " + w.key + "\r\nhello\n", "BAILIWICK/1 200 ok"},
		"a certificate":         {&tls.Config{Certificates: []tls.Certificate{w.cert}}, "hello\n", "west HELLO"},
		"a wrong key":           {&tls.Config{}, "BAILIWICK/1 nobody\r\nhello\n", "BAILIWICK/1 401 key-invalid"},
		"no key":                {&tls.Config{}, "BAILIWICK/1 \r\nhello\n", "BAILIWICK/1 400 bad-request"},
		"HTTP in its place":     {&tls.Config{}, "GET / HTTP/1.1\r\nHost: lines.test\r\n\r\n", "BAILIWICK/1 400 bad-request"},
		"HTTP by agreement":     {&tls.Config{NextProtos: []string{"http/1.1"}}, "GET / HTTP/1.1\r\nHost: lines.test\r\nX-Api-Key: " + w.key + "\r\n\r\n", "HTTP/1.1 421 Misdirected Request"},
		"a line without an end": {&tls.Config{}, "BAILIWICK/1 " + strings.Repeat("x", 5000), "BAILIWICK/1 400 bad-request"},
		"a line broken alone":   {&tls.Config{}, "BAILIWICK/1 " + w.key + "\nhello\n", "BAILIWICK/1 400 bad-request"},
	} {
		t.Run(name, func(t *testing.T) {
			conn, r, err := w.dial(c.cfg)
			if err != nil {
				t.Fatal(err)
			}
			before := w.west.meter.len()
			io.WriteString(conn, c.say)
			first, err := r.ReadString('\n')
			if got := strings.TrimSpace(first); got != c.want {
				t.Fatalf("it says %q (%v), want %q", got, err, c.want)
			}
			if !strings.Contains(c.want, "200 ok") && c.want != "west HELLO" {
				return
			}
			if c.want != "west HELLO" {
				if second, err := r.ReadString('\n'); second != "west HELLO\n" {
					t.Fatalf("heard %q, %v", second, err)
				}
			}
			conn.CloseWrite() // half of it: the rest still comes
			rest, err := io.ReadAll(r)
			if string(rest) != "west END\n" || err != nil {
				t.Fatalf("after the half was closed: %q, %v", rest, err)
			}
			eventually(t, 10*time.Second, "the final row", func() bool { return w.west.meter.len() > before && w.west.meter.last().Requests == 1 })
			units, in, out := int64(0), int64(0), int64(0)
			for _, row := range w.west.meter.since(before) {
				units, in, out = units+row.Units, in+row.BytesIn, out+row.BytesOut
			}
			if row := w.west.meter.last(); row.Outcome != usage.OutcomeSuccess || row.API != "lines" || in != 6 || out != 20 || units != 3 {
				t.Errorf("row %+v; %d bytes up, %d down, %d units; want 6, 20 and 3", row, in, out, units)
			}
		})
	}
	if a := w.send("GET", "/", "", "Host", "lines.test"); a.status != 421 {
		t.Errorf("HTTP in clear: %d, want 421", a.status)
	}
}

func TestTCP_GoesWhereATargetTakesIt(t *testing.T) {
	w := newLines(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	gone := "tcp://" + dead.Addr().String()
	talk := func(want string) *tls.Conn {
		t.Helper()
		conn, r, err := w.dial(&tls.Config{})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "BAILIWICK/1 "+w.key+"\r\nhello\n")
		r.ReadString('\n')
		if got, err := r.ReadString('\n'); got != want+" HELLO\n" {
			t.Fatalf("heard %q (%v), want it of %s", got, err, want)
		}
		return conn
	}
	w.targets[0] = append([]string{gone}, w.targets[0]...) // a target that takes nothing: the next one
	w.swap(true)
	for range 4 {
		talk("west").Close()
	}
	w.targets[0] = []string{gone} // none: another region
	w.swap(true)
	conn := talk("central")
	w.swap(false) // and the pair is closed
	w.west.client.Enforce()
	if _, err := io.ReadAll(conn); err == nil {
		t.Error("what went over a pair that is closed ended as if all had been said")
	}
	conn.Close()
	eventually(t, 10*time.Second, "its row", func() bool {
		r := w.west.meter.last()
		return r.Requests == 1 && r.ServedRegion == "eu-central" && r.Outcome == usage.OutcomeAborted
	})
}

func TestTCP_EndsWithItsKey(t *testing.T) {
	w := newLines(t)
	conn, r, err := w.dial(&tls.Config{})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "BAILIWICK/1 "+w.key+"\r\nhello\n")
	r.ReadString('\n')
	r.ReadString('\n')
	w.objects = w.objects[1:]
	w.swap(true)
	if rest, err := io.ReadAll(r); err == nil || len(rest) > 0 {
		t.Errorf("read %q, %v; want that it is broken off", rest, err)
	}
	eventually(t, 10*time.Second, "no stream", func() bool { return w.west.proxy.Streams() == 0 })
}

// What a client certificate opened ends with the certificate, as what a token opened ends with the token.
func TestTCP_EndsWithItsCertificate(t *testing.T) {
	w := newLines(t)
	until := time.Now().Add(3 * time.Second).Truncate(time.Second) // as certificates say it
	cert, spki := selfSignedUntil(t, until)
	w.knows(spki, "short")
	w.swap(true)
	talk := func(cert tls.Certificate) (*tls.Conn, *bufio.Reader) {
		conn, r, err := w.dial(&tls.Config{Certificates: []tls.Certificate{cert}})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "hello\n")
		if got, err := r.ReadString('\n'); got != "west HELLO\n" {
			t.Fatalf("heard %q (%v)", got, err)
		}
		return conn, r
	}
	conn, r := talk(cert)
	other, o := talk(w.cert)
	conn.SetDeadline(until.Add(10 * time.Second))
	_, err := io.ReadAll(r)
	if late, ok := err.(net.Error); err == nil || ok && late.Timeout() {
		t.Errorf("ten seconds after the certificate: %v, want that it is broken off", err)
	}
	if time.Now().Before(until) {
		t.Errorf("it ended %v early", time.Until(until))
	}
	io.WriteString(other, "still\n")
	if got, err := o.ReadString('\n'); got != "west STILL\n" {
		t.Errorf("one of a certificate that lasts: heard %q (%v)", got, err)
	}
}

func FuzzPreamble(f *testing.F) {
	f.Add([]byte("BAILIWICK/1 key\r\nrest"))
	f.Add([]byte("BAILIWICK/1 \r\n"))
	f.Add([]byte("BAILIWICK/1 a\rb"))
	f.Fuzz(func(t *testing.T, b []byte) {
		key, n, err := proxy.Preamble(b)
		if n > 0 && (err != nil || !bytes.HasPrefix(b, []byte("BAILIWICK/1 "+key+"\r\n")) || n != len(key)+14 || key == "" || strings.ContainsAny(key, " \r\n\x00")) {
			t.Fatalf("%q: key %q, %d bytes, %v", b, key, n, err)
		}
		// What is read of the whole is read of a part, or not at all yet.
		for i := range b {
			k, m, e := proxy.Preamble(b[:i])
			if m > 0 && (k != key || m != n) || e != nil && err == nil {
				t.Fatalf("%q: of %d bytes %q, %d, %v; of all %q, %d, %v", b, i, k, m, e, key, n, err)
			}
		}
	})
}

// A door that breaks off what lasts too long is shut when what passed on it is in its row: the spool is closed next.
func TestDoor_EndsWhenWhatItBrokeOffIsCounted(t *testing.T) {
	w := newLines(t)
	conn, r, err := w.dial(&tls.Config{})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "BAILIWICK/1 "+w.key+"\r\nhello\n")
	r.ReadString('\n')
	r.ReadString('\n')
	slow := make(chan struct{})
	w.west.meter.mu.Lock() // its row takes its time
	time.AfterFunc(100*time.Millisecond, func() { w.west.meter.mu.Unlock(); close(slow) })
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	w.end(ctx)
	select {
	case <-slow:
	default:
		t.Fatal("the door was shut before what passed was counted")
	}
	if row := w.west.meter.last(); row.Requests != 1 {
		t.Errorf("row %+v", row)
	}
}

// Over a relay too an end is an end: what both sides have said arrives, and the connection ends as if all had been said, is
// counted as served and blames nobody. The upstream's end is the connection's, also while the client has not said all. What the
// upstream breaks off is broken off at the client.
func TestTCP_RelayedEndsAsItEnds(t *testing.T) {
	w := newLines(t)
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	w.targets[0] = []string{"tcp://" + dead.Addr().String()}
	up, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer up.Close()
	go func() {
		for {
			c, err := up.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				in := bufio.NewReader(c)
				switch said, _ := in.ReadString('\n'); said {
				case "all\n":
					rest, _ := io.ReadAll(in)
					fmt.Fprintf(c, "heard %q", rest)
				case "enough\n":
					io.WriteString(c, "bye")
				case "break\n":
					io.WriteString(c, "half")
					in.ReadString('\n')
					c.(*net.TCPConn).SetLinger(0)
				}
			}()
		}
	}()
	w.targets[1] = []string{"tcp://" + up.Addr().String()}
	w.swap(true)
	for range 5 {
		for say, want := range map[string]string{"all\n": `heard "to the end"`, "enough\n": "bye", "break\n": "half"} {
			before := w.west.meter.len()
			conn, r, err := w.dial(&tls.Config{})
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(conn, "BAILIWICK/1 "+w.key+"\r\n"+say)
			r.ReadString('\n')
			outcome := usage.OutcomeSuccess
			switch say {
			case "all\n":
				io.WriteString(conn, "to the end")
				conn.CloseWrite()
			case "break\n":
				outcome = usage.OutcomeAborted
				if got, err := r.Peek(4); string(got) != want {
					t.Fatalf("before it is broken off: got %q, %v", got, err)
				}
				io.WriteString(conn, "\n")
			}
			got, err := io.ReadAll(r)
			if string(got) != want || (err == nil) != (outcome == usage.OutcomeSuccess) {
				t.Errorf("%q: got %q, %v; want %q", say, got, err, want)
			}
			eventually(t, 20*time.Second, "the final row", func() bool { return w.west.meter.len() > before && w.west.meter.last().Requests == 1 })
			if row := w.west.meter.last(); row.Outcome != outcome || row.ServedRegion != "eu-central" {
				t.Errorf("%q: row %+v, want outcome %v", say, row, outcome)
			}
			conn.Close()
		}
	}
}

// What lasts has its places at a receiver of relays too.
func TestTCP_RelayedHasAPlace(t *testing.T) {
	w := newLinesWith(t, func(c *proxy.Config) { c.MaxStreams = 1 })
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	dead.Close()
	w.targets[0] = []string{"tcp://" + dead.Addr().String()}
	w.swap(true)
	conn, r, err := w.dial(&tls.Config{})
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(conn, "BAILIWICK/1 "+w.key+"\r\nhello\n")
	r.ReadString('\n')
	if got, _ := r.ReadString('\n'); got != "central HELLO\n" {
		t.Fatalf("heard %q", got)
	}
	if n := w.central.proxy.Streams(); n != 1 {
		t.Errorf("the receiver has %d streams, want 1", n)
	}
	conn.Close()
	eventually(t, 10*time.Second, "its place", func() bool { return w.central.proxy.Streams() == 0 })
}

// A page that some client's browser shows opens no WebSocket in his name unless the API trusts it.
func TestSocket_NoPageActsByACertificate(t *testing.T) {
	w := newLines(t)
	w.west.orders = func(a *table.API) {
		a.Auth = &table.Auth{Certificates: true}
		a.Routes = append(a.Routes, table.Route{Name: "live", PathPrefix: "/live", WebSocket: &table.WebSocket{}, CORS: &table.CORS{Origins: []string{"https://app.test"}, Credentials: true}})
	}
	w.swap(true)
	w.west.up.echoes(t)
	for name, c := range map[string]struct {
		header string
		status string
	}{
		"no page":               {"", "101"},
		"its own":               {"Origin: https://orders.test\r\n", "101"},
		"one that it trusts":    {"Origin: https://app.test\r\n", "101"},
		"a strange one":         {"Origin: https://evil.test\r\n", "403"},
		"none that has a name":  {"Origin: null\r\n", "403"},
		"a strange one, by key": {"Origin: https://evil.test\r\nX-Api-Key: " + w.key + "\r\n", "101"}, // which no page has
	} {
		conn, r, err := w.dial(&tls.Config{ServerName: "orders.test", Certificates: []tls.Certificate{w.cert}})
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(conn, "GET /live/x HTTP/1.1\r\nHost: orders.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"+c.header+"\r\n")
		if got, err := r.ReadString('\n'); !strings.HasPrefix(got, "HTTP/1.1 "+c.status+" ") {
			t.Errorf("%s: %q (%v), want %s", name, got, err, c.status)
		}
		conn.Close()
	}
}
