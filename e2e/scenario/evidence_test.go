package scenario_test

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"bailiwick/e2e/harness"
)

// TestEvidence takes the evidence of a failover and a closure away from a running installation and checks it where there
// is nothing but the file, the installation's root and the program: what was relayed is in it, under grants, and a byte
// changed anywhere is found.
func TestEvidence(t *testing.T) {
	t.Parallel()
	s := harness.Start(t)
	key := s.Key("emea", "unlimited")
	s.Settle()
	s.Act("kill", "orders@eu-west")
	relayed := 0
	within(t, time.Now(), 10*time.Second, "a pair serves eu-west", func() error { return ok(s.Get("eu-west", key), "eu-central") })
	for range 20 {
		if s.Get("eu-west", key).Served() == "eu-central" {
			relayed++
		}
	}
	s.MustCLI("emea", "close", "--name", "drill", "--from", "eu-west", "--to", "eu-central", "--reason", "drill")
	flood := filepath.Join(t.TempDir(), "flood.yaml") // by a manifest, which is the catalog's; region drain is the zone's own
	if err := os.WriteFile(flood, []byte(s.MustCLI("us", "get", "regions", "us-west", "-o", "yaml")+"  drain: flood\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s.MustCLI("us", "apply", "-f", flood)
	within(t, time.Now(), 10*time.Second, "eu-west has nobody left", func() error {
		if got := s.Get("eu-west", key).Status; got != 503 {
			return fmt.Errorf("status %d", got)
		}
		return nil
	})
	// A control node that lost its copy has the same log again, and another leads.
	s.Act("kill", "emea-2")
	lost := filepath.Join(s.Dir, "emea-2", "evidence")
	if err := os.RemoveAll(lost); err != nil {
		t.Fatal(err)
	}
	s.Act("start", "emea-2")
	led := s.Leader("store/emea")
	s.Act("kill", led)

	root, err := filepath.Abs(filepath.Join(s.Dir, "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	apart := t.TempDir()
	verify := func(file string, args ...string) (string, error) {
		cmd := exec.Command(filepath.Join(harness.Root(t), "bin", "bailiwick"), append([]string{"evidence", "verify", file, "--ca-file", root}, args...)...)
		cmd.Dir, cmd.Env = apart, []string{}
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	// Relays are told when their minute is over.
	var report struct {
		Verdict struct{ Total int64 }
		Relays  []struct {
			From, To string
			Count    int
		}
		Tightenings []struct{ Pair string }
		Closures    []struct{ Name string }
	}
	file := filepath.Join(apart, "bundle")
	within(t, time.Now(), 100*time.Second, "the relays are in the zone's log", func() error {
		if _, stderr, code := s.CLI("emea", "evidence", "export", "--zone", "emea", "--from", "1h", "-f", file); code != 0 {
			return fmt.Errorf("export: %s", stderr)
		}
		out, _, code := s.CLI("emea", "compliance", "report", "--zone", "emea", "--bundle", file, "-o", "json")
		if err := json.Unmarshal([]byte(out), &report); err != nil || code != 0 {
			return fmt.Errorf("report: exit %d, %w: %s", code, err, out)
		}
		sum := 0
		for _, r := range report.Relays {
			if r.From == "eu-west" && r.To == "eu-central" {
				sum += r.Count
			}
		}
		if sum < relayed || len(report.Tightenings) != 1 || len(report.Closures) != 1 {
			time.Sleep(time.Second) // their minute is long
			return fmt.Errorf("%d relays of at least %d, tightenings %v, closures %v", sum, relayed, report.Tightenings, report.Closures)
		}
		return nil
	})
	if out, err := verify(file, "--zone", "emea"); err != nil {
		t.Fatalf("the bundle is not sound: %v\n%s", err, out)
	}
	// Who drained the region of another zone is in every zone's log, by name in one of them, and all tell the same of it.
	both := []string{"audit", "verify", "--ca-file", root}
	for zone, who := range map[string]string{"emea": "us/", "us": "admin"} {
		bundle := filepath.Join(apart, "audit-"+zone)
		within(t, time.Now(), 30*time.Second, "zone "+zone+" has logged the catalog", func() error {
			s.MustCLI(zone, "evidence", "export", "--zone", zone, "--from", "1h", "-f", bundle)
			out := s.MustCLI(zone, "audit", "list", "--zone", zone, "--bundle", bundle)
			if !strings.Contains(out, "Region us-west changed, drained: flood") || !strings.Contains(out, who) || zone == "emea" && !strings.Contains(out, "closure drill") {
				return fmt.Errorf("audit list:\n%s", out)
			}
			return nil
		})
		both = append(both, bundle)
	}
	if out := s.MustCLI("emea", both...); !strings.Contains(out, " 0 of them differently") || strings.Contains(out, "\n0 transactions") {
		t.Errorf("audit verify of both zones:\n%s", out)
	}
	// All nodes have the log that they sign, the one that had lost it too, and edges hold its heads.
	s.Act("start", led)
	within(t, time.Now(), 30*time.Second, "edges hold heads, and nobody refuses one", func() error {
		for _, e := range []string{"eu-west-edge-1", "eu-central-edge-1"} {
			if _, err := os.Stat(filepath.Join(s.Dir, e, "evidence", "checkpoint")); err != nil {
				return err
			}
			if strings.Contains(s.Log(e), "head of the zone's evidence log is refused") {
				t.Fatalf("%s refused a head", e)
			}
		}
		return nil
	})
	within(t, time.Now(), 30*time.Second, "the node that lost its copy has it again", func() error {
		info, err := os.Stat(filepath.Join(lost, "evidence-0000000000000000.log"))
		if err == nil && info.Size() < 4096 {
			err = fmt.Errorf("it has %d bytes", info.Size())
		}
		return err
	})
	within(t, time.Now(), 30*time.Second, "every node's log is whole", func() error {
		out, stderr, code := s.CLI("emea", "evidence", "check", "--zone", "emea")
		if code != 0 || strings.Count(out, "heads fit") != 3 {
			return fmt.Errorf("exit %d: %s%s", code, out, stderr)
		}
		return nil
	})

	// The rows of the relays rest with the edge: what it hands out is what the log has digests of, and nothing else.
	rows := filepath.Join(apart, "rows")
	s.MustCLI("emea", "evidence", "rows", "--zone", "emea", "--region", "eu-west", "--from", "30m", "-f", rows)
	if out, err := verify(file, "--rows", rows); err != nil || !strings.Contains(out, "relays out of eu-west: ") {
		t.Errorf("the rows are not those of the log: %v\n%s", err, out)
	}
	kept, err := os.ReadFile(rows)
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(kept), `"request_id"`); n < relayed {
		t.Errorf("%d rows of at least %d relays", n, relayed)
	}
	at := strings.Index(string(kept), `"request_id":"`) + len(`"request_id":"`)
	swapped := slices.Clone(kept)
	swapped[at] ^= 1
	if err := os.WriteFile(rows, swapped, 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := verify(file, "--rows", rows); err == nil || !strings.Contains(out, "a row was changed or moved") {
		t.Errorf("a request id in the rows was changed: %v\n%s", err, out)
	}

	whole, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	s.ActAll("kill", s.ControlsOf("")...) // the file is all that is needed from here on, and what idles has the machine from others
	for _, e := range s.Edges {
		s.Act("kill", e.Name)
	}
	bad := filepath.Join(apart, "tampered")
	for i := range 200 {
		at := i * (len(whole) - 1) / 199
		data := slices.Clone(whole)
		data[at] ^= 1
		if err := os.WriteFile(bad, data, 0o600); err != nil {
			t.Fatal(err)
		}
		if out, err := verify(bad); err == nil {
			t.Errorf("byte %d of %d was changed, and nothing was found: %s", at, len(whole), out)
		}
	}
}
