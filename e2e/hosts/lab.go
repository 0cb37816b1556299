package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"bailiwick/e2e/netlab"
)

// lab is the installation on its hosts. Below dir: disks/HOST is all that a host has stored, its log included;
// wire/HOST.pcap all that it sent and received.
type lab struct {
	dir, bin string
	leaky    map[string]string // program of a site → the directory it is taken from instead
	fabric   *netlab.Fabric
	hosts    map[string]*netlab.Host
	roots    *x509.CertPool
	ups      map[string]*service // by region
	secrets  [2]*secrets
	seen     sightings
	loads    [2]*load

	mu      sync.Mutex // covers running
	running map[string]*exec.Cmd
	ended   map[string]chan struct{}
}

func newLab(dir, bin string) (*lab, error) {
	l := &lab{dir: dir, bin: bin, hosts: map[string]*netlab.Host{}, ups: map[string]*service{}, running: map[string]*exec.Cmd{}, ended: map[string]chan struct{}{}}
	var err error
	if l.fabric, err = netlab.NewFabric(); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(l.wire(), 0o700); err != nil {
		return nil, err
	}
	for _, s := range append(sites(), stranger) {
		if err := os.MkdirAll(l.disk(s.name), 0o700); err != nil {
			return nil, err
		}
		if l.hosts[s.name], err = l.fabric.Host(s.name, s.address(), filepath.Join(l.wire(), s.name+".pcap")); err != nil {
			return nil, err
		}
	}
	return l, l.fabric.Rules(rules())
}

func (l *lab) disk(host string) string { return filepath.Join(l.dir, "disks", host) }
func (l *lab) wire() string            { return filepath.Join(l.dir, "wire") }

// up brings the installation up: keys, control nodes, the catalog, upstreams, edges.
func (l *lab) up(ctx context.Context) error {
	spec := filepath.Join(l.dir, "installation.yaml")
	out := filepath.Join(l.dir, "init")
	if err := os.WriteFile(spec, []byte(installation()), 0o600); err != nil {
		return err
	}
	if text, err := exec.CommandContext(ctx, filepath.Join(l.bin, "bailiwick-control"), "init", "-spec", spec, "-out", out).CombinedOutput(); err != nil {
		return fmt.Errorf("make the installation's keys: %w: %s", err, text)
	}
	pem, err := os.ReadFile(filepath.Join(out, "ca.pem"))
	if err != nil {
		return err
	}
	l.roots = x509.NewCertPool()
	if !l.roots.AppendCertsFromPEM(pem) {
		return errors.New("init wrote no certificate")
	}
	for _, s := range sites() {
		switch s.kind {
		case control: // its kit, and nobody else's
			if err := os.Rename(filepath.Join(out, s.name), filepath.Join(l.disk(s.name), "data")); err != nil {
				return err
			}
			if err := l.start(s); err != nil {
				return err
			}
		case upstream:
			if l.ups[s.region], err = l.serve(s); err != nil {
				return err
			}
		case operator:
			if err := copyFile(filepath.Join(out, "admin.token"), filepath.Join(l.disk(s.name), "admin.token")); err != nil {
				return err
			}
		}
		if err := os.WriteFile(filepath.Join(l.disk(s.name), "ca.pem"), pem, 0o600); err != nil {
			return err
		}
	}
	for _, s := range sites() {
		if s.kind == control {
			if err := l.ready(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// edges joins the edges and waits until each serves and may relay.
func (l *lab) edges(ctx context.Context) error {
	for _, s := range sites() {
		if s.kind != edge {
			continue
		}
		text, err := l.cli(ctx, s.zone, "join-token", "create", "--kind", "edge", "--region", s.region, "--name", s.name, "-o", "json")
		if err != nil {
			return err
		}
		var token struct{ Token string }
		if err := json.Unmarshal([]byte(text), &token); err != nil || token.Token == "" {
			return fmt.Errorf("join-token create printed no token: %v", err)
		}
		if err := os.WriteFile(filepath.Join(l.disk(s.name), "join-token"), []byte(token.Token+"\n"), 0o600); err != nil {
			return err
		}
		if err := l.start(s); err != nil {
			return err
		}
	}
	for _, s := range sites() {
		if s.kind == edge {
			if err := l.ready(ctx, s); err != nil {
				return err
			}
		}
	}
	return nil
}

// start starts a site's program, again or for the first time. Its log is on its disk.
func (l *lab) start(s site) error {
	dir := l.disk(s.name)
	bin := l.bin
	if leaky, ok := l.leaky[s.name]; ok {
		bin = leaky
	}
	var cmd *exec.Cmd
	switch s.kind {
	case control:
		cmd = exec.Command(filepath.Join(bin, "bailiwick-control"), "run", "-dir", filepath.Join(dir, "data"), "-raft-timing", "local", "-rollout-soak", "200ms")
	case edge:
		var urls []string
		for _, c := range sites() {
			if c.kind == control && c.zone == s.zone {
				urls = append(urls, "https://"+c.at(adminPort))
			}
		}
		cmd = exec.Command(filepath.Join(bin, "bailiwick-edge"), "-dir", filepath.Join(dir, "data"), "-name", s.name, "-region", s.region,
			"-control", strings.Join(urls, ","), "-ca-file", filepath.Join(dir, "ca.pem"), "-join-token-file", filepath.Join(dir, "join-token"),
			"-https", s.at(443), "-http", s.at(80), "-relay", s.at(relayPort), "-admin", edgeAdmin, "-upstream-allow", "private", "-upstream-allow-foreign", "private",
			"-public", s.address().String(), "-dns", s.at(53), "-dns-domains", zones[s.zone].name+".example.test")
	}
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr, cmd.Dir = log, log, dir
	cmd.Env = []string{"PATH=/nowhere", "HOME=" + dir, "TMPDIR=" + dir, "QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING=true", "KEYLOG=" + l.keyLog(s.name)}
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := l.fabric.Start(l.hosts[s.name], cmd); err != nil {
		return fmt.Errorf("start %s: %w", s.name, err)
	}
	ended := make(chan struct{})
	l.mu.Lock()
	l.running[s.name], l.ended[s.name] = cmd, ended
	l.mu.Unlock()
	go func() { cmd.Wait(); close(ended) }() // stop waits for it
	return nil
}

// keyLog is where a program built for it writes what its TLS sessions can be read with: beside the disks, not on one.
func (l *lab) keyLog(host string) string { return filepath.Join(l.dir, "keys-"+host) }

// stop ends a site's program with a signal and waits.
func (l *lab) stop(s site, signal syscall.Signal) error {
	l.mu.Lock()
	cmd, ended := l.running[s.name], l.ended[s.name]
	delete(l.running, s.name)
	l.mu.Unlock()
	if cmd == nil {
		return nil
	}
	select {
	case <-ended:
		return fmt.Errorf("%s ended by itself: %s", s.name, l.tail(s.name))
	default:
	}
	cmd.Process.Signal(signal)
	select {
	case <-ended:
		return nil
	case <-time.After(30 * time.Second):
		cmd.Process.Kill()
		<-ended
		return fmt.Errorf("%s had not ended 30 s after %s", s.name, signal)
	}
}

// down stops everything: edges first, so that their last usage is stored.
func (l *lab) down() error {
	var mu sync.Mutex
	var errs []error
	for _, k := range []kind{edge, control} {
		var wg sync.WaitGroup
		for _, s := range sites() {
			if s.kind == k {
				wg.Go(func() {
					err := l.stop(s, syscall.SIGTERM)
					mu.Lock()
					defer mu.Unlock()
					errs = append(errs, err)
				})
			}
		}
		wg.Wait()
	}
	for _, u := range l.ups {
		u.kill()
	}
	return errors.Join(errs...)
}

func (l *lab) tail(host string) string {
	text, _ := os.ReadFile(filepath.Join(l.disk(host), "log"))
	return string(bytes.TrimSpace(text[max(0, len(text)-1500):]))
}

// page fetches one of a program's own pages, from its own host.
func (l *lab) page(ctx context.Context, s site, path string) (int, []byte, error) {
	url := "http://" + edgeAdmin + path
	if s.kind == control {
		url = "https://" + s.at(adminPort) + path
	}
	c := &http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DialContext: l.dialer(s.name), DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: l.roots}}}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return 0, nil, err
	}
	answer, err := c.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer answer.Body.Close()
	body, err := io.ReadAll(io.LimitReader(answer.Body, 64<<20))
	return answer.StatusCode, body, err
}

func (l *lab) ready(ctx context.Context, s site) error {
	return l.until(ctx, s.name+" is ready", func() error {
		l.mu.Lock()
		ended := l.ended[s.name]
		l.mu.Unlock()
		select {
		case <-ended:
			return fmt.Errorf("it has ended: %s", l.tail(s.name))
		default:
		}
		status, body, err := l.page(ctx, s, "/readyz?verbose")
		if err == nil && status != http.StatusOK {
			err = fmt.Errorf("readyz answers %d: %.300s", status, body)
		}
		return err
	})
}

// until polls for at most a minute.
func (l *lab) until(ctx context.Context, what string, check func() error) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	for {
		err := check()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%s: not within a minute: %w", what, err)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// cli runs bailiwick on a zone's operator's host, against that zone's control nodes.
func (l *lab) cli(ctx context.Context, zone int, args ...string) (string, error) {
	var urls []string
	var host site
	for _, s := range sites() {
		if s.zone == zone && s.kind == control {
			urls = append(urls, "https://"+s.at(adminPort))
		}
		if s.zone == zone && s.kind == operator {
			host = s
		}
	}
	dir := l.disk(host.name)
	var out, errs bytes.Buffer
	for try := 0; ; try++ {
		cmd := exec.CommandContext(ctx, filepath.Join(l.bin, "bailiwick"), args...)
		cmd.Dir = dir
		cmd.Env = []string{"HOME=" + dir, "BAILIWICK_ADMIN=" + strings.Join(urls, ","), "BAILIWICK_CA_FILE=" + filepath.Join(dir, "ca.pem"), "BAILIWICK_TOKEN_FILE=" + filepath.Join(dir, "admin.token")}
		out.Reset()
		errs.Reset()
		cmd.Stdout, cmd.Stderr = &out, &errs
		err := l.fabric.Start(l.hosts[host.name], cmd)
		if err == nil {
			err = cmd.Wait()
		}
		l.note(host.name, args, out.Bytes(), errs.Bytes())
		var exit *exec.ExitError
		switch {
		case err == nil:
			return out.String(), nil
		case errors.As(err, &exit) && exit.ExitCode() == 6 && try < 20 && ctx.Err() == nil: // unavailable: no leader yet
			time.Sleep(250 * time.Millisecond)
		default:
			return out.String(), fmt.Errorf("bailiwick %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
		}
	}
}

// note keeps what an operator saw on his disk.
func (l *lab) note(host string, args []string, out, errs []byte) {
	f, err := os.OpenFile(filepath.Join(l.disk(host), "screen"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		fmt.Fprintf(f, "$ bailiwick %s\n%s%s", strings.Join(args, " "), out, errs)
		f.Close()
	}
}

func copyFile(from, to string) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return err
	}
	return os.WriteFile(to, data, 0o600)
}
