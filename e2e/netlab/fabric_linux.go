package netlab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// Fabric is hosts in network namespaces of their own, joined by this process's namespace as their router: all that
// goes from one host to another passes here. It lets everything through and counts what it is told to count; the
// rules are nftables'. Make one after Up. Its methods may be called by several goroutines at once.
type Fabric struct {
	router int // this process's namespace

	mu    sync.Mutex // covers the rest
	hosts []*Host
	fault int // the last fault's number
	late  *tunnel
}

// Host is a network namespace with one device, eth0, and loopback.
type Host struct {
	Name    string
	Address netip.Addr

	ns      int
	capture *capture
}

// The table of all rules. Counters look first, so that they see also what a fault then loses.
const tables = `
table inet lab {
	chain watched { type filter hook forward priority -10; policy accept; }
	chain faults { type filter hook forward priority 0; policy accept; iifname "late0" accept; }
}
`

// NewFabric makes the router.
func NewFabric() (*Fabric, error) {
	if _, err := exec.LookPath("nft"); err != nil {
		return nil, fmt.Errorf("%w: nft, of the package nftables, is not installed", ErrMissing)
	}
	for name, value := range map[string]string{"ip_forward": "1", "conf/all/rp_filter": "0", "conf/default/rp_filter": "0", "conf/all/send_redirects": "0"} {
		if err := os.WriteFile("/proc/sys/net/ipv4/"+name, []byte(value), 0o644); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrMissing, err)
		}
	}
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open this namespace: %w", err)
	}
	f := &Fabric{router: fd}
	if err := f.Rules(tables); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrMissing, err)
	}
	return f, nil
}

// Host makes a host at an address whose network of four it has for itself, and writes every frame that it sends or
// receives to a pcap file from the first on; "": it writes nothing.
func (f *Fabric) Host(name string, address netip.Addr, pcap string) (*Host, error) {
	gateway := address.Prev()
	if network, _ := gateway.Prev().Prefix(30); network.Addr() != gateway.Prev() {
		return nil, fmt.Errorf("host %s: %s is not the second address of a network of four", name, address)
	}
	h := &Host{Name: name, Address: address, ns: -1}
	err := f.in(f.router, func() (err error) {
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("make a namespace: %w", err)
		}
		h.ns, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		return err
	})
	f.mu.Lock()
	device := fmt.Sprintf("host%d", len(f.hosts))
	f.hosts = append(f.hosts, h)
	f.mu.Unlock()
	if err == nil {
		err = f.in(f.router, func() error { return errors.Join(link(device, h.ns), configure(device, gateway, 30)) })
	}
	if err == nil {
		err = f.in(h.ns, func() error {
			if err := errors.Join(configure("lo", netip.Addr{}, 0), configure("eth0", address, 30)); err != nil {
				return err
			}
			return route(unix.RT_TABLE_MAIN, gateway, "")
		})
	}
	if err == nil && pcap != "" {
		err = f.in(h.ns, func() (err error) { h.capture, err = newCapture(pcap); return err })
	}
	if err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	return h, nil
}

// in calls do on a thread that stands in a namespace meanwhile. What it opens and starts stays there.
func (f *Fabric) in(ns int, do func() error) error {
	runtime.LockOSThread()
	if err := unix.Setns(ns, unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("enter a namespace: %w", err)
	}
	err := do()
	// A thread that cannot come back must do nothing else: without Unlock it ends with its goroutine.
	if back := unix.Setns(f.router, unix.CLONE_NEWNET); back != nil {
		return errors.Join(err, fmt.Errorf("leave a namespace: %w", back))
	}
	runtime.UnlockOSThread()
	return err
}

// Start starts a program on a host.
func (f *Fabric) Start(h *Host, cmd *exec.Cmd) error { return f.in(h.ns, cmd.Start) }

// Dial connects from a host.
func (f *Fabric) Dial(ctx context.Context, h *Host, network, address string) (conn net.Conn, err error) {
	err = f.in(h.ns, func() error {
		conn, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// Listen listens on a host, for TCP.
func (f *Fabric) Listen(h *Host, address string) (l net.Listener, err error) {
	err = f.in(h.ns, func() error { l, err = net.Listen("tcp4", address); return err })
	return l, err
}

// Rules adds to the rules, in nft's language; the table is inet lab, its chain for counters is watched.
func (f *Fabric) Rules(text string) error { _, err := nft(text, "-f", "-"); return err }

// Fault adds rules to the chain of faults, each a match and a verdict, until heal is called.
func (f *Fabric) Fault(rules ...string) (heal func() error, err error) {
	f.mu.Lock()
	f.fault++
	name := fmt.Sprintf("fault%d", f.fault)
	f.mu.Unlock()
	var text strings.Builder
	fmt.Fprintf(&text, "table inet lab {\n\tchain %s {\n", name)
	for _, r := range rules {
		fmt.Fprintln(&text, r)
	}
	fmt.Fprintf(&text, "\t}\n\tchain faults { jump %s; }\n}\n", name)
	if err := f.Rules(text.String()); err != nil {
		return nil, err
	}
	// An empty chain loses nothing; the jump to it stays until the namespace goes.
	return func() error { _, err := nft("", "flush", "chain", "inet", "lab", name); return err }, nil
}

// Counters are the packets of each named counter so far.
func (f *Fabric) Counters() (map[string]uint64, error) { return counters("list") }

// ResetCounters sets them to 0 and returns what they were.
func (f *Fabric) ResetCounters() (map[string]uint64, error) { return counters("reset") }

func counters(verb string) (map[string]uint64, error) {
	out, err := nft("", "-j", verb, "counters")
	if err != nil {
		return nil, err
	}
	var answer struct {
		Nftables []struct {
			Counter *struct {
				Name    string
				Packets uint64
			}
		}
	}
	if err := json.Unmarshal(out, &answer); err != nil {
		return nil, fmt.Errorf("read nft's counters: %w", err)
	}
	all := map[string]uint64{}
	for _, n := range answer.Nftables {
		if n.Counter != nil {
			all[n.Counter.Name] = n.Counter.Packets
		}
	}
	return all, nil
}

// nft runs in the caller's namespace, which is the router's on every thread that is not within a host.
func nft(input string, args ...string) ([]byte, error) {
	cmd := exec.Command("nft", args...)
	cmd.Stdin = strings.NewReader(input)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("nft %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(errs.Bytes()))
	}
	return out.Bytes(), nil
}

// Delay makes flows slower until heal is called; one such set at a time. Packets take their detour through this process.
func (f *Fabric) Delay(flows ...Late) (heal func() error, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.late != nil {
		return nil, errors.New("delay: flows are delayed already; heal that first")
	}
	t, err := newTunnel(flows)
	if err != nil {
		return nil, err
	}
	f.late = t
	return func() error {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.late = nil
		return t.close()
	}, nil
}

// Flush writes what captures have buffered. The error says that a capture has missed frames.
func (f *Fabric) Flush() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	for _, h := range f.hosts {
		if h.capture == nil {
			continue
		}
		if err := h.capture.flush(); err != nil {
			errs = append(errs, fmt.Errorf("capture of %s: %w", h.Name, err))
		}
	}
	return errors.Join(errs...)
}

// Close ends captures and delays. Namespaces end with the processes in them.
func (f *Fabric) Close() error {
	f.mu.Lock()
	defer f.mu.Unlock()
	var errs []error
	var closers []io.Closer
	for _, h := range f.hosts {
		if h.capture != nil {
			closers = append(closers, h.capture)
		}
		if h.ns >= 0 {
			closers = append(closers, fd(h.ns))
		}
	}
	f.hosts = nil
	for _, c := range closers {
		errs = append(errs, c.Close())
	}
	if f.late != nil {
		errs = append(errs, f.late.close())
		f.late = nil
	}
	return errors.Join(errs...)
}

type fd int

func (d fd) Close() error { return unix.Close(int(d)) }
