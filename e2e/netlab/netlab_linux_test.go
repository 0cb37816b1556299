package netlab_test

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"bailiwick/e2e/netlab"
)

// udp sends one datagram to itself, tcp makes one connection to itself.
func udp() error {
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		return err
	}
	defer conn.Close()
	if _, err := conn.WriteTo([]byte("x"), conn.LocalAddr()); err != nil {
		return err
	}
	if err := conn.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, _, err = conn.ReadFrom(make([]byte, 1))
	return err
}

func tcp(address string) error {
	conn, err := net.DialTimeout("tcp4", address, 500*time.Millisecond)
	if err == nil {
		conn.Close()
	}
	return err
}

// The faults themselves: each must cut what it says and nothing else, else a cut proves nothing.
func TestCuts_CutAndHeal(t *testing.T) {
	if !netlab.Inside() {
		cmd := netlab.Command("-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
		var output bytes.Buffer
		cmd.Stdout, cmd.Stderr = &output, &output
		if err := cmd.Start(); err != nil {
			t.Skipf("no namespace here: %v", err)
		}
		if err := cmd.Wait(); err != nil || !strings.Contains(output.String(), "--- PASS: "+t.Name()) {
			t.Errorf("in the namespace: %v\n%s", err, output.String())
		}
		return
	}
	if err := netlab.Up(); err != nil {
		t.Fatal(err)
	}
	var ports []string
	for range 2 {
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		ports = append(ports, l.Addr().String())
	}
	_, text, _ := net.SplitHostPort(ports[0])
	port, _ := strconv.Atoi(text)
	works := func(when string, wantUDP, wantFirst, wantSecond bool) {
		t.Helper()
		for what, c := range map[string]struct {
			err  error
			want bool
		}{"UDP": {udp(), wantUDP}, "TCP to one": {tcp(ports[0]), wantFirst}, "TCP to the other": {tcp(ports[1]), wantSecond}} {
			if (c.err == nil) != c.want {
				t.Errorf("%s: %s answers %v, want working %v", when, what, c.err, c.want)
			}
		}
	}
	works("up", true, true, true)
	for _, c := range []struct {
		name               string
		cut                netlab.Cut
		udp, first, second bool
	}{
		{"UDP cut", netlab.UDP, false, true, true},
		{"port cut", netlab.Cut{Port: port}, true, false, true},
		{"another user cut", netlab.Cut{UID: 12345}, true, true, true},
	} {
		heal, err := netlab.Make(c.cut)
		if err != nil {
			t.Fatalf("%s: %v", c.name, err)
		}
		works(c.name, c.udp, c.first, c.second)
		if err := heal(); err != nil {
			t.Fatalf("%s heals: %v", c.name, err)
		}
		works(c.name+" healed", true, true, true)
	}
	// A user's packets: bash opens a connection with nothing but itself.
	if os.Geteuid() == 0 {
		if path, err := exec.LookPath("setpriv"); err == nil {
			dial := func() error {
				return exec.Command(path, "--reuid", "12345", "--clear-groups", "timeout", "1", "bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/"+text).Run()
			}
			if err := dial(); err != nil {
				t.Skipf("setpriv and bash open no connection here: %v", err)
			}
			heal, err := netlab.Make(netlab.Cut{UID: 12345, Port: port})
			if err != nil {
				t.Fatal(err)
			}
			if err := dial(); err == nil {
				t.Error("a user's packets to a port are cut, and arrive")
			}
			works("user and port cut", true, true, true)
			if err := heal(); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestDisk_IsFull(t *testing.T) {
	if !netlab.Inside() {
		cmd := netlab.Command("-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
		out, err := cmd.CombinedOutput()
		if err != nil && len(out) == 0 {
			t.Skipf("no namespace here: %v", err)
		}
		if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
			t.Errorf("in the namespace: %v\n%s", err, out)
		}
		return
	}
	if err := netlab.Up(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := netlab.Disk(dir, 1<<20); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	if err := os.WriteFile(dir+"/fits", make([]byte, 64<<10), 0o600); err != nil {
		t.Errorf("64 KiB on a disk of 1 MiB: %v", err)
	}
	if err := os.WriteFile(dir+"/large", make([]byte, 2<<20), 0o600); err == nil {
		t.Error("2 MiB on a disk of 1 MiB were written")
	}
}
