package telemetry_test

import (
	"bytes"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"bailiwick/shared/telemetry"
)

// In a process of its own: what it turns off stays off.
func TestNoCoreDumps(t *testing.T) {
	if os.Getenv("BAILIWICK_TEST_CORES") == "" {
		cmd := exec.Command(os.Args[0], "-test.run", "^TestNoCoreDumps$", "-test.v")
		cmd.Env = append(os.Environ(), "BAILIWICK_TEST_CORES=1")
		out, err := cmd.CombinedOutput()
		if err != nil || !bytes.Contains(out, []byte("cores are off")) {
			t.Fatalf("got %v: %s", err, out)
		}
		return
	}
	if err := telemetry.NoCoreDumps(); err != nil {
		t.Fatal(err)
	}
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_CORE, &limit); err != nil || limit.Cur != 0 || limit.Max != 0 {
		t.Errorf("got limit %+v, %v; want zero, for good", limit, err)
	}
	if dumpable, _, _ := syscall.RawSyscall(syscall.SYS_PRCTL, syscall.PR_GET_DUMPABLE, 0, 0); dumpable != 0 {
		t.Errorf("got dumpable %d, want 0", dumpable)
	}
	// Its own /proc must stay open to it: the metrics of the process come from there.
	rec := httptest.NewRecorder()
	telemetry.Handler(telemetry.NewRegistry()).ServeHTTP(rec, httptest.NewRequest("GET", "/metrics", nil))
	if !strings.Contains(rec.Body.String(), "process_open_fds") {
		t.Error("the process cannot read its own state any more")
	}
	t.Log("cores are off")
}
