package telemetry_test

import (
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// What a process that dies writes to its log has places and numbers in it, and not what was in the frames: a key as
// argument, a header, a body on the stack.
func TestCrash_WritesNoValues(t *testing.T) {
	const secret = "CANARY-of-a-frame"
	if os.Getenv("BAILIWICK_TEST_CRASH") != "" {
		h := http.Header{"X-Api-Key": {secret}}
		die(strings.Clone(secret), h, []byte(secret), nil)
	}
	cmd := exec.Command(os.Args[0], "-test.run", "^TestCrash_WritesNoValues$")
	cmd.Env = append(os.Environ(), "BAILIWICK_TEST_CRASH=1", "GOTRACEBACK=all")
	out, err := cmd.CombinedOutput()
	if err == nil || !strings.Contains(string(out), "telemetry_test.die(") {
		t.Fatalf("got %v, want a crash with its stack: %s", err, out)
	}
	if strings.Contains(string(out), secret) || strings.Contains(string(out), "CANARY") {
		t.Errorf("a crash shows what was in its frames: %s", out)
	}
}

//go:noinline
func die(key string, h http.Header, body []byte, nothing *int) int {
	return *nothing + len(key) + len(h) + len(body)
}
