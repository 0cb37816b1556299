package main

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"bailiwick/e2e/mutants/overlay"
	"bailiwick/e2e/netlab"
)

func TestMain(m *testing.M) {
	if netlab.Inside() {
		main()
		return
	}
	os.Exit(m.Run())
}

// A short run of the programs in bin/, which must leak nothing, and of one leaking build, which must be found by a
// counter and by its secret on the wire. The whole is make hosts.
func TestHosts(t *testing.T) {
	if testing.Short() {
		t.Skip("runs two installations")
	}
	lacks := func(err error) {
		if os.Getenv("BAILIWICK_CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	if _, err := exec.LookPath("nft"); err != nil {
		lacks(errors.New("nft, of the package nftables, is not installed: hosts in namespaces are not looked at"))
	}
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	bin := filepath.Join(root, "bin")
	if _, err := os.Stat(filepath.Join(bin, "bailiwick-edge")); err != nil {
		t.Fatalf("%v: run make build first", err)
	}
	var out strings.Builder
	err = all(settings{seed: 2026, bin: bin, faults: 0, quiet: 2 * time.Second}, regexp.MustCompile("^(clean|header-to-foreign-control)$"), &out)
	t.Log(out.String())
	if errors.Is(err, errNoHosts) {
		lacks(err)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// Each leaking build has its place in the code of today, and says how it is found.
func TestLeaks_FindTheirPlaces(t *testing.T) {
	root, err := moduleRoot()
	if err != nil {
		t.Fatal(err)
	}
	goroot, err := ask("env", "GOROOT")
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{clean: true}
	for _, l := range leaks {
		if seen[l.name] || l.crosses == "" || len(l.programs) == 0 || len(l.want) == 0 {
			t.Errorf("%s: twice, or without a line, programs or findings", l.name)
		}
		seen[l.name] = true
		if _, err := overlay.Write(root, t.TempDir(), append(readable(goroot), l.edits...)); err != nil {
			t.Errorf("%s: %v", l.name, err)
		}
	}
	if len(seen) < 7 {
		t.Errorf("%d leaking builds, want at least 6", len(seen)-1)
	}
}

// A run whose findings are others than the build's own has not found the leak; a clean run with any finding, or with a
// control that failed, is not clean.
func TestLeak_Judge(t *testing.T) {
	l := leak{name: "some", want: []string{"^counter a: ", "secret"}}
	for _, c := range []struct {
		l     leak
		r     report
		right bool
	}{
		{leak{name: clean}, report{}, true},
		{leak{name: clean}, report{Findings: []string{"x"}}, false},
		{leak{name: clean}, report{Problems: []string{"x"}}, false},
		{l, report{Findings: []string{"counter a: 3 packets", "a secret somewhere"}}, true},
		{l, report{Findings: []string{"counter a: 3 packets"}}, false},
		{l, report{}, false},
	} {
		if got := c.l.judge(&c.r); (got == "") != c.right {
			t.Errorf("%s with %v: %q, want right %v", c.l.name, c.r, got, c.right)
		}
	}
}
