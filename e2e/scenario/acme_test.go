package scenario_test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// crowd is the edges of one zone, and the authority they ask.
type crowd struct {
	s         *harness.Sandbox
	processes map[string]*harness.Process // those that the sandbox did not start itself
	https     map[string]string           // by edge
	roots     *x509.CertPool
	authority *http.Client
}

// Eight edges of a zone, twenty with BAILIWICK_LONG, want a certificate for one host at the same moment. Whatever happens
// meanwhile, they end with one certificate; and unless the edge that orders is lost, the authority hears of one order.
func TestACME(t *testing.T) {
	t.Parallel()
	edges := 8
	if long() {
		edges = 20
	}
	s := harness.Start(t, "-acme")
	w := &crowd{s: s, processes: map[string]*harness.Process{}, https: map[string]string{}, roots: x509.NewCertPool()}
	pem, err := os.ReadFile(filepath.Join(s.Dir, "authority-roots.pem"))
	if err != nil || !w.roots.AppendCertsFromPEM(pem) {
		t.Fatalf("the authority's roots: %v", err)
	}
	own := x509.NewCertPool()
	if pem, err = os.ReadFile(filepath.Join(s.Dir, "authority-ca.pem")); err != nil || !own.AppendCertsFromPEM(pem) {
		t.Fatalf("the authority's own certificate: %v", err)
	}
	w.authority = &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: own}}}
	s.Eventually(30*time.Second, "every host was ordered once, by whichever of its zone's edges", func() error {
		orders, _ := w.orders(t)
		for _, a := range s.APIs {
			if n := orders[a.Host]; n != 1 {
				return fmt.Errorf("%s was ordered %d times", a.Host, n)
			}
		}
		return nil
	})
	for _, e := range s.Edges {
		if e.Zone == "emea" {
			w.https[e.Name] = e.HTTPS
		}
	}
	for i := 0; len(w.https) < edges; i++ {
		slot := 10 + i
		if slot > 20 {
			slot += 6 // whose ports for HTTP are control nodes' own
		}
		region := []string{"eu-west", "eu-central"}[i%2]
		name := fmt.Sprintf("%s-edge-%d", region, 2+i/2)
		p := s.BeginEdge(region, name, slot)
		w.processes[name], w.https[name] = p, p.HTTPS
	}
	for _, p := range w.processes {
		s.WaitEdge(p)
	}

	t.Run("the leader is killed in the middle of the order", func(t *testing.T) {
		host := w.begin(t, "fresh")
		leader := s.With(t).Leader("store/emea")
		s.With(t).Act("kill", leader)
		w.tell(t, "release")
		w.serveOne(t, host, "")
		if orders, _ := w.orders(t); orders[host] != 1 {
			t.Errorf("orders of %s: got %d, want 1", host, orders[host])
		}
		s.With(t).Act("start", leader)
	})
	t.Run("one who orders falls asleep and wakes up, and one is killed", func(t *testing.T) {
		sleepy := w.begin(t, "sleepy")
		sleeper := w.orderer(t, sleepy)
		w.signal(t, sleeper, syscall.SIGSTOP)
		w.tell(t, "release")
		mortal := w.begin(t, "mortal") // the lock of the other host lives on for a while
		dead := w.orderer(t, mortal)
		w.signal(t, dead, syscall.SIGKILL)
		delete(w.https, dead)
		w.tell(t, "release")
		w.serveOne(t, sleepy, sleeper)
		w.serveOne(t, mortal, sleeper)
		w.signal(t, sleeper, syscall.SIGCONT)
		s.With(t).Eventually(30*time.Second, sleeper+" hears that it lost the lock", func() error {
			if !strings.Contains(s.Log(sleeper), "certificate lock was lost") && !strings.Contains(s.Log(sleeper), "no longer this edge's: nothing is written") {
				return errors.New("its log tells of nothing")
			}
			return nil
		})
		w.serveOne(t, sleepy, "")
		w.serveOne(t, mortal, "")
		for _, host := range []string{sleepy, mortal} {
			if orders, _ := w.orders(t); orders[host] != 2 {
				t.Errorf("orders of %s: got %d, want that of who was lost and the next one's", host, orders[host])
			}
		}
	})
	t.Run("nobody orders for a stranger", func(t *testing.T) {
		for name, address := range w.https {
			_, err := w.handshake(address, "stranger.emea.example.test")
			if err == nil || !strings.Contains(err.Error(), "unrecognized name") {
				t.Errorf("%s, asked for a host that is not configured: got %v, want unrecognized_name", name, err)
			}
		}
		if orders, _ := w.orders(t); orders["stranger.emea.example.test"] != 0 {
			t.Error("a stranger's host was ordered")
		}
		for _, e := range s.Edges { // nor does another zone have what this one ordered
			if _, err := w.handshake(e.HTTPS, "fresh.emea.example.test"); e.Zone != "emea" && (err == nil || !strings.Contains(err.Error(), "unrecognized name")) {
				t.Errorf("%s of another zone, asked for a host of emea: got %v, want unrecognized_name", e.Name, err)
			}
		}
	})
	t.Run("a cold start without control plane and authority", func(t *testing.T) {
		s := s.With(t)
		s.ActAll("kill", append(s.ControlsOf("emea"), "acme-authority")...)
		for name, p := range w.processes {
			select {
			case <-p.Ended():
				continue // it was killed as the one who ordered
			default:
			}
			p.Kill()
			if err := p.Start(); err != nil {
				t.Fatal(err)
			}
			s.Eventually(30*time.Second, name+" serves what is on its disk", func() error {
				for _, host := range []string{"fresh", "sleepy", "mortal", "orders"} {
					if _, err := w.handshake(p.HTTPS, host+".emea.example.test"); err != nil {
						return fmt.Errorf("%s: %w", host, err)
					}
				}
				return nil
			})
			break // one stands for all
		}
	})
}

// begin adds a host to the zone and returns when an order of it is under way and held back.
func (w *crowd) begin(t *testing.T, name string) (host string) {
	t.Helper()
	w.tell(t, "hold")
	host = name + ".emea.example.test"
	file := filepath.Join(t.TempDir(), name+".yaml")
	manifest := fmt.Sprintf("kind: API\nname: %s\nspec:\n  zone: emea\n  hosts: [%s]\n  policy: gdpr-emea\n  routes:\n    - {name: all, path_prefix: /}\n  upstreams:\n    - {region: eu-west, url: %q}\n", name, host, w.s.Upstreams[0].URL)
	if err := os.WriteFile(file, []byte(manifest), 0o600); err != nil {
		t.Fatal(err)
	}
	w.s.With(t).MustCLI("emea", "apply", "--now", "--reason", "a test", "-f", file)
	w.s.With(t).Eventually(30*time.Second, "an order of "+host+" is held back", func() error {
		if orders, held := w.orders(t); orders[host] != 1 || held != 1 {
			return fmt.Errorf("%d orders, %d held back", orders[host], held)
		}
		return nil
	})
	return host
}

// orderer is the edge that has begun an order of host last.
func (w *crowd) orderer(t *testing.T, host string) (name string) {
	t.Helper()
	for edge := range w.https {
		for line := range strings.Lines(w.s.Log(edge)) {
			if strings.Contains(line, "certificate order begins") && strings.Contains(line, "host="+host) {
				if name != "" && name != edge {
					t.Fatalf("%s and %s both order %s", name, edge, host)
				}
				name = edge
			}
		}
	}
	if name == "" {
		t.Fatalf("no edge says that it orders %s", host)
	}
	return name
}

func (w *crowd) signal(t *testing.T, edge string, sig syscall.Signal) {
	t.Helper()
	if p := w.processes[edge]; p != nil {
		if err := p.Signal(sig); err != nil {
			t.Fatalf("%s to %s: %v", sig, edge, err)
		}
		return
	}
	w.s.With(t).Act(map[syscall.Signal]string{syscall.SIGSTOP: "pause", syscall.SIGCONT: "resume", syscall.SIGKILL: "kill"}[sig], edge)
}

// serveOne waits until every edge but one serves the same certificate of the authority.
func (w *crowd) serveOne(t *testing.T, host, but string) {
	t.Helper()
	w.s.With(t).Eventually(90*time.Second, "all edges serve one certificate for "+host, func() error {
		var first *x509.Certificate
		for name, address := range w.https {
			if name == but {
				continue
			}
			cert, err := w.handshake(address, host)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			if first == nil {
				first = cert
			}
			if !cert.Equal(first) {
				t.Fatalf("%s serves another certificate", name)
			}
		}
		return nil
	})
}

func (w *crowd) handshake(address, host string) (*x509.Certificate, error) {
	c, err := tls.DialWithDialer(&net.Dialer{Timeout: 5 * time.Second}, "tcp", address, &tls.Config{RootCAs: w.roots, ServerName: host, NextProtos: []string{"h2"}})
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.ConnectionState().PeerCertificates[0], nil
}

// orders are how many the authority has taken by host, and how many of them it keeps waiting.
func (w *crowd) orders(t *testing.T) (map[string]int, int) {
	t.Helper()
	response, err := w.authority.Get(w.s.ACMEURL + "/__orders")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	var counted struct {
		Orders map[string]int
		Held   int
	}
	if err := json.NewDecoder(response.Body).Decode(&counted); err != nil {
		t.Fatal(err)
	}
	return counted.Orders, counted.Held
}

func (w *crowd) tell(t *testing.T, what string) {
	t.Helper()
	response, err := w.authority.Post(w.s.ACMEURL+"/__"+what, "", nil)
	if err != nil {
		t.Fatal(err)
	}
	response.Body.Close()
}
