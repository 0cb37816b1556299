package porttest_test

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"

	"bailiwick/shared/lifecycle/porttest"
)

const many = 150 // more than a block

// Two processes at once are given different ports, all of which can be listened on, again and again, in TCP and UDP.
func TestAddr_IsNobodyElses(t *testing.T) {
	seen := map[string]bool{}
	if os.Getenv("PORTTEST_CHILD") != "" {
		for range many {
			os.Stdout.WriteString("addr " + porttest.Addr(t) + "\n")
		}
		os.Stdin.Read(make([]byte, 1)) // until the parent has compared
		return
	}
	child := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$")
	child.Env = append(os.Environ(), "PORTTEST_CHILD=1")
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
	defer child.Wait()
	defer in.Close()
	lines := bufio.NewScanner(out)
	for i := 0; i < many && lines.Scan(); {
		addr, ok := strings.CutPrefix(lines.Text(), "addr ")
		if !ok {
			continue
		}
		i++
		if seen[addr] {
			t.Errorf("%s is given twice", addr)
		}
		seen[addr] = true
	}
	if len(seen) != many {
		t.Fatalf("the other process was given %d ports, want %d", len(seen), many)
	}
	for range many {
		addr := porttest.Addr(t)
		if seen[addr] {
			t.Errorf("%s is given twice", addr)
		}
		seen[addr] = true
		for range 2 {
			l, err := net.Listen("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			u, err := net.ListenPacket("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			u.Close()
			l.Close()
		}
	}
}

func TestAddr_ComesBackWhenTheTestEnds(t *testing.T) {
	var one string
	t.Run("before", func(t *testing.T) { one = porttest.Addr(t) })
	for range 2000 { // more than there are blocks' worth of ports for one process at once
		again := false
		t.Run("", func(t *testing.T) { again = porttest.Addr(t) == one })
		if again {
			return
		}
	}
	t.Errorf("%s was never given again", one)
}
