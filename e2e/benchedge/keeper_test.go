package main

import (
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// A program that is killed cannot end what it started, and the children of those least of all: the keeper does.
func TestKeeper_EndsWhatIsLeftBehind(t *testing.T) {
	if os.Getenv("BENCHEDGE_TEST_KEEPER") != "" {
		code, err := keep("sh", "-c", `mkfifo said; sh -c 'sleep 1000 & echo $!; echo >said; wait' & echo $!; read x <said; kill -9 $$`)
		if err != nil || code != 1 {
			t.Fatalf("got %d, %v of a program that was killed, want 1", code, err)
		}
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run", "^TestKeeper_EndsWhatIsLeftBehind$")
	cmd.Env = append(os.Environ(), "BENCHEDGE_TEST_KEEPER=1")
	cmd.Dir, cmd.WaitDelay = t.TempDir(), 20*time.Second // who is left holds the output open
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	pids := 0
	for field := range strings.FieldsSeq(string(out)) {
		if pid, err := strconv.Atoi(field); err == nil {
			pids++
			if err := syscall.Kill(pid, 0); err != syscall.ESRCH {
				t.Errorf("process %d: got %v, want it to be gone", pid, err)
			}
		}
	}
	if pids != 2 {
		t.Errorf("got %d processes named in %q, want two", pids, out)
	}
}
