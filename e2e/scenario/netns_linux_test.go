package scenario_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// reexecInNamespace runs this test again in a process with a network of its own. The error says that there is
// no such thing here; that the test failed there fails it here.
func reexecInNamespace(t *testing.T) error {
	flags := uintptr(syscall.CLONE_NEWNET)
	attributes := &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if os.Geteuid() != 0 { // an ordinary user is root in a user namespace, where those are allowed
		flags |= syscall.CLONE_NEWUSER
		attributes.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getuid(), Size: 1}}
		attributes.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getgid(), Size: 1}}
	}
	attributes.Cloneflags = flags
	cmd := exec.Command(os.Args[0], "-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
	cmd.Env = append(os.Environ(), inNamespace+"=1")
	cmd.SysProcAttr = attributes
	var output bytes.Buffer
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Start(); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		t.Errorf("in the namespace: %v\n%s", err, output.String())
		return nil
	}
	if !bytes.Contains(output.Bytes(), []byte("--- PASS: "+t.Name())) {
		t.Errorf("in the namespace nothing ran:\n%s", output.String())
	}
	t.Log(output.String())
	return nil
}

// loopbackUp turns on the one device of a new namespace.
func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	request.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request); err != nil {
		return fmt.Errorf("turn on the loopback device: %w", err)
	}
	return nil
}

// Routing rules by protocol need no firewall program: the rule for local addresses moves behind one that
// swallows UDP.
const (
	cutPriority   = 10
	localPriority = 100
)

func cutUDP() error {
	return errors.Join(rule(unix.RTM_NEWRULE, localPriority, unix.RT_TABLE_LOCAL, unix.FR_ACT_TO_TBL, 0),
		rule(unix.RTM_DELRULE, 0, unix.RT_TABLE_LOCAL, unix.FR_ACT_TO_TBL, 0),
		rule(unix.RTM_NEWRULE, cutPriority, 0, unix.FR_ACT_BLACKHOLE, unix.IPPROTO_UDP))
}

func healUDP() error {
	return rule(unix.RTM_DELRULE, cutPriority, 0, unix.FR_ACT_BLACKHOLE, unix.IPPROTO_UDP)
}

// rule adds or removes one IPv4 routing rule over rtnetlink.
func rule(kind uint16, priority uint32, table, action uint8, protocol uint8) error {
	attribute := func(b []byte, kind uint16, value []byte) []byte {
		b = binary.NativeEndian.AppendUint16(b, uint16(4+len(value)))
		b = binary.NativeEndian.AppendUint16(b, kind)
		b = append(b, value...)
		return append(b, make([]byte, (4-len(value)%4)%4)...)
	}
	// struct fib_rule_hdr: family, lengths, tos, table, two reserved, action, flags.
	body := []byte{unix.AF_INET, 0, 0, 0, table, 0, 0, action, 0, 0, 0, 0}
	body = attribute(body, unix.FRA_PRIORITY, binary.NativeEndian.AppendUint32(nil, priority))
	if protocol != 0 {
		body = attribute(body, unix.FRA_IP_PROTO, []byte{protocol})
	}
	flags := uint16(unix.NLM_F_REQUEST | unix.NLM_F_ACK)
	if kind == unix.RTM_NEWRULE {
		flags |= unix.NLM_F_CREATE | unix.NLM_F_EXCL
	}
	message := binary.NativeEndian.AppendUint32(nil, uint32(16+len(body)))
	message = binary.NativeEndian.AppendUint16(message, kind)
	message = binary.NativeEndian.AppendUint16(message, flags)
	message = append(message, make([]byte, 8)...) // sequence and port
	message = append(message, body...)

	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	if err := unix.Sendto(fd, message, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, _, err := unix.Recvfrom(fd, answer, 0)
	if err != nil {
		return err
	}
	if n < 20 || binary.NativeEndian.Uint16(answer[4:]) != unix.NLMSG_ERROR {
		return fmt.Errorf("change routing rule %d: the kernel answers %d bytes", priority, n)
	}
	if code := int32(binary.NativeEndian.Uint32(answer[16:])); code != 0 {
		return fmt.Errorf("change routing rule %d: %w", priority, syscall.Errno(-code))
	}
	return nil
}

// udpWorks sends one datagram to itself.
func udpWorks() error {
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

// The fault itself: that UDP stops and comes back while TCP goes on, else a cut proves nothing.
func TestCutUDP_CutsAndHeals(t *testing.T) {
	if os.Getenv(inNamespace) == "" {
		if err := reexecInNamespace(t); err != nil {
			t.Logf("no network namespace here: %v", err)
		}
		return
	}
	for _, step := range []struct {
		name  string
		do    func() error
		works bool
	}{{"loopback up", loopbackUp, true}, {"cut", cutUDP, false}, {"heal", healUDP, true}} {
		if err := step.do(); err != nil {
			t.Fatalf("%s: %v", step.name, err)
		}
		if err := udpWorks(); (err == nil) != step.works {
			t.Errorf("after %s UDP answers %v, want working %v", step.name, err, step.works)
		}
		l, err := net.Listen("tcp4", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		conn, err := net.DialTimeout("tcp4", l.Addr().String(), time.Second)
		if err != nil {
			t.Errorf("after %s TCP: %v", step.name, err)
		} else {
			conn.Close()
		}
		l.Close()
	}
}
