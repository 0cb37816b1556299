package main

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
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

// bench holds what runs.
type bench struct {
	config
	allKeys, used []string
	running       []*process
	control       *process
	peers         []*peer
}

// process is one that was started here, with its children.
type process struct {
	name string
	cmd  *exec.Cmd
	over chan struct{}
}

// peer is something that is measured.
type peer struct {
	name        string
	proc        *process
	http, https string
}

// place is where a program runs: on which CPU (nil: on any), and whether in the real-time class.
type place struct {
	cpu      *int
	realtime bool
}

// before is the beginning of the command of a program at this place.
func (p place) command(program string, args ...string) []string {
	command := append([]string{program}, args...)
	if p.realtime {
		command = append([]string{"chrt", "--rr", "1"}, command...)
	}
	if p.cpu != nil {
		command = append([]string{"taskset", "-c", strconv.Itoa(*p.cpu)}, command...)
	}
	return command
}

// start runs a program with its output in a file of its own.
func (b *bench) start(name string, at place, program string, args ...string) (*process, error) {
	command := at.command(program, args...)
	out, err := os.OpenFile(filepath.Join(b.dir, name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir, cmd.Stdout, cmd.Stderr = b.dir, out, out
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", name, err)
	}
	p := &process{name, cmd, make(chan struct{})}
	go func() { cmd.Wait(); close(p.over) }()
	b.running = append(b.running, p)
	return p, nil
}

func (p *process) stop() {
	p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.over:
	case <-time.After(15 * time.Second):
		p.cmd.Process.Kill()
		<-p.over
	}
}

// ended says whether it has ended by itself.
func (p *process) ended() bool {
	select {
	case <-p.over:
		return true
	default:
		return false
	}
}

func (b *bench) stopAll() {
	for i := len(b.running) - 1; i >= 0; i-- {
		b.running[i].stop()
	}
}

var first, second = 0, 1

// places are where peers, and where upstream and load generator run.
func (b *bench) places() (peers, rest place) {
	if b.pin == "one" {
		peers.cpu, rest.cpu = &first, &second
	}
	peers.realtime, rest.realtime = b.realtime, b.realtime
	return peers, rest
}

func (b *bench) befores() (names []string) {
	for i := range b.before {
		if i == 0 {
			names = append(names, "before")
		} else {
			names = append(names, fmt.Sprintf("before%d", i+1))
		}
	}
	return names
}

func (b *bench) wants(name string) bool {
	for _, o := range b.only {
		if o == name {
			return true
		}
	}
	return len(b.only) == 0
}

// prepare starts everything: the upstream, one control node, and the peers.
func (b *bench) prepare(ctx context.Context) error {
	if err := b.certificate(); err != nil {
		return err
	}
	mine, rest := b.places()
	workers := 2
	if mine.cpu != nil {
		workers = 1
	}
	if err := b.write("large.bin", strings.Repeat("x", 64<<10)); err != nil {
		return err
	}
	if err := b.write("upstream.conf", fmt.Sprintf(upstreamConf, b.dir, b.dir, b.addr(portUpstream), b.dir, strings.Repeat("x", 256))); err != nil {
		return err
	}
	if _, err := b.start("upstream", rest, "nginx", "-p", b.dir, "-e", "upstream.err", "-c", filepath.Join(b.dir, "upstream.conf")); err != nil {
		return err
	}
	if err := b.install(ctx); err != nil {
		return err
	}
	var nginx, haproxy strings.Builder
	for i, k := range b.allKeys {
		fmt.Fprintf(&nginx, "%q customer-%d;\n", k, i%customers)
		fmt.Fprintf(&haproxy, "%s customer-%d\n", k, i%customers)
	}
	hash := 1 << 14
	for hash < 2*b.keys {
		hash *= 2
	}
	reference, _ := json.Marshal(referenceConfig{HTTP: b.addr(portGoHTTP), HTTPS: b.addr(portGoHTTPS), Upstream: b.addr(portUpstream),
		Keys: filepath.Join(b.dir, "haproxy.map"), Log: filepath.Join(b.dir, "nethttp.access.log"), Certificate: filepath.Join(b.dir, "both.pem")})
	for file, text := range map[string]string{"nginx.map": nginx.String(), "haproxy.map": haproxy.String(), "nethttp.json": string(reference),
		"nginx.conf":  fmt.Sprintf(nginxConf, workers, b.dir, hash, b.dir, b.dir, b.dir, b.addr(portUpstream), b.addr(portNginxHTTP), b.addr(portNginxHTTPS), b.dir, b.dir),
		"haproxy.cfg": fmt.Sprintf(haproxyConf, workers, haproxyConns(), b.addr(portHAProxyHTTP), b.addr(portHAProxyHTTPS), b.dir, b.dir, b.addr(portUpstream))} {
		if err := b.write(file, text); err != nil {
			return err
		}
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	type program struct {
		name        string
		http, https int
		command     []string
	}
	programs := []program{
		{"edge", portEdgeHTTP, portEdgeHTTPS, b.edge(b.program("bailiwick-edge"), "edge", portEdgeHTTP)},
		{"nginx", portNginxHTTP, portNginxHTTPS, []string{"nginx", "-p", b.dir, "-e", "nginx.err", "-c", filepath.Join(b.dir, "nginx.conf")}},
		{"haproxy", portHAProxyHTTP, portHAProxyHTTPS, []string{"haproxy", "-W", "-db", "-f", filepath.Join(b.dir, "haproxy.cfg")}},
		{"nethttp", portGoHTTP, portGoHTTPS, []string{self, "-reference", filepath.Join(b.dir, "nethttp.json")}},
	}
	for i, name := range b.befores() {
		offset := portBefore + 4*i
		programs = slices.Insert(programs, 1+i, program{name, offset, offset + 1, b.edge(filepath.Join(b.before[i], "bailiwick-edge"), name, offset)})
	}
	for _, p := range programs {
		if !b.wants(strings.TrimRight(p.name, "0123456789")) {
			continue
		}
		proc, err := b.start(p.name, mine, p.command[0], p.command[1:]...)
		if err != nil {
			return err
		}
		b.peers = append(b.peers, &peer{p.name, proc, b.addr(p.http), b.addr(p.https)})
	}
	return b.prove(ctx)
}

// prove waits until each peer answers a key, and refuses another: a peer that lets everything pass would be cheap.
func (b *bench) prove(ctx context.Context) error {
	client := &http.Client{Timeout: 2 * time.Second}
	ask := func(address, key string) (int, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+"/items/1", nil)
		if err != nil {
			return 0, err
		}
		r.Host = host
		r.Header.Set("X-API-Key", key)
		response, err := client.Do(r)
		if err != nil {
			return 0, err
		}
		response.Body.Close()
		return response.StatusCode, nil
	}
	for _, p := range b.peers {
		var status int
		var err error
		for range 6000 { // a million keys take their time
			if status, err = ask(p.http, b.used[0]); status == http.StatusOK || ctx.Err() != nil || p.proc.ended() {
				break
			}
			time.Sleep(50 * time.Millisecond)
		}
		if status != http.StatusOK {
			return fmt.Errorf("%s answers %d to a good key: %v; see %s", p.name, status, err, filepath.Join(b.dir, p.name+".log"))
		}
		if status, err = ask(p.http, b.used[0]+"x"); status != http.StatusUnauthorized {
			return fmt.Errorf("%s answers %d to a bad key, want 401: %v", p.name, status, err)
		}
	}
	return nil
}

// haproxyConns is as many as it may have files for, two to a connection: it does not start with more.
func haproxyConns() int {
	var files syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &files); err != nil {
		return 4000
	}
	return int(min(12_000, files.Max/2-100))
}

func (b *bench) write(name, text string) error {
	return os.WriteFile(filepath.Join(b.dir, name), []byte(text), 0o600)
}

// certificate makes one for the peers: ECDSA P-256, as the edge's.
func (b *bench) certificate() error {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	t := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{host}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, t, t, key.Public(), key)
	if err != nil {
		return err
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	both := string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})) + string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}))
	return b.write("both.pem", both)
}

const upstreamConf = `daemon off;
user root;
worker_processes 1;
pid %s/upstream.pid;
events { worker_connections 8192; }
http {
  access_log off;
  client_body_temp_path %s/tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  keepalive_requests 1000000000;
  keepalive_timeout 1h;
  server { listen %s; location /large/ { root %s; try_files /large.bin =404; } location / { default_type application/json; return 200 "%s"; } }
}
`

const nginxConf = `daemon off;
worker_processes %d;
pid %s/nginx.pid;
worker_rlimit_nofile 65536;
events { worker_connections 16384; }
http {
  map_hash_max_size %d;
  map_hash_bucket_size 128;
  map $http_x_api_key $customer { default ""; include %s/nginx.map; }
  limit_req_zone $customer zone=keys:64m rate=100000r/s;
  log_format json escape=json '{"time":"$time_iso8601","customer":"$customer","method":"$request_method","uri":"$request_uri","status":$status,"in":$request_length,"out":$body_bytes_sent,"took":$request_time,"upstream":"$upstream_response_time"}';
  access_log %s/nginx.access.log json buffer=64k flush=1s;
  client_body_temp_path %s/tmp; proxy_temp_path tmp; fastcgi_temp_path tmp; uwsgi_temp_path tmp; scgi_temp_path tmp;
  keepalive_requests 1000000000;
  upstream up { server %s; keepalive 256; keepalive_requests 1000000000; }
  server {
    listen %s;
    listen %s ssl http2;
    ssl_protocols TLSv1.2 TLSv1.3;
    ssl_certificate %s/both.pem;
    ssl_certificate_key %s/both.pem;
    if ($customer = "") { return 401; }
    location / {
      limit_req zone=keys burst=100000 nodelay;
      proxy_pass http://up;
      proxy_http_version 1.1;
      proxy_buffers 16 8k;
      proxy_set_header Connection "";
      proxy_set_header X-Api-Key "";
      proxy_set_header X-Forwarded-For $remote_addr;
      proxy_set_header X-Forwarded-Proto $scheme;
      proxy_set_header X-Request-Id $request_id;
    }
  }
}
`

const haproxyConf = `global
  nbthread %d
  maxconn %d
  log stdout format raw local0
defaults
  mode http
  log global
  timeout client 60s
  timeout server 60s
  timeout connect 2s
  log-format '{"time":"%%T","customer":"%%[var(txn.customer)]","method":"%%HM","uri":"%%HU","status":%%ST,"in":%%U,"out":%%B,"took":%%Ta,"upstream":%%Tr}'
frontend clients
  bind %s
  bind %s ssl crt %s/both.pem alpn h2,http/1.1
  http-request set-var(txn.customer) req.hdr(x-api-key),map_str(%s/haproxy.map)
  http-request deny deny_status 401 unless { var(txn.customer) -m found }
  http-request track-sc0 var(txn.customer) table rates
  http-request deny deny_status 429 if { sc_http_req_rate(0,rates) gt 100000 }
  http-request del-header x-api-key
  http-request set-header X-Forwarded-For %%[src]
  http-request set-header X-Request-Id %%[uuid]
  default_backend up
backend rates
  stick-table type string len 32 size 1m expire 60s store http_req_rate(1s)
backend up
  http-reuse always
  server one %s
`
