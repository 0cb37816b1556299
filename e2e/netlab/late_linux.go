package netlab

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// tunnel holds packets back. The kernel routes those of its flows into the device late0; this process reads them
// there, waits, and hands them back through the same device, whence they go on as any other. Kernels without netem
// have no other way.
type tunnel struct {
	file  *os.File
	flows []Late
	wg    sync.WaitGroup
	undo  []func() error
}

const (
	lateTable    = 200
	latePriority = 900 // before the cuts and the rule for local addresses
)

// held is how many packets of one flow may wait; what comes then is lost, as on any line that is full.
const held = 1 << 14

type packet struct {
	due  time.Time
	data []byte
}

func newTunnel(flows []Late) (*tunnel, error) {
	raw, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("%w: open /dev/net/tun: %w", ErrMissing, err)
	}
	request, err := unix.NewIfreq("late0")
	if err == nil {
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI)
		err = unix.IoctlIfreq(raw, unix.TUNSETIFF, request)
	}
	if err != nil {
		unix.Close(raw)
		return nil, fmt.Errorf("make the device late0: %w", err)
	}
	t := &tunnel{file: os.NewFile(uintptr(raw), "late0"), flows: flows}
	fail := func(err error) (*tunnel, error) { return nil, errors.Join(err, t.close()) }
	if err := errors.Join(configure("late0", netip.Addr{}, 0), route(lateTable, netip.Addr{}, "late0")); err != nil {
		return fail(err)
	}
	add := func(priority uint32, table uint8, flow Flow, device string) error {
		err := choose(unix.RTM_NEWRULE, priority, table, flow, device)
		if err == nil {
			t.undo = append(t.undo, func() error { return choose(unix.RTM_DELRULE, priority, table, flow, device) })
		}
		return err
	}
	if err := add(latePriority, unix.RT_TABLE_MAIN, Flow{}, "late0"); err != nil {
		return fail(err)
	}
	for i, l := range flows {
		if err := add(latePriority+1+uint32(i), lateTable, l.Flow, ""); err != nil {
			return fail(err)
		}
	}
	lines := make([]chan packet, len(flows))
	for i := range lines {
		lines[i] = make(chan packet, held)
		t.wg.Go(func() {
			for p := range lines[i] {
				time.Sleep(time.Until(p.due))
				t.file.Write(p.data) // the device is gone when it fails, and with it the delay
			}
		})
	}
	t.wg.Go(func() { t.read(lines) })
	return t, nil
}

func (t *tunnel) read(lines []chan packet) {
	defer func() {
		for _, l := range lines {
			close(l)
		}
	}()
	buffer := make([]byte, 64<<10)
	for {
		n, err := t.file.Read(buffer)
		if err != nil {
			return
		}
		if n < 20 || buffer[0]>>4 != 4 {
			continue
		}
		from, to := netip.AddrFrom4([4]byte(buffer[12:16])), netip.AddrFrom4([4]byte(buffer[16:20]))
		for i, l := range t.flows {
			if l.From.Contains(from) && l.To.Contains(to) {
				select {
				case lines[i] <- packet{time.Now().Add(l.By), append([]byte(nil), buffer[:n]...)}:
				default:
				}
				break
			}
		}
	}
}

// close lets packets that still wait go, and then the device.
func (t *tunnel) close() error {
	var errs []error
	for _, u := range t.undo {
		errs = append(errs, u())
	}
	errs = append(errs, t.file.Close())
	t.wg.Wait()
	return errors.Join(errs...)
}
