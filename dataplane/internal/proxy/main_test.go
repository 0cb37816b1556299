package proxy_test

import (
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestMain runs more tests at once than there are CPUs, of those that may: they wait for limits and ends.
func TestMain(m *testing.M) {
	flag.Parse()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	os.Exit(m.Run())
}

// alone says whether the test has the process for itself. If not, it is run in one of its own, and what comes of that is what comes
// of it: what a heap holds cannot be said of one to which tests before it may still be giving some back.
func alone(t *testing.T) bool {
	t.Helper()
	const mark = "BAILIWICK_TEST_ALONE"
	if os.Getenv(mark) == t.Name() {
		return true
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.Split(t.Name(), "/")
	run := exec.CommandContext(t.Context(), self, "-test.v", "-test.count=1", "-test.run=^"+strings.Join(parts, "$/^")+"$")
	run.Env = append(os.Environ(), mark+"="+t.Name())
	out, err := run.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("in a process of its own: %v\n%s", err, out)
		return false
	}
	t.Logf("in a process of its own:\n%s", out)
	return false
}
