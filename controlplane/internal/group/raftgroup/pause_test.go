package raftgroup

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/hashicorp/raft"
)

const pausedEnv = "BAILIWICK_TEST_PAUSED"

// askingDisk says when a write has begun, and ends it when a line comes.
type askingDisk struct{ disk }

func (askingDisk) StoreLogs([]*raft.Log) error {
	fmt.Println("writing")
	_, err := bufio.NewReader(os.Stdin).ReadString('\n')
	return err
}

// A process that is stopped for longer than the limit, as a virtual machine is that moves, has no disk that hangs: it did not run
// meanwhile. One that runs has.
func TestWatchdog_APauseIsNoStall(t *testing.T) {
	if os.Getenv(pausedEnv) != "" {
		w := &watchdog{disk: askingDisk{}, limit: time.Second, fail: func(err error) {
			fmt.Println("failed:", err)
			os.Exit(3)
		}}
		fmt.Println("ended:", w.StoreLogs(nil))
		os.Exit(0)
	}
	t.Parallel()
	for _, c := range []struct {
		name, want string
		pause      bool
	}{{"paused", "ended: <nil>", true}, {"runs", "failed: store raft log lasts longer than 1s: the disk is stalled", false}} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			child := exec.Command(os.Args[0], "-test.run=^TestWatchdog_APauseIsNoStall$")
			child.Env = append(os.Environ(), pausedEnv+"=1")
			in, err := child.StdinPipe()
			if err != nil {
				t.Fatal(err)
			}
			out, err := child.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := child.Start(); err != nil {
				t.Fatal(err)
			}
			defer child.Process.Kill()
			said := bufio.NewReader(out)
			if line, err := said.ReadString('\n'); line != "writing\n" {
				t.Fatalf("it says %q, %v", line, err)
			}
			if c.pause {
				if err := child.Process.Signal(syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
				time.Sleep(3 * time.Second)
				if err := child.Process.Signal(syscall.SIGCONT); err != nil {
					t.Fatal(err)
				}
				time.Sleep(300 * time.Millisecond) // it looks at its clock
				fmt.Fprintln(in)
			}
			if line, err := said.ReadString('\n'); strings.TrimSpace(line) != c.want {
				t.Errorf("it says %q, %v, want %q", line, err, c.want)
			}
			child.Wait()
		})
	}
}
