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
	"strings"
	"time"
)

// Key is the sample key of a zone and plan.
func (s *Sandbox) Key(zone, plan string) string {
	for _, k := range s.Keys {
		if k.Zone == zone && k.Plan == plan {
			return k.Key
		}
	}
	s.t.Fatalf("no sample key for zone %s and plan %s", zone, plan)
	return ""
}

// HTTPS is the address of a region's edge.
func (s *Sandbox) HTTPS(region string) string {
	for _, e := range s.Edges {
		if e.Region == region {
			return e.HTTPS
		}
	}
	s.t.Fatalf("no edge in region %s", region)
	return ""
}

// Client speaks HTTPS to one address, whatever the host of the URL, as DNS would send it there.
func (s *Sandbox) Client(address string) *http.Client {
	s.pool.mu.Lock()
	defer s.pool.mu.Unlock()
	if c := s.pool.clients[address]; c != nil {
		return c
	}
	c := s.NewClient(address)
	s.pool.clients[address] = c
	return c
}

// NewClient is Client with connections of its own.
func (s *Sandbox) NewClient(address string) *http.Client {
	dialer := &net.Dialer{Timeout: 2 * time.Second}
	return &http.Client{Timeout: 20 * time.Second, Transport: &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: s.roots}, MaxIdleConnsPerHost: 64,
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, network, address)
		},
	}}
}

// Answer is a response read whole.
type Answer struct {
	Status int
	Header http.Header
	Body   []byte
	Err    error
}

// Problem decodes a problem+json body.
func (a Answer) Problem() (p struct {
	Type, Title, Detail, Reason string
	Status                      int
	RequestID                   string `json:"request_id"`
	Hosts                       []string
}) {
	_ = json.Unmarshal(a.Body, &p)
	return p
}

// Served is the region whose upstream answered.
func (a Answer) Served() string { return a.Header.Get("Bailiwick-Served") }

// Do sends one request to the edge of a region.
func (s *Sandbox) Do(region, method, host, path, key string, body io.Reader) Answer {
	return s.Send(s.Client(s.HTTPS(region)), method, host, path, key, body)
}

// Send is Do with a given client.
func (s *Sandbox) Send(client *http.Client, method, host, path, key string, body io.Reader) Answer {
	request, err := http.NewRequest(method, "https://"+host+path, body)
	if err != nil {
		return Answer{Err: err}
	}
	if key != "" {
		request.Header.Set("X-API-Key", key)
	}
	response, err := client.Do(request)
	if err != nil {
		return Answer{Err: err}
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	return Answer{Status: response.StatusCode, Header: response.Header, Body: data, Err: err}
}

// Get asks the orders API of a region's zone.
func (s *Sandbox) Get(region, key string) Answer {
	return s.Do(region, http.MethodGet, "orders."+s.ZoneOf(region)+".example.test", "/v1/orders", key, nil)
}

// ZoneOf a region.
func (s *Sandbox) ZoneOf(region string) string {
	for _, c := range s.Controls {
		if c.Region == region {
			return c.Zone
		}
	}
	return ""
}

// Act does what control_url offers: kill, stop, pause, resume, start.
func (s *Sandbox) Act(verb, name string) {
	s.t.Helper()
	response, err := http.Post(s.ControlURL+"/v1/"+verb+"/"+name, "", nil)
	if err != nil {
		s.t.Fatalf("%s %s: %v", verb, name, err)
	}
	defer response.Body.Close()
	if body, _ := io.ReadAll(response.Body); response.StatusCode != http.StatusOK {
		s.t.Fatalf("%s %s: %s: %s", verb, name, response.Status, body)
	}
}

// LeadersTold is what the sandbox says of who leads which group, for which it starts the CLI twice.
func (s *Sandbox) LeadersTold() map[string]string {
	response, err := http.Get(s.ControlURL + "/v1/leaders")
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	var out map[string]string
	_ = json.NewDecoder(response.Body).Decode(&out)
	return out
}

// UpstreamURL of a region.
func (s *Sandbox) UpstreamURL(region string) string {
	for _, u := range s.Upstreams {
		if u.Region == region {
			return u.URL
		}
	}
	s.t.Fatalf("no upstream in %s", region)
	return ""
}

// Count is how many requests a region's upstream has answered since its start.
func (s *Sandbox) Count(region string) int64 {
	s.t.Helper()
	response, err := http.Get(s.UpstreamURL(region) + "/__count")
	if err != nil {
		s.t.Fatalf("count of upstream %s: %v", region, err)
	}
	defer response.Body.Close()
	var out struct{ Requests int64 }
	if err := json.NewDecoder(response.Body).Decode(&out); err != nil {
		s.t.Fatalf("count of upstream %s: %v", region, err)
	}
	return out.Requests
}

// Fail makes a region's upstream answer with a status; 0 ends it.
func (s *Sandbox) Fail(region string, status int) {
	s.t.Helper()
	response, err := http.Post(fmt.Sprintf("%s/__fail?status=%d", s.UpstreamURL(region), status), "", nil)
	if err != nil {
		s.t.Fatal(err)
	}
	response.Body.Close()
}

// CLI runs bailiwick against a zone's control nodes.
func (s *Sandbox) CLI(zone string, args ...string) (stdout, stderr string, code int) {
	var urls []string
	for _, a := range s.Admin {
		if a.Zone == zone {
			urls = append(urls, a.URL)
		}
	}
	return s.CLIAt(strings.Join(urls, ","), args...)
}

// CLIAt runs bailiwick against given URLs.
func (s *Sandbox) CLIAt(urls string, args ...string) (stdout, stderr string, code int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(s.Bin, "bailiwick"), args...)
	cmd.Env = append(os.Environ(), "BAILIWICK_ADMIN="+urls, "BAILIWICK_CA_FILE="+s.CAFile, "BAILIWICK_TOKEN_FILE="+s.AdminToken)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return out.String(), errs.String(), exit.ExitCode()
	}
	if err != nil {
		return out.String(), err.Error(), -1
	}
	return out.String(), errs.String(), 0
}

// MustCLI is CLI that must succeed.
func (s *Sandbox) MustCLI(zone string, args ...string) string {
	s.t.Helper()
	out, stderr, code := s.CLI(zone, args...)
	if code != 0 {
		s.t.Fatalf("bailiwick %s: exit code %d: %s", strings.Join(args, " "), code, stderr)
	}
	return out
}

// Usage is what `usage -o json` prints.
type Usage struct {
	Total           UsageTotal
	Rows            []UsageRow
	CompleteThrough time.Time `json:"complete_through"`
}

// UsageTotal sums what was asked.
type UsageTotal struct{ Requests, Billable, Limited, Errors, Units int64 }

// UsageRow is a cell of the ledger.
type UsageRow struct {
	Cell, API, Route, Plan, Outcome string
	ServedRegion                    string `json:"served_region"`
	Requests, Units                 int64
}

// Answered sums the rows that an upstream answered.
func (u Usage) Answered() (n int64) {
	for _, r := range u.Rows {
		if r.ServedRegion != "" && r.Outcome != "limited" && r.Outcome != "refused" && r.Outcome != "unserved" {
			n += r.Requests
		}
	}
	return n
}

// usageTold is what the CLI prints of a customer's usage.
func (s *Sandbox) usageTold(zone, customer string) (Usage, error) {
	out, stderr, code := s.CLI(zone, "usage", "--customer", customer, "--since", "24h", "-o", "json")
	if code != 0 {
		return Usage{}, fmt.Errorf("usage: exit code %d: %s", code, stderr)
	}
	return parseUsage(out)
}

// parseUsage reads what `usage -o json` printed.
func parseUsage(out string) (Usage, error) {
	var u Usage
	if err := json.Unmarshal([]byte(out), &u); err != nil {
		return Usage{}, fmt.Errorf("usage printed %.200q: %w", out, err)
	}
	return u, nil
}

// UsageThrough waits until the ledger is complete through an instant.
func (s *Sandbox) UsageThrough(zone, customer string, at time.Time, patience time.Duration) Usage {
	s.t.Helper()
	var u Usage
	s.Eventually(patience, "usage of "+customer+" complete through "+at.Format(time.RFC3339Nano), func() error {
		var err error
		if u, err = s.Usage(zone, customer); err != nil {
			return err
		}
		if u.CompleteThrough.Before(at) {
			return fmt.Errorf("complete through %s", u.CompleteThrough.Format(time.RFC3339Nano))
		}
		if u, err = s.usageTold(zone, customer); err == nil && u.CompleteThrough.Before(at.Truncate(time.Second)) { // it prints seconds
			err = fmt.Errorf("the CLI says that it is complete through %s", u.CompleteThrough.Format(time.RFC3339Nano))
		}
		return err
	})
	return u
}

// NewKey makes a key and returns its id and text.
func (s *Sandbox) NewKey(zone, customer, plan string) (id, key string) {
	s.t.Helper()
	var answer struct{ ID, Key string }
	if err := json.Unmarshal([]byte(s.MustCLI(zone, "key", "create", "--customer", customer, "--plan", plan, "-o", "json")), &answer); err != nil {
		s.t.Fatal(err)
	}
	return answer.ID, answer.Key
}

// Eventually polls until check returns nil; the last error tells why it did not. It waits as long as the check took,
// so that what is waited for has the machine meanwhile.
func (s *Sandbox) Eventually(patience time.Duration, what string, check func() error) {
	s.t.Helper()
	deadline := time.Now().Add(patience)
	for {
		began := time.Now()
		err := check()
		if err == nil {
			return
		}
		if time.Now().After(deadline) {
			s.t.Fatalf("%s: not within %s: %v", what, patience, err)
		}
		time.Sleep(min(max(20*time.Millisecond, time.Since(began)), 500*time.Millisecond))
	}
}
