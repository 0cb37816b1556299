package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"
)

//go:embed manifests/*.yaml
var builtin embed.FS

// mark says that a directory was made by a sandbox, which alone may be emptied by the next one.
const mark = "made-by-bailiwick-sandbox"

// ramp is how long a region that returns takes to its full share of DNS answers here: a minute, as edges have it
// otherwise, is long for who looks on.
const ramp = 10 * time.Second

type sandbox struct {
	cfg      Config
	self     string
	layout   layout
	log      *slog.Logger
	children map[string]*child
	order    []string // in starting order
	edges    []*child // as in edgeSpecs
	keys     []keyInfo
	roots    *x509.CertPool
}

type keyInfo struct {
	Customer string `json:"customer"`
	Zone     string `json:"zone"`
	Plan     string `json:"plan"`
	Key      string `json:"key"`
}

func newSandbox(cfg Config, self string, log *slog.Logger) (*sandbox, error) {
	if entries, err := os.ReadDir(cfg.Dir); err == nil && len(entries) > 0 {
		if _, err := os.Stat(filepath.Join(cfg.Dir, mark)); err != nil {
			return nil, fmt.Errorf("%s is not empty and was not made by a sandbox; choose another -dir", cfg.Dir)
		}
		if err := os.RemoveAll(cfg.Dir); err != nil {
			return nil, err
		}
	} else if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if err := os.MkdirAll(filepath.Join(cfg.Dir, "logs"), 0o700); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(cfg.Dir, mark), nil, 0o600); err != nil {
		return nil, err
	}
	return &sandbox{cfg: cfg, self: self, layout: layout{cfg.BasePort}, log: log, children: map[string]*child{}}, nil
}

func (s *sandbox) path(parts ...string) string {
	return filepath.Join(append([]string{s.cfg.Dir}, parts...)...)
}
func (s *sandbox) bin(name string) string { return filepath.Join(s.cfg.Bin, name) }

func (s *sandbox) add(name, region string, env []string, command ...string) *child {
	c := &child{name: name, region: region, command: command, env: env, logFile: s.path("logs", strings.ReplaceAll(name, "@", "-")+".log")}
	s.children[name] = c
	s.order = append(s.order, name)
	return c
}

// up brings everything up in the order in which it rests on each other.
func (s *sandbox) up(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Minute)
	defer cancel()
	if err := s.portsFree(); err != nil {
		return err
	}
	spec := s.path("installation.yaml")
	if err := os.WriteFile(spec, []byte(s.layout.installation(s.cfg.Identity.String())), 0o600); err != nil {
		return err
	}
	if _, err := s.command(ctx, nil, s.bin("bailiwick-control"), "init", "-spec", spec, "-out", s.cfg.Dir); err != nil {
		return fmt.Errorf("make the installation's keys: %w", err)
	}
	roots, err := os.ReadFile(s.path("ca.pem"))
	if err != nil {
		return err
	}
	s.roots = x509.NewCertPool()
	if !s.roots.AppendCertsFromPEM(roots) {
		return fmt.Errorf("%s holds no certificate", s.path("ca.pem"))
	}
	env := fmt.Sprintf("export BAILIWICK_ADMIN=%q\nexport BAILIWICK_CA_FILE=%q\nexport BAILIWICK_TOKEN_FILE=%q\n",
		s.layout.adminURLs("emea"), s.path("ca.pem"), s.path("admin.token"))
	if err := os.WriteFile(s.path("env.sh"), []byte(env), 0o600); err != nil {
		return err
	}
	if err := s.startStores(); err != nil {
		return err
	}
	for _, c := range controlSpecs {
		command := []string{s.bin("bailiwick-control"), "run", "-dir", s.path(c.name), "-webhook-allow", "127.0.0.0/8", "-reserve-bytes", "1048576", "-rollout-soak", "200ms"}
		if s.cfg.Store == "etcd" {
			command = append(command, "-store", "etcd", "-etcd-endpoints", s.layout.etcdURLs(c.zone), "-etcd-catalog-endpoints", s.layout.etcdURLs("catalog"))
		}
		if err := s.add(c.name, c.region, nil, command...).start(s.log); err != nil {
			return err
		}
	}
	if s.cfg.Upstream == "" {
		for i, e := range edgeSpecs {
			if err := s.add("orders@"+e.region, e.region, nil, s.self, "upstream", "-listen", s.layout.upstream(i), "-api", "orders", "-region", e.region).start(s.log); err != nil {
				return err
			}
		}
	}
	for i := range controlSpecs {
		if err := s.waitReady(ctx, "https://"+s.layout.admin(i)+"/readyz", controlSpecs[i].name); err != nil {
			return err
		}
	}
	if err := s.seed(ctx); err != nil {
		return err
	}
	if err := s.startAuthority(ctx); err != nil {
		return err
	}
	for i, e := range edgeSpecs {
		if err := s.startEdge(ctx, i, e); err != nil {
			return err
		}
	}
	for i, e := range edgeSpecs {
		if err := s.waitReady(ctx, "http://"+s.layout.edgeAdmin(i)+"/readyz", e.name); err != nil {
			return err
		}
	}
	if err := s.waitServing(ctx); err != nil {
		return err
	}
	if err := s.waitGrants(ctx); err != nil {
		return err
	}
	return s.writeJSON()
}

// startStores starts the members of the etcds, if there are any. Nobody waits for them: control nodes do.
func (s *sandbox) startStores() error {
	if s.cfg.Store != "etcd" {
		return nil
	}
	for i, m := range storeSpecs {
		c := s.add(m.name, m.region, nil, s.self, "etcd", "-name", m.name, "-dir", s.path(m.name), "-token", "sandbox-"+m.cluster, "-cluster", s.layout.etcdMembers(m.cluster),
			"-client", "http://"+s.layout.etcd(i), "-peer", "http://"+s.layout.etcdPeer(i))
		if err := c.start(s.log); err != nil {
			return err
		}
	}
	return nil
}

func (s *sandbox) portsFree() error {
	for _, address := range []string{s.layout.control(), s.layout.admin(0), s.layout.peer(0), s.layout.edgeHTTPS(0), s.layout.edgeHTTP(0), s.layout.edgeDNS(0), s.layout.edgeAdmin(0), s.layout.upstream(0)} {
		l, err := net.Listen("tcp", address)
		if err != nil {
			return fmt.Errorf("port taken: %w; stop what uses it or choose another -base-port", err)
		}
		l.Close()
	}
	return nil
}

// seed writes manifests and mints keys with the CLI, as an operator would.
func (s *sandbox) seed(ctx context.Context) error {
	dir := s.cfg.Manifests
	if dir == "" {
		dir = s.path("manifests")
		if err := s.writeManifests(dir); err != nil {
			return err
		}
	}
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return fmt.Errorf("no *.yaml manifest in %s", dir)
	}
	for _, f := range files {
		if _, err := s.cli(ctx, "emea", "apply", "-f", f); err != nil {
			return err
		}
	}
	if s.cfg.Manifests != "" {
		return nil
	}
	for _, k := range sampleKeys {
		out, err := s.cli(ctx, k.zone, "key", "create", "--customer", k.customer, "--plan", k.plan, "-o", "json")
		if err != nil {
			return err
		}
		var answer struct{ Key string }
		if err := json.Unmarshal(out, &answer); err != nil || answer.Key == "" {
			return fmt.Errorf("key create printed %q: %v", out, err)
		}
		s.keys = append(s.keys, keyInfo{k.customer, k.zone, k.plan, answer.Key})
	}
	return nil
}

func (s *sandbox) writeManifests(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := builtin.ReadDir("manifests")
	if err != nil {
		return err
	}
	for _, e := range entries {
		text, err := builtin.ReadFile("manifests/" + e.Name())
		if err != nil {
			return err
		}
		expanded := os.Expand(string(text), func(name string) string {
			for i, e := range edgeSpecs {
				if name == "UPSTREAM_"+strings.ToUpper(strings.ReplaceAll(e.region, "-", "_")) {
					if s.cfg.Upstream != "" {
						return s.cfg.Upstream
					}
					return s.layout.upstream(i)
				}
			}
			return "${" + name + "}"
		})
		if err := os.WriteFile(filepath.Join(dir, e.Name()), []byte(expanded), 0o600); err != nil {
			return err
		}
	}
	return nil
}

func (s *sandbox) startEdge(ctx context.Context, i int, e edgeSpec) error {
	token, err := s.cli(ctx, e.zone, "join-token", "create", "--kind", "edge", "--region", e.region, "--name", e.name, "-o", "json")
	if err != nil {
		return err
	}
	var answer struct{ Token string }
	if err := json.Unmarshal(token, &answer); err != nil || answer.Token == "" {
		return fmt.Errorf("join-token create for %s printed no token: %v", e.name, err)
	}
	tokenFile := s.path(e.name + ".join-token")
	if err := os.WriteFile(tokenFile, []byte(answer.Token+"\n"), 0o600); err != nil {
		return err
	}
	var urls []string
	for j, c := range controlSpecs {
		if c.zone == e.zone {
			urls = append(urls, "https://"+s.layout.admin(j))
		}
	}
	command := []string{s.bin("bailiwick-edge"),
		"-dir", s.path(e.name), "-name", e.name, "-region", e.region,
		"-control", strings.Join(urls, ","), "-ca-file", s.path("ca.pem"), "-join-token-file", tokenFile,
		"-https", s.layout.edgeHTTPS(i), "-http", s.layout.edgeHTTP(i), "-relay", s.layout.edgeRelay(i), "-admin", s.layout.edgeAdmin(i),
		"-public", "127.0.0.1", "-dns", s.layout.edgeDNS(i), "-dns-domains", e.zone + ".example.test", "-dns-ramp", ramp.String(),
		"-allow-loopback-upstreams"}
	c := s.add(e.name, e.region, []string{"QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING=true"}, append(command, s.acmeFlags()...)...)
	s.edges = append(s.edges, c)
	return c.start(s.log)
}

// cli runs the operator's CLI against a zone's control nodes.
func (s *sandbox) cli(ctx context.Context, zone string, args ...string) ([]byte, error) {
	env := []string{"BAILIWICK_ADMIN=" + s.layout.adminURLs(zone), "BAILIWICK_CA_FILE=" + s.path("ca.pem"), "BAILIWICK_TOKEN_FILE=" + s.path("admin.token")}
	// A zone elects its leaders while the first command waits; give it a few tries before saying so.
	var out []byte
	var err error
	for range 10 {
		if out, err = s.command(ctx, env, s.bin("bailiwick"), args...); err == nil {
			return out, nil
		}
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != 6 {
			break
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(500 * time.Millisecond):
		}
	}
	return nil, err
}

func (s *sandbox) command(ctx context.Context, env []string, name string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", filepath.Base(name), strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}

func (s *sandbox) client() *http.Client {
	return &http.Client{Timeout: 2 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.roots}, DisableKeepAlives: true}}
}

func (s *sandbox) waitReady(ctx context.Context, url, name string) error {
	return s.waitReadyAs(ctx, url, name, "")
}

// waitReadyAs is waitReady for a process that says so of itself.
func (s *sandbox) waitReadyAs(ctx context.Context, url, name, says string) error {
	client := s.client()
	last := errors.New("not asked yet")
	for {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, url+"?verbose", nil)
		if err != nil {
			return err
		}
		if response, err := client.Do(request); err != nil {
			last = err
		} else {
			body, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
			response.Body.Close()
			if response.StatusCode == http.StatusOK && strings.Contains(string(body), says) {
				return nil
			}
			last = fmt.Errorf("%s: %s", response.Status, strings.TrimSpace(string(body)))
		}
		if s.children[name].pid() == 0 {
			return fmt.Errorf("%s has ended; see %s", name, s.children[name].logFile)
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s is not ready: %w", name, last)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

// waitServing asks each edge with a real key over HTTPS, so that "ready" means that a customer is served.
func (s *sandbox) waitServing(ctx context.Context) error {
	for i, e := range edgeSpecs {
		for _, k := range s.keys {
			if k.Zone != e.zone || k.Plan != "unlimited" {
				continue
			}
			client := edgeClient(s.roots, s.layout.edgeHTTPS(i))
			for {
				status, err := ask(ctx, client, "orders."+e.zone+".example.test", k.Key)
				if err == nil && status == http.StatusOK {
					break
				}
				select {
				case <-ctx.Done():
					return fmt.Errorf("%s does not serve: status %d, %v", e.name, status, err)
				case <-time.After(100 * time.Millisecond):
				}
			}
			client.CloseIdleConnections()
		}
	}
	return nil
}

// waitGrants waits until each edge may relay to its pair: an upstream killed in the first second is then taken
// over as well. Manifests of one's own may permit no pair at all, so only the built-in ones are waited for.
func (s *sandbox) waitGrants(ctx context.Context) error {
	if s.cfg.Manifests != "" {
		return nil
	}
	client := s.client()
	for i, e := range edgeSpecs {
		for {
			held, err := metric(ctx, client, "http://"+s.layout.edgeAdmin(i)+"/metrics", "bailiwick_grants_held")
			if err == nil && held > 0 {
				break
			}
			select {
			case <-ctx.Done():
				return fmt.Errorf("%s holds no grant to relay: %v", e.name, err)
			case <-time.After(100 * time.Millisecond):
			}
		}
	}
	return nil
}

// metric reads one number of a metrics page.
func metric(ctx context.Context, client *http.Client, url, name string) (float64, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, err
	}
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	page, err := io.ReadAll(io.LimitReader(response.Body, 4<<20))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(page)) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			return strconv.ParseFloat(strings.TrimSpace(value), 64)
		}
	}
	return 0, fmt.Errorf("%s has no %s", url, name)
}

// edgeClient resolves every host to one edge, as its DNS would.
func edgeClient(roots *x509.CertPool, address string) *http.Client {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	return &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: roots},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		},
	}}
}

func ask(ctx context.Context, client *http.Client, host, key string) (int, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/v1/orders", nil)
	if err != nil {
		return 0, err
	}
	request.Header.Set("Authorization", "Bearer "+key)
	response, err := client.Do(request)
	if err != nil {
		return 0, err
	}
	defer response.Body.Close()
	_, err = io.Copy(io.Discard, response.Body)
	return response.StatusCode, err
}

// stopAll ends every child: edges first, so that their last usage reaches a ledger that still runs; etcds last, in which
// control nodes give up what they lead.
func (s *sandbox) stopAll() {
	var wg sync.WaitGroup
	stop := func(match func(string) bool) {
		for _, name := range s.order {
			if c := s.children[name]; match(name) && c.pid() != 0 {
				wg.Go(func() { c.end(10 * time.Second) })
			}
		}
		wg.Wait()
	}
	isEdge := func(name string) bool { return strings.Contains(name, "-edge-") }
	isStore := func(name string) bool { return strings.HasPrefix(name, "etcd-") }
	stop(isEdge)
	stop(func(name string) bool { return !isEdge(name) && !isStore(name) })
	stop(isStore)
	os.Remove(s.path("sandbox.json")) // what it describes no longer runs
}
