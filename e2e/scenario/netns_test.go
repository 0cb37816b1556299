package scenario_test

import (
	"bytes"
	"net"
	"testing"
	"time"

	"bailiwick/e2e/netlab"
)

// reexecInNamespace runs this test again in a process with a network of its own. The error says that there is
// no such thing here; that the test failed there fails it here.
func reexecInNamespace(t *testing.T) error {
	cmd := netlab.Command("-test.run", "^"+t.Name()+"$", "-test.v", "-test.count=1")
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
