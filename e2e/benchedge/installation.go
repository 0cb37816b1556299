package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sync/errgroup"

	adminv1 "bailiwick/proto/gen/bailiwick/admin/v1"
	"bailiwick/proto/gen/bailiwick/admin/v1/adminv1connect"
)

const (
	host      = "orders.emea.example.test"
	customers = 500 // a key's limit and quota are its subscription's
)

func (b *bench) addr(offset int) string { return fmt.Sprintf("127.0.0.1:%d", b.base+offset) }

// Offsets of ports.
const (
	portAdmin = iota
	portPeer
	portUpstream
	portEdgeHTTP
	portEdgeHTTPS
	portEdgeAdmin
	portEdgeRelay
	portNginxHTTP
	portNginxHTTPS
	portHAProxyHTTP
	portHAProxyHTTPS
	portGoHTTP
	portGoHTTPS
	portBefore // four for each, as the edge's
)

const installation = `installation: bench.example
primary_zone: emea
zones:
  - {name: emea, jurisdiction: EEA}
regions:
  - {name: eu-west, zone: emea, country: IE, jurisdiction: EEA, provider: bench}
control_nodes:
  - {name: emea-1, zone: emea, region: eu-west, admin: "https://%s", peer: "%s"}
`

// The limits are above any load, and there: each request takes from a bucket and from a lease.
const manifest = `kind: LegalBasis
name: gdpr
spec: {kind: same-law}
---
kind: Policy
name: gdpr-emea
spec: {zone: emea, within_zone: {basis: gdpr}}
---
kind: API
name: orders
spec:
  zone: emea
  hosts: [%s]
  policy: gdpr-emea
  routes:
    - {name: all, path_prefix: /}
  upstreams:
    - {region: eu-west, url: "http://%s"}
---
kind: Product
name: commerce
spec: {apis: [orders]}
---
kind: Plan
name: bench
spec:
  products: [commerce]
  rate_limit: {requests_per_second: 100000, burst: 100000}
  quota: {units: 1000000000000, period: month, mode: elastic}
`

// install starts one control node, publishes the API and makes the keys; then the edge joins.
func (b *bench) install(ctx context.Context) error {
	spec := filepath.Join(b.dir, "installation.yaml")
	if err := os.WriteFile(spec, fmt.Appendf(nil, installation, b.addr(portAdmin), b.addr(portPeer)), 0o600); err != nil {
		return err
	}
	if err := b.output(ctx, nil, "bailiwick-control", "init", "-spec", spec, "-out", b.dir); err != nil {
		return err
	}
	var err error
	if b.control, err = b.start("control", place{}, b.program("bailiwick-control"), "run", "-dir", filepath.Join(b.dir, "emea-1"), "-bootstrap-expect", "1", "-raft-timing", "local", "-reserve-bytes", "-1", "-rollout-soak", "200ms"); err != nil {
		return err
	}
	client, err := b.client()
	if err != nil {
		return err
	}
	if err := ready(ctx, client, "https://"+b.addr(portAdmin)); err != nil {
		return err
	}
	var text strings.Builder
	fmt.Fprintf(&text, manifest, host, b.addr(portUpstream))
	for i := range customers {
		fmt.Fprintf(&text, "---\nkind: Customer\nname: customer-%d\nspec: {zone: emea, subscriptions: [{plan: bench}]}\n", i)
	}
	file := filepath.Join(b.dir, "bench.yaml")
	if err := os.WriteFile(file, []byte(text.String()), 0o600); err != nil {
		return err
	}
	if _, err := b.cli(ctx, "apply", "-f", file); err != nil {
		return err
	}
	if err := b.makeKeys(ctx, client); err != nil {
		return err
	}
	for _, name := range append([]string{"edge"}, b.befores()...) {
		if err := b.joinToken(ctx, name); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) joinToken(ctx context.Context, edge string) error {
	out, err := b.cli(ctx, "join-token", "create", "--kind", "edge", "--region", "eu-west", "--name", edge, "-o", "json")
	if err != nil {
		return err
	}
	var answer struct{ Token string }
	if err := json.Unmarshal(out, &answer); err != nil || answer.Token == "" {
		return fmt.Errorf("join-token create printed no token: %v", err)
	}
	return b.write("join-token."+edge, answer.Token+"\n")
}

// edge is the command that starts one, whose four ports begin at an offset.
func (b *bench) edge(program, name string, offset int) []string {
	return append([]string{program, "-dir", filepath.Join(b.dir, name), "-name", name, "-region", "eu-west",
		"-control", "https://" + b.addr(portAdmin), "-ca-file", filepath.Join(b.dir, "ca.pem"), "-join-token-file", filepath.Join(b.dir, "join-token."+name),
		"-http", b.addr(offset), "-https", b.addr(offset + 1), "-admin", b.addr(offset + 2), "-relay", b.addr(offset + 3), "-allow-loopback-upstreams"}, b.edgeArgs...)
}

// makeKeys makes them over the admin API, as an operator's program would. All are used, in an order that has nothing to do with
// where they rest.
func (b *bench) makeKeys(ctx context.Context, client *http.Client) error {
	token, err := os.ReadFile(filepath.Join(b.dir, "admin.token"))
	if err != nil {
		return err
	}
	service := adminv1connect.NewKeyServiceClient(bearer{client, strings.TrimSpace(string(token))}, "https://"+b.addr(portAdmin))
	began := time.Now()
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(4)
	b.allKeys = make([]string, b.keys)
	for c := range min(customers, b.keys) {
		g.Go(func() error { // every 500th key is this customer's
			for i := c; i < b.keys; {
				count := min(1000, (b.keys-i+customers-1)/customers)
				answer, err := createKeys(ctx, service, fmt.Sprintf("customer-%d", c), count)
				if err != nil {
					return fmt.Errorf("make keys of customer %d: %w", c, err)
				}
				for _, k := range answer.GetKeys() {
					b.allKeys[i] = k.GetKey()
					i += customers
				}
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "%d keys made in %s\n", b.keys, time.Since(began).Round(time.Millisecond))
	b.used = slices.Clone(b.allKeys)
	rand.New(rand.NewPCG(1, 2)).Shuffle(len(b.used), func(i, j int) { b.used[i], b.used[j] = b.used[j], b.used[i] })
	if b.inUse > 0 {
		b.used = b.used[:min(b.inUse, len(b.used))]
	}
	if err := b.write("few.keys", strings.Join(b.used[:min(1000, len(b.used))], "\n")+"\n"); err != nil {
		return err
	}
	return b.write("used.keys", strings.Join(b.used, "\n")+"\n")
}

func createKeys(ctx context.Context, service adminv1connect.KeyServiceClient, customer string, count int) (*adminv1.CreateKeysResponse, error) {
	for try := 0; ; try++ {
		answer, err := service.CreateKeys(ctx, &adminv1.CreateKeysRequest{Key: &adminv1.CreateKeyRequest{Customer: customer, Plan: "bench"}, Count: int32(count)})
		if code := connect.CodeOf(err); code != connect.CodeUnavailable && code != connect.CodeResourceExhausted || try == 60 { // 100,000 keys a second
			return answer, err
		}
		time.Sleep(500 * time.Millisecond)
	}
}

type bearer struct {
	*http.Client
	token string
}

func (c bearer) Do(r *http.Request) (*http.Response, error) {
	r.Header.Set("Authorization", "Bearer "+c.token)
	return c.Client.Do(r)
}

func (b *bench) client() (*http.Client, error) {
	roots, err := os.ReadFile(filepath.Join(b.dir, "ca.pem"))
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(roots) {
		return nil, errors.New("ca.pem holds no certificate")
	}
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}, nil
}

func ready(ctx context.Context, client *http.Client, base string) error {
	var last string
	for range 1200 {
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, base+"/readyz?verbose", nil)
		if err != nil {
			return err
		}
		response, err := client.Do(request)
		if err == nil {
			body, _ := io.ReadAll(response.Body)
			response.Body.Close()
			if response.StatusCode == http.StatusOK {
				return nil
			}
			last = string(body)
		} else {
			last = err.Error()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		time.Sleep(50 * time.Millisecond)
	}
	return fmt.Errorf("%s is not ready: %s", base, last)
}

func (b *bench) program(name string) string { return filepath.Join(b.bin, name) }

func (b *bench) cli(ctx context.Context, args ...string) ([]byte, error) {
	env := []string{"BAILIWICK_ADMIN=https://" + b.addr(portAdmin), "BAILIWICK_CA_FILE=" + filepath.Join(b.dir, "ca.pem"), "BAILIWICK_TOKEN_FILE=" + filepath.Join(b.dir, "admin.token")}
	var out []byte
	var err error
	for range 20 { // the zone elects its leaders while the first command waits
		if out, err = b.run(ctx, env, "bailiwick", args...); err == nil {
			return out, nil
		}
		if exit, ok := errors.AsType[*exec.ExitError](err); !ok || exit.ExitCode() != 6 {
			return nil, err
		}
		time.Sleep(500 * time.Millisecond)
	}
	return nil, err
}

func (b *bench) output(ctx context.Context, env []string, program string, args ...string) error {
	_, err := b.run(ctx, env, program, args...)
	return err
}

func (b *bench) run(ctx context.Context, env []string, program string, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, b.program(program), args...)
	cmd.Env = append(os.Environ(), env...)
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s %s: %w: %s", program, args[0], err, strings.TrimSpace(stderr.String()))
	}
	return out, nil
}
