package netlab

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// capture writes every frame of eth0, in and out, to a pcap file.
type capture struct {
	socket *os.File
	raw    int
	ended  chan struct{}

	mu     sync.Mutex // covers the rest; held while a frame is written, by this capture alone
	file   *os.File
	out    *bufio.Writer
	missed uint32
	err    error
}

// largest frame: the kernel joins segments of a local device up to 64 KiB, and its largest packets are larger still.
const largest = 512 << 10

// newCapture listens in the calling thread's namespace.
func newCapture(path string) (*capture, error) {
	const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
	raw, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
	if err != nil {
		return nil, fmt.Errorf("open a capture: %w", err)
	}
	device, err := net.InterfaceByName("eth0")
	if err == nil {
		err = unix.Bind(raw, &unix.SockaddrLinklayer{Protocol: all, Ifindex: device.Index})
	}
	if err == nil && unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 64<<20) != nil {
		err = unix.SetsockoptInt(raw, unix.SOL_SOCKET, unix.SO_RCVBUF, 64<<20)
	}
	if err != nil {
		unix.Close(raw)
		return nil, fmt.Errorf("open a capture: %w", err)
	}
	file, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		unix.Close(raw)
		return nil, err
	}
	c := &capture{socket: os.NewFile(uintptr(raw), "capture"), raw: raw, ended: make(chan struct{}), file: file, out: bufio.NewWriterSize(file, 256<<10)}
	header := binary.LittleEndian.AppendUint32(nil, 0xa1b2c3d4)
	header = append(header, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0) // version 2.4, no zone, no accuracy
	header = binary.LittleEndian.AppendUint32(header, largest)
	header = binary.LittleEndian.AppendUint32(header, 1) // Ethernet
	c.out.Write(header)
	go c.run() // Close waits for it
	return c, nil
}

func (c *capture) run() {
	defer close(c.ended)
	frame := make([]byte, largest)
	for {
		n, err := c.socket.Read(frame)
		if err != nil {
			if !errors.Is(err, os.ErrClosed) {
				if errors.Is(err, unix.ENETDOWN) {
					continue
				}
				c.mu.Lock()
				c.err = err
				c.mu.Unlock()
			}
			return
		}
		now := time.Now()
		head := binary.LittleEndian.AppendUint32(nil, uint32(now.Unix()))
		head = binary.LittleEndian.AppendUint32(head, uint32(now.Nanosecond()/1000))
		head = binary.LittleEndian.AppendUint32(head, uint32(n))
		head = binary.LittleEndian.AppendUint32(head, uint32(n))
		c.mu.Lock()
		c.out.Write(head)
		_, err = c.out.Write(frame[:n])
		if err != nil && c.err == nil {
			c.err = err
		}
		c.mu.Unlock()
	}
}

// flush brings what was read to the file. The error says what the file lacks.
func (c *capture) flush() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if stats, err := unix.GetsockoptTpacketStats(c.raw, unix.SOL_PACKET, unix.PACKET_STATISTICS); err == nil {
		c.missed += stats.Drops // the kernel counts from the last question
	}
	if err := errors.Join(c.err, c.out.Flush()); err != nil {
		return err
	}
	if c.missed > 0 {
		return fmt.Errorf("%d frames were missed", c.missed)
	}
	return nil
}

func (c *capture) Close() error {
	err := c.flush()
	c.socket.Close()
	<-c.ended
	return errors.Join(err, c.out.Flush(), c.file.Close())
}
