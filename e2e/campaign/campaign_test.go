package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"bailiwick/e2e/netlab"
)

// In its namespace the program is this one.
func TestMain(m *testing.M) {
	if netlab.Inside() {
		main()
		return
	}
	os.Exit(m.Run())
}

// TestCampaign is a small campaign: every kind of fault once. The large one is make campaign.
func TestCampaign(t *testing.T) {
	file := filepath.Join(t.TempDir(), "summary.json")
	var out strings.Builder
	err := run([]string{"-requests", "10000", "-faults", "22", "-rate", "400", "-minutes", "5", "-json", file}, &out)
	t.Log(out.String())
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var s summary
	if err := json.Unmarshal(text, &s); err != nil {
		t.Fatal(err)
	}
	if s.Requests < 10000 || s.Faults < 10 || len(s.Customers) < 8 || len(s.Breaches) > 0 {
		t.Errorf("%d requests, %d faults, %d customers, breaches %v", s.Requests, s.Faults, len(s.Customers), s.Breaches)
	}
}
