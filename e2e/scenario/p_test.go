package scenario_test

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// traced is what `usage trace -o json` prints.
type traced struct {
	Cells []struct {
		Requests, Units, Rows int64
		RowUnits              int64 `json:"row_units"`
		Blocks                []string
	}
	Rows        []struct{ Edge, Outcome string }
	Unreachable []string
}

func (x traced) sums() (ledger, found, blocks int64) {
	for _, c := range x.Cells {
		ledger, found, blocks = ledger+c.Requests, found+c.Rows, blocks+int64(len(c.Blocks))
	}
	return ledger, found, blocks
}

func trace(s *harness.Sandbox, customer string) (traced, error) {
	out, stderr, code := s.CLI("emea", "usage", "trace", "--customer", customer, "--since", "2h", "--limit", "1000", "-o", "json")
	if code != 0 {
		return traced{}, fmt.Errorf("usage trace: exit code %d: %s", code, stderr)
	}
	var x traced
	return x, json.Unmarshal([]byte(out), &x)
}

// privacy: each unit of a customer is traced to its request; what names him or his end user is in no other zone,
// and the end user's address nowhere at all; and erased he is gone from every disk of detail, with what was still
// on its way, while the sums stay.
func privacy(t *testing.T, s *harness.Sandbox) {
	const person, display, address = "canary-person", "Quirinus Canary-Kuhn", "127.77.88.99"
	s.MustCLI("emea", "apply", "-f", writeFile(t, "person.yaml", "kind: Customer\nname: "+person+"\nspec: {zone: emea, display_name: "+display+", subscriptions: [{plan: unlimited}]}\n"))
	_, key := s.NewKey("emea", person, "unlimited")
	secret := key[strings.LastIndex(key, "_")+1:]
	client := func(region string) *http.Client {
		c := s.NewClient(s.HTTPS(region))
		if runtime.GOOS == "linux" { // elsewhere only 127.0.0.1 is an address of one's own
			d := &net.Dialer{Timeout: 2 * time.Second, LocalAddr: &net.TCPAddr{IP: net.ParseIP(address)}}
			to := s.HTTPS(region)
			c.Transport.(*http.Transport).DialContext = func(ctx context.Context, network, _ string) (net.Conn, error) { return d.DialContext(ctx, network, to) }
		}
		return c
	}
	clients := map[string]*http.Client{"eu-west": client("eu-west"), "eu-central": client("eu-central")}
	both := []string{"eu-west", "eu-central"} // whoever answers: it is counted
	sent, answered := int64(0), ""            // answered: the id of the last one
	get := func(region string) harness.Answer {
		a := s.Send(clients[region], http.MethodGet, ordersEMEA, "/v1/orders", key, nil)
		if a.Err == nil && a.Status != http.StatusUnauthorized {
			sent++
			answered = a.Header.Get("Bailiwick-Request-Id")
		}
		return a
	}
	for region := range clients {
		within(t, time.Now(), 5*time.Second, "the key works in "+region, func() error { return ok(get(region), region) })
		for range 30 {
			if err := ok(get(region), both...); err != nil {
				t.Fatal(err)
			}
		}
	}
	s.Eventually(30*time.Second, "each request is counted, and its row is found", func() error {
		x, err := trace(s, person)
		if ledger, found, blocks := x.sums(); err == nil && (ledger != sent || found != sent || int64(len(x.Rows)) != sent || blocks < 2 || len(x.Unreachable) > 0) {
			err = fmt.Errorf("the ledger has %d requests, detail %d in %d blocks, %d rows are shown, %v do not answer; want %d each", ledger, found, blocks, len(x.Rows), x.Unreachable, sent)
		}
		return err
	})
	// Whoever was answered asks with what he was answered.
	var one traced
	if err := json.Unmarshal([]byte(s.MustCLI("emea", "usage", "trace", "--customer", person, "--request-id", answered, "-o", "json")), &one); err != nil || len(one.Rows) != 1 {
		t.Errorf("request %s: %d rows, %v; want its own", answered, len(one.Rows), err)
	}
	if _, _, code := s.CLIAt(strings.Join(s.AdminURLs("us"), ","), "usage", "trace", "--customer", person, "--zone", "us"); code != 3 {
		t.Errorf("a trace asked of zone us: exit code %d, want 3", code)
	}

	// Nothing of it leaves the zone.
	canaries := [][]byte{[]byte(person), []byte(display), []byte(secret)}
	all, stderr, code := s.CLIAt(strings.Join(s.AdminURLs("us"), ","), "usage", "--all-zones", "--since", "2h", "-o", "json")
	if code != 0 || !strings.Contains(all, `"emea"`) {
		t.Errorf("sums of all zones, asked in us: exit code %d, %s", code, stderr)
	}
	if n := newFinder(canaries).first([]byte(all + stderr)); n != nil {
		t.Errorf("%q is in the sums that us has of emea", n)
	}
	for _, c := range s.Controls {
		if c.Zone != "emea" {
			absent(t, filepath.Join(s.Dir, c.Name), canaries)
			absent(t, filepath.Join(s.Dir, "logs", c.Name+".log"), canaries)
		}
	}
	for _, e := range s.Edges {
		if e.Zone != "emea" {
			absent(t, filepath.Join(s.Dir, e.Name), canaries)
		}
	}
	if runtime.GOOS == "linux" {
		absent(t, s.Dir, [][]byte{[]byte(address)})
	}

	if doc := s.MustCLI("emea", "customer", "export", person); !strings.Contains(doc, display) || int64(strings.Count(doc, `"request_id"`)) != sent {
		t.Errorf("the export holds %d rows, want %d, and the name", strings.Count(doc, `"request_id"`), sent)
	}

	// Rows one by one are turned off: the same requests are counted, and no row is kept of them.
	s.MustCLI("emea", "apply", "-f", switchDoc(t, "detail", true), "--now", "--reason", "thrown by a test")
	s.Settle() // the edge holds it
	kept := sent
	for range 10 {
		if err := ok(get("eu-west"), both...); err != nil {
			t.Fatal(err)
		}
	}
	s.Eventually(30*time.Second, "without detail requests are counted, and no row is found", func() error {
		x, err := trace(s, person)
		if ledger, found, _ := x.sums(); err == nil && (ledger != sent || found != kept) {
			err = fmt.Errorf("the ledger has %d requests, want %d; detail %d, want %d", ledger, sent, found, kept)
		}
		return err
	})
	s.MustCLI("emea", "apply", "-f", switchDoc(t, "detail", false), "--now", "--reason", "thrown by a test")
	s.Settle()

	// What an edge holds back while the customer is erased is late, and counted, and comes to rest nowhere.
	late := s.EdgeOf("eu-central").Name
	for range 10 {
		if err := ok(get("eu-central"), both...); err != nil {
			t.Fatal(err)
		}
	}
	s.Act("pause", late)
	file := filepath.Join(t.TempDir(), "erasure.json")
	erase := func() string {
		return s.MustCLI("emea", "customer", "erase", person, "--reason", "scenario", "--yes", "-f", file, "-o", "json")
	}
	var first struct{ Pending []string }
	if err := json.Unmarshal([]byte(erase()), &first); err != nil || len(first.Pending) != 1 || first.Pending[0] != late {
		t.Errorf("pending %v, %v; want %s, which was held still", first.Pending, err, late)
	}
	s.Act("resume", late)
	s.Eventually(30*time.Second, "the erasure is confirmed by all", func() error {
		var again struct{ Pending []string }
		err := json.Unmarshal([]byte(erase()), &again)
		if err == nil && len(again.Pending) > 0 {
			err = fmt.Errorf("pending %v", again.Pending)
		}
		return err
	})
	if out := s.MustCLI("emea", "customer", "verify-erasure", file); !strings.Contains(out, person) {
		t.Errorf("the statement says %q", out)
	}
	s.Eventually(30*time.Second, "late requests are counted, and no row is found", func() error {
		x, err := trace(s, person)
		if ledger, found, _ := x.sums(); err == nil && (ledger != sent || found != 0) {
			err = fmt.Errorf("the ledger has %d requests, want %d; detail %d, want none", ledger, sent, found)
		}
		return err
	})
	within(t, time.Now(), 5*time.Second, "the key is refused", func() error {
		if a := get("eu-west"); a.Status != http.StatusUnauthorized {
			return fmt.Errorf("status %d", a.Status)
		}
		return nil
	})
	for _, c := range s.Controls {
		if c.Zone == "emea" {
			absent(t, filepath.Join(s.Dir, c.Name, "detail"), [][]byte{[]byte(person)})
		}
	}
	if doc := s.MustCLI("emea", "customer", "export", person); strings.Contains(doc, display) || strings.Contains(doc, `"request_id"`) {
		t.Error("an export still tells his name, or his requests")
	}
}
