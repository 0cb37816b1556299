package harness

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Node is a row of `node list -o json`.
type Node struct {
	Name, Kind, Region, Zone, Status string
	Catalog                          json.RawMessage
	CatalogWant                      json.RawMessage `json:"catalog_want"`
	Position                         json.RawMessage `json:"zone_position"`
	Want                             json.RawMessage `json:"zone_want"`
	NackReason                       string          `json:"nack_reason"`
	Serial                           string          `json:"certificate_serial"`
	ServesAlone                      string          `json:"serves_alone_until"`
	ConnectedTo                      string          `json:"connected_to"`
}

// InSync tells why an edge does not hold exactly what its zone says; nil when it does. Absent positions are
// a difference: silence is never information.
func (n Node) InSync() error {
	if n.Status != "connected" {
		return fmt.Errorf("%s is %q", n.Name, n.Status)
	}
	for what, pair := range map[string][2]json.RawMessage{"catalog": {n.Catalog, n.CatalogWant}, "zone": {n.Position, n.Want}} {
		have, want := canonical(pair[0]), canonical(pair[1])
		if have == "" || want == "" || have == "null" || have != want {
			return fmt.Errorf("%s holds %s %q, want %q", n.Name, what, have, want)
		}
	}
	return nil
}

// canonical is JSON with sorted keys.
func canonical(raw json.RawMessage) string {
	var v any
	if len(raw) == 0 || json.Unmarshal(raw, &v) != nil {
		return ""
	}
	out, _ := json.Marshal(v)
	return string(out)
}

// nodesTold is what the CLI prints of a zone's registry.
func (s *Sandbox) nodesTold(zone string) (map[string]Node, error) {
	out, stderr, code := s.CLI(zone, "node", "list", "-o", "json")
	if code != 0 {
		return nil, fmt.Errorf("node list: exit code %d: %s", code, stderr)
	}
	var list []Node
	if err := json.Unmarshal([]byte(out), &list); err != nil {
		return nil, fmt.Errorf("node list printed %.200q: %w", out, err)
	}
	nodes := map[string]Node{}
	for _, n := range list {
		nodes[n.Name] = n
	}
	return nodes, nil
}

// Synced tells whether every edge of the sandbox holds exactly what its zone says.
func (s *Sandbox) Synced() error { return s.synced(s.Nodes) }

func (s *Sandbox) synced(list func(zone string) (map[string]Node, error)) error {
	for _, zone := range []string{"emea", "us"} {
		nodes, err := list(zone)
		if err != nil {
			return err
		}
		for _, e := range s.Edges {
			if e.Zone != zone {
				continue
			}
			n, ok := nodes[e.Name]
			if !ok {
				return fmt.Errorf("the nodes of %s do not name %s", zone, e.Name)
			}
			if err := n.InSync(); err != nil {
				return err
			}
		}
	}
	return nil
}

// Settle waits until the whole sandbox works as after its start: leaders, synced edges, everyone at home.
func (s *Sandbox) Settle() {
	s.t.Helper()
	s.Eventually(60*time.Second, "the sandbox settles", func() error {
		led := func(leaders map[string]string) error {
			for _, group := range []string{"catalog", "store/emea", "ledger/emea", "store/us", "ledger/us"} {
				if leaders[group] == "" {
					return fmt.Errorf("%s has no leader: %v", group, leaders)
				}
			}
			return nil
		}
		if err := led(s.Leaders()); err != nil {
			return err
		}
		for _, k := range s.Keys {
			if k.Plan != "unlimited" {
				continue
			}
			for _, e := range s.Edges {
				for range 10 { // for three seconds of ramp a region that returns serves a growing share, and its pair the rest
					if e.Zone != k.Zone {
						break
					}
					if a := s.Get(e.Region, k.Key); a.Status != http.StatusOK || a.Served() != e.Region {
						return fmt.Errorf("%s answers %d served by %q: %v", e.Name, a.Status, a.Served(), a.Err)
					}
				}
			}
		}
		if err := s.Synced(); err != nil {
			return err
		}
		if err := s.synced(s.nodesTold); err != nil {
			return err
		}
		return led(s.LeadersTold())
	})
}

// Try is Act for what may fail, such as killing a process that has ended.
func (s *Sandbox) Try(verb, name string) error {
	response, err := http.Post(s.ControlURL+"/v1/"+verb+"/"+name, "", nil)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s %s: %s: %s", verb, name, response.Status, body)
	}
	return nil
}

// ControlsOf are the names of a zone's control nodes; every zone's for "".
func (s *Sandbox) ControlsOf(zone string) (names []string) {
	for _, c := range s.Controls {
		if zone == "" || c.Zone == zone {
			names = append(names, c.Name)
		}
	}
	return names
}

// StoresOf are the names of the members of an etcd: the catalog's or a zone's. None with raft.
func (s *Sandbox) StoresOf(cluster string) (names []string) {
	for _, m := range s.Stores {
		if m.Cluster == cluster {
			names = append(names, m.Name)
		}
	}
	return names
}

// ActAll does the same to several processes, one after another.
func (s *Sandbox) ActAll(verb string, names ...string) {
	s.t.Helper()
	for _, n := range names {
		s.Act(verb, n)
	}
}

// Log is what a process has written so far.
func (s *Sandbox) Log(name string) string {
	data, err := os.ReadFile(filepath.Join(s.Dir, "logs", strings.ReplaceAll(name, "@", "-")+".log"))
	if err != nil {
		return ""
	}
	return string(data)
}

// Ready is the status of a process's readyz at its admin URL; 0 when it does not answer.
func (s *Sandbox) Ready(adminURL string) int {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: s.roots}}}
	response, err := client.Get(adminURL + "/readyz")
	if err != nil {
		return 0
	}
	response.Body.Close()
	return response.StatusCode
}

// Metric sums all series of a metric at an admin URL; false if there is none.
func (s *Sandbox) Metric(adminURL, name string) (sum float64, found bool) {
	client := &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: s.roots}}}
	response, err := client.Get(adminURL + "/metrics")
	if err != nil {
		return 0, false
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(io.LimitReader(response.Body, 16<<20))
	for line := range strings.Lines(string(body)) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name)
		if !ok || rest == "" || (rest[0] != ' ' && rest[0] != '{') {
			continue
		}
		if v, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64); err == nil {
			sum, found = sum+v, true
		}
	}
	return sum, found
}

// Process is a daemon started beside the sandbox's own. Its methods are one goroutine's at a time.
type Process struct {
	Name, Dir, HTTPS, Admin, LogFile string

	command []string
	cmd     *exec.Cmd
	ended   chan struct{}
}

// AddEdge does what the README's three commands do: a join token, its file, and the daemon. slot chooses ports
// that the sandbox leaves free: 10, 11 and so on. It waits until the edge is ready.
func (s *Sandbox) AddEdge(region, name string, slot int) *Process {
	s.t.Helper()
	p := s.BeginEdge(region, name, slot)
	s.WaitEdge(p)
	return p
}

// BeginEdge is AddEdge without the waiting, which WaitEdge is.
func (s *Sandbox) BeginEdge(region, name string, slot int) *Process {
	s.t.Helper()
	zone := s.ZoneOf(region)
	if zone == "" {
		zone = "emea"
	}
	tokenFile := filepath.Join(s.Dir, name+".join-token")
	if err := os.WriteFile(tokenFile, []byte(s.JoinToken(zone, region, name)+"\n"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	var urls []string
	for _, a := range s.Admin {
		if a.Zone == zone {
			urls = append(urls, a.URL)
		}
	}
	at := func(offset int) string { return fmt.Sprintf("127.0.0.1:%d", s.Base+offset+slot) }
	p := &Process{Name: name, Dir: filepath.Join(s.Dir, name), HTTPS: at(443), Admin: "http://" + at(901), LogFile: filepath.Join(s.Dir, "logs", name+".log")}
	p.command = []string{filepath.Join(s.Bin, "bailiwick-edge"), "-dir", p.Dir, "-name", name, "-region", region,
		"-control", strings.Join(urls, ","), "-ca-file", filepath.Join(s.Dir, "ca.pem"), "-join-token-file", tokenFile,
		"-https", p.HTTPS, "-http", at(80), "-relay", at(501), "-admin", at(901), "-allow-loopback-upstreams"}
	p.command = append(p.command, s.ACMEFlags...)
	if err := p.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(p.Stop)
	return p
}

// WaitEdge waits until an edge that was begun is ready.
func (s *Sandbox) WaitEdge(p *Process) {
	s.t.Helper()
	s.Eventually(60*time.Second, p.Name+" is ready", func() error {
		select {
		case <-p.Ended():
			data, _ := os.ReadFile(p.LogFile)
			s.t.Fatalf("%s has ended: %s", p.Name, bytes.TrimSpace(data[max(0, len(data)-2000):]))
		default:
		}
		if status := s.Ready(p.Admin); status != http.StatusOK {
			return fmt.Errorf("readyz answers %d", status)
		}
		return nil
	})
}

// Start starts it, again or for the first time.
func (p *Process) Start() error {
	log, err := os.OpenFile(p.LogFile, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd := exec.Command(p.command[0], p.command[1:]...)
	cmd.Env = append(os.Environ(), "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING=true")
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return err
	}
	ended := make(chan struct{})
	p.cmd, p.ended = cmd, ended
	go func() { _ = cmd.Wait(); close(ended) }()
	return nil
}

// Takeover runs a second process that is to take the edge's place, with further options, until it ends, and says what it said.
// Use it where it takes nothing.
func (p *Process) Takeover(options ...string) (said string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, p.command[0], slices.Concat(p.command[1:], []string{"-takeover"}, options)...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// Copy is the same edge on another directory and on ports of another slot, as far behind as by says. It is not
// started.
func (p *Process) Copy(dir string, by int) *Process {
	move := func(address string) string {
		host, port, _ := strings.Cut(strings.TrimPrefix(address, "http://"), ":")
		n, _ := strconv.Atoi(port)
		return fmt.Sprintf("%s:%d", host, n+by)
	}
	c := &Process{Name: p.Name, Dir: dir, HTTPS: move(p.HTTPS), Admin: "http://" + move(p.Admin), LogFile: p.LogFile + ".copy"}
	for i, arg := range p.command {
		switch {
		case i > 0 && p.command[i-1] == "-dir":
			arg = dir
		case i > 0 && (p.command[i-1] == "-https" || p.command[i-1] == "-http" || p.command[i-1] == "-relay" || p.command[i-1] == "-admin"):
			arg = move(arg)
		}
		c.command = append(c.command, arg)
	}
	return c
}

// Ended is closed when the process that was started last has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// Kill ends it with SIGKILL and waits for its end.
func (p *Process) Kill() {
	_ = p.cmd.Process.Kill()
	<-p.ended
}

// Stop ends the process with SIGTERM, and kills it after ten seconds.
func (p *Process) Stop() {
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.ended:
	case <-time.After(10 * time.Second):
		p.Kill()
	}
}

// Protocols that an edge speaks, for ClientFor.
const (
	HTTP1 = "HTTP/1.1 over TLS"
	HTTP2 = "HTTP/2 over TLS"
	Clear = "HTTP/1.1 in clear"
)

// ClientFor speaks one protocol to the edge of a region. It fails a request that was answered in another.
func (s *Sandbox) ClientFor(protocol, region string) *http.Client {
	s.t.Helper()
	address, want := "", 1
	for _, e := range s.Edges {
		if e.Region == region {
			address = e.HTTPS
			if protocol == Clear {
				address = e.HTTP
			}
		}
	}
	if address == "" {
		s.t.Fatalf("no edge in region %s", region)
	}
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots}, DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}}
	if protocol == HTTP2 {
		transport.ForceAttemptHTTP2, want = true, 2
	}
	return &http.Client{Timeout: 20 * time.Second, Transport: exactly{transport, want, protocol == Clear}}
}

type exactly struct {
	*http.Transport
	major int
	clear bool
}

func (e exactly) RoundTrip(r *http.Request) (*http.Response, error) {
	if e.clear {
		r = r.Clone(r.Context())
		r.URL.Scheme = "http"
	}
	response, err := e.Transport.RoundTrip(r)
	if err == nil && response.ProtoMajor != e.major {
		response.Body.Close()
		return nil, errors.New("answered in " + response.Proto)
	}
	return response, err
}

// Edge is one of the sandbox's edges.
type Edge struct{ Name, Region, Zone, HTTPS, HTTP, Admin string }

// EdgeOf is the edge of a region.
func (s *Sandbox) EdgeOf(region string) Edge {
	s.t.Helper()
	for _, e := range s.Edges {
		if e.Region == region {
			return Edge{e.Name, e.Region, e.Zone, e.HTTPS, e.HTTP, e.Admin}
		}
	}
	s.t.Fatalf("no edge in region %s", region)
	return Edge{}
}

// Signal sends it a signal and waits for nothing, except that a killed one has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	err := p.cmd.Process.Signal(sig)
	if sig == syscall.SIGKILL {
		<-p.ended
	}
	return err
}
